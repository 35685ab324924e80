"""Tensors in shared memory, and memory management of a process."""

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

_SHARED_MEMORY = pathlib.Path("/dev/shm")  # noqa: S108  only its size is read
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
    """Too little shared memory."""


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tensor of zeros in shared memory: all processes that receive it share its data.

    Its segment has no name, so it is freed however the processes end.

    Raises:
        NoSharedMemoryError: too little is free. Checked here, because a process that accesses
            missing memory is killed by SIGBUS without a message.
    """
    needed = math.prod(shape) * dtype.itemsize
    left = free()
    if left is not None and needed > left:
        space = os.statvfs(_SHARED_MEMORY)
        # Twice as much: what follows is no larger than the first tensor, the parameters.
        enough = (space.f_blocks * space.f_frsize - left + 2 * needed) >> 20
        raise NoSharedMemoryError(
            f"{_SHARED_MEMORY} has {left:,} bytes free, {needed:,} are needed: make it larger "
            f"(docker run --shm-size={1 << enough.bit_length()}m), or give smaller layers"
        )
    shared: Tensor = torch.zeros(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return shared


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of the same shape, in shared memory if `tensor` is there, otherwise on its device."""
    if tensor.device.type == "cpu" and tensor.is_shared():  # type: ignore[no-untyped-call]
        return zeros(*tensor.shape, dtype=tensor.dtype)
    return torch.zeros_like(tensor, requires_grad=False)


def free() -> int | None:
    """Bytes of shared memory that are free, or None if unknown."""
    if not _SHARED_MEMORY.is_dir():
        return None
    space = os.statvfs(_SHARED_MEMORY)
    return space.f_bavail * space.f_frsize


def available() -> int | None:
    """Bytes of memory that this process may still allocate, or None if unknown."""
    with contextlib.suppress(OSError, StopIteration):
        lines = _MEMORY.read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return min([int(kilobytes) * 1024, *_left_in_group()])
    return None


def _left_in_group() -> Iterator[int]:
    """Bytes left by the control group of a container, where it has a limit."""
    for limit, used in _GROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # another cgroup version, or "max": no limit
            yield max(0, int(limit.read_text()) - int(used.read_text()))


@functools.cache
def retain_freed_memory() -> None:
    """Keeps freed memory in this process for reuse; later calls do nothing.

    By default the GNU C library returns large blocks to the system at once, and every page of the
    next one costs a page fault: with the CNN of A3C on 168 images, forward takes 29 ms instead of
    17. Free memory between small blocks in use is returned every few seconds: with an environment
    that keeps many such blocks, it would grow by 600 bytes per step without limit.
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
