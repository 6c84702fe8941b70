r"""Refinement: a copy of q trained on the ELBO of one observation alone, for R observations at once.

    maximise  ELBO(x) = < log p(x|theta) + log p(theta) - log q(theta|x) >_q

with path gradients, whose variance vanishes as q reaches the posterior. No simulations are needed: theta is
drawn from q for ever. Each copy serves its observation only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution

from pipeline.estimators.copies import clip_each, copies_of
from pipeline.estimators.network import Condition, PosteriorNetwork
from pipeline.objectives.elbo import elbo
from pipeline.settings import RefineSettings
from pipeline.training.averaging import follow
from simulators.protocol import Simulator, log_likelihood

GRADIENT_CLIP = 5.0
AVERAGE = 0.98


def refine(
    network: PosteriorNetwork,
    condition: Condition,
    *,
    simulator: Simulator,
    prior: Distribution,
    x: Mapping[str, Tensor],
    settings: RefineSettings,
    generator: torch.Generator,
    advance: Callable[..., None] | None = None,
) -> PosteriorNetwork:
    """Copies of `network` whose flows are fine-tuned on x, one for each of its R rows, the embedding unchanged.

    Args:
        network: the amortized network, or copies of it for the same rows (`copies_of`).
        condition: of x, from the amortized embedding.
        advance: told of each step, with the current mean ELBO as note.

    Returns:
        the copies, with the running average of the weights of the last steps.
    """
    copies = len(condition.context)
    refined = copies_of(network, copies)
    averaged = copy.deepcopy(refined.flow)
    refined.flow.requires_grad_(True)
    parameters = list(refined.flow.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    condition = Condition(*(t.detach() for t in condition))
    with torch.enable_grad():
        for step in range(settings.steps):
            rate = settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20)
            theta, log_q = refined.draw(
                condition, settings.draws, generator=generator, path_gradient=True, dtype=torch.float64
            )
            bound = elbo(
                theta,
                log_q,
                log_likelihood=lambda t: log_likelihood(simulator, t, x),
                log_prior=prior.log_prob,
            )
            optimizer.zero_grad()
            (-bound.value * copies).backward()  # a mean over rows; each copy is to get the gradient of its own
            clip_each(parameters, GRADIENT_CLIP, copies=copies)
            optimizer.step()
            decay = min(AVERAGE, (1 + step) / (10 + step))
            follow(averaged, refined.flow, decay)
            if advance:
                advance(1, note=f"ELBO {float(bound.value.detach()):.3f}" if step % 10 == 0 else None)
    refined.flow.load_state_dict(averaged.state_dict())
    return refined.requires_grad_(False)
