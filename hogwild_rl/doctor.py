"""Report on this machine: versions, cores, limits and features; problems begin with `!`."""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare()

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

import torch

from hogwild_rl.config import base, cli, resources
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import child, shared_memory
from hogwild_rl.training import devices

_PACKAGES = (
    *("hogwild_rl", "torch", "gymnasium", "numpy", "tyro", "tqdm", "ale-py", "envpool"),
    *("box2d", "matplotlib", "moviepy", "mujoco", "tensorboard"),
)


def report() -> Iterator[str]:
    """Yields one line per fact; lines of problems begin with `!`."""
    yield f"python {platform.python_version()}, {platform.platform()}"
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name} {importlib.metadata.version(name)}"
    cores = base.usable_cores()
    yield f"cores {cores} usable of {os.cpu_count()}"
    if (quota := base.cpu_quota()) is not None:
        yield f"CPU quota {quota:g} cores"
    yield f"processor {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    yield f"bfloat16 on this processor {'yes' if devices.has_bfloat16() else 'no'}"
    for index in range(torch.cuda.device_count()):
        yield f"GPU {index} {torch.cuda.get_device_name(index)}"
    yield f"start method of workers {child.METHOD}"
    for name, free in (
        ("memory", shared_memory.available()),
        ("shared memory", shared_memory.free()),
    ):
        yield f"{name} {'unknown' if free is None else f'{free / 1e9:.2f} GB free'}"
    limits = {"open files": resources.file_limits(), "processes": resources.process_limits()}
    for name, each in limits.items():
        yield from (f"{name} {limit.left:,} left of {limit.total:,}" for limit in each)
    try:
        resources.check_workers(cores)
        shared_memory.zeros(10_000_000)  # six times the parameters of A3C's CNN
    except (UserError, shared_memory.NoSharedMemoryError) as error:
        yield f"! {error}"


def main() -> None:
    """Command line: ``hogwild-rl doctor``."""
    if len(sys.argv) > 1:
        raise UserError(f"doctor has no arguments, got {sys.argv[1]}: leave it out")
    lines = list(report())
    print("\n".join(lines))
    if any(line.startswith("!") for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
