"""Find a simulator by name, from an installed package, or in a user's own file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from simulators.protocol import Simulator

BUILT_IN: dict[str, str] = {
    "linear_gaussian": "simulators.linear_gaussian:LinearGaussian",
    "radial_velocity": "simulators.radial_velocity:RadialVelocity",
    "multi_instrument_velocity": "simulators.multi_instrument_velocity:MultiInstrumentVelocity",
    "supernova_cosmology": "simulators.supernova_cosmology:SupernovaCosmology",
    "strong_lens": "simulators.strong_lens:StrongLens",
    "lens_subhalos": "simulators.lens_subhalos:LensSubhalos",
    "two_moons": "simulators.benchmark.two_moons:TwoMoons",
    "slcp": "simulators.benchmark.slcp:Slcp",
    "slcp_distractors": "simulators.benchmark.slcp_distractors:SlcpDistractors",
    "gaussian_linear": "simulators.benchmark.gaussian_linear:GaussianLinear",
    "gaussian_linear_uniform": "simulators.benchmark.gaussian_linear_uniform:GaussianLinearUniform",
    "gaussian_mixture": "simulators.benchmark.gaussian_mixture:GaussianMixture",
    "bernoulli_glm": "simulators.benchmark.bernoulli_glm:BernoulliGlm",
    "bernoulli_glm_raw": "simulators.benchmark.bernoulli_glm_raw:BernoulliGlmRaw",
    "sir": "simulators.benchmark.sir:Sir",
    "lotka_volterra": "simulators.benchmark.lotka_volterra:LotkaVolterra",
    "fermi_poisson": "simulators.fermi.poisson:FermiPoisson",
    "fermi_inner_galaxy": "simulators.fermi.inner_galaxy:FermiInnerGalaxy",
}
ENTRY_POINT_GROUP = "elboscope.simulators"
RESERVED = frozenset(
    ("chain", "draw", "observation", "proposal_draw", "log_q", "log_likelihood", "log_joint", "log_weight", "log_prior")
)
"""Names of variables and dimensions in result files."""


def available() -> dict[str, str]:
    """Registered simulators: name -> "module:Class"."""
    return BUILT_IN | {e.name: e.value for e in entry_points(group=ENTRY_POINT_GROUP)}


def load_class(name: str) -> type:
    """The class registered under `name`.

    Raises:
        ValueError: no such simulator.
    """
    registered = available()
    if name not in registered:
        near = get_close_matches(name, registered, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown simulator {name!r}{hint} (known: {', '.join(registered)})")
    module, _, attribute = registered[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_class_from_file(path: Path, name: str) -> type:
    """The class `name` in a user's Python file. Runs that file: only a config may ask for it.

    Raises:
        ValueError: the file is missing, fails to import, or has no such class.
    """
    if not path.is_file():
        raise ValueError(f"simulator.path: no file {path}")
    module_name = f"elboscope_user_simulator_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"simulator.path: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises becomes one readable line
        raise ValueError(f"simulator.path: {path} failed to import: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ValueError(f"simulator.name: {path} has no class {name!r}")
    return getattr(module, name)


def create(name: str, options: Mapping[str, Any] | None = None, *, path: Path | None = None) -> Simulator:
    """Build a simulator with its options.

    Raises:
        ValueError: unknown name or option, or an object that is not a simulator.
    """
    factory = load_class(name) if path is None else load_class_from_file(path, name)
    options = dict(options or {})
    signature = inspect.signature(factory).parameters
    accepted = list(signature)
    for key in options:
        if key not in accepted:
            near = get_close_matches(key, accepted, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"simulator.options: {name} has no option {key!r}{hint} (options: {', '.join(accepted) or 'none'})"
            )
    for key, option in signature.items():
        variadic = option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD)
        if option.default is option.empty and key not in options and not variadic:
            raise ValueError(f"simulator.options: {name} needs the option {key!r}")
    simulator = factory(**options)
    if not isinstance(simulator, Simulator):
        raise ValueError(f"{name} is not a simulator: it needs name, parameters, observables and simulate")
    names = [p.name for p in simulator.parameters] + [o.name for o in simulator.observables]
    reserved = sorted(set(names) & RESERVED)
    if reserved:
        raise ValueError(f"simulator {name!r}: {reserved[0]!r} is a name that result files use; choose another")
    repeated = {n for n in names if names.count(n) > 1}
    if repeated:
        raise ValueError(f"simulator {name!r}: names used twice: {', '.join(sorted(repeated))}")
    return simulator
