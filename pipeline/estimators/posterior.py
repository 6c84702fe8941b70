"""A trained posterior: load it, sample it, weigh it. What `pipeline.load_posterior` gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.config import build_simulator
from pipeline.errors import InputError
from pipeline.estimators.importance import Evidence, summarize
from pipeline.estimators.learned_likelihood import MODEL, learned_part, likelihood_from, model_header
from pipeline.estimators.learned_likelihood import PREFIX as LIKELIHOOD
from pipeline.estimators.network import BLOCK, Condition, NetworkInput, PosteriorNetwork, draw_in_blocks, network_input
from pipeline.estimators.proposal import Amortized, weigh
from pipeline.estimators.sbi_network import (
    ARCHITECTURE,
    PriorWithinSupport,
    SbiNetwork,
    architecture_from,
    new_sbi_network,
)
from pipeline.estimators.standardize import need_bounds
from pipeline.estimators.typicality import PREFIX, Typicality
from pipeline.schema import SCHEMA, SETTINGS, STAGE
from pipeline.settings import CaseSettings
from pipeline.store import read_safetensors, reading, refuse_own_code, stored_case, write_safetensors
from simulators.one_form import in_one_form
from simulators.priors import IndependentPrior, prior_of, to_device
from simulators.protocol import Data, Simulator, feature_shape
from simulators.returned import real_tensor

if TYPE_CHECKING:
    from pipeline.estimators.weighted_posterior import WeightedPosterior


class Posterior:
    """q(theta given x) with its simulator and prior.

    x is a mapping from observable to array (N, ...), or those arrays flattened and concatenated to (N, F) in
    the order of `simulator.observables`, as sbi passes them around. Draws come from torch's global generator
    unless one is given.

    Args:
        case: settings of the run that trained it.
        simulator: its physics model.
        network: its trained network, or one of sbi.
        typicality_model: the simulations as the network sees them; None where they were not kept.
    """

    def __init__(
        self,
        case: CaseSettings,
        simulator: Simulator,
        network: PosteriorNetwork | SbiNetwork,
        *,
        typicality_model: Typicality | None = None,
    ) -> None:
        self.case, self.simulator, self.typicality_model = case, simulator, typicality_model
        self.device = next(network.parameters()).device
        # an SbiNetwork offers what draws and densities need, and says by `refinable` that it has no more
        self.network = cast(PosteriorNetwork, network.eval().requires_grad_(False))
        self.prior: Distribution = to_device(prior_of(simulator), self.device)
        if isinstance(network, SbiNetwork) and not isinstance(self.prior, IndependentPrior):
            self.prior = PriorWithinSupport(self.prior)
        self.parameters = tuple(p.name for p in simulator.parameters)

    def data(self, x: Mapping[str, Tensor] | Tensor) -> Data:
        """x as a mapping, on our device.

        Raises:
            ValueError: a packed x whose width is not that of the simulator's observables.
        """
        if not isinstance(x, Tensor):
            given = {
                o.name: real_tensor(x[o.name], f"x: {o.name!r}").to(self.device) for o in self.simulator.observables
            }
            return in_one_form(self.simulator, given)
        only = self.simulator.observables[0] if len(self.simulator.observables) == 1 else None
        if only is not None and tuple(x.shape) in (only.shape, (len(x), *only.shape)):  # an image, say, as sbi keeps it
            return {only.name: real_tensor(x, "x").reshape(-1, *only.shape).to(self.device)}
        packed = real_tensor(x if x.dim() > 1 else x[None], "x")
        sizes = [int(torch.Size(o.shape).numel()) for o in self.simulator.observables]
        if packed.shape[1] != sum(sizes):
            raise ValueError(f"x: expected {sum(sizes)} numbers a row, got {packed.shape[1]}")
        parts = packed.to(self.device).split(sizes, dim=1)
        given = {o.name: p.reshape(-1, *o.shape) for o, p in zip(self.simulator.observables, parts, strict=True)}
        return in_one_form(self.simulator, given)

    @torch.no_grad()
    def condition(self, x: Mapping[str, Tensor] | Tensor) -> Condition:
        """Embedding and pilot of x, once for all draws."""
        if isinstance(self.network, SbiNetwork):
            return self.network.condition(self.network.read(self.simulator, self.data(x)))
        return self.network.condition(self._inputs(self.data(x)))

    def _inputs(self, x: Data) -> NetworkInput:
        """What our own network reads of x: features and pilot.

        Raises:
            InputError: the simulator gives another number of features than the network was trained on.
        """
        inputs = network_input(self.simulator, x)
        given, expected = inputs.features.shape[1], self.network.embedding.features
        if given != expected:
            raise InputError(
                f"simulator {self.simulator.name!r} gives {given} features of x, the posterior was trained on {expected}: its options differ"
            )
        return inputs

    @torch.no_grad()
    def typicality(self, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Probability that a simulation from the training proposal lies as far from the others as x, (N,), float64.

        NaN where the model file holds no simulations (`typicality_model` is None).
        """
        data = self.data(x)
        if self.typicality_model is None:
            rows = len(next(iter(data.values())))
            return torch.full((rows,), torch.nan, dtype=torch.float64, device=self.device)
        return self.typicality_model.p_value(self.network, self._inputs(data))

    @torch.no_grad()
    def held(self, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """How many of the numbers that the networks read of each observation are held at a bound, (N,).

        They lie so far outside what training saw (`estimators.standardize`) that the network is given the bound instead.
        A learned likelihood counts too: the larger of its count and that of q. 0 for a network of sbi, which has no bounds.
        """
        data = self.data(x)
        if isinstance(self.network, SbiNetwork):
            return torch.zeros(len(next(iter(data.values()))), dtype=torch.long, device=self.device)
        held = self.network.held(self._inputs(data))
        learned = learned_part(self.simulator)
        return held if learned is None else torch.maximum(held, learned.network.held(data))

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        sample_shape: tuple[int, ...],
        x: Mapping[str, Tensor] | Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws of q, float64: theta (*sample_shape, N, D) and log_q (*sample_shape, N)."""
        condition = self.condition(x)
        if generator is None:
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(self.device).manual_seed(seed)
        count = int(torch.Size(sample_shape).numel())
        theta, log_q = draw_in_blocks(self.network, condition, count, generator=generator)
        return theta.reshape(*sample_shape, *theta.shape[1:]), log_q.reshape(*sample_shape, log_q.shape[1])

    def sample(
        self, sample_shape: tuple[int, ...], x: Mapping[str, Tensor] | Tensor, *, show_progress_bars: bool = False
    ) -> Tensor:
        """Draws of q for ONE observation, (*sample_shape, D), as sbi has it."""
        theta = self.sample_batched(sample_shape, x, show_progress_bars=show_progress_bars)
        if theta.shape[-2] != 1:
            raise ValueError(f"sample takes one observation, got {theta.shape[-2]}; use sample_batched")
        return theta[..., 0, :]

    def sample_batched(
        self, sample_shape: tuple[int, ...], x: Mapping[str, Tensor] | Tensor, *, show_progress_bars: bool = False
    ) -> Tensor:
        """Draws of q, (*sample_shape, N, D)."""
        del show_progress_bars  # sbi passes it; one batched call has no progress to show
        return self.sample_and_log_prob(sample_shape, x)[0]

    @torch.no_grad()
    def log_prob(self, theta: Tensor, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """log q(theta given x): theta (..., N, D) with N observations gives (..., N); -inf outside the prior.

        With one observation, theta may be (B, D) or (D,) and gives (B,) or (1,), as sbi has it.
        """
        condition = self.condition(x)
        points, single = density_points(theta.to(self.device).double(), len(condition.context))
        flat = points.reshape(-1, *points.shape[-2:])
        block = max(1, BLOCK // flat.shape[1])
        log_q = torch.cat([self.network.log_q(part, condition) for part in flat.split(block)]).view(points.shape[:-1])
        log_q = torch.where(_inside(self.prior, points), log_q, -torch.inf)
        return log_q[:, 0] if single else log_q

    def potential(self, theta: Tensor, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """`log_prob`, by the name under which sbi's `get_nltp` asks for it."""
        return self.log_prob(theta, x)

    def weighted(
        self, *, proposals: int | None = None, least_ess: float = 100.0, prior: Distribution | None = None
    ) -> WeightedPosterior:
        """The posterior as it is delivered: draws of q, resampled by their weights; see `WeightedPosterior`."""
        from pipeline.estimators.weighted_posterior import WeightedPosterior

        return WeightedPosterior(self, proposals=proposals, least_ess=least_ess, prior=prior)

    def certificate(self, x: Mapping[str, Tensor] | Tensor, *, proposals: int = 20_000, seed: int = 0) -> Evidence:
        """Evidence, ELBO, gap and effective sample size of q itself, without repair, (N,) each."""
        data = self.data(x)
        generator = torch.Generator(self.device).manual_seed(seed)
        proposal = Amortized(self.network, self.condition(data))
        return summarize(weigh(proposal, self.simulator, self.prior, data, draws=proposals, generator=generator))

    def save(self, path: Path, *, attributes: Mapping[str, Any]) -> None:
        """Write safetensors: weights, and settings as JSON in the header.

        Raises:
            InputError: a network of sbi.
        """
        if isinstance(self.network, SbiNetwork):
            raise InputError(f"{path}: a network of sbi is written by pipeline.save_sbi, which states how it was built")
        metadata = {
            **file_header(self.simulator, self.network.embedding.features),
            **attributes,
            SETTINGS: json.dumps(self.case.dump(), sort_keys=True),
        }
        held = {} if self.typicality_model is None else self.typicality_model.state()
        learned = learned_part(self.simulator)
        if learned is not None:
            held |= {f"{LIKELIHOOD}{name}": value for name, value in learned.network.state_dict().items()}
            metadata |= model_header(learned.network)
        write_safetensors(path, self.network.state_dict() | held, metadata)


def density_points(theta: Tensor, observations: int) -> tuple[Tensor, bool]:
    """theta as (..., N, D), and whether it came without N, which one observation allows: (B, D), or (D,) for B = 1."""
    theta = torch.atleast_2d(theta)
    single = observations == 1 and theta.dim() == 2
    return (theta[:, None, :] if single else theta), single


def _inside(prior: Distribution, theta: Tensor) -> Tensor:
    """Whether theta (..., D) has a prior density; a joint prior's log_prob may be anything outside its support."""
    if isinstance(prior, IndependentPrior):
        return prior.log_prob(theta) > -torch.inf
    support: Any = prior.support
    return support.check(theta)


def file_header(simulator: Simulator, features: int) -> dict[str, Any]:
    """What a model file says of the simulator that it was trained for; `features`: numbers that its network reads."""
    names = json.dumps([p.name for p in simulator.parameters])
    return {"features": features, "parameters": names, "observables": _observables(simulator)}


def _observables(simulator: Simulator) -> str:
    """Names and shapes of x, as they stand in a model file."""
    return json.dumps({o.name: list(o.shape) for o in simulator.observables})


def new_network(case: CaseSettings, simulator: Simulator, features: int) -> PosteriorNetwork:
    """An untrained network of the sizes that a case asks for."""
    return _network_maker(case, simulator, features)()


def _network_maker(case: CaseSettings, simulator: Simulator, features: int) -> Callable[[], PosteriorNetwork]:
    """What makes it, once the simulator has said all that it has to say."""
    return partial(
        PosteriorNetwork,
        prior_of(simulator),
        features,
        flow=case.train.flow,
        embedding=case.train.embedding,
        periodic=[p.periodic for p in simulator.parameters],
        shape=feature_shape(simulator),
    )


def load_posterior(
    path: str | Path, *, case: CaseSettings | None = None, device: str | torch.device = "cpu"
) -> Posterior:
    """Read `posterior.safetensors`, or what `save_sbi` wrote. Nothing in it is executed.

    Args:
        case: settings that name the simulator; needed where it is the user's own file, which is run only
            because a config says so. Default: those stored in the file.

    Raises:
        InputError: not a trained posterior, or its simulator cannot be built.
    """
    path = Path(path)
    tensors, header = read_safetensors(path)
    with reading(path):
        return _posterior_from(path, tensors, header, case=case, device=device)


def _posterior_from(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    *,
    case: CaseSettings | None,
    device: str | torch.device,
) -> Posterior:
    """What `load_posterior` makes of a file's tensors and header."""
    if header.get("schema") != SCHEMA or header.get(STAGE) not in ("train", "sbi"):
        raise InputError(f"{path}: not a posterior trained by Elboscope")
    stored = stored_case(header.get(SETTINGS), path)
    if case is None:
        refuse_own_code(stored, path)
    simulator = build_simulator((case or stored).simulator)
    names = [p.name for p in simulator.parameters]
    if names != json.loads(header["parameters"]):
        raise InputError(f"{path}: trained for parameters {header['parameters']}, the simulator has {names}")
    if _observables(simulator) != header["observables"]:
        raise InputError(
            f"{path}: trained for observables {header['observables']}, the simulator has {_observables(simulator)}"
        )
    if MODEL in header:
        simulator = likelihood_from(tensors, header, simulator, source=str(path), prefix=LIKELIHOOD)
        simulator.network.to(device)
    features = int(header["features"])
    weights = {k: v for k, v in tensors.items() if not k.startswith((PREFIX, LIKELIHOOD))}
    if header[STAGE] == "train":
        need_bounds(weights, "embedding.standardize", str(path))
    try:
        if header[STAGE] == "sbi":
            architecture = architecture_from(_json_object(header.get(ARCHITECTURE, ""), path), str(path))
            network = new_sbi_network(architecture, dimension=len(names), features=features)
        else:
            _need_fit(weights, stored, simulator, features)
            network = new_network(stored, simulator, features)
        network.load_state_dict(weights)
    except RuntimeError as error:  # torch: also where a size is negative, or more than there is memory for
        raise InputError(f"{path}: weights do not fit its settings ({str(error).splitlines()[0]})") from None
    typicality = Typicality.from_state(tensors, device=device) if any(k.startswith(PREFIX) for k in tensors) else None
    return Posterior(stored, simulator, network.to(device), typicality_model=typicality)


def _need_fit(weights: Mapping[str, Tensor], case: CaseSettings, simulator: Simulator, features: int) -> None:
    """Raise RuntimeError unless the network of these settings has the weights' names and shapes; it takes no memory."""
    make = _network_maker(case, simulator, features)  # before: a simulator that keeps its tensors must not keep such
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in make().state_dict().items()}
    for name, shape in wanted.items():
        if name not in weights or weights[name].shape != shape:
            got = "nothing" if name not in weights else tuple(weights[name].shape)
            raise RuntimeError(f"{name}: expected shape {tuple(shape)}, got {got}")


def _json_object(text: str, path: Path) -> dict[str, Any]:
    """A JSON object in the header of a model file.

    Raises:
        InputError: anything else.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected JSON of how its sbi network was built, in the header under {ARCHITECTURE!r}"
        )
    return value
