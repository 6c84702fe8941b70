"""Features of stored simulations, standardised once when they are loaded: a step of training then reads what the network reads.

What is simulated or observed anew at every step is standardised there, to the same numbers.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from pipeline.estimators.network import NetworkInput, PosteriorNetwork, PreparedInput
from pipeline.training.data import HostSet, TrainingSet
from pipeline.training.stream import StreamedSet

BLOCK_NUMBERS = 1 << 22
"""Features that are standardised at once: 32 MB in float64, and as much for the result."""


def prepared(
    source: TrainingSet | HostSet | StreamedSet, network: PosteriorNetwork
) -> TrainingSet | HostSet | StreamedSet:
    """Stored simulations as `network`, standardised already, reads them; they stay where they are."""
    if isinstance(source, HostSet):
        return replace(source, stored=_prepared_set(source.stored, network))
    if isinstance(source, TrainingSet):
        return _prepared_set(source, network)
    fixed = copy.deepcopy(network).requires_grad_(False)  # a thread reads while the network is trained
    return StreamedSet(source.rows, source.plan, device=source.device, prepare=lambda rows: _prepared_set(rows, fixed))


def _prepared_set(rows: TrainingSet, network: PosteriorNetwork) -> TrainingSet:
    return replace(rows, inputs=prepared_input(rows.inputs, network))


def prepared_input(inputs: NetworkInput, network: PosteriorNetwork) -> PreparedInput:
    """In blocks on the network's device, back to that of `inputs`."""
    features, device = inputs.features, network.shift.device
    parts = [
        network.prepared(inputs._replace(features=part.to(device))).features.to(features.device)
        for part in features.split(max(1, BLOCK_NUMBERS // max(1, features[:1].numel())))
    ]
    return PreparedInput(torch.cat(parts), inputs.location, inputs.scale)
