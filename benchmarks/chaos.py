"""Fault injection: training with repeated faults, compared with training without faults.

    python benchmarks/chaos.py --env CartPole-v1 --seeds 10
    python benchmarks/chaos.py --env LunarLander-v3 --seeds 10 --faults none kill

Faults: every second a random worker receives SIGKILL (kill) or SIGSTOP (stop); or the environment
raises an exception, returns a NaN reward or hangs in random steps, see faulty_envs.py. Reported are
the number of logged failures, the time until a worker is restarted, whether the run finished with
every step counted, and the mean greedy return of its agent over 100 episodes.
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
Fault = Literal["none", "kill", "stop", "Raise", "Nan", "Sleep"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the fault injection."""

    env: Literal["CartPole-v1", "LunarLander-v3"] = "CartPole-v1"
    """Environment id."""
    faults: tuple[Fault, ...] = ("none", "kill", "stop", "Raise", "Nan", "Sleep")
    """Faults; every seed is run once with each."""
    workers: int = 4
    """Number of worker processes."""
    total_timesteps: int = 3_000_000
    """Steps of each run."""
    seeds: int = 10
    """Number of seeds: 0, 1, 2, ..."""
    every_s: float = 1.0
    """Seconds between signals."""
    step_timeout: float = 2.0
    """Seconds without a heartbeat after which a worker is restarted."""
    episodes: int = 100
    """Evaluation episodes of each agent."""


def workers_of(parent: int) -> list[int]:
    """Process ids of a run's workers, which are the children of its fork server."""
    children: dict[int, list[int]] = {}
    for each in machine.processes():
        children.setdefault(each.parent, []).append(each.pid)
    return [pid for child in children.get(parent, []) for pid in children.get(child, [])]


def send_signals(run: subprocess.Popen[bytes], config: Config, number: int) -> list[float]:
    """Sends a signal to a random worker repeatedly, until the run ends.

    Returns:
        Seconds from each signal until a new worker process was running.
    """
    rng, seconds = random.Random(0), []
    while run.poll() is None and not workers_of(run.pid):
        time.sleep(0.05)
    while run.poll() is None:
        time.sleep(config.every_s)
        before = workers_of(run.pid)
        if len(before) < config.workers:
            continue
        target, sent_s = rng.choice(before), time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)
        while run.poll() is None and not set(workers_of(run.pid)) - set(before):
            time.sleep(0.01)
        if run.poll() is None:
            seconds.append(time.monotonic() - sent_s)
    return seconds


def trial(config: Config, fault: Fault, seed: int) -> dict[str, Any]:
    """Trains one seed with one fault, evaluates the agent and returns the row of the table."""
    env = config.env if fault in ("none", *_SIGNALS) else f"Faulty{fault}/{config.env}"
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "env": env if env == config.env else f"faulty_envs:{env}",
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
        seconds = send_signals(run, config, _SIGNALS[fault]) if fault in _SIGNALS else []
        run.wait()
        agent = hogwild_rl.load(f"{folder}/run")
        with pathlib.Path(folder, "run", "progress.csv").open() as file:
            logged = int(list(csv.DictReader(file))[-1]["steps"])
        log = pathlib.Path(folder, "run", "failures.log")
        returns = agent.evaluate(config.episodes, seed=1_000 + seed, env=config.env)
        counters = agent.checkpoint.counters
        return {
            "env": config.env,
            "fault": fault,
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
    """Settings of the preset, which does not apply to the ids of faulty environments."""
    return presets.settings("a3c", config.env, {"workers": config.workers})


def main() -> None:
    """Runs every seed with every fault; prints and writes the rows."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    rows = []
    for seed in range(config.seeds):
        for fault in config.faults:
            rows.append(trial(config, fault, seed))
            print(rows[-1], flush=True)
            machine.write_csv(f"chaos_{config.env}", rows)
    for fault in config.faults:
        scores = [row["score"] for row in rows if row["fault"] == fault]
        failures = sum(row["failures"] for row in rows if row["fault"] == fault)
        print(
            f"{fault}: {failures} failures; score median {statistics.median(scores):.1f}, "
            f"{min(scores):.1f} to {max(scores):.1f}"
        )


if __name__ == "__main__":
    main()
