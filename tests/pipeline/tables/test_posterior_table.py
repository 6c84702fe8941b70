from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable

import pipeline
from pipeline.errors import InputError
from pipeline.tables import posterior_table as module
from pipeline.tables.posterior_table import draws_table


def test_summaries_are_numpys_with_units(tmp_path: Path, write_file: Callable[..., np.ndarray]) -> None:
    extra = {"kl_gap": np.array([0.1, 0.2, 0.3]), "predictive_rms": np.ones(3), "atypical": np.array([0, 1, 0], "i1")}
    draws = write_file(tmp_path / "a.h5", ["x", "y", "z"], extra=extra, verdicts=["exact", "failed", "sampled"])
    table = pipeline.posterior_table(tmp_path / "a.h5", observations=["z", "y"])
    assert list(table["id"]) == ["z", "y"]
    assert list(table["verdict"]) == ["sampled", "failed"]
    assert list(table["atypical"]) == [False, True]
    assert isinstance(table["tp_std"], u.Quantity)
    assert table["tp"].unit == u.day
    tp = draws[1][:, [2, 1]]
    np.testing.assert_allclose(table["tp"].value, tp.mean(0), rtol=1e-14)
    np.testing.assert_allclose(table["tp_std"].to_value(u.hour), 24 * tp.std(0, ddof=1), rtol=1e-13)
    np.testing.assert_allclose(table["logk1_q025"], np.quantile(draws[0][:, [2, 1]], 0.025, axis=0), rtol=1e-14)
    np.testing.assert_allclose(table["tp_q84"].value, np.quantile(tp, 0.84, axis=0), rtol=1e-14)
    np.testing.assert_array_equal(table["kl_gap"], [0.3, 0.2])
    assert "predictive_rms" in table.colnames  # numbers that the schema does not list are kept
    assert "nats" in table["kl_gap"].info.description
    assert table.meta["content_key"] == "ab" * 32
    assert table.meta["inputs"]["posterior"] == "cd" * 32


def test_logarithmic_units(tmp_path: Path, write_file: Callable[..., np.ndarray]) -> None:
    draws = write_file(tmp_path / "a.h5", ["x"], names=("logg", "tp"), units=("dex(cm / s2)", "d"))
    table = pipeline.posterior_table(tmp_path / "a.h5")
    assert table["logg"].physical[0].to_value(u.cm / u.s**2) == pytest.approx(10 ** draws[0].mean())


def test_long_table_of_draws(
    tmp_path: Path, write_file: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = write_file(tmp_path / "a.h5", ["x", "y", "z"])
    table = draws_table(tmp_path / "a.h5", observations=["z", "x"])
    assert isinstance(table, QTable)
    assert len(table) == 1_000
    np.testing.assert_array_equal(table["tp"][table["id"] == "z"].value, draws[1][:, 2])
    np.testing.assert_array_equal(table["logk1"][table["id"] == "x"], draws[0][:, 0])
    np.testing.assert_array_equal(table["draw"][500:], np.arange(500))
    monkeypatch.setattr(module, "MOST_DRAW_ROWS", 1_400)
    with pytest.raises(InputError, match="3 observations with 500 draws are more than 1,400 rows"):
        draws_table(tmp_path / "a.h5")


def test_names_that_collide_are_refused(tmp_path: Path, write_file: Callable[..., np.ndarray]) -> None:
    write_file(tmp_path / "a.h5", ["x"], names=("kl_gap", "tp"), extra={"kl_gap": np.ones(1)})
    with pytest.raises(InputError, match="two columns would be called 'kl_gap'"):
        pipeline.posterior_table(tmp_path / "a.h5")
    write_file(tmp_path / "b.h5", ["x"], names=("id", "tp"))
    with pytest.raises(InputError, match="two columns would be called 'id'"):
        draws_table(tmp_path / "b.h5")
