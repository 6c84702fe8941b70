from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from pipeline.errors import InputError
from pipeline.stages.infer import infer
from pipeline.stages.plot import plot
from pipeline.stages.run import Run
from tests.pipeline.tables.conftest import write_inference_file


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plot") / "inference.h5"
    extra = {"ess_fraction": np.linspace(0.2, 0.9, 5), "kl_gap": np.geomspace(0.01, 1, 5)}
    write_inference_file(path, [f"s{n}" for n in range(5)], extra=extra)
    return path


def test_one_observation_its_draws_and_the_weighted_ones(trained: Run, tmp_path: Path) -> None:
    source = infer(trained)
    written = plot(source, tmp_path / "corner.png", observations=["first"], parameters=["theta_3", "theta_1"])
    assert written == [tmp_path / "corner.png"]
    assert image.imread(written[0]).std() > 0.05


def test_up_to_three_on_one_figure_and_more_on_their_own(catalogue: Path, tmp_path: Path) -> None:
    assert plot(catalogue, tmp_path / "three.svg", observations=["s0", "s4", "s2"]) == [tmp_path / "three.svg"]
    four = plot(catalogue, tmp_path / "four.png", observations=["s0", "s1", "s2", "s3"])
    assert [f.name for f in four] == ["four_s0.png", "four_s1.png", "four_s2.png", "four_s3.png"]
    assert all(f.is_file() for f in four)


def test_the_same_file_twice_bit_for_bit(catalogue: Path, tmp_path: Path) -> None:
    for suffix in ("svg", "pdf"):
        (a,) = plot(catalogue, tmp_path / f"a.{suffix}")
        (b,) = plot(catalogue, tmp_path / f"b.{suffix}")
        assert a.read_bytes() == b.read_bytes()


def test_what_cannot_be_drawn_is_refused(catalogue: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends in .png, .pdf, .svg"):
        plot(catalogue, tmp_path / "a.gif")
    with pytest.raises(InputError, match="no parameter 'mass'; it has logk1, tp"):
        plot(catalogue, tmp_path / "a.png", observations=["s1"], parameters=["mass"])
    with pytest.raises(InputError, match="--parameter goes with --observation"):
        plot(catalogue, tmp_path / "a.png", parameters=["tp"])
    with pytest.raises(InputError, match="no observation 's9'"):
        plot(catalogue, tmp_path / "a.png", observations=["s9"])
