"""The template fit against scipy's optimum of the same penalised likelihood."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize

from simulators.fermi.template_fit import fit_templates, logit_guess


def test_fit_is_the_penalised_maximum_and_its_errors_are_honest() -> None:
    generator = torch.Generator().manual_seed(0)
    templates = torch.rand(3, 400, generator=generator, dtype=torch.float64) + 0.1
    mean, spread = torch.tensor([2.0, 3.0, 4.0]).double(), torch.tensor([1.0, 1.0, 1.0]).double()
    truth = torch.tensor([1.5, 3.5, 4.2]).double().expand(500, -1)
    counts = torch.poisson(truth @ templates, generator=generator)
    fit = fit_templates(counts, templates, mean, spread)

    def loss(theta: np.ndarray) -> float:
        rate = theta @ templates.numpy()
        penalty = 0.5 * (((theta - mean.numpy()) / spread.numpy()) ** 2).sum()
        return float((rate - counts[0].numpy() * np.log(rate)).sum() + penalty)

    best = minimize(loss, mean.numpy(), method="BFGS", options={"gtol": 1e-7}).x
    # Fisher scoring is not Newton: the penalised optimum up to the square of its error
    np.testing.assert_allclose(fit.norm[0], best, atol=0.02)
    pull = (fit.norm - truth) / fit.error
    # the penalty shrinks: the scatter is below one, by its share of the information
    assert bool((pull.std(0) < 1.1).all())
    assert bool((pull.std(0) > 0.7).all())


def test_a_template_that_data_do_not_see_keeps_its_prior() -> None:
    templates = torch.stack([torch.ones(100), torch.full((100,), 1e-6)]).double()
    mean, spread = torch.tensor([5.0, 1.0]).double(), torch.tensor([2.0, 0.3]).double()
    fit = fit_templates(torch.full((1, 100), 5.0), templates, mean, spread)
    torch.testing.assert_close(fit.norm[0, 1], mean[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(fit.error[0, 1], spread[1], rtol=1e-3, atol=0)


def test_guess_stays_finite_outside_the_prior() -> None:
    low, high = torch.zeros(1).double(), torch.ones(1).double()
    location, scale = logit_guess(
        torch.tensor([[-3.0], [0.5], [9.0]]).double(), torch.full((3, 1), 0.1).double(), low, high
    )
    assert bool(location.isfinite().all())
    torch.testing.assert_close(scale[1], torch.tensor([0.4]).double())
    assert bool((scale <= 2).all())
