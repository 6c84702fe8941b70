from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages.run import Run, need_same_settings
from pipeline.stages.shard import Shard, make_shard, shard_key
from pipeline.stages.simulate import simulate
from pipeline.store import hdf5_content_digest, read_data
from simulators.linear_gaussian import LinearGaussian
from tests.pipeline.stages.conftest import write_case


def test_rows_follow_the_model(trained: Run) -> None:
    simulator = LinearGaussian()
    data = read_data(trained.output("simulate"), observables=simulator.observables, parameters=simulator.parameters)
    assert data.theta is not None
    assert len(data) == 9_000
    residual = (data.x["x"] - simulator.mean(data.theta)) / simulator.noise_scale
    assert abs(float(residual.mean())) < 5 / np.sqrt(residual.numel())
    assert float(residual.std()) == pytest.approx(1, abs=0.02)
    assert float(data.theta.std()) == pytest.approx(1, abs=0.03)
    assert len(torch.unique(data.theta[:, 0])) == 9_000  # no row twice, in no shard


def test_a_missing_shard_is_made_again_with_the_same_content(tmp_path: Path) -> None:
    run = Run(load_case(write_case(tmp_path)), tmp_path / "run")
    output = simulate(run)
    shard = run.folder / "simulations" / "shard-00001.h5"
    before, time = hdf5_content_digest(shard), (run.folder / "simulations" / "shard-00000.h5").stat().st_mtime_ns
    shard.unlink()
    output.unlink()
    simulate(run)
    assert hdf5_content_digest(shard) == before
    assert (run.folder / "simulations" / "shard-00000.h5").stat().st_mtime_ns == time


def test_another_seed_replaces_everything(tmp_path: Path) -> None:
    path = write_case(tmp_path)
    first = hdf5_content_digest(simulate(Run(load_case(path), tmp_path / "run")))
    second = hdf5_content_digest(simulate(Run(load_case(path, ["seed=4"]), tmp_path / "run")))
    assert first != second


def test_other_settings_that_were_stopped_leave_no_mixture(tmp_path: Path) -> None:
    path = write_case(tmp_path)
    run, other = (Run(load_case(path, [f"seed={seed}"]), tmp_path / "run") for seed in (3, 4))
    before = hdf5_content_digest(simulate(run))
    make_shard(other, Shard(0, 3_000), shard_key(other), advance=lambda rows: None)
    assert not run.output("simulate").exists()  # it would show rows of both
    assert hdf5_content_digest(simulate(run)) == before


def test_a_lost_shard_is_made_again_by_simulate(tmp_path: Path) -> None:
    run = Run(load_case(write_case(tmp_path)), tmp_path / "run")
    before = hdf5_content_digest(simulate(run))
    (run.folder / "simulations" / "shard-00002.h5").unlink()
    assert hdf5_content_digest(simulate(run)) == before


def test_another_proposal_than_that_of_the_simulations_is_refused(tmp_path: Path) -> None:
    path = write_case(tmp_path)
    simulations = simulate(Run(load_case(path), tmp_path / "run"))
    other = Run(load_case(path, ["simulate.proposal={theta_1: {normal: [0, 2]}}"]), tmp_path / "run")
    with pytest.raises(InputError, match="elboscope simulate"):
        need_same_settings(other, simulations, "simulate")


def test_up_to_date_is_said_and_nothing_is_written(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained.output("simulate").stat().st_mtime_ns
    simulate(trained)
    assert "up to date" in capsys.readouterr().err
    assert trained.output("simulate").stat().st_mtime_ns == before


def test_a_flipped_bit_in_a_shard_is_found(tmp_path: Path) -> None:
    run = Run(load_case(write_case(tmp_path)), tmp_path / "run")
    output = simulate(run)
    shard = run.folder / "simulations" / "shard-00000.h5"
    with h5py.File(shard) as file:
        offset = file["x/x"].id.get_chunk_info(0).byte_offset
    raw = bytearray(shard.read_bytes())
    raw[offset + 3] ^= 1
    shard.write_bytes(raw)
    simulator = LinearGaussian()
    with pytest.raises(InputError, match="checksum"):
        read_data(output, observables=simulator.observables)


def test_a_lost_shard_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    run = Run(load_case(write_case(tmp_path)), tmp_path / "run")
    output = simulate(run)
    (run.folder / "simulations" / "shard-00002.h5").unlink()
    with pytest.raises(InputError, match="shard-00002"):
        read_data(output, observables=LinearGaussian().observables)


def test_nan_from_a_simulator_is_named(tmp_path: Path) -> None:
    source = tmp_path / "broken.py"
    source.write_text(
        "import torch\nfrom simulators.linear_gaussian import LinearGaussian\n\n\n"
        "class Broken(LinearGaussian):\n"
        "    def simulate(self, theta, context=None, *, generator):\n"
        "        x = super().simulate(theta, context, generator=generator)\n"
        "        x['x'][7] = torch.nan\n        return x\n"
    )
    path = write_case(tmp_path, {"simulator": {"name": "Broken", "path": "broken.py"}})
    with pytest.raises(InputError, match=r"1 of 3000 simulations have NaN .* theta = \("):
        simulate(Run(load_case(path), tmp_path / "run"))
    assert not (tmp_path / "run" / "simulations.h5").exists()
