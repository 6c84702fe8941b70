r"""Normalisations of templates by maximum likelihood: the crude guess that networks start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 6
LEAST_RATE = 0.1
"""Least expected photons of a pixel in a step, over those at the prior mean: a negative normalisation must not divide by zero."""


@dataclass(frozen=True)
class TemplateFit:
    """Attributes: norm (N, J) and error (N, J) of the templates, and the expected photons of each pixel, (N, M)."""

    norm: Tensor
    error: Tensor
    rate: Tensor


def fit_templates(counts: Tensor, templates: Tensor, mean: Tensor, spread: Tensor) -> TemplateFit:
    r"""Poisson maximum likelihood with the prior's mean and standard deviation as a Gaussian penalty.

    Fisher scoring with expected photons $\lambda = \theta T$: each step solves

    $$(T \Lambda^{-1} T^T + D) \theta = T \Lambda^{-1} n + D \theta_0,\qquad \Lambda = diag(\lambda),\ D = diag(1 / s^2)$$

    Args:
        counts: n, (N, M).
        templates: T, (J, M).
        mean, spread: of the prior, theta_0 and s, (J,) each.
    """
    templates = templates.double()
    counts = counts.to(templates)
    first, second = torch.triu_indices(len(templates), len(templates)).unbind()
    products = (templates[first] * templates[second]).T
    penalty = torch.diag(1 / spread.square())
    expected = mean @ templates
    rate = expected.expand(len(counts), -1)
    norm, factor = mean.expand(len(counts), -1), penalty
    for _ in range(STEPS):
        weight = 1 / rate.clamp(min=LEAST_RATE * expected)
        normal = torch.empty(len(counts), *penalty.shape, dtype=rate.dtype, device=rate.device)
        normal[:, first, second] = normal[:, second, first] = weight @ products
        factor, _ = torch.linalg.cholesky_ex(normal + penalty)
        right = (weight * counts) @ templates.T + mean / spread.square()
        norm = torch.cholesky_solve(right[..., None], factor)[..., 0]
        rate = norm @ templates
    error = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).sqrt()
    return TemplateFit(norm, error, rate.clamp(min=LEAST_RATE * expected))


def logit_guess(norm: Tensor, error: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    r"""Location and scale of a normalisation on the unconstrained space $u = \mathrm{logit}((\theta - a) / (b - a))$.

    $\sigma_u = \sigma / ((b - a) t (1 - t))$, at most 2, with t the place in the interval, kept 2 % off its ends.
    """
    t = ((norm - low) / (high - low)).clamp(0.02, 0.98)
    return torch.logit(t), (error / ((high - low) * t * (1 - t))).clamp(max=2.0)
