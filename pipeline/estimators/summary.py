r"""s(x): the numbers whose density is learned in place of that of x.

    none       all data numbers as they are
    features   the simulator's own summaries
    pca        principal components of the standardised data
    learned    an embedding e(x) that ends in a linear layer, trained by forward KL through a flow q(theta | e(x)):

        I(theta; s)  =  H(theta) - H(theta|s)  >=  H(theta) + < log q(theta | s(x)) >_{p(theta, x)}

    (Barber and Agakov 2003, The IM algorithm; as summaries: Jeffrey, Alsing and Lanusse 2021,
    https://arxiv.org/abs/2009.08459): the bound is tight where q is the posterior given s.

The flow sees each number standardised, and as its logarithm where that is less skewed; the Jacobian is counted, so that
densities are per unit of s. Whole numbers (photons, spikes) have no density: they get uniform noise on [0, 1), and the
mean density over the unit cell is their probability (Theis, van den Oord and Bethge 2016, https://arxiv.org/abs/1511.01844).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from pipeline.errors import InputError
from pipeline.estimators.embedding import Embedding
from pipeline.estimators.standardize import location_and_scale
from pipeline.likelihood_settings import SummarySettings
from simulators.protocol import Simulator, data_observables, feature_shape, network_features

FEW = 16
"""Data numbers up to which `auto` takes them as they are."""
MOST = 24
"""Numbers of a summary by default, at most: twice the parameters where that is less."""
TIES = 0.5
"""Share of distinct values below which a number has no density."""
FIT_ROWS = 100_000


@dataclass(frozen=True)
class SummaryShape:
    """What is needed to build a summary again.

    Attributes:
        kind: none, features, pca or learned.
        read: numbers of x that it reads.
        given: numbers that it makes of them.
        kept: those of them that vary, S.
    """

    kind: str
    read: int
    given: int
    kept: int


class Summary(nn.Module):
    """Data to S numbers, and those to what the flow sees.

    Args:
        shape: kind and sizes.
        settings: of the embedding, where it is learned.
        simulator: whose data it reads.
    """

    kept: Tensor
    whole: Tensor
    logged: Tensor
    floor: Tensor
    shift: Tensor
    width: Tensor
    center: Tensor
    components: Tensor

    def __init__(self, shape: SummaryShape, settings: SummarySettings, simulator: Simulator) -> None:
        super().__init__()
        self.shape = shape
        self.embedding: Embedding | None = None
        if shape.kind == "learned":
            structure = feature_shape(simulator)
            self.embedding = Embedding(shape.read, settings.embedding, shape=structure, readout=shape.given)
        if shape.kind == "pca":
            self.register_buffer("center", torch.zeros(shape.read, dtype=torch.float64))
            self.register_buffer("components", torch.zeros(shape.read, shape.given, dtype=torch.float64))
        self.register_buffer("kept", torch.arange(shape.kept))
        self.register_buffer("whole", torch.zeros(shape.kept, dtype=torch.bool))
        self.register_buffer("logged", torch.zeros(shape.kept, dtype=torch.bool))
        for name, value in (("floor", 0.0), ("shift", 0.0), ("width", 1.0)):
            self.register_buffer(name, torch.full((shape.kept,), value, dtype=torch.float64))

    @property
    def compresses(self) -> bool:
        """Whether s is less than all data: q is then to read s too, or it would have another target."""
        return self.shape.kind in ("pca", "learned")

    def forward(self, numbers: Tensor) -> Tensor:
        """s (N, S), float64, of what `numbers_of` read, (N, R)."""
        if self.embedding is not None:
            numbers = self.embedding(numbers)
        elif self.shape.kind == "pca":
            numbers = (numbers.double() - self.center) @ self.components
        return numbers.double()[:, self.kept]

    def held(self, numbers: Tensor) -> Tensor:
        """How many of the numbers that a learned summary reads are held at a bound, (N,); others hold none."""
        if self.embedding is None:
            return torch.zeros(len(numbers), dtype=torch.long, device=numbers.device)
        return self.embedding.standardize.held(numbers)

    def standardized(self, s: Tensor) -> tuple[Tensor, Tensor]:
        r"""What the flow sees, $v = (f(s) - m) / w$, f the identity or the logarithm, and $\log |dv/ds|$.

        (..., S) -> (..., S), (...). A number that must be positive counts as a thousandth of the smallest simulated one
        where it is not.
        """
        safe = torch.where(self.logged, torch.maximum(s, self.floor), 1.0)
        v = (torch.where(self.logged, safe.log(), s) - self.shift) / self.width
        return v, -(safe.log() + self.width.log()).sum(-1)

    @torch.no_grad()
    def fit_scale(self, s: Tensor) -> None:
        """Median and half the 16-84 % range of s (N, S), or of its logarithm where that is less skewed."""
        some = s[:FIT_ROWS]
        positive = (some > 0).all(0) & ~self.whole
        logarithm = torch.where(positive, some, 1.0).log()
        self.logged.copy_(positive & (_skewness(logarithm) < 0.5 * _skewness(some)))
        self.floor.copy_(torch.where(self.logged, 1e-3 * some.min(0).values, 0.0))
        seen = torch.where(self.logged, logarithm, some)
        low, middle, high = torch.quantile(seen, torch.tensor([0.16, 0.5, 0.84], dtype=s.dtype).to(s), dim=0)
        spread, scale = (high - low) / 2, location_and_scale(seen)[1]
        self.shift.copy_(middle)
        self.width.copy_(torch.where(spread > 0, spread, 1 / scale))

    def cells(self, count: int) -> Tensor:
        """Points of the unit cell of whole numbers, (J, S): a Sobol sequence, zero where s is continuous; J = 1 without any."""
        if not bool(self.whole.any()):
            return torch.zeros(1, len(self.whole), dtype=torch.float64, device=self.whole.device)
        points = SobolEngine(len(self.whole), scramble=True, seed=1).draw(count, dtype=torch.float64)
        return points.to(self.whole.device) * self.whole

    def noise(self, rows: int, generator: torch.Generator) -> Tensor | float:
        """Uniform noise for `rows` of whole numbers, (N, S); 0 where there are none."""
        if not bool(self.whole.any()):
            return 0.0
        drawn = torch.rand(rows, len(self.whole), generator=generator, device=self.whole.device, dtype=torch.float64)
        return drawn * self.whole

    def digest(self, simulator: Simulator) -> str:
        """SHA-256 of what s is: evidences of the same data under the same digest can be compared.

        Without compression s is the data, whatever was learned; else the weights that make s.
        """
        observables = [(o.name, list(o.shape), o.unit) for o in data_observables(simulator)]
        digest = hashlib.sha256(json.dumps([self.shape.kind, observables]).encode())
        if self.shape.kind in ("features", "learned") and callable(getattr(simulator, "features", None)):
            digest.update(simulator.name.encode())  # made of numbers that are its own
        if self.compresses:
            digest.update(json.dumps(asdict(self.shape)).encode())
            names = ("embedding.", "components", "center", "kept")
            for name, value in sorted(self.state_dict().items()):
                if name.startswith(names):
                    digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()


def _skewness(values: Tensor) -> Tensor:
    """|third standardised moment| of each column, (N, S) -> (S,)."""
    mean, scale = location_and_scale(values)
    return ((values - mean) * scale).pow(3).mean(0).abs()


def numbers_of(kind: str, simulator: Simulator, x: Mapping[str, Tensor]) -> Tensor:
    """What a summary reads of N observations, (N, R)."""
    if kind == "learned":
        return network_features(simulator, x)
    if kind == "features":
        return network_features(simulator, x).double()
    return torch.cat([x[o.name].reshape(len(x[o.name]), -1).double() for o in data_observables(simulator)], dim=1)


def chosen_kind(settings: SummarySettings, simulator: Simulator) -> str:
    """The kind that `auto` stands for.

    Raises:
        InputError: features are asked for, and the simulator has none.
    """
    if settings.kind == "features" and not callable(getattr(simulator, "features", None)):
        raise InputError(
            f"likelihood.summary.kind: features, but simulator {simulator.name!r} has no features; use none, pca or learned"
        )
    if settings.kind != "auto":
        return settings.kind
    return "none" if _data_numbers(simulator) <= FEW else "learned"


def _data_numbers(simulator: Simulator) -> int:
    return sum(math.prod(o.shape) for o in data_observables(simulator))


def summary_size(settings: SummarySettings, simulator: Simulator) -> int:
    """Numbers of pca and learned summaries."""
    return settings.size or min(2 * len(simulator.parameters), MOST)


def fit_components(numbers: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Center (R,) and the first principal axes of standardised columns, each over its width, (R, size)."""
    some = numbers[:FIT_ROWS]
    center, scale = location_and_scale(some)
    covariance = torch.cov(((some - center) * scale).T).reshape(len(scale), len(scale))
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :size]
    return center, axes * scale[:, None]


