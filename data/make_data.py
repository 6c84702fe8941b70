"""Write the datasets of this folder: stars from the files that radvel's wheel installs, and simulated stand-ins.

    python data/make_data.py

Nothing is downloaded. What is written, whence, and its checksums are in README.md beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.store import hdf5_content_digest, write_data
from simulators.lens_subhalos import LensSubhalos
from simulators.protocol import Observable
from simulators.strong_lens import StrongLens
from simulators.supernova_cosmology import SupernovaCosmology
from simulators.velocity_files import VelocityTable, binned_velocities, read_velocity_text
from simulators.velocity_options import velocity_observables

FOLDER = Path(__file__).resolve().parent
RADVEL_DATA = Path(sys.prefix) / "radvel_example_data"
ORIGIN = "radvel 1.6.7 (PyPI wheel), radvel_example_data/{}; github California-Planet-Search/radvel @ 23b05f1f"
LICENCE = "MIT, California Planet Search; data/LICENSE.radvel"


@dataclass(frozen=True)
class Star:
    """One observed star: its file in radvel's wheel, and what its data file says of it."""

    file: str
    sha256: str
    output: str
    identifier: str
    time_system: str
    reference: str
    bin_days: float = 0.0


K2_24 = Star(
    file="epic203771098.csv",
    sha256="a4fe8d3eac9066630cf5c1e6f23336a5f8286c952941802ab6670ee480cb4390",
    output="k2_24.h5",
    identifier="K2-24",
    time_system="BJD - 2454833",
    reference="Petigura et al. 2016, ApJ 818, 36, https://arxiv.org/abs/1511.04497",
)
HD_164922 = Star(
    file="164922_fixed.txt",
    sha256="98b23e3931d202be8a84a576115fdda42ca1229b33f73b9952504e687669879d",
    output="hd164922.h5",
    identifier="HD 164922",
    time_system="BJD",
    reference="Fulton et al. 2016, ApJ 830, 46, https://arxiv.org/abs/1607.00007",
)
STARS = (K2_24, HD_164922, replace(HD_164922, output="hd164922_nightly.h5", bin_days=0.5))


def read_verified(star: Star, folder: Path) -> VelocityTable:
    """The table of a star, all instruments, if its bytes are those that we know.

    Raises:
        ValueError: the file is absent, or is another version.
    """
    path = folder / star.file
    if not path.is_file():
        raise ValueError(f"{path}: no such file; install radvel 1.6.7 in this environment: pip install radvel==1.6.7")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != star.sha256:
        raise ValueError(f"{path}: SHA-256 is {digest}, expected {star.sha256}; install radvel==1.6.7")
    table = read_velocity_text(path)
    return binned_velocities(table, star.bin_days) if star.bin_days else table


def write_star(star: Star, table: VelocityTable, folder: Path) -> Path:
    """Write one data file; several instruments become integer codes in order of first appearance."""
    observables = velocity_observables(len(table))
    arrays = {"time": table.time, "velocity": table.velocity, "velocity_error": table.velocity_error}
    attributes = {
        "origin": ORIGIN.format(star.file),
        "origin_sha256": star.sha256,
        "licence": LICENCE,
        "reference": star.reference,
        "time_system": star.time_system,
    }
    names = list(dict.fromkeys(table.instrument.tolist()))
    if len(names) > 1:
        code = Observable("instrument", (len(table),), role="context", label="instrument code")
        observables = (*observables, code)
        arrays["instrument"] = np.array([names.index(n) for n in table.instrument.tolist()])
        observables = (*observables, Observable("present", (len(table),), role="context", label="present"))
        arrays["present"] = np.ones(len(table))
        if star.bin_days:
            attributes["bin_days"] = f"{star.bin_days:g}"
        attributes["instruments"] = json.dumps({str(number): name for number, name in enumerate(names)})
    path = folder / star.output
    x = {name: torch.from_numpy(values.astype(np.float64))[None, :] for name, values in arrays.items()}
    write_data(path, observables=observables, x=x, ids=[star.identifier], attributes=attributes)
    return path


SURVEY = "supernovae_simulated.h5"
SURVEY_TRUTH = {"Om": 0.3, "w": -1.0}
SURVEY_DESIGN = {"first": 0.014, "last": 1.6, "bend": 0.85, "error": 0.025, "systematic": 0.6}
"""Ends, errors and systematics like those of Pantheon's 40 bins (Scolnic et al. 2018, ApJ 859, 101)."""


