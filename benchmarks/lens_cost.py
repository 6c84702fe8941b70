"""What an image of a lens and the gradient of its likelihood cost, beside lenstronomy on the same pixels.

    python -m benchmarks.lens_cost ../shared/observations/strong_lens/slacs_j2303+1422.h5

CPU time of one thread. lenstronomy draws the same native pixels with the same PSF, then means over binned pixels, one theta after
another; it has no gradient: what is stated is a one-sided difference, D + 1 images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.lens import MASKED
from simulators.lens_image import ratio_and_angle
from simulators.priors import prior_of, sample
from simulators.strong_lens import StrongLens

COUNT, REPEATS = 64, 10


def lenstronomy_image(simulator: StrongLens) -> Callable[[dict[str, float]], NDArray[np.float64]]:
    """Parameters by name -> binned noise-free image (P, P), e-/s a native pixel."""
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    grid = simulator.grid
    n, step = grid.native, grid.native_arcsec
    corner: Any = -(n - 1) / 2 * step
    pixels: Any = ImageData(
        image_data=np.zeros((n, n)),
        ra_at_xy_0=corner,
        dec_at_xy_0=corner,
        transform_pix2angle=np.eye(2) * step,
        background_rms=1.0,
        exposure_time=1.0,
    )
    psf = PSF(psf_type="PIXEL", kernel_point_source=simulator.instrument.psf.double().numpy())
    model = ImageModel(pixels, psf, LensModel(["SIE", "SHEAR"]), LightModel(["SERSIC_ELLIPSE"]))

    def ellipticity(first: float, second: float) -> tuple[dict[str, float], float]:
        q, phi = (float(v) for v in ratio_and_angle(torch.tensor(first).double(), torch.tensor(second).double()))
        e = (1 - q) / (1 + q)
        return {"e1": e * np.cos(2 * phi), "e2": e * np.sin(2 * phi)}, q

    def image(t: dict[str, float]) -> NDArray[np.float64]:
        lens_e, _ = ellipticity(t["lens_e1"], t["lens_e2"])
        source_e, source_q = ellipticity(t["source_e1"], t["source_e2"])
        lens = {"theta_E": t["einstein_radius"], "center_x": t["lens_x"], "center_y": t["lens_y"], **lens_e}
        shear = {"gamma1": t["shear_1"], "gamma2": t["shear_2"], "ra_0": t["lens_x"], "dec_0": t["lens_y"]}
        source = {
            "amp": t["source_brightness"],
            "R_sersic": t["source_radius"] * np.sqrt(source_q),  # of the intermediate axis; ours is of the major one
            "n_sersic": t["source_index"],
            "center_x": t["source_x"],
            "center_y": t["source_y"],
            **source_e,
        }
        native = model.image([lens, shear], [source]) / step**2  # flux of a pixel -> surface brightness
        return native.reshape(grid.pixels, grid.binning, grid.pixels, grid.binning).mean((1, 3))

    return image


def milliseconds(work: Callable[[], object], *, images: int) -> float:
    """Least CPU time of some repeats, for each image."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1e3 * min(times) / images


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    simulator = StrongLens(data=str(given.image), masked_circles=MASKED)
    x, _ = simulator.read_observation(given.image)
    theta = sample(prior_of(simulator), COUNT, torch.Generator().manual_seed(1))
    named = [{p.name: float(v) for p, v in zip(simulator.parameters, t, strict=True)} for t in theta]
    theirs = lenstronomy_image(simulator)
    ours = simulator.model_image(theta).double().numpy()
    reference = np.stack([theirs(t) for t in named])
    off = np.abs(ours - reference).max((1, 2)) / reference.max((1, 2))

    def gradient(rows: int) -> None:
        at = theta[:rows].clone().requires_grad_(True)
        simulator.log_likelihood(at[:, None], x).sum().backward()

    few = 8
    slow = milliseconds(lambda: [theirs(t) for t in named[:few]], images=few)
    with torch.no_grad():
        rows = {n: milliseconds(lambda n=n: simulator.model_image(theta[:n]), images=n) for n in (1, COUNT)}
    lines = [
        f"largest difference of a pixel, in units of the brightest: median {np.median(off):.1e}, worst {off.max():.1e} of {COUNT} draws",
        *(f"image, {n} at once: {ms:.2f} ms each" for n, ms in rows.items()),
        *(
            f"log likelihood and gradient, {n} at once: {milliseconds(lambda n=n: gradient(n), images=n):.2f} ms each"
            for n in (1, COUNT)
        ),
        f"lenstronomy: image {slow:.2f} ms, one-sided differences {slow * (theta.shape[1] + 1):.1f} ms",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
