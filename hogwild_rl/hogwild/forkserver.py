"""Clean-up of the server that workers are forked from: it exits when its parent exits.

The server imports this module first. Its socket is in a temporary folder, which a killed parent
does not remove. By default the server detects its parent's exit only after all its imports and
after the exit of the last worker; a stopped worker never exits by itself.
"""

import atexit
import contextlib
import os
import pathlib
import signal
import time

VARIABLE = "HOGWILD_RL_SERVER_OF"  # in the server's environment: the parent's id and that folder
_LOOK_EVERY_S, _PARENT_LEAVES_WITHIN_S = 0.2, 1.0


def _serve(parent: int, folder: pathlib.Path) -> None:
    def check_parent(*_: object) -> None:
        if os.getppid() != parent:
            _clean_up_and_exit(parent, folder)

    # Not a thread: it could hold a lock during a fork. Children do not inherit the timer.
    signal.signal(signal.SIGALRM, check_parent)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_EVERY_S, _LOOK_EVERY_S)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGALRM, signal.SIG_DFL))
    atexit.register(_clean_up_and_exit, parent, folder)


def _clean_up_and_exit(parent: int, folder: pathlib.Path) -> None:
    deadline_s = time.monotonic() + _PARENT_LEAVES_WITHIN_S
    while os.getppid() == parent:  # it closes its files, which ends this server, before it exits
        if time.monotonic() > deadline_s:
            return  # it runs: this server failed, and another may need the folder
        time.sleep(0.01)
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        for socket in folder.glob("listener-*"):
            socket.unlink(missing_ok=True)
        folder.rmdir()
    os._exit(0)  # skips the interpreter's finalization of all imported modules: 0.2 s


def _children() -> list[int]:
    """Ids of the forked processes, where the platform lists them."""
    try:
        listed = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in listed.split()]


if VARIABLE in os.environ:
    _parent, _, _folder = os.environ.pop(VARIABLE).partition(" ")
    _serve(int(_parent), pathlib.Path(_folder))
