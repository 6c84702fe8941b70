r"""Training from a file four times larger than the memory given, against the same set in memory and against sbi's loader.

    python -m benchmarks.reading
    python -m benchmarks.reading --memory-gb 0.25 --rounds 3

Every side is a process of its own with one thread for its network; the sides take turns, and before each the page cache is
dropped (where that is not permitted, the pages of the shards are given up with posix_fadvise). The ratio is the median over
rounds of neighbours in time.

training   Steps a second of `forward_kl` with a network of 5 million parameters, batch 256: a bare loop of batch, loss,
           gradient, clipping and Adam, the same for both. Streamed: two windows and more are read from the disk while it runs.
           A thread reads them; where there is one core for both, it takes its time from the steps.
loading    Rows a second of the batches alone, over whole epochs, as `forward_kl` and NPE need them. Ours carry theta,
           features (here x in float32), pilot and weights, sbi's theta and x in float32 and a mask, in memory.
memory     The streamed process runs in a memory cgroup whose limit is what the process has before it meets the set, anonymous
           and mapped files, and the memory given: the kernel kills what exceeds it (so it does to the side that holds the set
           in memory: the last row), and page cache counts. Where no cgroup may be made, peak anonymous memory stands alone.

Rows go to benchmarks/results/reading.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from pipeline.config import case_from_values
from pipeline.estimators.posterior import new_network
from pipeline.progress import progress_bar
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import simulation_rows
from pipeline.training.storage import storage_of, stored_simulations

RESULTS = Path(__file__).resolve().parent / "results" / "reading.csv"
CGROUP = Path("/sys/fs/cgroup/memory")
CPU = torch.device("cpu")
BATCH, NUMBERS, HELD_OUT = 256, 512, 1_000
TIMES_LARGER = 4.2
SIDES = ("in memory", "streamed", "loading in memory", "loading streamed", "loading with sbi")


def run_of(folder: Path, count: int) -> Run:
    """Simulations of 512 numbers each, and a network of 5 million parameters."""
    values = {
        "threads": 1,
        "simulator": {"name": "linear_gaussian", "options": {"dimension": 5, "size": NUMBERS}},
        "simulate": {"count": count, "held_out": HELD_OUT},
        "train": {
            "flow": {"transforms": 5, "hidden": 512, "blocks": 2},
            "embedding": {"kind": "mlp", "hidden": 1024, "layers": 3, "output": 128},
        },
    }
    return Run(case_from_values(values, "reading"), folder)


def rss_anon() -> int:
    """Anonymous memory of this process, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon in /proc/self/status: this benchmark needs Linux")


# ------------------------------------------------------------ one side, in a process of its own


def side(name: str, folder: Path, count: int, memory_gb: float, steps: int) -> None:
    """Measure one side; the figures go to the standard output as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    run = run_of(folder, count)
    rows, start = simulation_rows(run, run.simulator)
    given = memory_gb if "streamed" in name else 1e3
    storage = storage_of(rows, start, memory_gb=given, batch=BATCH, device=CPU)
    network = new_network(run.case, run.simulator, NUMBERS)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    training = name in ("in memory", "streamed")
    source: Any = rows.read(start, start + 4_096)
    network.standardize(source.theta, source.inputs)
    if training:  # a step makes the gradients and Adam's moments
        one_step(network, optimizer, source.rows(slice(BATCH)))
    del source
    sys.stdout.write(json.dumps({"before": rss_anon()}) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()  # until the limit is set
    source = stored_simulations(rows, start, storage, device=CPU)
    if name == "loading with sbi":
        figures = sbi_epoch(source)
    else:
        figures = our_steps(source, steps, network, optimizer if training else None)
    parameters = sum(p.numel() for p in network.parameters())
    more = {"gigabytes": storage.gigabytes, "parameters": parameters, "streamed": storage.where == "file"}
    sys.stdout.write(json.dumps(figures | more) + "\n")


def our_steps(source: Any, steps: int, network: Any, optimizer: Any) -> dict[str, float]:
    """Batches, with an optimiser step on each where there is one; the first windows come before the clock starts."""
    batches = source.batches(BATCH, seed=1, stage="reading", with_x=False)
    peak = 0
    batches[0]
    started = time.perf_counter()
    for step in range(steps):
        rows = batches[step]
        if optimizer is not None:
            one_step(network, optimizer, rows)
        if step % 10 == 0:
            peak = max(peak, rss_anon())
    seconds = time.perf_counter() - started
    batches.close()
    return {"steps_a_second": steps / seconds, "rows_a_second": steps * BATCH / seconds, "peak": peak}


def one_step(network: Any, optimizer: Any, rows: Any) -> None:
    """forward_kl."""
    loss = -network.log_q(rows.theta, network.condition(rows.inputs)).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()


def sbi_epoch(stored: Any) -> dict[str, float]:
    """The loader of sbi's `get_dataloaders`, all rows being training rows; a whole epoch."""
    prior_masks = torch.ones(len(stored), 1, dtype=torch.bool)
    dataset = TensorDataset(stored.theta.float(), stored.x["x"].float(), prior_masks)
    sampler = SubsetRandomSampler(torch.randperm(len(stored)).tolist())
    loader = DataLoader(dataset, batch_size=BATCH, drop_last=True, sampler=sampler)
    started = time.perf_counter()
    steps = sum(1 for _ in loader)
    seconds = time.perf_counter() - started
    return {"steps_a_second": steps / seconds, "rows_a_second": steps * BATCH / seconds, "peak": rss_anon()}


