"""Who does the work of a run, worker processes or this one, and what happens when it ends."""

import time
from collections.abc import Callable
from typing import Any

from hogwild_rl.hogwild import workers
from hogwild_rl.hogwild.slots import Slots
from hogwild_rl.hogwild.worker import Worker
from hogwild_rl.runs import cli
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.session import Session

_OBSERVE_EVERY_S = 0.05
_STOP_TIMEOUT_S = 10.0


def in_processes(
    session: Session,
    slots: Slots,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    seed: int,
) -> Agent:
    """Lets as many workers as there are slots do ``work(worker, *arguments)``, and watches them.

    Args:
        session: opened.
        slots: that they count in.
        work: a function at the top level of a module.
        arguments: picklable; tensors in shared memory stay shared.
        seed: of the run.

    Raises:
        WorkersFailedError: one of them failed; the others were stopped and a checkpoint was
            written.
        KeyboardInterrupt, SystemExit: the run was interrupted, likewise.
    """
    crew = workers.Workers(work, arguments, len(slots), seed, session.before.lives)
    failures: list[workers.Failure] = []
    with session.interruptible():
        try:
            with crew:
                while crew.running and not failures and not session.ending:
                    failures = crew.wait(_OBSERVE_EVERY_S)
                    session.observe(slots)
                failures += crew.stop(_STOP_TIMEOUT_S)
        finally:
            agent = session.close(slots, failed=bool(failures))
    if failures:
        raise cli.WorkersFailedError("\n".join(map(str, failures)))
    return agent


def here(
    session: Session,
    slots: Slots,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    seed: int,
) -> Agent:
    """Does ``work(worker, *arguments)`` in this process, which watches itself meanwhile.

    Raises:
        KeyboardInterrupt, SystemExit: the run was interrupted; a checkpoint was written.
    """
    finished = False
    worker = Worker(0, session.before.lives, seed, _watch(session, slots))
    with session.interruptible():
        try:
            work(worker, *arguments)
            finished = True
        finally:
            agent = session.close(slots, failed=not finished)
    return agent


def _watch(session: Session, slots: Slots) -> Callable[[], bool]:
    """Tells whether the run is ending, and looks at how it goes from time to time."""
    observed_s = time.monotonic()

    def ending() -> bool:
        nonlocal observed_s
        if time.monotonic() - observed_s >= _OBSERVE_EVERY_S:
            session.observe(slots)
            observed_s = time.monotonic()
        return session.ending

    return ending
