"""Distributed training: process group, DDP and FSDP2, for processes started by torchrun or one.

Model tensors are communicated by NCCL between GPUs and by gloo between CPUs. Control messages
(stop, failure, values for the log) always use gloo, so that they never wait for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from jitkit.errors import JitkitError, Stopped
from jitkit.utils.console import quiet

COMMAND = "JITKIT_COMMAND"  # environment variable that the command line sets
TIMEOUT = timedelta(hours=2)  # rank 0 may measure data or score samples meanwhile


@dataclass(frozen=True)
class Team:
    """The process group of a run.

    Attributes:
        rank: rank of this process, counted from 0; only rank 0 writes files and prints.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints (rank 0)."""
        return self.rank == 0

    def max(self, values: Sequence[float]) -> list[float]:
        """Elementwise maximum over all processes, in every process."""
        if self.world == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def min(self, value: int) -> int:
        """Minimum over all processes, in every process."""
        return int(-self.max([-value])[0])

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum over all processes, as a CPU tensor in every process."""
        total = values.detach().cpu()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes in order of rank, in every process."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in order of rank, on rank 0; others get an empty list."""
        if self.world == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered or []

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))  # on the CPU; barrier() may use a GPU

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block first, so that the others find what it stored."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()

    def raise_together(self, error: Exception | None) -> None:
        """Raise in all processes if one of them has an error; rank 0 names the failing ranks.

        Raises:
            JitkitError: in rank 0, if another process has an error.
            SystemExit: in the other processes, without a message.
        """
        if self.world == 1:
            if error:
                raise error
            return
        texts = self.all_gather(None if error is None else f"{type(error).__name__}: {error}")
        errors = [f"rank {rank} of {self.world}: {text}" for rank, text in enumerate(texts) if text]
        if errors and not self.is_main:
            raise SystemExit(2) from error
        if error:
            raise error
        if errors:
            raise JitkitError("; ".join(errors))


ALONE = Team()


@contextmanager
def team() -> Iterator[Team]:
    """The process group that torchrun started, initialized while the block runs.

    Raises:
        JitkitError: processes named by the environment do not respond.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield ALONE if world == 1 else Team(dist.get_rank(), dist.get_world_size())
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise JitkitError(f"{world} processes cannot be joined: {error}; start them with torchrun "
                          "--nproc-per-node N -m jitkit -- train RECIPE") from None  # fmt: skip
    group = Team(dist.get_rank(), dist.get_world_size())
    if not group.is_main:
        quiet()
    try:
        yield group
        group.barrier()
    except Stopped:  # raised in all processes; gloo's threads abort if one exits before another
        group.barrier()
        raise
    finally:
        if COMMAND not in os.environ:  # the command line exits at once, see `cli.main`
            dist.destroy_process_group()


class DistributedLoss:
    """A loss module whose gradients are reduced over all processes: single process, DDP or FSDP2.

    Args:
        losses: module from a batch's tensors to losses.
        network: its submodule that holds the parameters.
        how: ``"ddp"`` or ``"fsdp"``, ignored in a single process; see `shard` for FSDP2.
    """

    def __init__(
        self, losses: nn.Module, network: nn.Module, how: str, team: Team, device: torch.device
    ) -> None:
        self.team, self.how = team, how if team.world > 1 else "alone"
        self.network, self.losses = network, losses
        if self.how == "ddp":
            ids = [device.index or torch.cuda.current_device()] if device.type == "cuda" else None
            self.losses = DistributedDataParallel(
                losses, ids, gradient_as_bucket_view=True, forward_sync_buffers=False
            )

    def __call__(self, *inputs: Any) -> Tensor:
        """Losses of one part of the batch."""
        return self.losses(*inputs)

    @contextmanager
    def gradient_sync(self, *, last: bool) -> Iterator[None]:
        """Context of one accumulation part: gradients are reduced after the last part only."""
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(last)
        if isinstance(self.losses, DistributedDataParallel) and not last:
            with self.losses.no_sync():
                yield
        else:
            yield


def shard(
    network: nn.Module, blocks: Sequence[nn.Module], team: Team, device: torch.device
) -> None:
    """Shard a network's parameters over all processes (FSDP2), gathered block by block."""
    mesh: DeviceMesh = init_device_mesh(device.type, (team.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def reshard(network: nn.Module) -> None:
    """Free gathered FSDP2 parameters; needed before parameters are written to.

    After a pass without gradient FSDP2 keeps the parameters of the outermost module gathered.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_shard(tensor: Tensor) -> Tensor:
    """The shard of a DTensor that this process holds; an ordinary tensor is returned as is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """A DTensor gathered in every process (a collective call); others are returned as is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def float32_copies(tensors: Mapping[str, Tensor], device: torch.device | None) -> dict[str, Tensor]:
    """Float32 copies on a device (by default that of each tensor), sharded as the tensors are.

    A collective call if tensors are sharded; all must be sharded over the same mesh.
    """
    mesh = next((t.device_mesh for t in tensors.values() if isinstance(t, DTensor)), None)
    if mesh is not None and device is not None and device.type != mesh.device_type:
        mesh = init_device_mesh(device.type, (mesh.size(),))
    return {name: _copy(tensor.detach(), device, mesh) for name, tensor in tensors.items()}


def _copy(tensor: Tensor, device: torch.device | None, mesh: DeviceMesh | None) -> Tensor:
    value = local_shard(tensor).to(device or tensor.device, torch.float32, copy=True)
    if not isinstance(tensor, DTensor):
        return value
    shape, stride = tensor.shape, tensor.stride()
    return DTensor.from_local(
        value, mesh, tensor.placements, run_check=False, shape=shape, stride=stride
    )


@torch.no_grad()
def copy_into(into: Tensor, value: Tensor) -> None:
    """Copy the values of an ordinary tensor into one that may be sharded."""
    if isinstance(into, DTensor):  # every process has the full value: no communication
        value = distribute_tensor(
            value.to(into.device), into.device_mesh, into.placements, src_data_rank=None
        )
        into.to_local().copy_(value.to_local())
    else:
        into.copy_(value)
