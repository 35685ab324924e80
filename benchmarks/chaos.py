"""Runs that are disturbed all along, beside the same runs left in peace.

    python benchmarks/chaos.py --env CartPole-v1 --seeds 10
    python benchmarks/chaos.py --env LunarLander-v3 --seeds 10 --troubles none kill

Troubles: every second a random worker gets SIGKILL (kill) or SIGSTOP (stop); or the environment
itself raises, pays NaN or never returns now and then, see troubled.py. Reported are the failures
that were printed, the time until as many workers ran as before, whether the run came to
its end with every step counted, and the greedy return of its agent over 100 episodes.
"""

import contextlib
import csv
import dataclasses
import os
import pathlib
import random
import signal
import statistics
import subprocess
import tempfile
import time
from typing import Any, Literal

import machine
import tyro
from solve import command

import hogwild_rl
from hogwild_rl.config import presets

HERE = pathlib.Path(__file__).parent
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
Trouble = Literal["none", "kill", "stop", "Raise", "Nan", "Sleep"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to disturb, and how."""

    env: Literal["CartPole-v1", "LunarLander-v3"] = "CartPole-v1"
    """Environment id."""
    troubles: tuple[Trouble, ...] = ("none", "kill", "stop", "Raise", "Nan", "Sleep")
    """Each seed meets all of them in turn."""
    workers: int = 4
    """Worker processes."""
    total_timesteps: int = 3_000_000
    """Of each run."""
    seeds: int = 10
    """How many seeds: 0, 1, 2, ..."""
    every_s: float = 1.0
    """Seconds between signals."""
    step_timeout: float = 2.0
    """Seconds without a sign of life after which a worker is replaced."""
    episodes: int = 100
    """Played by each agent."""


def workers_of(parent: int) -> list[int]:
    """The worker processes of a run: those that its fork server started."""
    children: dict[int, list[int]] = {}
    for each in machine.processes():
        children.setdefault(each.parent, []).append(each.pid)
    return [pid for child in children.get(parent, []) for pid in children.get(child, [])]


def disturb(run: subprocess.Popen[bytes], config: Config, number: int) -> list[float]:
    """Signals a random worker again and again until the run ends.

    Returns:
        Seconds from each signal until there was a new worker in the victim's place.
    """
    draw, seconds = random.Random(0), []
    while run.poll() is None and not workers_of(run.pid):
        time.sleep(0.05)
    while run.poll() is None:
        time.sleep(config.every_s)
        before = workers_of(run.pid)
        if len(before) < config.workers:
            continue
        victim, struck_s = draw.choice(before), time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, number)
        while run.poll() is None and not set(workers_of(run.pid)) - set(before):
            time.sleep(0.01)
        if run.poll() is None:
            seconds.append(time.monotonic() - struck_s)
    return seconds


def trial(config: Config, trouble: Trouble, seed: int) -> dict[str, Any]:
    """One run under one kind of trouble."""
    env = config.env if trouble in ("none", *_SIGNALS) else f"Troubled{trouble}/{config.env}"
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "env": env if env == config.env else f"troubled:{env}",
            "workers": config.workers,
            "total_timesteps": config.total_timesteps,
            "seed": seed,
            "step_timeout": config.step_timeout,
            "max_restarts": 100_000,
            "run_dir": f"{folder}/run",
        }
        run = subprocess.Popen(
            command("a3c", {**_preset(config), **flags}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"},
        )
        seconds = disturb(run, config, _SIGNALS[trouble]) if trouble in _SIGNALS else []
        run.wait()
        agent = hogwild_rl.load(f"{folder}/run")
        with pathlib.Path(folder, "run", "progress.csv").open() as file:
            logged = int(list(csv.DictReader(file))[-1]["steps"])
        log = pathlib.Path(folder, "run", "failures.log")
        returns = agent.evaluate(config.episodes, seed=1_000 + seed, env=config.env)
        counters = agent.checkpoint.counters
        return {
            "env": config.env,
            "trouble": trouble,
            "seed": seed,
            "exit_code": run.returncode,
            "steps": counters.steps,
            "counted": counters.steps == logged >= config.total_timesteps,
            "failures": log.read_text().count("\n20") + 1 if log.exists() else 0,
            "replaced_s_median": round(statistics.median(seconds), 2) if seconds else "",
            "replaced_s_max": round(max(seconds), 2) if seconds else "",
            "train_s": round(counters.elapsed_s, 1),
            "score": round(float(returns.mean()), 1),
        }


def _preset(config: Config) -> dict[str, Any]:
    """The preset's settings by hand: an environment with trouble has a name of its own."""
    return presets.settings("a3c", config.env, {"workers": config.workers})


def main() -> None:
    """Runs every seed under every trouble, prints and writes the rows."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    rows = []
    for seed in range(config.seeds):
        for trouble in config.troubles:
            rows.append(trial(config, trouble, seed))
            print(rows[-1], flush=True)
            machine.write_csv(f"chaos_{config.env}", rows)
    for trouble in config.troubles:
        scores = [row["score"] for row in rows if row["trouble"] == trouble]
        failures = sum(row["failures"] for row in rows if row["trouble"] == trouble)
        print(
            f"{trouble}: {failures} failures; score median {statistics.median(scores):.1f}, "
            f"{min(scores):.1f} to {max(scores):.1f}"
        )


if __name__ == "__main__":
    main()
