from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.stages.population_settings import PopulationSettings, arguments_of, load_population

GOOD = """
parameters: {logk1: {normal: [mu, sigma]}, ecc: {half_normal: width}, share: {beta: [a, 2]}}
hyperpriors:
  mu: {uniform: [-2, 5]}
  sigma: {uniform: [0.1, 3]}
  width: {half_normal: 1}
  a: {log_normal: [0, 1]}
"""


def test_a_population_is_read(tmp_path: Path) -> None:
    path = tmp_path / "population.yaml"
    path.write_text(GOOD)
    settings = load_population(path)
    assert arguments_of(settings.parameters["logk1"]) == ("normal", ["mu", "sigma"])
    assert arguments_of(settings.parameters["ecc"]) == ("half_normal", ["width"])
    assert arguments_of(settings.parameters["share"]) == ("beta", ["a", 2.0])
    assert list(settings.hyperpriors) == ["mu", "sigma", "width", "a"]


NORMAL = "parameters: {t: {normal: [mu, sigma]}}\n"
PRIORS = "hyperpriors: {mu: {uniform: [0, 1]}, sigma: {uniform: [0.1, 1]}}\n"
BAD = {
    "unknown key": (NORMAL + PRIORS + "drawz: 3\n", "unknown key 'drawz'; did you mean 'draws'"),
    "unknown key deep down": (NORMAL + PRIORS + "sampler: {walker: 3}\n", "did you mean 'sampler.walkers'"),
    "missing": (NORMAL, "'hyperpriors' is required"),
    "misspelt hyperparameter": (
        NORMAL.replace("sigma", "sgima") + PRIORS,
        "'sgima' has no hyperprior; did you mean 'sigma'",
    ),
    "unused hyperparameter": (
        NORMAL.replace("sigma", "1") + PRIORS,
        "hyperpriors.sigma: no parameter's family uses it",
    ),
    "unknown family": (NORMAL.replace("normal", "gaussian") + PRIORS, "unknown distribution 'gaussian'"),
    "too many numbers": (NORMAL.replace("sigma]", "sigma, mu]") + PRIORS, "normal takes [mean, standard deviation]"),
    "nothing free": ("parameters: {t: {normal: [0, 1]}}\n" + PRIORS, "must be a hyperparameter"),
    "two families": ("parameters: {t: {normal: [mu, sigma], beta: [mu, sigma]}}\n" + PRIORS, "expected one family"),
    "bad hyperprior": (NORMAL + PRIORS.replace("[0, 1]", "[1, 0]"), "hyperpriors.mu: uniform [1.0, 0.0]"),
    "wrong type": (NORMAL + PRIORS + "seed: many\n", "seed: "),
    "not a mapping": ("- 1\n", "expected a mapping"),
    "not YAML": ("parameters: [\n", "not valid YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_that_says_what_to_change(tmp_path: Path, name: str) -> None:
    text, expected = BAD[name]
    path = tmp_path / "population.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_population(path)
    assert expected in str(error.value)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_population(tmp_path / "none.yaml")


def test_settings_are_frozen() -> None:
    settings = PopulationSettings.model_validate(
        {"parameters": {"t": {"normal": ["mu", 1]}}, "hyperpriors": {"mu": {"uniform": [0, 1]}}}
    )
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
