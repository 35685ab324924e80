"""What a run takes of the machine over time, while its workers are killed all along.

    python benchmarks/soak.py
    python benchmarks/soak.py --minutes 2 --no-write

A3C with 8 workers of 20 environments. Every 10 seconds a random worker gets SIGKILL; two are
spared, because what a worker loses slowly would not show in workers that live for a minute. Every
few seconds memory, open files, processes and segments of shared memory are counted, and from all
but the first minutes a line is fitted to each: what is lost is a slope.

Memory is the proportional share (PSS): a page that several processes share counts once among them,
also where some are of other programs, whose coming and going moves it; anonymous is the part of it
that belongs to no file.
"""

import contextlib
import csv
import dataclasses
import math
import os
import pathlib
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import machine
import tyro
from chaos import workers_of
from parent_kills import SHARED_MEMORY, members, named, orphans
from solve import command

from hogwild_rl.runs.logger import PROGRESS_FILE
from hogwild_rl.runs.run import FAILURES_FILE

_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run for how long, and how to disturb it."""

    minutes: float = 30.0
    """Length of the run."""
    env: str = "CartPole-v1"
    """Environment id."""
    workers: int = 8
    """Worker processes."""
    envs_per_worker: int = 20
    """Environments each worker steps together."""
    spared: int = 2
    """Workers that are never killed."""
    kill_every_s: float = 10.0
    """Seconds between kills."""
    sample_every_s: float = 5.0
    """Seconds between samples."""
    settle_minutes: float = 5.0
    """Left out of the slopes; half of the run if that is less."""
    seed: int = 0
    """Of the run and of the victims."""
    write: bool = True
    """Write benchmarks/results/soak.csv and soak_summary.csv."""


def memory_mb(pid: int | None) -> tuple[float, float]:
    """A process's proportional share of memory, and its anonymous part; NaN where it has ended."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        fields = (line.split() for line in lines)
        kilobytes = {name.rstrip(":"): int(value) for name, value, _ in fields}
        return kilobytes["Pss"] * 1024 / _MB, kilobytes["Pss_Anon"] * 1024 / _MB
    return math.nan, math.nan


def segments(pids: Sequence[int]) -> dict[int, int]:
    """Segments of shared memory that processes have mapped: bytes by inode."""
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
                if f" {SHARED_MEMORY}/" in line:
                    addresses, _, _, _, inode, *_ = line.split()
                    start, stop = (int(address, 16) for address in addresses.split("-"))
                    found[int(inode)] = max(stop - start, found.get(int(inode), 0))
    return found


class Crew:
    """The workers of a run by place: one that replaces another takes its place."""

    def __init__(self, parent: int, count: int) -> None:
        self._parent = parent
        self.places: list[int | None] = [None] * count

    def look(self) -> list[int | None]:
        """Process ids by place; None where there is none at the moment."""
        there = workers_of(self._parent)
        self.places = [pid if pid in there else None for pid in self.places]
        for pid in sorted(set(there) - set(self.places)):
            if None in self.places:
                self.places[self.places.index(None)] = pid
        return self.places


def sample(run: subprocess.Popen[bytes], crew: Crew, config: Config) -> dict[str, float]:
    """What the run takes at this moment."""
    parent, session = run.pid, members(run.pid)
    workers = [memory_mb(pid) for pid in crew.look()]
    rest = [memory_mb(pid) for pid in session.keys() - {parent, *crew.places}]
    shared, taken = segments(list(session)), {}
    for at, kind in enumerate(("mb", "anonymous_mb")):
        taken[f"parent_{kind}"] = memory_mb(parent)[at]
        taken[f"workers_{kind}"] = _mean([each[at] for each in workers])
        taken[f"spared_workers_{kind}"] = _mean([each[at] for each in workers[: config.spared]])
        taken[f"server_and_tracker_{kind}"] = sum(each[at] for each in rest)
    return {
        **taken,
        "open_files": len(os.listdir(f"/proc/{parent}/fd")),  # noqa: PTH208
        "processes": len(session),
        "segments": len(shared),
        "segments_mb": sum(shared.values()) / _MB,
        **{f"worker_{place}_mb": each[0] for place, each in enumerate(workers)},
    }


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return statistics.fmean(there) if there else math.nan


