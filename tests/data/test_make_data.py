"""The script that writes the shipped observations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from pipeline.store import hdf5_content_digest

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    """data/make_data.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("make_data", DATA / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_shipped_files_are_what_the_script_writes(make_data: ModuleType, tmp_path: Path) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for star in make_data.STARS:
        if not (make_data.RADVEL_DATA / star.file).is_file():
            pytest.skip("radvel's example data are not installed")
        path = make_data.write_star(star, make_data.read_verified(star, make_data.RADVEL_DATA), tmp_path)
        digest = hdf5_content_digest(path)
        assert digest == hdf5_content_digest(DATA / star.output)
        assert digest in readme
        assert star.sha256 in readme


def test_the_simulated_survey_is_what_the_script_writes(make_data: ModuleType, tmp_path: Path) -> None:
    digest = hdf5_content_digest(make_data.write_survey(tmp_path))
    assert digest == hdf5_content_digest(DATA / make_data.SURVEY)
    assert digest in (DATA / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["LENS", "SUBHALOS"])
def test_a_simulated_lens_is_what_the_script_writes(make_data: ModuleType, tmp_path: Path, name: str) -> None:
    write = {"LENS": make_data.write_lens, "SUBHALOS": make_data.write_subhalos}[name]
    shipped_path = DATA / getattr(make_data, name)
    with h5py.File(write(tmp_path)) as made, h5py.File(shipped_path) as shipped:
        for observable in ("image", "noise", "mask"):  # transforms differ in their last bits from machine to machine
            ours, theirs = made[f"x/{observable}"], shipped[f"x/{observable}"]
            np.testing.assert_allclose(ours[...], theirs[...], atol=2e-4)  # pyright: ignore
    assert hdf5_content_digest(shipped_path) in (DATA / "README.md").read_text(encoding="utf-8")


def test_another_file_under_the_name_is_refused(make_data: ModuleType, tmp_path: Path) -> None:
    star = make_data.STARS[0]
    with pytest.raises(ValueError, match=r"no such file; install radvel 1.6.7"):
        make_data.read_verified(star, tmp_path)
    (tmp_path / star.file).write_text("t,vel,errvel\n1,2,3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"SHA-256 is .*, expected a4fe8d3e"):
        make_data.read_verified(star, tmp_path)
