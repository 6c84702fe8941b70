"""One flipped bit in every kind of file: refused by what reads it next, and named by `verify`."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import InputError
from pipeline.stages.infer import infer
from pipeline.stages.run import Run
from pipeline.stages.train import train
from pipeline.stages.verify import check_run, verify
from pipeline.store import check_sum, read_data, read_safetensors, read_sums, write_data, write_safetensors
from simulators.linear_gaussian import LinearGaussian
from tests.faults.flips import KINDS, Tally, copy_of, flip_all, flip_one, flipped, make_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return dict(make_runs(tmp_path_factory.mktemp("flips"), whole=False))


def refused(function, *arguments) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments)
    return str(error.value)


def test_every_kind_of_file(runs: dict[str, Run], tmp_path: Path) -> None:
    tallies = flip_all(runs, tmp_path, places=2, seed=5)
    assert [t for t in tallies if t.missed] == []
    assert sum(t.flips for t in tallies) >= 20


@pytest.mark.slow
def test_every_kind_of_file_of_a_whole_run(tmp_path: Path) -> None:
    tallies = flip_all(make_runs(tmp_path), tmp_path, places=10, seed=6)
    assert [t for t in tallies if t.missed] == []
    assert len(tallies) == sum(map(len, KINDS.values()))


def test_training_that_was_killed_does_not_resume_from_a_damaged_network(runs: dict[str, Run], tmp_path: Path) -> None:
    """At 194e4d8 it ended well, with a wrong network under the right key, and `verify` said that all is well."""
    copy = copy_of(runs["stopped"], tmp_path / "run")
    path = copy.folder / "checkpoints" / "phase-0.safetensors"
    raw = path.read_bytes()
    path.write_bytes(flipped(raw, 8 * (len(raw) - 2)))  # in the last tensor
    assert "its tensors are not those that were written" in refused(train, copy)
    assert not copy.output("train").exists()
    assert "bad, see above" in refused(verify, copy.folder)
    verify(copy.folder, repair=True)
    train(copy)
    ours, whole = (read_safetensors(r.output("train"))[0] for r in (copy, runs["own"]))
    assert all(ours[k].numpy().tobytes() == whole[k].numpy().tobytes() for k in whole)


@pytest.mark.parametrize("text", ["", "\n", "abc", "0" * 64, "0" * 63 + "  posterior.safetensors\n"])
def test_an_empty_or_broken_file_of_checksums_is_one_line(runs: dict[str, Run], tmp_path: Path, text: str) -> None:
    copy = copy_of(runs["own"], tmp_path / "run")
    (copy.folder / "settings" / "train.sha256").write_text(text)
    assert "train.sha256: damaged" in refused(infer, copy)
    assert {f.path.name for f in check_run(copy.folder)} == {"train.sha256"}
    verify(copy.folder, repair=True)
    assert check_run(copy.folder) == []


def test_checksums_are_those_of_sha256sum(runs: dict[str, Run]) -> None:
    import shutil
    import subprocess

    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum here")
    sums = sorted((runs["own"].folder / "settings").glob("*.sha256"))
    done = subprocess.run([tool, "--check", *sums], cwd=runs["own"].folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "checkpoints/tensorboard/phase-0" in done.stdout
    assert "workflow/case.yaml: OK" in done.stdout


def test_a_run_of_before_is_read(runs: dict[str, Run], tmp_path: Path) -> None:
    """One line of checksum, and model files without digests, as version 0.1 wrote them."""
    copy = copy_of(runs["own"], tmp_path / "run")
    posterior = copy.output("train")
    _, header = read_safetensors(posterior)
    save_file(load_file(posterior), posterior, metadata=header)
    import hashlib

    digest = hashlib.sha256(posterior.read_bytes()).hexdigest()
    (copy.folder / "settings" / "train.sha256").write_text(f"{digest}  posterior.safetensors\n")
    assert check_run(copy.folder) == []
    assert read_sums(copy.folder / "settings" / "train.sha256") == {"posterior.safetensors": digest}
    assert copy.input("train") == posterior


def test_what_is_deleted_is_noted_and_not_bad(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(runs["own"], tmp_path / "run")
    (copy.folder / "training.csv").unlink()
    verify(copy.folder)
    assert "note: training.csv is not there any more; train.sha256 lists it" in capsys.readouterr().err


def test_a_moved_run_keeps_its_checksums(runs: dict[str, Run], tmp_path: Path) -> None:
    copy = copy_of(runs["own"], tmp_path / "elsewhere" / "other name")
    assert check_run(copy.folder) == []
    check_sum(copy.output("train"))


def test_every_third_bit_of_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True)}, {"settings": '{"a": 1}'})
    raw = path.read_bytes()
    for bit in range(0, 8 * len(raw), 3):
        path.write_bytes(flipped(raw, bit))
        with pytest.raises(InputError):
            read_safetensors(path)


def test_a_digest_that_is_taken_out_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.zeros(2)}, {})
    save_file({"a": torch.ones(2)}, path, metadata={"sha256_header": "0" * 64})
    assert "its header is not the one that was written" in refused(read_safetensors, path)


def test_bits_of_observations_are_one_line_or_harmless(tmp_path: Path) -> None:
    """At 194e4d8, 71 of 1,038 were tracebacks."""
    simulator, path = LinearGaussian(), tmp_path / "observed.h5"
    x = {"x": torch.arange(10.0, dtype=torch.float64).view(2, 5)}
    write_data(path, observables=simulator.observables, x=x, ids=["first", "second"])
    raw, rng = path.read_bytes(), np.random.default_rng(4)
    for bit in rng.choice(8 * len(raw), 300, replace=False).tolist():
        path.write_bytes(flipped(raw, bit))
        try:
            data = read_data(path, observables=simulator.observables)
        except InputError:
            continue
        assert torch.equal(data.x["x"], x["x"])
        assert data.ids == ("first", "second")


def test_a_flipped_bit_in_a_unit_is_refused_and_a_unit_that_was_changed_is_not(tmp_path: Path) -> None:
    """From km / s to cm / s it is one bit, and at 194e4d8 the numbers were read 100,000 times smaller."""
    from dataclasses import replace

    path, observables = tmp_path / "observed.h5", [replace(LinearGaussian().observables[0], unit="km / s")]
    x = {"x": torch.ones(2, 5, dtype=torch.float64)}
    write_data(path, observables=observables, x=x)
    raw = path.read_bytes()
    path.write_bytes(flipped(raw, 8 * raw.index(b"km / s") + 3))
    assert "a bit of its attribute 'unit' has flipped: 'cm / s' was 'km / s'" in refused(
        lambda: read_data(path, observables=observables)
    )
    path.write_bytes(raw)
    with h5py.File(path, "a") as file:
        assert file["x/x"].attrs["unit"] == "km / s"
        file["x/x"].attrs["unit"] = "m / s"
    assert torch.equal(read_data(path, observables=observables).x["x"], x["x"] / 1e3)


@pytest.mark.parametrize("size", [0, 1, 15, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("index", [0, 1])
def test_text_without_an_end_is_refused_before_hdf5_loops_over_it(tmp_path: Path, index: int, size: int) -> None:
    """HDF5 2.0 never returns from a heap object that is free and of size 0."""
    path, observables = tmp_path / "observed.h5", LinearGaussian().observables
    write_data(path, observables=observables, x={"x": torch.zeros(2, 5)})
    raw = bytearray(path.read_bytes())
    first = raw.index(b"GCOL") + 16
    before = struct.unpack_from("<Q", raw, first + 8)[0]
    struct.pack_into("<H", raw, first, index)
    struct.pack_into("<Q", raw, first + 8, size if (index, size) not in {(1, 0), (1, 1), (1, 15)} else 2**60 + before)
    path.write_bytes(raw)
    assert "has no end" in refused(lambda: read_data(path, observables=observables))


def test_identifiers_are_text_to_h5py(tmp_path: Path) -> None:
    path = tmp_path / "observed.h5"
    write_data(path, observables=LinearGaussian().observables, x={"x": torch.zeros(2, 5)}, ids=["β Pic", ""])
    with h5py.File(path) as file:
        assert [i.decode() for i in file["id"][:]] == ["β Pic", ""]
        assert list(file["id"].asstr()[:]) == ["β Pic", ""]


def test_a_flip_is_counted_as_missed_where_nothing_catches_it(runs: dict[str, Run], tmp_path: Path) -> None:
    """The count itself: a file that nobody checks."""
    (runs["own"].folder / "unknown.txt").write_bytes(b"x" * 8)
    tally = Tally("unknown.txt")
    flip_one(runs["own"], Path("unknown.txt"), 3, KINDS["own"][-5], tmp_path / "copy", tally)
    (runs["own"].folder / "unknown.txt").unlink()
    assert (tally.flips, tally.missed) == (1, 1)
