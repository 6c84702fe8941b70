"""The network of sbi's NLE in the place of a member of the ensemble.

NLE: Papamakarios, Sterratt and Murray 2019, https://arxiv.org/abs/1805.07226; sbi: Boelts et al. 2025,
https://doi.org/10.21105/joss.07754. sbi's default, five masked autoregressive layers, in sbi's own z-scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.estimators.argument_checks import argument_checks_kept
from simulators.priors import global_generators_from

MODEL = "maf"


class SbiDensity(nn.Module):
    """Log density of standardised s given conditions, behind what the ensemble asks of a member.

    Args:
        size: S.
        theta: numbers of the standardised theta.
        context: numbers of observing conditions, which sbi reads beside theta.
    """

    def __init__(self, size: int, theta: int, context: int) -> None:
        super().__init__()
        with argument_checks_kept():
            from sbi.neural_nets import likelihood_nn
        rows = torch.tensor([[-1.0], [1.0]])  # two rows with a spread: a place for mean and standard deviation
        build = likelihood_nn(MODEL)
        self.estimator: Any = build(rows.expand(2, theta + context), rows.expand(2, size))

    def log_prob(self, v: Tensor, theta: Tensor, context: Tensor) -> Tensor:
        """log density of v (M, S) given theta (M, T) and context (M, C), (M,)."""
        return self.estimator.log_prob(v[None], torch.cat([theta, context], dim=-1))[0]

    def sample(self, theta: Tensor, context: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """v (draws, M, S)."""
        with global_generators_from(generator):
            return self.estimator.sample(torch.Size((draws,)), torch.cat([theta, context], dim=-1))
