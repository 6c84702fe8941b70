"""Stage `infer`: posteriors and certificates of observations, one or a hundred thousand, into `inference.h5`.

A catalogue is done in parts, whose size `infer.memory_gb` bounds; each is written when it is complete, and a killed
run continues with the first that is not. The parts are then put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.cost import Cost, Meter
from pipeline.errors import InputError
from pipeline.estimators.learned_likelihood import attributes_of
from pipeline.estimators.posterior import Posterior, load_posterior
from pipeline.progress import console, progress_bar
from pipeline.schema import STAGE
from pipeline.settings import CaseSettings, InferSettings
from pipeline.stages.catalogue import Catalogue, open_catalogue
from pipeline.stages.inference_file import join_parts, write_inference
from pipeline.stages.ladder import climb_all, rows_to_search
from pipeline.stages.parts import Parts, Share
from pipeline.stages.run import Run, begin, finish, need_same_settings, with_digests
from pipeline.stages.terminal import LISTED, print_certificates
from pipeline.store import content_key, input_digest, read_attribute, read_cost, read_key, stamp
from simulators.protocol import has_likelihood

VERSION = 6
STORED = 100
"""Observations up to which `store_proposals: auto` keeps weighted draws."""
MOST_ROWS = 1_000
COPIES = 4
"""Arrays the size of all weighted draws of a part that are in memory at once: amortized, repaired, and at work."""


def infer(run: Run, *, share: Share | None = None) -> Path:
    """Posteriors of the case's observations, with the network that this run trained.

    With `share` only the parts of one of several jobs are made, and not put together.
    """
    run.need_likelihood("infer")
    observation = run.observation_path()
    catalogue = open_catalogue(run.simulator, observation)
    inputs = {"posterior": run.input("train"), "observation": observation}
    need_same_settings(run, inputs["posterior"], "train")
    key = begin(run, "infer", VERSION, run.relevant("seed", "simulator", "infer"), inputs)
    output = run.output("infer")
    if key is None:
        return output
    posterior = load_posterior(inputs["posterior"], case=run.case, device=run.device)
    job = _Job(posterior, catalogue, run.case.infer, run.case.seed, output, key.key, key.meter)
    job.run(key.attributes, share)
    if share is not None:
        return output
    print_certificates(output)
    return finish(run, key, _pace(len(catalogue), key.meter.elapsed_s))


def infer_observations(
    posterior_path: Path,
    observations: Path,
    output: Path,
    *,
    settings: InferSettings,
    case: CaseSettings | None,
    seed: int,
    device: torch.device,
) -> Path:
    """Posteriors of any observations with any trained posterior, outside a run."""
    inputs = {"posterior": input_digest(posterior_path), "observation": input_digest(observations)}
    named = with_digests(case.dump("simulator")["simulator"]) if case else None  # else the posterior's own
    relevant = {"infer": settings.model_dump(mode="json"), "seed": seed, "simulator": named}
    key = content_key("infer", VERSION, relevant, inputs)
    if read_key(output) == key:
        console.print(f"infer: {output} is up to date")
        return output
    if output.exists() and read_attribute(output, STAGE) != "infer":
        raise InputError(f"{output}: exists and was not written by `elboscope infer`; choose another --out")
    meter = Meter()
    posterior = load_posterior(posterior_path, case=case, device=device)
    if not has_likelihood(posterior.simulator):
        raise InputError(
            f"infer: simulator {posterior.simulator.name!r} has no log_likelihood, which certificates need"
        )
    catalogue = open_catalogue(posterior.simulator, observations)
    resolved = posterior.case.dump() | {"infer": settings.model_dump(mode="json"), "seed": seed}
    job = _Job(posterior, catalogue, settings, seed, output, key, meter)
    job.run(lambda before: stamp(stage="infer", key=key, settings=resolved, inputs=inputs, cost=before + meter.lap()))
    print_certificates(output)
    console.print(f"infer: {output} ({meter.took(read_cost(output))}) {_pace(len(catalogue), meter.elapsed_s)}")
    return output


def _pace(observations: int, seconds: float) -> str:
    """Observations a second, where there are enough of them for it to mean something."""
    return f"{observations / seconds:.2g} observations a second" if observations > LISTED else ""


@dataclass(frozen=True)
class _Job:
    """A catalogue and what is to be made of it.

    Attributes:
        key: content key of the output.
        meter: what this session costs.
    """

    posterior: Posterior
    catalogue: Catalogue
    settings: InferSettings
    seed: int
    output: Path
    key: str
    meter: Meter

    def run(self, attributes: Callable[[Cost], Mapping[str, Any]], share: Share | None = None) -> None:
        """Write the output, or the parts of one share of it.

        Args:
            attributes: gives the root attributes from the cost of the parts, once all is done.
            share: of one of several jobs.
        """
        learned = attributes_of(self.posterior.simulator)
        total, rows = len(self.catalogue), rows_of_a_part(self.settings, len(self.posterior.parameters))
        starts = range(0, total, rows)
        names = tuple(f"{s} to {min(s + rows, total)}" for s in starts)
        parts = Parts(self.output, "infer", self.key, names, self.meter)
        with progress_bar("infer", total) as advance:
            if len(starts) == 1:
                if share is None:  # a single part is the whole
                    self._write(self.output, 0, total, lambda: {**attributes(Cost()), **learned})
                    advance(total)
                return
            for i, missing in parts.mine(share):
                stop = min(starts[i] + rows, total)
                if missing:
                    self._write(parts.paths[i], starts[i], stop, partial(parts.attributes, i))
                advance(stop - starts[i])
        if share is None:
            join_parts(parts.paths, self.output, {**attributes(parts.cost), **learned})
            parts.remove()

    def _write(self, path: Path, start: int, stop: int, attributes: Callable[[], Mapping[str, Any]]) -> None:
        data = self.catalogue.read(start, stop)
        x = {name: values.to(self.posterior.device) for name, values in data.x.items()}
        narrow = bool(self.posterior.case.simulate.proposal)
        searched = {n - start for n in rows_to_search(self.settings, len(self.catalogue), narrow=narrow)}
        outcomes = climb_all(self.posterior, x, settings=self.settings, seed=self.seed, index=start, searched=searched)
        stores = self.settings.store_proposals
        write_inference(
            path,
            self.posterior.simulator,
            data,
            outcomes,
            settings=self.settings,
            store_proposals=stores == "always" or (stores == "auto" and len(self.catalogue) <= STORED),
            attributes=attributes(),  # only now: they say what this has cost
        )


def rows_of_a_part(settings: InferSettings, dimension: int) -> int:
    """Observations whose weighted draws (theta and three densities, float64) fit into `memory_gb`."""
    needed = COPIES * 8 * (dimension + 3) * settings.most_proposals
    return int(min(MOST_ROWS, max(1, settings.memory_gb * 1e9 // needed)))
