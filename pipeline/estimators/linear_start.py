r"""Where q begins: the linear regression of theta on x, wherever that leaves next to nothing unexplained.

    location(x) = T^-1(theta_hat),   scale(x) = r dv/dtheta,   theta_hat = a + W z,   r = sd(theta - theta_hat)

z are standardised features, and T maps v onto the support. Where a posterior is a hundredth as wide as its prior,
a network has to learn its location to a thousandth, which takes thousands of steps; the regression has it at once,
and the network learns what is left, in units of r. A simulator with a `pilot` of its own needs none of this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.estimators.support import SupportTransform
from simulators.priors import IndependentPrior

UNEXPLAINED = 1e-3
"""Share of a parameter's variance that the regression may leave: a residual of 3 % of the prior's width. What is left where
it is more is rather the curvature of the model than noise, and a start from it was worse than none (docs/training.md)."""
ROWS, FEATURES, ROWS_A_FEATURE = 20_000, 1_000, 10
"""Rows that are read, features above which there is no regression, and least rows for each feature."""
REACH = 3.0
"""Half-ranges of the training set from its middle beyond which theta_hat is not carried on."""


class LinearStart(nn.Module):
    """Location and scale of v given standardised features; 0 and 1 for parameters that are not `used`.

    Args:
        features: F.
        support: of the prior, with D parameters.
    """

    used: Tensor
    weight: Tensor
    offset: Tensor
    residual: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, features: int, support: SupportTransform) -> None:
        super().__init__()
        self.support, dimension = support, support.dimension
        self.register_buffer("used", torch.zeros(dimension, dtype=torch.bool))
        self.register_buffer("weight", torch.zeros(features, dimension, dtype=torch.float64))
        for name in ("offset", "residual", "low", "high"):
            self.register_buffer(name, torch.zeros(dimension, dtype=torch.float64))
        self.begun = False  # known without asking the device
        self.register_load_state_dict_post_hook(lambda module, _: module._look())

    def _look(self) -> None:
        self.begun = bool(self.used.any())

    @torch.no_grad()
    def fit(self, theta: Tensor, z: Tensor) -> None:
        """Fit to parameters (N, D) and standardised features (N, F)."""
        self.used.zero_()
        self.begun = False
        theta, z = theta[:ROWS].double(), z[:ROWS].double()
        rows, features = z.shape
        if features > FEATURES or rows < ROWS_A_FEATURE * (features + 1) or not self._is_elementwise:
            return
        middle, mean = theta.mean(0), z.mean(0)
        total, centred = theta - middle, z - mean
        gram = centred.T @ centred
        ridge = 1e-9 * rows * torch.eye(features, dtype=z.dtype, device=z.device)  # z has unit variance; or none
        self.weight.copy_(torch.linalg.solve(gram + ridge, centred.T @ total))
        self.offset.copy_(middle - mean @ self.weight)
        left = (total - centred @ self.weight).square().sum(0) / (rows - features - 1)
        self.residual.copy_(left.sqrt())
        half = (theta.amax(0) - theta.amin(0)) / 2
        centre = theta.amin(0) + half
        lowest, highest = self._bounds(theta)
        self.low.copy_(torch.maximum(centre - REACH * half, lowest + self.residual / 2))
        self.high.copy_(torch.minimum(centre + REACH * half, highest - self.residual / 2))
        used = (left > 0) & (left < UNEXPLAINED * total.square().mean(0)) & (self.low < self.high)
        periodic = [d for d, turns in enumerate(self.support.periodic) if turns]
        used[periodic] = False
        self.used.copy_(used)
        self._look()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale (N, D) of v for standardised features (N, F)."""
        guess = (self.offset + z.double() @ self.weight).clamp(self.low, self.high)
        v = self.support.to_unconstrained(guess)
        with torch.enable_grad():
            at = v.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.support.to_theta(at)[0].sum(), at)
        scale = self.residual / slope
        return torch.where(self.used, v, 0.0), torch.where(self.used, scale, 1.0)

    @property
    def _is_elementwise(self) -> bool:
        """Whether v of a parameter depends on this parameter alone."""
        return isinstance(self.support.prior, IndependentPrior) or not self.support.pieces(self.offset.device)

    def _bounds(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the support of each parameter."""
        prior = self.support.prior
        supports = [m.support for m in prior.marginals] if isinstance(prior, IndependentPrior) else []
        lowest, highest = theta.new_full(theta.shape[1:], -torch.inf), theta.new_full(theta.shape[1:], torch.inf)
        for d, support in enumerate(supports):
            lowest[d] = float(getattr(support, "lower_bound", -torch.inf))
            highest[d] = float(getattr(support, "upper_bound", torch.inf))
        return lowest, highest
