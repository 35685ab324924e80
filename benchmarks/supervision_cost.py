"""Steps per second of training under supervision, beside the same without, in one run.

    python benchmarks/supervision_cost.py
    python benchmarks/supervision_cost.py --workers 2 --envs-per-worker 1 --visits 40 --no-write

Supervision is all that a run does in case something goes wrong, or to tell how it goes: the sign of
life that workers give with every lap, the search for rewards and observations that are not finite,
and in the parent the look at workers 20 times a second, with its log, the guard over the parameters
and the checkpoints. The package has no switch for it: this program takes it out of its own
processes, and puts it back, every few tenths of a second. Steps are counted during visits to either
side in turn; the ratio of two visits side by side is taken, and the median of all ratios. Beside it
stands the processor time that workers take for a step and the parent in a second, which other
programs disturb less; where workers get less than a core each, the parent weighs more.

What comes by the clock, a row of the log or a checkpoint, falls into half of the time here: its
cost is counted twice. Left on both sides is whether a gradient's norm is finite, a comparison with
every update.
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

_SETTLE_S = 0.05  # for the parent, which may be at its log when it is switched off
_ANSWER_WITHIN_S = 60.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    env: str = "CartPole-v1"
    """Environment id."""
    workers: int = 2
    """Worker processes."""
    envs_per_worker: tuple[int, ...] = (1, 16, 64)
    """Numbers of environments each worker steps together."""
    n_steps: int = 20
    """Steps between updates."""
    visits: int = 120
    """Pairs of visits: to a side and the other."""
    visit_s: float = 0.5
    """Length of a visit."""
    warm_up_s: float = 3.0
    """Before the first."""
    demand: float = 0.02
    """Share of the speed that supervision may cost."""
    write: bool = True
    """Write benchmarks/results/supervision_cost.csv."""


def _without_line(function: Callable[..., Any], word: str) -> CodeType:
    """The code of a function without its one line that has this word in it."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    kept = [line for line in lines if word not in line]
    if len(kept) != len(lines) - 1:
        raise SystemExit(f"{function.__qualname__} has not one line with {word} any more")
    names: dict[str, Any] = {}
    exec("\n".join(kept), dict(vars(counters)), names)
    code: CodeType = names[function.__name__].__code__
    return code


class Switch:
    """A worker's `stop`, asked between rollouts: it also takes supervision out and puts it back.

    Functions keep their names and change their code, because others hold them already.

    Args:
        worker: whose `stop` it is.
        sides: [1 + workers] in shared memory, 1 with supervision and 0 without: what is wanted, and
            then where each worker is.
    """

    def __init__(self, worker: Worker, sides: torch.Tensor) -> None:
        self._stop, self._sides, self._me = worker.stop, sides.numpy(), 1 + worker.index
        self._laps = _without_line(CounterWriter.lap, "heartbeat_s"), CounterWriter.lap.__code__
        self._mends = (lambda _: None).__code__, Collector._drop_nonfinite.__code__
        self._sides[self._me] = 1

    def __call__(self) -> Any:
        """Whether the work should end."""
        wanted = self._sides[0]
        if wanted != self._sides[self._me]:
            CounterWriter.lap.__code__ = self._laps[wanted]
            Collector._drop_nonfinite.__code__ = self._mends[wanted]
            self._sides[self._me] = wanted
        return self._stop()


def work(sides: torch.Tensor, worker: Worker, task: Any) -> None:
    """A3C's worker, without supervision at times."""
    a3c.actor_learner(dataclasses.replace(worker, stop=Switch(worker, sides)), task)


@contextlib.contextmanager
def patched(sides: torch.Tensor, watching: threading.Event) -> Iterator[list[counters.Counters]]:
    """Runs started meanwhile can be switched: workers by `sides`, the parent by `watching`.

    Gives the counters of such a run, once it has some.
    """
    made: list[counters.Counters] = []
    watch, in_processes = Supervisor.watch, launch.in_processes

    def watch_at_times(self: Supervisor, timeout_s: float) -> Any:
        watching.wait()
        return watch(self, timeout_s)

    def start(run: Any, _: Any, task: Any) -> Any:
        made.append(task.state.counters)
        return in_processes(run, functools.partial(work, sides), task)

    Supervisor.watch, launch.in_processes = watch_at_times, start  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Supervisor.watch = watch  # type: ignore[method-assign]
        launch.in_processes = in_processes


