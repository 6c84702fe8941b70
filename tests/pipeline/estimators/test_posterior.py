"""A trained posterior: saved, loaded, sampled as sbi samples, and refused where it is not one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sbi.diagnostics import run_sbc, run_tarp
from torch import Tensor

import pipeline
from pipeline.config import build_simulator, case_from_values
from pipeline.errors import InputError
from pipeline.estimators.network import NetworkInput
from pipeline.estimators.posterior import Posterior, load_posterior, new_network
from pipeline.settings import CaseSettings
from pipeline.store import read_safetensors, stamp, write_safetensors
from simulators.linear_gaussian import LinearGaussian

MakeGaussian = Callable[..., Any]
TRAIN = {"flow": {"transforms": 2, "hidden": 8, "blocks": 1, "bins": 4}, "embedding": {"hidden": 8, "output": 4}}
USER_FILE = """
from pathlib import Path
import torch
from torch.distributions import Uniform
from simulators.protocol import Observable, Parameter

Path(__file__).with_suffix(".executed").touch()


class Box:
    name = "box"
    parameters = (Parameter("a", Uniform(torch.tensor(0.0).double(), torch.tensor(2.0).double(), validate_args=False)), Parameter("b", Uniform(torch.tensor(-1.0).double(), torch.tensor(1.0).double(), validate_args=False)))
    observables = (Observable("y", (2,)),)

    def simulate(self, theta, context=None, *, generator):
        return {"y": theta + torch.randn(theta.shape, generator=generator, dtype=theta.dtype)}
