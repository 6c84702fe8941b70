"""A case, its run folder, and what every stage shares: device, threads, content keys."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.distributions import Distribution

from pipeline.config import build_simulator
from pipeline.errors import InputError
from pipeline.progress import console
from pipeline.schema import INPUTS, SETTINGS
from pipeline.settings import CaseSettings, PhaseSettings
from pipeline.store import (
    DataSet,
    content_key,
    input_digest,
    is_data_file,
    open_hdf5,
    read_attribute,
    read_data,
    read_key,
    stamp,
    write_text,
)
from pipeline.training.auto import schedule
from simulators.noise_free import WithSignal
from simulators.priors import prior_of, proposal_of
from simulators.protocol import Simulator, has_likelihood, has_signal, read_observation

STAGES = ("simulate", "train", "infer", "validate", "compare", "report")
OUTPUTS = {
    "simulate": "simulations.h5",
    "train": "posterior.safetensors",
    "infer": "inference.h5",
    "validate": "validation.h5",
    "compare": "comparison.h5",
    "report": "report.html",
}


@dataclass(frozen=True)
class Run:
    """One case in one folder.

    Attributes:
        case: its settings.
        folder: where its files are.
    """

    case: CaseSettings
    folder: Path

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
        certified = self.case.observation is not None and has_likelihood(self.simulator)
        return STAGES if certified else tuple(s for s in STAGES if s not in ("infer", "compare"))

    @cached_property
    def phases(self) -> tuple[PhaseSettings, ...]:
        """The training schedule, chosen where the case gives none."""
        return schedule(
            self.case.train,
            has_likelihood=has_likelihood(self.simulator),
            simulations=self.case.simulate.count,
        )

    def pin_threads(self) -> None:
        """Set the CPU threads that `threads` asks for."""
        if self.case.threads:
            torch.set_num_threads(self.case.threads)

    def output(self, stage: str) -> Path:
        """Final path of a stage's output."""
        return self.folder / OUTPUTS[stage]

    def input(self, stage: str) -> Path:
        """Output of an earlier stage.

        Raises:
            InputError: that stage has not been run.
        """
        path = self.output(stage)
        if not path.is_file():
            raise InputError(f"{path} is missing: run `elboscope {stage}` first")
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
            InputError: none configured.
        """
        if self.case.observation is None:
            raise InputError(
                f"case {self.case.name!r} has no observation: set `observation:` or give --observation FILE"
            )
        return self.case.observation

    def relevant(self, *blocks: str) -> dict[str, Any]:
        """Settings for a content key: in `simulator`, files stand for their content and not for where they lie."""
        values = self.case.content(*blocks)
        if "simulator" in values:
            values["simulator"] = with_digests(values["simulator"])
        return values

    def need_likelihood(self, stage: str) -> None:
        """Raise InputError if the simulator has no tractable likelihood."""
        if not has_likelihood(self.simulator):
            raise InputError(
                f"{stage}: simulator {self.simulator.name!r} has no log_likelihood, which this stage needs"
            )


def need_same_settings(run: Run, path: Path, stage: str) -> None:
    """Refuse the output of an earlier stage that was made with other settings of that stage than the case has now.

    Raises:
        InputError: names the first setting that differs.
    """
    stored = json.loads(read_attribute(path, SETTINGS) or "{}").get(stage)
    wanted = run.case.dump(stage)[stage]
    if stored is None or stored == wanted:
        return
    had, has = _flat(stored), _flat(wanted)
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


def load_observation(simulator: Simulator, path: Path) -> DataSet:
    """Read observations: our HDF5 layout, or whatever the simulator's `read_observation` takes.

    Raises:
        InputError: one line that says what does not fit.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if is_data_file(path):
        return read_data(path, observables=simulator.observables)
    try:
        x, ids = read_observation(simulator, path)
    except (ValueError, OSError) as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if len(ids) == 0:
        raise InputError(f"{path}: has no rows")
    for o in simulator.observables:
        expected = (len(ids), *o.shape)
        if o.name not in x or tuple(x[o.name].shape) != expected:
            got = tuple(x[o.name].shape) if o.name in x else "nothing"
            raise InputError(f"{path}: read_observation gave {got} for {o.name!r}, expected shape {expected}")
        bad = int((~torch.isfinite(x[o.name])).sum())
        if bad:
            raise InputError(f"{path}: {o.name}: {bad} of {x[o.name].numel()} values are NaN or infinite")
    return DataSet(x, None, tuple(ids))


def inferred_observation(run: Run, inference: Path) -> DataSet:
    """The observed data of the case, which must be those that `inference` speaks of.

    Raises:
        InputError: `infer` was given other data, with --observation for instance.
    """
    data = run.observation()
    with open_hdf5(inference) as file:
        group: Any = file["observed_data"]
        same = all(
            o.name in group and np.array_equal(group[o.name][...], data.x[o.name].cpu().numpy())
            for o in run.simulator.observables
        )
    if not same:
        raise InputError(
            f"{inference}: made for other data than {run.case.observation}: give the same --observation, or run `elboscope infer` again"
        )
    return data


@dataclass(frozen=True)
class StageKey:
    """Identity of a stage's output, and the attributes that go into it."""

    stage: str
    key: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    started: float

    def attributes(self) -> dict[str, str | int]:
        """Root attributes of the output."""
        return stamp(stage=self.stage, key=self.key, settings=self.settings, inputs=self.inputs, started=self.started)


def begin(
    run: Run, stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, Path]
) -> StageKey | None:
    """The key of a stage's output; None, with a line on the terminal, if that output is already there.

    Args:
        version: raised when the stage's output would change for the same settings.
        settings: the settings that matter to it.
        inputs: files whose content matters to it.
    """
    digests = {name: input_digest(path) for name, path in inputs.items()}
    key = content_key(stage, version, settings, digests)
    output = run.output(stage)
    if read_key(output) == key:
        console.print(f"{stage}: {output} is up to date")
        return None
    run.pin_threads()
    return StageKey(stage, key, run.case.dump(), digests, time.monotonic())


def is_stale(path: Path, inputs: Mapping[str, Path]) -> bool:
    """Whether `path` was made from other inputs than those that now lie there; inputs not recorded do not count."""
    recorded = json.loads(read_attribute(path, INPUTS) or "{}")
    return any(name in recorded and recorded[name] != input_digest(file) for name, file in inputs.items())


def finish(run: Run, key: StageKey, note: str) -> Path:
    """Write the resolved settings beside the output, and say what was made."""
    output = run.output(key.stage)
    write_text(
        run.folder / "settings" / f"{key.stage}.yaml",
        yaml.safe_dump(json.loads(json.dumps(key.settings)), sort_keys=False),
    )
    console.print(f"{key.stage}: {output} ({time.monotonic() - key.started:.1f} s) {note}")
    return output
