"""Shared memory for tensors that every worker can see."""

import contextlib
import ctypes
import functools
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_SHARED_MEMORY = pathlib.Path("/dev/shm")  # noqa: S108  a look at its size, nothing is written
_MEMORY = pathlib.Path("/proc/meminfo")
_GROUPS = pathlib.Path("/sys/fs/cgroup")
_GROUP_LIMITS = (
    (_GROUPS / "memory.max", _GROUPS / "memory.current"),
    (_GROUPS / "memory/memory.limit_in_bytes", _GROUPS / "memory/memory.usage_in_bytes"),
)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
_KEPT_BYTES, _OLD_MOST_BYTES = 1 << 30, 32 << 20
_TRIM_EVERY_S = 5.0


class NoSharedMemoryError(OSError):
    """There is too little shared memory."""


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of zeros in shared memory: processes that receive it see the same numbers.

    Its segment has no name, so nothing is left behind, however the processes end.

    Raises:
        NoSharedMemoryError: there is too little. Looked for here, because a process that touches
            memory that is not there is killed by SIGBUS without a word.
    """
    wanted = math.prod(shape) * dtype.itemsize
    if _SHARED_MEMORY.is_dir():
        space = os.statvfs(_SHARED_MEMORY)
        free = space.f_bavail * space.f_frsize
        if wanted > free:
            # Twice as much: what follows is no larger than the first, which is the parameters.
            enough = (space.f_blocks * space.f_frsize - free + 2 * wanted) >> 20
            raise NoSharedMemoryError(
                f"{_SHARED_MEMORY} has {free:,} bytes free, {wanted:,} are needed: make it larger "
                f"(docker run --shm-size={1 << enough.bit_length()}m), or give smaller layers"
            )
    shared: Tensor = torch.zeros(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return shared


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of the same shape, in shared memory if `tensor` is there, otherwise on its device."""
    if tensor.device.type == "cpu" and tensor.is_shared():  # type: ignore[no-untyped-call]
        return zeros(*tensor.shape, dtype=tensor.dtype)
    return torch.zeros_like(tensor, requires_grad=False)


def available() -> int | None:
    """Bytes of memory that this process may still take, or None where nobody says."""
    with contextlib.suppress(OSError, StopIteration):
        lines = _MEMORY.read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return min([int(kilobytes) * 1024, *_left_in_group()])
    return None


def _left_in_group() -> Iterator[int]:
    """What the control group of a container leaves of it, where there is a limit."""
    for limit, used in _GROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # another version, or "max": no limit
            yield max(0, int(limit.read_text()) - int(used.read_text()))


@functools.cache
def retain_freed_memory() -> None:
    """Lets this process keep memory that it frees, for when it needs it again; once is enough.

    By default the GNU C library gives large blocks back at once, and every page of the next one
    costs a fault: with the CNN of A3C on 168 pictures, forward takes 29 ms instead of 17. What lies
    free between small blocks that stay is given back every few seconds: under an environment that
    keeps many of them it would be 600 bytes for every step, for ever.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        if not libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES):  # refused up to version 2.34
            libc.mallopt(_M_MMAP_THRESHOLD, _OLD_MOST_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        threading.Thread(target=_trim, args=(libc.malloc_trim,), daemon=True).start()


def _trim(malloc_trim: Callable[[int], int]) -> None:
    while True:
        time.sleep(_TRIM_EVERY_S)
        malloc_trim(0)
