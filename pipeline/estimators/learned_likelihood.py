"""A simulator whose log_likelihood is a learned one: what every later stage then uses like any other simulator."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.estimators.likelihood import CONTEXT, SUMMARY, Judged, LikelihoodNetwork, LikelihoodShape, mixture
from pipeline.estimators.standardize import need_bounds
from pipeline.estimators.summary import Summary, SummaryShape
from pipeline.likelihood_settings import LikelihoodSettings
from pipeline.schema import SUMMARY_HASH
from simulators.protocol import Data, Observable, Parameter, Simulator, feature_shape, network_features

PREFIX = "likelihood."
"""Of its tensors in a file of a posterior."""
MODEL = "likelihood_model"
"""How it was built, in the header of a model file."""
LEARNED = "learned"
"""Value of the root attribute `likelihood` of what was made with it."""
BLOCK = 200
"""Draws of an observation that are judged at once."""


@dataclass(frozen=True)
class WithLearnedLikelihood:
    """A simulator, its own likelihood hidden, with a learned one in its place.

    Everything else (simulate, pilot, read_observation, ...) is the simulator's.

    Attributes:
        simulator: the physics model.
        network: frozen.
    """

    simulator: Simulator
    network: LikelihoodNetwork

    @property
    def name(self) -> str:
        return self.simulator.name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.simulator.parameters

    @property
    def observables(self) -> tuple[Observable, ...]:
        return self.simulator.observables

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of what the network of q reads; a compressed x has none."""
        return () if self.network.summary.compresses else feature_shape(self.simulator)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """The simulator's own."""
        return self.simulator.simulate(theta, context, generator=generator)

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        """log p~(s(x) given theta), guarded (`estimators.likelihood`), theta (..., N, D) -> (..., N), float64."""
        return self.network.log_likelihood(theta, self.reduced(x))

    def reduced(self, x: Mapping[str, Tensor]) -> Data:
        """What log_likelihood needs of x: its summary, read once for many theta."""
        return dict(x) if SUMMARY in x else self.network.read(x)

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """What the network of q reads, (N, F): with a compressed x the summary and context, which are all that p~ knows."""
        if not self.network.summary.compresses:
            return network_features(self.simulator, x)
        read = self.reduced(x)
        return torch.cat([self.network.summary.standardized(read[SUMMARY])[0], read[CONTEXT]], dim=1)

    @torch.no_grad()
    def trust(self, theta: Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""How far the surrogate is to be trusted at equally weighted posterior draws theta (L, N, D); (N,) each.

        With draws of p~'s posterior, the evidence of member e is $Z_e = Z \langle p_e / \tilde p \rangle$. `surrogate_error` is
        the standard deviation of log Z_e over the members (0 for one alone), `surrogate_spread` the mean spread of
        log p_e(s|theta), `surrogate_outside` the share of draws outside the training set.
        """
        read = self.reduced(x)
        parts = [self.network.judge(part.double(), read) for part in theta.split(BLOCK)]
        judged = Judged(torch.cat([p.members for p in parts], 1), *(torch.cat([p[i] for p in parts]) for i in (1, 2)))
        guarded = self.network.settings.guard.enabled
        used = mixture(judged.members) - (self.network.penalty(judged) if guarded else 0.0)
        evidences = torch.logsumexp(judged.members - used, 1) - math.log(len(theta))
        error = evidences.std(0) if len(evidences) > 1 else torch.zeros_like(evidences[0])
        return {
            "surrogate_error": error,
            "surrogate_spread": judged.spread.mean(0),
            "surrogate_outside": self.network.is_outside(judged).double().mean(0),
        }

    def __getattr__(self, name: str) -> Any:
        """What else the simulator offers."""
        if name.startswith("__") or name in ("simulator", "network"):
            raise AttributeError(name)
        return getattr(self.simulator, name)


def learned_part(simulator: Simulator) -> WithLearnedLikelihood | None:
    """The simulator itself, where its likelihood is a learned one."""
    return simulator if isinstance(simulator, WithLearnedLikelihood) else None


def attributes_of(simulator: Simulator) -> dict[str, str]:
    """Root attributes of a result: that its likelihood was learned, and of what summary; none for the simulator's own."""
    learned = learned_part(simulator)
    if learned is None:
        return {}
    return {"likelihood": LEARNED, SUMMARY_HASH: learned.network.summary.digest(learned.simulator)}


def model_header(network: LikelihoodNetwork) -> dict[str, str]:
    """How a network was built, for the header of a file."""
    model = {"shape": asdict(network.shape), "settings": network.settings.model_dump(mode="json")}
    return {MODEL: json.dumps(model, sort_keys=True), SUMMARY_HASH: network.summary.digest(network.simulator)}


def summary_from(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], simulator: Simulator, *, source: str
) -> Summary:
    """The summary alone, as a simulator with other parameters of the same data may use it.

    Raises:
        InputError: it reads another number of numbers than this simulator gives.
    """
    try:
        shape, settings = _model(header)
        summary = Summary(shape.summary, settings.summary, simulator)
        summary.load_state_dict({k.removeprefix("summary."): v for k, v in tensors.items() if k.startswith("summary.")})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: its summary does not fit ({str(error).splitlines()[0]})") from None
    return summary.eval().requires_grad_(False)


def _model(header: Mapping[str, str]) -> tuple[LikelihoodShape, LikelihoodSettings]:
    model = json.loads(header[MODEL])
    shape = LikelihoodShape(SummaryShape(**model["shape"]["summary"]), model["shape"]["context"])
    return shape, LikelihoodSettings.model_validate(model["settings"])


def likelihood_from(
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    simulator: Simulator,
    *,
    source: str,
    prefix: str = "",
) -> WithLearnedLikelihood:
    """The simulator with the learned likelihood that a model file holds, on the CPU.

    Args:
        tensors, header: of the file.
        prefix: of its tensors.

    Raises:
        InputError: weights that do not fit their settings, or this simulator.
    """
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    need_bounds(own, "context", source)
    try:
        shape, settings = _model(header)
        network = LikelihoodNetwork(simulator, shape, settings)
        network.load_state_dict(own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: its learned likelihood does not fit ({str(error).splitlines()[0]})") from None
    return WithLearnedLikelihood(simulator, network.eval().requires_grad_(False))
