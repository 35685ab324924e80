"""Fault injection: the parent process of a run is killed repeatedly, and the run resumed.

    python benchmarks/parent_kills.py
    python benchmarks/parent_kills.py --kills 20 --no-write

One A3C run writes checkpoints as often as it can. Its parent process receives SIGKILL at a random
moment of training (random), when a checkpoint's temporary file exists or up to 3 ms later
(checkpoint), or at a random moment of its start (start). After each kill the script checks that
all processes of the run exit, that nothing remains in /dev/shm or the temporary folder, that the
newest checkpoint is intact, and that counters and log are consistent with it and with the previous
state. Then the run is resumed. The last session runs to its end.
"""

import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import machine
import tyro
from solve import command

from hogwild_rl.errors import UserError
from hogwild_rl.runs.checkpoint import BEST_FILE, CHECKPOINT_FILE, Checkpoint, load_newest
from hogwild_rl.runs.logger import PROGRESS_FILE, Progress

SHARED_MEMORY = pathlib.Path("/dev/shm")
Moment = Literal["random", "checkpoint", "start"]
_MONOTONIC = ("steps", "updates", "episodes", "dropped", "elapsed_s", "sessions")
_START_WITHIN_S, _WRITE_WITHIN_S = 120.0, 10.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the fault injection."""

    kills: int = 200
    """Number of kills."""
    moments: tuple[Moment, ...] = ("random", "checkpoint", "checkpoint", "start")
    """Moments of the kills, in turn; the first session is always killed in training."""
    workers: int = 4
    """Number of worker processes."""
    checkpoint_every: float = 0.02
    """Seconds between checkpoints; the run checks every 0.05 s if one is due."""
    exit_within_s: float = 2.0
    """Seconds within which all processes must exit."""
    last_steps: int = 200_000
    """Steps of the last session, which is not killed."""
    seed: int = 0
    """Seed of the random moments."""
    write: bool = True
    """Write benchmarks/results/parent_kills.csv."""


def processes_of(session: int) -> dict[int, int]:
    """Running processes of an operating-system session: parent ids by process id."""
    return {each.pid: each.parent for each in machine.processes() if each.session == session}


def shm_names() -> dict[int, str]:
    """Files in /dev/shm, which are segments and semaphores: names by inode."""
    found = {}
    for path in SHARED_MEMORY.iterdir():
        with contextlib.suppress(OSError):
            found[path.stat().st_ino] = path.name
    return found


def shm_in_use() -> set[int]:
    """Inodes in /dev/shm that any process has open or mapped."""
    found, device = set(), SHARED_MEMORY.stat().st_dev
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = (process / "maps").read_text().splitlines()
            found |= {int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                status = descriptor.stat()
                found |= {status.st_ino} if status.st_dev == device else set()
    return found


def leaked_names(before: dict[int, str]) -> list[str]:
    """Names of new files in /dev/shm that no process uses, and which are therefore leaked."""
    new = shm_names().keys() - before.keys()
    if new:
        new -= shm_in_use()
    return sorted(name for inode, name in shm_names().items() if inode in new)


@dataclasses.dataclass(frozen=True)
class State:
    """Newest checkpoint and log in the folder of a killed run."""

    file: str
    counters: Progress
    rows: list[dict[str, str]]
    truncated: bool

    @classmethod
    def read(cls, run: pathlib.Path) -> "State":
        """Reads the checkpoint and the log.

        Raises:
            UserError: there is no intact checkpoint, or best.pt is not intact.
        """
        if (run / BEST_FILE).exists():
            Checkpoint.load(run / BEST_FILE)
        checkpoint, path = load_newest(run)
        text = (run / PROGRESS_FILE).read_text()
        lines = text.splitlines(keepends=True)
        columns = lines[0].count(",")
        whole = [line for line in lines if line.endswith("\n") and line.count(",") == columns]
        rows = list(csv.DictReader(io.StringIO("".join(whole))))
        return cls(path.name, checkpoint.counters, rows, len(whole) < len(lines))

    def check_growth(self, before: "State") -> Iterator[str]:
        """Yields inconsistencies with the state after the previous session."""
        for name in _MONOTONIC:
            then, now = getattr(before.counters, name), getattr(self.counters, name)
            if now < then:
                yield f"{name} went from {then} to {now}"
        saved = self.counters.sessions - before.counters.sessions
        if saved not in (0, 1):
            yield f"sessions increased by {saved}"
        if not saved and self.counters != before.counters:
            yield "a checkpoint of the previous session has changed"
        start = before.counters.steps
        kept = [row for row in before.rows if int(row["steps"]) <= start]
        if self.rows[: len(kept)] != kept:
            yield "rows of the log were lost or changed"
        if self.truncated:
            yield "the last row of the log is incomplete"
        if self.rows != before.rows:  # otherwise it was killed before it opened the log
            beyond = [int(row["steps"]) for row in self.rows[len(kept) :]]
            if any(steps <= start for steps in beyond):
                yield f"new rows begin at {beyond[0]} steps, resumed from {start}"

    def check_consistency(self) -> Iterator[str]:
        """Yields inconsistencies between rows of the log, and between log and checkpoint."""
        now = self.counters
        points = [(int(row["steps"]), float(row["time_s"])) for row in self.rows]
        for point, following in itertools.pairwise(points):
            if not (point[0] < following[0] and point[1] < following[1]):
                yield f"the row of {point} is followed by {following}"
        for steps, time_s in points:
            if (steps < now.steps and time_s >= now.elapsed_s) or (
                steps > now.steps and time_s <= now.elapsed_s
            ):
                yield f"the row of {steps} steps after {time_s} s contradicts the checkpoint"


class Session:
    """Session of the run; its processes are found by their operating-system session.

    A context manager, which kills the parent process at its exit.
    """

    def __init__(self, run: pathlib.Path, flags: dict[str, Any]) -> None:
        self._log = run / PROGRESS_FILE
        self._before, self._opened = self._inode(), ""
        self.began_s = time.monotonic()
        self._temporary_folder = run.parent / "tmp"
        self._temporary_folder.mkdir(exist_ok=True)
        self._errors = (run.parent / "errors.txt").open("a")
        self.process = subprocess.Popen(
            command("a3c", flags),
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self._temporary_folder)},
        )
        self.temporary = run / f".{CHECKPOINT_FILE}.{self.process.pid}"

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _inode(self) -> int:
        return self._log.stat().st_ino if self._log.exists() else 0

    def until(self, condition: Callable[[], bool], timeout_s: float, every_s: float) -> bool:
        """Waits for a condition; returns False after the timeout, raises if the run has ended."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise SystemExit(f"the run ended with exit code {self.process.returncode}")
            if time.monotonic() > deadline_s:
                return False
            if every_s:
                time.sleep(every_s)
        return True

    def has_trained(self) -> bool:
        """True if this session has reopened the log and written a row."""
        if self._inode() in (0, self._before):
            return False
        text = self._log.read_text()
        self._opened = self._opened or text
        return len(text) > len(self._opened)

    def kill(self, moment: Moment, rng: random.Random, start_s: float) -> float:
        """Waits for the moment and kills the parent.

        Args:
            moment: type of the moment.
            rng: source of the random moments.
            start_s: duration of a start in seconds.

        Returns:
            Duration of this start, or `start_s` if it was not finished.
        """
        if moment == "start":
            time.sleep(rng.uniform(0, start_s))
        else:
            if not self.until(self.has_trained, _START_WITHIN_S, 0.02):
                raise SystemExit(f"the run did not start to train within {_START_WITHIN_S:g} s")
            start_s = time.monotonic() - self.began_s
            time.sleep(rng.uniform(0.2, 2.0))
        if moment == "checkpoint":
            self.until(self.temporary.exists, _WRITE_WITHIN_S, 0)
            kill_s = time.perf_counter() + rng.choice((0.0, rng.uniform(0, 0.003)))
            while time.perf_counter() < kill_s:
                pass
        self.process.kill()
        self.process.wait()
        return start_s

    def wait_for_exit(self, within_s: float) -> tuple[float, list[int]]:
        """Waits until all processes of the session have exited.

        Returns:
            Seconds waited, and ids of the processes that remained after `within_s` and were killed.
        """
        killed_s = time.monotonic()
        left = processes_of(self.process.pid)
        while left and time.monotonic() - killed_s < within_s:
            time.sleep(0.005)
            left = processes_of(self.process.pid)
        seconds = time.monotonic() - killed_s
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while processes_of(self.process.pid):
            time.sleep(0.005)
        self._errors.close()
        return seconds, list(left)

    def remove_temporaries(self) -> list[str]:
        """Empties the folder of temporary files and returns their paths."""
        found = sorted(self._temporary_folder.rglob("*"), reverse=True)
        for path in found:
            path.rmdir() if path.is_dir() else path.unlink()
        return [str(path.relative_to(self._temporary_folder)) for path in found]


