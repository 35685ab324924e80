"""Throughput of training: steps per second, time per phase, and staleness of the gradients.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --workers 1 2 4 8 16 --envs-per-worker 1 16 64 --seconds 5
    python benchmarks/throughput.py --algorithm a2c --num-envs 16 64 256 1024
    python benchmarks/throughput.py --env PongNoFrameskip-v4 --workers 2 --envs-per-worker 8 \\
        --n-steps 5 --precision bfloat16 --seconds 15

Every configuration trains for some seconds, by default on CartPole-v1 with a 2×64 tanh network. The
time until one second after the first row of the run's log is not counted. The raw rate is that of
the same environments in as many processes with random actions and no network, in a plain loop
unless the environments are native vector environments. All configurations are measured in turn,
`repeats` times, each training followed by its raw rate. Medians are written after every
measurement. A2C's environments are created once per configuration.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import machine
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hogwild_rl import a2c, a3c
from hogwild_rl.envs import make, vectorize
from hogwild_rl.hogwild import processes
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.training import collector


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    env: str = "CartPole-v1"
    """Environment id."""
    algorithm: Literal["a3c", "a2c"] = "a3c"
    """Algorithm."""
    workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """A3C: numbers of workers."""
    envs_per_worker: tuple[int, ...] = (1, 16, 64)
    """A3C: numbers of environments per worker."""
    num_envs: tuple[int, ...] = (16, 64, 256, 1024)
    """A2C: numbers of environments."""
    vectorization: vectorize.Vectorization = "auto"
    """A2C: backend of the environments."""
    n_steps: int = 20
    """Rollout length."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the network's body."""
    seconds: float = 4.0
    """Approximate duration of one measurement."""
    repeats: int = 3
    """Measurements of each configuration."""
    write: bool = True
    """Write benchmarks/results/throughput*.csv."""

    def cells(self) -> list[dict[str, Any]]:
        """Settings that differ between the measured configurations."""
        if self.algorithm == "a2c":
            return [{"num_envs": n, "vectorization": self.vectorization} for n in self.num_envs]
        pairs = itertools.product(self.workers, self.envs_per_worker)
        return [{"workers": workers, "envs_per_worker": envs} for workers, envs in pairs]


def measure(config: Config, cell: Mapping[str, Any]) -> dict[str, float]:
    """Rates of training with one configuration, and of its environments alone."""
    program = {"a3c": a3c, "a2c": a2c}[config.algorithm]
    settings = {"env": config.env, "n_steps": config.n_steps, "precision": config.precision}
    rates = training_rates(program, config.seconds, **settings, **cell)
    if "workers" in cell:
        raw = raw_rate_of_workers(config, cell)
    else:
        raw = raw_rate(last_used_environments(), config.seconds / 2)
    return {"steps_per_s": rates.pop("steps_per_s"), "raw_steps_per_s": raw, **rates}


def training_rates(program: Any, seconds: float, **settings: Any) -> dict[str, float]:
    """Trains for some seconds after the first row of the log, and computes rates from the log."""
    with tempfile.TemporaryDirectory() as folder, reuse_environments():
        log = pathlib.Path(folder, "run", "progress.csv")
        ended = threading.Event()
        args = (log, seconds + 1, ended)
        threading.Thread(target=_interrupt_after, args=args, daemon=True).start()
        try:
            with contextlib.suppress(SystemExit):  # sent by the thread
                program.train(
                    program.Config(
                        total_timesteps=10**12, run_dir=str(log.parent), quiet=True, **settings
                    )
                )
        finally:
            ended.set()
        with log.open() as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    first, last = next(row for row in rows if row["time_s"] >= rows[0]["time_s"] + 1), rows[-1]
    if first is last:
        raise SystemExit(f"{seconds:g} seconds are too short to measure a rate: give more")
    spent_s = {p: last[f"{p}_s"] - first[f"{p}_s"] for p in ("env", "act", "learn", "share")}
    elapsed_s = last["time_s"] - first["time_s"]
    return {
        "steps_per_s": (last["steps"] - first["steps"]) / elapsed_s,
        "updates_per_s": (last["updates"] - first["updates"]) / elapsed_s,
        "staleness_mean": last["staleness_mean"],
        "staleness_max": last["staleness_max"],
        **{f"{p}_share": s / sum(spent_s.values()) for p, s in spent_s.items()},
    }


def _interrupt_after(log: pathlib.Path, seconds: float, ended: threading.Event) -> None:
    """Ends the run by SIGTERM some seconds after its log has a row.

    Background jobs of a shell ignore SIGINT.
    """
    while not ended.wait(0.05):
        if log.exists() and log.read_text().count("\n") > 1:
            break
    if not ended.wait(seconds):
        os.kill(os.getpid(), signal.SIGTERM)


# A2C's groups of environments by their settings, in order of last use.
_made: dict[tuple[Any, ...], list[VectorEnv[Any, Any, Any]]] = {}
_open = contextlib.ExitStack()


@contextlib.contextmanager
def reuse_environments() -> Iterator[None]:
    """A2C runs in this context reuse environments: creating a game takes 75 ms."""
    make = collector.open_environments

    def open_environments(task: Any) -> Any:
        key = (task.env.name, task.backend.name, task.group_size, task.groups)
        groups = _made.pop(key, None) or make(dataclasses.replace(task, resources=_open))
        _made[key] = groups
        return groups

    collector.open_environments = open_environments
    try:
        yield
    finally:
        collector.open_environments = make


