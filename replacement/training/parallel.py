"""Data parallel: the processes that `torchrun` started, or the one there is.

Each rank harvests and differentiates its share of every batch; sums over ranks make the step the
one that a single process would take on the whole batch.
"""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over ranks in the place of each tensor, in one message."""
        if self.world == 1:
            return
        listed = list(tensors)
        message = torch.cat([t.detach().flatten().float() for t in listed])
        dist.all_reduce(message)
        message /= self.world
        for tensor, part in zip(listed, message.split([t.numel() for t in listed]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Put the first rank's tensors in the place of every other's."""
        for tensor in tensors if self.world > 1 else ():
            dist.broadcast(tensor.detach(), src=0)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world > 1:
            dist.barrier()

    def share(self, batch: int) -> int:
        """This rank's part of a batch."""
        if batch % self.world:
            raise ValueError(
                f"batch={batch} cannot be shared evenly by {self.world} processes; "
                f"{batch - batch % self.world + self.world} can."
            )
        return batch // self.world


def joined(device: torch.device) -> Ranks:
    """The ranks that torchrun's environment variables tell of; one process without them.

    They stay joined until the process ends: a group that was left cannot be made again.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size())
