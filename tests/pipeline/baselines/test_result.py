from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.baselines.result import BaselineResult


def test_is_frozen():
    result = BaselineResult("emcee", np.zeros((2, 1)), None, None, True, {}, 1.0, 0.9, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.converged = False  # pyright: ignore[reportAttributeAccessIssue]
