"""Settings of `elboscope population`: which parameters follow which family, and the priors of its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.settings import Fraction, Positive, PositiveFloat, Settings
from simulators.priors import distribution_from_spec

PLACEHOLDERS = (1.0, 2.0)
"""Numbers that every family takes in the place of hyperparameters, to check its name and how many it has."""


class PopulationSamplerSettings(Settings):
    """emcee on the hyperparameters."""

    walkers: Positive = Field(default=32, description="walkers, started from draws of the hyperpriors")
    steps: Positive = Field(default=1_000, description="steps kept for each walker")
    burn_in: Positive = Field(default=250, description="steps discarded first")


class PopulationSettings(Settings):
    """A population model.

    A parameter that is not named keeps its prior, which cancels.
    """

    parameters: dict[str, dict[str, list[float | str] | float | str]] = Field(
        description="family of each parameter that has one, its numbers or the names of hyperparameters: {logk1: {normal: [mu, sigma]}}",
        min_length=1,
    )
    hyperpriors: dict[str, dict[str, list[float] | float]] = Field(
        description="prior of each hyperparameter: {mu: {uniform: [-2, 5]}}", min_length=1
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="every random number is a function of it")
    draws: Positive | None = Field(
        default=None, description="draws of each observation that are reweighted; default: all that fit into memory_gb"
    )
    memory_gb: PositiveFloat = Field(default=2.0, description="bound of what the draws of all observations take")
    sampler: PopulationSamplerSettings = PopulationSamplerSettings()
    most_variance: PositiveFloat = Field(
        default=1.0, description="largest variance of the estimated log likelihood, nats squared"
    )
    least_ess: PositiveFloat = Field(
        default=10.0, description="least effective draws of any observation under the population"
    )
    refused_share: Fraction = Field(
        default=0.05, description="share of the hyperparameters' posterior that may break one of the two"
    )
    outside_prior: Fraction = Field(
        default=0.05, description="share of the population that may lie outside the prior's support"
    )

    @model_validator(mode="after")
    def _names_fit(self) -> PopulationSettings:
        used: set[str] = set()
        for parameter, spec in self.parameters.items():
            used |= _hyperparameters_of(parameter, spec, list(self.hyperpriors))
        for name, spec in self.hyperpriors.items():
            if not name.isidentifier():
                raise ValueError(f"hyperpriors: {name!r}: expected an identifier such as 'mu'")
            distribution_from_spec(spec, f"hyperpriors.{name}")
            if name not in used:
                raise ValueError(f"hyperpriors.{name}: no parameter's family uses it")
        return self


def arguments_of(spec: Mapping[str, Any]) -> tuple[str, list[float | str]]:
    """Family and its arguments, of a specification with one key."""
    ((family, arguments),) = spec.items()
    return family, list(arguments) if isinstance(arguments, list) else [arguments]


def _hyperparameters_of(parameter: str, spec: Mapping[str, Any], known: list[str]) -> set[str]:
    """Names of hyperparameters in one family.

    Raises:
        ValueError: no such family, another count of arguments, or a name without hyperprior.
    """
    what = f"parameters.{parameter}"
    if len(spec) != 1:
        raise ValueError(f"{what}: expected one family, such as {{normal: [mu, sigma]}}, got {dict(spec)}")
    family, arguments = arguments_of(spec)
    placeholders = [PLACEHOLDERS[i] if i < 2 else float(i) for i in range(len(arguments))]
    distribution_from_spec({family: placeholders}, what)
    names = [a for a in arguments if isinstance(a, str)]
    if not names:
        raise ValueError(f"{what}: {family} {arguments}: at least one of its numbers must be a hyperparameter")
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"hyperpriors: {', '.join(known)}"
            raise ValueError(f"{what}: hyperparameter {name!r} has no hyperprior; {hint}")
    return set(names)


def load_population(path: Path) -> PopulationSettings:
    """Read a YAML population.

    Raises:
        InputError: one line that names the file, the key and what was expected.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    try:
        return PopulationSettings.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error.errors()[0])}") from None


def _explain(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        model = PopulationSamplerSettings if location[0] == "sampler" else PopulationSettings
        known = list(model.model_fields)
        near = get_close_matches(location[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return f"{key!r} is required"
    message = error["msg"].removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{key}: {message}, got {error['input']!r}"
