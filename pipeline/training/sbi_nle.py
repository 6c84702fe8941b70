"""A member of the ensemble trained by sbi's NLE as sbi trains it: its defaults, its own early stopping."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.estimators.argument_checks import argument_checks_kept
from pipeline.estimators.sbi_likelihood import MODEL
from pipeline.estimators.summary import Summary
from pipeline.rng import generator
from pipeline.training.maximum_likelihood import Fitted


class _Silent:
    """A tracker that writes nothing: sbi's default makes a folder where the command was started."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def log_params(self, params: dict[str, Any]) -> None: ...

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None: ...

    def flush(self) -> None: ...


def train_nle(
    member: nn.Module,
    summary: Summary,
    theta: torch.Tensor,
    s: torch.Tensor,
    held_out: Callable[[nn.Module], float],
    *,
    seed: int,
    most_epochs: int,
) -> Fitted:
    """Train on standardised theta with context, (N, T), and s (N, S); whole numbers get one draw of noise each.

    Args:
        member: an untrained `SbiDensity`, which takes the weights.
        most_epochs: at most so many; sbi stops earlier where its own validation set does not improve for 20.
    """
    with argument_checks_kept():
        from sbi.inference import NLE
    v = summary.standardized(s + summary.noise(len(s), generator(seed, "sbi-nle-noise", device=s.device)))[0].float()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        inference = NLE(density_estimator=MODEL, device=str(theta.device), tracker=_Silent(), show_progress_bars=False)
        estimator = inference.append_simulations(theta, v).train(max_num_epochs=most_epochs)
    estimator_of: Any = member
    estimator_of.estimator.load_state_dict(estimator.state_dict())
    epochs = int(inference.summary["epochs_trained"][-1])
    return Fitted(member.eval().requires_grad_(False), held_out(member), epochs)
