"""A run whose parent is killed again and again: what it leaves, and whether it goes on from there.

    python benchmarks/parent_kills.py
    python benchmarks/parent_kills.py --kills 20 --no-write

One A3C run with a checkpoint as often as it can write one. Its parent gets SIGKILL at a random
moment of its training (random), as soon as a checkpoint's temporary file is seen or a little later
(checkpoint), or at any moment of its start (start). Each time it is looked at whether all its
processes leave, whether anything stays in /dev/shm or the folder of temporary files, whether the
newest checkpoint is whole, and whether counters and log agree with it and with what was there
before. Then the run is resumed. The last resume runs to its end.
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
_GROWING = ("steps", "updates", "episodes", "dropped", "elapsed_s", "lives")
_START_WITHIN_S, _WRITE_WITHIN_S = 120.0, 10.0


@dataclasses.dataclass(frozen=True)
class Config:
    """How often to kill, and when."""

    kills: int = 200
    """How often."""
    moments: tuple[Moment, ...] = ("random", "checkpoint", "checkpoint", "start")
    """Taken in turn; the first life always lasts until it trains."""
    workers: int = 4
    """Worker processes."""
    checkpoint_every: float = 0.02
    """Seconds between checkpoints; the run looks every 0.05 s whether one is due."""
    gone_within_s: float = 2.0
    """Seconds in which all processes must have left."""
    last_steps: int = 200_000
    """Taken by the last life, which is not killed."""
    seed: int = 0
    """Of the moments."""
    write: bool = True
    """Write benchmarks/results/parent_kills.csv."""


def members(session: int) -> dict[int, int]:
    """The processes of a session that have not ended, and their parents."""
    return {each.pid: each.parent for each in machine.processes() if each.session == session}


def named() -> dict[int, str]:
    """What has a name in /dev/shm, segments and semaphores: names by inode."""
    found = {}
    for path in SHARED_MEMORY.iterdir():
        with contextlib.suppress(OSError):
            found[path.stat().st_ino] = path.name
    return found


def held() -> set[int]:
    """Inodes of /dev/shm that a process has open or mapped."""
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


def orphans(before: dict[int, str]) -> list[str]:
    """New names in /dev/shm of what no process holds: nobody will ever remove them."""
    new = named().keys() - before.keys()
    if new:
        new -= held()
    return sorted(name for inode, name in named().items() if inode in new)


@dataclasses.dataclass(frozen=True)
class State:
    """What a dead run's folder holds: its newest checkpoint and its log."""

    file: str
    counters: Progress
    rows: list[dict[str, str]]
    torn: bool

    @classmethod
    def read(cls, run: pathlib.Path) -> "State":
        """Reads both.

        Raises:
            UserError: there is no whole checkpoint, or best.pt is not whole.
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

    def after(self, before: "State") -> Iterator[str]:
        """What does not fit a state one life later."""
        for name in _GROWING:
            then, now = getattr(before.counters, name), getattr(self.counters, name)
            if now < then:
                yield f"{name} went from {then} to {now}"
        saved = self.counters.sessions - before.counters.sessions
        if saved not in (0, 1):
            yield f"{saved} lives in one"
        if not saved and self.counters != before.counters:
            yield "a checkpoint of the life before has changed"
        start = before.counters.steps
        kept = [row for row in before.rows if int(row["steps"]) <= start]
        if self.rows[: len(kept)] != kept:
            yield "rows of the log were lost or changed"
        if self.torn:
            yield "a torn row"
        if self.rows != before.rows:  # otherwise it was killed before it had opened the log
            beyond = [int(row["steps"]) for row in self.rows[len(kept) :]]
            if any(steps <= start for steps in beyond):
                yield f"rows that begin at {beyond[0]}, resumed from {start}"

    def agrees(self) -> Iterator[str]:
        """What does not fit within this state."""
        now = self.counters
        points = [(int(row["steps"]), float(row["time_s"])) for row in self.rows]
        for point, following in itertools.pairwise(points):
            if not (point[0] < following[0] and point[1] < following[1]):
                yield f"the row of {point} is followed by {following}"
        for steps, time_s in points:
            if (steps < now.steps and time_s >= now.elapsed_s) or (
                steps > now.steps and time_s <= now.elapsed_s
            ):
                yield f"a row has {steps} steps after {time_s} s, the checkpoint does not fit"


class Life:
    """One life of the run, in a session of its own, so that all its processes can be found.

    A context manager: whatever happens inside, it does not live on.
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

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _inode(self) -> int:
        return self._log.stat().st_ino if self._log.exists() else 0

    def until(self, condition: Callable[[], bool], timeout_s: float, every_s: float) -> bool:
        """Waits for something to happen. Returns whether it has; raises where the run has ended."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise SystemExit(f"the run ended with exit code {self.process.returncode}")
            if time.monotonic() > deadline_s:
                return False
            if every_s:
                time.sleep(every_s)
        return True

    def trains(self) -> bool:
        """Whether it has written a row of its own, into the log that it has opened anew."""
        if self._inode() in (0, self._before):
            return False
        text = self._log.read_text()
        self._opened = self._opened or text
        return len(text) > len(self._opened)

    def kill(self, moment: Moment, draw: random.Random, start_s: float) -> float:
        """Waits for the moment and kills the parent.

        Args:
            moment: which kind.
            draw: where the moment comes from.
            start_s: how long a start takes.

        Returns:
            How long this one took, or `start_s` again where it was not finished.
        """
        if moment == "start":
            time.sleep(draw.uniform(0, start_s))
        else:
            if not self.until(self.trains, _START_WITHIN_S, 0.02):
                raise SystemExit(f"the run does not train within {_START_WITHIN_S:g} s")
            start_s = time.monotonic() - self.began_s
            time.sleep(draw.uniform(0.2, 2.0))
        if moment == "checkpoint":
            self.until(self.temporary.exists, _WRITE_WITHIN_S, 0)
            strike_s = time.perf_counter() + draw.choice((0.0, draw.uniform(0, 0.003)))
            while time.perf_counter() < strike_s:
                pass
        self.process.kill()
        self.process.wait()
        return start_s

    def leave(self, within_s: float) -> tuple[float, list[int]]:
        """Waits until nobody of the session is left.

        Returns:
            Seconds that took, and who is there after `within_s`; those are killed now.
        """
        dead_s = time.monotonic()
        left = members(self.process.pid)
        while left and time.monotonic() - dead_s < within_s:
            time.sleep(0.005)
            left = members(self.process.pid)
        seconds = time.monotonic() - dead_s
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while members(self.process.pid):
            time.sleep(0.005)
        self._errors.close()
        return seconds, list(left)

    def remains(self) -> list[str]:
        """What is in its folder of temporary files; it is emptied for the next life."""
        found = sorted(self._temporary_folder.rglob("*"), reverse=True)
        for path in found:
            path.rmdir() if path.is_dir() else path.unlink()
        return [str(path.relative_to(self._temporary_folder)) for path in found]


def look(
    life: Life, run: pathlib.Path, config: Config, before: dict[int, str]
) -> tuple[dict[str, Any], list[str]]:
    """What one life leaves that was killed just now.

    Args:
        life: the life.
        run: its folder.
        config: how long its processes may take to leave.
        before: what had a name in /dev/shm before it.

    Returns:
        Columns of the table, and what should not be there.
    """
    lived_s = time.monotonic() - life.began_s
    inside = any(run.glob(f".*.{life.process.pid}"))
    between = life.temporary.exists() and not (run / CHECKPOINT_FILE).exists()
    gone_s, stayed = life.leave(config.gone_within_s)
    left = {
        "processes": [str(pid) for pid in stayed],
        "shared memory": orphans(before),
        "temporary files": life.remains(),
    }
    row = {
        "lived_s": round(lived_s, 2),
        "inside_a_write": inside,
        "between_two_names": between,
        "gone_s": round(gone_s, 3),
        **{f"left_{kind.replace(' ', '_')}": len(found) for kind, found in left.items()},
    }
    return row, [f"{kind} left: {', '.join(found)}" for kind, found in left.items() if found]


def finish(run: pathlib.Path, config: Config, before: State) -> list[str]:
    """Resumes the run for the last time and lets it end. Returns what is wrong with that."""
    total = before.counters.steps + config.last_steps
    with Life(run, {"resume": run, "total_timesteps": total}) as life:
        code = life.process.wait()
    gone_s, stayed = life.leave(config.gone_within_s)
    after = State.read(run)
    problems = [*after.after(before), *after.agrees()]
    if code or stayed or life.remains():
        problems.append(f"exit code {code}, {len(stayed)} processes left after {gone_s:.1f} s")
    if not after.counters.steps == int(after.rows[-1]["steps"]) >= total:
        problems.append(f"{after.counters.steps} of {total} steps at the end")
    print(f"last life: exit code {code}, {after.counters}")
    return problems


def kill_all(config: Config, folder: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Kills and resumes as often as asked for, then lets the run end.

    Returns:
        A row per kill, and all that went wrong.
    """
    draw, run = random.Random(config.seed), folder / "run"
    flags: dict[str, Any] = {
        "env": "CartPole-v1",
        "workers": config.workers,
        "checkpoint_every": config.checkpoint_every,
        "total_timesteps": 10**12,
        "run_dir": run,
    }
    rows: list[dict[str, Any]] = []
    troubles: list[str] = []
    state: State | None = None
    start_s = 0.0
    for kill in range(1, config.kills + 1):
        moment = config.moments[(kill - 1) % len(config.moments)] if state else "random"
        before = named()
        with Life(run, flags) as life:
            start_s = life.kill(moment, draw, start_s)
        row, problems = look(life, run, config, before)
        try:
            now = State.read(run)
        except UserError as error:
            raise SystemExit(f"kill {kill}: no whole checkpoint: {error}") from error
        problems += [*now.agrees(), *(now.after(state) if state else ())]
        counted = {name: getattr(now.counters, name) for name in ("lives", "steps", "updates")}
        rows.append({"kill": kill, "moment": moment, **row, "checkpoint": now.file, **counted})
        rows[-1] |= {"log_rows": len(now.rows), "problems": "; ".join(problems)}
        print(rows[-1], flush=True)
        troubles += [f"kill {kill}: {problem}" for problem in problems]
        state, flags = now, {"resume": run}
        if config.write:
            machine.write_csv("parent_kills", rows)
    assert state is not None
    return rows, [*troubles, *(f"last life: {p}" for p in finish(run, config, state))]


def main() -> None:
    """Kills, prints and writes a row per kill, and says what went wrong."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        rows, troubles = kill_all(config, pathlib.Path(folder))
        errors = pathlib.Path(folder, "errors.txt").read_text()
    kinds = collections.Counter(row["moment"] for row in rows)
    gone_s = [row["gone_s"] for row in rows]
    print(
        f"{len(rows)} kills ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}): "
        f"{sum(row['inside_a_write'] for row in rows)} inside a write, "
        f"{sum(row['between_two_names'] for row in rows)} between its two names; "
        f"all processes gone within {statistics.median(gone_s):.2f} s in the median, "
        f"{max(gone_s):.2f} s at most; {len(troubles)} problems"
    )
    print("\n".join(troubles))
    if "Traceback" in errors:
        print(f"errors printed by the run:\n{errors[-4_000:]}")
    sys.exit(bool(troubles))


if __name__ == "__main__":
    main()
