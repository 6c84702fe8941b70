"""`fetch:NAME` and the folder that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.cache import cache_folder, fetch_hint, resolve_fetched
from pipeline.errors import InputError


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELBOSCOPE_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("ELBOSCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/elboscope")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/elboscope")


def test_names_stand_for_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELBOSCOPE_CACHE", str(tmp_path))
    path = tmp_path / "k2_24/epic203771098.csv"
    assert resolve_fetched("fetch:k2_24") == path
    assert resolve_fetched("fetch:pantheon/sys_DS17f.txt") == tmp_path / "pantheon/sys_DS17f.txt"
    assert resolve_fetched("fetch:pantheon") == tmp_path / "pantheon"
    with pytest.raises(InputError, match="no such file; the dataset has epic203771098.csv"):
        resolve_fetched("fetch:k2_24/other.csv")
    assert "run `elboscope fetch k2_24`" in fetch_hint(path)
    assert fetch_hint(tmp_path / "other.csv") == ""
    path.parent.mkdir()
    path.write_text("")
    assert fetch_hint(path) == ""
    (tmp_path / "pantheon").mkdir()
    (tmp_path / "pantheon/sys_DS17f.txt").write_text("")
    assert "run `elboscope fetch pantheon`" in fetch_hint(tmp_path / "pantheon")
    (tmp_path / "pantheon/lcparam_DS17f.txt").write_text("")
    assert fetch_hint(tmp_path / "pantheon") == ""
