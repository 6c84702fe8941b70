"""Stage `simulate`: pairs (theta, x) into shards, on any number of processes and machines, and one file over them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.cost import Meter, total_cost
from pipeline.errors import InputError
from pipeline.progress import Advance, console, progress_bar
from pipeline.rng import generator
from pipeline.stages.contract import need_one_stream
from pipeline.stages.link import forget_what_lost_its_shards, link, need_all
from pipeline.stages.run import Run, StageKey, begin, finish
from pipeline.stages.shard import (
    COSTS,
    FOLDER,
    VERSION,
    Shard,
    ShardReport,
    make_shard,
    one_thread,
    plan,
    shard_key,
    shard_report,
)
from pipeline.stages.simulation_workers import cores, make_in_workers
from pipeline.store import check_sum, write_text
from simulators.failures import FailureCode
from simulators.priors import sample

HELD_OUT = "held_out"
ADDED = "added.json"
Done = Callable[[ShardReport], None]
WORTH_WORKERS_S = 15.0
"""Work left on one core from which processes pay: each takes about 3 s to start."""


def simulate(
    run: Run, *, part: tuple[int, int] | None = None, merge: bool = False, add: int = 0, workers: int | None = None
) -> Path:
    """Make the shards that are missing, and `simulations.h5` over all: `held_out` rows first, then `count`, then what was added.

    Rows of shard i depend on (seed, "simulate", i) and their number alone. A shard is complete or absent.

    Args:
        part: (I, N): only make the shards i with i % N == I, and do not link.
        merge: only link.
        add: extend a finished set by so many rows, in new shards.
        workers: in place of the setting.

    Raises:
        InputError: shards are missing (`merge`), the set to extend is not finished, or too many simulations failed.
    """
    output = run.output("simulate")
    forget_what_lost_its_shards(output)
    if add:
        _extend(run, add)
    shards, key = _plan(run), shard_key(run)
    stage = begin(run, "simulate", VERSION, _relevant(run), {})
    if stage is None:
        return output
    if merge:
        return _link(run, stage, shards, key)
    if part is not None:
        mine = [s for s in shards if s.index % part[1] == part[0]]
        made = _make_missing(run, mine, key, workers, stage.meter)
        console.print(
            f"simulate: part {part[0]} of {part[1]}: {made} of its {len(mine)} shards made, the others were there "
            f"({stage.meter.elapsed_s:.1f} s)"
        )
        return output
    _make_missing(run, shards, key, workers, stage.meter)
    return _link(run, stage, shards, key)


def _plan(run: Run) -> tuple[Shard, ...]:
    settings = run.case.simulate
    return plan((settings.held_out + settings.count, *_added(run)), settings.shard)


def _relevant(run: Run) -> Mapping[str, object]:
    """What `simulations.h5` is made from: settings, and the rows that were added in this folder."""
    added = _added(run)
    return run.relevant("seed", "simulator", "simulate") | ({"added": added} if added else {})


def _added(run: Run) -> list[int]:
    """Rows of each extension of this run folder."""
    path = run.folder / FOLDER / ADDED
    if path.is_file():
        check_sum(path)
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a list of numbers, such as [100000]") from None
    if not isinstance(sizes, list) or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise InputError(f"{path}: expected a list of numbers, such as [100000], got {sizes!r}")
    return sizes


def _extend(run: Run, rows: int) -> None:
    """Note an extension of a finished set; one that was begun and is not finished goes on.

    Raises:
        InputError: the set is not finished.
    """
    added = _added(run)
    finished = begin(run, "simulate", VERSION, _relevant(run), {}, say=False) is None
    if finished:
        run.sums("simulate").unlink(missing_ok=True)  # of the set as it was
        write_text(run.folder / FOLDER / ADDED, json.dumps([*added, rows]) + "\n")
    elif not added or added[-1] != rows:
        raise InputError(
            f"{run.output('simulate')}: --add extends a finished set, and this one is not: run `elboscope simulate` first"
        )


def _make_missing(run: Run, shards: Sequence[Shard], key: str, workers: int | None, meter: Meter) -> int:
    """Make what is not there; gives how many that were."""
    folder = run.folder / FOLDER
    missing = [s for s in shards if shard_report(folder / s.name, s, key) is None]
    total = sum(s.rows for s in shards)
    if missing:
        need_one_stream(
            run.simulator,
            sample(run.proposal, 2, generator(run.case.seed, "contract", device=run.device)),
            seed=run.case.seed,
        )

    def done(report: ShardReport) -> None:
        _refuse_where_most_fail(run, report)

    with progress_bar("simulate", total, completed=total - sum(s.rows for s in missing)) as advance:
        chosen = workers or run.case.simulate.workers
        left = list(missing)
        if chosen is None and left:
            chosen, left = _choose_workers(run, left, key, meter, advance, done)
        if chosen is not None and chosen > 1 and len(left) > 1:
            with meter.others_count_themselves():
                make_in_workers(run, left, key, workers=chosen, advance=advance, done=done)
        else:
            _make_here(run, left, key, meter, advance, done)
    return len(missing)


def _make_here(run: Run, shards: Sequence[Shard], key: str, meter: Meter, advance: Advance, done: Done) -> None:
    with one_thread():
        for shard in shards:
            done(make_shard(run, shard, key, advance=advance, meter=meter))


def _choose_workers(
    run: Run, shards: list[Shard], key: str, meter: Meter, advance: Advance, done: Done
) -> tuple[int, list[Shard]]:
    """One process on a GPU or for short work; else one a core. The first shard, made here, says how long the work is."""
    if run.device.type != "cpu" or cores() == 1 or len(shards) < 3:
        return 1, shards
    started = time.monotonic()
    _make_here(run, shards[:1], key, meter, advance, done)
    left_s = (time.monotonic() - started) / shards[0].rows * sum(s.rows for s in shards[1:])
    if left_s < WORTH_WORKERS_S:
        return 1, shards[1:]
    count = min(cores(), len(shards) - 1)
    console.print(f"simulate: about {left_s:.0f} s of work left: {count} workers")
    return count, shards[1:]


def _refuse_where_most_fail(run: Run, report: ShardReport) -> None:
    """More than `most_failed`, and beyond five standard deviations of such a share: the next shards will be no better."""
    expected = run.case.simulate.most_failed * report.shard.rows
    if report.failed > expected + 5 * expected**0.5:
        raise InputError(_refusal(run, report.failed, report.shard.rows, report.first))


def _refusal(run: Run, failed: int, rows: int, first: str) -> str:
    return (
        f"simulator {run.simulator.name!r}: {failed} of {rows} simulations failed, more than simulate.most_failed = "
        f"{run.case.simulate.most_failed:g} allows; the first: {first}"
    )


def _link(run: Run, stage: StageKey, shards: Sequence[Shard], key: str) -> Path:
    """Write the file over the shards, if all are there, and delete what is no part of it."""
    folder = run.folder / FOLDER
    reports = need_all(shards, lambda s: shard_report(folder / s.name, s, key), folder)
    failed, rows = sum(r.failed for r in reports), sum(s.rows for s in shards)
    if failed > run.case.simulate.most_failed * rows:
        first = next(r.shard.name for r in reports if r.failed)
        raise InputError(_refusal(run, failed, rows, f"see /failures of {folder / first}"))
    names = {s.name for s in shards}
    unfinished = [p for place in (folder, run.folder / COSTS) for p in place.glob(".shard-*.tmp")]
    for stale in [p for p in folder.glob("shard-*.h5") if p.name not in names] + unfinished:
        stale.unlink(missing_ok=True)
    held_out = run.case.simulate.held_out
    attributes = stage.attributes(total_cost(r.cost for r in reports)) | {HELD_OUT: held_out}
    codes = link(run.output("simulate"), shards, key=key, attributes=attributes)
    if codes:
        words = ", ".join(f"{n} {FailureCode(c).words}" for c, n in codes.most_common())
        console.print(
            f"simulate: {failed} of {rows} simulations failed ({words}): stored with theta and reason, left out of training: "
            + (
                "a learned likelihood, and its posteriors, know nothing of where the simulator fails"
                if run.learns_likelihood
                else "q was not trained where the simulator fails; weights of the likelihood correct that, not calibration"
            )
        )
    return finish(run, stage, f"{rows} simulations, {held_out} of them held out")
