"""One training on several processes, as `torchrun` starts them; all that is distributed lies in this file.

Each process takes its part of every batch, and DistributedDataParallel averages their gradients, so that all
hold the same parameters. What has to be the same decision everywhere is made from a mean over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..measure.quiet import working

__all__ = ["World", "is_main", "world"]

T = TypeVar("T")

# Trainings pause while something is measured, and rank 0 validates alone: waiting is no failure.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """The processes that train one model, as one of them sees them; by default it is alone.

    Args:
        rank: of this process.
        size: how many there are.
        local_rank: of this process on its machine.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError unless a batch falls into equal parts of 2 images or more."""
        if batch_size % self.size or batch_size < 2 * self.size:
            raise ValueError(
                f"train: batch_size is {batch_size}, of all {self.size} processes together; it must be a "
                f"multiple of {self.size}, with 2 images or more for each"
            )

    def part(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return batch[self.rank :: self.size]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, element by element, without gradient."""
        total = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        """Whether a flag is up in any process."""
        return self.mean(torch.tensor(float(flag), device=self.device)).item() > 0

    def on_main(self, compute: Callable[[], T]) -> T:
        """What `compute` returns in rank 0, which alone runs it, in all processes; they wait for it."""
        if self.size == 1:
            return compute()
        results = [compute() if self.main else None]
        dist.broadcast_object_list(results, device=self.device)
        return results[0]  # type: ignore[return-value]

    def working(self) -> AbstractContextManager[None]:
        """`ddi.quiet.working` around a step, taken by one process of a machine for all.

        Would each take it, one could hold it and wait for the gradients of another that waits for a
        measurement, which waits for the first. The others begin no step without the first: DDP sends the
        buffers of rank 0 before a forward.
        """
        return working() if self.local_rank == 0 else nullcontext()

    def wrap(self, model: nn.Module, trains_gates: bool) -> nn.Module:
        """The model with its gradients averaged over the processes.

        Only of parameters that require one now, so a model is wrapped anew when that changes. A gate's
        parameters can be without effect (those for an input of the LSTM that nothing reads later), which DDP
        has to look for; it warns where there are none.
        """
        if self.size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=trains_gates)


def is_main() -> bool:
    """Whether this process is the one of its command that writes: rank 0 of `torchrun`, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes of a training: those of a process group that exists, else those that `torchrun` has
    started, for which one is made (gloo for CPUs, nccl for GPUs), else this one alone.

    Args:
        device: "cpu"; "cuda" for one GPU a process, by LOCAL_RANK; with one process also, e.g., "cuda:1".

    Raises:
        ValueError: a machine has fewer GPUs than processes, or device names one GPU for several.
    """
    if dist.is_available() and dist.is_initialized():
        yield _world(device, dist.get_rank(), dist.get_world_size())
        return
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(device=torch.device(device))
        return
    joined = _world(device, int(os.environ["RANK"]), size)
    cuda = joined.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(joined.device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield joined
    finally:
        dist.destroy_process_group()


def _world(device: str, rank: int, size: int) -> World:
    local = int(os.environ.get("LOCAL_RANK", rank))
    own = torch.device(device)
    if own.type == "cuda":
        if own.index is not None and size > 1:
            raise ValueError(
                f'train: device is {device!r} for {size} processes, which need a GPU each; give "cuda"'
            )
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"train: process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; "
                "start as many with `torchrun --nproc-per-node`"
            )
        own = torch.device("cuda", local)
    return World(rank, size, local, own)
