"""Lens equation and brightness against lenstronomy, convolution against SciPy, pixels against arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from simulators.lens_image import PixelGrid, convolved, gaussian_psf, ratio_and_angle, sersic, source_plane
from simulators.priors import prior_of, sample
from simulators.strong_lens import PRIORS, StrongLens

REAL = Path(__file__).resolve().parents[3] / "shared" / "observations" / "strong_lens" / "slacs_j2303+1422.h5"


def columns(**values: float) -> dict[str, torch.Tensor]:
    return {k: torch.full((1, 1, 1), v, dtype=torch.float64) for k, v in values.items()}


def test_deflections_are_lenstronomys() -> None:
    models: Any = pytest.importorskip("lenstronomy.LensModel.lens_model", reason="lenstronomy is not installed")
    first, second = 0.15, -0.2
    q, phi = (float(v) for v in ratio_and_angle(torch.tensor(first).double(), torch.tensor(second).double()))
    x, y = (t.double() for t in PixelGrid(20, 1, 0.3).centers(native=True))
    lens = columns(x=0.1, y=-0.05, radius=1.6, e1=first, e2=second, shear_1=0.04, shear_2=-0.03)
    ours = source_plane(lens, x, y)
    e = (1 - q) / (1 + q)
    theirs = models.LensModel(["SIE", "SHEAR"]).ray_shooting(
        x.numpy().ravel(),
        y.numpy().ravel(),
        [
            {
                "theta_E": 1.6,
                "e1": e * np.cos(2 * phi),
                "e2": e * np.sin(2 * phi),
                "center_x": 0.1,
                "center_y": -0.05,
            },
            {"gamma1": 0.04, "gamma2": -0.03, "ra_0": 0.1, "dec_0": -0.05},
        ],
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine[0].numpy().ravel(), other, atol=2e-5)


def test_a_lens_on_a_pixels_centre_gives_a_finite_image() -> None:
    simulator = StrongLens(pixels=13)
    theta = torch.tensor(
        [[0.0, 0, 1.2, 0.1, 0, 0.02, 0, 0.1, 0, 0.1, 0, 0.2, 1, 0.1]], dtype=torch.float64, requires_grad=True
    )
    image = simulator.model_image(theta)
    assert bool(image.isfinite().all())
    (slope,) = torch.autograd.grad(image.sum(), theta)
    assert bool(slope.isfinite().all())


def test_the_likelihood_of_many_draws_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = StrongLens(pixels=13)
    theta = sample(prior_of(simulator), 15, torch.Generator().manual_seed(1)).view(5, 3, -1)
    x = simulator.simulate(theta[0], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = simulator.log_likelihood(theta, x)
        monkeypatch.setattr("simulators.strong_lens.MODELS", 6)
        torch.testing.assert_close(simulator.log_likelihood(theta, x), whole, rtol=1e-5, atol=1e-2)


def test_brightness_is_lenstronomys() -> None:
    models: Any = pytest.importorskip("lenstronomy.LightModel.light_model", reason="lenstronomy is not installed")
    q, phi = (float(v) for v in ratio_and_angle(torch.tensor(0.1).double(), torch.tensor(0.2).double()))
    x, y = (t.double() for t in PixelGrid(20, 1, 0.1).centers(native=True))
    ours = sersic(columns(x=0.2, y=0.1, radius=0.4, e1=0.1, e2=0.2, index=2.0, brightness=0.3), x, y)[0]
    e = (1 - q) / (1 + q)
    theirs = models.LightModel(["SERSIC_ELLIPSE"]).surface_brightness(
        x.numpy().ravel(),
        y.numpy().ravel(),
        [
            {
                "amp": 0.3,
                "R_sersic": 0.4 * np.sqrt(q),  # geometric mean of the axes; ours is along the major one
                "n_sersic": 2.0,
                "e1": e * np.cos(2 * phi),
                "e2": e * np.sin(2 * phi),
                "center_x": 0.2,
                "center_y": 0.1,
            }
        ],
    )
    far = (x - 0.2).square() + (y - 0.1).square() > 0.02  # near the core of 1e-3 arcsec that ours has
    np.testing.assert_allclose(ours[far].numpy(), theirs.reshape(20, 20)[far.numpy()], rtol=0.01)


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (0.3, 0.0), (0.0, -0.4), (-2.0, 1.0)])
def test_any_two_numbers_are_an_ellipse(first: float, second: float) -> None:
    a = torch.tensor([first, second], dtype=torch.float64, requires_grad=True)
    q, phi = ratio_and_angle(a[0], a[1])
    assert 0 < q.item() <= 1
    assert q.item() == pytest.approx(np.exp(-2 * np.hypot(first, second)), abs=1e-5)
    (q + phi).backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())


def test_convolution_is_scipys() -> None:
    stream = torch.Generator().manual_seed(1)
    image, psf = torch.rand(2, 31, 31, generator=stream), torch.rand(9, 9, generator=stream)
    expected = np.stack([fftconvolve(i, psf.numpy(), mode="same") for i in image.numpy()])
    np.testing.assert_allclose(convolved(image, psf).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_pixels_are_means_of_native_ones_at_their_centres() -> None:
    grid = PixelGrid(5, 3, 0.05)
    x, y = grid.centers(native=True)
    coarse_x, coarse_y = grid.centers(native=False)
    torch.testing.assert_close(grid.binned(x), coarse_x)
    torch.testing.assert_close(grid.binned(y), coarse_y)
    assert float(gaussian_psf(0.1, grid).sum()) == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def simulator() -> StrongLens:
    return StrongLens(pixels=15, binning=2, native_arcsec=0.2, masked_circles=[[1.0, 1.0, 0.4]])


def test_likelihood_is_that_of_the_noise(simulator: StrongLens) -> None:
    """Squared residuals over unmasked pixels are chi-squared, and constants are kept."""
    stream = torch.Generator().manual_seed(2)
    theta = sample(prior_of(simulator), 60, stream)
    x = simulator.simulate(theta, generator=stream)
    pixels = int((x["mask"][0] > 0).sum())
    constant = (2 * np.pi * x["noise"].double().square()).log().where(x["mask"] > 0, torch.tensor(0.0).double())
    chi2 = -2 * simulator.log_likelihood(theta, x) - constant.sum((1, 2))
    assert float(chi2.mean()) == pytest.approx(pixels, abs=5 * np.sqrt(2 * pixels / 60))
    assert bool((x["image"][x["mask"] == 0] == 0).all())
    assert float(x["mask"][0][tuple(_pixel(simulator, 1.0, 1.0))]) == 0


def _pixel(simulator: StrongLens, x: float, y: float) -> list[int]:
    grid_x, grid_y = simulator.grid.centers(native=False)
    flat = int(((grid_x - x).square() + (grid_y - y).square()).argmin())
    return list(divmod(flat, simulator.grid.pixels))


def test_gradient_agrees_with_finite_differences(simulator: StrongLens) -> None:
    stream = torch.Generator().manual_seed(3)
    theta = sample(prior_of(simulator), 1, stream)
    x = simulator.simulate(theta, generator=stream)
    near = (theta * 1.01).requires_grad_(True)
    simulator.log_likelihood(near, x).backward()
    assert near.grad is not None
    d = list(PRIORS).index("einstein_radius")
    step = torch.zeros_like(theta)
    step[0, d] = 2e-3
    up, down = (float(simulator.log_likelihood(near.detach() + s * step, x)) for s in (1, -1))
    assert float(near.grad[0, d]) == pytest.approx((up - down) / 4e-3, rel=0.1, abs=1.0)


def test_the_real_image_is_cut_binned_and_masked() -> None:
    if not REAL.is_file():
        pytest.skip("the HST image is not here")
    simulator = StrongLens(data=str(REAL), masked_circles=[[-1.8, -2.75, 0.9]])
    x, ids = simulator.read_observation(REAL)
    assert ids == ["slacs_j2303+1422"]
    assert x["image"].shape == (1, 39, 39)
    bright = torch.unravel_index((x["image"][0] / x["noise"][0].clamp_min(1e-6)).argmax(), (39, 39))
    grid_x, grid_y = simulator.grid.centers(native=False)
    radius = float((grid_x[bright].square() + grid_y[bright].square()).sqrt())
    assert 1.0 < radius < 2.5  # an arc
    with pytest.raises(ValueError, match="native_arcsec"):
        StrongLens(native_arcsec=0.04).read_observation(REAL)


def test_foreign_files_and_priors_are_refused(tmp_path: Path) -> None:
    import h5py

    with pytest.raises(ValueError, match="no such file"):
        StrongLens(data=str(tmp_path / "nothing.h5"))
    with h5py.File(tmp_path / "image.h5", "w") as file:
        file["image"] = np.zeros((40, 40))
    with pytest.raises(ValueError, match="missing: noise_map, psf"):
        StrongLens().read_observation(tmp_path / "image.h5")
    with pytest.raises(ValueError, match="unknown lens_z"):
        StrongLens(priors={"lens_z": {"uniform": [0, 1]}})


def test_a_view_is_of_the_models_of_the_draws_and_of_the_pixels_that_are_compared() -> None:
    simulator = StrongLens(pixels=13, binning=3)
    stream = torch.Generator().manual_seed(5)
    theta = sample(prior_of(simulator), 3, stream)
    x = simulator.simulate(theta[:1], generator=stream)
    x["mask"][0, 0, 0] = 0
    (view,) = simulator.predictive_views(theta, x)
    torch.testing.assert_close(view.models[1], simulator.model_image(theta[1:2])[0])
    torch.testing.assert_close(view.observed, x["image"][0])
    assert not view.used[0, 0]
    assert bool(view.used.any())
