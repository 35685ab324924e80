"""Cost of supervision: speed of training with and without it, measured in one run.

    python benchmarks/supervision_cost.py
    python benchmarks/supervision_cost.py --workers 2 --envs-per-worker 1 --visits 40 --no-write

Supervision is the detection of faults and the reporting of progress: the workers' heartbeats, their
check for non-finite rewards and observations, and in the parent the check of the workers 20 times a
second, the log, the check of the parameters and the checkpoints. The package has no option to turn
it off: this script removes and restores it in its own processes every few tenths of a second. Steps
are counted in visits, intervals alternately with and without supervision. The cost is the median of
the ratios of adjacent visits. CPU times of the workers per step and of the parent per second are
reported too, as other programs affect them less. If workers get less than a core each, the parent's
CPU time slows them down.

Work at fixed intervals, such as log rows and checkpoints, is done only in the supervised half of
the time, so that its cost is counted twice. The check of the gradient's norm is not removed: it is
one comparison per update.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
import pathlib
import random
import signal
import statistics
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any, NamedTuple

import machine
import torch
import tyro
from chaos import workers_of

from hogwild_rl import a3c
from hogwild_rl.collect.rollout import Collector
from hogwild_rl.hogwild import counters, shared_memory
from hogwild_rl.hogwild.counters import CounterWriter
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.supervisor import Supervisor
from hogwild_rl.training import launch

_SETTLE_S = 0.05  # the parent may still write its log when supervision is removed
_ANSWER_WITHIN_S = 60.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    env: str = "CartPole-v1"
    """Environment id."""
    workers: int = 2
    """Number of worker processes."""
    envs_per_worker: tuple[int, ...] = (1, 16, 64)
    """Numbers of environments per worker."""
    n_steps: int = 20
    """Rollout length."""
    visits: int = 120
    """Pairs of visits, one with and one without supervision."""
    visit_s: float = 0.5
    """Duration of a visit."""
    warm_up_s: float = 3.0
    """Training time before the first visit."""
    max_cost: float = 0.02
    """Largest accepted cost, as a fraction of the speed."""
    write: bool = True
    """Write benchmarks/results/supervision_cost.csv."""


def _without_line(function: Callable[..., Any], word: str) -> CodeType:
    """Code of a function without its only line that contains a word."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    kept = [line for line in lines if word not in line]
    if len(kept) != len(lines) - 1:
        raise SystemExit(f"{function.__qualname__} must have exactly one line with {word}")
    names: dict[str, Any] = {}
    exec("\n".join(kept), dict(vars(counters)), names)
    code: CodeType = names[function.__name__].__code__
    return code


class Switch:
    """Replaces a worker's `stop`, called between rollouts; also removes and restores supervision.

    It exchanges the code of functions, as other modules already refer to the functions themselves.

    Args:
        worker: worker whose `stop` is replaced.
        states: [1 + workers] in shared memory, 1 with supervision and 0 without: the requested
            state, then the state of each worker.
    """

    def __init__(self, worker: Worker, states: torch.Tensor) -> None:
        self._stop, self._states, self._row = worker.should_stop, states.numpy(), 1 + worker.index
        self._laps = _without_line(CounterWriter.lap, "heartbeat_s"), CounterWriter.lap.__code__
        self._drops = (lambda _: None).__code__, Collector._drop_nonfinite.__code__
        self._states[self._row] = 1

    def __call__(self) -> Any:
        """True if the worker should end."""
        requested = self._states[0]
        if requested != self._states[self._row]:
            CounterWriter.lap.__code__ = self._laps[requested]
            Collector._drop_nonfinite.__code__ = self._drops[requested]
            self._states[self._row] = requested
        return self._stop()


def work(states: torch.Tensor, worker: Worker, task: Any) -> None:
    """A3C's worker function with a `Switch`."""
    a3c.actor_learner(dataclasses.replace(worker, should_stop=Switch(worker, states)), task)


@contextlib.contextmanager
def patched(states: torch.Tensor, watching: threading.Event) -> Iterator[list[counters.Counters]]:
    """Makes runs in this context switchable: workers by `states`, the parent by `watching`.

    Yields a list that contains the run's counters once the run has started.
    """
    made: list[counters.Counters] = []
    watch, in_processes = Supervisor.watch, launch.in_processes

    def watch_at_times(self: Supervisor, timeout_s: float) -> Any:
        watching.wait()
        return watch(self, timeout_s)

    def start(run: Any, _: Any, task: Any) -> Any:
        made.append(task.state.counters)
        return in_processes(run, functools.partial(work, states), task)

    Supervisor.watch, launch.in_processes = watch_at_times, start  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Supervisor.watch = watch  # type: ignore[method-assign]
        launch.in_processes = in_processes


