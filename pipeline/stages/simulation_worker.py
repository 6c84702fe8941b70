"""A process that makes shards: `python -m pipeline.stages.simulation_worker`, started by `simulation_workers`.

It reads one JSON value a line from stdin: first the case, then one shard after another. It writes one a line to what
was stdout: rows made, a shard done, or an error. A started program rather than a fork or a spawned copy of `__main__`:
the simulator is built from the case, and whatever the parent is (a script, a notebook, a test) plays no part.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any


class _Stopped(BaseException):
    pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def main() -> None:
    """Make shards until stdin ends, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, _stop)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a simulator prints must not come between the answers

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        _work(say)
    except (_Stopped, BrokenPipeError):
        os._exit(1)  # the parent does not wait for an orderly end, and may not be there


def _work(say: Any) -> None:
    from pipeline.cost import Meter

    meter = Meter()  # before what is slow to import
    from pipeline.config import case_from_values
    from pipeline.errors import InputError, simulator_fault
    from pipeline.stages.run import Run
    from pipeline.stages.shard import Shard, make_shard, one_thread

    first = json.loads(sys.stdin.readline())
    run = Run(case_from_values(first["case"], "worker"), Path(first["folder"]))
    with one_thread():
        for line in sys.stdin:
            try:
                shard = Shard(**json.loads(line))
                report = make_shard(run, shard, first["key"], advance=lambda n: say(rows=n), meter=meter)
            except Exception as error:
                known = str(error) if isinstance(error, InputError) else simulator_fault(error)
                say(error=known, trace=None if known else traceback.format_exc())
                return
            say(failed=report.failed, first=report.first)


if __name__ == "__main__":
    main()
