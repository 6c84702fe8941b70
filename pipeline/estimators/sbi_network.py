r"""A density estimator of sbi in the place of our own network.

    theta ~ q(theta given x),   log_q = log q(theta given x)        both sbi's, float32

Two things that sbi does to q are left out, because importance weights need q itself: its `DirectPosterior` rejects
draws outside the prior and divides the density by the share that is left. Here such draws stay, get prior density
zero, weight zero, and are counted as refused.

NPE: Papamakarios and Murray 2016, https://arxiv.org/abs/1605.06376; sbi: Boelts et al. 2025,
https://doi.org/10.21105/joss.07754.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pipeline.errors import InputError
from pipeline.estimators.argument_checks import argument_checks_kept
from pipeline.estimators.network import Condition, NetworkInput
from pipeline.settings import Settings
from simulators.priors import global_generators_from
from simulators.protocol import Simulator, network_features

if TYPE_CHECKING:
    from sbi.neural_nets.estimators import ConditionalDensityEstimator

ARCHITECTURE = "sbi"
"""Name of the JSON in the header of a file that `save_sbi` wrote."""
Reads = Literal["observables", "features"]
Size = Annotated[int, Field(ge=1, le=2_048)]
Count = Annotated[int, Field(ge=1, le=64)]
ZScore = Literal["independent", "structured", "none"]


class SbiEmbedding(Settings):
    """sbi's FCEmbedding, by the names of its arguments."""

    output_dim: Size = 20
    num_layers: Count = 2
    num_hiddens: Size = 50


class SbiArchitecture(Settings):
    """What sbi's `posterior_nn` was given, by the names of its arguments; defaults are sbi's.

    `num_blocks` and `tail_bound` are of nsf (and num_blocks of maf), `num_components` of mdn, `num_bins` of the
    splines. `reads` says which numbers of x the network was trained on: every observable, flattened and
    concatenated in the simulator's order, or the simulator's `features`.
    """

    model: Literal["nsf", "maf", "maf_rqs", "mdn", "zuko_nsf", "zuko_maf", "zuko_nice"]
    hidden_features: Size = 50
    num_transforms: Count = 5
    num_bins: Annotated[int, Field(ge=2, le=256)] = 10
    num_components: Count = 10
    num_blocks: Count | None = None
    tail_bound: Annotated[float, Field(gt=0)] | None = None
    z_score_theta: ZScore = "independent"
    z_score_x: ZScore = "independent"
    embedding: SbiEmbedding | None = None
    reads: Reads = "observables"


def architecture_from(values: Mapping[str, Any], source: str) -> SbiArchitecture:
    """Validate plain values; `source` stands at the start of an error.

    Raises:
        InputError: an unknown argument, or a value that is not supported.
    """
    try:
        return SbiArchitecture.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(SbiArchitecture.model_fields)
            raise InputError(f"{source}: sbi network: unknown argument {key!r}; known: {known}") from None
        got = f", got {first['input']!r}" if first["type"] != "missing" else ""
        raise InputError(f"{source}: sbi network: {key}: {first['msg']}{got}") from None


