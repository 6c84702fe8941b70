r"""What N simulations take, from constants measured by `benchmarks.simulations`: bytes, files, hours, cores.

    python -m benchmarks.simulations_on_paper

For K2-24: bytes a row and seconds a draw are measured here, milliseconds a shard are the last ones in
benchmarks/results/simulations.csv. Shards grow with N, so that a folder has at most some thousands: a directory with
more is slow on network file systems. Nothing here has been run at that size.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.simulations import RESULTS, ROOT
from pipeline.config import load_case
from pipeline.stages.run import Run
from pipeline.stages.shard import Shard, make_shard, shard_key

SIZES = ((10**5, 16_384), (10**6, 16_384), (10**7, 16_384), (10**8, 131_072))
SIMULATORS = {"1 ms": 1e-3, "1 s": 1.0}
"""Seconds a draw of slower simulators than that of K2-24."""
NODE_CORES = 64


def measured(what: str) -> float:
    """The last value in the table."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [float(r["value"]) for r in csv.DictReader(file) if r["what"] == what][-1]


def constants(folder: Path) -> tuple[float, float]:
    """Bytes and seconds a draw of K2-24, written and flushed."""
    run = Run(load_case(ROOT / "configs" / "k2_24.yaml"), folder)
    shard = Shard(0, 16_384)
    make_shard(run, shard, shard_key(run), advance=lambda rows: None)
    began = time.perf_counter()
    make_shard(run, shard, shard_key(run), advance=lambda rows: None)
    seconds = time.perf_counter() - began
    return (folder / "simulations" / shard.name).stat().st_size / shard.rows, seconds / shard.rows


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bytes_a_row, seconds_a_draw = constants(Path(folder))
    link_ms, look_ms = measured("link"), measured("see that it is up to date")
    kinds = {f"K2-24, {seconds_a_draw * 1e6:.0f} us": seconds_a_draw} | SIMULATORS
    sys.stdout.write(
        f"{bytes_a_row:.0f} bytes a row, {link_ms:g} ms to link a shard, {look_ms:g} ms to look at one\n\n"
    )
    head = ["simulations", "rows a shard", "bytes", "files", "link", "no-op", *(f"core hours, {k}" for k in kinds)]
    head.append(f"nodes of {NODE_CORES} cores for a day at 1 s")
    sys.stdout.write("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n")
    for count, rows in SIZES:
        shards = -(-count // rows)
        cells = [f"{count:.0e}".replace("e+0", "e"), f"{rows:,}", f"{count * bytes_a_row / 1e9:.3g} GB", f"{shards:,}"]
        cells += [f"{shards * link_ms / 1e3:.2g} s", f"{shards * look_ms / 1e3:.2g} s"]
        cells += [f"{count * s / 3600:.2g}" for s in kinds.values()]
        cells.append(f"{count * SIMULATORS['1 s'] / 86400 / NODE_CORES:.2g}")
        sys.stdout.write("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
