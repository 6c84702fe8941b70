"""Simulators by name and from a user's own file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simulators.linear_gaussian import LinearGaussian
from simulators.registry import available, create, load_class, load_class_from_file

USER_FILE = """
import torch
from torch.distributions import Normal
from simulators.protocol import Observable, Parameter


class Shift:
    name = "shift"
    observables = (Observable("x", (1,)),)

    def __init__(self, *, scale, offset=0.0):
        self.parameters = (Parameter("mu", Normal(0.0, scale)),)
        self.offset = offset

    def simulate(self, theta, context=None, *, generator):
        return {"x": theta + self.offset + torch.randn(theta.shape, generator=generator)}


class Twice(Shift):
    observables = (Observable("mu", (1,)),)


NotOne = dict
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_simulator.py"
    path.write_text(USER_FILE, encoding="utf-8")
    return path


def test_built_in_simulators_are_found_by_name() -> None:
    assert {"linear_gaussian", "radial_velocity"} <= set(available())
    assert load_class("linear_gaussian") is LinearGaussian
    simulator = create("linear_gaussian", {"dimension": 2, "size": 4})
    assert len(simulator.parameters) == 2


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown simulator 'radial_velocty'; did you mean 'radial_velocity'\?"):
        load_class("radial_velocty")


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no option 'dimensions'; did you mean 'dimension'\?"):
        create("linear_gaussian", {"dimensions": 2})


def test_a_users_simulator_comes_from_a_file(user_file: Path) -> None:
    simulator = create("Shift", {"scale": 2.0, "offset": 1.0}, path=user_file)
    x = simulator.simulate(torch.zeros(3, 1), generator=torch.Generator().manual_seed(0))
    assert x["x"].shape == (3, 1)


def test_a_missing_option_is_named(user_file: Path) -> None:
    with pytest.raises(ValueError, match=r"Shift needs the option 'scale'"):
        create("Shift", {}, path=user_file)


def test_what_is_no_simulator_is_refused(user_file: Path) -> None:
    with pytest.raises(ValueError, match=r"has no class 'Shft'"):
        load_class_from_file(user_file, "Shft")
    with pytest.raises(ValueError, match=r"names used twice: mu"):
        create("Twice", {"scale": 1.0}, path=user_file)
    with pytest.raises(ValueError, match=r"no file"):
        load_class_from_file(user_file.with_name("absent.py"), "Shift")


def test_a_file_that_fails_becomes_one_readable_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.py failed to import: ModuleNotFoundError"):
        load_class_from_file(path, "Anything")


def test_an_object_that_is_no_simulator_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text("class Plain:\n    name = 'plain'\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Plain is not a simulator: it needs name, parameters"):
        create("Plain", path=path)
