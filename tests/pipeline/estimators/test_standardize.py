"""Features of mean zero and width one: by column, by channel, by number of an item."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from pipeline.estimators.standardize import Standardize, StandardizeChannels, StandardizeItems


def features() -> torch.Tensor:
    """Wide, narrow, far from zero, and two that never change."""
    z = torch.randn(5000, 5, generator=torch.Generator().manual_seed(0))
    return z * torch.tensor([100.0, 1e-3, 1.0, 0.0, 0.0]) + torch.tensor([0.0, 0.0, 1e4, 7.0, 0.0])


def fitted() -> Standardize:
    standardize = Standardize(5)
    standardize.fit(features())
    return standardize


def test_varying_features_get_mean_zero_and_width_one() -> None:
    z = fitted()(features())[:, :3]
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=1e-3, atol=0)


def test_constant_features_become_zero_whatever_they_are_later() -> None:
    later = features() + 1e6
    assert bool((fitted()(features())[:, 3:] == 0).all())
    assert bool((fitted()(later)[:, 3:] == 0).all())


def test_unfitted_changes_nothing() -> None:
    assert torch.equal(Standardize(5)(features()), features())


def test_fit_is_part_of_the_saved_state() -> None:
    again = Standardize(5)
    again.load_state_dict(fitted().state_dict())
    assert torch.equal(again(features()), fitted()(features()))


# ------------------------------------------------------------ grids and items


def grid(rows: int = 400) -> torch.Tensor:
    """Two channels of five positions each, flat: one wide and far, one that never changes."""
    z = torch.randn(rows, 2, 5, generator=torch.Generator().manual_seed(0))
    z = z * torch.tensor([100.0, 0.0])[:, None] + torch.tensor([1e4, 7.0])[:, None]
    z[:, 0] += 50 * torch.arange(5)  # positions keep their differences
    return z.flatten(1)


def test_channels_share_their_statistics_over_positions() -> None:
    standardize = StandardizeChannels((2, 5))
    assert torch.equal(standardize(grid()), grid().view(-1, 2, 5))
    standardize.fit(grid())
    z = standardize(grid())
    assert z.shape == (400, 2, 5)
    assert float(z[:, 0].mean()) == pytest.approx(0, abs=1e-3)
    assert float(z[:, 0].std()) == pytest.approx(1, rel=1e-3)
    assert float(z[:, 0, 4].mean() - z[:, 0, 0].mean()) > 1
    assert bool((z[:, 1] == 0).all())


def items(hidden: float) -> torch.Tensor:
    """Three items of two numbers and a mask, flat; the last item of every second row is absent and holds `hidden`."""
    z = 3 + 2 * torch.randn(400, 3, 3, generator=torch.Generator().manual_seed(0))
    z[..., 2] = 1.0
    z[::2, 2] = torch.tensor([hidden, hidden, 0.0])
    return z.flatten(1)


@pytest.mark.parametrize("hidden", [0.0, 1e6, float("nan")])
def test_absent_items_are_zero_and_left_out_of_the_statistics(hidden: float) -> None:
    standardize = StandardizeItems((3, 3))
    standardize.fit(items(hidden))
    torch.testing.assert_close(standardize.mean, torch.full((2,), 3.0, dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(
        1 / standardize.inverse_scale, torch.full((2,), 2.0, dtype=torch.float64), rtol=0.05, atol=0
    )
    z = standardize(items(hidden))
    assert z.shape == (400, 3, 3)
    assert bool((z[::2, 2] == 0).all())
    assert bool((z[1::2, :, 2] == 1).all())
    reference = StandardizeItems((3, 3))
    reference.fit(items(0.0))
    assert torch.equal(z, reference(items(0.0)))


def test_a_training_set_without_items_is_refused() -> None:
    with pytest.raises(InputError, match=r"fewer than two items are present"):
        StandardizeItems((3, 3)).fit(torch.zeros(5, 9))
