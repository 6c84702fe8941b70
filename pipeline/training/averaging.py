"""Exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    r"""average <- decay * average + (1 - decay) * network, for every parameter."""
    # one call for all tensors: some forty small ones would cost a twentieth of a step
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
