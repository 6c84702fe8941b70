from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.tables.bayes_factors import bayes_factors, total_log_bayes_factor

Write = Callable[..., np.ndarray]


def test_factors_errors_and_what_is_left_out(tmp_path: Path, write_file: Write) -> None:
    data = np.arange(12.0).reshape(3, 4)
    write_file(tmp_path / "one.h5", ["a", "b", "c"], log_evidence=[1, 2, 3], error=0.3, data=data)
    # the same data in another order, in the precision that this model declares, and one observation more
    other = np.concatenate([data[[2, 0]], [[9.0, 9, 9, 9]]]).astype(np.float32)
    flags = {"atypical": np.array([1, 0, 0], dtype=np.int8)}
    write_file(tmp_path / "two.h5", ["c", "a", "d"], log_evidence=[10, 4, 0], error=0.4, data=other, extra=flags)
    table = pipeline.bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"])
    assert list(table["id"]) == ["a", "c"]
    np.testing.assert_allclose(table["log_bayes_factor_two"], [3, 7])
    np.testing.assert_allclose(table["log_bayes_factor_error_two"], 0.5)
    assert list(table["warning"]) == ["", "atypical in two"]
    assert table.meta["only_in"] == {"one": ["b"], "two": ["d"]}
    assert total_log_bayes_factor(table, "two") == pytest.approx((10, np.sqrt(0.5), 2))
    assert total_log_bayes_factor(table, "two", trusted=True) == pytest.approx((3, 0.5, 1))


def test_failed_and_infinite_are_warned_of(tmp_path: Path, write_file: Write) -> None:
    write_file(tmp_path / "one.h5", ["a", "b"], verdicts=["failed", "exact"])
    write_file(tmp_path / "two.h5", ["a", "b"], log_evidence=[0, -np.inf])
    table = bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"], names=["flat", "curved"])
    assert list(table["warning"]) == ["failed in flat", "not finite in curved"]
    assert table["log_bayes_factor_curved"][1] == -np.inf


def test_files_of_two_runs_are_named_by_their_folders(tmp_path: Path, write_file: Write) -> None:
    paths = [tmp_path / name / "inference.h5" for name in ("first", "second")]
    for path in paths:
        path.parent.mkdir()
        write_file(path, ["a"])
    assert list(bayes_factors(paths).meta["models"]) == ["first", "second"]
    with pytest.raises(InputError, match="the same file is given twice"):
        bayes_factors([paths[0], paths[0]])
    with pytest.raises(InputError, match="two or more"):
        bayes_factors(paths[:1])
    with pytest.raises(InputError, match="2 different names"):
        bayes_factors(paths, names=["a", "a"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": np.add(np.arange(8.0).reshape(2, 4), [[0.0], [1e-9]])},
            "velocity differs .* for 1 of 2 observations .* b$",
        ),
        ({"data_unit": "km / s"}, "velocity is in 'm / s' for one, 'km / s' for two"),
        ({"ids": ["c", "d"]}, "no observation is in every file"),
        ({"attributes": {"likelihood": "learned"}}, "learned likelihood"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, write_file: Write, changes: dict, said: str) -> None:
    write_file(tmp_path / "one.h5", ["a", "b"])
    write_file(tmp_path / "two.h5", changes.pop("ids", ["a", "b"]), **changes)
    with pytest.raises(InputError, match=said):
        bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"])


def learned(summary: str) -> dict[str, str]:
    return {"likelihood": "learned", "summary_hash": summary}


def test_evidences_of_different_summaries_are_refused_and_of_the_same_compared(
    tmp_path: Path, write_file: Write
) -> None:
    for name, summary in (("one", "aa"), ("two", "bb"), ("three", "aa"), ("unsaid", ""), ("unsaid_too", "")):
        write_file(tmp_path / f"{name}.h5", ["a", "b"], attributes=learned(summary))
    with pytest.raises(InputError, match=r"different summaries \(aa, bb\).*likelihood.summary.file"):
        bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"])
    assert len(bayes_factors([tmp_path / "one.h5", tmp_path / "three.h5"])) == 2
    with pytest.raises(InputError, match="does not say of what summary"):
        bayes_factors([tmp_path / "unsaid.h5", tmp_path / "unsaid_too.h5"])


def test_the_scatter_between_networks_is_part_of_the_error(tmp_path: Path, write_file: Write) -> None:
    import h5py

    for name in ("one", "two"):
        write_file(tmp_path / f"{name}.h5", ["a"], attributes=learned("aa"))
    plain = bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"])["log_bayes_factor_error_two"][0]
    with h5py.File(tmp_path / "two.h5", "a") as file:
        file["certificate/surrogate_error"] = np.array([0.3])
    found = bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"])["log_bayes_factor_error_two"][0]
    assert found == pytest.approx(np.hypot(plain, 0.3))


def test_a_unit_written_otherwise_is_the_same_unit(tmp_path: Path, write_file: Write) -> None:
    write_file(tmp_path / "one.h5", ["a"])
    write_file(tmp_path / "two.h5", ["a"], data_unit="m s-1")
    assert len(bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"])) == 1


def test_one_posterior_of_several_rows_is_compared_whole(tmp_path: Path, write_file: Write) -> None:
    """`observed_data` of a combined posterior has more rows than the certificate."""
    import h5py

    rows = np.arange(12.0).reshape(3, 4)
    for name, data in (("one", rows), ("two", rows), ("three", np.add(rows, [[0], [0], [1]]))):
        write_file(tmp_path / f"{name}.h5", ["all"])
        with h5py.File(tmp_path / f"{name}.h5", "a") as file:
            del file["observed_data"]
            file.create_dataset("observed_data/velocity", data=data).attrs.update({"units": "m / s", "role": "data"})
    assert len(bayes_factors([tmp_path / "one.h5", tmp_path / "two.h5"])) == 1
    with pytest.raises(InputError, match="velocity differs"):
        bayes_factors([tmp_path / "one.h5", tmp_path / "three.h5"])
