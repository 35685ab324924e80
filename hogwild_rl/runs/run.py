"""A run: folder, log, checkpoints, and its end."""

import contextlib
import json
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np

from hogwild_rl import errors
from hogwild_rl.config import base
from hogwild_rl.envs import make
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.runs import files, logger, resume
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.checkpoint import CHECKPOINT_FILE, Checkpointer
from hogwild_rl.runs.logger import Progress
from hogwild_rl.runs.state import TrainState


class Run:
    """Opens a run's folder, new or resumed, and keeps it up to date until the run ends.

    Args:
        algorithm: its module's name, "a3c".
        config: its settings.
        reports: False where another process of the same run keeps the folder.

    Attributes:
        config: settings.
        env: facts about the environment.
        folder: folder of the run, once it is open.
        before: progress of the run's earlier sessions.
        resumed_state: state of the only worker in the checkpoint that is resumed, or None.

    Raises:
        UserError: the environment, the folder or the checkpoint cannot be used.
    """

    def __init__(self, algorithm: str, config: base.RunConfig, reports: bool = True) -> None:
        self.env = make.inspect_env(config.env)
        self._algorithm, self.config, self._reports = algorithm, config, reports
        self._resumed = resume.checkpoint_to_resume(config, self.env)
        self.before = self._resumed.counters if self._resumed else Progress()
        self.resumed_state = resume.state_to_resume(self._resumed, config)
        self._solved_at: logger.Snapshot | None = None
        self._signal: int | None = None
        self._failures, self._nonfinite = 0, np.zeros(1, dtype=np.int64)  # the latter by worker
        logger.require_tensorboard(config)
        registered = self.env.reward_threshold
        self._target = registered if config.target_return is None else config.target_return
        if config.stop_when_solved and self._target is None:
            raise UserError(
                f"{self.env.name} has no registered reward threshold: give a target_return, "
                "or leave out stop_when_solved"
            )

    def open(self, state: TrainState) -> None:
        """Creates or reopens the folder; a resumed run's parameters and statistics are restored."""
        plain, session = self.config.to_json(), self.before.sessions + 1
        parts = (state.model.module, state.optimizer, state.normalization)
        self._checkpointer = Checkpointer(self._algorithm, plain, self.env, *parts, session)
        if self._resumed is not None:
            self._checkpointer.restore(self._resumed)
            unsaved_reason = (self.resumed_state or {}).get("unsaved_reason")
            if unsaved_reason is not None:
                self.info(f"episodes begin anew: {unsaved_reason}, which no checkpoint can hold")
        self._checkpointer.guard()
        self._checkpointer.best = self.before.best_return
        if self._reports:
            self.folder = resume.prepare_folder(self._algorithm, self.config, self.env.name)
            self._checkpointer.best = resume.best_return(self.folder, self.before)
            write_settings(self.folder, self._algorithm, plain)
            self._reporter = logger.Reporter(self.folder, self.config, self.before)
        self._began_s = time.monotonic()

    def info(self, line: str) -> None:
        """Says something about the run on the terminal."""
        if self._reports and not self.config.quiet:
            with contextlib.suppress(OSError):  # nobody reads on; training does not depend on it
                print(line, flush=True)

    def log_failure(self, failure: str, printed: bool = False) -> None:
        """Notes a failure in the run's folder, if it is ours, and says it if nobody else will."""
        self._failures += 1
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {failure}\n"
        if self._reports:
            with contextlib.suppress(OSError):
                files.append_text(self.folder / FAILURES_FILE, line)
        if not (printed or self.config.quiet):
            with contextlib.suppress(OSError):
                print(failure, file=sys.stderr, flush=True)

    def observe(
        self,
        counters: Counters,
        worker_state: Callable[[], Any] | None = None,
        *,
        final: bool = False,
    ) -> None:
        """Looks at how the run goes: reports it, saves it when due, notes when it is solved.

        Args:
            counters: of its workers.
            worker_state: captures the state of the only worker, where it is at a safe point.
            final: for the last time.
        """
        if not self._reports:
            return
        now_s = time.monotonic()
        episodes = logger.recent_episodes(counters, self.before)
        elapsed_s, last = now_s - self._began_s, self._reporter.last
        snapshot = logger.take_snapshot(counters, episodes, self.before, elapsed_s, last)
        self._snapshot, self._episodes = snapshot, episodes
        full = len(episodes.returns) == logger.EPISODES_AVERAGED
        target = self._target
        if full and target is not None and snapshot.return_mean >= target and not self.solved:
            self._solved_at = snapshot
        reported, saving = self._reporter.report(snapshot, final), final or self.checkpoint_due
        if reported or saving:
            self._tell_bad_numbers(counters, final)
        if reported and full:
            self._checkpointer.keep_best(self.folder, snapshot, episodes)
        if saving:
            middle = worker_state() if worker_state else None
            self._checkpointer.keep_newest(self.folder, snapshot, episodes, middle)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the next look at the run will save it."""
        return self._reports and self._checkpointer.silent_s >= self.config.checkpoint_every

    def _tell_bad_numbers(self, counters: Counters, final: bool) -> None:
        """Says where numbers were not finite; ends the run where there are no others."""
        restored = self._checkpointer.guard()
        if restored:
            self.log_failure(
                "the parameters were not finite: put back to what they were at the last report"
            )
        rows, broken = counters.rows, counters.rows["nonfinite"].copy()
        if (broken > self._nonfinite).any():
            worker = int((broken - self._nonfinite).argmax())
            where = f"worker {worker}, environment {rows['nonfinite_source'][worker]}"
            self.log_failure(
                f"{where} and {broken.sum() - 1:,} times before it: a reward or observation was "
                "not finite; the update is dropped, the episode given up"
            )
            self._nonfinite = broken
        row = int(rows["dropped_in_a_row"].max())
        # What was dropped because of the parameters is not to be held against the data.
        if row >= self.config.max_bad_updates and not (final or restored):
            raise errors.RunFailedError(
                f"{row} updates of worker {int(rows['dropped_in_a_row'].argmax())} in a row were "
                f"not finite, which is more than max_bad_updates allows; last good checkpoint: "
                f"{self.folder / CHECKPOINT_FILE}"
            )

    def close(
        self, counters: Counters, failed: bool, worker_state: Callable[[], Any] | None = None
    ) -> Agent:
        """Writes the last report and checkpoint, tells how to go on, and returns the agent."""
        if not self._reports:
            elapsed_s = time.monotonic() - self._began_s
            self._episodes = logger.recent_episodes(counters, self.before)
            self._snapshot = logger.take_snapshot(
                counters, self._episodes, self.before, elapsed_s, None
            )
            return self._agent(None)
        self.observe(counters, worker_state, final=True)
        self._reporter.close()
        with contextlib.suppress(OSError):
            logger.write_staleness(self.folder, counters)
        lines = logger.summary_lines(self._snapshot, self.env.frames_per_step, self._solved_at)
        for line in lines:
            self.info(line)
        if self._failures:
            self.info(f"{self._failures:,} failures: {self.folder / FAILURES_FILE}")
        resume = self._algorithm if failed or self._signal is not None else None
        for line in logger.next_steps(self.folder, self.env.name, resume):
            self.info(line)
        return self._agent(self.folder)

    @property
    def solved(self) -> bool:
        """Whether the environment's reward threshold has been reached."""
        return self._solved_at is not None

    @property
    def ending(self) -> bool:
        """Whether training should end now: interrupted, or solved and printed to stop there."""
        return self._signal is not None or (self.solved and self.config.stop_when_solved)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C once, or SIGTERM: `ending` becomes true, and on leaving the interrupt is raised.

        Ctrl-C twice: it is raised at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        def handle(number: int, _: FrameType | None) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            if not self.config.quiet:
                sys.stderr.write("\nstopping and saving; once more ends at once\n")

        before = {number: signal.signal(number, handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
        if self._signal is not None:
            raise (
                KeyboardInterrupt
                if self._signal == signal.SIGINT
                else SystemExit(128 + self._signal)
            )

    def _agent(self, folder: pathlib.Path | None) -> Agent:
        network = getattr(self.config, "network", None)
        return Agent(
            self._checkpointer.checkpoint(self._snapshot, self._episodes),
            env=self.config.env,
            run_dir=folder,
            network=None if isinstance(network, str) else network,
        )


FAILURES_FILE = "failures.log"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def write_settings(folder: pathlib.Path, algorithm: str, settings: Mapping[str, Any]) -> None:
    """Writes settings.json, for people and for --resume."""
    document = {"algorithm": algorithm, "settings": settings}
    files.write_text(folder / base.SETTINGS_FILE, json.dumps(document, indent=2) + "\n")
