"""Outcomes of a worker's updates: counts and gauges."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hogwild_rl.hogwild.counters import CounterWriter

_LOG_EVERY_S = 0.1


class Outcomes:
    """Counts a worker's updates, and logs their gauges every 0.1 s.

    An update on a device is counted one update late, after the host has waited for another reason.

    Args:
        counters: this worker's row.
        device: device of the updates.

    Attributes:
        norm: gradient norm of the last counted update; NaN before the first.
    """

    def __init__(self, counters: CounterWriter, device: torch.device) -> None:
        self._counters, self.norm, self._logged_s = counters, math.nan, 0.0
        self._host = torch.zeros((), pin_memory=device.type == "cuda")
        self._device: Tensor | None = None

    def add(self, norm: float | Tensor, updates_at_pull: int | None = None) -> None:
        """Counts this update, or the previous one on a device, for which the host has waited.

        Args:
            norm: gradient norm, a float or [] on the device; not finite if no step was taken.
            updates_at_pull: updates of all workers when the parameters were pulled; None: now.
        """
        if not isinstance(norm, Tensor):
            self._count(norm, updates_at_pull)
            return
        if self._device is not None:
            self._count(float(self._host))
        self._device = norm
        self._host.copy_(norm, non_blocking=True)

    def log(self, gauges: Callable[[], Sequence[float]], learning_rate: float) -> None:
        """Sets this worker's gauges if the last ones are 0.1 s old: `gauges()`, norm and rate."""
        if time.monotonic() - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = time.monotonic()
            self._counters.set_gauges([*gauges(), self.norm, learning_rate])

    def finish(self) -> None:
        """Waits for the last update on a device and counts it."""
        if self._device is not None:
            self._count(float(self._device))
            self._device = None

    def _count(self, norm: float, updates_at_pull: int | None = None) -> None:
        self.norm = norm
        if math.isfinite(norm):
            self._counters.add_update(updates_at_pull)
        else:
            self._counters.add_dropped()
