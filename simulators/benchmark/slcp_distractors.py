"""Benchmark task slcp_distractors: slcp hidden among 92 numbers that say nothing of theta."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from simulators.benchmark.slcp import Slcp
from simulators.protocol import Data, Observable

DISTRACTORS, COMPONENTS = 92, 20
SEED = 42


class SlcpDistractors:
    r"""The task `slcp` with distractors: D = 5, M = 100.

        x = permuted (y, e),   y as x of `slcp` (8),   e ~ 1/20 sum_k t_2(mu_k, A_k A_k^T) (92)

    t_2 is the multivariate Student distribution with two degrees of freedom; mu_k, A_k and the permutation are
    fixed: drawn, as in the benchmark, from numpy's generator with seed 42.
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.4.
    """

    name = "slcp_distractors"

    def __init__(self) -> None:
        self.signal = Slcp()
        self.parameters = self.signal.parameters
        self.observables = (Observable("x", (8 + DISTRACTORS,)),)
        self.locations, self.factors, self.permutation = fixed_numbers()
        self.signal_columns = self.permutation.argsort()[:8]

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """Signal and distractors, (N, 5) -> (N, 100)."""
        signal = self.signal.simulate(theta, generator=generator)["x"]
        everything = torch.cat([signal, self.distractors(theta, generator=generator)], dim=1)
        return {"x": everything[:, self.permutation.to(theta.device)]}

    def distractors(self, theta: Tensor, *, generator: torch.Generator) -> Tensor:
        r"""$e = \mu_k + A_k n / \sqrt{w}$, k uniform, n ~ N(0, 1), w ~ Exp(1) = chi^2_2 / 2; as many as theta has rows.

        Returns:
            (N, 92), on the device and in the dtype of theta.
        """
        count = theta.shape[0]
        choice = torch.randint(COMPONENTS, (count,), generator=generator, device=theta.device)
        normal = torch.randn((count, DISTRACTORS), generator=generator, device=theta.device, dtype=theta.dtype)
        width = torch.empty_like(normal[:, :1]).exponential_(generator=generator).clamp(min=1e-9).rsqrt()
        # rows of one component together: 20 small products instead of one matrix a row
        order = choice.argsort(stable=True)
        counts = choice.bincount(minlength=COMPONENTS).tolist()
        groups = (normal * width)[order].split(counts)
        locations, factors = self.locations.to(theta), self.factors.to(theta)
        values = [torch.addmm(locations[k], group, factors[k].T) for k, group in enumerate(groups)]
        return torch.empty_like(normal).index_copy_(0, order, torch.cat(values))

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""log p(y given theta) of the eight numbers that know theta, theta (..., N, 5) -> (..., N).

        p(e), the same for every theta, is left out: posterior and kl_gap are exact, the evidence is that of y.
        It cannot be evaluated in practice: the A_k have condition numbers of 1e12 to 1e19, so that rounding x
        to float64 already changes log p(e) by hundreds of nats, and to float32 by thousands.
        """
        return self.signal.log_likelihood(theta, {"x": x["x"][:, self.signal_columns.to(x["x"].device)]})

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """asinh(x / 3), (N, 100): the distractors have infinite variance. Blind to which columns matter."""
        return torch.asinh(x["x"] / 3)


def fixed_numbers() -> tuple[Tensor, Tensor, Tensor]:
    r"""mu (20, 92), A (20, 92, 92) and the permutation (100,) of the benchmark.

    $\mu \sim 15\, N(0, 1)$; A is three times a lower triangle of N(0, 1) plus a diagonal of exp N(0, 1).
    """
    rng = np.random.RandomState(SEED)
    locations = 15 * rng.normal(size=(COMPONENTS, DISTRACTORS))
    factors = np.empty((COMPONENTS, DISTRACTORS, DISTRACTORS))
    for k in range(COMPONENTS):
        factors[k] = np.tril(rng.normal(size=(DISTRACTORS, DISTRACTORS)))
        factors[k] += np.diag(np.exp(rng.normal(size=DISTRACTORS)))
    permutation = rng.permutation(8 + DISTRACTORS)
    return torch.from_numpy(locations), torch.from_numpy(3 * factors), torch.from_numpy(permutation)
