r"""Stage `simulate` against what it could cost at best: bytes on disk, processes, microseconds a draw.

    python -m benchmarks.simulations
    python -m benchmarks.simulations --part workers

write        A shard of 16,384 rows through `write_data` against plain h5py with the same datasets, chunks and checksums
             in its default format, both flushed to disk (fsync); and against h5py without the flush, which a
             power cut would lose. Ratio: their seconds over ours.
workers      A simulator of about 1 ms of CPU a draw, 1 against 2 workers, whole stage, start of the processes included.
overhead     Seconds of the stage beyond drawing theta and calling the simulator in a bare loop, for each draw, batches of
             1,024, 5 numbers in theta, 32 in x.
compression  Shards of K2-24 simulations: size, write and read.
chunks       Bytes a chunk, from the page cache: what a checksum covers, and what is read for one row.
files        What the stage does for every shard but simulate it: link, and find that all is up to date.

The sides take turns in one run; figures are medians over rounds. Rows go to benchmarks/results/simulations.csv.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.table import append
from pipeline.config import case_from_values, load_case
from pipeline.rng import generator
from pipeline.stages.link import forget_what_lost_its_shards, link
from pipeline.stages.run import Run
from pipeline.stages.shard import FAILED_COUNT, FOLDER, SHARD, Shard, one_thread, shard_key, simulate_rows
from pipeline.stages.simulate import simulate
from pipeline.store import open_hdf5, write_data
from simulators.linear_gaussian import LinearGaussian
from simulators.priors import sample
from simulators.protocol import Observable

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "simulations.csv"
ROWS = 16_384
MILLISECOND = """
import numpy as np
import torch
from simulators.linear_gaussian import LinearGaussian

TURNS = {turns}


class Millisecond(LinearGaussian):
    batch = 100

    def simulate(self, theta, context=None, *, generator):
        values = np.linspace(0, 1, 64)
        for _ in range(TURNS * len(theta)):
            values = np.cos(values)
        return super().simulate(theta, context, generator=generator)
