"""No unit, offset or size of x or theta costs information: scales 1e-60 to 1e60, offsets up to 1e9 widths and beyond."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.estimators.embedding import Embedding
from pipeline.estimators.likelihood import Coordinates, LikelihoodNetwork, LikelihoodShape, context_numbers
from pipeline.estimators.network import NetworkInput, PosteriorNetwork, network_input
from pipeline.estimators.standardize import BOUND, Standardize, StandardizeChannels, StandardizeItems
from pipeline.estimators.summary import Summary, SummaryShape, examine, fit_components, numbers_of
from pipeline.estimators.typicality import Typicality
from pipeline.estimators.whitening import fit_whitening
from pipeline.likelihood_settings import LikelihoodSettings, SummarySettings
from pipeline.settings import EmbeddingSettings, FlowSettings
from pipeline.training.data import TrainingSet, training_set
from pipeline.training.gain import gains_of
from simulators.priors import IndependentPrior, distribution_from_spec, prior_of, sample
from simulators.protocol import Observable, Parameter

ROWS = 4_000
SCALES = [1e-200, 1e-60, 1e-40, 1e-22, 1e-12, 1.0, 1e15, 1e44, 1e60, 1e200]
RATIOS = [0.0, 1e3, 1e6, 1e9, 1e12]
KINDS = ["columns", "channels", "items"]
FLOW = FlowSettings(transforms=2, hidden=16, blocks=1, bins=5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standardize_for(kind: str, columns: int) -> Standardize:
    """Of `columns` numbers; as items a mask follows each."""
    if kind == "columns":
        return Standardize(columns)
    return StandardizeChannels((1, columns)) if kind == "channels" else StandardizeItems((columns, 2))


def as_features(kind: str, values: Tensor) -> Tensor:
    if kind != "items":
        return values
    return torch.stack([values, torch.ones_like(values)], -1).flatten(1)


def numbers_in(kind: str, read: Tensor) -> Tensor:
    return read[..., 0] if kind == "items" else read.flatten(1)


# ------------------------------------------------------------ what the network reads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_what_the_network_reads_is_the_number_in_units_of_its_own(kind: str, scale: float, ratio: float) -> None:
    """To 1e-6 of a width and what the offset leaves of float64: 1e12 widths, 2^-52 of them, a few 1e-4."""
    z = normal(ROWS, 3)
    standardize = standardize_for(kind, 3)
    standardize.fit(as_features(kind, scale * (z + ratio)))
    read = numbers_in(kind, standardize(as_features(kind, scale * (z + ratio))))
    assert read.dtype == torch.float32
    mean, width = (z.mean(0), z.std(0)) if kind == "columns" else (z.mean(), z.std())
    torch.testing.assert_close(read.double(), (z - mean) / width, rtol=1e-6, atol=1e-6 + 1e-15 * ratio)


@pytest.mark.parametrize(
    ("middle", "half"),
    [(2_457_000.5, 0.5), (2_457_000.0, 1e-6), (1_420_405_751.8, 100.0), (6562.8, 0.005), (0.0, 1e-22), (0.0, 1e44)],
)
def test_the_numbers_of_astronomy_are_read(middle: float, half: float) -> None:
    z = 2 * torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    x = middle + half * z
    standardize = Standardize(1)
    standardize.fit(x)
    read = standardize(x)[:, 0].double()
    assert float(torch.corrcoef(torch.stack([read, z[:, 0]]))[0, 1]) > 1 - 1e-6
    assert float(read.std()) == pytest.approx(1, rel=1e-3)


def test_float32_loses_what_it_had_lost_before_and_no_more() -> None:
    """Steps of 64 at 1e9 in float32, a spread of some steps: those steps are kept apart."""
    steps = torch.randint(0, 40, (ROWS, 1), generator=torch.Generator().manual_seed(1))
    x = 1e9 + 64 * steps.float()
    standardize = Standardize(1)
    standardize.fit(x)
    order = standardize(x)[:, 0].unique()
    assert len(order) == 40
    assert float(order.diff().min()) > 0.02


def test_constant_is_what_is_equal_to_every_digit() -> None:
    base = torch.full((ROWS, 4), 2_457_000.3, dtype=torch.float64)
    base[:, 1] = 1e-300
    base[:, 3] = 0.0
    base[7, 2] = 2_457_000.300001
    standardize = Standardize(4)
    standardize.fit(base)
    assert (standardize.inverse_scale == 0).tolist() == [True, True, False, True]
    assert torch.equal(standardize.mean[[0, 1, 3]], base[0, [0, 1, 3]])
    assert standardize(base)[7, 2] > 10
    assert bool((standardize(base + 5)[:, [0, 1, 3]] == 0).all())


def test_numbers_that_differ_in_the_last_digit_alone_are_no_unit_of_length() -> None:
    """Rounding noise of a sum is not blown up to the size of data."""
    x = torch.full((ROWS, 1), 0.1, dtype=torch.float64)
    x[::2] = torch.nextafter(x[::2], torch.ones(1, dtype=torch.float64))
    standardize = Standardize(1)
    standardize.fit(x)
    assert 0 < float(standardize(x).abs().max()) < 0.1


def test_one_row_is_constant() -> None:
    standardize = Standardize(2)
    standardize.fit(torch.tensor([[3.0, -1e200]], dtype=torch.float64))
    assert bool((standardize(torch.zeros(2, 2)) == 0).all())


# ------------------------------------------------------------ held at a bound


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_fitted_to_is_never_held_and_what_is_far_is_and_is_counted(kind: str) -> None:
    x = 100 + 3 * normal(ROWS, 4).pow(3)  # heavy tails
    features = as_features(kind, x)
    standardize = standardize_for(kind, 4)
    standardize.fit(features)
    assert torch.equal(standardize(features), standardize.standardized(features).float())
    assert int(standardize.held(features).sum()) == 0
    far = x[:3].clone()
    far[0, 1], far[1, :2], far[2, 3] = 1e5, torch.inf, -1e250
    read = numbers_in(kind, standardize(as_features(kind, far)))
    assert standardize.held(as_features(kind, far)).tolist() == [1, 2, 1]
    before = numbers_in(kind, standardize(features))
    half = (before.max() - before.min()) / 2
    assert float(read.abs().max()) <= BOUND * float(half) + float(before.abs().max())


def test_a_constant_that_is_another_number_counts_as_held_and_rounding_does_not() -> None:
    standardize = Standardize(1)
    standardize.fit(torch.full((10, 1), 2_457_000.3, dtype=torch.float64))
    later = torch.tensor([[2_457_000.3], [2_457_000.3 * (1 + 1e-15)], [2_457_000.3001]], dtype=torch.float64)
    assert standardize.held(later).tolist() == [0, 0, 1]


def test_absent_items_are_never_held() -> None:
    items = normal(ROWS, 3, 2)
    items[..., 1] = 1.0
    items[:, 2] = torch.tensor([1e30, 0.0])
    standardize = StandardizeItems((3, 2))
    standardize.fit(items.flatten(1))
    assert int(standardize.held(items.flatten(1)).sum()) == 0


def test_fit_is_saved_with_its_bounds() -> None:
    standardize = Standardize(2)
    standardize.fit(1e9 + 1e-3 * normal(ROWS, 2))
    again = Standardize(2)
    again.load_state_dict(standardize.state_dict())
    far = torch.tensor([[2e9, 1e9]], dtype=torch.float64)
    assert torch.equal(again(far), standardize(far))


class Line:
    """y_i = gain (theta - offset) + noise n_i, i = 1, 2, epochs beside it as context where asked for."""

    name = "line"

    def __init__(
        self, prior: Any, *, gain: float = 1.0, noise: float = 0.1, offset: float = 0.0, epoch: float = 0.0
    ) -> None:
        self.parameters = (Parameter("t", distribution_from_spec(prior)),)
        self.gain, self.noise, self.offset, self.epoch = gain, noise, offset, epoch
        context = (Observable("epoch", (2,), role="context"),) if epoch else ()
        self.observables = (*context, Observable("y", (2,)))

    def simulate(self, theta: Tensor, context: Any = None, *, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(len(theta), 2, generator=generator, dtype=torch.float64)
        if not self.epoch:
            return {"y": self.gain * (theta - self.offset) + self.noise * noise}
        epoch = self.epoch + torch.rand(len(theta), 2, generator=generator, dtype=torch.float64)
        epoch = epoch if context is None else context["epoch"]
        return {"epoch": epoch, "y": theta * (epoch - self.epoch) + self.noise * noise}


def network_of(simulator: Any, kind: str = "none") -> PosteriorNetwork:
    torch.manual_seed(0)
    features = sum(math.prod(o.shape) for o in simulator.observables)
    embedding = EmbeddingSettings(kind=kind, hidden=16, output=4)  # pyright: ignore[reportArgumentType]
    return PosteriorNetwork(prior_of(simulator), features, flow=FLOW, embedding=embedding)


def trained_on(simulator: Any, *, steps: int, rows: int = ROWS) -> tuple[PosteriorNetwork, TrainingSet]:
    """q after some steps of forward KL, and simulations that it has not seen."""
    stream, prior = torch.Generator().manual_seed(3), prior_of(simulator)
    theta = sample(prior, rows, stream)
    x = simulator.simulate(theta, generator=stream)
    data = training_set(simulator, theta, x, prior=prior, proposal=prior, device=torch.device("cpu"))
    network = network_of(simulator)
    network.standardize(data.theta, data.inputs)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        rows_now = data.rows(torch.randint(rows // 2, (128,), generator=stream))
        loss = -network.log_q(rows_now.theta, network.condition(rows_now.inputs)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False), data.rows(slice(rows // 2, None))


@cache
def gain_of(family: str, middle: float, scale: float, unit: float) -> float:
    """Nats over the prior of q after 80 steps on y = unit theta + noise of a tenth, theta and y in units of their own."""
    spec = [middle, scale] if family == "normal" else [middle, middle + scale]
    simulator = Line({family: spec}, gain=unit, noise=0.1 * unit * scale)
    network, held_out = trained_on(simulator, steps=80)
    gain, _ = gains_of(network, held_out, prior=prior_of(simulator))
    assert not gain.is_none
    return gain.mean


@pytest.mark.parametrize(
    ("family", "middle", "scale", "unit"),
    [
        ("normal", 0.0, 1e-40, 1.0),
        ("uniform", 1e50, 1e50, 1e-72),
        ("uniform", 2_457_000.0, 1.0, 1.0),
        ("normal", 1_420_405_751.8, 100.0, 1e44),
    ],
)
def test_q_learns_what_the_data_say_in_any_unit(family: str, middle: float, scale: float, unit: float) -> None:
    """As much as in units of one: the same numbers reach the network, and training differs by rounding alone."""
    assert gain_of(family, middle, scale, unit) == pytest.approx(gain_of(family, 0.0, 1.0, 1.0), abs=0.15)
    assert gain_of(family, 0.0, 1.0, 1.0) > 0.8


@pytest.mark.parametrize(
    "spec", [{"normal": [0, 1e-60]}, {"normal": [0, 1e60]}, {"normal": [1e9, 1.0]}, {"half_normal": 1e-60}]
)
def test_theta_is_of_order_one_for_the_flow(spec: Any) -> None:
    """Half the 16-84 % range of u is 1 whatever the unit, and the density of theta counts the unit."""
    simulator = Line(spec)
    prior = prior_of(simulator)
    theta = sample(prior, ROWS, torch.Generator().manual_seed(1))
    zero = torch.zeros(ROWS, 1, dtype=torch.float64)
    network = network_of(simulator)
    network.standardize(theta, NetworkInput(normal(ROWS, 2), zero, zero + 1))
    u = (network.support.to_unconstrained(theta) - network.shift) / network.width
    low, high = torch.quantile(u[:, 0], torch.tensor([0.16, 0.84], dtype=torch.float64))
    assert float(high - low) / 2 == pytest.approx(1, abs=1e-6)


def test_data_twice_as_far_out_as_any_give_the_q_of_the_bound_and_it_is_said() -> None:
    """y = 1e5 where |y| < 6 was seen gave theta = 5e14; the posterior of y = 1e5 is far from any prior draw too."""
    network, held_out = trained_on(Line({"normal": [0, 1]}, noise=1.0), steps=80)
    x = {"y": torch.tensor([[0.5, 0.0], [1e5, 1e5], [-1e300, 1e300]], dtype=torch.float64)}
    inputs = network_input(Line({"normal": [0, 1]}), x)
    assert network.held(inputs).tolist() == [0, 2, 2]
    assert int(network.held(held_out.inputs).sum()) == 0
    theta, _ = network.draw(
        network.condition(inputs), 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    assert float(theta.abs().max()) < 200
    assert float(theta.std(0).min()) > 0.05


def test_a_pilot_far_out_is_held_too_and_what_was_seen_is_not() -> None:
    network = network_of(Line({"normal": [0, 1]}))
    location, scale = 3 * normal(ROWS, 1), normal(ROWS, 1, seed=1).exp()
    inputs = NetworkInput(normal(ROWS, 2), location, scale)
    network.standardize(location + scale * normal(ROWS, 1, seed=2), inputs)
    condition = network.condition(inputs)
    assert torch.equal(condition.location, location)
    torch.testing.assert_close(condition.scale, scale, rtol=1e-14, atol=0)
    assert int(network.held(inputs).sum()) == 0
    wild = NetworkInput(normal(2, 2), torch.tensor([[1e30], [0.0]]).double(), torch.tensor([[1.0], [1e-30]]).double())
    held = network.condition(wild)
    assert network.held(wild).tolist() == [1, 1]
    assert float(held.location.abs().max()) < 40
    assert float(held.scale.min()) > 1e-5


def test_prepared_features_give_the_same_condition() -> None:
    simulator = Line({"normal": [0, 1]}, epoch=2_457_000.0)
    stream = torch.Generator().manual_seed(1)
    inputs = network_input(simulator, simulator.simulate(normal(ROWS, 1), generator=stream))
    network = network_of(simulator, kind="mlp")
    network.standardize(normal(ROWS, 1), inputs)
    prepared = network.prepared(inputs)
    assert prepared.features.dtype == torch.float32
    for one, other in zip(network.condition(prepared), network.condition(inputs), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(
        network.condition(prepared.rows(slice(7))).context, network.condition(inputs.rows(slice(7))).context
    )


# ------------------------------------------------------------ the learned likelihood


@pytest.mark.parametrize("scale", [1e-60, 1e-22, 1.0, 1e44, 1e60])
@pytest.mark.parametrize("ratio", [0.0, 1e6, 1e9])
def test_theta_summary_and_context_of_a_likelihood_keep_their_digits(scale: float, ratio: float) -> None:
    z = normal(ROWS, 2)
    values = scale * (z + ratio)
    prior = IndependentPrior([distribution_from_spec({"normal": [scale * ratio, scale]})] * 2)
    coordinates = Coordinates(prior, [False, False])
    coordinates.standardize.fit(coordinates.raw(values))
    expected = (z - z.mean(0)) / z.std(0)
    torch.testing.assert_close(coordinates(values).double(), expected, rtol=1e-6, atol=2e-6)
    simulator = Line({"normal": [0, 1]})
    for kind in ("none", "pca"):
        summary = Summary(SummaryShape(kind, 2, 2, 2), SummarySettings(), simulator)
        if kind == "pca":
            center, components = fit_components(values, 2)
            summary.center.copy_(center)
            summary.components.copy_(components)
        s = summary(values)
        kept, whole = examine(simulator, kind, s)
        assert kept.tolist() == [0, 1]
        assert not bool(whole.any())
        summary.fit_scale(s)
        v = summary.standardized(s)[0].float().double()
        solution = torch.linalg.lstsq(torch.cat([v, torch.ones(ROWS, 1)], 1), z).solution
        left = z - torch.cat([v, torch.ones(ROWS, 1)], 1) @ solution
        if not bool(summary.logged.any()):
            assert float(left.std()) < 1e-4


def test_large_numbers_are_not_whole_because_floating_point_has_no_halves_there() -> None:
    simulator = Line({"normal": [0, 1]})
    simulator.observables = (Observable("y", (2,), discrete=True),)
    large = torch.stack([1e44 * (2 + normal(ROWS)).abs(), (1e12 * (2 + normal(ROWS))).float().double()], 1)
    counts = torch.poisson(torch.full((ROWS, 1), 1e4).double(), generator=torch.Generator().manual_seed(1)) + 2.0**40
    assert examine(simulator, "none", torch.cat([large, counts], 1))[1].tolist() == [False, False, True]


def test_context_reaches_the_likelihood_with_its_digits_and_is_held() -> None:
    simulator = Line({"normal": [1, 0.5]}, epoch=2_457_000.0)
    stream = torch.Generator().manual_seed(1)
    theta = sample(prior_of(simulator), ROWS, stream)
    x = simulator.simulate(theta, generator=stream)
    shape = LikelihoodShape(SummaryShape("none", 2, 2, 2), 2)
    network = LikelihoodNetwork(simulator, shape, LikelihoodSettings(members=1, flow=FLOW))
    network.context.fit(context_numbers(simulator, x))
    network.summary.fit_scale(numbers_of("none", simulator, x))
    read = network.read(x)["context"]
    inside = x["epoch"] - simulator.epoch
    torch.testing.assert_close(read, (inside - inside.mean(0)) / inside.std(0), rtol=1e-6, atol=1e-6)
    assert int(network.held(x).sum()) == 0
    other = {k: v[:2].clone() for k, v in x.items()}
    other["epoch"][1, 0] = 2_450_000.0
    assert network.held(other).tolist() == [0, 1]
    assert bool(network.member_log_prob(theta[:2], network.read(other)).isfinite().all())


# ------------------------------------------------------------ typicality


@pytest.mark.parametrize("scale", [1e-60, 1e-22, 1.0, 1e60])
@pytest.mark.parametrize("ratio", [0.0, 1e9])
def test_distances_do_not_depend_on_the_unit(scale: float, ratio: float) -> None:
    z = normal(ROWS, 3) @ normal(3, 3, seed=5)
    reference = fit_whitening(z, least_width=1e-3).whiten(z[:20])
    scaled = fit_whitening(scale * (z + ratio), least_width=1e-3).whiten(scale * (z + ratio)[:20])
    torch.testing.assert_close(scaled.norm(dim=1), reference.norm(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "cnn1d", "set"])
@pytest.mark.parametrize("constant", [0.0, 1e-22, 2_457_000.3, 1e44])
def test_a_constant_of_the_training_set_that_is_another_number_is_infinitely_far(kind: str, constant: float) -> None:
    """Whatever its size, in whatever structure: a billionth of it is enough."""
    shape = {"mlp": (), "cnn1d": (2, 16), "set": (8, 3)}[kind]
    rows, width = 800, {"mlp": 4, "cnn1d": 32, "set": 24}[kind]
    x = normal(rows, width)
    changing = {"mlp": [0], "cnn1d": list(range(16)), "set": list(range(0, 24, 3))}[kind]
    x[:, changing] = constant
    if kind == "set":
        x[:, 2::3] = 1.0
    zero = torch.zeros(rows, 1, dtype=torch.float64)
    inputs = NetworkInput(x, zero, zero + 1)
    torch.manual_seed(0)
    settings = EmbeddingSettings.model_validate({"kind": kind, "hidden": 16, "output": 4, "channels": [4], "kernel": 3})
    network = PosteriorNetwork(
        prior_of(Line({"normal": [0, 1]})), width, flow=FLOW, embedding=settings, shape=shape
    ).eval()
    network.standardize(normal(rows, 1), inputs)
    typicality = Typicality.fit(network, inputs.rows(slice(400)), inputs.rows(slice(400, None)))
    same = inputs.rows(slice(400, 403))
    moved = same._replace(features=same.features.clone())
    moved.features[:, changing] = constant * (1 + 1e-9) if constant else 1e-200
    rounded = same._replace(features=same.features * torch.where(same.features == constant, 1 + 1e-15, 1.0))
    assert bool((typicality.score(network, moved) == torch.inf).all())
    assert bool(typicality.score(network, rounded).isfinite().all())


def test_an_embedding_of_numbers_far_from_zero_differs_between_rows() -> None:
    torch.manual_seed(0)
    embedding = Embedding(1, EmbeddingSettings(hidden=16, output=4))
    x = 2_457_000 + 1e-6 * normal(ROWS, 1)
    embedding.standardize.fit(x)
    assert float(embedding(x).detach().std(0).max()) > 0.05
