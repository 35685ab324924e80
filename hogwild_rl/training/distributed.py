"""The processes that update one model together, as `torchrun` starts them; or this one alone."""

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


def _never() -> bool:
    return False


@dataclasses.dataclass
class Ranks:
    """One process among those of a run.

    Attributes:
        index: its number over all machines; 0 keeps the run's folder.
        local: its number on its machine.
        count: how many there are.
    """

    index: int = 0
    local: int = 0
    count: int = 1
    _updates: int = dataclasses.field(default=0, init=False)
    _episodes: Episodes = dataclasses.field(default_factory=list, init=False)
    _agreed_to_stop: bool = dataclasses.field(default=False, init=False)
    wants_to_stop: Callable[[], bool] = dataclasses.field(default=_never, init=False)

    @classmethod
    def here(cls) -> "Ranks":
        """As torchrun's environment variables say."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        return cls(
            *(int(os.environ.get(name, n)) for name, n in zip(names, (0, 0, 1), strict=True))
        )

    def share(self, name: str, total: int) -> int:
        """This process's part of a number that is split evenly.

        Raises:
            UserError: it cannot be.
        """
        if total % self.count:
            raise UserError(f"{name} must be a multiple of the {self.count} ranks, got {total}")
        return total // self.count

    @functools.cached_property
    def _store(self) -> Any:
        """Keys and values that all ranks read and write, at the address torchrun gives."""
        from torch.distributed.rendezvous import rendezvous

        return next(iter(rendezvous("env://")))[0]

    def agree(self, question: str, answer: bool) -> bool:
        """Whether every rank answers a question with yes; all must ask it once, before `joined`."""
        if self.count == 1:
            return answer
        self._store.set(f"{question}/{self.index}", str(answer))
        answers = [self._store.get(f"{question}/{rank}") for rank in range(self.count)]
        return all(each == b"True" for each in answers)

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connects the processes: with gloo on the CPU, with nccl on GPUs."""
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

        Ranks count by their valid transitions, so that it is the gradient of the mean over all.

        Args:
            gradient: of the mean over this rank's transitions, [P].
            steps: how many these are; 2²⁴ over all ranks can be printed apart.
            episodes: that ended in them.

        Returns:
            The steps of all ranks, and every few updates their episodes.
        """
        if self.count == 1:
            return steps, episodes
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
        """True once any rank wants to stop; all ranks learn of it in the same update."""
        return self.wants_to_stop() if self.count == 1 else self._agreed_to_stop

    def gather(self) -> Episodes:
        """The episodes of all ranks that `combine` has not returned yet; all of them must ask."""
        if self.count == 1:
            return []
        import torch.distributed as dist

        everywhere: list[Episodes] = [[] for _ in range(self.count)]
        dist.all_gather_object(everywhere, self._episodes)
        self._episodes.clear()
        return [episode for each in everywhere for episode in each]

    def exchange(self, normalization: Normalization, device: torch.device) -> None:
        """Gives every rank the running moments that the others have added to.

        Args:
            normalization: of the run, with a row for each rank.
            device: through which the ranks talk to each other.
        """
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
