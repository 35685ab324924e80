"""Outcomes of optimizer steps on a device, read without a wait."""

import math

import torch
from torch import Tensor

from hogwild_rl.hogwild.counters import CounterWriter


class Outcomes:
    """Counts the steps of a device one step late, after the host has waited for another reason.

    Args:
        counters: this worker's row.
        device: of the steps.

    Attributes:
        norm: gradient norm of the last counted step; NaN before the first.
    """

    def __init__(self, counters: CounterWriter, device: torch.device) -> None:
        self._counters, self.norm = counters, math.nan
        self._host = torch.zeros((), pin_memory=device.type == "cuda")
        self._device: Tensor | None = None

    def add(self, norm: Tensor) -> None:
        """Counts the previous step; the host must have waited for the device since then.

        Args:
            norm: gradient norm of this step, [] on the device; not finite if it was not taken.
        """
        if self._device is not None:
            self._count()
        self._device = norm
        self._host.copy_(norm, non_blocking=True)

    def finish(self) -> None:
        """Waits for the last step and counts it."""
        if self._device is not None:
            self._host.copy_(self._device)
            self._count()

    def _count(self) -> None:
        self.norm, self._device = float(self._host), None
        if math.isfinite(self.norm):
            self._counters.add_update(self._counters.total_updates())
        else:
            self._counters.add_dropped()
