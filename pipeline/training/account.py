"""What training has cost so far, over all sessions and processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.cost import Cost, Meter
from pipeline.store import read_cost, write_text
from pipeline.training.processes import Processes


class Account:
    """A file beside the checkpoints, so that a killed training keeps what it has cost up to the last of them."""

    def __init__(self, folder: Path, meter: Meter, processes: Processes) -> None:
        self.path, self.meter, self.processes = folder / "cost.json", meter, processes
        self.cost = read_cost(self.path)

    def add(self) -> Cost:
        """All up to now; every process has to call this, and the first writes it down."""
        lap = self.meter.lap()
        lap = replace(lap, cpu_time_s=self.processes.sum(lap.cpu_time_s))
        self.cost = lap if self.cost is None else self.cost + lap
        if self.processes.first:
            write_text(self.path, self.cost.text())
        return self.cost