class Visit(NamedTuple):
    """What was seen of one side.

    Attributes:
        rate: steps per second.
        worker_us: microseconds of processor that workers took for a step.
        parent_ms: milliseconds of processor that the parent took in a second.
    """

    rate: float
    worker_us: float
    parent_ms: float


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds that processes have spent on processors, all threads of them."""
    threads = (each for pid in pids for each in pathlib.Path(f"/proc/{pid}/task").iterdir())
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


class Visits(threading.Thread):
    """Visits both sides in turn, beside the run, and ends it as Ctrl-C would.

    Attributes:
        pairs: of visits, without and with supervision.
        failed: why there are not as many as wanted.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config, self._watching = config, threading.Event()
        self._sides = shared_memory.zeros(1 + config.workers, dtype=torch.uint8)
        self._switch(1)
        self.pairs: list[tuple[Visit, Visit]] = []
        self.failed = ""

    @contextlib.contextmanager
    def beside_a_run(self) -> Iterator[None]:
        """Visits the run that is started meanwhile."""
        with patched(self._sides, self._watching) as self._made:
            self.start()
            with contextlib.suppress(KeyboardInterrupt):  # what ends the visits
                yield
            self.join()

    def run(self) -> None:
        """Waits until all workers train, then visits."""
        try:
            self._until(lambda: self._made and (self._made[0].rows["updates"] > 0).all())
            time.sleep(self._config.warm_up_s)
            draw = random.Random(0)
            for _ in range(self._config.visits):
                pair = {side: self._visit(side) for side in draw.sample((0, 1), 2)}
                self.pairs.append((pair[0], pair[1]))
        except (RuntimeError, TimeoutError) as error:
            self.failed = str(error)
        finally:
            self._switch(1)
            os.kill(os.getpid(), signal.SIGINT)

    def _until(self, condition: Callable[[], Any]) -> None:
        deadline_s = time.monotonic() + _ANSWER_WITHIN_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the workers do not answer within {_ANSWER_WITHIN_S:g} s")
            time.sleep(0.002)

    def _visit(self, side: int) -> Visit:
        self._switch(side)
        self._until(lambda: bool((self._sides[1:] == side).all()))
        time.sleep(_SETTLE_S)
        rows, parent, workers = self._made[0].rows, [os.getpid()], workers_of(os.getpid())
        beats, steps = rows["heartbeat_s"].copy(), rows["steps"].sum()
        before_s = time.perf_counter(), cpu_s(parent), cpu_s(workers)
        time.sleep(self._config.visit_s)
        after_s = time.perf_counter(), cpu_s(parent), cpu_s(workers)
        steps = int(rows["steps"].sum() - steps)
        elapsed_s, parent_s, workers_s = (a - b for a, b in zip(after_s, before_s, strict=True))
        if not steps or bool((rows["heartbeat_s"] != beats).any()) != bool(side):
            raise RuntimeError("no steps, or signs of life of the other side: nothing was measured")
        return Visit(steps / elapsed_s, workers_s / steps * 1e6, parent_s / elapsed_s * 1e3)

    def _switch(self, side: int) -> None:
        self._sides[0] = side
        if side:
            self._watching.set()
        else:
            self._watching.clear()


def measure(config: Config, envs_per_worker: int) -> list[tuple[Visit, Visit]]:
    """Trains, and gives pairs of visits, without and with supervision."""
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
        with visits.beside_a_run():
            a3c.train(settings)
    if visits.failed:
        raise SystemExit(visits.failed)
    return visits.pairs


def interval(values: list[float]) -> tuple[float, float]:
    """Of the median, 95 % by the bootstrap."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2_000))
    return medians[50], medians[-51]


def compare(pairs: list[tuple[Visit, Visit]]) -> dict[str, float]:
    """Medians of both sides, and what supervision costs as a share of the speed."""
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
            f"{name}_{side}": round(statistics.median(getattr(visit, name) for visit in visits), 3)
            for name in ("worker_us", "parent_ms")
            for side, visits in (("without", without), ("supervised", supervised))
        },
    }


def main() -> None:
    """Measures every cell, prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe(), flush=True)
    rows = []
    for envs_per_worker in config.envs_per_worker:
        pairs = measure(config, envs_per_worker)
        row = compare(pairs)
        cell = {"workers": config.workers, "envs_per_worker": envs_per_worker, "pairs": len(pairs)}
        within = row["cost"] <= config.demand
        rows.append({"env": config.env, **cell, **row, "within_demand": within})
        print(
            f"{config.workers} workers of {envs_per_worker}: {len(pairs)} pairs of visits\n"
            f"  {row['steps_per_s_supervised']:,} steps/s supervised, "
            f"{row['steps_per_s_without']:,} without: costs {row['cost']:.2%} "
            f"({row['cost_low']:.2%} to {row['cost_high']:.2%}), "
            f"{'within' if within else 'MORE THAN'} {config.demand:.0%}; "
            f"of all visits together {row['cost_of_sums']:.2%}\n"
            "  processor, supervised and without: workers "
            f"{row['worker_us_supervised']:.2f} and {row['worker_us_without']:.2f} us a step, "
            f"parent {row['parent_ms_supervised']:.1f} and {row['parent_ms_without']:.1f} ms a "
            "second",
            flush=True,
        )
    if config.write:
        print(f"written: {machine.write_csv('supervision_cost', rows)}")


if __name__ == "__main__":
    main()