# ------------------------------------------------------------ the sides take turns


def drop_page_cache(folder: Path) -> str:
    """Forget what the kernel keeps of the shards."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n", encoding="utf-8")
        return "dropped"
    except OSError:
        for shard in folder.rglob("*.h5"):
            descriptor = os.open(shard, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return "given up"


@contextmanager
def cgroup() -> Iterator[Path | None]:
    """A memory cgroup (v1) for one process, without a limit yet; None where it may not be made."""
    group = CGROUP / f"reading-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()


def limit_to(group: Path, more: int) -> int:
    """Limit a cgroup to the memory that its process has now, anonymous and mapped files, and `more`; bytes."""
    lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    now = {name: int(value) for name, value in (line.split() for line in lines)}
    limit = now["rss"] + now["mapped_file"] + more
    (group / "memory.limit_in_bytes").write_text(str(limit), encoding="utf-8")
    (group / "memory.max_usage_in_bytes").write_text("0", encoding="utf-8")
    return limit


def measure(name: str, folder: Path, given: argparse.Namespace, *, bound: bool) -> dict[str, Any]:
    """One turn of one side."""
    cache = drop_page_cache(folder)
    steps = given.steps if "loading" not in name else given.count // BATCH
    command = [sys.executable, "-m", "benchmarks.reading", "--side", name, "--folder", str(folder)]
    command += ["--count", str(given.count), "--memory-gb", str(given.memory_gb), "--steps", str(steps)]
    with cgroup() as group:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if group is not None:
            (group / "cgroup.procs").write_text(str(process.pid), encoding="utf-8")
        assert process.stdout is not None
        before = json.loads(process.stdout.readline())["before"]
        record: dict[str, Any] = {"side": name, "page_cache": cache, "before_gb": before / 1e9}
        if bound and group is not None:
            record["limit_gb"] = limit_to(group, int(given.memory_gb * 1e9)) / 1e9
        output, _ = process.communicate("go\n")
        figures: dict[str, Any] = json.loads(output) if output.strip() else {}
        if "limit_gb" in record and group is not None:
            record["cgroup_peak_gb"] = int((group / "memory.max_usage_in_bytes").read_text(encoding="utf-8")) / 1e9
    killed = process.returncode == -signal.SIGKILL
    if process.returncode and not (killed and bound):
        raise SystemExit(f"{name}: ended with {process.returncode}")
    record["killed"] = killed
    if "peak" in figures:
        record["added_gb"] = (figures.pop("peak") - before) / 1e9
    return record | figures


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-gb", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=150, help="of a training side")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; default: a temporary one")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side(given.side, given.folder, given.count, given.memory_gb, given.steps)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        row_bytes = 5 * 8 + NUMBERS * 8 + NUMBERS * 4 + 2 * 5 * 8 + 8
        given.count = int(TIMES_LARGER * given.memory_gb * 1e9 / row_bytes)
        simulate(run_of(folder, given.count))
        with progress_bar("reading", given.rounds * len(SIDES) + 1) as advance:
            turns = [(n, one, one == "streamed") for n in range(given.rounds) for one in SIDES]
            records = []
            for round_, one, bound in [*turns, (given.rounds, "in memory", True)]:
                records.append({"round": round_} | measure(one, folder, given, bound=bound))
                sys.stdout.write(in_words(records[-1]) + "\n")
                sys.stdout.flush()
                advance(1, note=one)
    report(records)


def in_words(record: dict[str, Any]) -> str:
    """One measurement on a line."""
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())


def report(records: list[dict[str, Any]]) -> None:
    """The table in a file, and the ratios, medians over rounds."""

    def ratio(above: str, below: str, figure: str) -> float:
        rounds = sorted({r["round"] for r in records})
        rates = [{r["side"]: r[figure] for r in records if r["round"] == n and figure in r} for n in rounds]
        return statistics.median(r[above] / r[below] for r in rates if above in r and below in r)

    machine = {"machine": f"{os.cpu_count()} cores {platform.machine()}", "date": time.strftime("%Y-%m-%d")}
    columns = sorted({k for r in records for k in r}, key=lambda k: (k not in ("round", "side"), k))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *machine], lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(r | machine for r in records)
    sys.stdout.write(
        f"streamed / in memory, steps a second: {ratio('streamed', 'in memory', 'steps_a_second'):.3f}\n"
        f"loading in memory / sbi, rows a second: {ratio('loading in memory', 'loading with sbi', 'rows_a_second'):.1f}\n"
        f"loading streamed / sbi, rows a second: {ratio('loading streamed', 'loading with sbi', 'rows_a_second'):.1f}\n"
    )


if __name__ == "__main__":
    main()
