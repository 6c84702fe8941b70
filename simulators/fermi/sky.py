"""The inner Galaxy as the LAT sees it: templates, exposure, masks, PSF, priors and counts, from one HDF5 file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch
from astropy_healpix import HEALPix
from torch import Tensor

from simulators.fermi.belt import PixelTable, lattice, pixel_table
from simulators.fermi.king_psf import King, KingPsf
from simulators.reading.hdf5 import open_hdf5

SMOOTH = ("gce", "iso", "bub", "psc", "pibrem", "ics")
"""Templates of emission without sources that are resolved: dark matter or faint sources (gce), isotropic, bubbles, 3FGL sources,
pion decay with bremsstrahlung, inverse Compton."""
PARAMETERS = (
    *("S_gce_poiss", "A_iso", "A_bub", "A_psc", "A_pibrem", "A_ics"),
    *(f"{name}_{population}" for population in ("gce", "dsk") for name in ("S_ps", "n1", "n2", "n3", "Sb1", "Sb2")),
)
DISKS = {"thin": "dsk_thin", "thick": "dsk_thick"}
LARGEST_OFFSET_DEG = 0.01


@dataclass(frozen=True)
class Sky:
    """P pixels in which there may be sources, M of which are analysed.

    Attributes:
        nside: of HEALPix.
        pixel: their numbers in ring ordering, (P,).
        phi, z: longitude (rad, in -pi..pi) and sine of latitude of their centres, (P,), float64.
        counts: observed photons, (P,).
        exposure: over its mean in `normalisation`, (P,).
        analysis: the M pixels that are analysed, (P,), bool.
        normalisation: the pixels in which S_* is the mean number of photons, (P,), bool.
        templates: expected photons where the normalisation is 1, (P,) each, by name. Those of S_* have mean 1 in
            `normalisation`; those of A_* are as in the file. Exposure is in them.
        psf: point-spread function.
        low, high: ends of the uniform priors, by parameter.
        table: analysed pixels by direction.
    """

    nside: int
    pixel: Tensor
    phi: Tensor
    z: Tensor
    counts: Tensor
    exposure: Tensor
    analysis: Tensor
    normalisation: Tensor
    templates: dict[str, Tensor]
    psf: KingPsf
    low: dict[str, float]
    high: dict[str, float]
    table: PixelTable

    @property
    def size(self) -> int:
        """M, pixels analysed."""
        return int(self.analysis.sum())

    @property
    def corner(self) -> Tensor:
        """(p, m) of every pixel, (P, 2), see `belt`."""
        return torch.stack(lattice(self.phi, self.z, self.nside), -1).floor()

    def analysed(self, *names: str) -> Tensor:
        """Templates in the analysed pixels, (len(names), M)."""
        return torch.stack([self.templates[name][self.analysis] for name in names])


def read_sky(path: Path | str, *, disk: str = "thin") -> Sky:
    """Read the file that docs/fermi.md describes.

    Args:
        path: HDF5.
        disk: `thin` (scale height 0.3 kpc) or `thick` (1 kpc): where the sources of the disk are.

    Raises:
        ValueError: no such file, or not one of this kind; says what is missing.
    """
    path = Path(path)
    if disk not in DISKS:
        raise ValueError(f"fermi: disk: expected {' or '.join(DISKS)}, got {disk!r}")
    if not path.is_file():
        raise ValueError(f"fermi: no file {path}; bring fermi_inner_galaxy_nside128.h5 as docs/fermi.md describes it")
    raw = _read_arrays(path, (*SMOOTH, DISKS[disk]))
    nside = raw["nside"]
    pixel = torch.from_numpy(raw["pixel"]).long()
    phi, z = _centres(nside, pixel, raw, path)
    analysis, normalisation = (torch.from_numpy(raw[f"mask_{k}"]).bool() for k in ("analysis", "normalisation"))
    if not bool(analysis.any()) or not bool(normalisation.any()):
        raise ValueError(f"{path}: mask_analysis or mask_normalisation has no pixel")
    templates = {name: torch.from_numpy(raw[f"templates/{name}"]).double() for name in SMOOTH}
    templates["dsk"] = torch.from_numpy(raw[f"templates/{DISKS[disk]}"]).double()
    for name in ("gce", "dsk"):
        templates[name] = templates[name] / templates[name][normalisation].mean()
    exposure = torch.from_numpy(raw["exposure_cm2_s"]).double()
    low, high = (dict(zip(PARAMETERS, raw[f"prior_{end}"].tolist(), strict=True)) for end in ("low", "high"))
    return Sky(
        nside=nside,
        pixel=pixel,
        phi=phi,
        z=z,
        counts=torch.from_numpy(raw["counts"]).double(),
        exposure=exposure / exposure[normalisation].mean(),
        analysis=analysis,
        normalisation=normalisation,
        templates=templates,
        psf=raw["psf"],
        low=low,
        high=high,
        table=pixel_table(phi[analysis], z[analysis], nside),
    )


def _read_arrays(path: Path, templates: tuple[str, ...]) -> dict[str, Any]:
    """Arrays and attributes of the file, checked for presence, shape and order of parameters."""
    names = ["counts", "exposure_cm2_s", "mask_analysis", "mask_normalisation"]
    names += [f"templates/{name}" for name in templates]
    with open_hdf5(path) as file:
        missing = [n for n in (*names, "pixel", "prior_low", "prior_high", "psf_king_2GeV") if n not in file]
        missing += [f"attribute {n}" for n in ("nside", "ordering", "parameters") if n not in file.attrs]
        if missing:
            raise ValueError(f"{path}: has no {missing[0]}; docs/fermi.md lists what such a file holds")
        if str(file.attrs["ordering"]).upper() != "RING":
            raise ValueError(f"{path}: expected pixels in RING ordering, got {file.attrs['ordering']}")
        parameters = tuple(str(p) for p in np.asarray(file.attrs["parameters"]).tolist())
        if parameters != PARAMETERS:
            raise ValueError(f"{path}: expected parameters {', '.join(PARAMETERS)}; got {', '.join(parameters)}")
        arrays: dict[str, Any] = {n: np.asarray(file[n]) for n in ("pixel", "prior_low", "prior_high", *names)}
        for name in names:
            if arrays[name].shape != arrays["pixel"].shape:
                raise ValueError(f"{path}: {name}: expected {arrays['pixel'].shape} values, got {arrays[name].shape}")
            if not (np.isfinite(arrays[name]).all() and (arrays[name] >= 0).all()):
                raise ValueError(f"{path}: {name}: expected finite values that are not negative")
        for name in ("glon_deg", "glat_deg"):
            if name in file:
                arrays[name] = np.asarray(file[name])
        psf = {k: float(np.asarray(v)) for k, v in file["psf_king_2GeV"].attrs.items() if k != "note"}
        arrays["nside"] = int(np.asarray(file.attrs["nside"]))
    try:
        core, tail = King(psf["score"], psf["gcore"]), King(psf["stail"], psf["gtail"])
        arrays["psf"] = KingPsf(core, tail, core_share=psf["fcore"], scale_rad=psf["spe"])
    except KeyError as error:
        raise ValueError(f"{path}: psf_king_2GeV has no attribute {error}") from None
    return arrays


def _centres(nside: int, pixel: Tensor, raw: dict[str, Any], path: Path) -> tuple[Tensor, Tensor]:
    """Longitude (rad) and sine of latitude of the pixels, which must be those that the file says, if it does."""
    longitude, latitude = HEALPix(nside, order="ring").healpix_to_lonlat(pixel.numpy())
    lon, lat = (np.asarray(v.to_value(u.rad), dtype=np.float64) for v in (longitude, latitude))
    lon = np.where(lon > np.pi, lon - 2 * np.pi, lon)
    for name, ours in (("glon_deg", lon), ("glat_deg", lat)):
        if name in raw and np.abs(raw[name] - np.degrees(ours)).max() > LARGEST_OFFSET_DEG:
            raise ValueError(f"{path}: {name} are not the centres of the pixels in ring ordering of nside {nside}")
    return torch.from_numpy(lon), torch.from_numpy(np.sin(lat))


def read_counts(sky: Sky, path: Path | str) -> tuple[Tensor, str]:
    """Observed photons of the analysed pixels, (1, M) float32, and a name, from a file of the same kind.

    Raises:
        ValueError: other pixels or another mask than those of `sky`.
    """
    other = read_sky(path)
    same = torch.equal(other.pixel, sky.pixel) and torch.equal(other.analysis, sky.analysis)
    if other.nside != sky.nside or not same:
        raise ValueError(f"{path}: its pixels or its mask_analysis are not those of the simulator's data file")
    return other.counts[other.analysis].float()[None], Path(path).stem
