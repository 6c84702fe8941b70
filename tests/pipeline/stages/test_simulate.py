from __future__ import annotations

import shutil
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
from pipeline.stages.train import load_simulations
from pipeline.stages.validate import held_out_simulations
from pipeline.store import hdf5_content_digest, open_hdf5, read_data, read_key
from simulators.failures import FailureCode
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


FAILING = """
import torch
from simulators.linear_gaussian import LinearGaussian


class Failing(LinearGaussian):
    batch = 250

    def __init__(self, *, below: float = -2.0, **options):
        super().__init__(**options)
        self.below = below

    def simulate(self, theta, context=None, *, generator):
        x = super().simulate(theta, context, generator=generator)
        return {"x": torch.where(theta[:, :1] < self.below, torch.nan, x["x"])}
"""


def failing_case(folder: Path, **options: float) -> Path:
    """A simulator whose x is NaN where theta_1 < below: 2.3 % of the prior by default."""
    (folder / "failing.py").write_text(FAILING, encoding="utf-8")
    simulator = {"name": "Failing", "path": "failing.py", "options": options}
    return write_case(folder, {"simulator": simulator, "simulate": {"count": 1_900, "held_out": 100, "shard": 500}})


def test_failed_simulations_are_kept_marked_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(load_case(failing_case(tmp_path)), tmp_path / "run")
    output = simulate(run)
    data = read_data(output, observables=run.simulator.observables, parameters=run.simulator.parameters)
    assert data.theta is not None
    assert data.failed is not None
    failed = data.theta[:, 0] < -2
    assert 10 < int(failed.sum()) < 100
    assert torch.equal(data.failed, torch.where(failed, FailureCode.NOT_FINITE, 0).to(torch.uint8))
    assert bool(data.x["x"][failed].isnan().all())
    assert len(data.without_failed()) == 2_000 - int(failed.sum())
    assert bool(data.without_failed().x["x"].isfinite().all())
    with open_hdf5(output) as file:
        assert file.attrs["failed_count"] == int(failed.sum())
    assert (
        f"{int(failed.sum())} of 2000 simulations failed ({int(failed.sum())} NaN or infinite)"
        in capsys.readouterr().err
    )
    held_out, training = load_simulations(run, run.model)
    assert len(held_out) + len(training) == 2_000 - int(failed.sum())
    assert f"{int(failed[100:].sum())} of 1900 training simulations failed" in capsys.readouterr().err


def test_failed_simulations_are_left_out_of_validation(tmp_path: Path) -> None:
    run = Run(load_case(failing_case(tmp_path), ["validate.simulations=100"]), tmp_path / "run")
    output = simulate(run)
    data = read_data(output, observables=run.simulator.observables, parameters=run.simulator.parameters)
    assert data.failed is not None
    held_out = held_out_simulations(run)
    assert len(held_out) == 100 - int((data.failed[:100] != 0).sum()) < 100
    assert bool(held_out.x["x"].isfinite().all())


def test_too_many_failures_are_refused_with_the_first_reason(tmp_path: Path) -> None:
    run = Run(load_case(failing_case(tmp_path, below=0.5)), tmp_path / "run")
    with pytest.raises(InputError, match=r"of 500 simulations failed, .* x is NaN or infinite, at theta = \("):
        simulate(run)
    assert not run.output("simulate").exists()


def test_a_few_too_many_are_refused_in_the_end_and_a_higher_limit_takes_them(tmp_path: Path) -> None:
    path = failing_case(tmp_path)
    few = Run(load_case(path, ["simulate.most_failed=0.015"]), tmp_path / "run")
    with pytest.raises(InputError, match="of 2000 simulations failed"):
        simulate(few)
    before = [p.stat().st_mtime_ns for p in shard_files(few)]
    simulate(Run(load_case(path), tmp_path / "run"))
    assert [p.stat().st_mtime_ns for p in shard_files(few)] == before


# ------------------------------------------------------------ parts, workers, additions


def shard_files(run: Run) -> list[Path]:
    return sorted((run.folder / "simulations").glob("shard-*.h5"))


def small(folder: Path, *overrides: str, name: str = "run") -> Run:
    path = write_case(folder, {"simulate": {"count": 1_900, "held_out": 100, "shard": 300}})
    return Run(load_case(path, list(overrides)), folder / name)


