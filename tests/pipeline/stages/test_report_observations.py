"""A catalogue on one page: every observation is counted, and those that need a look are shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.stages.infer import infer
from pipeline.stages.report import report
from pipeline.stages.report_observations import MOST_LISTED, inferred_observations
from pipeline.stages.run import Run
from pipeline.store import write_data
from simulators.priors import prior_of, sample

COUNT = 60


@pytest.fixture(scope="module")
def catalogue(trained: Run, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """60 stars, of which star-41 is far outside of what was simulated."""
    folder = tmp_path_factory.mktemp("catalogue")
    stream = torch.Generator().manual_seed(5)
    theta = sample(prior_of(trained.simulator), COUNT, stream)
    x = trained.simulator.simulate(theta, generator=stream)
    x["x"][41] += 60.0
    path = folder / "stars.h5"
    write_data(path, observables=trained.simulator.observables, x=x, ids=[f"star-{n}" for n in range(COUNT)])
    shutil.copytree(trained.folder, folder / "run")
    overrides = [f"observation={path}", "infer.draws=200", "infer.refine.when=never", "infer.sample.when=never"]
    run = Run(load_case(config, overrides), folder / "run")
    for stage in ("infer", "validate", "compare"):
        run.output(stage).unlink(missing_ok=True)
    infer(run)
    return run


def test_a_page_of_a_catalogue_counts_all_and_lists_those_that_need_a_look(catalogue: Run) -> None:
    report(catalogue)
    page = catalogue.output("report").read_text(encoding="utf-8")
    assert f"Of {COUNT} observations this page lists the {MOST_LISTED}" in page
    assert "the catalogue" in page
    assert page.count("<details>") == MOST_LISTED - 1
    assert "Posterior of star-41" in page  # the first of them
    unlike = next(line for line in page.splitlines() if "unlike anything simulated" in line)
    assert "star-41" in unlike


def test_failed_come_first_then_atypical_then_the_least_effective(catalogue: Run) -> None:
    path = catalogue.folder / "changed.h5"
    shutil.copy(catalogue.output("infer"), path)
    with h5py.File(path, "r+") as file:
        group = file["certificate"]
        verdicts = np.full(COUNT, "exact", dtype=object)
        verdicts[[7, 30]] = "failed"
        group["verdict"][...] = verdicts  # pyright: ignore
        ess = np.linspace(1.0, 0.6, COUNT)
        ess[7] = 0.99
        group["ess_fraction"][...] = ess  # pyright: ignore
        flags = np.zeros(COUNT, dtype=group["atypical"].dtype)  # pyright: ignore
        flags[3] = 1
        group["atypical"][...] = flags  # pyright: ignore
    inferred = inferred_observations(catalogue, path, None)
    assert [o.identifier for o in inferred.listed[:5]] == ["star-30", "star-7", "star-3", "star-59", "star-58"]
    assert inferred.failed == ("star-7", "star-30")
    assert inferred.atypical == ("star-3",)
    assert inferred.total == COUNT
    assert len(inferred.listed) == MOST_LISTED
