"""Checks of memory, open files and processes before a run starts.

Without /proc no limit is known, and none is checked.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator

from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import shared_memory

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_PROC, _GROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")
_SYS_ADMIN, _SYS_RESOURCE = 1 << 21, 1 << 24  # linux/capability.h: who has one is not limited


@dataclasses.dataclass(frozen=True)
class Limit:
    """A ration of something.

    Attributes:
        total: how much may be used.
        used: how much is.
        whose: by whom.
        remedy: the command that raises it, with {} for a number.
        ceiling: how far anybody but root may raise it, where that is known.
    """

    total: int
    used: int
    whose: str
    remedy: str
    ceiling: float = math.inf

    @property
    def left(self) -> int:
        """How much more may be used."""
        return max(0, self.total - self.used)

    def unsaved_reason(self, wanted: int) -> str:
        """What is wrong and what helps, where so much more is wanted than is left; else nothing."""
        if wanted <= self.left:
            return ""
        enough = 1 << (self.used + wanted - 1).bit_length()
        remedy = self.remedy.format(enough) + (" as root" if enough > self.ceiling else "")
        return f"{self.left:,} are left of the {self.total:,} that {self.whose} may have: {remedy}"


def file_limits() -> list[Limit]:
    """Of this process, and of every one it starts."""
    soft, hard = _soft_and_hard("RLIMIT_NOFILE")
    with contextlib.suppress(OSError):
        used = len(os.listdir("/dev/fd"))  # noqa: PTH208  a count is wanted, not paths
        if soft < math.inf:
            return [Limit(int(soft), used, "a process", "ulimit -n {}", hard)]
    return []


def process_limits() -> list[Limit]:
    """Of this user and of this container, threads counted each."""
    limits = []
    soft, hard = _soft_and_hard("RLIMIT_NPROC")
    if soft < math.inf and _ulimit_binds():
        user = os.getuid()
        limits.append(Limit(int(soft), count_tasks(user), f"user {user}", "ulimit -u {}", hard))
    return [*limits, *groups()]


def groups(
    membership: pathlib.Path = _PROC / "self/cgroup", root: pathlib.Path = _GROUPS
) -> Iterator[Limit]:
    """Of every control group that this process is in; in a container the path may lie outside.

    Args:
        membership: names the groups, as /proc/self/cgroup does.
        root: where their folders are.
    """
    with contextlib.suppress(OSError, ValueError):  # not Linux, or not as it is documented
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "pids" not in controllers.split(","):
                continue
            top = root / controllers if controllers else root  # version 1, or 2
            folder = top / path.lstrip("/")
            for each in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):  # not there, or "max": no limit
                    total = int((each / "pids.max").read_text())
                    used = int((each / "pids.current").read_text())
                    yield Limit(total, used, "the container", "docker run --pids-limit {}")
                if each == top:
                    break


def _soft_and_hard(name: str) -> tuple[float, float]:
    """The limit that holds, and how far it may be raised."""
    if resource is None:
        return math.inf, math.inf
    soft, hard = resource.getrlimit(getattr(resource, name))
    unlimited = resource.RLIM_INFINITY
    return (math.inf if soft == unlimited else soft), (math.inf if hard == unlimited else hard)


def _ulimit_binds() -> bool:
    """Whether this process is held to a limit on processes; root and the like are not."""
    with contextlib.suppress(OSError, StopIteration):
        status = (_PROC / "self/status").read_text()
        able = int(next(re.finditer(r"^CapEff:\s*(\w+)", status, re.MULTILINE))[1], 16)
        return os.getuid() != 0 and not able & (_SYS_ADMIN | _SYS_RESOURCE)
    return False


def count_tasks(user: int) -> int:
    """Threads of all processes of a user, of those that can be seen."""
    tasks = 0
    for path in _PROC.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended
            status = path.read_text()
            if re.search(rf"^Uid:\s*{user}\s", status, re.MULTILINE):
                tasks += sum(map(int, re.findall(r"^Threads:\s*(\d+)", status, re.MULTILINE)))
    return tasks


# Counted on Linux: a worker is three threads, of which two hardly ever run, and its parent holds
# three files for it; the process of an environment is two, and its parent holds four. Others: the
# server that they are forked from and its tracker, checkpoints, logs, and what passes while they
# start.
_WORKER_TASKS, _ENVIRONMENT_TASKS, _OTHER_TASKS = 3, 2, 8
_WORKER_FILES, _ENVIRONMENT_FILES, _OTHER_FILES = 3, 4, 32


def check_workers(count: int) -> None:
    """Makes sure that so many worker processes can be started.

    Raises:
        UserError: the machine, the user or the container may not have as many.
    """
    files, tasks = _WORKER_FILES * count, _WORKER_TASKS * count
    _check(f"workers {count}", files, tasks, "give fewer workers")


def check_environments(count: int) -> None:
    """Makes sure that so many environments can have processes of their own.

    Raises:
        UserError: as `check_workers`.
    """
    what = f"num_envs {count} in processes of their own"
    files, tasks = _ENVIRONMENT_FILES * count, _ENVIRONMENT_TASKS * count
    _check(what, files, tasks, "give a smaller num_envs")


def check_memory(what: str, wanted: int, remedy: str) -> int | None:
    """Makes sure that what must fit into memory can.

    Args:
        what: takes it.
        wanted: bytes, at least.
        remedy: what to do about it.

    Returns:
        Bytes that are left for it, or None where nobody says.

    Raises:
        UserError: there is less.
    """
    free = shared_memory.available()
    if free is not None and wanted > free:
        raise UserError(
            f"{what} takes {wanted / 1e9:,.2f} GB, the machine has {free / 1e9:,.2f} GB left: "
            f"{remedy}"
        )
    return free


def _check(what: str, files: int, tasks: int, remedy: str) -> None:
    wanted = {
        "open files": (files + _OTHER_FILES, file_limits()),
        "processes and threads": (tasks + _OTHER_TASKS, process_limits()),
    }
    for name, (number, rations) in wanted.items():
        for ration in rations:
            unsaved_reason = ration.unsaved_reason(number)
            if unsaved_reason:
                raise UserError(f"{what} want {number:,} {name}, {unsaved_reason}, or {remedy}")
