"""Run: folder, log, checkpoints and termination."""

import contextlib
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch

from hogwild_rl import errors
from hogwild_rl.config import base, cli, presets
from hogwild_rl.config.network import NetworkConfig
from hogwild_rl.envs import make
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import processes
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.models import encoders
from hogwild_rl.runs import files, logger, resume
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.checkpoint import CHECKPOINT_FILE, Checkpointer
from hogwild_rl.runs.logger import Progress
from hogwild_rl.runs.state import TrainState


class Run:
    """Run of an algorithm: opens its folder, new or resumed, and updates it until the run ends.

    Args:
        algorithm, config: module name of the algorithm, for example "a3c", and settings.
        reports: False if another process of the same run writes the folder.

    Attributes:
        config: settings, with defaults that depend on the environment.
        env: facts about the environment.
        folder: folder of the run, set by `open` if this process writes it.
        before: progress of the run's earlier sessions.
        resumed_state: state of the only worker in the resumed checkpoint; None with another seed.

    Raises:
        UserError: the environment, the folder or the checkpoint cannot be used.
    """

    def __init__(self, algorithm: str, config: base.RunConfig, reports: bool = True) -> None:
        if torch.get_default_dtype() != torch.float32:
            given = torch.get_default_dtype()
            raise UserError(
                f"torch's default dtype is {given}, training needs float32: call "
                "torch.set_default_dtype(torch.float32) first"
            )
        with processes.seeded_globally(config.seed):
            self.env = make.inspect_env(config.env)
        config = config.for_env(self.env)
        self._algorithm, self.config, self._reports = algorithm, config, reports
        self._resumed = resume.checkpoint_to_resume(config, self.env)
        self.before = self._resumed.counters if self._resumed else Progress()
        self.resumed_state = resume.state_to_resume(self._resumed, config)
        self.folder = pathlib.Path()
        self._solved_at: logger.Snapshot | None = None
        self._signal: int | None = None
        self._scale_checked = False
        self._failures, self._nonfinite = 0, np.zeros(1, dtype=np.int64)  # [workers]
        if config.tensorboard:
            logger.require_tensorboard()
        registered = self.env.reward_threshold
        self._target = registered if config.target_return is None else config.target_return
        if config.stop_when_solved and self._target is None:
            raise UserError(
                f"{self.env.name} has no registered reward threshold: set target_return, "
                "or omit stop_when_solved"
            )

    def open(self, state: TrainState) -> None:
        """Creates or reopens the folder, and restores a resumed run's parameters and statistics."""
        plain, session = self.config.to_json(), self.before.sessions + 1
        self._checkpointer = Checkpointer(self._algorithm, plain, self.env, state, session)
        if self._resumed is not None:
            self._checkpointer.restore(self._resumed)
            unsaved_reason = (self.resumed_state or {}).get("unsaved_reason")
            if unsaved_reason is not None:
                self.info(f"episodes restart: {unsaved_reason}: not in checkpoints")
        self._checkpointer.guard()
        self._checkpointer.best = self.before.best_return
        if self._reports:
            with contextlib.ExitStack() as stack:
                self._given_folder = resume.prepare_folder(
                    self._algorithm, self.config, self.env.name, stack
                )
                self.folder = self._given_folder.absolute()  # environments may change the directory
                self._checkpointer.best = resume.best_return(self.folder, self.before)
                document = {"algorithm": self._algorithm, "settings": plain}
                text = json.dumps(document, indent=2) + "\n"
                files.write_text(self.folder / base.SETTINGS_FILE, text)
                self._reporter = logger.Reporter(self.folder, self.config, self.before)
                self._lock = stack.pop_all()
        network = getattr(self.config, "network", "mlp")
        if isinstance(network, str) and network != "mlp":  # these are the user's choice
            for line in encoders.flattened_images(self.env.observation_space):
                self.info(line)
        self._began_s = time.monotonic()

    def info(self, line: str) -> None:
        """Prints a line unless quiet."""
        if self._reports and not self.config.quiet:
            cli.print_line(line)

    def log_failure(self, failure: str, printed: bool = False) -> None:
        """Logs a failure in the run's folder, and prints it unless it is `printed` elsewhere."""
        self._failures += 1
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {failure}\n"
        if self._reports:
            with contextlib.suppress(OSError):
                files.append_text(self.folder / FAILURES_FILE, line)
        if not (printed or self.config.quiet):
            cli.print_line(failure, error=True)

    def observe(
        self,
        counters: Counters,
        worker_state: Callable[[], Any] | None = None,
        *,
        final: bool = False,
    ) -> None:
        """Reports progress, saves a checkpoint when due, and detects when the run is solved.

        `worker_state` captures the state of the only worker, if it is at a safe point.
        """
        if not self._reports:
            return
        snapshot, episodes = self._take_snapshot(counters, self._reporter.last)
        full = len(episodes.returns) == logger.EPISODES_AVERAGED
        if full and self._target is not None and snapshot.return_mean >= self._target:
            self._solved_at = self._solved_at or snapshot
        if full and not self._scale_checked:
            self._check_scale(episodes)
        reported, saving = self._reporter.report(snapshot, final), final or self.checkpoint_due
        if reported or saving:
            self._check_finite(counters, final)
        if reported and full:
            self._checkpointer.keep_best(self.folder, snapshot, episodes)
        if saving:
            state = worker_state() if worker_state else None
            self._checkpointer.keep_newest(self.folder, snapshot, episodes, state)

    def _check_scale(self, episodes: logger.Recent) -> None:
        """Warns of rewards whose scale prevents learning, unless a preset was tuned for them."""
        self._scale_checked, config = True, self.config
        tuned = presets.find(self._algorithm, self.env.name) is not None
        if tuned or not isinstance(config, NetworkConfig) or config.scales_rewards:
            return
        std = logger.discounted_std(episodes, config.gamma)
        if std and not _LEAST_STD <= std <= _LARGEST_STD:
            normalize = "--normalize-rewards or " if hasattr(config, "normalize_rewards") else ""
            self.info(
                f"warning: the standard deviation of discounted returns is {std:.3g}, learning "
                f"needs about 1: give {normalize}--reward-scale {1 / std:.1g}"
            )

    def _take_snapshot(
        self, counters: Counters, last: logger.Snapshot | None
    ) -> tuple[logger.Snapshot, logger.Recent]:
        elapsed_s = time.monotonic() - self._began_s
        self._episodes = logger.recent_episodes(counters, self.before)
        self._snapshot = logger.take_snapshot(
            counters, self._episodes, self.before, elapsed_s, last
        )
        return self._snapshot, self._episodes

    @property
    def checkpoint_due(self) -> bool:
        """True if the next `observe` saves a checkpoint."""
        return self._reports and self._checkpointer.age_s >= self.config.checkpoint_every

    def _check_finite(self, counters: Counters, final: bool) -> None:
        """Logs non-finite values; raises RunFailedError after `max_bad_updates` in a row."""
        restored = self._checkpointer.guard()
        if restored:
            self.log_failure("the parameters were not finite: restored from the last report")
        rows, nonfinite = counters.rows, counters.rows["nonfinite"].copy()
        if (nonfinite > self._nonfinite).any():
            worker = int((nonfinite - self._nonfinite).argmax())
            where = f"worker {worker}, environment {rows['nonfinite_source'][worker]}"
            self.log_failure(
                f"{where} ({nonfinite.sum() - 1:,} earlier cases): a reward or observation was "
                "not finite; its update is dropped and its episode reset"
            )
            self._nonfinite = nonfinite
        row = int(rows["dropped_in_a_row"].max())
        # Updates dropped because of non-finite parameters do not count against the data.
        if row >= self.config.max_bad_updates and not (final or restored):
            raise errors.RunFailedError(
                f"{row} updates of worker {int(rows['dropped_in_a_row'].argmax())} in a row were "
                "not finite, as many as max_bad_updates allows; last good checkpoint: "
                f"{self.folder / CHECKPOINT_FILE}"
            )

    def close(
        self, counters: Counters, failed: bool, worker_state: Callable[[], Any] | None = None
    ) -> Agent:
        """Writes the last report and checkpoint, prints the next command, and returns the agent."""
        if not self._reports:
            self._take_snapshot(counters, None)
            return self._agent(None)
        self.observe(counters, worker_state, final=True)
        self._reporter.close()
        self._lock.close()
        with contextlib.suppress(OSError):
            logger.write_staleness(self.folder, counters)
        lines = logger.summary_lines(self._snapshot, self.env.frames_per_step, self._solved_at)
        for line in lines:
            self.info(line)
        if self._failures:
            self.info(f"{self._failures:,} failures: {self.folder / FAILURES_FILE}")
        resume = self._algorithm if failed or self._signal is not None else None
        for line in logger.next_steps(self._given_folder, self.env, self.config, resume):
            self.info(line)
        return self._agent(self.folder)

    @property
    def ending(self) -> bool:
        """True if training should end: interrupted, or solved with `stop_when_solved`."""
        solved = self._solved_at is not None
        return self._signal is not None or (solved and self.config.stop_when_solved)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Sets `ending` on the first Ctrl-C or SIGTERM, and raises the interrupt on leaving.

        A second signal raises KeyboardInterrupt at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        def handle(number: int, _: FrameType | None) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            if not self.config.quiet:
                line = "\nstopping and saving; press Ctrl-C again to quit now"
                cli.print_line(line, error=True)

        ours = [each for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
        before = {number: signal.signal(number, handle) for number in ours}
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
_LEAST_STD, _LARGEST_STD = 0.1, 100.0  # of discounted returns
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