def write_survey(folder: Path) -> Path:
    """Write a simulated survey of flat wCDM, in digits as tables have them, so that every machine writes the same."""
    simulator = SupernovaCosmology(model="wcdm", design=SURVEY_DESIGN)
    theta = torch.tensor([list(SURVEY_TRUTH.values())], dtype=torch.float64)
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(11))
    x["magnitude"] = x["magnitude"] - x["magnitude"][:, :1] + 14.57  # any offset will do: that of Pantheon's first bin
    digits = {"redshift": 4, "heliocentric_redshift": 4, "magnitude": 5, "covariance": 9}
    x = {name: values.round(decimals=digits.get(name, 0)) for name, values in x.items()}
    attributes = {
        "origin": "simulated by data/make_data.py with the simulator supernova_cosmology; no observation",
        "truth": json.dumps(SURVEY_TRUTH),
    }
    path = folder / SURVEY
    write_data(path, observables=simulator.observables, x=x, ids=["simulated survey"], attributes=attributes)
    return path


LENS = "strong_lens_simulated.h5"
LENS_TRUTH = {
    "lens_x": -0.04, "lens_y": 0.03, "einstein_radius": 1.6, "lens_e1": 0.07, "lens_e2": 0.28, "shear_1": 0.0, "shear_2": 0.02,
    "source_x": 0.35, "source_y": -0.3, "source_e1": -0.35, "source_e2": -0.03, "source_radius": 0.23, "source_index": 0.6,
    "source_brightness": 0.14,
}  # fmt: skip


def write_lens(folder: Path) -> Path:
    """Write a simulated image of a lensed galaxy, in digits, so that every machine writes the same."""
    simulator = StrongLens(noise_scatter=0.0)
    theta = torch.tensor([list(LENS_TRUTH.values())], dtype=torch.float64)
    x = simulator.simulate(theta, generator=torch.Generator().manual_seed(3))
    x["image"] = x["image"].round(decimals=4)
    attributes = {
        "origin": "simulated by data/make_data.py with the simulator strong_lens; no observation",
        "truth": json.dumps(LENS_TRUTH),
    }
    path = folder / LENS
    write_data(path, observables=simulator.observables, x=x, ids=["simulated lens"], attributes=attributes)
    return path


SUBHALOS = "lens_subhalos_simulated.h5"
SUBHALO_TRUTH = {"log10_fraction": -1.3, "slope": -1.9}


def write_subhalos(folder: Path) -> Path:
    """Write an image of the same lens with subhalos in it."""
    simulator = LensSubhalos(lens={"noise_scatter": 0.0})
    theta = torch.tensor([list(SUBHALO_TRUTH.values())], dtype=torch.float64)
    macro = torch.tensor([list(LENS_TRUTH.values())], dtype=torch.float64)
    einstein = macro[:, list(LENS_TRUTH).index("einstein_radius")]
    stream = torch.Generator().manual_seed(4)
    subhalos = simulator.draw_subhalos(theta, einstein, generator=stream)[0]
    bent = simulator.deflection(theta[0], einstein[0], subhalos)
    x = simulator.lens.observe_models(simulator.lens.model_image(macro, perturbation=bent), None, generator=stream)
    x["image"] = x["image"].round(decimals=4)
    attributes = {
        "origin": "simulated by data/make_data.py with the simulator lens_subhalos; no observation",
        "truth": json.dumps(SUBHALO_TRUTH),
    }
    path = folder / SUBHALOS
    write_data(
        path, observables=simulator.observables, x=x, ids=["simulated lens with subhalos"], attributes=attributes
    )
    return path


def main() -> int:
    """Write what is simulated and every file of `STARS`; one readable line and exit code 2 where the source is not as expected."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        for path in [
            write_survey(FOLDER),
            write_lens(FOLDER),
            write_subhalos(FOLDER),
            *(write_star(s, read_verified(s, RADVEL_DATA), FOLDER) for s in STARS),
        ]:
            print(f"{path.name}: content {hdf5_content_digest(path)}")
    except ValueError as error:
        print(f"make_data: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
