"""A simulator whose stored simulations keep the noise-free signal beside x, so that training can observe it anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simulators.failures import Failure
from simulators.protocol import (
    Data,
    Observable,
    Parameter,
    Simulator,
    context_of,
    data_observables,
    network_features,
    observe,
    signal_of,
)

SIGNAL = "signal_"
"""What the name of a stored signal begins with."""


class WithSignal:
    """The simulator, with `signal_<name>` beside every data observable `<name>`.

    Everything else is the simulator's own.

    Args:
        simulator: that offers `signal` and `observe`.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        signals = (replace(o, name=f"{SIGNAL}{o.name}", against=None, error=None) for o in data_observables(simulator))
        self.observables: tuple[Observable, ...] = (*simulator.observables, *signals)

    @property
    def name(self) -> str:
        """Of the simulator."""
        return self.simulator.name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of the simulator."""
        return self.simulator.parameters

    @property
    def exchangeable(self) -> tuple[str, ...]:
        """Of the simulator, with the signals of those."""
        names = tuple(getattr(self.simulator, "exchangeable", ()))
        return (
            *names,
            *(o.name for o in self.observables if o.name.removeprefix(SIGNAL) in names and o.name not in names),
        )

    def __getattr__(self, name: str) -> Any:
        if name == "simulator":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.simulator, name)

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        """x, and the signal that it was observed from."""
        signal = signal_of(self.simulator, theta, context, generator=generator)
        x = observe(self.simulator, signal, theta, generator=generator)
        return x | {f"{SIGNAL}{o.name}": signal[o.name] for o in data_observables(self.simulator)}

    def simulate_with_reasons(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> tuple[Data, dict[int, Failure]]:
        """`simulate`; the simulator's own reasons are of its `simulate`, which is not called: a failed row is NaN."""
        return self.simulate(theta, context, generator=generator), {}

    def reduced(self, x: Mapping[str, Tensor]) -> Data:
        """All of x, whatever a likelihood needs of it: it is observed anew first."""
        return dict(x)

    def features(self, x: Mapping[str, Tensor]) -> Tensor:
        """Of x alone."""
        return network_features(self.simulator, x)

    def observe_again(self, x: Mapping[str, Tensor], theta: Tensor, *, generator: torch.Generator) -> Data:
        """New noise on stored signals, under the same observing conditions."""
        signal = context_of(self.simulator, x)
        signal |= {o.name: x[f"{SIGNAL}{o.name}"] for o in data_observables(self.simulator)}
        return observe(self.simulator, signal, theta, generator=generator)
