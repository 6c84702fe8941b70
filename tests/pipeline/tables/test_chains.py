from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.tables import chains
from pipeline.tables.chains import write_getdist

Write = Callable[..., np.ndarray]


def test_rows_are_weight_minus_log_posterior_and_theta(tmp_path: Path, write_file: Write) -> None:
    draws = write_file(tmp_path / "a.h5", ["HD 1", "b"], proposals=True)
    roots = write_getdist(tmp_path / "a.h5", tmp_path / "chain")
    assert [r.name for r in roots] == ["chain_HD_1", "chain_b"]
    chain = np.loadtxt(tmp_path / "chain_b_1.txt")
    assert (chain[:, 0] == 1).all()
    np.testing.assert_array_equal(chain[:, 2:], draws[:, :, 1].T)  # every digit
    np.testing.assert_array_equal(chain[:, 1], draws[0, :, 1])  # the file's log joint is minus the first parameter
    lines = (tmp_path / "chain_b.paramnames").read_text().splitlines()
    assert lines == ["logk1\tlogk1", r"tp" + "\t" + r"tp\,[\mathrm{d}]"]
    assert not (tmp_path / "chain_b.ranges").exists()


def test_without_weighted_draws_the_second_column_is_zero(tmp_path: Path, write_file: Write) -> None:
    write_file(tmp_path / "a.h5", ["a", "b"])
    assert write_getdist(tmp_path / "a.h5", tmp_path / "c" / "chain", observations=["b"]) == [tmp_path / "c" / "chain"]
    assert (np.loadtxt(tmp_path / "c" / "chain_1.txt")[:, 1] == 0).all()


def test_hard_bounds_of_the_prior(tmp_path: Path, write_file: Write) -> None:
    """two_moons: uniform on [-1, 1]."""
    case = {"name": "case", "simulator": {"name": "two_moons"}}
    write_file(tmp_path / "a.h5", ["a"], settings=case, names=("parameter_1", "parameter_2"))
    (root,) = write_getdist(tmp_path / "a.h5", tmp_path / "chain")
    assert root.with_suffix(".ranges").read_text().splitlines() == ["parameter_1 -1 1", "parameter_2 -1 1"]


def test_a_users_own_simulator_is_not_run(tmp_path: Path, write_file: Write) -> None:
    own = tmp_path / "own.py"
    own.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    case = {"name": "case", "simulator": {"name": "Mine", "path": str(own)}}
    write_file(tmp_path / "a.h5", ["a"], settings=case)
    write_getdist(tmp_path / "a.h5", tmp_path / "chain")
    assert not (tmp_path / "ran").exists()


def test_files_that_would_collide_or_flood_are_refused(
    tmp_path: Path, write_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "a.h5", ["a b", "a/b"])
    with pytest.raises(InputError, match="'a b', 'a/b' would go to the same file 'a_b'"):
        write_getdist(tmp_path / "a.h5", tmp_path / "chain")
    monkeypatch.setattr(chains, "MOST_CHAINS", 1)
    with pytest.raises(InputError, match="chains of 2 observations were asked for"):
        write_getdist(tmp_path / "a.h5", tmp_path / "chain")


def test_getdist_reads_them(tmp_path: Path, write_file: Write) -> None:
    getdist = pytest.importorskip("getdist", reason="GetDist is an oracle that not every environment has")
    case = {"name": "case", "simulator": {"name": "two_moons"}}
    draws = write_file(tmp_path / "a.h5", ["a"], settings=case, names=("parameter_1", "parameter_2"), proposals=True)
    (root,) = write_getdist(tmp_path / "a.h5", tmp_path / "chain")
    samples = getdist.loadMCSamples(str(root), settings={"ignore_rows": 0})
    assert samples.getParamNames().list() == ["parameter_1", "parameter_2"]
    assert samples.getLower("parameter_1") == -1
    np.testing.assert_allclose(samples.getMeans(), draws[:, :, 0].mean(1), rtol=1e-12)
    np.testing.assert_array_equal(samples.loglikes, draws[0, :, 0])