def test_parts_in_any_order_give_the_same_file(tmp_path: Path) -> None:
    whole, parts = small(tmp_path, name="whole"), small(tmp_path, name="parts")
    simulate(whole)
    for i in (2, 0):
        simulate(parts, part=(i, 3))
        assert not parts.output("simulate").exists()
    with pytest.raises(InputError, match=r"2 of 7 shards are missing .*shard-00001.h5, shard-00004.h5"):
        simulate(parts, merge=True)
    simulate(parts, part=(1, 3))
    simulate(parts, merge=True)
    assert hdf5_content_digest(parts.output("simulate")) == hdf5_content_digest(whole.output("simulate"))
    assert [hdf5_content_digest(p) for p in shard_files(parts)] == [hdf5_content_digest(p) for p in shard_files(whole)]


def test_workers_and_batches_of_one_process_give_the_same_content(tmp_path: Path) -> None:
    path = failing_case(tmp_path)
    one, two = (Run(load_case(path), tmp_path / name) for name in ("one", "two"))
    simulate(one, workers=1)
    simulate(two, workers=2)
    assert hdf5_content_digest(two.output("simulate")) == hdf5_content_digest(one.output("simulate"))
    assert [hdf5_content_digest(p) for p in shard_files(two)] == [hdf5_content_digest(p) for p in shard_files(one)]


def test_execution_settings_are_no_part_of_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulations = simulate(small(tmp_path))
    other = small(tmp_path, "simulate.workers=2", "simulate.most_failed=0.5", "simulate.compression=none")
    simulate(other)
    assert "up to date" in capsys.readouterr().err
    need_same_settings(other, simulations, "simulate")


def test_an_addition_makes_new_shards_only_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small(tmp_path)
    with pytest.raises(InputError, match="--add extends a finished set"):
        simulate(run, add=500)
    simulate(run)
    first = hdf5_content_digest(run.output("simulate"))
    before = {p.name: (p.stat().st_mtime_ns, read_key(p)) for p in shard_files(run)}
    key = read_key(run.output("simulate"))
    simulate(run, add=500)
    after = {p.name: (p.stat().st_mtime_ns, read_key(p)) for p in shard_files(run)}
    assert after.items() > before.items()
    assert sorted(after.keys() - before.keys()) == ["shard-00007.h5", "shard-00008.h5"]
    assert read_key(run.output("simulate")) != key
    data = read_data(run.output("simulate"), observables=run.simulator.observables, parameters=run.simulator.parameters)
    assert data.theta is not None
    assert len(torch.unique(data.theta[:, 0])) == len(data) == 2_500
    simulate(run)
    assert "up to date" in capsys.readouterr().err
    run.output("simulate").unlink()
    simulate(run, add=500)  # begun, and not finished: the same one goes on
    assert len(read_data(run.output("simulate"), observables=run.simulator.observables)) == 2_500
    (run.folder / "simulations" / "added.json").unlink()
    simulate(run)  # and without them it is what it was
    assert hdf5_content_digest(run.output("simulate")) == first
    assert len(shard_files(run)) == 7


def test_a_larger_count_keeps_full_shards(tmp_path: Path) -> None:
    simulate(small(tmp_path))
    run = small(tmp_path, "simulate.count=2300")
    before = {p.name: p.stat().st_mtime_ns for p in shard_files(run)}
    simulate(run)
    after = {p.name: p.stat().st_mtime_ns for p in shard_files(run)}
    assert [name for name in before if before[name] != after[name]] == ["shard-00006.h5"]  # it had 200 rows of 300


def test_batches_are_part_of_the_content(tmp_path: Path) -> None:
    first = hdf5_content_digest(simulate(small(tmp_path)))
    assert hdf5_content_digest(simulate(small(tmp_path, "simulate.batch=100"))) != first


def test_compressed_shards_have_the_same_content(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    run = small(tmp_path)
    simulate(run)
    plain = [hdf5_content_digest(p) for p in shard_files(run)]
    for compression in ("zstd", "blosc2"):
        shutil.rmtree(run.folder)
        simulate(small(tmp_path, f"simulate.compression={compression}"))
        assert [hdf5_content_digest(p) for p in shard_files(run)] == plain
