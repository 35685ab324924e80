"""Soak test: memory, open files and processes of a long run whose workers are killed repeatedly.

    python benchmarks/soak.py
    python benchmarks/soak.py --minutes 2 --no-write

A3C trains with 8 workers of 20 environments. Every 10 seconds a random worker receives SIGKILL. Two
workers are never killed, because a slow leak is not visible in workers that run for a minute. Every
few seconds memory, open files, processes and shared memory segments are measured. A line is fitted
to each quantity, without the first minutes; a leak appears as a positive slope.

Memory is the proportional set size (PSS): a page shared by several processes is divided among them.
The start or exit of other programs that share pages changes it. The anonymous part has no file.
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
from parent_kills import SHARED_MEMORY, leaked_names, processes_of, shm_names
from solve import command

from hogwild_rl.runs.logger import PROGRESS_FILE
from hogwild_rl.runs.run import FAILURES_FILE

_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run and of the kills."""

    minutes: float = 30.0
    """Duration of the run."""
    env: str = "CartPole-v1"
    """Environment id."""
    workers: int = 8
    """Number of worker processes."""
    envs_per_worker: int = 20
    """Environments per worker."""
    spared: int = 2
    """Number of workers that are never killed."""
    kill_every_s: float = 10.0
    """Seconds between kills."""
    sample_every_s: float = 5.0
    """Seconds between samples."""
    settle_minutes: float = 5.0
    """First part of the run, at most half of it, that is left out of the slopes."""
    seed: int = 0
    """Seed of the run and of the choice of workers to kill."""
    write: bool = True
    """Write benchmarks/results/soak.csv and soak_summary.csv."""


def memory_mb(pid: int | None) -> tuple[float, float]:
    """Proportional set size of a process and its anonymous part; NaN after its exit."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        fields = (line.split() for line in lines)
        kilobytes = {name.rstrip(":"): int(value) for name, value, _ in fields}
        return kilobytes["Pss"] * 1024 / _MB, kilobytes["Pss_Anon"] * 1024 / _MB
    return math.nan, math.nan


def segments(pids: Sequence[int]) -> dict[int, int]:
    """Shared memory segments mapped by the processes: bytes by inode."""
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
                if f" {SHARED_MEMORY}/" in line:
                    addresses, _, _, _, inode, *_ = line.split()
                    start, stop = (int(address, 16) for address in addresses.split("-"))
                    found[int(inode)] = max(stop - start, found.get(int(inode), 0))
    return found


class WorkerSlots:
    """Worker processes of a run by slot; a restarted worker takes the free slot."""

    def __init__(self, parent: int, count: int) -> None:
        self._parent = parent
        self.pids: list[int | None] = [None] * count

    def update(self) -> list[int | None]:
        """Process ids by slot; None if the slot is free at the moment."""
        running = workers_of(self._parent)
        self.pids = [pid if pid in running else None for pid in self.pids]
        for pid in sorted(set(running) - set(self.pids)):
            if None in self.pids:
                self.pids[self.pids.index(None)] = pid
        return self.pids


def sample(run: subprocess.Popen[bytes], slots: WorkerSlots, config: Config) -> dict[str, float]:
    """Measures the resources that the run uses at this moment."""
    parent, session = run.pid, processes_of(run.pid)
    workers = [memory_mb(pid) for pid in slots.update()]
    rest = [memory_mb(pid) for pid in session.keys() - {parent, *slots.pids}]
    shared, memory = segments(list(session)), {}
    for part, unit in enumerate(("mb", "anonymous_mb")):
        memory[f"parent_{unit}"] = memory_mb(parent)[part]
        memory[f"workers_{unit}"] = _mean([each[part] for each in workers])
        memory[f"spared_workers_{unit}"] = _mean([each[part] for each in workers[: config.spared]])
        memory[f"server_and_tracker_{unit}"] = sum(each[part] for each in rest)
    return {
        **memory,
        "open_files": len(os.listdir(f"/proc/{parent}/fd")),  # noqa: PTH208
        "processes": len(session),
        "segments": len(shared),
        "segments_mb": sum(shared.values()) / _MB,
        **{f"worker_{slot}_mb": each[0] for slot, each in enumerate(workers)},
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def soak(config: Config, folder: pathlib.Path) -> tuple[list[dict[str, float]], int]:
    """Runs the training, kills workers and takes samples.

    Returns:
        Samples, and the number of workers killed.
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
        rows, kills = _kill_and_sample(run, WorkerSlots(run.pid, config.workers), config)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait()
    return rows, kills


def _kill_and_sample(
    run: subprocess.Popen[bytes], slots: WorkerSlots, config: Config
) -> tuple[list[dict[str, float]], int]:
    rng, kills = random.Random(config.seed), 0
    rows: list[dict[str, float]] = []
    while run.poll() is None and None in slots.update():
        time.sleep(0.05)
    began_s = time.monotonic()
    kill_s, sample_s = began_s + config.kill_every_s, began_s
    while (now_s := time.monotonic()) < began_s + config.minutes * 60:
        if run.poll() is not None:
            raise SystemExit(f"the run ended with exit code {run.returncode}")
        if now_s >= kill_s:
            kill_s += config.kill_every_s
            targets = [pid for pid in slots.update()[config.spared :] if pid is not None]
            if targets:
                os.kill(rng.choice(targets), signal.SIGKILL)
                kills += 1
        if now_s >= sample_s:
            sample_s += config.sample_every_s
            measured = sample(run, slots, config)
            rows.append({"time_s": round(now_s - began_s, 1), "kills": kills, **measured})
        time.sleep(max(0.0, min(kill_s, sample_s) - time.monotonic()))
    return rows, kills


def summary(rows: Sequence[Mapping[str, float]], config: Config) -> list[dict[str, Any]]:
    """Returns a row per quantity: first and last value, spread, and slope by least squares."""
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
    """Runs the soak test; prints and writes samples and slopes."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe(), flush=True)
    before = shm_names()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows, kills = soak(config, folder)
        with (folder / "run" / PROGRESS_FILE).open() as file:
            last = list(csv.DictReader(file))[-1]
        logged = (folder / "run" / FAILURES_FILE).read_text().count("was killed by SIGKILL")
    print(
        f"{config.minutes:g} minutes, {kills} workers killed, {logged} logged; "
        f"{int(last['steps']):,} steps, mean return {float(last['return_mean']):.1f} at the end; "
        f"left in /dev/shm afterwards: {', '.join(leaked_names(before)) or 'nothing'}"
    )
    table = summary(rows, config)
    for row in table:
        print(
            f"{row['quantity']:31} median {row['median']:9.2f} ({row['min']:.2f} to "
            f"{row['max']:.2f}), slope {row['slope_per_hour']:+.2f} per hour"
        )
    if config.write:
        rounded = [{key: round(value, 3) for key, value in row.items()} for row in rows]
        print(f"written: {machine.write_csv('soak', rounded)}")
        print(f"written: {machine.write_csv('soak_summary', table)}")


if __name__ == "__main__":
    main()
