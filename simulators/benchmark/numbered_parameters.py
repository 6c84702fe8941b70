"""Parameters under the benchmark's names: parameter_1, parameter_2, ..."""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributions import Distribution

from simulators.protocol import Parameter


def numbered_parameters(
    priors: Sequence[Distribution | None], *, labels: Sequence[str] | None = None
) -> tuple[Parameter, ...]:
    r"""One parameter for each prior (None under a joint prior), labelled $\theta_1, \theta_2, ...$ by default.

    >>> [p.name for p in numbered_parameters([None, None])]
    ['parameter_1', 'parameter_2']
    """
    if labels is None:
        labels = [rf"\theta_{{{d}}}" for d in range(1, len(priors) + 1)]
    return tuple(
        Parameter(f"parameter_{d}", prior, label=f"${label}$")
        for d, (prior, label) in enumerate(zip(priors, labels, strict=True), start=1)
    )
