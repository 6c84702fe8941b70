from __future__ import annotations

from pathlib import Path

import arviz
import h5py
import numpy as np
import pytest
import torch

from pipeline.diagnostics.c2st import c2st
from pipeline.errors import InputError
from pipeline.schema import CERTIFICATE, VERDICTS
from pipeline.settings import CaseSettings
from pipeline.stages.infer import infer, infer_observations
from pipeline.stages.run import Run
from pipeline.store import hdf5_content_digest, read_data, write_data
from simulators.linear_gaussian import LinearGaussian

ORACLE = LinearGaussian()


@pytest.fixture(scope="module")
def inferred(trained: Run) -> Path:
    return infer(trained)


def test_evidence_and_gap_of_the_oracle(trained: Run, inferred: Path) -> None:
    """log evidence to its stated error, itself below 2e-3, and kl_gap below 0.01, as the amortized q alone gives them."""
    data = trained.observation()
    with h5py.File(inferred) as file:
        c = file["certificate"]
        exact = ORACLE.log_evidence(data.x["x"]).numpy()
        assert c["log_evidence_error"][:].max() < 2e-3
        assert (np.abs(c["log_evidence"][:] - exact) < 4 * c["log_evidence_error"][:]).all()
        assert c["kl_gap"][:].max() < 0.01
        assert c["kl_gap"][:].min() > -1e-3
        np.testing.assert_allclose(c["elbo"][:], c["reconstruction"][:] - c["regularization"][:], rtol=1e-12)
        np.testing.assert_allclose(c["kl_gap"][:], c["log_evidence"][:] - c["elbo"][:], atol=1e-12)
        assert [v.decode() for v in c["verdict"][:]] == ["exact", "exact"]


def test_delivered_draws_are_the_posterior(trained: Run, inferred: Path) -> None:
    data = trained.observation()
    draws = arviz.from_netcdf(inferred)["posterior"].to_array().sel(observation="first").values[:, 0].T  # (S, D)
    exact = ORACLE.posterior(data.x["x"][:1])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        reference = exact.sample((len(draws),))[:, 0].numpy()
    score = c2st(reference, draws)
    # two sets of 2,000: accuracy of a coin has standard deviation 0.008
    assert score < 0.525
    np.testing.assert_allclose(draws.mean(0), exact.mean[0].numpy(), atol=5 * reference.std() / np.sqrt(len(draws)))


def test_files_open_with_arviz_and_h5py(inferred: Path) -> None:
    result = arviz.from_netcdf(inferred)
    assert {"posterior", "observed_data"} <= set(result.groups())
    assert result["posterior"]["theta_1"].dims == ("chain", "draw", "observation")
    assert list(result["posterior"]["observation"].values) == ["first", "second"]
    assert arviz.summary(result, round_to=3).shape[0] == 6
    with h5py.File(inferred) as file:
        assert set(file["certificate"]) >= {*CERTIFICATE, "verdict"}
        proposal = file["proposal"]
        np.testing.assert_allclose(
            proposal["log_weight"][:], proposal["log_joint"][:] - proposal["log_q"][:], rtol=1e-12
        )
        assert file["posterior/theta_1"].shape == (1, 2_000, 2)
        assert file["posterior/theta_1"].fletcher32


def test_refinement_is_used_when_asked_for(trained: Run) -> None:
    case = trained.case.model_copy(
        update={
            "infer": trained.case.infer.model_copy(
                update={"refine": trained.case.infer.refine.model_copy(update={"when": "always"})}
            )
        }
    )
    run = Run(case, trained.folder)
    settings = case.infer
    output = trained.folder / "refined.h5"
    assert run.case.observation is not None
    infer_observations(
        trained.output("train"),
        run.case.observation,
        output,
        settings=settings,
        case=None,
        seed=1,
        device=torch.device("cpu"),
    )
    exact = ORACLE.log_evidence(trained.observation().x["x"]).numpy()
    with h5py.File(output) as file:
        c = file["certificate"]
        assert [v.decode() for v in c["verdict"][:]] == ["refined", "refined"]
        assert (c["ess_fraction"][:] > 0.98).all()
        assert (np.abs(c["log_evidence"][:] - exact) < 4 * c["log_evidence_error"][:] + 1e-6).all()
        # the amortized rung is kept beside it, and is another estimate
        assert (c["amortized_log_evidence"][:] != c["log_evidence"][:]).all()


def test_same_seed_same_content(trained: Run, inferred: Path, tmp_path: Path) -> None:
    assert trained.case.observation is not None
    outputs = []
    for name, seed in (("a.h5", 1), ("b.h5", 1), ("c.h5", 2)):
        outputs.append(tmp_path / name)
        infer_observations(
            trained.output("train"),
            trained.case.observation,
            outputs[-1],
            settings=trained.case.infer,
            case=None,
            seed=seed,
            device=torch.device("cpu"),
        )
    a, b, c = (hdf5_content_digest(o) for o in outputs)
    assert a == b
    assert a != c


def test_bad_observations_are_refused(trained: Run, tmp_path: Path) -> None:
    settings, device = trained.case.infer, torch.device("cpu")
    data = read_data(trained.case.observation, observables=ORACLE.observables)  # pyright: ignore[reportArgumentType]
    wrong = {"x": data.x["x"].clone()}
    wrong["x"][0, 2] = torch.nan
    path, output = tmp_path / "nan.h5", tmp_path / "out.h5"
    write_data(path, observables=ORACLE.observables, x=wrong, ids=["a", "b"])
    with pytest.raises(InputError, match="1 of 10 values are NaN"):
        infer_observations(trained.output("train"), path, output, settings=settings, case=None, seed=1, device=device)
    with pytest.raises(InputError, match="no such file"):
        infer_observations(
            trained.output("train"), tmp_path / "none.h5", output, settings=settings, case=None, seed=1, device=device
        )
    assert not output.exists()
    output.write_text("mine")
    with pytest.raises(InputError, match="not written by `elboscope infer`"):
        infer_observations(
            trained.output("train"),
            trained.case.observation,
            output,
            settings=settings,
            case=None,
            seed=1,
            device=device,
        )  # pyright: ignore
    assert output.read_text() == "mine"


def test_every_verdict_is_explained(case: CaseSettings) -> None:
    assert set(VERDICTS) == {"exact", "corrected", "refined", "sampled", "failed"}
