"""One contract for all embeddings: shapes, gradients, standardised input; and what stands in absent items never matters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.estimators.embedding import Embedding
from pipeline.estimators.standardize import Standardize
from pipeline.settings import EmbeddingSettings

SHAPES: dict[str, tuple[int, ...]] = {
    "mlp": (),
    "none": (),
    "residual": (),
    "cnn1d": (2, 12),
    "cnn2d": (2, 3, 4),
    "set": (6, 4),
    "transformer": (6, 4),
}
FEATURES = 24
KINDS = [*SHAPES]
ITEMS = ["set", "transformer"]


def settings(kind: Any, **changes: Any) -> EmbeddingSettings:
    small: dict[str, Any] = {"hidden": 8, "output": 5, "channels": (3, 4), "kernel": 2, "heads": 2}
    return EmbeddingSettings(kind=kind, **(small | changes))


def embedding(kind: str, **changes: Any) -> Embedding:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Embedding(FEATURES, settings(kind, **changes), shape=SHAPES[kind])


def observations(rows: int = 7) -> Tensor:
    """Of any kind; read as items, the first row has all six, the second none, the others some."""
    x = 10 + 3 * torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(2))
    items = x.view(rows, 6, 4)
    items[..., 3] = (torch.rand(rows, 6, generator=torch.Generator().manual_seed(3)) < 0.6).float()
    items[0, :, 3], items[1, :, 3] = 1.0, 0.0
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_output_has_its_shape_is_finite_and_differs_between_rows(kind: str) -> None:
    net = embedding(kind)
    net.standardize.fit(observations())
    context = net(observations())
    assert net.features == FEATURES
    assert net.output == {"none": FEATURES, "mlp": 10}.get(kind, 5)  # mlp: as many linear combinations beside
    assert context.shape == (7, net.output)
    assert bool(context.isfinite().all())
    assert bool((context.std(0) > 0).any())
    for n in range(7):  # rows do not see each other
        torch.testing.assert_close(net(observations()[n : n + 1])[0], context[n])


@pytest.mark.parametrize("kind", KINDS)
def test_a_readout_has_a_density(kind: str) -> None:
    """No value is taken twice: the ReLU in which sbi's networks end puts many rows at exactly zero."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = Embedding(FEATURES, settings(kind), shape=SHAPES[kind], readout=3)
    net.standardize.fit(observations(400))
    summary = net(observations(400))
    assert summary.shape == (400, net.output) == (400, 3)
    same = 20 if kind in ITEMS else 2  # sets without items look the same
    assert all(len(column.unique()) > 400 - same for column in summary.T)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_gradients_reach_every_parameter(kind: str) -> None:
    net = embedding(kind, hidden=32)
    net.standardize.fit(observations())
    net(observations()).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters() if p.numel() > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_saved_and_loaded_and_dtype_is_followed(kind: str) -> None:
    net = embedding(kind)
    net.standardize.fit(observations())
    again = Embedding(FEATURES, settings(kind), shape=SHAPES[kind])
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(observations()), net(observations()))
    double = net.double()(observations())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), again(observations()), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------ items


@pytest.mark.parametrize("kind", ITEMS)
@pytest.mark.parametrize("training", [True, False])
def test_what_stands_in_absent_items_never_matters(kind: str, training: bool) -> None:
    x, changed = observations(), observations()
    items = changed.view(7, 6, 4)
    items[..., :3] = torch.where(items[..., 3:] > 0, items[..., :3], 1e5)
    assert not torch.equal(x, changed)
    one, other = embedding(kind).train(training), embedding(kind).train(training)
    one.standardize.fit(x)
    other.standardize.fit(changed)
    assert torch.equal(one(x), other(changed))


