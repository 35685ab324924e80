"""Environment steps per second of training, where the time goes, and how stale gradients are.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --workers 1 2 4 8 16 --envs-per-worker 1 16 64 --seconds 5
    python benchmarks/throughput.py --algorithm a2c --num-envs 16 64 256 1024
    python benchmarks/throughput.py --env PongNoFrameskip-v4 --workers 2 --envs-per-worker 8 \\
        --n-steps 5 --precision bfloat16 --seconds 15

Every cell trains for some seconds, CartPole-v1 with a 2×64 tanh network unless told otherwise; the
first second, in which the workers start, is not counted. Beside it stands the raw rate of the same
environments in as many processes with random actions and no network. Cells are visited in turn,
`repeats` times, the two sides alternating; medians are reported.
"""

import contextlib
import csv
import dataclasses
import itertools
import os
import pathlib
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import machine
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hogwild_rl import a2c, a3c
from hogwild_rl.envs import backends, vector
from hogwild_rl.hogwild import workers
from hogwild_rl.hogwild.slots import Slots
from hogwild_rl.hogwild.worker import Worker
from hogwild_rl.runs.settings import usable_cores


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    env: str = "CartPole-v1"
    """Environment id."""
    algorithm: Literal["a3c", "a2c"] = "a3c"
    """What trains."""
    workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """A3C: numbers of workers."""
    envs_per_worker: tuple[int, ...] = (1, 16, 64)
    """A3C: numbers of environments each worker steps together."""
    num_envs: tuple[int, ...] = (16, 64, 256, 1024)
    """A2C: numbers of environments."""
    vectorization: backends.Vectorization = "auto"
    """A2C: what steps them."""
    n_steps: int = 20
    """Steps between updates."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's body."""
    seconds: float = 4.0
    """Length of one measurement, about."""
    repeats: int = 3
    """How often each cell is visited."""
    write: bool = True
    """Write benchmarks/results/throughput*.csv."""

    def cells(self) -> list[dict[str, Any]]:
        """The settings that differ from measurement to measurement."""
        if self.algorithm == "a2c":
            return [{"num_envs": n, "vectorization": self.vectorization} for n in self.num_envs]
        pairs = itertools.product(self.workers, self.envs_per_worker)
        return [{"workers": workers, "envs_per_worker": envs} for workers, envs in pairs]


def measure(config: Config, cell: Mapping[str, Any]) -> dict[str, float]:
    """Trains for some seconds and reads the rates off the run's own log."""
    program = {"a3c": a3c, "a2c": a2c}[config.algorithm]
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        settings = program.Config(
            env=config.env,
            n_steps=config.n_steps,
            total_timesteps=10**12,
            run_dir=str(run),
            quiet=True,
            **{"precision": config.precision, **cell},
        )
        timer = threading.Timer(config.seconds + 1, _end_of_measurement)
        timer.start()
        with contextlib.suppress(KeyboardInterrupt):  # what the timer asks for
            program.train(settings)
        with (run / "progress.csv").open() as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    first, last = next(row for row in rows if row["time_s"] >= 1), rows[-1]
    if first is last:
        raise SystemExit(f"{config.seconds:g} seconds are too few to see a rate here: give more")
    spent_s = {p: last[f"{p}_s"] - first[f"{p}_s"] for p in ("env", "act", "learn", "share")}
    elapsed_s = last["time_s"] - first["time_s"]
    raw = raw_rate_of_workers(config, cell) if "workers" in cell else raw_rate(config, cell)
    return {
        "steps_per_s": (last["steps"] - first["steps"]) / elapsed_s,
        "raw_steps_per_s": raw,
        "updates_per_s": (last["updates"] - first["updates"]) / elapsed_s,
        "staleness_mean": last["staleness_mean"],
        "staleness_max": last["staleness_max"],
        **{f"{p}_share": s / sum(spent_s.values()) for p, s in spent_s.items()},
    }


def _end_of_measurement() -> None:
    """Ends the run as Ctrl-C would."""
    os.kill(os.getpid(), signal.SIGINT)


