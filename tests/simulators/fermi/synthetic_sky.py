"""A small sky with analytic templates, in the layout of docs/fermi.md, so that tests need no observed data."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
from astropy_healpix import HEALPix

from simulators.fermi.sky import PARAMETERS

LOW = [0.001, 0.001, 0.001, 0.001, 6.0, 1.0, *([0.001, 10.0, 1.1, -10.0, 5.0, 0.1] * 2)]
HIGH = [2.5, 1.5, 1.5, 1.5, 12.0, 6.0, *([2.5, 20.0, 1.99, 1.99, 40.0, 4.99] * 2)]
PSF = {"fcore": 0.75, "score": 0.43, "gcore": 7.8, "stail": 0.72, "gtail": 3.6, "spe": 0.0046}


def write_synthetic_sky(path: Path, *, nside: int = 32, radius_deg: float = 30.0) -> Path:
    """Pixels within `radius_deg` of the Galactic centre; those within 25 deg and beyond 2 deg of the plane are analysed."""
    grid = HEALPix(nside, order="ring")
    lon, lat = grid.healpix_to_lonlat(np.arange(grid.npix))
    b, lng = lat.to_value(u.rad), np.angle(np.exp(1j * lon.to_value(u.rad)))
    r = np.degrees(np.arccos(np.cos(b) * np.cos(lng)))
    pixel = np.flatnonzero(r < radius_deg)
    b, lng, r = np.degrees(b[pixel]), np.degrees(lng[pixel]), r[pixel]
    exposure = 7e10 * (1 + 0.002 * b)
    normalisation = (r < 25) & (np.abs(b) > 2)
    analysis = normalisation & (np.hypot(lng - 7, b - 9) > 3)  # one masked source
    shapes = {
        "gce": (r + 0.5) ** -2.4,
        "iso": np.ones_like(r),
        "bub": 0.2 + (np.hypot(lng / 12, (np.abs(b) - 20) / 18) < 1),
        "psc": 0.01 + np.exp(-0.5 * ((lng + 9) ** 2 + (b + 8) ** 2) / 9),
        "pibrem": np.exp(-np.abs(b) / 3) + 0.1,
        "ics": np.exp(-np.abs(b) / 12),
        "dsk_thin": np.exp(-np.abs(b) / 2 - np.abs(lng) / 20) + 0.02,
        "dsk_thick": np.exp(-np.abs(b) / 6 - np.abs(lng) / 20) + 0.02,
    }
    with h5py.File(path, "w") as file:
        file.attrs["nside"], file.attrs["ordering"] = nside, "RING"
        file.attrs["parameters"] = np.array(PARAMETERS, dtype=object)
        for name, values in (("pixel", pixel), ("glat_deg", b), ("glon_deg", lng), ("exposure_cm2_s", exposure)):
            file[name] = values
        file["mask_analysis"], file["mask_normalisation"] = analysis, normalisation
        file["prior_low"], file["prior_high"] = LOW, HIGH
        for name, shape in shapes.items():
            counts = shape * exposure
            file[f"templates/{name}"] = counts / counts[normalisation].mean()
        file.create_group("psf_king_2GeV").attrs.update(PSF)
        file["counts"] = np.random.default_rng(0).poisson(15, len(pixel))
    return path
