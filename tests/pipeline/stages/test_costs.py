"""Cost of a stage: of every part, session and process, and of both sides of a comparison."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from pipeline.config import load_case
from pipeline.cost import Cost, Meter, cost_from, total_cost
from pipeline.interrupt import Interrupted
from pipeline.schema import PROVENANCE
from pipeline.stages import infer as infer_stage
from pipeline.stages.costs import shared_costs
from pipeline.stages.infer import infer
from pipeline.stages.run import OUTPUTS, Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.store import hdf5_content_digest, read_attribute, read_cost, stamp, write_hdf5, write_safetensors
from pipeline.training import schedule
from tests.pipeline.stages.conftest import write_case
from tests.pipeline.stages.test_train import QUICK

PARTS = ["infer.refine.when=never", "infer.draws=60", "infer.memory_gb=0.0001"]  # one observation a part


def copy_of(trained: Run, config: Path, folder: Path, overrides: list[str]) -> Run:
    folder.mkdir()
    shutil.copytree(trained.folder / "simulations", folder / "simulations")
    for stage in ("simulate", "train"):
        shutil.copy(trained.output(stage), folder)
    return Run(load_case(config, overrides), folder)


def cost(path: Path) -> Cost:
    found = read_cost(path)
    assert found is not None, path
    return found


def test_one_part_costs_what_it_took(trained: Run, config: Path, tmp_path: Path) -> None:
    """Its attributes were once made before the work."""
    run = copy_of(trained, config, tmp_path / "run", ["infer.refine.when=never", "infer.draws=60"])
    meter = Meter()
    climbed: list[Cost] = []
    original = infer_stage.climb_all

    def timed(*arguments: object, **options: object) -> object:
        meter.lap()
        result = original(*arguments, **options)  # pyright: ignore[reportArgumentType]
        climbed.append(meter.lap())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_stage, "climb_all", timed)
        infer(run)
    whole = cost(run.output("infer"))
    assert whole.cpu_time_s >= climbed[0].cpu_time_s - 0.01 > 0
    assert whole.wall_time_s >= climbed[0].wall_time_s - 0.01


def test_parts_of_several_jobs_and_of_a_killed_one_all_count(trained: Run, config: Path, tmp_path: Path) -> None:
    run = copy_of(trained, config, tmp_path / "a", PARTS)
    other = copy_of(trained, config, tmp_path / "b", PARTS)
    infer(run, share=(0, 2))  # killed before the second part
    time.sleep(0.3)  # between sessions nothing is at work
    infer(run, share=(1, 2))
    parts = sorted(run.output("infer").with_name("inference.h5.parts").iterdir())
    made = total_cost(cost(p) for p in parts)
    assert len(made.spans) == 2
    infer(run)
    whole = cost(run.output("infer"))
    assert whole.cpu_time_s > made.cpu_time_s > 0
    assert whole.wall_time_s >= made.wall_time_s
    assert whole.spans[-1][1] - whole.spans[0][0] >= whole.wall_time_s + 0.3 - 0.01
    infer(other)
    assert hdf5_content_digest(run.output("infer")) == hdf5_content_digest(other.output("infer"))
    record = json.loads(str(read_attribute(run.output("infer"), PROVENANCE)))
    assert (record["wall_time_s"], record["cpu_time_s"]) == pytest.approx(
        (whole.wall_time_s, whole.cpu_time_s), abs=1e-3
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """300 simulations in five shards, made by two jobs."""
    folder = tmp_path_factory.mktemp("small")
    training = QUICK | {"checkpoint_every": 5, "check_every": 10}
    path = write_case(folder, {"simulate": {"count": 300, "held_out": 200, "shard": 100}, "train": training})
    run = Run(load_case(path), folder / "run")
    simulate(run, part=(0, 2))
    simulate(run, part=(1, 2))
    return run


def test_shards_hold_their_cost_and_the_whole_is_more_than_their_sum(small: Run) -> None:
    shards = sorted((small.folder / "costs").glob("shard-*.json"))
    made = total_cost(cost_from(p.read_text(encoding="utf-8")) for p in shards)
    simulate(small)
    whole = cost(small.output("simulate"))
    assert len(shards) == 5
    assert whole.cpu_time_s >= made.cpu_time_s > 0
    assert whole.wall_time_s >= made.wall_time_s


def test_training_that_is_killed_and_resumed_costs_both_sessions(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(small)
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        if len(asked) == 12:
            raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "stop_if_asked", ask)
        with pytest.raises(Interrupted):
            train(small)
    first = json.loads((small.folder / "checkpoints" / "cost.json").read_text(encoding="utf-8"))
    time.sleep(0.2)
    train(small)
    whole = cost(small.output("train"))
    assert whole.cpu_time_s > first["cpu_time_s"] > 0
    assert len(whole.spans) == 2
    assert set(shared_costs(small)) == {"simulate", "train"}
    assert shared_costs(small)["train"] == whole


def test_all_rounds_count_and_the_last_once(config: Path, tmp_path: Path) -> None:
    """The files of a run that learns in rounds are copies of those of its last."""
    run = Run(load_case(config, ["rounds=3", "likelihood.when=always"]), tmp_path)

    def write(path: Path, stage: str, start: float) -> None:
        made = stamp(stage=stage, key=f"{stage}{start:g}", settings={}, cost=Cost(((start, start + 1.0),), 2.0))
        write_hdf5(path, lambda file: None, made) if path.suffix == ".h5" else write_safetensors(path, {}, made)

    for number in (1, 2):
        for i, stage in enumerate(("likelihood", "train", "infer", "simulate")):
            if (number, stage) != (2, "simulate"):
                write(run.folder / "rounds" / str(number) / OUTPUTS[stage], stage, 100.0 * number + 10 * i)
    write(run.output("simulate"), "simulate", 0.0)
    for i, stage in enumerate(("likelihood", "train", "infer")):
        write(run.output(stage), stage, 200.0 + 10 * i)
    found = {stage: (c.wall_time_s, c.cpu_time_s) for stage, c in shared_costs(run).items()}
    assert found == {
        "simulate": (2.0, 4.0),
        "likelihood": (2.0, 4.0),
        "train": (2.0, 4.0),
        "infer of earlier rounds": (1.0, 2.0),
    }
