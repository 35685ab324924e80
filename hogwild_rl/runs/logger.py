"""Progress of a run: terminal, progress.csv, TensorBoard, and the summary at its end."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import math
import os
import pathlib
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
import tqdm
from gymnasium.envs.registration import EnvSpec

from hogwild_rl.config import base
from hogwild_rl.config.cli import print_line
from hogwild_rl.envs import make
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.runs import files

EPISODES_AVERAGED = 100
PROGRESS_FILE, STALENESS_FILE = "progress.csv", "staleness.csv"

_BAR_EVERY_S, _LINE_EVERY_S = 0.1, 5.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a run over all its sessions.

    Attributes:
        steps: valid transitions.
        updates: gradients applied.
        episodes: episodes finished.
        dropped: gradients that were not finite.
        elapsed_s: training time in seconds.
        best_return: highest mean return over 100 episodes, or None before 100 episodes.
        sessions: number of starts and resumes.
        recent_returns, recent_lengths: last 100 episodes at most, oldest first.
    """

    steps: int = 0
    updates: int = 0
    episodes: int = 0
    dropped: int = 0
    elapsed_s: float = 0.0
    best_return: float | None = None
    sessions: int = 0
    recent_returns: tuple[float, ...] = ()
    recent_lengths: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """State of a run at one moment: a row of progress.csv.

    Attributes:
        time_s: training time in seconds, over all sessions of the run.
        steps, updates, episodes, dropped: as in `Progress`.
        return_mean, length_mean: over the last 100 episodes of all sessions; NaN before the first.
        steps_per_s, updates_per_s: rates since the previous row.
        staleness_mean, staleness_max: updates by others between a gradient's pull and its step.
        env_s, act_s, learn_s, share_s: worker seconds in each phase, in this session.
        policy_loss, …, learning_rate: `GAUGES`, mean over workers; grad_norm is before clipping.
    """

    time_s: float
    steps: int
    updates: int
    episodes: int
    dropped: int
    return_mean: float
    length_mean: float
    steps_per_s: float
    updates_per_s: float
    staleness_mean: float
    staleness_max: int
    env_s: float
    act_s: float
    learn_s: float
    share_s: float
    policy_loss: float
    value_loss: float
    entropy: float
    explained_variance: float
    approx_kl: float
    clip_fraction: float
    grad_norm: float
    learning_rate: float


_HEADER = [field.name for field in dataclasses.fields(Snapshot)]
GAUGES = tuple(_HEADER[_HEADER.index("policy_loss") :])
"""Values of the newest update of each worker, sampled every 0.25 s; NaN where undefined."""
_OLDER_COLUMNS = len(_HEADER) - len(GAUGES)  # of version 0.1

# TensorBoard names of Stable-Baselines3.
_TAGS = {
    "return_mean": "rollout/ep_rew_mean",
    "length_mean": "rollout/ep_len_mean",
    "steps_per_s": "time/fps",
    "updates": "train/n_updates",
    "entropy": "train/entropy_loss",
    **{name: f"train/{name}" for name in GAUGES if name != "entropy"},
}


