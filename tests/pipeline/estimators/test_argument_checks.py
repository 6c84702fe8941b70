"""Imports that switch off torch's checks of arguments do not reach the rest of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch.distributions import Distribution

from pipeline.estimators.argument_checks import argument_checks_kept

PROGRAM = """
from torch.distributions import Distribution
from pipeline.estimators.argument_checks import argument_checks_kept
Distribution.set_default_validate_args({before})
with argument_checks_kept():
    import zuko
    assert Distribution._validate_args is False
assert Distribution._validate_args is {before}
"""


@pytest.mark.parametrize("before", [True, False])
def test_the_default_is_what_it_was_after_zuko(before: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(before=before)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def switch_and_fail() -> None:
    with argument_checks_kept():
        Distribution.set_default_validate_args(not Distribution._validate_args)
        raise ImportError


def test_the_default_is_what_it_was_after_an_error() -> None:
    before = Distribution._validate_args
    with pytest.raises(ImportError):
        switch_and_fail()
    assert Distribution._validate_args is before
