r"""Many copies of a flow in one, each with weights of its own: one copy for each of R observations.

The R copies are fine-tuned together, at the price of a few matrix products in place of R training runs. Row r of
every input belongs to copy r: inputs (..., R, D) with context (R, C), as everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.estimators.network import PosteriorNetwork


class ParallelLinear(nn.Module):
    r"""R linear maps side by side, $y_{kr} = W_r x_{kr} + b_r$; inputs (..., R, I), or flattened to (... R, I).

    Args:
        linear: the map that all copies start from.
        copies: R.
    """

    def __init__(self, linear: nn.Linear, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.weight = nn.Parameter(linear.weight.detach().expand(copies, -1, -1).clone())
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().expand(copies, -1).clone())

    def forward(self, inputs: Tensor) -> Tensor:
        if self.copies == 1:
            return F.linear(inputs, self.weight[0], None if self.bias is None else self.bias[0])
        by_copy = inputs.reshape(-1, self.copies, inputs.shape[-1]).transpose(0, 1)  # (R, K, I)
        weight = self.weight.transpose(1, 2)
        if self.bias is None:
            outputs = torch.bmm(by_copy, weight)
        else:
            outputs = torch.baddbmm(self.bias[:, None], by_copy, weight)
        return outputs.transpose(0, 1).reshape(*inputs.shape[:-1], -1)


def can_copy(network: PosteriorNetwork) -> bool:
    """Whether every weight of its flow belongs to a plain linear layer; other kinds are copied one at a time."""
    linear = (nn.Linear, ParallelLinear)
    within = {id(p) for m in network.flow.modules() if type(m) in linear for p in m.parameters()}
    return all(id(p) in within for p in network.flow.parameters())


def copies_of(network: PosteriorNetwork, copies: int) -> PosteriorNetwork:
    """A network whose flow holds `copies` flows like that of `network`, frozen; R = 1 copies any kind.

    Of a network that holds R copies already, a copy of those.

    Raises:
        ValueError: more than one copy of a flow with other weights than those of linear layers.
    """
    if copies > 1 and not can_copy(network):
        raise ValueError("only flows made of linear layers can be copied more than once; copy one at a time")
    copied = copy.deepcopy(network).requires_grad_(False)
    for module in list(copied.flow.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, ParallelLinear(child, copies))
    return copied.requires_grad_(False)


def one_copy(network: PosteriorNetwork, row: int) -> PosteriorNetwork:
    """Copy `row` of a network that holds several, as a network that holds one; the network itself where it holds one."""
    if not any(isinstance(m, ParallelLinear) and m.copies > 1 for m in network.modules()):
        return network
    single = copy.deepcopy(network)
    for module in single.flow.modules():
        if isinstance(module, ParallelLinear):
            module.copies = 1
            for name in ("weight", "bias"):
                values = getattr(module, name)
                if values is not None:
                    setattr(module, name, nn.Parameter(values.detach()[row : row + 1].clone(), requires_grad=False))
    return single


@torch.no_grad()
def clip_each(parameters: Sequence[nn.Parameter], limit: float, *, copies: int) -> None:
    """Scale each copy's gradient down to a norm of at most `limit`; a single copy may have weights of any shape."""
    if copies == 1:
        torch.nn.utils.clip_grad_norm_(parameters, limit)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    factor = (limit / (squares.sqrt() + 1e-6)).clamp_max(1.0)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.dim() - 1)))