@pytest.mark.parametrize("kind", ITEMS)
def test_order_of_items_does_not_matter_but_their_number_does(kind: str) -> None:
    x = observations()
    net = embedding(kind).double()
    net.standardize.fit(x)
    shuffled = x.view(7, 6, 4)[:, [3, 0, 5, 1, 4, 2]].flatten(1)
    torch.testing.assert_close(net(shuffled), net(x))
    fewer = x.view(7, 6, 4).clone()
    fewer[0, 0, 3] = 0.0
    difference = (net(fewer.flatten(1)) - net(x)).abs().amax(1)
    assert float(difference[0].detach()) > 1e-4
    assert bool((difference[1:] == 0).all())


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_bfloat16_rounds_products_and_keeps_weights_and_gradients_in_float32(kind: str) -> None:
    exact, rounded = embedding(kind), embedding(kind, precision="bfloat16")
    for net in (exact, rounded):
        net.standardize.fit(observations())
    wanted, context = exact(observations()), rounded(observations())
    assert context.dtype == wanted.dtype == torch.float32
    error = float((context - wanted).detach().abs().max() / wanted.detach().abs().max())
    assert 1e-5 < error < 0.1  # a product in bfloat16 is right to 2^-8
    context.square().sum().backward()
    assert all(
        p.dtype == torch.float32 and p.grad is not None and bool(p.grad.isfinite().all())
        for p in rounded.network.parameters()
    )


def test_a_set_knows_how_many_items_there_are_even_if_they_are_equal() -> None:
    x = torch.ones(2, 6, 4)
    x[1, 1:, 3] = 0
    one, six = embedding("set", hidden=32)(x.flatten(1))
    assert float((one - six).detach().abs().max()) > 1e-3


# ------------------------------------------------------------ shapes


def test_shape_of_the_settings_goes_before_that_of_the_simulator() -> None:
    net = Embedding(FEATURES, settings("set", shape=(8, 3)), shape=(6, 4))
    assert net.standardize.mean.shape == (2,)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (
            "cnn1d",
            (),
            r"cnn1d needs the shape \(channels, length\) of its 24 features, none is declared; set feature_shape",
        ),
        ("cnn2d", (4, 6), r"cnn2d needs the shape \(channels, height, width\) of its 24 features, got \(4, 6\)"),
        ("set", (5, 4), r"set needs the shape \(items, numbers\) of its 24 features, got \(5, 4\)"),
        ("transformer", (24, 1), r"transformer needs at least one number an item beside its mask"),
        ("cnn1d", (12, 2), r"2 convolutions of width 5, each pooled by two, do not fit a grid of \(2,\)"),
        ("cnn2d", (24, 1, 1), r"do not fit a grid of \(1, 1\); use fewer channels or a smaller kernel"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(kind: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Embedding(FEATURES, settings(kind, kernel=5), shape=shape)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match=r"heads \(3\) must divide hidden \(8\)"):
        embedding("transformer", heads=3)


# ------------------------------------------------------------ flat kinds


def features() -> Tensor:
    z = torch.randn(5000, 5, generator=torch.Generator().manual_seed(0))
    return z * torch.tensor([100.0, 1e-3, 1.0, 0.0, 0.0]) + torch.tensor([0.0, 0.0, 1e4, 7.0, 0.0])


def fitted() -> Standardize:
    standardize = Standardize(5)
    standardize.fit(features())
    return standardize


def test_mlp_has_the_sizes_of_its_settings() -> None:
    torch.manual_seed(0)
    embedding = Embedding(5, EmbeddingSettings(hidden=17, layers=3, output=6))
    assert embedding.output == 6 + 5
    assert embedding(features()[:4]).shape == (4, 6 + 5)
    widths = [m.out_features for m in embedding.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [17, 17, 6]


def test_mlp_hands_x_on_without_loss_and_linear_combinations_of_more_than_its_output() -> None:
    torch.manual_seed(0)
    embedding = Embedding(5, EmbeddingSettings(output=6))
    embedding.standardize.fit(features())
    torch.testing.assert_close(embedding(features()[:4])[:, :5], fitted()(features()[:4]))
    compressed = Embedding(5, EmbeddingSettings(output=3))
    assert compressed.output == 3 + 3
    z = torch.randn(2, 4, 5)
    read = [compressed.network(part)[:, :3] for part in (z[0], z[1], z[0] + z[1])]
    torch.testing.assert_close(read[2], read[0] + read[1])


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
