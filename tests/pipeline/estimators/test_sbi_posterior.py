"""NPE networks of sbi, weighed by our likelihood: evidence in closed form, files, leakage, refusals."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from sbi.inference import NLE, NPE
from sbi.neural_nets import posterior_nn
from torch import Tensor
from torch.distributions import Uniform
from typer.testing import CliRunner

import pipeline
from pipeline.cli import app
from pipeline.config import case_from_values
from pipeline.errors import InputError
from pipeline.estimators.sbi_network import ARCHITECTURE
from pipeline.store import read_safetensors, write_data, write_safetensors
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import distribution_from_spec, prior_of, sample
from simulators.protocol import Parameter

CASE = case_from_values({"name": "test", "simulator": {"name": "linear_gaussian"}}, "test")
STATED: dict[str, Any] = {"model": "mdn", "hidden_features": 20, "num_components": 1}


def pairs(simulator: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    theta = sample(prior_of(simulator), count, stream)
    return theta, simulator.simulate(theta, generator=stream)["x"]


@pytest.fixture(scope="module")
def npe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """NPE of sbi on the linear Gaussian model: one Gaussian, which its posterior is."""
    theta, x = pairs(LinearGaussian(), 1_500, 1)
    with torch.random.fork_rng(), warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sbi"))  # where sbi's trainers write their logs
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        build = posterior_nn(**STATED)
        inference = NPE(prior=prior_of(LinearGaussian()), density_estimator=build, show_progress_bars=False)
        inference.append_simulations(theta.float(), x.float())
        inference.train(training_batch_size=250, learning_rate=1e-2, max_num_epochs=30)
        return inference.build_posterior()


def test_certificate_finds_the_evidence_in_closed_form(npe: Any) -> None:
    _, x = pairs(LinearGaussian(), 20, 2)
    found = pipeline.from_sbi(npe, LinearGaussian()).certificate(x, proposals=4_000)
    exact = LinearGaussian().log_evidence(x)
    assert float(found.ess_fraction.min()) > 0.05
    # the delta method is out of its depth in the tails of 20 trials: 5 errors, and on average no bias
    assert float(((found.log_evidence - exact) / found.log_evidence_error).abs().max()) < 5
    assert bool((found.elbo < exact).all())  # a bound
    assert bool((found.refused == 0).all())


def test_density_is_sbis_own(npe: Any) -> None:
    theta, x = pairs(LinearGaussian(), 5, 3)
    q = pipeline.from_sbi(npe, CASE)
    given = npe.posterior_estimator.log_prob(theta.float()[None], x.float())[0].double()
    torch.testing.assert_close(q.log_prob(theta, x), given, rtol=0, atol=1e-6)
    estimator = pipeline.from_sbi(npe.posterior_estimator, LinearGaussian())
    assert torch.equal(estimator.log_prob(theta, x), q.log_prob(theta, x))
    assert any(p.requires_grad for p in npe.posterior_estimator.parameters())  # the user's own is left alone


def test_file_gives_the_same_draws_and_densities(npe: Any, tmp_path: Path) -> None:
    path = pipeline.save_sbi(npe, tmp_path / "npe.safetensors", CASE, **STATED)
    again, q = pipeline.load_posterior(path), pipeline.from_sbi(npe, CASE)
    _, x = pairs(LinearGaussian(), 4, 4)
    streams = [torch.Generator().manual_seed(5) for _ in range(2)]
    (theta, log_q), (theta_again, log_q_again) = (
        p.sample_and_log_prob((30,), x, generator=s) for p, s in zip((q, again), streams, strict=True)
    )
    assert torch.equal(theta, theta_again)
    assert torch.equal(log_q, log_q_again)
    assert json.loads(read_safetensors(path)[1][ARCHITECTURE])["model"] == "mdn"
    with pytest.raises(InputError, match=r"written by pipeline.save_sbi"):
        again.save(tmp_path / "other.safetensors", attributes={})


def test_infer_command_takes_the_file(npe: Any, tmp_path: Path) -> None:
    path = pipeline.save_sbi(npe, tmp_path / "npe.safetensors", CASE, **STATED)
    simulator = LinearGaussian()
    _, x = pairs(simulator, 3, 6)
    write_data(tmp_path / "observations.h5", observables=simulator.observables, x={"x": x}, ids=["a", "b", "c"])
    output = tmp_path / "inference.h5"
    given = ["infer", str(path), str(tmp_path / "observations.h5"), "--out", str(output), "--draws", "400"]
    result = CliRunner().invoke(app, [*given, "--no-refine"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with h5py.File(output) as file:
        certificate: Any = file["certificate"]
        found, error = (torch.from_numpy(certificate[k][()]) for k in ("log_evidence", "log_evidence_error"))
        verdicts = {v.decode() for v in certificate["verdict"][()]}
    assert float(((found - simulator.log_evidence(x)) / error).abs().max()) < 5
    assert verdicts <= {"exact", "corrected", "sampled"}


# ------------------------------------------------------------ leakage


class Boxed(LinearGaussian):
    """A uniform prior, narrower than what the data leave open."""

    def __init__(self) -> None:
        super().__init__(dimension=1, size=2, noise_scale=1.0)
        low, high = (torch.tensor(v, dtype=torch.float64) for v in (-1.0, 1.0))
        self.parameters = (Parameter("theta_1", Uniform(low, high, validate_args=False)),)


def test_draws_outside_the_prior_are_counted_and_weigh_nothing(npe: Any) -> None:
    """q of a Gaussian prior, weighed under a uniform one: its density stays whole, and the evidence right."""
    simulator = Boxed()
    wide = LinearGaussian(dimension=1, size=2, noise_scale=1.0)
    theta, x = pairs(wide, 1_000, 7)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        estimator = posterior_nn("mdn", num_components=1, hidden_features=10)(theta.float(), x.float())
    q = pipeline.from_sbi(estimator, simulator)
    x = torch.tensor([[0.3, -0.2], [1.5, 0.4]], dtype=torch.float64)
    proposals = 20_000
    found = q.certificate(x, proposals=proposals)
    draws, log_q = q.sample_and_log_prob((proposals,), x, generator=torch.Generator().manual_seed(0))
    outside = (draws[..., 0].abs() > 1).sum(0)
    assert torch.equal(found.refused, outside)  # the same seed, the same draws
    assert bool((outside > 1_000).all())
    grid = torch.linspace(-1, 1, 4_001, dtype=torch.float64)[:, None, None].expand(-1, 2, 1)
    exact = (
        torch.trapezoid(simulator.log_likelihood(grid, {"x": x}).exp(), grid[..., 0], dim=0).log()
        - torch.tensor(2.0).log()
    )
    assert float(((found.log_evidence - exact) / found.log_evidence_error).abs().max()) < 4
    inside = draws[:, 0, 0].abs() <= 1
    density = q.log_prob(draws[:, 0], x[:1])
    assert torch.equal(density == -torch.inf, ~inside)
    torch.testing.assert_close(density[inside], log_q[inside, 0], rtol=0, atol=1e-5)  # not divided by the share inside


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_features": 21}, r"weights do not fit what was stated \(size mismatch"),
        ({"z_score_x": "none"}, r"weights do not fit what was stated"),
        ({"embedding": {}}, r"weights do not fit what was stated"),
        ({"model": "maf"}, r"weights do not fit what was stated"),
        ({"model": "tabpfn"}, r"model: Input should be"),
    ],
)
def test_a_network_that_is_not_what_was_stated_is_not_saved(
    npe: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "npe.safetensors"
    with pytest.raises(InputError, match=message):
        pipeline.save_sbi(npe, path, CASE, **(STATED | change))
    assert not path.exists()


def test_what_leaves_no_trace_in_the_weights_is_seen_in_the_density(tmp_path: Path) -> None:
    theta, x = pairs(LinearGaussian(), 200, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        estimator = posterior_nn("nsf", hidden_features=10, num_transforms=2)(3 * theta.float(), x.float())
        with torch.no_grad():
            for parameter in estimator.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    stated: dict[str, Any] = {"model": "nsf", "hidden_features": 10, "num_transforms": 2}
    with pytest.raises(InputError, match=r"gives another log_q .* such as tail_bound"):
        pipeline.save_sbi(estimator, tmp_path / "q.safetensors", CASE, tail_bound=4.0, **stated)
    pipeline.save_sbi(estimator, tmp_path / "q.safetensors", CASE, tail_bound=3.0, **stated)


def test_other_posteriors_and_sizes_are_refused(npe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"expected a DirectPosterior of NPE or its density estimator, got NLE"):
        pipeline.from_sbi(NLE(prior=prior_of(LinearGaussian())), LinearGaussian())  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"has 3 parameters, simulator 'linear_gaussian' has 2"):
        pipeline.from_sbi(npe, LinearGaussian(dimension=2))
    with pytest.raises(InputError, match=r"gives 6 numbers of x"):
        pipeline.from_sbi(npe, LinearGaussian(size=6))
    with pytest.raises(InputError, match=r"ends in .safetensors"):
        pipeline.save_sbi(npe, tmp_path / "npe.pt", CASE, **STATED)


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_a_foreign_or_damaged_file_is_refused_and_nothing_runs(npe: Any, tmp_path: Path) -> None:
    path, marker = tmp_path / "npe.safetensors", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(InputError, match=r"not a safetensors file"):
        pipeline.load_posterior(path)
    assert not marker.exists()
    tensors, header = read_safetensors(pipeline.save_sbi(npe, path, CASE, **STATED))
    stated = json.loads(header[ARCHITECTURE])
    for text, message in (
        ("[]", r"expected JSON of how its sbi network was built"),
        ("{", r"expected JSON of how its sbi network was built"),
        (json.dumps(stated | {"model": "__import__('os')"}), r"sbi network: model: Input should be"),
        (json.dumps(stated | {"hidden_features": 10**9}), r"sbi network: hidden_features"),
        (json.dumps(stated | {"hidden_features": 8}), r"weights do not fit its settings"),
    ):
        write_safetensors(path, tensors, header | {ARCHITECTURE: text})
        with pytest.raises(InputError, match=message):
            pipeline.load_posterior(path)
    name = next(iter(tensors))
    write_safetensors(path, {k: v for k, v in tensors.items() if k != name}, header)
    with pytest.raises(InputError, match=r"weights do not fit its settings"):
        pipeline.load_posterior(path)


def test_a_parameter_that_float32_cannot_resolve_is_refused_in_one_line(npe: Any) -> None:
    simulator = LinearGaussian()
    days = distribution_from_spec({"uniform": [2_457_000, 2_457_001]})
    simulator.parameters = (Parameter("t0", days), *simulator.parameters[1:])
    with pytest.raises(InputError, match=r"float32, which has .* steps in the width of 't0'"):
        pipeline.from_sbi(npe, simulator)