def examine(simulator: Simulator, kind: str, s: Tensor) -> tuple[Tensor, Tensor]:
    """Which columns of s (N, G) vary, their numbers (S,), and which of those are whole numbers, (S,).

    Raises:
        InputError: none varies, or a column without a density is not declared to be discrete.
    """
    some = s[:FIT_ROWS]
    kept = ((some != some[0]).any(0)).nonzero()[:, 0]
    if not len(kept):
        raise InputError("likelihood: no number of the summary varies between simulations")
    some = some[:, kept]
    whole = _whole(some)
    ties = torch.tensor([len(column.unique()) for column in some.T], device=s.device) < TIES * len(some)
    declared = any(o.discrete for o in data_observables(simulator))
    if bool(whole.any()) and not declared:
        raise InputError(
            f"likelihood: {int(whole.sum())} of {len(kept)} numbers of {kind_words(kind)} are whole in every simulation, and a density of them "
            "is unbounded: declare the observable with Observable(..., discrete=True), or choose likelihood.summary.kind: learned or pca"
        )
    if bool((ties & ~whole).any()):
        raise InputError(
            f"likelihood: {int((ties & ~whole).sum())} of {len(kept)} numbers of {kind_words(kind)} take few values that are not whole, and a density "
            "of them is unbounded: scale them to whole numbers and declare them discrete, or choose likelihood.summary.kind: learned or pca"
        )
    return kept, whole


def _whole(values: Tensor) -> Tensor:
    """Which columns of (N, S) are whole numbers because they count, and not because floating point has no others there.

    float64 has halves up to 2^52, float32 up to 2^23: larger numbers, 1e44 erg / s say, are whole whatever they measure.
    """
    in_float32 = (values == values.float().double()).all(0)
    largest = torch.where(in_float32, 2.0**23, 2.0**52)
    return (values == values.round()).all(0) & (values.abs().amax(0) < largest)


def kind_words(kind: str) -> str:
    """What a kind of summary is made of, for errors and the report.

    >>> kind_words("none")
    'the data'
    """
    words: dict[str, Any] = {"none": "the data", "features": "the simulator's features"}
    return words.get(kind, f"the {kind} summary")
