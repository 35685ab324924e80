"""Rollout collection by a worker: environments, acting, running moments and counts."""

import functools
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from hogwild_rl.collect.episodes import EpisodeCollector
from hogwild_rl.collect.rollout import Act, Rollout
from hogwild_rl.collect.rollout import Collector as RolloutCollector
from hogwild_rl.envs import atari, make, vectorize
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.learn import cuda_graphs
from hogwild_rl.training.exact_resume import WorkerState
from hogwild_rl.training.learner import Learner
from hogwild_rl.training.task import Task

_LONG_EPISODE = 10_000  # steps
_SLOW_FROM = 32  # ALE takes 75 ms to create an environment, and does not release the GIL


class Collector:
    """Collects rollouts with the learner's model in the worker's own environments.

    Args:
        worker, task: this worker, and the run.
        learner: learner whose model acts; its `collector` is set to this object.
        whole_episodes: collect one episode from each environment instead of `n_steps` steps.

    Attributes:
        source: collects the rollouts; has the steps, episodes and nonfinite_envs of the last one.
    """

    def __init__(
        self, worker: Worker, task: Task[Any], learner: Learner, *, whole_episodes: bool = False
    ) -> None:
        config, device = task.config, learner.device
        seed, action_seed = worker.random_seeds(2)
        groups = open_environments(task)
        self._task, self._learner, self._seed, self._worker = task, learner, seed, worker
        self._moments = task.state.normalization
        self._normalizer = config.normalizer(self._moments, worker.index)
        codec = config.env_codec(task.env, self._normalizer)
        generator: torch.Generator | np.random.Generator
        closed_form, arrays = learner.closed_form, False
        if closed_form is not None and closed_form.is_small(task.group_size):
            arrays, generator = True, np.random.Generator(np.random.PCG64(action_seed))
            self._act: Act = functools.partial(closed_form.act, generator=generator)
        else:
            generator = torch.Generator(device).manual_seed(action_seed)
            self._act = functools.partial(learner.model.act, generator=generator)
        self._generator = generator
        self._worker_state: WorkerState | None = None
        self.source: EpisodeCollector | RolloutCollector
        lap = learner.counters.lap
        if whole_episodes:
            self.source = EpisodeCollector(groups[0], codec, seed, lap, self._cut, arrays)
        else:
            on_device = None if device.type == "cpu" else device
            source = RolloutCollector(groups, codec, config.n_steps, seed, lap, on_device, arrays)
            self._worker_state = WorkerState(generator, groups, source, self._normalizer)
            self.source = source
            if task.compiled and isinstance(generator, torch.Generator):
                with cuda_graphs.recording(make.name_of(config.network)):
                    self._act = cuda_graphs.captured_act(
                        self._act, source.rollout, task.group_size, generator
                    )
        learner.collector = self

    def _cut(self, length: int, steps: int) -> bool:
        """True if open episodes are cut: on interrupts, and long ones at the end of the run."""
        if self._worker.should_stop():
            return True
        if length < _LONG_EPISODE:
            return False
        if length == _LONG_EPISODE:
            self._task.info(
                f"warning: an episode has lasted {length:,} steps: if it may never end, give the "
                "environment a time limit (max_episode_steps)"
            )
        taken = self._task.steps_before + self._task.state.counters.total("steps") + steps
        return bool(taken >= self._task.config.total_timesteps)

    def collect(self) -> Rollout:
        """Collects a rollout, [T, B]; the next call overwrites it."""
        if self._moments.moments:
            self._moments.write_to(self._learner.model)
        self._learner.counters.lap("share")
        self._rollout: Rollout = self.source.collect(self._act)
        self._taken = False
        return self._rollout

    def take(self) -> tuple[int, list[tuple[float, int]]]:
        """Adds the last rollout to the running moments, and returns its steps and episodes.

        Only once for each rollout: then 0 and none.
        """
        if self._taken:
            return 0, []
        self._taken = True
        if self._moments.moments:
            self._normalizer.add(getattr(self.source, "host", self._rollout))
            self._task.ranks.exchange(self._moments, self._learner.device)
        if self.source.nonfinite_envs:
            self._learner.counters.add_nonfinite(self.source.nonfinite_envs)
        return self.source.steps, self.source.episodes

    def permutation(self, n: int) -> torch.Tensor:
        """Random permutation of 0..n-1 on the device, [n] int64, from this worker's stream."""
        if isinstance(self._generator, torch.Generator):
            return torch.randperm(n, generator=self._generator, device=self._learner.device)
        return torch.from_numpy(self._generator.permutation(n))

    def state(self) -> dict[str, Any] | None:
        """State of random stream, environments and open episodes, for an exact resume."""
        alone = self._task.ranks.count == 1
        return self._worker_state.state() if self._worker_state is not None and alone else None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continues from a `state`; if that is not possible, episodes restart."""
        if self._worker_state is not None and self._task.ranks.count == 1:
            reason = self._worker_state.restore(state, self._seed)
            if reason:
                self._task.info(f"episodes restart: {reason}")

    def finish(self) -> None:
        """Counts the last update."""
        self._learner.finish()


def open_environments(task: Task[Any]) -> list[VectorEnv[Any, Any, Any]]:
    """Makes the worker's groups of environments, numbered across ranks.

    They are closed with the task's resources.
    """
    assert task.resources is not None, "set by launch"
    groups = []
    for group in range(task.ranks.index * task.groups, (task.ranks.index + 1) * task.groups):
        if task.group_size >= _SLOW_FROM and atari.is_game(task.env.source):
            task.info(f"creating {task.group_size} Atari environments one by one")
        envs = vectorize.make_envs(
            task.env.source,
            task.backend,
            task.group_size,
            task.cores,
            group * task.group_size,
            task.on_env_failure,
            getattr(task.config, "step_timeout", 60.0),
            (task.env.observation_space, task.env.action_space),
        )
        task.resources.callback(envs.close)
        groups.append(envs)
    return groups