class SbiNetwork(nn.Module):
    """A density estimator of sbi behind what draws, weights and certificates ask of a network.

    It supports the amortized, corrected and sampled rungs. It has no base distribution to widen and no path
    gradient, so that nothing refines it.

    Args:
        estimator: `sbi.neural_nets.estimators.ConditionalDensityEstimator` of D parameters.
        reads: which numbers of x it was trained on, see `SbiArchitecture`.

    Raises:
        InputError: theta of the estimator is not a vector.
    """

    refinable = False

    def __init__(self, estimator: ConditionalDensityEstimator, *, reads: Reads = "observables") -> None:
        super().__init__()
        if len(estimator.input_shape) != 1:
            raise InputError(f"sbi network: expected theta of one axis, got shape {tuple(estimator.input_shape)}")
        self.estimator = estimator
        self.reads: Reads = reads
        self.dimension = int(estimator.input_shape[0])
        self.features = int(torch.Size(estimator.condition_shape).numel())

    def read(self, simulator: Simulator, x: Mapping[str, Tensor]) -> NetworkInput:
        """What the network reads of N observations, float32 as sbi has it.

        Raises:
            InputError: another number of numbers than it was trained on, or numbers that float32 does not hold.
        """
        if self.reads == "features":
            numbers = network_features(simulator, x)
        else:
            numbers = torch.cat([x[o.name].reshape(len(x[o.name]), -1) for o in simulator.observables], dim=1)
        if numbers.shape[1] != self.features:
            raise InputError(
                f"simulator {simulator.name!r} gives {numbers.shape[1]} numbers of x ({self.reads}), the sbi network "
                f"reads {self.features}; train it on x packed in the order of the observables, or set reads"
            )
        read = numbers.float()
        if bool(((read == 0) & (numbers != 0)).any() or (read.isinf() & numbers.isfinite()).any()):
            raise InputError(
                f"sbi network: x of simulator {simulator.name!r} holds numbers that are zero or infinite in float32, "
                "in which sbi computes; give x in units that bring it near one"
            )
        zero = torch.zeros(len(numbers), self.dimension, dtype=torch.float64, device=numbers.device)
        return NetworkInput(read, zero, torch.ones_like(zero))

    def condition(self, inputs: NetworkInput) -> Condition:
        """x as it is: sbi's estimator holds its embedding."""
        return Condition(inputs.features, inputs.location, inputs.scale)

    @torch.no_grad()
    def draw(
        self,
        condition: Condition,
        draws: int,
        *,
        generator: torch.Generator,
        path_gradient: bool = False,
        dtype: torch.dtype = torch.float32,
        base_scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """`draws` draws of theta for each observation, and their log_q: theta (K, N, D), log_q (K, N), in `dtype`.

        They depend on `generator` alone. log_q is that of `log_prob`: `sample_and_log_prob` of sbi 0.27's nflows
        estimators gives draws of one observation to another, where there are several.

        Raises:
            InputError: a widened base or a path gradient is asked for, or a spline could not be inverted.
        """
        if path_gradient:
            raise InputError("sbi network: it has no path gradient and cannot be refined; set infer.refine.when: never")
        _need_own_width(base_scale)
        x, count = self._shaped(condition), len(condition.context)
        if draws == 0:
            empty = torch.zeros(0, count, self.dimension, dtype=dtype, device=x.device)
            return empty, empty[..., 0]
        try:
            with global_generators_from(generator), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.triangular_solve is deprecated")  # nflows' LULinear
                theta = self.estimator.sample(torch.Size((draws,)), x)
        except AssertionError as error:  # nflows' spline asserts on its discriminant, which rounding can spoil
            raise InputError(
                f"sbi network: its spline could not be inverted in float32 ({error or 'assertion of nflows'}); "
                "use another seed, or train model zuko_nsf"
            ) from error
        return theta.to(dtype), self.estimator.log_prob(theta, x).to(dtype)

    @torch.no_grad()
    def log_q(self, theta: Tensor, condition: Condition, *, base_scale: float = 1.0) -> Tensor:
        """log q(theta given x), theta (..., N, D) -> (..., N), in the dtype of theta; computed in float32."""
        _need_own_width(base_scale)
        points = theta.reshape(-1, *theta.shape[-2:]).float()
        return self.estimator.log_prob(points, self._shaped(condition)).to(theta.dtype).reshape(theta.shape[:-1])

    def _shaped(self, condition: Condition) -> Tensor:
        return condition.context.reshape(-1, *self.estimator.condition_shape)


def _need_own_width(base_scale: float) -> None:
    if base_scale != 1.0:
        raise InputError(
            f"sbi network: its base distribution cannot be widened (asked for {base_scale:g} times); "
            "use infer.defensive: prior, or infer.defensive_share: 0"
        )


def new_sbi_network(architecture: SbiArchitecture, *, dimension: int, features: int) -> SbiNetwork:
    """An untrained estimator as sbi's `posterior_nn` builds it, for D parameters and F numbers of x.

    The statistics of z-scoring are buffers, which the weights of a trained network bring along.
    """
    with argument_checks_kept():
        from sbi.neural_nets import posterior_nn
        from sbi.neural_nets.embedding_nets import FCEmbedding

    names = ("hidden_features", "num_transforms", "num_bins", "num_components", "z_score_theta", "z_score_x")
    given = {name: getattr(architecture, name) for name in names}
    optional = {name: getattr(architecture, name) for name in ("num_blocks", "tail_bound")}
    given |= {name: value for name, value in optional.items() if value is not None}
    rows = torch.tensor([[-1.0], [1.0]])  # two rows with a spread: a place for mean and standard deviation
    with torch.random.fork_rng(devices=[]):
        embedding = architecture.embedding
        net = nn.Identity() if embedding is None else FCEmbedding(features, **embedding.model_dump())
        build = posterior_nn(architecture.model, embedding_net=net, **given)
        estimator = build(rows.expand(2, dimension), rows.expand(2, features))
    return SbiNetwork(estimator, reads=architecture.reads)


class PriorWithinSupport(Distribution):
    """A joint prior whose density outside its support is zero, as draws of a q that leaks need it.

    torch leaves `log_prob` outside the support undefined: it may raise, or give any number.

    Args:
        prior: with event shape (D,).
    """

    arg_constraints = {}  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, prior: Distribution) -> None:
        self.prior = prior
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        support: Any = self.prior.support
        return support

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(theta), (..., D) -> (...); -inf outside the support."""
        inside = self.support.check(value)
        if not bool(inside.any()):
            return torch.full(value.shape[:-1], -torch.inf, dtype=value.dtype, device=value.device)
        safe = torch.where(inside[..., None], value, value[inside][0])
        return torch.where(inside, self.prior.log_prob(safe), -torch.inf)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws, (*sample_shape, D)."""
        return self.prior.sample(sample_shape)
