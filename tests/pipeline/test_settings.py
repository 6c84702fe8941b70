"""The models themselves: frozen, dumped by the names of YAML, and every field is read somewhere."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import _model_in
from pipeline.settings import CaseSettings, PhaseSettings

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"simulator": {"name": "linear_gaussian"}}


def blocks(
    model: type[BaseModel] = CaseSettings, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every block of settings with its place in the YAML, depth first."""
    yield path, model
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            here = (*path, field.alias or name)
            yield from blocks(inner, (*here, "0") if inner is PhaseSettings else here)


# ------------------------------------------------------------ frozen, and dumped by the names of YAML


@pytest.mark.parametrize(
    ("path", "model"), list(blocks()), ids=lambda v: ".".join(v) or "top" if isinstance(v, tuple) else ""
)
def test_settings_are_frozen(path: tuple[str, ...], model: type[BaseModel]) -> None:
    instance: Any = CaseSettings.model_validate(LEAST | {"train": {"phases": [{"objective": "elbo", "steps": 5}]}})
    for part in path:
        instance = (
            instance[int(part)] if part.isdigit() else getattr(instance, "validation" if part == "validate" else part)
        )
    assert isinstance(instance, model)
    name = next(iter(model.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(instance, name, getattr(instance, name))


def test_dump_is_by_the_names_of_yaml_and_by_block() -> None:
    case = CaseSettings.model_validate(LEAST)
    assert "validate" in case.dump()
    assert "validation" not in case.dump()
    assert set(case.dump("seed", "validate")) == {"seed", "validate"}
    json.dumps(case.dump())


# ------------------------------------------------------------ every field is read


def attributes_read() -> set[str]:
    """Names that the code reads as attributes, settings.py left out."""
    found: set[str] = set()
    for path in set((ROOT / "pipeline").rglob("*.py")) - {*ROOT.glob("pipeline/*settings.py")}:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    return found


def test_every_field_is_read_somewhere() -> None:
    read = attributes_read()
    unread = [".".join((*path, name)) for path, model in blocks() for name in model.model_fields if name not in read]
    assert unread == []


@pytest.mark.parametrize(
    ("objective", "rate"),
    [("forward_kl", 5e-3), ("wake", 5e-3), ("elbo", 1e-3), ("iwelbo", 1e-3), ({"wake": 0.7, "elbo": 0.3}, 1e-3)],
)
def test_the_learning_rate_is_that_of_the_objective_where_none_is_given(objective: Any, rate: float) -> None:
    assert PhaseSettings(objective=objective, steps=1, draws=8).learning_rate == rate
    assert PhaseSettings(objective=objective, steps=1, draws=8, learning_rate=0.1).learning_rate == 0.1


def test_a_proposal_is_dumped_as_it_was_written() -> None:
    """It goes into the keys of simulations, which boxes of one parameter each had before there were mixtures."""
    box = {"per1": {"uniform": [20, 21.5]}, "jit": {"half_normal": 2}}
    for proposal in (
        box,
        {"mixture": [{"weight": 0.5, **box}, {"per1": {"uniform": [30, 31]}}], "logk1": {"normal": [1, 1]}},
    ):
        case = CaseSettings.model_validate(LEAST | {"simulate": {"proposal": proposal}})
        assert json.dumps(case.content("simulate")["simulate"]["proposal"]) == json.dumps(proposal)
