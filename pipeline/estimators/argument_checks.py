"""Imports that leave torch's checks of distribution arguments as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributions import Distribution


@contextmanager
def argument_checks_kept() -> Iterator[None]:
    """Restore `Distribution`'s default of `validate_args` on the way out.

    Importing zuko (and sbi, which imports it) sets it to False for the whole process.
    """
    before = bool(Distribution._validate_args)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
