"""Data-parallel ranks of a run, as started by `torchrun`, or a single process."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hogwild_rl.errors import UserError
from hogwild_rl.learn.normalization import Normalization

Episodes = list[tuple[float, int]]

_GATHER_EVERY = 16  # updates: pickled objects cost more than the gradient


@dataclasses.dataclass
class Ranks:
    """One rank among the processes of a run.

    Attributes:
        index: rank over all machines; rank 0 writes the run's folder.
        local: rank on its machine.
        count: number of ranks (world size).
    """

    index: int = 0
    local: int = 0
    count: int = 1
    _updates: int = dataclasses.field(default=0, init=False)
    _episodes: Episodes = dataclasses.field(default_factory=list, init=False)
    _agreed_to_stop: bool = dataclasses.field(default=False, init=False)
    wants_to_stop: Callable[[], bool] = dataclasses.field(default=bool, init=False)  # False

    @classmethod
    def here(cls) -> "Ranks":
        """Reads torchrun's environment variables."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        return cls(
            *(int(os.environ.get(name) or n) for name, n in zip(names, (0, 0, 1), strict=True))
        )

    def share(self, name: str, total: int) -> int:
        """This rank's share of a total that is split evenly.

        Raises:
            UserError: the total is not a multiple of the number of ranks.
        """
        if total % self.count:
            raise UserError(f"{name} must be a multiple of the {self.count} ranks, got {total}")
        return total // self.count

    @functools.cached_property
    def _store(self) -> Any:
        """Key-value store of all ranks, at torchrun's address."""
        from torch.distributed.rendezvous import rendezvous

        return next(iter(rendezvous("env://")))[0]

    def agree(self, question: str, answer: bool) -> bool:
        """True if every rank answers True; all ranks must call this once, before `joined`."""
        if self.count == 1:
            return answer
        self._store.set(f"{question}/{self.index}", str(answer))
        answers = [self._store.get(f"{question}/{rank}") for rank in range(self.count)]
        return all(each == b"True" for each in answers)

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connects the ranks with gloo on the CPU, with nccl on GPUs."""
        if self.count == 1:
            yield
            return
        import torch.distributed as dist

        gpu = device if device.type == "cuda" else None
        if gpu is not None:
            torch.cuda.set_device(gpu)
        dist.init_process_group(
            "gloo" if gpu is None else "nccl",
            store=self._store,
            rank=self.index,
            world_size=self.count,
            device_id=gpu,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    def combine(self, gradient: Tensor, steps: int, episodes: Episodes) -> tuple[int, Episodes]:
        """Averages the gradient over all transitions of all ranks, in place, by one all-reduce.

        Ranks are weighted by their valid transitions, as in the mean over all of them.

        Args:
            gradient: gradient of the mean over this rank's transitions, [P].
            steps: number of these transitions; the float32 sum over ranks is exact up to 2²⁴.
            episodes: (return, length) of the episodes that ended in them.

        Returns:
            Steps of all ranks, and every 16 updates their episodes.
        """
        import torch.distributed as dist

        packed = torch.cat([gradient * steps, gradient.new_tensor([steps, self.wants_to_stop()])])
        dist.all_reduce(packed)
        total, stops = (int(value) for value in packed[-2:].tolist())
        self._agreed_to_stop = bool(stops)
        torch.div(packed[:-2], max(total, 1), out=gradient)
        self._episodes += episodes
        self._updates += 1
        return total, [] if self._updates % _GATHER_EVERY else self.gather()

    @property
    def stopping(self) -> bool:
        """True once any rank wants to stop; it changes in the same update on all ranks."""
        return self.wants_to_stop() if self.count == 1 else self._agreed_to_stop

    def gather(self) -> Episodes:
        """Episodes of all ranks not yet returned by `combine`; every rank must call this."""
        if self.count == 1:
            return []
        import torch.distributed as dist

        gathered: list[Episodes] = [[] for _ in range(self.count)]
        dist.all_gather_object(gathered, self._episodes)
        self._episodes.clear()
        return [episode for each in gathered for episode in each]

    def exchange(self, normalization: Normalization, device: torch.device) -> None:
        """Copies every rank's row of running moments to all other ranks, through the device."""
        if self.count == 1:
            return
        import torch.distributed as dist

        for moments in normalization.moments.values():
            own = moments.row_state(self.index).to(device)
            rows = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(rows, own)
            for rank, row in enumerate(rows):
                if rank != self.index:
                    moments.set_row(rank, row.cpu())
