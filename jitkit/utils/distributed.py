"""Several processes, started by torchrun, that train one model; or just the one.

Each process knows its rank and how many there are. Tensors of the model travel by NCCL between
GPUs and by gloo between processors; what the processes tell one another besides (stop, failure,
numbers for the log) always goes by gloo, so that it never waits for a GPU.
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

COMMAND = "JITKIT_COMMAND"  # in the environment of a process that is one of our commands
PATIENCE = timedelta(hours=2)  # rank 0 may have data to measure or samples to score meanwhile


@dataclass(frozen=True)
class Team:
    """The processes of a run, and which of them this one is.

    Attributes:
        rank: this process, counted from 0; rank 0 alone writes files and speaks.
        world: processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def max(self, values: Sequence[float]) -> list[float]:
        """The largest of each value among all processes, known to all."""
        if self.world == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def min(self, value: int) -> int:
        """The smallest of a number among all processes, known to all."""
        return int(-self.max([-value])[0])

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on the processor."""
        found = values.detach().cpu()
        if self.world > 1:
            dist.all_reduce(found)
        return found

    def all_gather(self, value: Any) -> list[Any]:
        """What every process holds, in the order of their ranks; known to all."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def gather(self, value: Any) -> list[Any]:
        """What every process holds, in the order of their ranks, for rank 0; others get nothing."""
        if self.world == 1:
            return [value]
        found: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(value, found)
        return found or []

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))  # on the processor, where barrier() may take a GPU

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 goes through the block, then the others: what it stores the others find."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()

    def raise_together(self, error: Exception | None) -> None:
        """Raise in all processes if one of them has an error; rank 0 tells whose it is.

        Raises:
            JitkitError: in rank 0, where another process has an error.
            SystemExit: in the others, which have nothing more to say.
        """
        if self.world == 1:
            if error:
                raise error
            return
        told = self.all_gather(None if error is None else f"{type(error).__name__}: {error}")
        found = [f"rank {rank} of {self.world}: {text}" for rank, text in enumerate(told) if text]
        if found and not self.is_main:
            raise SystemExit(2) from error
        if error:
            raise error
        if found:
            raise JitkitError("; ".join(found))


ALONE = Team()


@contextmanager
def team() -> Iterator[Team]:
    """The processes that torchrun started, joined for as long as the block runs.

    Raises:
        JitkitError: the environment names processes that do not answer.
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
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise JitkitError(f"{world} processes cannot be joined: {error}; start them with torchrun "
                          "--nproc-per-node N -m jitkit -- train RECIPE") from None  # fmt: skip
    found = Team(dist.get_rank(), dist.get_world_size())
    if not found.is_main:
        quiet()
    try:
        yield found
        found.barrier()
    except Stopped:  # all processes have it; gone one before the other, gloo's threads abort
        found.barrier()
        raise
    finally:
        if COMMAND not in os.environ:  # a command leaves at once, see `cli.main`
            dist.destroy_process_group()


class Shared:
    """A module whose gradients are those of all processes: one of them, `DDP` or `FSDP2`.

    Args:
        losses: takes a batch's tensors to losses; what the gradient is of.
        network: the part of it that holds the parameters.
        blocks: parts of the network that are gathered one at a time under FSDP2.
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
        """Losses of a part of the batch."""
        return self.losses(*inputs)

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one part of a step: gradients meet after the last."""
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
    """Spread a network's parameters over all processes (FSDP2), gathered block by block."""
    mesh: DeviceMesh = init_device_mesh(device.type, (team.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def forget_gathered(network: nn.Module) -> None:
    """Have weights that are spread over processes gathered anew: before they are written to.

    After a pass without gradient FSDP2 keeps the outermost module's weights gathered.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; of an ordinary one, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, known to all processes; all must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copies(tensors: Mapping[str, Tensor], device: torch.device | None) -> dict[str, Tensor]:
    """Float32 copies on a device (where each tensor is, if not given), spread as the tensors are.

    All processes must ask where tensors are spread, and all those over the same.
    """
    mesh = next((t.device_mesh for t in tensors.values() if isinstance(t, DTensor)), None)
    if mesh is not None and device is not None and device.type != mesh.device_type:
        mesh = init_device_mesh(device.type, (mesh.size(),))
    return {name: _copy(tensor.detach(), device, mesh) for name, tensor in tensors.items()}


def _copy(tensor: Tensor, device: torch.device | None, mesh: DeviceMesh | None) -> Tensor:
    value = local(tensor).to(device or tensor.device, torch.float32, copy=True)
    if not isinstance(tensor, DTensor):
        return value
    shape, stride = tensor.shape, tensor.stride()
    return DTensor.from_local(
        value, mesh, tensor.placements, run_check=False, shape=shape, stride=stride
    )


@torch.no_grad()
def put(into: Tensor, value: Tensor) -> None:
    """Copy the values of an ordinary tensor into one that may be spread over processes."""
    if isinstance(into, DTensor):  # each process holds all of the value: nothing is sent
        value = distribute_tensor(
            value.to(into.device), into.device_mesh, into.placements, src_data_rank=None
        )
        into.to_local().copy_(value.to_local())
    else:
        into.copy_(value)