def check_killed(
    session: Session, run: pathlib.Path, config: Config, before: dict[int, str]
) -> tuple[dict[str, Any], list[str]]:
    """Checks what a killed session leaves.

    Args:
        session: killed session.
        run: folder of the run.
        config: settings, of which the time limit for the exit is used.
        before: files in /dev/shm before the session.

    Returns:
        Columns of the table, and problems.
    """
    duration_s = time.monotonic() - session.began_s
    writing = any(run.glob(f".*.{session.process.pid}"))
    renaming = session.temporary.exists() and not (run / CHECKPOINT_FILE).exists()
    exited_s, remaining = session.wait_for_exit(config.exit_within_s)
    left = {
        "processes": [str(pid) for pid in remaining],
        "shared memory": leaked_names(before),
        "temporary files": session.remove_temporaries(),
    }
    row = {
        "duration_s": round(duration_s, 2),
        "during_a_write": writing,
        "between_renames": renaming,
        "exited_s": round(exited_s, 3),
        **{f"left_{name.replace(' ', '_')}": len(found) for name, found in left.items()},
    }
    return row, [f"{name} left: {', '.join(found)}" for name, found in left.items() if found]


def finish(run: pathlib.Path, config: Config, before: State) -> list[str]:
    """Resumes the run for the last time, until its end, and returns problems."""
    total = before.counters.steps + config.last_steps
    with Session(run, {"resume": run, "total_timesteps": total}) as session:
        code = session.process.wait()
    exited_s, remaining = session.wait_for_exit(config.exit_within_s)
    after = State.read(run)
    problems = [*after.check_growth(before), *after.check_consistency()]
    if code or remaining or session.remove_temporaries():
        problems.append(f"exit code {code}, {len(remaining)} processes left after {exited_s:.1f} s")
    if not after.counters.steps == int(after.rows[-1]["steps"]) >= total:
        problems.append(f"{after.counters.steps} of {total} steps at the end")
    print(f"last session: exit code {code}, {after.counters}")
    return problems


