"""Networks for data with structure: channels of a grid, and items of which some may be absent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sbi.neural_nets.embedding_nets import CNNEmbedding, FCEmbedding
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.settings import EmbeddingSettings


def convolutions(shape: Sequence[int], settings: EmbeddingSettings) -> nn.Module:
    """sbi's CNNEmbedding for (N, channels, length) or (N, channels, height, width).

    Raises:
        InputError: the grid is too small for so many convolutions.
    """
    try:
        return CNNEmbedding(
            tuple(shape[1:]),
            in_channels=shape[0],
            out_channels_per_layer=list(settings.channels),
            num_conv_layers=len(settings.channels),
            num_linear_layers=settings.layers,
            num_linear_units=settings.hidden,
            output_dim=settings.output,
            kernel_size=settings.kernel,
        )
    except (AssertionError, RuntimeError, ValueError):
        raise InputError(
            f"train.embedding: {len(settings.channels)} convolutions of width {settings.kernel}, each pooled by two, do not fit a grid of {tuple(shape[1:])}; use fewer channels or a smaller kernel"
        ) from None


class BesideX(nn.Module):
    """x itself, and beside it what sbi's FCEmbedding makes of it: (N, F) -> (N, C).

    Rectified units alone lose digits of x that a narrow posterior needs. Where F is more than the network's output, that
    many linear combinations stand for x.

    Args:
        features: F.
        settings: sizes; C = output + min(F, output).
    """

    def __init__(self, features: int, settings: EmbeddingSettings) -> None:
        super().__init__()
        output = settings.output
        self.network = FCEmbedding(features, output_dim=output, num_layers=settings.layers, num_hiddens=settings.hidden)
        self.linear = nn.Identity() if features <= output else nn.Linear(features, output, bias=False)
        self.output = output + min(features, output)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.linear(features), self.network(features)], dim=-1)


class SetNetwork(nn.Module):
    r"""Items in no order: $c = f( \frac{1}{n} \sum_i g(x_i), \log(1 + n) )$ over the n present items.

    Zaheer et al. 2017, Deep Sets, https://arxiv.org/abs/1703.06114. g and f are sbi's FCEmbedding. sbi's
    PermutationInvariantEmbedding counts absent items across rows where items have more than one number.

    Args:
        numbers: of an item, without its mask.
        settings: sizes.
    """

    def __init__(self, numbers: int, settings: EmbeddingSettings) -> None:
        super().__init__()
        hidden, layers = settings.hidden, settings.layers
        self.item = FCEmbedding(numbers, output_dim=hidden, num_layers=layers, num_hiddens=hidden)
        self.whole = FCEmbedding(hidden + 1, output_dim=settings.output, num_layers=layers, num_hiddens=hidden)

    def forward(self, items: Tensor) -> Tensor:
        """(N, items, numbers + 1), the last a mask -> (N, C)."""
        mask = items[..., -1:]
        count = mask.sum(1)
        mean = (self.item(items[..., :-1]) * mask).sum(1) / count.clamp_min(1)
        return self.whole(torch.cat([mean, torch.log1p(count)], dim=1))


class TransformerNetwork(nn.Module):
    """Items that attend to each other, read out by a token of its own that attends to all present items.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, by torch's encoder, layer norm first, no dropout, no
    position: an item that has one, such as a time, carries it among its numbers. sbi's TransformerEmbedding
    reads out the last item, present or not, and drops the mask unless it is causal.

    Args:
        numbers: of an item, without its mask.
        settings: sizes.

    Raises:
        InputError: heads do not divide the width.
    """

    def __init__(self, numbers: int, settings: EmbeddingSettings) -> None:
        super().__init__()
        width = settings.hidden
        if width % settings.heads:
            raise InputError(f"train.embedding: heads ({settings.heads}) must divide hidden ({width})")
        self.enter = nn.Linear(numbers, width)
        self.readout = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, settings.heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(settings.layers)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, settings.output))

    def forward(self, items: Tensor) -> Tensor:
        """(N, items, numbers + 1), the last a mask -> (N, C)."""
        tokens = torch.cat([self.readout.expand(len(items), 1, -1), self.enter(items[..., :-1])], dim=1)
        absent = nn.functional.pad(items[..., -1] < 0.5, (1, 0), value=False)
        for block in self.blocks:
            tokens = block(tokens, src_key_padding_mask=absent)
        return self.leave(tokens[:, 0])
