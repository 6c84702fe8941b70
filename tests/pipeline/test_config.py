"""Reading a case: every case loads, every mistake is one line that helps, the stored schema is the current one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from pipeline.config import build_simulator, case_from_values, json_schema, load_case, override_values
from pipeline.errors import InputError
from pipeline.settings import CaseSettings, Objective, PhaseSettings, SimulatorSettings
from pipeline.stages.run import Run
from simulators.proposals import proposed_parameters
from tests.pipeline.test_settings import LEAST, blocks
from tests.simulators.fermi.synthetic_sky import write_synthetic_sky

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((ROOT / "configs").glob("**/*.yaml"))
NEED_A_SKY = ("fermi_poisson", "fermi_poisson_hidden", "fermi_inner_galaxy")
"""Cases whose data file a user brings."""


def written(folder: Path, values: Any, name: str = "case.yaml") -> Path:
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def message_of(values: Any, *overrides: str, folder: Path) -> str:
    """The one line with which a case is refused, without the file's name."""
    path = written(folder, values)
    with pytest.raises(InputError) as error:
        load_case(path, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# ------------------------------------------------------------ the cases that ship


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.name)
def test_every_case_loads_builds_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    overrides = []
    if path.stem in NEED_A_SKY:
        sky = write_synthetic_sky(tmp_path / "sky.h5")
        overrides = [f"simulator.options.data={sky}", f"observation={sky}"]
    case = load_case(path, overrides)
    assert case.name == path.stem
    simulator = build_simulator(case.simulator)
    names = {p.name for p in simulator.parameters}
    assert set(proposed_parameters(case.simulate.proposal)) <= names
    assert case.observation is None or case.observation.is_file()
    assert case_from_values(json.loads(json.dumps(case.dump())), "stored") == case


def test_there_are_cases() -> None:
    assert CASES


# ------------------------------------------------------------ unknown keys


@pytest.mark.parametrize(
    ("path", "model"), list(blocks()), ids=lambda v: ".".join(v) or "top" if isinstance(v, tuple) else ""
)
def test_an_unknown_key_names_the_nearest_at_every_depth(
    path: tuple[str, ...], model: type[BaseModel], tmp_path: Path
) -> None:
    known = [field.alias or name for name, field in model.model_fields.items()]
    for key in (known[0], known[-1]):
        wrong = key[:-1] + "zq"
        values: dict[str, Any] = {
            "simulator": {"name": "linear_gaussian"},
            "train": {"phases": [{"objective": "elbo", "steps": 5}]},
        }
        node: Any = values
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[wrong] = 1
        where = ".".join((*path, ""))
        assert message_of(values, folder=tmp_path).startswith(
            f"unknown key '{where}{wrong}'; did you mean '{where}{key}'?"
        )


def test_an_unknown_key_like_nothing_lists_what_is_known(tmp_path: Path) -> None:
    message = message_of(LEAST | {"infer": {"xyzzy": 1}}, folder=tmp_path)
    assert message.startswith("unknown key 'infer.xyzzy'; known here: draws, proposals, equal_proposals, refine, ")


def test_the_block_validate_is_known_by_both_names(tmp_path: Path) -> None:
    """`validate` in YAML, `validation` in Python, where the other is a method of pydantic's."""
    assert load_case(written(tmp_path, LEAST | {"validate": {"draws": 7}})).validation.draws == 7
    for name in ("validate", "validation"):
        assert "did you mean" in message_of(LEAST | {name: {"drawz": 7}}, folder=tmp_path)


# ------------------------------------------------------------ wrong values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"steps": 0}}, "train.steps: Input should be greater than 0, got 0"),
        ({"train": {"gradient_clip": "much"}}, "train.gradient_clip: Input should be a valid number, .*, got 'much'"),
        ({"train": {"phases": [{"steps": 5}]}}, "'train.phases.0.objective' is required"),
        (
            {"train": {"phases": [{"objective": "elbow", "steps": 5}]}},
            "train.phases.0.objective: Input should be 'elbo', 'iwelbo', 'forward_kl' or 'wake', got 'elbow'",
        ),
        ({"train": 5}, "train: Input should be a valid dictionary .*, got 5"),
        ({"simulator": {"options": {}}}, "'simulator.name' is required"),
        (
            {"infer": {"draws": 3000, "proposals": 20000}},
            r"infer.proposals \(20000\) must be at least ten times infer.draws \(3000\)",
        ),
        (
            {"infer": {"refine": {"amortized_share": 1.5}}},
            "infer.refine.amortized_share: .* less than or equal to 1, got 1.5",
        ),
        ({"device": "gpu"}, "device: Input should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ({"seed": -1, "threads": -1}, r"seed: .*, got -1 \(and 1 more\)"),
        ({3: 4}, "3: Keys should be strings"),
    ],
)
def test_a_wrong_value_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert re.match(message, message_of(LEAST | change, folder=tmp_path))