def kill_all(config: Config, folder: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Kills and resumes the run `config.kills` times, then trains to its end.

    Returns:
        A row per kill, and all problems.
    """
    rng, run = random.Random(config.seed), folder / "run"
    flags: dict[str, Any] = {
        "env": "CartPole-v1",
        "workers": config.workers,
        "checkpoint_every": config.checkpoint_every,
        "total_timesteps": 10**12,
        "run_dir": run,
    }
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    state: State | None = None
    start_s = 0.0
    for kill in range(1, config.kills + 1):
        moment = config.moments[(kill - 1) % len(config.moments)] if state else "random"
        before = shm_names()
        with Session(run, flags) as session:
            start_s = session.kill(moment, rng, start_s)
        row, found = check_killed(session, run, config, before)
        try:
            now = State.read(run)
        except UserError as error:
            raise SystemExit(f"kill {kill}: no intact checkpoint: {error}") from error
        found += [*now.check_consistency(), *(now.check_growth(state) if state else ())]
        counted = {name: getattr(now.counters, name) for name in ("sessions", "steps", "updates")}
        rows.append({"kill": kill, "moment": moment, **row, "checkpoint": now.file, **counted})
        rows[-1] |= {"log_rows": len(now.rows), "problems": "; ".join(found)}
        print(rows[-1], flush=True)
        problems += [f"kill {kill}: {problem}" for problem in found]
        state, flags = now, {"resume": run}
        if config.write:
            machine.write_csv("parent_kills", rows)
    assert state is not None
    return rows, [*problems, *(f"last session: {p}" for p in finish(run, config, state))]


def main() -> None:
    """Kills repeatedly; prints and writes a row per kill, and prints the problems."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        rows, problems = kill_all(config, pathlib.Path(folder))
        errors = pathlib.Path(folder, "errors.txt").read_text()
    moments = collections.Counter(row["moment"] for row in rows)
    exited_s = [row["exited_s"] for row in rows]
    print(
        f"{len(rows)} kills ({', '.join(f'{n} {moment}' for moment, n in moments.items())}): "
        f"{sum(row['during_a_write'] for row in rows)} during a write, "
        f"{sum(row['between_renames'] for row in rows)} between its two renames; "
        f"all processes exited within {statistics.median(exited_s):.2f} s in the median, "
        f"{max(exited_s):.2f} s at most; {len(problems)} problems"
    )
    print("\n".join(problems))
    if "Traceback" in errors:
        print(f"errors printed by the run:\n{errors[-4_000:]}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
