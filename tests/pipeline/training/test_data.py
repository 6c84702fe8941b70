"""Batches are a function of (seed, step); a training set is what the network reads of the simulations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pipeline.errors import InputError
from pipeline.estimators.network import NetworkInput, network_input
from pipeline.training.data import FreshSimulations, StoredBatches, TrainingSet, training_set
from pipeline.training.processes import Processes
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import IndependentPrior, prior_of
from simulators.protocol import Data

CPU = torch.device("cpu")


def batches(rows: int = 24, batch: int = 6, *, seed: int = 1, stage: str = "train-0") -> StoredBatches:
    """Row n of the set has theta n."""
    number = torch.arange(rows, dtype=torch.float64)[:, None]
    stored = TrainingSet(number, {"x": number}, NetworkInput(number, number, number), number[:, 0])
    return StoredBatches(stored, batch, seed=seed, stage=stage)


def taken(source: StoredBatches, step: int) -> Tensor:
    """Row numbers of a step."""
    return source[step].theta[:, 0].long()


def epoch(source: StoredBatches, number: int) -> Tensor:
    """Rows of an epoch of 24, in batches of 6."""
    return torch.cat([taken(source, step) for step in range(4 * number, 4 * number + 4)])


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    source = batches()
    orders = [epoch(source, e) for e in range(3)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(24))
        assert order.tolist() != list(range(24))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


def test_a_batch_that_does_not_divide_the_rows_leaves_none_out() -> None:
    """25 rows in batches of 6: epochs follow one another without a gap, and 25 batches are 6 of them."""
    source = batches(25, 6)
    stream = torch.cat([taken(source, step) for step in range(25)])
    for rows in stream.split(25):
        assert rows.sort().values.tolist() == list(range(25))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch_without_a_gap(world: int) -> None:
    stored = batches(25, 6).stored
    whole = StoredBatches(stored, 6, seed=1, stage="train-0")
    parts = [stored.batches(6, seed=1, stage="train-0", processes=Processes(r, world)) for r in range(world)]
    for step in (0, 4, 9):
        own = [p[step].theta for p in parts]
        assert torch.equal(torch.stack(own, 1).flatten(0, 1), whole[step].theta)


def test_a_batch_is_no_larger_than_the_set() -> None:
    source = batches(5, 100)
    assert taken(source, 0).sort().values.tolist() == [0, 1, 2, 3, 4]
    assert len(source[7]) == 5


def test_a_step_gives_the_same_rows_in_whatever_order_steps_are_asked_for() -> None:
    forwards, backwards = batches(), batches()
    expected = {step: taken(forwards, step) for step in range(12)}
    for step in reversed(range(12)):
        assert torch.equal(taken(backwards, step), expected[step])
    assert torch.equal(taken(batches(), 9), expected[9])  # as a resumed run asks


def test_seed_and_stage_decide_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    one = epoch(batches(), 0)
    torch.manual_seed(1)
    assert torch.equal(epoch(batches(), 0), one)
    assert not torch.equal(epoch(batches(seed=2), 0), one)
    assert not torch.equal(epoch(batches(stage="train-1"), 0), one)


def simulations(count: int = 50) -> tuple[LinearGaussian, TrainingSet, dict[str, Tensor], Tensor]:
    simulator = LinearGaussian(dimension=2)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    x = simulator.simulate(theta, generator=generator)
    wide = IndependentPrior([Normal(torch.tensor(0.0).double(), torch.tensor(3.0).double())] * 2)
    prepared = training_set(simulator, theta.float(), x, prior=prior_of(simulator), proposal=wide, device=CPU, block=16)
    return simulator, prepared, x, theta


def test_training_set_is_what_the_network_reads_whatever_the_block() -> None:
    simulator, prepared, x, theta = simulations()
    assert len(prepared) == 50
    assert prepared.theta.dtype == torch.float64
    torch.testing.assert_close(prepared.theta, theta, rtol=1e-6, atol=1e-6)
    for value, expected in zip(prepared.inputs, network_input(simulator, x), strict=True):
        assert torch.equal(value, expected)


def test_importance_is_prior_over_proposal() -> None:
    """log N(theta; 0, 1) - log N(theta; 0, 3), summed over two parameters."""
    _, prepared, _, _ = simulations()
    expected = -0.5 * (1 - 1 / 9) * prepared.theta.square().sum(-1) + 2 * torch.tensor(3.0).double().log()
    torch.testing.assert_close(prepared.log_importance, expected)


def test_rows_of_a_training_set_stay_together() -> None:
    _, prepared, x, _ = simulations()
    index = torch.tensor([40, 3, 17])
    rows = prepared.rows(index)
    assert len(rows) == 3
    assert torch.equal(rows.theta, prepared.theta[index])
    assert torch.equal(rows.x["x"], x["x"][index])
    assert torch.equal(rows.inputs.features, prepared.inputs.features[index])
    assert torch.equal(rows.log_importance, prepared.log_importance[index])
    assert len(prepared.rows(slice(10, 30))) == 20


def test_fresh_simulations_are_new_at_every_step_and_a_function_of_it() -> None:
    simulator = LinearGaussian(dimension=2)
    prior = prior_of(simulator)
    wide = IndependentPrior([Normal(torch.tensor(0.0).double(), torch.tensor(3.0).double())] * 2)
    source = FreshSimulations(simulator, prior, wide, CPU)
    first = source.batches(400, seed=1, stage="train-0")
    rows = first[3]
    assert len(rows) == 400
    assert torch.equal(source.batches(400, seed=1, stage="train-0")[3].x["x"], rows.x["x"])  # as a resumed run asks
    for other in (first[4], source.batches(400, seed=2, stage="train-0")[3], source.batches(400, seed=1, stage="b")[3]):
        assert not torch.equal(other.x["x"], rows.x["x"])
    # theta from the proposal, N(0, 3): the standard deviation of a sample deviation is 3 / sqrt(2 * 800)
    assert abs(float(rows.theta.std()) - 3) < 5 * 3 / 1600**0.5
    torch.testing.assert_close(rows.log_importance, prior.log_prob(rows.theta) - wide.log_prob(rows.theta))
    residual = (rows.x["x"] - simulator.mean(rows.theta)) / simulator.noise_scale
    assert abs(float(residual.std()) - 1) < 5 / (2 * residual.numel()) ** 0.5


def test_a_fresh_simulation_that_fails_is_said_and_not_trained_on() -> None:
    class Failing(LinearGaussian):
        def simulate(self, theta: Tensor, context: object = None, *, generator: torch.Generator) -> Data:
            return {"x": super().simulate(theta, generator=generator)["x"].log()}

    simulator = Failing(dimension=2)
    source = FreshSimulations(simulator, prior_of(simulator), prior_of(simulator), CPU)
    with pytest.raises(InputError, match=r"train.data: online: simulator 'linear_gaussian' failed, 'x' is NaN"):
        source.batches(100, seed=1, stage="train-0")[0]


def test_processes_share_fresh_simulations() -> None:
    simulator = LinearGaussian(dimension=2)
    source = FreshSimulations(simulator, prior_of(simulator), prior_of(simulator), CPU)
    whole = source.batches(6, seed=1, stage="train-0")[2]
    own = source.batches(6, seed=1, stage="train-0", processes=Processes(1, 2))[2]
    assert torch.equal(own.x["x"], whole.x["x"][1::2])
    assert torch.equal(own.inputs.features, whole.inputs.features[1::2])


def test_x_is_left_out_where_no_likelihood_asks_for_it() -> None:
    _, prepared, x, _ = simulations()
    with_x, without = (prepared.batches(10, seed=1, stage="a", with_x=w)[3] for w in (True, False))
    assert without.x == {}
    assert torch.equal(with_x.x["x"], x["x"][with_x.numbers])
    assert torch.equal(without.inputs.features, with_x.inputs.features)
    assert torch.equal(without.log_importance, with_x.log_importance)
