"""sbi's posteriors as ours: in memory with `from_sbi`, as a file with `save_sbi`, which `infer` and `load_posterior` read."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from pipeline.config import build_simulator, case_from_values, load_case
from pipeline.errors import InputError
from pipeline.estimators.argument_checks import argument_checks_kept
from pipeline.estimators.posterior import Posterior, file_header
from pipeline.estimators.sbi_network import (
    ARCHITECTURE,
    Reads,
    SbiArchitecture,
    SbiNetwork,
    architecture_from,
    new_sbi_network,
)
from pipeline.estimators.standardize import location_and_scale
from pipeline.settings import CaseSettings
from pipeline.store import content_key, stamp, write_safetensors
from simulators.priors import prior_of, sample
from simulators.protocol import Simulator, simulate

if TYPE_CHECKING:
    from sbi.inference.posteriors.base_posterior import NeuralPosterior
    from sbi.neural_nets.estimators import ConditionalDensityEstimator

VERSION = 1
SIMULATIONS, DRAWS = 64, 8
"""Where a rebuilt network is compared with the one that it was made from."""
TOLERANCE = 1e-6
"""Nats, per nat of log_q: the same operations on the same weights."""
COARSE = 1_000
"""Steps of float32 in the width of a prior, at least."""


def from_sbi(
    posterior: NeuralPosterior | ConditionalDensityEstimator,
    case: CaseSettings | Simulator | str | Path,
    *,
    reads: Reads = "observables",
) -> Posterior:
    """An sbi posterior as the q whose draws our likelihood and prior weigh.

    Its density is q itself, not corrected for what lies outside the prior: such draws are refused and counted.

    Args:
        posterior: sbi's `DirectPosterior` (NPE), or its density estimator. A copy is taken.
        case: settings, a YAML config, or the simulator itself.
        reads: numbers of x that it was trained on: every observable, flattened and concatenated in the
            simulator's order, or the simulator's `features`.

    Raises:
        InputError: not an amortized density of sbi, or one of other parameters or data.
    """
    settings, simulator = _case_and_simulator(case)
    network = SbiNetwork(copy.deepcopy(_density_estimator(posterior)), reads=reads)
    _check_sizes(network, simulator)
    return Posterior(settings, simulator, network)


def save_sbi(
    posterior: NeuralPosterior | ConditionalDensityEstimator,
    path: str | Path,
    case: CaseSettings | str | Path,
    *,
    model: str,
    hidden_features: int = 50,
    num_transforms: int = 5,
    num_bins: int = 10,
    num_components: int = 10,
    num_blocks: int | None = None,
    tail_bound: float | None = None,
    z_score_theta: Literal["independent", "structured", "none"] = "independent",
    z_score_x: Literal["independent", "structured", "none"] = "independent",
    embedding: Mapping[str, int] | None = None,
    reads: Reads = "observables",
) -> Path:
    """Write an NPE network of sbi as safetensors: weights, and what rebuilds it as JSON in the header.

    The network is rebuilt from what is stated here, and its log_q compared with the original's on simulations,
    before anything is written. Reading it executes nothing that is in the file.

    Args:
        posterior: sbi's `DirectPosterior`, or its density estimator.
        path: file to write, `.safetensors`.
        case: settings, or a YAML config: they name the simulator.
        model, hidden_features, num_transforms, num_bins, num_components, num_blocks, tail_bound, z_score_theta,
            z_score_x: what sbi's `posterior_nn` was given; defaults are sbi's. NPE's own default model is "maf".
        embedding: arguments of sbi's FCEmbedding (output_dim, num_layers, num_hiddens); None: no embedding.
        reads: see `from_sbi`.

    Returns:
        the path.

    Raises:
        InputError: a kind that is not supported, or a network that is not what was stated.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a name that ends in .safetensors, by which the commands know it")
    stated = {"model": model, "hidden_features": hidden_features, "num_transforms": num_transforms}
    stated |= {"num_bins": num_bins, "num_components": num_components, "num_blocks": num_blocks}
    stated |= {"tail_bound": tail_bound, "z_score_theta": z_score_theta, "z_score_x": z_score_x}
    stated |= {"embedding": dict(embedding) if embedding is not None else None, "reads": reads}
    architecture = architecture_from(stated, "save_sbi")
    settings, simulator = _case_and_simulator(case)
    network = SbiNetwork(_density_estimator(posterior), reads=reads)
    _check_sizes(network, simulator)
    _check_rebuilt(network, architecture, simulator)
    digest = _weights_digest(network)
    relevant = {"architecture": architecture.model_dump(mode="json"), "simulator": settings.dump("simulator")}
    key = content_key("sbi", VERSION, relevant, {"weights": digest})
    header = file_header(simulator, network.features) | stamp(stage="sbi", key=key, settings=settings.dump())
    header[ARCHITECTURE] = architecture.model_dump_json()
    write_safetensors(path, network.state_dict(), header)
    return path


