"""A case, its run folder, and what every stage shares: device, threads, content keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributions import Distribution

from pipeline.config import build_simulator
from pipeline.cost import Cost, Meter
from pipeline.datasets.cache import fetch_hint
from pipeline.errors import InputError
from pipeline.progress import console
from pipeline.run_lock import run_lock
from pipeline.schema import INPUTS, SETTINGS
from pipeline.settings import CaseSettings, PhaseSettings
from pipeline.stages.observed import load_observation
from pipeline.store import (
    DataSet,
    check_sum,
    content_key,
    input_digest,
    read_cost,
    read_key,
    read_record,
    record_sums,
    stamp,
    write_text,
)
from pipeline.training.auto import schedule
from simulators.noise_free import WithSignal
from simulators.priors import prior_of
from simulators.proposals import proposal_of
from simulators.protocol import Simulator, has_likelihood, has_signal

STAGES = ("simulate", "likelihood", "train", "infer", "validate", "compare", "report")
OUTPUTS = {
    "simulate": "simulations.h5",
    "likelihood": "likelihood.safetensors",
    "train": "posterior.safetensors",
    "infer": "inference.h5",
    "validate": "validation.h5",
    "compare": "comparison.h5",
    "report": "report.html",
}
BESIDE = {
    "simulate": ("simulations/added.json",),
    "train": ("training.csv", "checkpoints/**/*"),
    "report": ("figures/*",),
}
"""What else a stage leaves in the run folder, recorded with its output."""
READS: dict[str, tuple[str, ...]] = {
    "simulate": (),
    "likelihood": ("simulate",),
    "train": ("simulate", "likelihood"),
    "infer": ("train", "likelihood"),
    "validate": ("simulate", "train", "likelihood"),
    "compare": ("infer", "likelihood"),
    "report": ("likelihood", "train", "infer", "validate", "compare"),
}
"""Outputs of other stages that must stay as they are while a stage runs."""


@dataclass(frozen=True)
class Run:
    """One case in one folder.

    Attributes:
        case: its settings.
        folder: where its files are.
        round: of a case that learns its likelihood in rounds, which one this is; 0: the run as it ends.
    """

    case: CaseSettings
    folder: Path
    round: int = 0

    @cached_property
    def simulator(self) -> Simulator:
        """The physics model."""
        return build_simulator(self.case.simulator)

    @cached_property
    def stored_simulator(self) -> Simulator:
        """What stage `simulate` stores: the physics model, with its noise-free signal where `simulate.signal` says so."""
        if not self.case.simulate.signal:
            return self.simulator
        if not has_signal(self.simulator):
            raise InputError(
                f"simulate.signal: simulator {self.simulator.name!r} has no `signal` and `observe`; set simulate.signal: false"
            )
        return WithSignal(self.simulator)

    @cached_property
    def prior(self) -> Distribution:
        """Joint prior of theta, on the CPU."""
        try:
            return prior_of(self.simulator)
        except ValueError as error:
            raise InputError(str(error)) from None

    @cached_property
    def proposal(self) -> Distribution:
        """What theta is drawn from for training, on the CPU; the prior itself where nothing is replaced."""
        if not self.case.simulate.proposal:
            return self.prior
        try:
            return proposal_of(self.simulator, self.case.simulate.proposal)
        except ValueError as error:
            raise InputError(str(error)) from None

    @cached_property
    def device(self) -> torch.device:
        """The device that `device` names, with the CPU threads of `threads` set."""
        self.pin_threads()
        name = self.case.device
        if name == "cuda" and not torch.cuda.is_available():
            raise InputError("device: cuda was asked for, but torch sees no GPU; use device: auto or cpu")
        return torch.device("cuda" if name in ("auto", "cuda") and torch.cuda.is_available() else "cpu")

    @property
    def stages(self) -> tuple[str, ...]:
        """What `run` does: without an observation or a likelihood there is nothing to infer or compare."""
        certified = self.case.observation is not None and self.has_likelihood
        unused = () if certified else ("infer", "compare")
        unused += () if self.learns_likelihood else ("likelihood",)
        return tuple(s for s in STAGES if s not in unused)

    @property
    def learns_likelihood(self) -> bool:
        """Whether stage `likelihood` learns one: the simulator has none, or the case hides it."""
        when = self.case.likelihood.when
        return when == "always" or (when == "auto" and not has_likelihood(self.simulator))

    @property
    def has_likelihood(self) -> bool:
        """Whether later stages have a likelihood: the simulator's own, or a learned one."""
        return self.learns_likelihood or has_likelihood(self.simulator)

    @cached_property
    def model(self) -> Simulator:
        """The physics model with the likelihood that later stages use, on the device of the run: see `model_on`."""
        return self.model_on(self.device)

    def model_on(self, device: torch.device) -> Simulator:
        """The physics model with its own likelihood, or with the learned one, its networks on `device`.

        Raises:
            InputError: it has not been learned yet, or with other settings.
        """
        if not self.learns_likelihood:
            return self.simulator
        from pipeline.stages.likelihood import load_likelihood

        path = self.input("likelihood")
        need_same_settings(self, path, "likelihood")
        learned = load_likelihood(path, self.simulator)
        learned.network.to(device)
        return learned

    def likelihood_inputs(self) -> dict[str, Path]:
        """Files from which stage `likelihood` learns."""
        given = self.case.likelihood.summary.file or self.first_summary()
        added = {f"simulations of round {i}": path for i, path in enumerate(self.added_simulations(), 1)}
        return {"simulations": self.input("simulate")} | ({} if given is None else {"summary": given}) | added

    def first_summary(self) -> Path | None:
        """The likelihood of the first round, whose summary all others share; None where this is the first."""
        return replace(self, round=1).output("likelihood") if self.added_simulations() else None

    @cached_property
    def phases(self) -> tuple[PhaseSettings, ...]:
        """The training schedule, chosen where the case gives none."""
        return schedule(
            self.case.train,
            has_likelihood=self.has_likelihood,
            simulations=self.case.simulate.count,
            from_prior=not self.case.simulate.proposal,
            trained=self.learns_likelihood and self.case.likelihood.joint.enabled,
        )

    def pin_threads(self) -> None:
        """Set the CPU threads that `threads` asks for."""
        if self.case.threads:
            torch.set_num_threads(self.case.threads)

    def output(self, stage: str) -> Path:
        """Final path of a stage's output."""
        if self.round and stage in ("likelihood", "train", "infer"):
            return self.folder / "rounds" / str(self.round) / OUTPUTS[stage]
        return self.folder / OUTPUTS[stage]

    def sums(self, stage: str) -> Path:
        """SHA-256 of what a stage has left, as `sha256sum --check` reads it in the run folder."""
        return self.folder / "settings" / (f"{stage}.round-{self.round}.sha256" if self.round else f"{stage}.sha256")

    def round_simulations(self, number: int) -> Path:
        """Where the simulations are that round `number` has added."""
        return self.folder / "rounds" / str(number) / OUTPUTS["simulate"]

    def added_simulations(self) -> tuple[Path, ...]:
        """Those of the rounds before this one."""
        last = self.round or self.case.rounds
        return tuple(p for p in map(self.round_simulations, range(1, last)) if p.is_file())

    def input(self, stage: str) -> Path:
        """Output of an earlier stage, as that stage has left it.

        Raises:
            InputError: that stage has not been run, or its output has been damaged since.
        """
        path = self.output(stage)
        if not path.is_file():
            raise InputError(f"{path} is missing: run `elboscope {stage}` first")
        check_sum(path)
        return path

    def observation(self) -> DataSet:
        """The observed data, checked against the simulator.

        Raises:
            InputError: none configured, or a file that does not fit.
        """
        return load_observation(self.simulator, self.observation_path())

    def observation_path(self) -> Path:
        """The observed file.

        Raises:
            InputError: none configured, or a dataset that has not been fetched.
        """
        if self.case.observation is None:
            raise InputError(
                f"case {self.case.name!r} has no observation: set `observation:` or give --observation FILE"
            )
        if hint := fetch_hint(self.case.observation):
            raise InputError(f"{self.case.observation}: no such file{hint}")
        return self.case.observation

    def relevant(self, *blocks: str) -> dict[str, Any]:
        """Settings for a content key: in `simulator`, files stand for their content and not for where they lie."""
        values = self.case.content(*blocks)
        if "simulator" in values:
            values["simulator"] = with_digests(values["simulator"])
        return values

    def need_likelihood(self, stage: str) -> None:
        """Raise InputError if there is neither a tractable likelihood nor a learned one."""
        if not self.has_likelihood:
            raise InputError(
                f"{stage}: simulator {self.simulator.name!r} has no log_likelihood, which this stage needs; set likelihood.when: auto to learn one"
            )


