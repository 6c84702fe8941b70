"""Seeds are a function of (seed, stage, index), the same on every machine and in every version."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from pipeline.rng import derived_seed, generator


def test_seeds_are_what_they_were() -> None:
    """A change here changes the content of every run that anyone has made."""
    assert derived_seed(1, "simulate", 0) == 4071263464465551239
    assert derived_seed(1, "train-0", 12) == 7905860302418224102


def test_seeds_differ_by_seed_stage_and_index() -> None:
    seeds = [
        derived_seed(s, stage, i)
        for s, stage, i in itertools.product(range(20), ("simulate", "train-0", "train-0-epoch"), range(50))
    ]
    assert len(set(seeds)) == len(seeds) == 3000
    assert derived_seed(3, "train") == derived_seed(3, "train", 0)


def test_seeds_are_63_bits_of_which_all_are_used() -> None:
    seeds = np.array([derived_seed(0, "bits", i) for i in range(2000)])
    assert seeds.min() >= 0
    share = np.array([((seeds >> bit) & 1).mean() for bit in range(63)])
    assert np.abs(share - 0.5).max() < 5 * 0.5 / 2000**0.5


def test_generators_are_those_of_their_seed_and_independent() -> None:
    draws = [torch.randn(2000, generator=generator(1, "stage", i)) for i in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert abs(float((draws[0] * draws[2]).mean())) < 5 / 2000**0.5
    expected = torch.Generator().manual_seed(derived_seed(1, "stage", 1))
    assert torch.equal(draws[2], torch.randn(2000, generator=expected))
    assert generator(1, "stage", 1).device == torch.device("cpu")


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(5, generator=generator(1, "stage"))
    assert torch.equal(torch.rand(3), expected)