def last_used_environments() -> list[VectorEnv[Any, Any, Any]]:
    """Groups of environments of the last run."""
    return next(reversed(_made.values()))


def close_environments() -> None:
    """Closes the reused environments."""
    _open.close()
    _made.clear()


def raw_rate(groups: Sequence[VectorEnv[Any, Any, Any]], seconds: float) -> float:
    """Valid steps per second of environments alone, with random actions."""
    counts = random_steps(groups)
    before, start_s = next(counts), time.perf_counter()
    for steps in counts:
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s > seconds:
            return (steps - before) / elapsed_s
    raise AssertionError("random_steps does not end")


def raw_rate_of_workers(config: Config, cell: Mapping[str, Any]) -> float:
    """Valid steps per second of A3C's environments alone, in as many processes."""
    counters = Counters(cell["workers"])
    arguments = (make.resolve(config.env), cell["envs_per_worker"], counters)
    with processes.Workers(step_randomly, arguments, cell["workers"], seed=0) as workers:
        while (counters.rows["steps"] == 0).any():
            workers.wait(0.01)
        before, start_s = counters.total("steps"), time.perf_counter()
        workers.wait(config.seconds / 2)
        rate = (counters.total("steps") - before) / (time.perf_counter() - start_s)
        workers.stop(10.0)
    return rate


def step_randomly(worker: Worker, spec: EnvSpec, num_envs: int, counters: Counters) -> None:
    """Worker function that only steps environments with random actions."""
    writer, counted = counters.writer(worker.index), 0
    backend = vectorize.choose(spec, "auto", num_envs, cores=1)
    envs = vectorize.make_envs(spec, backend, num_envs, cores=1)
    single = isinstance(envs, vectorize.SequentialVectorEnv)
    for steps in plain_steps(envs.envs) if single else random_steps([envs]):
        writer.add_rollout(steps - counted, [])
        counted = steps
        if worker.should_stop():
            break


def plain_steps(envs: Sequence[make.Env]) -> Iterator[int]:
    """Steps single environments in a plain loop with random actions; yields the number of steps."""
    for env in envs:
        env.reset(seed=0)
        env.action_space.seed(0)
    for number in itertools.count(1):
        for _, env in itertools.product(range(64), envs):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        yield number * 64 * len(envs)


def random_steps(groups: Sequence[VectorEnv[Any, Any, Any]]) -> Iterator[int]:
    """Steps environments without end, with random actions; yields the number of valid steps.

    Asynchronous groups step while the outcomes of the others are received.
    """
    callables, actions, resetting, steps = [], [], [0] * len(groups), 0
    for envs in groups:
        envs.reset(seed=0)
        envs.action_space.seed(0)
        callables.append(async_step(envs))
        actions.append([envs.action_space.sample() for _ in range(64)])
    for (send, _), each in zip(callables, actions, strict=True):
        send(each[0])
    for number in itertools.count(1):
        for g, (send, receive) in enumerate(callables):
            _, _, terminated, truncated, _ = receive()
            send(actions[g][number % 64])
            steps += groups[g].num_envs - resetting[g]
            resetting[g] = int((terminated | truncated).sum())
        try:
            yield steps
        except GeneratorExit:
            for _, receive in callables:
                receive()  # the environments are used again
            raise


def async_step(envs: Any) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    """Returns `send(actions)`, which starts a step, and `receive()`, which returns its outcome."""
    if isinstance(envs, vectorize.AsyncVectorEnv):
        return envs.step_async, envs.step_wait
    sent: list[Any] = []
    return sent.append, lambda: envs.step(sent.pop())


def table(config: Config, measured: Sequence[tuple[Any, list[Any]]]) -> list[dict[str, Any]]:
    """Medians, and minimum and maximum rates, of the measured configurations."""
    rows = []
    for cell, runs in measured:
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
    return rows


def main() -> None:
    """Measures all configurations in turn; prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    name = "throughput" if config.algorithm == "a3c" else f"throughput_{config.algorithm}"
    if config.env != Config.env:
        name += f"_{config.env.replace('/', '-')}_{config.precision}"
    cells, start_s = config.cells(), time.monotonic()
    measured: list[list[dict[str, float]]] = [[] for _ in cells]
    for _ in range(config.repeats):
        for cell, runs in zip(cells, measured, strict=True):
            runs.append(measure(config, cell))
            done = [pair for pair in zip(cells, measured, strict=True) if pair[1]]
            if config.write:
                machine.write_csv(name, table(config, done))
    close_environments()
    for cell, row in zip(cells, table(config, done), strict=True):
        print(
            f"{', '.join(f'{name} {value}' for name, value in cell.items())}: "
            f"{row['steps_per_s']:,.0f} steps/s ({row['steps_per_s_min']:,} to "
            f"{row['steps_per_s_max']:,}), raw {row['raw_steps_per_s']:,.0f}, "
            f"{row['updates_per_s']:,.0f} updates/s; "
            f"env {row['env_share']:.0%}, act {row['act_share']:.0%}, "
            f"learn {row['learn_share']:.0%}, pull and step {row['share_share']:.0%}; "
            f"staleness {row['staleness_mean']:.1f}, at most {row['staleness_max']:.0f}"
        )
    print(
        f"{config.repeats} measurements of {config.seconds:g} s, {time.monotonic() - start_s:.0f} s"
    )
    if config.write:
        print(f"written: {machine.RESULTS / name}.csv")


if __name__ == "__main__":
    main()