class Recent(NamedTuple):
    """Last 100 episodes at most, over all sessions, oldest first."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]


def recent_episodes(counters: Counters, before: Progress) -> Recent:
    """Last 100 episodes: those of this session, preceded by earlier ones while it has too few."""
    recent = counters.recent_episodes(EPISODES_AVERAGED)
    return Recent(
        (*before.recent_returns, *recent["return"].tolist())[-EPISODES_AVERAGED:],
        (*before.recent_lengths, *recent["length"].tolist())[-EPISODES_AVERAGED:],
    )


def take_snapshot(
    counters: Counters, episodes: Recent, before: Progress, elapsed_s: float, last: Snapshot | None
) -> Snapshot:
    """Sums the workers' counters.

    Args:
        counters, episodes, elapsed_s: of this session; `episodes` from `recent_episodes`.
        before: progress at the start of this session.
        last: snapshot from which rates are measured, or None for the start of this session.
    """
    steps, updates = counters.total("steps"), counters.total("updates")
    time_s = before.elapsed_s + elapsed_s
    since_s = max(time_s - (last.time_s if last else before.elapsed_s), 1e-9)
    return Snapshot(
        time_s=time_s,
        steps=before.steps + steps,
        updates=before.updates + updates,
        episodes=before.episodes + counters.total("episode_count"),
        dropped=before.dropped + counters.total("dropped"),
        return_mean=_mean(episodes.returns),
        length_mean=_mean(episodes.lengths),
        steps_per_s=(before.steps + steps - (last.steps if last else before.steps)) / since_s,
        updates_per_s=(before.updates + updates - (last.updates if last else before.updates))
        / since_s,
        staleness_mean=counters.total("staleness_sum") / max(updates, 1),
        staleness_max=int(counters.rows["staleness_max"].max()),
        **{f"{phase}_s": seconds for phase, seconds in counters.seconds().items()},
        **dict.fromkeys(GAUGES, math.nan) | counters.gauges(),
    )


def discounted_std(episodes: Recent, gamma: float) -> float:
    """Standard deviation of discounted returns, as if all rewards of an episode were equal."""
    returns, lengths = np.array(episodes.returns), np.array(episodes.lengths)
    steps = lengths if gamma == 1 else (1 - gamma**lengths) / (1 - gamma)
    return float(np.std(returns / lengths * steps))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


class Reporter:
    """Prints snapshots as a progress bar, or a line every 5 s, and appends them to files.

    Rows of progress.csv that are later than the start of this session are removed.
    """

    def __init__(self, folder: pathlib.Path, config: base.RunConfig, before: Progress) -> None:
        self._events: Any = None
        if config.tensorboard:
            from torch.utils import tensorboard

            self._events = tensorboard.SummaryWriter(str(folder))
        self._file = _open_log(folder, before.steps)
        self._rows = csv.writer(self._file)
        self._total, self._quiet = config.total_timesteps, config.quiet
        self._before = before.steps
        self.last: Snapshot | None = None
        self._shown_s = self._written_s = before.elapsed_s
        self._bar: Any = None
        if getattr(sys.stderr, "isatty", bool)() and not config.quiet:
            tqdm.tqdm.set_lock(threading.RLock())  # noqa: TID251  its default is a semaphore in /dev/shm
            self._bar = tqdm.tqdm(
                total=self._total,
                initial=before.steps,
                unit="step",
                dynamic_ncols=True,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
            )

    def report(self, snapshot: Snapshot, final: bool = False) -> bool:
        """Prints and logs a snapshot when due; True if it was written to progress.csv."""
        every_s = _BAR_EVERY_S if self._bar is not None else _LINE_EVERY_S
        if final or snapshot.time_s - self._shown_s >= every_s:
            self._shown_s = snapshot.time_s
            self._show(snapshot)
        # Rows are frequent in short runs, which take seconds.
        row_every_s = min(max(snapshot.time_s / 20, 0.1), 1.0)
        due = snapshot.time_s - self._written_s >= row_every_s
        begun = snapshot.steps > self._before  # no rows while workers start
        printed = self.last is not None and self.last.steps == snapshot.steps
        if not ((final and not printed) or (due and begun)):
            return False
        self._written_s = snapshot.time_s
        with contextlib.suppress(OSError):  # disk full: the buffer is written later
            self._rows.writerow(dataclasses.astuple(snapshot))
            self._file.flush()
        if self._events is not None:
            for name, value in dataclasses.asdict(snapshot).items():
                signed = -value if name == "entropy" else value  # its loss is the negative
                self._events.add_scalar(_TAGS.get(name, f"run/{name}"), signed, snapshot.steps)
        self.last = snapshot
        return True

    def _show(self, snapshot: Snapshot) -> None:
        text = (
            f"return {snapshot.return_mean:.1f}, {snapshot.steps_per_s:,.0f} steps/s, "
            f"{snapshot.updates_per_s:,.0f} updates/s, staleness {snapshot.staleness_mean:.1f}"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(min(snapshot.steps, self._total) - self._bar.n)
        elif not self._quiet:
            taken = f"{snapshot.time_s:.1f} s: {snapshot.steps:,} of {self._total:,} steps"
            print_line(f"{taken}, {text}", error=True)

    def close(self) -> None:
        """Closes the progress bar and the files."""
        if self._bar is not None:
            self._bar.close()
        with contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            self._events.close()


def read_log(folder: pathlib.Path) -> list[tuple[int, list[str]]]:
    """Complete rows of a run's progress.csv as (steps, row).

    Raises:
        UserError: the file cannot be read or is invalid.
    """
    path = folder / PROGRESS_FILE
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            widths = (len(_HEADER), _OLDER_COLUMNS)
            rows = [row for row in csv.reader(file) if len(row) in widths][1:]
            rows = [row + ["nan"] * (len(_HEADER) - len(row)) for row in rows]
        return [(int(row[_HEADER.index("steps")]), row) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): repair or remove it") from error


def _open_log(folder: pathlib.Path, steps: int) -> TextIO:
    """Opens progress.csv to append, with its header and without rows after `steps`."""
    path, text = folder / PROGRESS_FILE, io.StringIO()
    csv.writer(text).writerows([_HEADER, *(row for at, row in read_log(folder) if at <= steps)])
    files.write_text(path, text.getvalue())
    return path.open("a", newline="")


def write_staleness(folder: pathlib.Path, counters: Counters) -> None:
    """Writes staleness.csv: number of updates for each staleness, in this session."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["staleness", "updates"])
    rows.writerows(enumerate(counters.staleness_histogram()))
    files.write_text(folder / STALENESS_FILE, text.getvalue())


