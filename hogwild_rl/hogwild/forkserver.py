"""Imported first in the server that workers are forked from: it leaves with its parent, and tidily.

Its socket lies in a folder of temporary files that the parent removes; a parent that was killed
cannot. By itself the server finds out that it is alone only when it has imported all it should and
the last worker has left; and a worker that is stopped never leaves by itself.
"""

import atexit
import contextlib
import os
import pathlib
import signal
import time

VARIABLE = "HOGWILD_RL_SERVER_OF"  # the parent's id and that folder, in the server's environment
_LOOK_EVERY_S, _PARENT_LEAVES_WITHIN_S = 0.2, 1.0


def _serve(parent: int, folder: pathlib.Path) -> None:
    def look(*_: object) -> None:
        if os.getppid() != parent:
            _leave(parent, folder)

    # Not a thread, which could leave a child something locked. Children do not inherit the timer.
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_EVERY_S, _LOOK_EVERY_S)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGALRM, signal.SIG_DFL))
    atexit.register(_leave, parent, folder)


def _leave(parent: int, folder: pathlib.Path) -> None:
    deadline_s = time.monotonic() + _PARENT_LEAVES_WITHIN_S
    while os.getppid() == parent:  # its files are closed, which ends us, before it is gone
        if time.monotonic() > deadline_s:
            return  # it lives: this server has failed, and another may need the folder
        time.sleep(0.01)
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        for socket in folder.glob("listener-*"):
            socket.unlink(missing_ok=True)
        folder.rmdir()
    os._exit(0)  # or the interpreter's end looks through all that was imported, for 0.2 s


def _children() -> list[int]:
    """Processes that were forked here, where the platform lists them."""
    try:
        listed = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in listed.split()]


if VARIABLE in os.environ:
    _parent, _, _folder = os.environ.pop(VARIABLE).partition(" ")
    _serve(int(_parent), pathlib.Path(_folder))
