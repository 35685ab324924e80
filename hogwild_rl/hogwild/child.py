"""Child processes: they ignore Ctrl-C, exit with their parent, and send it their traceback.

Children are forked from a server that has imported their modules (``forkserver``), or spawned where
there is none; they never inherit a process in which torch has run. This module does not import
torch, so that the server can start before the parent imports it.
"""

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from hogwild_rl.hogwild import pickling

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT: Any = multiprocessing.get_context(METHOD)

_TRACEBACK_BYTES = 32_768  # well below a pipe's buffer: writing it never blocks
_ANSWER_WITHIN_S = 0.5
_EXIT_WITHIN_S = 5.0
_LOST = 255  # exit code of multiprocessing for a child whose server has ended, and the child's own
_SERVER_ENDS_WITHIN_S = 0.5  # after it has closed its files


@dataclasses.dataclass(frozen=True)
class Failure:
    """Crash or hang of a numbered child process.

    Attributes:
        index: index of the process.
        exit_code: exit code; negative if a signal killed the process.
        traceback: traceback of the exception, or stack of the hung process; empty if unknown.
        role: name of this type of process in messages.
        silent_s: seconds without heartbeat if the process was killed for hanging, otherwise 0.
        server: id of the fork server whose end ended the process, and whose exit code is that of
            this failure; otherwise 0.
    """

    index: int
    exit_code: int
    traceback: str
    role: str = "worker"
    silent_s: float = 0.0
    server: int = 0

    @property
    def name(self) -> str:
        """Name of the process that failed first."""
        return "the fork server" if self.server else f"{self.role} {self.index}"

    def __str__(self) -> str:
        if self.silent_s:
            reason = f"had no heartbeat for {self.silent_s:.0f} s and was killed"
        elif self.exit_code < 0:
            reason = f"was killed by {_signal_name(-self.exit_code)}"
        else:
            reason = f"failed with exit code {self.exit_code}"
        return f"{self.name} {reason}" + f":\n{self.traceback}" * bool(self.traceback)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


_server_exit_codes: dict[int, int] = {}  # by id


def server_id() -> int:
    """Id of the last fork server of this process, 0 if there is none."""
    if METHOD != "forkserver" or not hasattr(os, "waitid"):
        return 0
    from multiprocessing import forkserver

    return forkserver._forkserver._forkserver_pid or 0  # type: ignore[attr-defined]


def server_exit_code(server: int, within_s: float = 0.0) -> int | None:
    """Exit code of a fork server, None if it runs; multiprocessing can still wait for it."""
    deadline_s = time.monotonic() + within_s
    while server and server not in _server_exit_codes:
        try:
            end = os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # another thread has restarted it
            return 1
        if end is not None:
            exited = end.si_code == os.CLD_EXITED
            _server_exit_codes[server] = end.si_status if exited else -end.si_status
        elif time.monotonic() < deadline_s:
            time.sleep(0.001)
        else:
            break
    return _server_exit_codes.get(server)


def start_failure(role: str, index: int, error: Exception) -> Failure:
    """Failure of a child whose start raised an exception."""
    lost = server_id() if isinstance(error, EOFError | ConnectionError) else 0
    exit_code = server_exit_code(lost, _SERVER_ENDS_WITHIN_S) or 0
    if exit_code < 0:
        return Failure(index, exit_code, "", role, server=lost)
    return Failure(index, 1, f"its process cannot be started ({error})", role)


class Child:
    """Running child process that calls a function, which is at the top level of a module.

    `role`, the name of this type of process, and `index` are in its name and its failures.

    Attributes:
        process: the process.
        server: id of its fork server, or 0.
    """

    def __init__(
        self, role: str, index: int, function: Callable[..., None], *arguments: Any
    ) -> None:
        self._role, self._index = role, index
        if getattr(main := sys.modules["__main__"], "__file__", "") == pickling.STDIN:
            del main.__file__  # or the child would open it
        self._texts, texts = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(
            target=_main,
            args=(texts, dict(os.environ), function, pickling.Pickled(arguments)),
            name=f"{role} {index}",
            daemon=True,
        )
        self.process.start()
        self.server = server_id()
        texts.close()

    def failure(self) -> Failure:
        """Joins the process, which has ended or closes its pipes, and describes how it ended."""
        self.process.join(_EXIT_WITHIN_S)
        return self._reap(self._read(0.0), 0.0)

    def kill_hung(self, silent_s: float) -> Failure:
        """Kills the process and describes it, with its stack unless it is stopped by a signal."""
        stack = ""
        if hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(OSError):
                os.kill(self.process.pid, signal.SIGUSR1)
                stack = self._read(_ANSWER_WITHIN_S)
        return self._reap(stack, silent_s)

    def close(self) -> int:
        """Kills the process if it runs, joins it, closes its pipe and returns the exit code."""
        self.process.kill()
        self.process.join()
        exit_code: int = self.process.exitcode
        if exit_code == _LOST and server_exit_code(self.server, _SERVER_ENDS_WITHIN_S) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)  # it may run without its server
        self.process.close()
        self._texts.close()
        return exit_code

    def _reap(self, text: str, silent_s: float) -> Failure:
        exit_code = self.close()
        of_server = server_exit_code(self.server) if exit_code == _LOST else None
        if of_server is not None:
            return Failure(self._index, of_server, "", self._role, server=self.server)
        return Failure(self._index, exit_code, text, self._role, silent_s)

    def _read(self, within_s: float) -> str:
        """Reads a traceback that arrives in pieces, each within `within_s` seconds."""
        text = b""
        with contextlib.suppress(OSError):
            while len(text) < _TRACEBACK_BYTES and self._texts.poll(within_s):
                piece = os.read(self._texts.fileno(), _TRACEBACK_BYTES)
                if not piece:
                    break
                text += piece
        return text.decode(errors="replace").strip()


def _main(
    texts: Connection,
    environ: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()  # that of the fork server is older
    os.environ.update(environ)
    config: Any = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["daemon"] = False  # environments may start processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    faulthandler.enable(texts.fileno())
    if hasattr(faulthandler, "register"):  # the parent requests the stack of a hung process
        faulthandler.register(signal.SIGUSR1, texts.fileno())
    try:
        function(*arguments)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the parent has exited
            text = traceback.format_exc().encode(errors="replace")
            os.write(texts.fileno(), text[-_TRACEBACK_BYTES:])
        # sys.exit(0) is a failure too: the run would continue with one process fewer.
        sys.exit((isinstance(error, SystemExit) and error.code) or 1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
