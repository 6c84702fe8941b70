"""What reads files: the public functions that the commands use, by name, each with its seeds in `corpus/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config import build_simulator, load_case, override_values
from pipeline.estimators.posterior import load_posterior
from pipeline.ingest_settings import IngestSettings
from pipeline.run_lock import _read as read_lock
from pipeline.settings import SimulatorSettings
from pipeline.stages.catalogue import open_catalogue
from pipeline.stages.export import export
from pipeline.stages.ingest import read_observations
from pipeline.stages.ingest_list import list_inputs
from pipeline.stages.likelihood import load_likelihood
from pipeline.stages.members import read_members
from pipeline.stages.observed import load_observation
from pipeline.stages.population_settings import load_population
from pipeline.stages.show import show
from pipeline.store import read_attribute, read_sums
from pipeline.tables.bayes_factors import bayes_factors
from pipeline.tables.inference_reader import open_inference
from pipeline.workflow.drive import saved_case
from pipeline.workflow.logs import last_attempt
from pipeline.workflow.profile import load_profile
from pipeline.workflow.receipt import is_finished
from simulators.registry import create

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """One kind of file, and all that reads it.

    Attributes:
        seeds: of the corpus, names that match.
        read: raises InputError for what does not fit.
        weight: inputs that it gets, as against the others.
    """

    seeds: str
    read: Callable[[Path], Any]
    weight: int = 1


@cache
def simulator(name: str) -> Any:
    """One of the package, with its defaults."""
    if name == "radial_velocity":
        return build_simulator(load_case(CORPUS.parents[2] / "configs" / "k2_24.yaml").simulator)
    return create(name)


def observation(path: Path) -> None:
    """As `infer POSTERIOR OBSERVATIONS` and `ingest` read data of our own layout."""
    load_observation(simulator("linear_gaussian"), path)
    catalogue = open_catalogue(simulator("linear_gaussian"), path)
    catalogue.read(0, min(2, len(catalogue)))


def inference(path: Path) -> None:
    """As `export`, `show`, `plot`, `evidence` and `population` read what `infer` has written."""
    out = path.with_name("out.csv")
    out.unlink(missing_ok=True)
    export(path, out)
    export(path, path.with_name("chains"), format="getdist")
    bayes_factors([path, path], names=["a", "b"])
    with open_inference(path) as file:
        file.draws(0), file.proposals(0), file.origin(), file.summary_hash(), file.likelihood_is_learned()
    read_members(path, load_population(CORPUS / "population.yaml"))


def foreign(path: Path) -> None:
    """As `ingest none FILE` and `ingest --list` do."""
    list_inputs(None, [path], settings=IngestSettings())
    read_observations(None, [path], IngestSettings())


def own_reader(name: str) -> Callable[[Path], Any]:
    """As `infer` reads observed data by the simulator's own reader."""
    return lambda path: load_observation(simulator(name), path)


def sky(path: Path) -> None:
    """As a case reads the maps that its simulator's options name."""
    build_simulator(SimulatorSettings(name="fermi_poisson", options={"data": str(path)}))


def model(path: Path) -> None:
    """As every command that takes a POSTERIOR."""
    read_attribute(path, "content_key")
    show(path)
    load_posterior(path)


def case(path: Path) -> None:
    """As every command that takes a CONFIG, or RUN."""
    folder = path.with_name("run")
    (folder / "workflow").mkdir(parents=True, exist_ok=True)
    (folder / "workflow" / "case.yaml").write_bytes(path.read_bytes())
    values = load_case(path)
    is_finished(values, folder)
    saved_case(folder)


def override(path: Path) -> None:
    """As `--set KEY=VALUE`."""
    override_values(
        {"train": {"phases": [{"steps": 1}]}}, path.read_text(encoding="utf-8", errors="replace").splitlines()
    )


TARGETS: Mapping[str, Target] = {
    "observation": Target("observation*.h5", observation, 2),
    "inference": Target("inference*.h5", inference, 2),
    "posterior": Target("posterior*.safetensors", model, 2),
    "likelihood": Target("likelihood*.safetensors", lambda path: load_likelihood(path, simulator("linear_gaussian"))),
    "show": Target("*.h5", show),
    "case": Target("case*.yaml", case, 2),
    "population": Target("population*.yaml", load_population),
    "profile": Target("profile*.yaml", lambda path: load_profile(str(path))),
    "override": Target("override*.txt", override),
    "lock": Target("lock*.json", read_lock),
    "sums": Target("sums*.sha256", read_sums),
    "log": Target("job*.log", last_attempt),
    "page": Target("page*.html", lambda path: read_attribute(path, "content_key")),
    "table": Target("table*.*", foreign, 4),
    "velocities": Target("table*.*", own_reader("radial_velocity"), 2),
    "supernovae": Target("table*.*", own_reader("supernova_cosmology"), 2),
    "lens": Target("table*.*", own_reader("strong_lens")),
    "sky": Target("table*.*", sky),
}
