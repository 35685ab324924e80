"""Counts of optimizer steps that a device takes or drops, read without a wait."""

import torch
from torch import Tensor

from hogwild_rl.hogwild.counters import CounterWriter


class Outcomes:
    """Counts steps one step late, when the host has waited for the device for other reasons.

    Args:
        counts: counts updates and dropped gradients.
        device: where the steps are taken.
    """

    def __init__(self, counts: CounterWriter, device: torch.device) -> None:
        self._counts = counts
        self._host = torch.zeros((), dtype=torch.bool, pin_memory=device.type == "cuda")
        self._device: Tensor | None = None

    def add(self, taken: Tensor) -> None:
        """Counts the step before this one; since then the host must have waited for the device.

        Args:
            taken: whether this step was taken, bool [] on the device.
        """
        if self._device is not None:
            self._count()
        self._device = taken
        self._host.copy_(taken, non_blocking=True)

    def finish(self) -> None:
        """Waits for the last step and counts it."""
        if self._device is not None:
            self._host.copy_(self._device)
            self._count()

    def _count(self) -> None:
        if self._host:
            self._counts.add_update(self._counts.total_updates())
        else:
            self._counts.add_dropped()
        self._device = None