def raw_rate(config: Config, cell: Mapping[str, Any]) -> float:
    """Valid steps per second of A2C's environments by themselves, with random actions."""
    spec, cores = vector.spec(config.env), usable_cores()
    backend = backends.choose(spec, cell["vectorization"], cell["num_envs"], cores)
    envs = backends.make(spec, backend, cell["num_envs"], cores)
    play = random_play(envs)
    before, start_s = next(play), time.perf_counter()
    for steps in play:  # noqa: B007  looked at below
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s > config.seconds / 2:
            break
    envs.close()
    return (steps - before) / elapsed_s


def raw_rate_of_workers(config: Config, cell: Mapping[str, Any]) -> float:
    """Valid steps per second of A3C's environments by themselves, in as many processes."""
    slots = Slots(cell["workers"])
    arguments = (vector.spec(config.env), cell["envs_per_worker"], slots)
    with workers.Workers(play_at_random, arguments, cell["workers"], seed=0) as crew:
        while (slots.rows["steps"] == 0).any():
            crew.wait(0.01)
        before, start_s = slots.total("steps"), time.perf_counter()
        crew.wait(config.seconds / 2)
        rate = (slots.total("steps") - before) / (time.perf_counter() - start_s)
        crew.stop(10.0)
    return rate


def play_at_random(worker: Worker, spec: EnvSpec, num_envs: int, slots: Slots) -> None:
    """What a worker does that only steps its environments."""
    slot, counted = slots.writer(worker.index), 0
    backend = backends.choose(spec, "auto", num_envs, cores=1)
    for steps in random_play(backends.make(spec, backend, num_envs, cores=1)):
        slot.add_rollout(steps - counted, [])
        counted = steps
        if worker.stopping:
            break


def random_play(envs: VectorEnv[Any, Any, Any]) -> Iterator[int]:
    """Steps for ever with random actions; gives how many valid ones it has taken."""
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(64)]
    steps, resetting = 0, 0
    for action in itertools.cycle(actions):
        _, _, terminated, truncated, _ = envs.step(action)
        steps += envs.num_envs - resetting
        resetting = int((terminated | truncated).sum())
        yield steps


def main() -> None:
    """Visits all cells in turn, prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    cells, start_s = config.cells(), time.monotonic()
    measured: list[list[dict[str, float]]] = [[] for _ in cells]
    for _ in range(config.repeats):
        for cell, runs in zip(cells, measured, strict=True):
            runs.append(measure(config, cell))
    rows: list[dict[str, Any]] = []
    for cell, runs in zip(cells, measured, strict=True):
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        rates = [run["steps_per_s"] for run in runs]
        rows.append(
            {
                "env": config.env,
                **cell,
                "n_steps": config.n_steps,
                "steps_per_s_min": round(min(rates)),
                "steps_per_s_max": round(max(rates)),
                **{name: round(value, 3) for name, value in medians.items()},
            }
        )
        print(
            f"{', '.join(f'{name} {value}' for name, value in cell.items())}: "
            f"{medians['steps_per_s']:,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f}), "
            f"raw {medians['raw_steps_per_s']:,.0f}, "
            f"{medians['updates_per_s']:,.0f} updates/s; "
            f"env {medians['env_share']:.0%}, act {medians['act_share']:.0%}, "
            f"learn {medians['learn_share']:.0%}, pull and step {medians['share_share']:.0%}; "
            f"staleness {medians['staleness_mean']:.1f}, at most {medians['staleness_max']:.0f}"
        )
    print(f"{config.repeats} visits of {config.seconds:g} s, {time.monotonic() - start_s:.0f} s")
    if config.write:
        name = "throughput" if config.algorithm == "a3c" else f"throughput_{config.algorithm}"
        if config.env != Config.env:
            name += f"_{config.env.replace('/', '-')}_{config.precision}"
        print(f"written: {machine.write_csv(name, rows)}")


if __name__ == "__main__":
    main()