def require_tensorboard() -> None:
    """Raises UserError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        install = f"{sys.executable} -m pip install tensorboard"
        raise UserError(f"tensorboard is not installed: omit it, or run {install}")


def summary_lines(
    last: Snapshot, frames_per_step: int, solved_at: Snapshot | None
) -> Iterator[str]:
    """Summary lines of a run: when it was solved, and its totals."""
    if solved_at is not None:
        yield (
            f"solved: mean return {solved_at.return_mean:.1f} over the last 100 episodes "
            f"after {solved_at.steps:,} steps, {solved_at.time_s:.1f} s"
        )
    frames = f" ({frames_per_step * last.steps:,} frames)" if frames_per_step > 1 else ""
    yield (
        f"trained {last.steps:,} steps{frames}, {last.updates:,} updates in {last.time_s:.1f} s, "
        f"{last.episodes:,} episodes, mean return {last.return_mean:.1f} at the end"
    )
    if last.dropped:
        yield f"dropped {last.dropped:,} gradients that were not finite"


def next_steps(
    folder: pathlib.Path, env: make.EnvInfo, config: base.RunConfig, resume: str | None
) -> Iterator[str]:
    """Lines with the run's folder and the next command: resume or evaluate.

    It is a command of Python if the shell cannot name the environment or the network.
    """
    setting, network = make.to_setting(config.env), getattr(config, "network", "")
    found = make.found_from_shell(setting, env.source)
    place = shlex.quote(str(folder)) + (" --allow-import" if make.modules_of(setting) else "")
    yield f"run: {folder}"
    if not (found and isinstance(network, str)):
        given = f", env={env.name}" * (not found and not isinstance(env.source, EnvSpec))
        body = f", network={make.name_of(network)}" * (not isinstance(network, str))
        if resume is None:
            call = f"hogwild_rl.load({str(folder)!r}{body}).evaluate(20{given})"
        else:
            call = f"{resume}.train({resume}.Config(resume={str(folder)!r}{given}{body}))"
        yield f"next, in Python: {call}"
    elif resume is None:
        yield f"next: {_python()} -m hogwild_rl.evaluate {place} --episodes 20"
    else:
        yield f"next: {_python()} -m hogwild_rl.{resume} --resume {place}"


def _python() -> str:
    """Shortest command that starts this Python."""
    executable = pathlib.Path(sys.executable)
    if str(executable.parent) in os.environ.get("PATH", "").split(os.pathsep):
        return executable.name
    with contextlib.suppress(ValueError):
        return str(executable.relative_to(pathlib.Path.cwd()))
    return str(executable)
