"""Random numbers as a function of (seed, stage, index), and of nothing else.

The same content then comes from one worker or sixteen, from a run that was never interrupted or one that
was killed and resumed.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derived_seed(seed: int, stage: str, index: int = 0) -> int:
    """A 63-bit seed for one (seed, stage, index).

    >>> derived_seed(1, "simulate", 0) == derived_seed(1, "simulate", 0)
    True
    >>> derived_seed(1, "simulate", 0) == derived_seed(1, "simulate", 1)
    False
    """
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(stage.encode()), index))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, stage: str, index: int = 0, *, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one (seed, stage, index) on `device`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, stage, index))
