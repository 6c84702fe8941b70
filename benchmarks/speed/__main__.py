r"""Speed of the parts: flows, training batches, how the cost grows, and what a GPU waits for.

    python -m benchmarks.speed
    python -m benchmarks.speed --part flows --repeat 15

flows      Our flow against stock nflows and zuko, with equal transforms, bins, hidden and blocks, context of size D:
           a training step, 4096 draws with log q, and a draw with the gradient through the inverse. Ours has two further
           layers, tails and affine map, which the others lack. Equal settings are not equal networks: nflows' block is
           two linear layers and a gate by the context, ours is one layer, so nflows with 1 block, of our depth, is there
           too; zuko's network is one layer less deep than ours. The table has the numbers of parameters. Draws of one x
           show what it saves to read x once for all of them; with as many x as draws nothing is saved that way.
batches    Training batches of 256 from 20,000 simulations, a whole epoch, against sbi's DataLoader. Ours hold
           theta in float64, features, pilot and importance weights (x in float64 only where a likelihood needs it), sbi's
           theta and x in float32, and a mask.
scaling    How our own cost grows; the ratio is to the first size.
gpu        Eager, compiled and captured steps, and the share of the time in which a kernel runs.

One thread, CPU time (wall time on the GPU). The sides take turns in one run, and the ratio is the median over rounds of
(theirs / ours) within a round: the machine's speed drifts by a factor of two, so that no other ratio is worth anything.
Rows go to benchmarks/results/speed.csv, in place of those of the same part and machine.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.batches import batches
from benchmarks.speed.clock import Row
from benchmarks.speed.flows import flows
from benchmarks.speed.gpu import gpu
from benchmarks.speed.scaling import scaling

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed.csv"
PARTS: dict[str, Callable[[int], list[Row]]] = {"flows": flows, "batches": batches, "scaling": scaling, "gpu": gpu}


def write(rows: list[Row]) -> None:
    """Put rows into the table, in place of those of the same part and machine."""
    new = {(row.part, row.machine) for row in rows}
    kept: list[dict[str, Any]] = []
    if RESULTS.is_file():
        with RESULTS.open(encoding="utf-8", newline="") as file:
            kept = [row for row in csv.DictReader(file) if (row["part"], row["machine"]) not in new]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *(asdict(row) for row in rows)])


def markdown(rows: list[Row]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| part | what | against | D | N | K | hidden | numbers in x | parameters | ours | theirs | ratio | unit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parameters = f"{row.our_parameters} / {row.their_parameters}" if row.our_parameters else ""
        sizes = (row.dimension, row.observations, row.draws, row.hidden, row.x_numbers)
        cells = (row.part, row.what, row.against, *sizes, parameters, row.ours, row.theirs, row.ratio, row.unit)
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="default: all")
    parser.add_argument("--repeat", type=int, default=7, help="rounds in which the sides take turns")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rows = [row for name in ([given.part] if given.part else PARTS) for row in PARTS[name](given.repeat)]
    if rows:
        write(rows)
        sys.stdout.write(markdown(rows))


if __name__ == "__main__":
    main()
