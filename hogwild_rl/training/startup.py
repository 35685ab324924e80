"""Preparation of a program before it imports torch."""

import os
import signal

from hogwild_rl.hogwild import processes


def prepare(*, fork_server: bool = False, idle_threads_sleep: bool = False) -> None:
    """Lets Ctrl-C exit silently until training starts, and sets up what torch's import depends on.

    Args:
        fork_server: start the server of the workers, which imports torch while this process does.
        idle_threads_sleep: idle OpenMP threads sleep after a short spin.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell sets for background jobs
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if idle_threads_sleep:
        os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    if fork_server:
        processes.preload("hogwild_rl.training.launch")
