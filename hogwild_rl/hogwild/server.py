"""Imported first in the server that workers are forked from: it leaves with its parent, and tidily.

Its socket lies in a folder of temporary files that the parent removes; a parent that was killed
cannot. By itself the server finds out that it is alone only when it has imported all it should.
"""

import atexit
import contextlib
import os
import pathlib
import threading
import time

VARIABLE = "HOGWILD_RL_SERVER_OF"  # the parent's id and that folder, in the server's environment
_LOOK_EVERY_S, _PARENT_LEAVES_WITHIN_S = 0.2, 1.0


def _serve(parent: int, folder: pathlib.Path) -> None:
    forking = threading.Event()
    watch = threading.Thread(target=_watch, args=(parent, folder, forking), daemon=True)
    watch.start()

    def before_fork() -> None:  # a thread could leave a child something locked
        forking.set()
        watch.join()

    os.register_at_fork(before=before_fork)
    atexit.register(_leave, parent, folder)


def _watch(parent: int, folder: pathlib.Path, forking: threading.Event) -> None:
    while not forking.wait(_LOOK_EVERY_S):
        if os.getppid() != parent:
            _leave(parent, folder)


def _leave(parent: int, folder: pathlib.Path) -> None:
    deadline_s = time.monotonic() + _PARENT_LEAVES_WITHIN_S
    while os.getppid() == parent:  # its files are closed, which ends us, before it is gone
        if time.monotonic() > deadline_s:
            return  # it lives: this server has failed, and another may need the folder
        time.sleep(0.01)
    with contextlib.suppress(OSError):
        for socket in folder.glob("listener-*"):
            socket.unlink(missing_ok=True)
        folder.rmdir()
    os._exit(0)  # or the interpreter's end looks through all that was imported, for 0.2 s


if VARIABLE in os.environ:
    _parent, _, _folder = os.environ.pop(VARIABLE).partition(" ")
    _serve(int(_parent), pathlib.Path(_folder))
