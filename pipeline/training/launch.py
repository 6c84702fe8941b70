"""Start several processes of `elboscope train` on this machine, and watch over them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.interrupt import asked_to_stop, stop_if_asked
from pipeline.own_process import own_command, own_sources

LAUNCHED = "ELBOSCOPE_LAUNCHED"
"""Set in processes started here: the one that starts them holds the run folder for all."""
PR_SET_PDEATHSIG = 1
GRACE_S = 60
"""For a process to save its state and stop."""


def launch(arguments: Sequence[str], count: int, *, logs: Path, threads: int) -> None:
    """Run `elboscope ARGUMENTS` in `count` processes that train together, and wait for them.

    A signal that has come is passed on, and raised again when they have saved their state. What the first process says
    goes to the terminal, what the others say to `logs`. Where one ends badly the others are stopped.

    Args:
        arguments: of the command.
        count: processes.
        logs: folder for train-<rank>.log.
        threads: of each; 0: the cores, shared out.

    Raises:
        InputError: one of them ended badly.
        Interrupted: a signal has come, and all have stopped.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {LAUNCHED: "1", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not threads:
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            with (logs / f"train-{rank}.log").open("wb") as log:
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                output = log if rank else None
                command = [*own_command("pipeline.cli"), *arguments]
                processes.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | own_sources() | shared | place,
                        stdout=output,
                        stderr=output,
                        preexec_fn=_end_with_parent,
                    )
                )
        _wait(processes)
    finally:
        _stop(processes)
    stop_if_asked()
    for rank, process in enumerate(processes):
        if process.returncode:
            where = f"; see {logs / f'train-{rank}.log'}" if rank else ""
            raise InputError(f"train: process {rank} of {count} ended with exit code {process.returncode}{where}")


def _end_with_parent() -> None:
    """Have the kernel ask a process to stop when this one is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or one has ended badly, or a signal has come."""
    while any(p.poll() is None for p in processes):
        if asked_to_stop() or any(p.returncode for p in processes):
            return
        time.sleep(0.05)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, upon which a process saves its state; SIGKILL for one that waits for another that is gone."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    failed = any(p.returncode for p in processes)
    for process in processes:
        try:
            process.wait(5 if failed else GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
