"""Reading the data file: what is in it, and every way in which it may not fit."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from simulators.fermi.sky import read_counts, read_sky
from tests.simulators.fermi.synthetic_sky import write_synthetic_sky


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_synthetic_sky(tmp_path / "sky.h5")


def test_templates_of_strengths_have_mean_one_where_they_are_normalised(path: Path) -> None:
    sky = read_sky(path)
    for name in ("gce", "dsk"):
        assert float(sky.templates[name][sky.normalisation].mean()) == pytest.approx(1.0)
    assert float(sky.exposure[sky.normalisation].mean()) == pytest.approx(1.0)
    assert not torch.equal(read_sky(path, disk="thick").templates["dsk"], sky.templates["dsk"])
    with h5py.File(path) as file:
        assert sky.size == int(np.asarray(file["mask_analysis"]).sum())


def test_table_finds_the_analysed_pixels(path: Path) -> None:
    sky = read_sky(path)
    assert torch.equal(sky.table.find(sky.phi[sky.analysis], sky.z[sky.analysis]), torch.arange(sky.size))
    assert bool((sky.table.find(sky.phi[~sky.analysis], sky.z[~sky.analysis]) == sky.size).all())


def test_counts_are_those_of_the_analysed_pixels(path: Path) -> None:
    sky = read_sky(path)
    counts, name = read_counts(sky, path)
    assert counts.shape == (1, sky.size)
    assert name == "sky"
    with h5py.File(path) as file:
        expected = np.asarray(file["counts"])[np.asarray(file["mask_analysis"])]
    np.testing.assert_array_equal(counts[0].numpy(), expected)


def test_counts_under_another_mask_are_refused(path: Path, tmp_path: Path) -> None:
    other = write_synthetic_sky(tmp_path / "other.h5")
    with h5py.File(other, "r+") as file:
        file["mask_analysis"][0:400] = False  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match="mask_analysis are not those"):
        read_counts(read_sky(path), other)


def _delete(name: str):
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def _negative(file: h5py.File) -> None:
    file["templates/ics"][3] = -1.0  # pyright: ignore[reportIndexIssue]


def _shifted(file: h5py.File) -> None:
    file["pixel"][...] = file["pixel"][...] + 1  # pyright: ignore[reportIndexIssue]


def _renamed(file: h5py.File) -> None:
    file.attrs["parameters"] = np.array(["a"] * 18, dtype=object)


def _nested(file: h5py.File) -> None:
    file.attrs["ordering"] = "NESTED"


def _short(file: h5py.File) -> None:
    del file["counts"]
    file["counts"] = np.zeros(5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_delete("templates/pibrem"), "has no templates/pibrem"),
        (_delete("psf_king_2GeV"), "has no psf_king_2GeV"),
        (_delete("mask_analysis"), "has no mask_analysis"),
        (_negative, "templates/ics: expected finite values"),
        (_shifted, "are not the centres of the pixels"),
        (_renamed, "expected parameters S_gce_poiss"),
        (_nested, "RING ordering, got NESTED"),
        (_short, "counts: expected"),
    ],
)
def test_what_does_not_fit_is_named(path: Path, change, words: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=words):
        read_sky(path)


def test_a_file_that_is_not_there_or_not_hdf5(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bring fermi_inner_galaxy_nside128.h5"):
        read_sky(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        read_sky(tmp_path / "text.h5")
    with pytest.raises(ValueError, match="thin or thick"):
        read_sky(write_synthetic_sky(tmp_path / "sky.h5"), disk="flat")


def test_the_observed_sky(reference: Path) -> None:
    """104,635 photons in the analysed pixels, and 103,990 where the published posterior's means are put into the templates."""
    folder = reference / "observations" / "fermi_inner_galaxy"
    sky = read_sky(folder / "fermi_inner_galaxy_nside128.h5")
    assert int(sky.counts[sky.analysis].sum()) == 104_635
    with h5py.File(folder / "published_posterior_nptf.h5") as file:
        mean = torch.from_numpy(np.asarray(file["samples"])).double().mean(0)
    smooth = sky.analysed("gce", "iso", "bub", "psc", "pibrem", "ics").sum(1) @ mean[:6]
    sources = sky.analysed("gce", "dsk").sum(1) @ mean[[6, 12]]
    assert float(smooth + sources) == pytest.approx(103_990, abs=10)