def test_a_case_without_a_simulator_is_refused(tmp_path: Path) -> None:
    assert message_of({"seed": 1}, folder=tmp_path) == "'simulator' is required"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not valid YAML at line 1, column 9: expected ',' or ']'"),
        ("simulator: {name: x}\n  seed: 3", "not valid YAML at line 2, column 3: expected <block end>"),
        ("a: \x00", "not valid YAML: unacceptable character #x0000"),
        ("- 1\n- 2", "expected a mapping of settings, got list"),
        ("", "expected a mapping of settings, got NoneType"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "not valid YAML at line 1, column 4: could not determine a constructor",
        ),
    ],
)
def test_a_file_that_is_no_case_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    assert message_of(text, folder=tmp_path).startswith(message)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x80")
    for path, message in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "is a directory"),
        (binary, "not UTF-8 text"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_case(path)
        assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "linear_gausian"}, "simulator: unknown simulator 'linear_gausian'; did you mean 'linear_gaussian'"),
        ({"name": "linear_gaussian", "options": {"dimensions": 3}}, "no option 'dimensions'; did you mean 'dimension'"),
        ({"name": "linear_gaussian", "options": {"dimension": 0}}, "dimension and size must be at least 1"),
        ({"name": "Mine", "path": "/nowhere/mine.py"}, "no file /nowhere/mine.py"),
    ],
)
def test_a_simulator_that_cannot_be_built_is_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_simulator(SimulatorSettings(**settings))


# ------------------------------------------------------------ overrides


def overridden(*overrides: str, values: dict[str, Any] | None = None) -> CaseSettings:
    start = json.loads(json.dumps(values or LEAST))
    return case_from_values(override_values(start, overrides), "test")


def test_overrides_reach_every_depth_and_make_what_is_missing() -> None:
    case = overridden(
        "seed=7", "train.steps=500", "infer.refine.when=never", "compare.emcee.enabled=false", "validate.draws=9"
    )
    assert (case.seed, case.train.steps, case.infer.refine.when) == (7, 500, "never")
    assert case.compare.emcee.enabled is False
    assert case.validation.draws == 9


def test_overrides_reach_into_lists() -> None:
    phases = {"train": {"phases": [{"objective": "elbo", "steps": 5}, {"objective": "forward_kl", "steps": 6}]}}
    case = overridden("train.phases.1.steps=60", "train.phases.0.objective=forward_kl", values=LEAST | phases)
    assert [(p.objective, p.steps) for p in case.train.phases] == [("forward_kl", 5), ("forward_kl", 60)]
    case = overridden("train.phases=[{objective: elbo, steps: 3, learning_rate: 1e-4}]")
    assert case.train.phases == (PhaseSettings(objective="elbo", steps=3, learning_rate=1e-4),)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2.5E2", 250.0), ("3", 3.0), ("1_000", 1000.0)])
def test_numbers_are_numbers_as_people_write_them(text: str, value: float) -> None:
    """YAML 1.1 reads 1e-3 as text."""
    assert overridden(f"train.gradient_clip={text}").train.gradient_clip == value
    assert overridden(f"simulator.options.noise_scale={text}").simulator.options == {"noise_scale": value}


def test_values_may_hold_equal_signs_and_be_null_or_text() -> None:
    assert overridden("title=a = b").title == "a = b"
    assert overridden("train.steps=null", values=LEAST | {"train": {"steps": 5}}).train.steps is None
    assert overridden("simulator.options.name=a.b").simulator.options == {"name": "a.b"}


def test_a_later_override_wins_and_a_null_block_is_filled() -> None:
    assert overridden("seed=2", "seed=3").seed == 3
    assert overridden("train.steps=4", values=LEAST | {"train": None}).train.steps == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "--set train.steps: expected key=value, such as train.steps=500"),
        ("=5", "--set =5: expected key=value"),
        ("seed.more=5", "--set seed.more=5: seed is a single value and has no keys"),
        ("train.phases.2.steps=5", "--set train.phases.2.steps=5: train.phases has entries 0 to 0, not '2'"),
        ("train.phases.first.steps=5", "train.phases has entries 0 to 0, not 'first'"),
        ("train.phases.-1.steps=5", "train.phases has entries 0 to 0, not '-1'"),
        ("seed=[1", "--set seed=[1: not valid YAML at line 1, column 3"),
        ("train.stpes=500", "unknown key 'train.stpes'; did you mean 'train.steps'?"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
    ],
)
def test_a_bad_override_is_one_line(override: str, message: str, tmp_path: Path) -> None:
    values = LEAST | {"seed": 1, "train": {"phases": [{"objective": "elbo", "steps": 5}]}}
    assert message in message_of(values, override, folder=tmp_path)


