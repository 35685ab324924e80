"""Checks of memory, open files and processes before a run starts.

Without /proc limits are unknown and not checked.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator

from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import pickling, shared_memory

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_PROC, _GROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")
_SYS_ADMIN, _SYS_RESOURCE = 1 << 21, 1 << 24  # linux/capability.h: exempt from RLIMIT_NPROC


@dataclasses.dataclass(frozen=True)
class Limit:
    """Resource limit: the largest number in use that is allowed, and the number in use now.

    Attributes:
        whose: owner of the limit, for the message.
        remedy: command that raises the limit, with {} for the number.
        ceiling: highest limit that can be set without root, ∞ if unknown.
    """

    total: int
    used: int
    whose: str
    remedy: str
    ceiling: float = math.inf

    @property
    def left(self) -> int:
        """Number that may still be used, at least 0."""
        return max(0, self.total - self.used)

    def exceeded(self, wanted: int) -> str:
        """Message with the problem and the remedy if more is wanted than is left, else ""."""
        if wanted <= self.left:
            return ""
        enough = 1 << (self.used + wanted - 1).bit_length()
        remedy = self.remedy.format(enough) + (" as root" if enough > self.ceiling else "")
        return f"{self.left:,} are left of the {self.total:,} that {self.whose} may have: {remedy}"


def file_limits() -> list[Limit]:
    """Limits on open files of this process and each of its children."""
    soft, hard = _soft_and_hard("RLIMIT_NOFILE")
    with contextlib.suppress(OSError):
        used = len(os.listdir("/dev/fd"))  # noqa: PTH208  a count is wanted, not paths
        if soft < math.inf:
            return [Limit(int(soft), used, "a process", "ulimit -n {}", hard)]
    return []


def process_limits() -> list[Limit]:
    """Limits on processes and threads of this user and this container."""
    limits = []
    soft, hard = _soft_and_hard("RLIMIT_NPROC")
    if soft < math.inf and _ulimit_binds():
        user = os.getuid()
        limits.append(Limit(int(soft), count_tasks(user), f"user {user}", "ulimit -u {}", hard))
    return [*limits, *groups()]


def groups(
    membership: pathlib.Path = _PROC / "self/cgroup", root: pathlib.Path = _GROUPS
) -> Iterator[Limit]:
    """Limits of all control groups of this process; in a container the path may be outside."""
    with contextlib.suppress(OSError, ValueError):  # not Linux, or an unknown format
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "pids" not in controllers.split(","):
                continue
            top = root / controllers if controllers else root  # cgroup v1, or v2
            folder = top / path.lstrip("/")
            for each in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):  # no file, or "max": no limit
                    total = int((each / "pids.max").read_text())
                    used = int((each / "pids.current").read_text())
                    yield Limit(total, used, "the container", "docker run --pids-limit {}")
                if each == top:
                    break


def _soft_and_hard(name: str) -> tuple[float, float]:
    """Soft and hard limit of a resource, ∞ if unlimited."""
    if resource is None:
        return math.inf, math.inf
    soft, hard = resource.getrlimit(getattr(resource, name))
    unlimited = resource.RLIM_INFINITY
    return (math.inf if soft == unlimited else soft), (math.inf if hard == unlimited else hard)


def _ulimit_binds() -> bool:
    """True if RLIMIT_NPROC applies to this process; root and some capabilities are exempt."""
    with contextlib.suppress(OSError, StopIteration):
        status = (_PROC / "self/status").read_text()
        capabilities = int(next(re.finditer(r"^CapEff:\s*(\w+)", status, re.MULTILINE))[1], 16)
        return os.getuid() != 0 and not capabilities & (_SYS_ADMIN | _SYS_RESOURCE)
    return False


def count_tasks(user: int) -> int:
    """Number of threads of all visible processes of a user."""
    tasks = 0
    for path in _PROC.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # the process has exited
            status = path.read_text()
            if re.search(rf"^Uid:\s*{user}\s", status, re.MULTILINE):
                tasks += sum(map(int, re.findall(r"^Threads:\s*(\d+)", status, re.MULTILINE)))
    return tasks


# Counted on Linux: a worker has three threads, two of them mostly idle, and three open files in its
# parent; an environment process has two threads, and four files in its parent. Others: the fork
# server and its resource tracker, checkpoints, logs, and temporary use during start-up.
_WORKER_TASKS, _ENVIRONMENT_TASKS, _OTHER_TASKS = 3, 2, 8
_WORKER_FILES, _ENVIRONMENT_FILES, _OTHER_FILES = 3, 4, 32


def check_workers(count: int) -> None:
    """Raises UserError if a limit or the caller's script forbids this number of workers."""
    files, tasks = _WORKER_FILES * count, _WORKER_TASKS * count
    _check(f"workers {count}", files, tasks, "give fewer workers")


def check_environments(count: int) -> None:
    """Raises UserError if a limit or the caller's script forbids these environment processes."""
    what = f"num_envs {count} in separate processes"
    files, tasks = _ENVIRONMENT_FILES * count, _ENVIRONMENT_TASKS * count
    _check(what, files, tasks, "give a smaller num_envs")


def check_memory(what: str, wanted: int, remedy: str) -> int | None:
    """Raises UserError if an object does not fit into memory; returns the free bytes if known.

    `what` names the object in the message, `wanted` is a lower bound of its size in bytes.
    """
    free = shared_memory.available()
    if free is not None and wanted > free:
        raise UserError(
            f"{what} takes {wanted / 1e9:,.2f} GB, the machine has {free / 1e9:,.2f} GB left: "
            f"{remedy}"
        )
    return free


def _check(what: str, files: int, tasks: int, remedy: str) -> None:
    if place := pickling.repeated_call():
        raise UserError(
            f'{place}: call train() inside `if __name__ == "__main__":`, as worker processes '
            "import this script again"
        )
    needed = {
        "open files": (files + _OTHER_FILES, file_limits()),
        "processes and threads": (tasks + _OTHER_TASKS, process_limits()),
    }
    for name, (number, limits) in needed.items():
        for limit in limits:
            reason = limit.exceeded(number)
            if reason:
                raise UserError(f"{what} need {number:,} {name}, {reason}, or {remedy}")
