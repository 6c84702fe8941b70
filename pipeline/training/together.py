"""How processes that train together find each other: under torchrun, under srun, or started by `elboscope train` itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from pipeline.errors import InputError
from pipeline.progress import console
from pipeline.training.processes import ALONE, Processes

PATIENCE = timedelta(minutes=30)
"""For a process that another one waits for; one process alone does the checks on held-out simulations."""


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a process among several; empty for one alone.

    They are torchrun's. Under srun they are made from the variables of the job step (a batch script without srun is
    one process, however many tasks the job has): the first node, and a port that jobs and steps seldom share.

    >>> step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
    >>> variables(step | {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_ID": "2"})
    {'RANK': '5', 'WORLD_SIZE': '8', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'gpu07', 'MASTER_PORT': '18458'}
    >>> variables({"SLURM_NTASKS": "8"})
    {}
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        return {k: environment.get(k, "0") for k in names}
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "SLURM_PROCID" not in environment:
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST", "127.0.0.1")
    number = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes)),
        "MASTER_PORT": environment.get("MASTER_PORT", str(15_000 + number % 15_000)),
    }


@contextmanager
def together(*, gpu: bool) -> Iterator[Processes]:
    """Join the other processes, if this is one of several; only the first of them speaks to the user.

    Args:
        gpu: whether each trains on a GPU of its own; over NCCL then, else over gloo.

    Raises:
        InputError: the name of the first node is not known here.
    """
    mine = variables(os.environ)
    if not mine:
        yield ALONE
        return
    os.environ.update(mine)
    try:
        socket.getaddrinfo(mine["MASTER_ADDR"], int(mine["MASTER_PORT"]))
    except socket.gaierror:
        raise InputError(
            f"train: the first node, {mine['MASTER_ADDR']}, has no address that this one knows; set MASTER_ADDR to one"
        ) from None
    if gpu:
        torch.cuda.set_device(int(mine["LOCAL_RANK"]) % torch.cuda.device_count())
    rank, world = int(mine["RANK"]), int(mine["WORLD_SIZE"])
    torch.distributed.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=world, timeout=PATIENCE)
    control = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if gpu else None
    console.quiet = rank > 0
    try:
        yield Processes(rank, world, control)
        torch.distributed.destroy_process_group()  # after an error the others may be gone
    finally:
        console.quiet = False


class _OneDeviceEach(ClusterEnvironment):
    """Lightning's view: every process is a node with one device, so that a node may have any number of them."""

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.processes.world

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        return self.processes.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self.processes.rank


def lightning_options(processes: Processes, device: torch.device) -> dict[str, Any]:
    """Arguments of Lightning's Trainer: one device, or one of several processes with Lightning's DDP between them."""
    if processes.world == 1:
        # whatever job it runs in: Slurm's variables make Lightning look for processes that are not there
        return {"devices": 1, "plugins": [LightningEnvironment()]}
    strategy = DDPStrategy(
        cluster_environment=_OneDeviceEach(processes),
        broadcast_buffers=False,  # what is not trained is computed alike by all
        timeout=PATIENCE,
    )
    devices: Any = [torch.cuda.current_device()] if device.type == "cuda" else 1
    return {"devices": devices, "num_nodes": processes.world, "strategy": strategy}