"""


def linear_case(**options: int) -> CaseSettings:
    return case_from_values(
        {"name": "test", "simulator": {"name": "linear_gaussian", "options": options}, "train": TRAIN}, "test"
    )


def untrained(case: CaseSettings) -> Posterior:
    """A posterior with random weights, some of them in the buffers."""
    simulator = build_simulator(case.simulator)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = new_network(case, simulator, sum(o.shape[0] for o in simulator.observables))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            network.shift.normal_()
            network.width.uniform_(0.5, 2)
            network.embedding.standardize.mean.normal_()
    return Posterior(case, simulator, network)


def save(posterior: Posterior, path: Path, **changes: str) -> Path:
    attributes = stamp(stage="train", key="0123", settings=posterior.case.dump()) | changes
    posterior.save(path, attributes=attributes)
    return path


def x_of(rows: int, columns: int = 5) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def posterior() -> Posterior:
    return untrained(linear_case())


# ------------------------------------------------------------ files


def test_loaded_posterior_is_the_saved_one_bit_for_bit(posterior: Posterior, tmp_path: Path) -> None:
    again = pipeline.load_posterior(save(posterior, tmp_path / "posterior.safetensors"))
    assert isinstance(again, pipeline.Posterior)
    assert again.parameters == posterior.parameters == ("theta_1", "theta_2", "theta_3")
    assert again.case == posterior.case
    x = {"x": x_of(4)}
    streams = [torch.Generator().manual_seed(5) for _ in range(2)]
    theta, log_q = posterior.sample_and_log_prob((7,), x, generator=streams[0])
    theta_again, log_q_again = again.sample_and_log_prob((7,), x, generator=streams[1])
    assert torch.equal(theta, theta_again)
    assert torch.equal(log_q, log_q_again)
    assert torch.equal(posterior.log_prob(theta, x), again.log_prob(theta, x))


def test_a_users_simulator_is_run_only_where_a_config_names_it(tmp_path: Path) -> None:
    source = tmp_path / "box.py"
    source.write_text(USER_FILE)
    case = case_from_values({"simulator": {"name": "Box", "path": str(source)}, "train": TRAIN}, "test")
    path = save(untrained(case), tmp_path / "posterior.safetensors")
    marker = source.with_suffix(".executed")
    marker.unlink()
    with pytest.raises(
        InputError, match=r"its simulator is the file .*box\.py; give a config that names it \(--config\)"
    ):
        load_posterior(path)
    assert not marker.exists()
    assert load_posterior(path, case=case).parameters == ("a", "b")
    assert marker.exists()


def test_what_is_no_posterior_is_refused_in_one_line(posterior: Posterior, tmp_path: Path) -> None:
    path = tmp_path / "posterior.safetensors"
    with pytest.raises(InputError, match=r"no such file"):
        load_posterior(path)
    path.write_text("hello")
    with pytest.raises(InputError, match=r"not a safetensors file"):
        load_posterior(path)
    write_safetensors(path, {"weight": torch.ones(2)}, {"format": "pt"})
    with pytest.raises(InputError, match=r"not a posterior trained by Elboscope"):
        load_posterior(path)
    for change in ({"schema": "other"}, {"stage": "likelihood"}):
        with pytest.raises(InputError, match=r"not a posterior trained by Elboscope"):
            load_posterior(save(posterior, path, **change))


def test_another_simulator_is_refused(posterior: Posterior, tmp_path: Path) -> None:
    path = save(posterior, tmp_path / "posterior.safetensors")
    with pytest.raises(
        InputError, match=r"trained for parameters \[.*theta_3.*the simulator has \['theta_1', 'theta_2'\]"
    ):
        load_posterior(path, case=linear_case(dimension=2))


def test_weights_that_do_not_fit_are_refused(posterior: Posterior, tmp_path: Path) -> None:
    path = save(posterior, tmp_path / "posterior.safetensors")
    tensors, header = read_safetensors(path)
    del tensors["shift"]
    write_safetensors(path, tensors, header)
    with pytest.raises(InputError, match=r"weights do not fit its settings") as error:
        load_posterior(path)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------ x, draws, densities


def test_packed_x_is_the_mapping(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "planets": [{"period": 20.9, "conjunction": 2072.8, "logk": {"normal": [1.6, 1]}}],
        "jit": {"normal": [1.1, 0.5]},
        "design": {"points": 6, "baseline": 90, "start": 2364, "error": 1.7},
    }
    case = case_from_values({"simulator": {"name": "radial_velocity", "options": options}, "train": TRAIN}, "test")
    simulator = build_simulator(case.simulator)
    posterior = Posterior(
        case, simulator, new_network(case, simulator, 29)
    )  # 1 + 1 + 1 + 6, error bars, epochs, errors
    generator = torch.Generator().manual_seed(0)
    x = simulator.simulate(torch.ones(3, 2, dtype=torch.float64), generator=generator)
    assert [o.name for o in simulator.observables] == ["time", "velocity_error", "velocity"]
    packed = torch.cat([x["time"], x["velocity_error"].double(), x["velocity"]], 1)
    data = posterior.data(packed)
    assert all(torch.equal(data[name], values.double()) for name, values in x.items())
    with pytest.raises(ValueError, match=r"x: expected 18 numbers a row, got 17"):
        posterior.data(packed[:, :-1])
    assert posterior.data(packed[0])["velocity"].shape == (1, 6)
    assert posterior.data({"more": x["time"], **x}).keys() == x.keys()


def test_shapes_are_those_of_sbi(posterior: Posterior) -> None:
    x = x_of(4)
    theta, log_q = posterior.sample_and_log_prob((2, 3), x)
    assert theta.shape == (2, 3, 4, 3)
    assert log_q.shape == (2, 3, 4)
    assert theta.dtype == log_q.dtype == torch.float64
    assert posterior.sample_batched((6,), x=x, show_progress_bars=False).shape == (6, 4, 3)
    assert posterior.sample((6,), x=x[:1], show_progress_bars=False).shape == (6, 3)
    assert posterior.sample((6,), x=x[0]).shape == (6, 3)
    assert posterior.log_prob(theta, x).shape == (2, 3, 4)
    assert posterior.log_prob(theta[0, :, 0], x[:1]).shape == (3,)
    with pytest.raises(ValueError, match=r"sample takes one observation, got 4; use sample_batched"):
        posterior.sample((6,), x)
    assert not theta.requires_grad


def test_log_prob_is_that_of_the_draws(posterior: Posterior) -> None:
    x = x_of(4)
    theta, log_q = posterior.sample_and_log_prob((50,), x)
    torch.testing.assert_close(posterior.log_prob(theta, x), log_q, rtol=0, atol=1e-3)  # the flow is float32
    torch.testing.assert_close(posterior.log_prob(theta[:, 2], x[2:3]), log_q[:, 2], rtol=0, atol=1e-3)


def test_points_go_through_the_flow_in_blocks(posterior: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    x = x_of(3)
    theta, log_q = posterior.sample_and_log_prob((7, 2), x)
    largest = []
    to_noise = posterior.network.flow.to_noise

    def watched(u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        largest.append(u[..., 0].numel())
        return to_noise(u, context)

    monkeypatch.setattr(posterior.network.flow, "to_noise", watched)
    for module in ("network", "posterior"):
        monkeypatch.setattr(f"pipeline.estimators.{module}.BLOCK", 12)
    torch.testing.assert_close(posterior.log_prob(theta, x), log_q, rtol=0, atol=1e-3)
    assert max(largest) == 12
    assert len(largest) == 4
    again, log_q = posterior.sample_and_log_prob((7, 2), x)
    torch.testing.assert_close(posterior.log_prob(again, x), log_q, rtol=0, atol=1e-3)
    assert posterior.sample_and_log_prob((0,), x)[0].shape == (0, 3, again.shape[-1])


def test_torchs_global_generator_is_used_unless_one_is_given(posterior: Posterior) -> None:
    x = x_of(2)
    torch.manual_seed(1)
    one = posterior.sample_batched((5,), x)
    torch.manual_seed(1)
    again, next_draws = posterior.sample_batched((5,), x), posterior.sample_batched((5,), x)
    assert torch.equal(one, again)
    assert not torch.equal(one, next_draws)
    given, same = (
        posterior.sample_and_log_prob((5,), x, generator=torch.Generator().manual_seed(2))[0] for _ in range(2)
    )
    assert torch.equal(given, same)


def test_density_outside_the_prior_is_zero(tmp_path: Path) -> None:
    source = tmp_path / "box.py"
    source.write_text(USER_FILE)
    box = untrained(case_from_values({"simulator": {"name": "Box", "path": str(source)}, "train": TRAIN}, "test"))
    theta = torch.tensor([[1.0, 0.0], [2.5, 0.0], [1.0, -1.5], [-0.1, 3.0]], dtype=torch.float64)
    assert box.log_prob(theta, x_of(1, 2)).isfinite().tolist() == [True, False, False, False]
    assert bool((box.log_prob(theta, x_of(1, 2))[1:] == -torch.inf).all())
    draws = box.sample((2000,), x_of(1, 2))
    assert bool((draws > torch.tensor([0.0, -1.0])).all())
    assert bool((draws < torch.tensor([2.0, 1.0])).all())


# ------------------------------------------------------------ certificate and calibration


def gaussian_posterior(case: Any) -> Posterior:
    return Posterior(linear_case(dimension=case.simulator.dimension), case.simulator, case.network)


def test_certificate_is_of_q_itself(make_gaussian: MakeGaussian) -> None:
    exact = make_gaussian(dimension=2)
    figures = gaussian_posterior(exact).certificate(exact.x, proposals=200)
    torch.testing.assert_close(figures.log_evidence, exact.log_evidence, rtol=0, atol=1e-8)
    torch.testing.assert_close(figures.kl_gap, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-8)
    wrong = make_gaussian(dimension=2, shift=0.5)
    posterior = gaussian_posterior(wrong)
    figures = posterior.certificate(wrong.x, proposals=4000, seed=1)
    assert float((figures.kl_gap - wrong.kl).abs().max()) < 0.06
    assert torch.equal(posterior.certificate(wrong.x["x"], proposals=4000, seed=1).elbo, figures.elbo)
    assert not torch.equal(posterior.certificate(wrong.x, proposals=4000, seed=2).elbo, figures.elbo)


@pytest.mark.parametrize(("scale", "calibrated"), [(1.0, True), (0.5, False)])
def test_sbi_takes_it_for_a_posterior(make_gaussian: MakeGaussian, scale: float, calibrated: bool) -> None:
    """run_sbc and run_tarp of sbi: the exact posterior has uniform ranks, an overconfident one has not."""
    posterior = gaussian_posterior(make_gaussian(dimension=2, scale=scale))
    assert isinstance(posterior.simulator, LinearGaussian)
    theta = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x = posterior.simulator.simulate(theta, generator=torch.Generator().manual_seed(5))["x"]
    torch.manual_seed(6)
    ranks, draws = run_sbc(theta, x, posterior, num_posterior_samples=199, show_progress_bar=False)  # pyright: ignore[reportArgumentType]
    assert draws.shape == (400, 2)
    counts = torch.stack([torch.histc(r.float(), 10, 0, 200) for r in ranks.T])
    chi2 = float(((counts - 40).square() / 40).sum())  # 18 degrees of freedom
    assert (chi2 < 18 + 5 * 6) is calibrated
    coverage, alpha = run_tarp(theta, x, posterior, num_posterior_samples=199, show_progress_bar=False)  # pyright: ignore[reportArgumentType]
    assert coverage.shape == alpha.shape


def test_a_file_without_bounds_is_refused_in_one_line(tmp_path: Path, posterior: Posterior) -> None:
    """As files of earlier versions are, whose features were cast to float32 first."""
    path = save(posterior, tmp_path / "posterior.safetensors")
    tensors, header = read_safetensors(path)
    old = {k: v for k, v in tensors.items() if k not in ("embedding.standardize.low", "embedding.standardize.high")}
    write_safetensors(path, old, header)
    with pytest.raises(InputError, match=r"posterior.safetensors: trained by an earlier version.*train it again"):
        load_posterior(path)


def test_numbers_far_outside_training_are_counted(posterior: Posterior) -> None:
    x = x_of(500)
    zero = torch.zeros(500, posterior.network.dimension, dtype=torch.float64)
    posterior.network.standardize(zero + torch.randn_like(zero), NetworkInput(x, zero, zero + 1))
    x[1, 0], x[2, :3] = 1e5, -1e5
    assert posterior.held(x)[:4].tolist() == [0, 1, 3, 0]
    assert int(posterior.held(x)[4:].sum()) == 0
    theta = posterior.sample((200,), x[1])
    assert bool(theta.isfinite().all())