# ------------------------------------------------------------ paths and names


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    options = {
        "design": {"observation": "../data/a.h5", "note": "../data/a.h5"},
        "stars": [{"path": "b.csv"}],
        "path": "/absolute/c.csv",
        "data": "sky.h5",
    }
    values = {"observation": "../data/a.h5", "simulator": {"name": "Mine", "path": "mine.py", "options": options}}
    case = load_case(written(folder, values))
    assert case.observation == tmp_path / "data/a.h5"
    assert case.simulator.path == folder / "mine.py"
    assert case.simulator.options == {
        "design": {"observation": str(tmp_path / "data/a.h5"), "note": "../data/a.h5"},
        "stars": [{"path": str(folder / "b.csv")}],
        "path": "/absolute/c.csv",
        "data": str(folder / "sky.h5"),
    }
    assert load_case(written(folder, values), ["observation=here.h5"]).observation == folder / "here.h5"


def test_fetched_data_are_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELBOSCOPE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "cache/k2_24/epic203771098.csv"
    design = {"design": {"observation": "fetch:k2_24"}}
    values = {"simulator": LEAST["simulator"] | {"options": design}, "observation": "fetch:k2_24"}
    case = load_case(written(tmp_path, values))
    assert case.observation == file
    assert case.simulator.options["design"]["observation"] == str(file)
    with pytest.raises(InputError, match="no such file; run `elboscope fetch k2_24`"):
        Run(case, tmp_path).observation_path()
    assert "no dataset 'k2_25'; did you mean 'k2_24'?" in message_of(
        LEAST | {"observation": "fetch:k2_25"}, folder=tmp_path
    )


def test_arrays_to_ingest_are_relative_to_the_file(tmp_path: Path) -> None:
    values = LEAST | {"ingest": {"arrays": {"x": "folder/noise.txt[m / s]"}}}
    assert load_case(written(tmp_path, values)).ingest.arrays == {"x": f"{tmp_path}/folder/noise.txt[m / s]"}


def test_a_case_is_named_after_its_file_unless_it_has_a_name(tmp_path: Path) -> None:
    assert load_case(written(tmp_path, LEAST, "star.yaml")).name == "star"
    assert load_case(written(tmp_path, LEAST | {"name": "sun"}, "star.yaml")).name == "sun"
    assert load_case(written(tmp_path, LEAST, "star.yaml"), ["name=moon"]).name == "moon"


# ------------------------------------------------------------ the schema for editors


def test_json_schema_is_what_an_editor_needs() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert "validate" in schema["properties"]
    assert "validation" not in schema["properties"]
    assert schema["required"] == ["simulator"]
    assert schema["properties"]["seed"]["description"]
    names = {model.__name__ for _, model in blocks()} - {"CaseSettings"}
    assert names <= set(schema["$defs"])
    for definition in (schema, *schema["$defs"].values()):
        assert definition["additionalProperties"] is False
    assert schema["$defs"]["PhaseSettings"]["properties"]["objective"]["anyOf"][0]["enum"] == list(get_args(Objective))


def test_the_schema_for_editors_is_that_of_the_settings(root: Path) -> None:
    """`elboscope schema --out configs/case.schema.json` after a change of settings."""
    stored = json.loads((root / "configs/case.schema.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(json_schema()))


# ------------------------------------------------------------ what YAML makes of it


def test_a_block_whose_lines_are_commented_out_has_its_defaults(tmp_path: Path) -> None:
    text = (
        "simulator:\n  name: linear_gaussian\n  options:\ntrain:\n  phases:\n  guard:\ninfer:\n  refine:\nvalidate:\n"
    )
    least = written(tmp_path, "simulator: {name: linear_gaussian}\n", "least.yaml")
    empty = written(tmp_path, text)
    assert load_case(empty, ["name=least"]) == load_case(least)
    assert "simulate.count: Input should be a valid integer" in message_of(
        "simulator: {name: linear_gaussian}\nsimulate: {count: }\n", folder=tmp_path
    )


def test_numbers_with_exponents(tmp_path: Path) -> None:
    text = "simulator: {name: linear_gaussian, options: {noise_scale: 1e-3}}\nsimulate: {count: 1e5}\n"
    read = load_case(written(tmp_path, text))
    assert read.simulate.count == 100_000
    assert read.simulator.options == {"noise_scale": 1e-3}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed: 1\nseed: 2", "the key 'seed' is given twice"),
        ("seed: 0100", "0100 is read differently by different programs"),
        ("simulate: {count: 1:30}", "1:30 is read differently by different programs"),
        ('"a[0]": 1', "unknown key 'a[0]'; known here: name, title"),
        ("1: 2", "1: Keys should be strings"),
    ],
)
def test_what_is_read_differently_elsewhere_is_refused(line: str, said: str, tmp_path: Path) -> None:
    assert said in message_of(f"simulator: {{name: linear_gaussian}}\n{line}\n", folder=tmp_path)
