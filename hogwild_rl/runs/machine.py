"""What a run needs of the machine, looked at before anything is started or written."""

from hogwild_rl import UserError
from hogwild_rl.hogwild import limits, memory

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
    free = memory.available()
    if free is not None and wanted > free:
        raise UserError(
            f"{what} takes {wanted / 1e9:,.2f} GB, the machine has {free / 1e9:,.2f} GB left: "
            f"{remedy}"
        )
    return free


def _check(what: str, files: int, tasks: int, remedy: str) -> None:
    wanted = {
        "open files": (files + _OTHER_FILES, limits.open_files()),
        "processes and threads": (tasks + _OTHER_TASKS, limits.processes()),
    }
    for name, (number, rations) in wanted.items():
        for ration in rations:
            lacking = ration.lacking(number)
            if lacking:
                raise UserError(f"{what} want {number:,} {name}, {lacking}, or {remedy}")