class Visit(NamedTuple):
    """Measurement of one visit.

    Attributes:
        rate: steps per second.
        worker_us: CPU time of the workers per step, in microseconds.
        parent_ms: CPU time of the parent per second, in milliseconds.
    """

    rate: float
    worker_us: float
    parent_ms: float


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time of processes, with all their threads, in seconds."""
    threads = (each for pid in pids for each in pathlib.Path(f"/proc/{pid}/task").iterdir())
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


class Visits(threading.Thread):
    """Thread that measures a run with and without supervision, then ends it as Ctrl-C does.

    Attributes:
        pairs: pairs of visits, without and with supervision.
        error: error message if the measurement failed, otherwise empty.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config, self._watching = config, threading.Event()
        self._states = shared_memory.zeros(1 + config.workers, dtype=torch.uint8)
        self._switch(1)
        self.pairs: list[tuple[Visit, Visit]] = []
        self.error = ""

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Measures the run that is started in this context."""
        with patched(self._states, self._watching) as self._counters:
            self.start()
            with contextlib.suppress(SystemExit):  # sent by the thread at its end
                yield
            self.join()

    def run(self) -> None:
        """Waits until all workers train, then measures."""
        try:
            self._until(lambda: self._counters and (self._counters[0].rows["updates"] > 0).all())
            time.sleep(self._config.warm_up_s)
            rng = random.Random(0)
            for _ in range(self._config.visits):
                pair = {state: self._visit(state) for state in rng.sample((0, 1), 2)}
                self.pairs.append((pair[0], pair[1]))
        except (RuntimeError, TimeoutError) as error:
            self.error = str(error)
        finally:
            self._switch(1)
            os.kill(os.getpid(), signal.SIGTERM)

    def _until(self, condition: Callable[[], Any]) -> None:
        deadline_s = time.monotonic() + _ANSWER_WITHIN_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the workers did not respond within {_ANSWER_WITHIN_S:g} s")
            time.sleep(0.002)

    def _visit(self, state: int) -> Visit:
        self._switch(state)
        self._until(lambda: bool((self._states[1:] == state).all()))
        time.sleep(_SETTLE_S)
        rows, parent, workers = self._counters[0].rows, [os.getpid()], workers_of(os.getpid())
        beats, steps = rows["heartbeat_s"].copy(), rows["steps"].sum()
        before_s = time.perf_counter(), cpu_s(parent), cpu_s(workers)
        time.sleep(self._config.visit_s)
        after_s = time.perf_counter(), cpu_s(parent), cpu_s(workers)
        steps = int(rows["steps"].sum() - steps)
        elapsed_s, parent_s, workers_s = (a - b for a, b in zip(after_s, before_s, strict=True))
        if not steps or bool((rows["heartbeat_s"] != beats).any()) != bool(state):
            raise RuntimeError("no steps, or heartbeats do not match the state: measurement failed")
        return Visit(steps / elapsed_s, workers_s / steps * 1e6, parent_s / elapsed_s * 1e3)

    def _switch(self, state: int) -> None:
        self._states[0] = state
        if state:
            self._watching.set()
        else:
            self._watching.clear()


def measure(config: Config, envs_per_worker: int) -> list[tuple[Visit, Visit]]:
    """Trains and returns pairs of visits, without and with supervision."""
    visits = Visits(config)
    with tempfile.TemporaryDirectory() as folder:
        settings = a3c.Config(
            env=config.env,
            workers=config.workers,
            envs_per_worker=envs_per_worker,
            n_steps=config.n_steps,
            total_timesteps=10**12,
            run_dir=f"{folder}/run",
            quiet=True,
        )
        with visits.attached():
            a3c.train(settings)
    if visits.error:
        raise SystemExit(visits.error)
    return visits.pairs


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap confidence interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2_000))
    return medians[50], medians[-51]


def compare(pairs: list[tuple[Visit, Visit]]) -> dict[str, float]:
    """Medians with and without supervision, and its cost as a fraction of the speed."""
    without, supervised = zip(*pairs, strict=True)
    costs = [1 - w.rate / wo.rate for wo, w in pairs]
    low, high = interval(costs)
    return {
        "steps_per_s_without": round(statistics.median(visit.rate for visit in without)),
        "steps_per_s_supervised": round(statistics.median(visit.rate for visit in supervised)),
        "cost": round(statistics.median(costs), 4),
        "cost_low": round(low, 4),
        "cost_high": round(high, 4),
        "cost_of_sums": round(
            1 - sum(w.rate for w in supervised) / sum(w.rate for w in without), 4
        ),
        **{
            f"{name}_{state}": round(statistics.median(getattr(visit, name) for visit in visits), 3)
            for name in ("worker_us", "parent_ms")
            for state, visits in (("without", without), ("supervised", supervised))
        },
    }


def main() -> None:
    """Measures all numbers of environments; prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe(), flush=True)
    rows = []
    for envs_per_worker in config.envs_per_worker:
        pairs = measure(config, envs_per_worker)
        row = compare(pairs)
        cell = {"workers": config.workers, "envs_per_worker": envs_per_worker, "pairs": len(pairs)}
        within = row["cost"] <= config.max_cost
        rows.append({"env": config.env, **cell, **row, "within_max_cost": within})
        print(
            f"{config.workers} workers of {envs_per_worker}: {len(pairs)} pairs of visits\n"
            f"  {row['steps_per_s_supervised']:,} steps/s supervised, "
            f"{row['steps_per_s_without']:,} without: cost {row['cost']:.2%} "
            f"({row['cost_low']:.2%} to {row['cost_high']:.2%}), "
            f"{'within' if within else 'MORE THAN'} {config.max_cost:.0%}; "
            f"over all visits {row['cost_of_sums']:.2%}\n"
            "  CPU time, supervised and without: workers "
            f"{row['worker_us_supervised']:.2f} and {row['worker_us_without']:.2f} us per step, "
            f"parent {row['parent_ms_supervised']:.1f} and {row['parent_ms_without']:.1f} ms "
            "per second",
            flush=True,
        )
    if config.write:
        print(f"written: {machine.write_csv('supervision_cost', rows)}")


if __name__ == "__main__":
    main()