def _density_estimator(posterior: Any) -> ConditionalDensityEstimator:
    """The normalised density in an sbi posterior.

    Raises:
        InputError: something else.
    """
    with argument_checks_kept():
        from sbi.inference.posteriors import DirectPosterior
        from sbi.neural_nets.estimators import ConditionalDensityEstimator

    if isinstance(posterior, DirectPosterior):
        posterior = posterior.posterior_estimator
    if not isinstance(posterior, ConditionalDensityEstimator):
        raise InputError(
            f"sbi: expected a DirectPosterior of NPE or its density estimator, got {type(posterior).__name__}; "
            "a posterior that is sampled by MCMC, or has no normalised density, cannot be weighed"
        )
    return posterior


def _case_and_simulator(case: CaseSettings | Simulator | str | Path) -> tuple[CaseSettings, Simulator]:
    if isinstance(case, (str, Path)):
        case = load_case(Path(case))
    if isinstance(case, CaseSettings):
        return case, build_simulator(case.simulator)
    if not isinstance(case, Simulator):
        raise InputError(f"sbi: expected settings, a config or a simulator, got {type(case).__name__}")
    return case_from_values({"simulator": {"name": case.name}}, case.name), case


def _check_sizes(network: SbiNetwork, simulator: Simulator) -> None:
    """Raise where D differs, or the numbers of x of one simulation do."""
    wanted = len(simulator.parameters)
    if network.dimension != wanted:
        raise InputError(
            f"sbi network: it has {network.dimension} parameters, simulator {simulator.name!r} has {wanted}"
        )
    stream = torch.Generator().manual_seed(0)
    theta = sample(prior_of(simulator), 1, stream)
    network.read(simulator, simulate(simulator, theta, generator=stream))
    _check_digits(simulator)


def _check_digits(simulator: Simulator) -> None:
    """Raise where float32 has fewer than COARSE steps in the width of a parameter's prior: draws would lie on a grid."""
    theta = sample(prior_of(simulator), SIMULATIONS, torch.Generator().manual_seed(0)).double()
    step = torch.finfo(torch.float32).eps * theta.abs().amax(0) * location_and_scale(theta)[1]
    for parameter, steps in zip(simulator.parameters, (1 / step).tolist(), strict=True):
        if steps < COARSE:
            raise InputError(
                f"sbi network: it computes in float32, which has {steps:.2g} steps in the width of {parameter.name!r}; "
                "make the parameter a difference from a reference"
            )


@torch.no_grad()
def _check_rebuilt(network: SbiNetwork, architecture: SbiArchitecture, simulator: Simulator) -> None:
    """Raise unless a network built from `architecture` takes the weights and gives the same log_q."""
    network = copy.deepcopy(network).cpu().eval()
    rebuilt = new_sbi_network(architecture, dimension=network.dimension, features=network.features).eval()
    try:
        rebuilt.load_state_dict(network.state_dict())
    except RuntimeError as error:
        line = next((s.strip() for s in str(error).splitlines()[1:]), str(error))
        raise InputError(
            f"save_sbi: the weights do not fit what was stated ({line[:160]}); state what posterior_nn was given. Embedding "
            "nets other than sbi's FCEmbedding cannot be saved: use from_sbi"
        ) from None
    stream = torch.Generator().manual_seed(0)
    theta = sample(prior_of(simulator), SIMULATIONS, stream)
    x = simulate(simulator, theta, generator=stream)
    condition = network.condition(network.read(simulator, x))
    points = torch.cat([network.draw(condition, DRAWS, generator=stream)[0], theta[None].float()])
    given, again = network.log_q(points, condition), rebuilt.log_q(points, condition)
    same = torch.isclose(given, again, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    if not bool(same.all()):
        apart = float((given - again).abs().nan_to_num(torch.inf).max())
        raise InputError(
            f"save_sbi: the rebuilt network gives another log_q (up to {apart:.2g} nats); state what posterior_nn was "
            "given, such as tail_bound, or use from_sbi"
        )


def _weights_digest(network: SbiNetwork) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + json.dumps([str(value.dtype), *value.shape]).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