def hold(run: Run, stage: str, *, shared: bool = False) -> AbstractContextManager[None]:
    """Keep other processes from writing what this stage writes or reads; one that already does is named in an InputError.

    Args:
        shared: others may make further parts of the same stage.
    """
    if shared:
        return run_lock(run.folder, f"a part of {stage}", writes=(), reads=(stage, *READS[stage]))
    return run_lock(run.folder, stage, writes=(stage,), reads=READS[stage])


def need_same_settings(run: Run, path: Path, stage: str) -> None:
    """Refuse the output of an earlier stage that was made with other settings of that stage than the case has now.

    Raises:
        InputError: names the first setting that differs.
    """
    stored = read_record(path, SETTINGS).get(stage)
    if stored is None:
        return
    wanted = run.case.content(stage)[stage]
    execution_only = run.case.dump(stage)[stage].keys() - wanted.keys()
    had, has = _flat({k: v for k, v in stored.items() if k not in execution_only}), _flat(wanted)
    if had == has:
        return
    key = next(k for k in [*has, *had] if had.get(k) != has.get(k))
    raise InputError(
        f"{path}: made with {stage}.{key} = {had.get(key)}, the case says {has.get(key)}: run `elboscope {stage}` again"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def with_digests(value: Any) -> Any:
    """Replace every path that names a file by the digest of that file."""
    if isinstance(value, dict):
        return {k: with_digests(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_digests(v) for v in value]
    if not isinstance(value, str) or not ("/" in value or "." in value):
        return value
    try:
        return input_digest(Path(value)) if Path(value).is_file() else value
    except (OSError, ValueError):  # too long for a file name, or with a zero byte: some other text
        return value


class Outdated(Exception):
    """While asking: the stage would have to run. The message says why."""


_asking: ContextVar[bool] = ContextVar("asking", default=False)


@contextmanager
def asking() -> Iterator[None]:
    """Here a stage whose output is not up to date raises `Outdated` and does nothing."""
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


@dataclass(frozen=True)
class StageKey:
    """Identity of a stage's output, and the attributes that go into it."""

    stage: str
    key: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    meter: Meter

    def attributes(self, before: Cost = Cost()) -> dict[str, str | int]:
        """Root attributes of the output; its cost is what this session has cost since the last lap, and what came `before`."""
        cost = before + self.meter.lap()
        return stamp(stage=self.stage, key=self.key, settings=self.settings, inputs=self.inputs, cost=cost)


def begin(
    run: Run, stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, Path], *, say: bool = True
) -> StageKey | None:
    """The key of a stage's output; None, with a line on the terminal (`say`), if that output is already there.

    Args:
        version: raised when the stage's output would change for the same settings.
        settings: the settings that matter to it.
        inputs: files whose content matters to it.

    Raises:
        InputError: an input is not what its stage has left there.
    """
    for path in inputs.values():
        if path.is_file():
            check_sum(path)
    digests = {name: input_digest(path) for name, path in inputs.items()}
    key = content_key(stage, version, settings, digests)
    output = run.output(stage)
    if read_key(output) == key:
        if say and not _asking.get():
            console.print(f"{stage}: {output} is up to date")
        return None
    if _asking.get():
        raise Outdated(_why(run, output, settings, digests))
    with suppress(OSError):
        run.sums(stage).unlink()
    run.pin_threads()
    return StageKey(stage, key, run.case.dump(), digests, Meter())


def _why(run: Run, output: Path, settings: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """What differs between an output and what the case asks for."""
    if read_key(output) is None:
        return "no output yet"
    stored = read_record(output, SETTINGS)
    now = run.case.dump()
    had, has = (_flat({k: values[k] for k in settings if k in values}) for values in (stored, now))
    changed = [k for k in has if k in had and had[k] != has[k]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]} was {had[changed[0]]}, is {has[changed[0]]}{more}"
    inputs = read_record(output, INPUTS)
    other = [name for name, digest in digests.items() if inputs.get(name) != digest]
    return f"other {' and '.join(other)} than it was made from" if other else "made by another version"


def is_stale(path: Path, inputs: Mapping[str, Path]) -> bool:
    """Whether `path` was made from other inputs than those that now lie there; inputs not recorded do not count."""
    recorded = read_record(path, INPUTS)
    return any(name in recorded and recorded[name] != input_digest(file) for name, file in inputs.items())


def finish(run: Run, key: StageKey, note: str) -> Path:
    """Write the resolved settings and the checksums of what the stage has left, and say what was made."""
    output = run.output(key.stage)
    settings = run.folder / "settings" / f"{key.stage}.yaml"
    write_text(settings, yaml.safe_dump(json.loads(json.dumps(key.settings)), sort_keys=False))
    beside = [p for pattern in BESIDE.get(key.stage, ()) for p in sorted(run.folder.glob(pattern)) if p.is_file()]
    record_sums(run.folder, run.sums(key.stage).stem, [output] if run.round else [output, settings, *beside])
    console.print(f"{key.stage}: {output} ({key.meter.took(read_cost(output))}) {note}")
    return output
