"""Standardised features, and the network behind them."""

from __future__ import annotations

import torch

from pipeline.config import EmbeddingSettings
from pipeline.estimators.embedding import Embedding, Standardize


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


def test_what_varies_by_rounding_alone_is_constant() -> None:
    """1e9 in float32 has steps of 64: not information."""
    values = 1e9 + 64 * (torch.arange(100) % 2).double()
    standardize = Standardize(1)
    standardize.fit(values[:, None])
    assert bool((standardize(values[:, None]) == 0).all())


def test_unfitted_changes_nothing() -> None:
    assert torch.equal(Standardize(5)(features()), features())


def test_fit_is_part_of_the_saved_state() -> None:
    again = Standardize(5)
    again.load_state_dict(fitted().state_dict())
    assert torch.equal(again(features()), fitted()(features()))


def test_mlp_has_the_sizes_of_its_settings() -> None:
    torch.manual_seed(0)
    embedding = Embedding(5, EmbeddingSettings(hidden=17, layers=3, output=6))
    assert embedding.output == 6
    assert embedding(features()[:4]).shape == (4, 6)
    widths = [m.out_features for m in embedding.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [17, 17, 6]


def test_mlp_sees_standardised_features() -> None:
    torch.manual_seed(0)
    embedding = Embedding(5, EmbeddingSettings(hidden=8, output=3))
    before = embedding(features()[:4])
    embedding.standardize.fit(features())
    torch.testing.assert_close(embedding(features()[:4]), embedding.network(fitted()(features()[:4])))
    assert not torch.allclose(embedding(features()[:4]), before)


def test_none_hands_the_standardised_features_on() -> None:
    embedding = Embedding(5, EmbeddingSettings(kind="none"))
    embedding.standardize.fit(features())
    assert embedding.output == 5
    assert torch.equal(embedding(features()), fitted()(features()))
