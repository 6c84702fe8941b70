r"""Is an observation like anything that was simulated? A p-value, exact for honest observations.

The network sees of x its standardised features, the pilot's guess, and what the embedding makes of the features. In
each of two spaces, (features, pilot) and embedding, whitened on one half of the reference, the distances of x are

    |z|           Mahalanobis, from the mean of the simulations: too far out; too near, where many numbers vary less than
                  in any simulation, and the most probable point is unlike all of them
    |z - z_(k)|   from the k-th nearest of them: in a hole between them, or on the wrong side of a curved cloud

Each becomes a surprise by its rank in the other half of the reference, minus the logarithm of the share that lies as
far out (or as near), which grows on as log(distance / largest) beyond the last of them; d(x) is the greatest of the
surprises, and

    p(x) = (1 + #{m : d(x_m) >= d(x)}) / (1 + M)

over M held-out simulations x_m. d is a fixed function given the reference, and x_m and an honest x are exchangeable:
p is uniform on 1 / (1 + M) .. 1 whatever the distances are (conformal p-values: Vovk, Gammerman and Shafer 2005,
Algorithmic Learning in a Random World). How well it sees what is not honest depends on the distances: docs/typicality.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.estimators.network import NetworkInput, PosteriorNetwork, pilot_numbers, pilot_rounding
from pipeline.estimators.standardize import SAME
from pipeline.estimators.whitening import Whitening, fit_whitening

REFERENCE_ROWS = 4_000
"""Training simulations that the distances are fitted to, at most: half for the cloud, half for the ranks."""
REFERENCE_NUMBERS = 20_000_000
"""Features of the reference at most, where that leaves a thousand rows: 10,000 columns then take seconds to fit."""
LEAST_REFERENCE = 8
"""Fewest simulations from which a cloud is made."""
NEIGHBOUR = 5
"""k of the nearest neighbour."""
LEAST_WIDTH = 1e-3
"""Least width of a direction of a cloud: on another device a float32 embedding differs by some 1e-4."""
TINY = 1e-300
BLOCK = 512
"""Observations whose distances from the reference are taken at once: 512 x 2,000 numbers."""
PREFIX = "typicality."
"""Of its tensors in a model file."""


@dataclass(frozen=True)
class Cloud:
    """Simulations in one space.

    Attributes:
        whitening: of the first half of the reference.
        points: that half, whitened, (R, C), float32.
        distances: Mahalanobis and neighbour distances of the second half, each in rising order, (2, R'), float64.
        constant: value of each column that does not vary, NaN for the others, (F,), float64.
    """

    whitening: Whitening
    points: Tensor
    distances: Tensor
    constant: Tensor

    def distance(self, seen: Seen) -> Tensor:
        """Mahalanobis and neighbour distances of N points, (2, N), float64; infinite where not finite.

        A column that was the same in every simulation and is another one here is infinitely far.
        """
        z = self.whitening.whiten(seen.points)
        neighbours = self.points.double()
        k = min(NEIGHBOUR, len(neighbours))
        nearest = torch.cat(
            [torch.cdist(part, neighbours).topk(k, largest=False).values[:, -1] for part in z.split(BLOCK)]
        )
        distance = torch.stack([z.norm(dim=1), nearest])
        moved = _moved(seen, self.constant).any(1)
        return torch.where(moved | ~distance.isfinite(), torch.inf, distance)

    def surprise(self, seen: Seen) -> Tensor:
        r"""The greatest of three, (N,): both distances too large, Mahalanobis too small.

        $$\log \frac{1 + R'}{1 + \#\{r : d_r \ge d\}} + \log^+ \frac{d}{\max_r d_r}, \qquad
          \log \frac{1 + R'}{1 + \#\{r : d_r \le d\}} + \log^+ \frac{\min_r d_r}{d}$$
        """
        distance = self.distance(seen)
        count, smallest, largest = self.distances.shape[1], self.distances[:, :1], self.distances[:, -1:]
        above = count - torch.searchsorted(self.distances, distance)
        below = torch.searchsorted(self.distances, distance, right=True)
        beyond = torch.where(distance > largest, (distance / largest.clamp_min(TINY)).log(), 0.0)
        within = torch.where(distance < smallest, (smallest / distance.clamp_min(TINY)).log(), 0.0)
        far = ((1 + count) / (1 + above).double()).log() + beyond
        near = ((1 + count) / (1 + below).double()).log() + within
        return torch.maximum(far.amax(0), near[0])


@dataclass(frozen=True)
class Typicality:
    """Clouds of simulations as a network sees them, and how far held-out simulations lie from them.

    Attributes:
        clouds: of features and pilot, and of the embedding where there is one.
        scores: d of the M held-out simulations, in rising order, (M,), float64.
    """

    clouds: tuple[Cloud, ...]
    scores: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, network: PosteriorNetwork, reference: NetworkInput, held_out: NetworkInput) -> Typicality:
        """Fit the distances to `reference`, simulations that the network may have seen, and rank by `held_out`, which it has not.

        Of the reference `reference_of` is used.

        Raises:
            InputError: fewer than LEAST_REFERENCE simulations, none held out, or features that are not finite.
        """
        count = len(reference.features)
        if count < LEAST_REFERENCE or not len(held_out.features):
            raise InputError(
                f"typicality: expected at least {LEAST_REFERENCE} simulations for training and one held out, got {count} and {len(held_out.features)}; raise simulate.count or simulate.held_out"
            )
        views = seen_by(network, reference_of(reference))
        if not all(bool(v.points.isfinite().all()) for v in views):
            raise InputError("typicality: features, pilot or embedding of a training simulation are not finite")
        clouds = tuple(_fit_cloud(v) for v in views)
        unranked = cls(clouds, torch.empty(0, dtype=torch.float64))
        return cls(clouds, unranked.score(network, held_out).sort().values)

    @torch.no_grad()
    def score(self, network: PosteriorNetwork, inputs: NetworkInput) -> Tensor:
        """d of N observations: the greatest surprise of all distances in all clouds, (N,), float64."""
        surprises = [c.surprise(v) for c, v in zip(self.clouds, seen_by(network, inputs), strict=True)]
        return torch.stack(surprises).amax(0)

    def p_value(self, network: PosteriorNetwork, inputs: NetworkInput) -> Tensor:
        """p of N observations, (N,), float64, from 1 / (1 + M) to 1: small where an observation is unlike the simulations.

        Args:
            network: which `fit` was given, with the same weights.
            inputs: what it reads of the observations.
        """
        count = len(self.scores)
        below = torch.searchsorted(self.scores, self.score(network, inputs))
        return (1 + count - below).double() / (1 + count)

    def state(self) -> dict[str, Tensor]:
        """All numbers, for a model file, named `typicality.<cloud>.<what>`."""
        tensors = {f"{PREFIX}scores": self.scores}
        for i, cloud in enumerate(self.clouds):
            parts = vars(cloud.whitening) | {k: v for k, v in vars(cloud).items() if k != "whitening"}
            tensors |= {f"{PREFIX}{i}.{name}": values for name, values in parts.items()}
        return tensors

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], *, device: torch.device | str = "cpu") -> Typicality:
        """What `state` gave, on `device`.

        Raises:
            InputError: a tensor is missing.
        """
        whitening = list(Whitening.__dataclass_fields__)
        own = [name for name in Cloud.__dataclass_fields__ if name != "whitening"]
        clouds = []
        try:
            while f"{PREFIX}{len(clouds)}.points" in tensors:
                part = {n: tensors[f"{PREFIX}{len(clouds)}.{n}"].to(device) for n in whitening + own}
                clouds.append(Cloud(Whitening(*(part[n] for n in whitening)), *(part[n] for n in own)))
            return cls(tuple(clouds), tensors[f"{PREFIX}scores"].to(device))
        except KeyError as error:
            raise InputError(f"typicality: the model file lacks the tensor {error}; train it again") from None


def reference_of(inputs: NetworkInput) -> NetworkInput:
    """The rows that the distances are fitted to: all, or REFERENCE_ROWS evenly spaced, fewer where features are many."""
    count = len(inputs.features)
    most = max(1_000, min(REFERENCE_ROWS, REFERENCE_NUMBERS // max(1, inputs.features.shape[1])))
    rows = min(count, most)
    return inputs.rows(torch.arange(rows, device=inputs.features.device) * count // max(1, rows))


class Seen(NamedTuple):
    """N points of a space.

    Attributes:
        points: (N, F), float64.
        rounding: how far each number may differ between machines, (N, F), float64.
    """

    points: Tensor
    rounding: Tensor


def seen_by(network: PosteriorNetwork, inputs: NetworkInput) -> tuple[Seen, ...]:
    """The spaces in which distances are taken, for N observations.

    First the standardised features (absent items are zero there, whatever stands in them; a column that was constant
    while training, which the network does not see, is its distance from that constant; nothing is held at a bound)
    beside the pilot's location and the logarithm of its scale; then the embedding, where it is not the features themselves.
    """
    embedding = network.embedding
    rows, fit = inputs.features.split(BLOCK), embedding.standardize
    features, rounding = (
        torch.cat([function(part).flatten(1) for part in rows]) for function in (fit.standardized, fit.rounding)
    )
    pilot = pilot_numbers(inputs)
    seen = Seen(
        torch.cat([features, pilot.flatten(1)], dim=1), torch.cat([rounding, pilot_rounding(pilot).flatten(1)], dim=1)
    )
    if isinstance(embedding.network, nn.Identity):
        return (seen,)
    embedded = torch.cat([embedding(part).flatten(1) for part in rows]).double()
    return seen, Seen(embedded, SAME[torch.float32] * embedded.abs())


def _fit_cloud(seen: Seen) -> Cloud:
    """The cloud of a reference of R points: even rows make it, odd rows rank its distances."""
    first, second = (Seen(*(part[start::2] for part in seen)) for start in (0, 1))
    whitening = fit_whitening(first.points, least_width=LEAST_WIDTH, rounding=first.rounding.amax(0))
    constant = torch.where(whitening.inverse_scale == 0, whitening.center, torch.nan)
    constant = torch.where(_moved(second, constant).any(0), torch.nan, constant)  # it varies after all
    empty = torch.zeros(2, 1, dtype=torch.float64, device=seen.points.device)
    cloud = Cloud(whitening, whitening.whiten(first.points).float(), empty, constant)
    return Cloud(whitening, cloud.points, cloud.distance(second).sort(dim=1).values, constant)


def _moved(seen: Seen, constant: Tensor) -> Tensor:
    """Where N points leave the constants (F,) by more than rounding, (N, F); nowhere for the NaN of what varies."""
    return (seen.points - constant).abs() > seen.rounding
