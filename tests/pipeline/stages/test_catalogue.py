"""Catalogues: parts make the same file as one piece, a killed run continues, and bad rows are found before anything runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import arviz
import h5py
import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.interrupt import Interrupted, handle_signals
from pipeline.settings import InferSettings, RefineSettings
from pipeline.stages import infer as infer_stage
from pipeline.stages.catalogue import open_catalogue
from pipeline.stages.infer import infer_observations, rows_of_a_part
from pipeline.stages.run import Run
from pipeline.store import hdf5_content_digest, write_data
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import prior_of, sample

ORACLE = LinearGaussian()
COUNT = 23
# five rows a part; the amortized q of the fixture is good enough for every row
SETTINGS = InferSettings(draws=100, memory_gb=4 * 8 * 6 * 1_000 * 5 / 1e9, refine=RefineSettings(when="never"))


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stars") / "stars.h5"
    stream = torch.Generator().manual_seed(5)
    x = ORACLE.simulate(sample(prior_of(ORACLE), COUNT, stream), generator=stream)
    write_data(path, observables=ORACLE.observables, x=x, ids=[f"star {n}" for n in range(COUNT)])
    return path


def inferred(trained: Run, stars: Path, output: Path, settings: InferSettings = SETTINGS) -> Path:
    return infer_observations(
        trained.output("train"), stars, output, settings=settings, case=None, seed=1, device=torch.device("cpu")
    )


def test_the_memory_bound_decides_the_parts() -> None:
    assert rows_of_a_part(SETTINGS, 3) == 5
    assert rows_of_a_part(SETTINGS.model_copy(update={"memory_gb": 1e-6}), 3) == 1
    assert rows_of_a_part(SETTINGS.model_copy(update={"memory_gb": 100.0}), 3) == infer_stage.MOST_ROWS


def test_parts_make_one_file_with_every_row_in_place(trained: Run, stars: Path, tmp_path: Path) -> None:
    output = inferred(trained, stars, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5.parts").exists()
    data = open_catalogue(ORACLE, stars).read(0, COUNT)
    with h5py.File(output) as file:
        certificate: Any = file["certificate"]
        assert certificate["observation"].asstr()[:].tolist() == list(data.ids)
        deviation = certificate["log_evidence"][:] - ORACLE.log_evidence(data.x["x"]).numpy()
        assert np.abs(deviation / certificate["log_evidence_error"][:]).max() < 5
        np.testing.assert_array_equal(file["observed_data/x"][:], data.x["x"].numpy())  # pyright: ignore
        assert file["posterior/theta_1"].shape == (1, 100, COUNT)  # pyright: ignore
        mean = np.stack([file[f"posterior/theta_{d + 1}"][0].mean(0) for d in range(3)], 1)  # pyright: ignore
    exact = ORACLE.posterior(data.x["x"])
    z = (mean - exact.mean.numpy()) / exact.stddev.numpy() * np.sqrt(100)
    assert np.abs(z).max() < 5
    result = arviz.from_netcdf(output)
    assert result["posterior"].sizes == {"chain": 1, "draw": 100, "observation": COUNT}
    assert np.isfinite(result["posterior"]["theta_1"]).all()


def test_proposals_of_parts_are_padded(trained: Run, stars: Path, tmp_path: Path) -> None:
    """Where weights are nearly equal few draws are made, and other rows have all of them."""
    with h5py.File(inferred(trained, stars, tmp_path / "first.h5")) as file:
        ess: Any = file["certificate/amortized_ess_fraction"]
        settings = SETTINGS.model_copy(update={"equal_ess_fraction": float(np.median(ess[:]))})
    output = inferred(trained, stars, tmp_path / "out.h5", settings)
    with h5py.File(output) as file:
        made: Any = file["certificate/proposals"]
        log_q: Any = file["proposal/log_q"]
        counts = np.isfinite(log_q[:]).sum(0)
        np.testing.assert_array_equal(counts, made[:])
        assert set(counts) == {200, 1_000}


def test_a_killed_run_continues_with_the_part_that_is_missing(
    trained: Run, stars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = inferred(trained, stars, tmp_path / "whole.h5")
    original, starts = infer_stage.climb_all, []

    def climb_all(*arguments: Any, index: int, **options: Any) -> Any:
        starts.append(index)
        if len(starts) == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, index=index, **options)

    monkeypatch.setattr(infer_stage, "climb_all", climb_all)
    output = tmp_path / "out.h5"
    with pytest.raises(Interrupted), handle_signals():
        inferred(trained, stars, output)
    assert not output.exists()
    done = sorted(p.name for p in (tmp_path / "out.h5.parts").iterdir())
    inferred(trained, stars, output)
    assert starts[:3] == [0, 5, 10]
    assert starts[3:] == [5 * n for n in range(len(done), 5)]
    assert hdf5_content_digest(output) == hdf5_content_digest(whole)


def test_a_bad_row_is_found_before_anything_runs(trained: Run, tmp_path: Path) -> None:
    x = torch.zeros(COUNT, 5, dtype=torch.float64)
    x[20, 1] = torch.nan
    write_data(tmp_path / "nan.h5", observables=ORACLE.observables, x={"x": x})
    with pytest.raises(InputError, match="values are NaN"):
        inferred(trained, tmp_path / "nan.h5", tmp_path / "out.h5")
    write_data(tmp_path / "twice.h5", observables=ORACLE.observables, x={"x": torch.zeros(3, 5)}, ids=["a", "b", "a"])
    with pytest.raises(InputError, match="'a' stands for more than one row"):
        inferred(trained, tmp_path / "twice.h5", tmp_path / "out.h5")
    assert not list(tmp_path.glob("out*"))
