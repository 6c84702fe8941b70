"""Parts of an output: several jobs make what one makes, and what is there is not made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.stages import compare as compare_stage
from pipeline.stages.compare import compare
from pipeline.stages.infer import infer
from pipeline.stages.parts import Parts, share_of
from pipeline.stages.run import Run
from pipeline.stages.validate import validate
from pipeline.store import hdf5_content_digest, write_hdf5

QUICK = [
    "validate.simulations=75",
    "validate.draws=50",
    "validate.proposals=500",
    "compare.emcee.steps=100",
    "compare.emcee.burn_in=20",
    "compare.nautilus.enabled=false",
    "compare.observations=2",
    "compare.draws=60",
    "infer.refine.when=never",
    "infer.draws=60",
    "infer.memory_gb=0.0001",  # one observation a part
]


@pytest.fixture
def runs(trained: Run, config: Path, tmp_path: Path) -> tuple[Run, Run]:
    """The same run twice."""
    case = load_case(config, QUICK)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copytree(trained.folder / "simulations", tmp_path / name / "simulations")
        for stage in ("simulate", "train"):
            shutil.copy(trained.output(stage), tmp_path / name)
    return Run(case, tmp_path / "a"), Run(case, tmp_path / "b")


def test_shared_among_jobs_equals_made_by_one(runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    one, many = runs
    for stage in (infer, validate, compare):
        name = stage.__name__
        stage(one)
        for share in ((2, 3), (0, 3), (1, 3)):
            stage(many, share=share)
            assert not many.output(name).exists()
        parts = many.output(name).with_name(f"{many.output(name).name}.parts")
        assert len(list(parts.iterdir())) == (3 if stage is validate else 2)
        if stage is compare:  # all is there: nothing is computed any more
            monkeypatch.setattr(compare_stage, "_compare_one", None)
        stage(many)
        assert hdf5_content_digest(many.output(name)) == hdf5_content_digest(one.output(name)), name
        assert not parts.exists()


def test_a_part_of_other_content_is_missing(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out.h5", "infer", "key", ("0 to 5", "5 to 9"))
    write_hdf5(parts.paths[0], lambda file: None, parts.attributes(0))
    assert list(parts.mine(None)) == [(0, False), (1, True)]
    assert list(parts.mine((1, 2))) == [(1, True)]
    for other in (
        Parts(parts.output, "infer", "other", parts.names),
        Parts(parts.output, "infer", "key", ("0 to 4", "")),
    ):
        assert list(other.mine((0, 2))) == [(0, True)]
    (parts.folder / "notes.txt").write_text("not ours")
    parts.remove()
    assert [p.name for p in parts.folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["3", "1/1", "-1/2", "a/b", "1/0", "/2"])
def test_a_share_is_i_of_n(text: str) -> None:
    with pytest.raises(InputError, match="expected I/N"):
        share_of(text)
