"""The one argument of every worker function."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from hogwild_rl.config import cli
from hogwild_rl.config.base import RunConfig
from hogwild_rl.envs import subproc
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.envs.make import EnvInfo
from hogwild_rl.envs.vectorize import Backend
from hogwild_rl.runs.run import Run
from hogwild_rl.runs.state import TrainState
from hogwild_rl.training.distributed import Ranks
from hogwild_rl.training.exact_resume import LocalSafePoint, SafePoint

C = TypeVar("C", bound=RunConfig)


@dataclasses.dataclass(frozen=True)
class Task(Generic[C]):
    """A run as a worker sees it; picklable, and shared memory stays shared.

    Attributes:
        config: settings of the algorithm.
        env: facts about the environment.
        backend: the way to step it.
        state: model, optimizer, moments and counters.
        group_size: environments that step together.
        groups: number of such groups.
        cores: threads that may step a group.
        compiled: capture acting and updates as CUDA graphs.
        ranks: processes that average their gradients.
        steps_before, updates_before: counts of the run's earlier sessions.
        folder: folder of the run.
        resumed: state of the only worker in the checkpoint that is resumed, or None.
        safe_point: place between two updates at which a checkpoint may be written; set by `launch`.
        resources: closed when the worker ends; set by `launch`.
        on_env_failure: called when an environment's process fails; set by `launch`.
    """

    config: C
    env: EnvInfo
    backend: Backend
    state: TrainState
    group_size: int
    groups: int = 1
    cores: int = 1
    compiled: bool = False
    ranks: Ranks = dataclasses.field(default_factory=Ranks)
    steps_before: int = 0
    updates_before: int = 0
    folder: pathlib.Path = pathlib.Path()
    resumed: dict[str, Any] | None = None
    safe_point: SafePoint | LocalSafePoint | None = None
    resources: contextlib.ExitStack | None = None
    on_env_failure: Callable[[EnvironmentFailedError], float] = subproc.raise_failure

    @classmethod
    def of(cls, run: Run, backend: Backend, state: TrainState, **others: Any) -> "Task[Any]":
        """The task of an opened run."""
        config: Any = run.config
        return cls(
            config,
            run.env,
            backend,
            state,
            steps_before=run.before.steps,
            updates_before=run.before.updates,
            folder=run.folder,
            resumed=run.resumed_state,
            **others,
        )

    def info(self, line: str) -> None:
        """Prints a line, once for all ranks, unless the run is quiet."""
        if self.ranks.index == 0 and not self.config.quiet:
            cli.print_line(line)