def soak(config: Config, folder: pathlib.Path) -> tuple[list[dict[str, float]], int]:
    """Runs, disturbs and samples.

    Returns:
        The samples, and how many workers were killed.
    """
    flags: dict[str, Any] = {
        "env": config.env,
        "workers": config.workers,
        "envs_per_worker": config.envs_per_worker,
        "total_timesteps": 10**12,
        "seed": config.seed,
        "max_restarts": 1_000_000,
        "run_dir": folder / "run",
    }
    run = subprocess.Popen(
        command("a3c", flags),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        rows, kills = _disturb(run, Crew(run.pid, config.workers), config)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait()
    return rows, kills


def _disturb(
    run: subprocess.Popen[bytes], crew: Crew, config: Config
) -> tuple[list[dict[str, float]], int]:
    draw, kills = random.Random(config.seed), 0
    rows: list[dict[str, float]] = []
    while run.poll() is None and None in crew.look():
        time.sleep(0.05)
    began_s = time.monotonic()
    kill_s, sample_s = began_s + config.kill_every_s, began_s
    while (now_s := time.monotonic()) < began_s + config.minutes * 60:
        if run.poll() is not None:
            raise SystemExit(f"the run ended with exit code {run.returncode}")
        if now_s >= kill_s:
            kill_s += config.kill_every_s
            victims = [pid for pid in crew.look()[config.spared :] if pid is not None]
            if victims:
                os.kill(draw.choice(victims), signal.SIGKILL)
                kills += 1
        if now_s >= sample_s:
            sample_s += config.sample_every_s
            taken = sample(run, crew, config)
            rows.append({"time_s": round(now_s - began_s, 1), "kills": kills, **taken})
        time.sleep(max(0.0, min(kill_s, sample_s) - time.monotonic()))
    return rows, kills


def summary(rows: Sequence[Mapping[str, float]], config: Config) -> list[dict[str, Any]]:
    """A row per quantity: where it began and ended, and its slope by least squares."""
    settled_s = min(config.settle_minutes, config.minutes / 2) * 60
    table = []
    for name in rows[0]:
        points = [(row["time_s"], row[name]) for row in rows]
        settled = [(x, y) for x, y in points if x >= settled_s and not math.isnan(y)]
        if name in ("time_s", "kills") or name.startswith("worker_") or len(settled) < 2:
            continue
        values = [y for _, y in settled]
        line = statistics.linear_regression(*zip(*settled, strict=True))
        table.append(
            {
                "quantity": name,
                "first": round(points[0][1], 3),
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
                "last": round(values[-1], 3),
                "slope_per_hour": round(line.slope * 3600, 3),
            }
        )
    return table


def main() -> None:
    """Soaks, prints and writes samples and slopes."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe(), flush=True)
    before = named()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows, kills = soak(config, folder)
        with (folder / "run" / PROGRESS_FILE).open() as file:
            last = list(csv.DictReader(file))[-1]
        printed = (folder / "run" / FAILURES_FILE).read_text().count("was killed by SIGKILL")
    print(
        f"{config.minutes:g} minutes, {kills} workers killed, {printed} printed; "
        f"{int(last['steps']):,} steps, mean return {float(last['return_mean']):.1f} at the end; "
        f"left in /dev/shm afterwards: {', '.join(orphans(before)) or 'nothing'}"
    )
    table = summary(rows, config)
    for row in table:
        print(
            f"{row['quantity']:31} median {row['median']:9.2f} ({row['min']:.2f} to "
            f"{row['max']:.2f}), slope {row['slope_per_hour']:+.2f} an hour"
        )
    if config.write:
        rounded = [{key: round(value, 3) for key, value in row.items()} for row in rows]
        print(f"written: {machine.write_csv('soak', rounded)}")
        print(f"written: {machine.write_csv('soak_summary', table)}")


if __name__ == "__main__":
    main()
