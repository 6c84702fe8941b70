r"""Linear Gaussian model: the closed-form oracle of the tests.

    theta ~ N(0, prior_scale^2 I),   x = A theta + noise,   noise ~ N(0, noise_scale^2 I)

A is the first D columns of a fixed matrix, so that posterior and evidence are exact (Bishop 2006,
Pattern Recognition and Machine Learning, eqs. 2.113-2.117).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from simulators.protocol import Data, Observable, Parameter


class LinearGaussian:
    """Linear Gaussian model with known posterior and evidence.

    Args:
        dimension: D, parameters.
        size: M, data points.
        prior_scale: standard deviation of the prior of every parameter.
        noise_scale: standard deviation of the noise of every data point.
    """

    name = "linear_gaussian"

    def __init__(
        self, *, dimension: int = 3, size: int = 5, prior_scale: float = 1.0, noise_scale: float = 0.5
    ) -> None:
        if dimension < 1 or size < 1:
            raise ValueError(f"linear_gaussian: dimension and size must be at least 1, got {dimension} and {size}")
        if prior_scale <= 0 or noise_scale <= 0:
            raise ValueError("linear_gaussian: prior_scale and noise_scale must be positive")
        self.dimension, self.size = dimension, size
        self.prior_scale, self.noise_scale = float(prior_scale), float(noise_scale)
        row = torch.arange(size, dtype=torch.float64)[:, None]
        column = torch.arange(dimension, dtype=torch.float64)[None, :]
        self.design_matrix = torch.cos(math.pi * (row + 0.5) * (column + 0.3) / size) + 0.2 * (row == column)  # (M, D)
        scale = torch.tensor(self.prior_scale, dtype=torch.float64)
        self.parameters = tuple(
            Parameter(
                f"theta_{d + 1}",
                Normal(torch.zeros_like(scale), scale, validate_args=False),
                label=rf"$\theta_{{{d + 1}}}$",
            )
            for d in range(dimension)
        )
        self.observables = (Observable("x", (size,)),)

    def mean(self, theta: Tensor) -> Tensor:
        """A theta, (..., D) -> (..., M)."""
        return theta @ self.design_matrix.to(theta).T

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """x = A theta + noise, (N, D) -> (N, M)."""
        return self.observe(self.signal(theta, context, generator=generator), theta, generator=generator)

    def signal(self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator) -> Data:
        """A theta, (N, D) -> (N, M)."""
        return {"x": self.mean(theta)}

    def observe(self, signal: Data, theta: Tensor, *, generator: torch.Generator) -> Data:
        """Signal + noise, (N, M)."""
        noise = torch.randn((theta.shape[0], self.size), generator=generator, device=theta.device, dtype=theta.dtype)
        return {"x": signal["x"] + self.noise_scale * noise}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        r"""$\log p(x|\theta) = -\frac{1}{2} |x - A\theta|^2 / s^2 - \frac{M}{2} \log 2\pi s^2$, (..., N, D) -> (..., N)."""
        residual = (x["x"].to(theta) - self.mean(theta)) / self.noise_scale
        return -0.5 * residual.square().sum(-1) - 0.5 * self.size * math.log(2 * math.pi * self.noise_scale**2)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        r"""Exact posterior for x (N, M): $\Sigma = (I/p^2 + A^T A/s^2)^{-1}$, $\mu = \Sigma A^T x / s^2$."""
        a = self.design_matrix
        identity = torch.eye(self.dimension, dtype=torch.float64)
        covariance = torch.linalg.inv(identity / self.prior_scale**2 + a.T @ a / self.noise_scale**2)
        mean = x.double() @ a @ covariance / self.noise_scale**2
        return MultivariateNormal(mean, covariance, validate_args=False)

    def log_evidence(self, x: Tensor) -> Tensor:
        r"""Exact $\log p(x) = \log N(x; 0, s^2 I + p^2 A A^T)$, (N, M) -> (N,)."""
        a = self.design_matrix
        covariance = self.noise_scale**2 * torch.eye(self.size, dtype=torch.float64) + self.prior_scale**2 * a @ a.T
        return MultivariateNormal(
            torch.zeros(self.size, dtype=torch.float64), covariance, validate_args=False
        ).log_prob(x.double())
