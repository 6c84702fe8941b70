"""Three panels: image and model on one scale, residual in units of the error, masked pixels left out."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.plots.image import plot_image

MODEL = np.outer(np.arange(8.0), np.ones(6))
ERROR = np.full((8, 6), 0.5)
USED = np.ones((8, 6), dtype=bool)


def test_residual_is_in_units_of_the_error_and_without_masked_pixels() -> None:
    observed, used = MODEL + ERROR * 2, USED.copy()
    observed[0, 0], used[0, 0] = 1e6, False
    figure = plot_image(observed, np.stack([MODEL - 1, MODEL + 1]), error=ERROR, used=used, side=0.1)
    image, model, residual = (np.ma.filled(np.ma.asarray(a.images[0].get_array()), np.nan) for a in figure.axes[:3])
    np.testing.assert_allclose(model, MODEL)
    np.testing.assert_allclose(residual[used], 2.0)
    assert np.isnan([residual[0, 0], image[0, 0]]).all()
    assert "mean square 4.00" in figure.axes[2].get_title()
    assert figure.axes[0].images[0].get_clim() == figure.axes[1].images[0].get_clim()
    assert figure.axes[0].images[0].get_extent() == pytest.approx([-0.3, 0.3, -0.4, 0.4])


def test_shapes_that_do_not_match_are_named() -> None:
    with pytest.raises(InputError, match="expected models"):
        plot_image(MODEL, MODEL, error=ERROR, used=USED, side=1.0)
    with pytest.raises(InputError, match="masked"):
        plot_image(MODEL, MODEL[None], error=ERROR, used=~USED, side=1.0)
