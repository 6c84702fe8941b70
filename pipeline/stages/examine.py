"""Is an observation like the simulated ones, like data that its posterior predicts, and is its likelihood to be trusted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.diagnostics.predictive import predictive_check
from pipeline.estimators.posterior import Posterior
from pipeline.rng import generator
from pipeline.settings import InferSettings
from pipeline.stages.isolation import each, joined
from simulators.protocol import Data, data_observables, likelihood_trust


@dataclass(frozen=True)
class Examination:
    """What the checks say of one observation; a check that could not be made is absent or NaN, with a note.

    Attributes:
        typicality: p-value of the observation among simulated ones.
        predictive: p-values of the posterior predictive check: `log_likelihood`, and one for each data observable.
        predictive_failed: replicates that the simulator could not make.
        surrogate: how far a learned likelihood is to be trusted, by the names of the certificate.
        note: in words.
    """

    typicality: float = float("nan")
    predictive: Mapping[str, float] = field(default_factory=dict)
    predictive_failed: float = float("nan")
    surrogate: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def examine(
    posterior: Posterior, x: Data, theta: Sequence[Tensor], *, settings: InferSettings, seed: int, index: int
) -> list[Examination]:
    """Checks of N observations at their delivered draws, theta (L, D) for each."""
    rows = [n for n, draws in enumerate(theta) if bool(draws.isfinite().all())]
    checks = _Checks(posterior, x, theta, settings, seed, index)
    typicality = each(rows, checks.typicality)
    surrogate = each(rows, checks.surrogate)
    predictive = each(rows, checks.predictive) if settings.predictive_draws else {}
    examined = []
    for n in range(len(theta)):
        typical, no_typicality = typicality.get(n, (None, ""))
        figures, no_figures = surrogate.get(n, (None, ""))
        p_values, no_p_values = predictive.get(n, (None, ""))
        values, failed, reason = p_values or ({}, float("nan"), "")
        note = joined(
            reason,
            no_typicality and f"typicality could not be judged ({no_typicality})",
            no_figures and f"the learned likelihood could not be checked ({no_figures})",
            no_p_values and f"no predictive check ({no_p_values})",
        )
        examined.append(Examination(float("nan") if typical is None else typical, values, failed, figures or {}, note))
    return examined


@dataclass(frozen=True)
class _Checks:
    posterior: Posterior
    x: Data
    theta: Sequence[Tensor]
    settings: InferSettings
    seed: int
    index: int

    def _x(self, rows: Sequence[int]) -> Data:
        return {name: values[list(rows)] for name, values in self.x.items()}

    def typicality(self, rows: Sequence[int]) -> list[float]:
        return self.posterior.typicality(self._x(rows)).tolist()

    def surrogate(self, rows: Sequence[int]) -> list[dict[str, float]]:
        figures = likelihood_trust(
            self.posterior.simulator, torch.stack([self.theta[n] for n in rows], 1), self._x(rows)
        )
        return [{name: float(values[i]) for name, values in figures.items()} for i in range(len(rows))]

    def predictive(self, rows: Sequence[int]) -> list[tuple[dict[str, float], float, str]]:
        simulator, count = self.posterior.simulator, min(self.settings.predictive_draws, self.settings.draws)
        check = predictive_check(
            simulator,
            torch.stack([self.theta[n][:count] for n in rows], 1),
            self._x(rows),
            generator=generator(self.seed, "infer-predictive", self.index + rows[0], device=self.posterior.device),
            least_replicates=self.settings.predictive_draws,  # at least this many are replicated
        )
        names = ("log_likelihood", *(o.name for o in data_observables(simulator)))
        return [
            ({name: float(check.p_value[name][i]) for name in names}, float(check.failed[i]), check.reason[i])
            for i in range(len(rows))
        ]