"""


def in_turns(calls: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Wall seconds of each call in each round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for counted in [False] + [True] * repeat:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if counted:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over rounds of theirs / ours."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def flush(path: Path) -> None:
    """To disk, as a complete-or-absent file is."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def row(part: str, what: str, value: float, unit: str) -> dict[str, object]:
    """One line of the table."""
    load = os.getloadavg()[0]
    return {
        "part": part,
        "what": what,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "cores": os.cpu_count(),
        "load": round(load, 1),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(folder: Path, repeat: int) -> list[dict[str, object]]:
    """Throughput of a shard of 1,000 numbers a row, and of one of 64."""
    rows = []
    for numbers in (64, 1_000):
        x = torch.randn(ROWS, numbers, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        theta, failed = x[:, :5].contiguous(), torch.zeros(ROWS, dtype=torch.uint8)
        simulator = LinearGaussian(dimension=5, size=numbers)
        observables = (Observable("x", (numbers,)),)

        def ours() -> None:
            write_data(
                folder / "ours.h5",
                observables=observables,  # noqa: B023
                x={"x": x},  # noqa: B023
                parameters=simulator.parameters,  # noqa: B023
                theta=theta,  # noqa: B023
                failed=failed,  # noqa: B023
                checked=True,
            )

        ours()
        with h5py.File(folder / "ours.h5") as file:
            chunks = {name: file[name].chunks for name in ("x/x", "theta", "failed")}  # pyright: ignore[reportAttributeAccessIssue]

        def plain() -> None:
            path = folder / "plain.h5"
            path.unlink(missing_ok=True)
            with h5py.File(path, "w") as file:
                for name, values in (("x/x", x), ("theta", theta), ("failed", failed)):  # noqa: B023
                    file.create_dataset(name, data=values.numpy(), chunks=chunks[name], fletcher32=True)  # noqa: B023

        def flushed() -> None:
            plain()
            flush(folder / "plain.h5")

        seconds = in_turns({"ours": ours, "flushed": flushed, "plain": plain}, repeat)
        megabytes = x.numel() * 8 / 1e6
        what = f"{numbers} numbers a row"
        rows += [
            row("write", f"{what}: ours", megabytes / statistics.median(seconds["ours"]), "MB/s"),
            row("write", f"{what}: h5py", megabytes / statistics.median(seconds["flushed"]), "MB/s"),
            row("write", f"{what}: ours over h5py", ratio(seconds["flushed"], seconds["ours"]), "ratio"),
            row("write", f"{what}: ours over h5py without flush", ratio(seconds["plain"], seconds["ours"]), "ratio"),
        ]
    return rows


def workers(folder: Path, repeat: int) -> list[dict[str, object]]:
    """One against two."""
    values = np.linspace(0, 1, 64)
    began = time.process_time()
    for _ in range(200_000):
        values = np.cos(values)
    turns = round(1e-3 / ((time.process_time() - began) / 200_000))
    (folder / "slow.py").write_text(MILLISECOND.format(turns=turns), encoding="utf-8")
    draws, shard = 40_000, 1_000
    case = case_from_values(
        {
            "simulator": {"name": "Millisecond", "path": str(folder / "slow.py")},
            "simulate": {"count": draws - shard, "held_out": shard, "shard": shard},
        },
        "benchmark",
    )
    seconds = {}
    for count in (1, 2):
        began = time.perf_counter()
        simulate(Run(case, folder / f"workers-{count}"), workers=count)
        seconds[count] = time.perf_counter() - began
    return [
        row("workers", f"{draws} draws, 1 worker", seconds[1], "s"),
        row("workers", f"{draws} draws, 2 workers", seconds[2], "s"),
        row("workers", "1 worker over 2 workers", seconds[1] / seconds[2], "ratio"),
    ]


def overhead(folder: Path, repeat: int) -> list[dict[str, object]]:
    """Microseconds a draw beyond the simulator's own."""
    draws = 8 * ROWS
    values = {
        "simulator": {"name": "linear_gaussian", "options": {"dimension": 5, "size": 32}},
        "simulate": {"count": draws - 1_024, "held_out": 1_024, "batch": 1_024},
    }
    run = Run(case_from_values(values, "benchmark"), folder / "overhead")
    assert run.device.type == "cpu"

    def stage() -> None:
        run.output("simulate").unlink(missing_ok=True)
        for path in (run.folder / FOLDER).glob("shard-*.h5"):
            path.unlink()
        simulate(run, workers=1)

    def bare() -> None:
        with one_thread():
            for shard in range(draws // ROWS):
                stream = generator(1, "simulate", shard)
                theta = sample(run.proposal, ROWS, stream)
                for start in range(0, ROWS, 1_024):
                    run.simulator.simulate(theta[start : start + 1_024], None, generator=stream)

    seconds = in_turns({"stage": stage, "bare": bare}, repeat)
    extra = [(a - b) / draws * 1e6 for a, b in zip(seconds["stage"], seconds["bare"], strict=True)]
    return [
        row("overhead", "a draw in batches of 1,024, written and flushed", statistics.median(extra), "us"),
        row("overhead", "the bare loop", statistics.median(seconds["bare"]) / draws * 1e6, "us a draw"),
    ]


def compression(folder: Path, repeat: int) -> list[dict[str, object]]:
    """Size, write and read of K2-24 simulations."""
    run = Run(load_case(ROOT / "configs" / "k2_24.yaml"), folder / "compression")
    simulated = simulate_rows(run, Shard(0, ROWS), advance=lambda rows: None)
    kinds = ("none", "zstd", "blosc2")

    def write_kind(kind: str) -> None:
        write_data(
            folder / f"{kind}.h5",
            observables=run.simulator.observables,
            parameters=run.simulator.parameters,
            x=simulated.x,
            theta=simulated.theta,
            failed=simulated.failed,
            compression=kind,
            checked=True,
        )

    def read_kind(kind: str) -> None:
        with open_hdf5(folder / f"{kind}.h5") as file:
            for name in (*(f"x/{o.name}" for o in run.simulator.observables), "theta", "failed"):
                file[name][...]  # pyright: ignore[reportIndexIssue]

    writes = in_turns({k: lambda k=k: write_kind(k) for k in kinds}, repeat)
    reads = in_turns({k: lambda k=k: read_kind(k) for k in kinds}, repeat)
    megabytes = sum(v.numel() * v.element_size() for v in (*simulated.x.values(), simulated.theta)) / 1e6
    rows = []
    for kind in kinds:
        size = (folder / f"{kind}.h5").stat().st_size / 1e6
        rows += [
            row("compression", f"{kind}: size", size / megabytes, "of the numbers"),
            row("compression", f"{kind}: write", megabytes / statistics.median(writes[kind]), "MB/s"),
            row("compression", f"{kind}: read", megabytes / statistics.median(reads[kind]), "MB/s"),
        ]
    return rows


def chunks(folder: Path, repeat: int) -> list[dict[str, object]]:
    """A shard of 1,000 numbers a row by bytes a chunk: write, read all of it, read 100 rows far from each other."""
    x = torch.randn(ROWS, 1_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).numpy()
    far = np.sort(np.random.default_rng(1).choice(ROWS, 100, replace=False))
    sizes = [1 << 16, 1 << 18, 1 << 20, 1 << 22]

    def write_size(size: int) -> None:
        path = folder / f"{size}.h5"
        path.unlink(missing_ok=True)
        with h5py.File(path, "w", libver=("v110", "v112")) as file:
            file.create_dataset("x", data=x, chunks=(size // 8_000, 1_000), fletcher32=True)

    def read_size(size: int, rows: object) -> None:
        with open_hdf5(folder / f"{size}.h5") as file:
            file["x"][rows]  # pyright: ignore[reportIndexIssue]

    writes = in_turns({str(s): lambda s=s: write_size(s) for s in sizes}, repeat)
    reads = in_turns({str(s): lambda s=s: read_size(s, slice(None)) for s in sizes}, repeat)
    scattered = in_turns({str(s): lambda s=s: read_size(s, far) for s in sizes}, repeat)
    rows = []
    for size in sizes:
        what, name = f"{size >> 10} KiB", str(size)
        rows += [
            row("chunks", f"{what}: write", x.nbytes / 1e6 / statistics.median(writes[name]), "MB/s"),
            row("chunks", f"{what}: read", x.nbytes / 1e6 / statistics.median(reads[name]), "MB/s"),
            row("chunks", f"{what}: one of 100 rows", statistics.median(scattered[name]) * 1e4, "us"),
        ]
    return rows


def files(folder: Path, repeat: int) -> list[dict[str, object]]:
    """Milliseconds a shard of what is not simulating."""
    count = 1_000
    values = {
        "simulator": {"name": "linear_gaussian"},
        "simulate": {"count": 15 * count, "held_out": count, "shard": 16},
    }
    run = Run(case_from_values(values, "benchmark"), folder / "files")
    shards, key = [Shard(i, 16) for i in range(count)], shard_key(run)
    rows = simulate_rows(run, shards[0], advance=lambda n: None)
    began = time.perf_counter()
    for shard in shards:
        write_data(
            run.folder / FOLDER / shard.name,
            observables=run.simulator.observables,
            parameters=run.simulator.parameters,
            x=rows.x,
            theta=rows.theta,
            failed=rows.failed,
            checked=True,
            attributes={"stage": "simulate", "content_key": key, SHARD: shard.index, FAILED_COUNT: 0},
        )
    made = time.perf_counter() - began
    output = run.output("simulate")
    seconds = in_turns(
        {
            "link": lambda: link(output, shards, key=key, attributes={"content_key": key}),
            "up to date": lambda: forget_what_lost_its_shards(output),
        },
        repeat,
    )
    return [
        row("files", "create, flush and rename a shard", made / count * 1e3, "ms a shard"),
        row("files", "link", statistics.median(seconds["link"]) / count * 1e3, "ms a shard"),
        row("files", "see that it is up to date", statistics.median(seconds["up to date"]) / count * 1e3, "ms a shard"),
        row("files", "simulations.h5", output.stat().st_size / count, "bytes a shard"),
    ]


PARTS = {
    "write": write,
    "workers": workers,
    "overhead": overhead,
    "compression": compression,
    "chunks": chunks,
    "files": files,
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="default: all")
    parser.add_argument("--repeat", type=int, default=5, help="rounds in which the sides take turns")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in [given.part] if given.part else PARTS:
        with tempfile.TemporaryDirectory() as folder:
            rows += PARTS[name](Path(folder), given.repeat)
    append(RESULTS, rows)
    sys.stdout.write("| part | what | value | unit |\n|---|---|---|---|\n")
    for r in rows:
        sys.stdout.write(f"| {r['part']} | {r['what']} | {r['value']} | {r['unit']} |\n")


if __name__ == "__main__":
    main()
