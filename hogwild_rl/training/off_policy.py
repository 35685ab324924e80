"""Off-policy learning: a learner with target networks, and a collector with a replay buffer."""

import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hogwild_rl.collect.replay import ReplayBuffer, Transitions
from hogwild_rl.collect.transitions import TransitionCollector
from hogwild_rl.config import resources
from hogwild_rl.config.off_policy import OffPolicyConfig
from hogwild_rl.envs import make, vectorize
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.optimizers import SharedAdam
from hogwild_rl.hogwild.processes import Worker, prepare_process
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import cuda_graphs
from hogwild_rl.models.deterministic import DeterministicActorCritic, WithTarget, polyak_update_
from hogwild_rl.runs import files
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.runs.state import TrainState
from hogwild_rl.training import collector, devices, launch
from hogwild_rl.training.learner import Outcomes
from hogwild_rl.training.task import Task

_REPLAY_FILE = "replay_{}.pt"

# Small matrix products: on 16 cores, TD3 with minibatches of 256 takes 129, 200, 279, 258 and 171
# updates/s with 1, 2, 4, 8 and 16 threads (benchmarks/gpu_check.py).
_MOST_THREADS = 4


class TargetedModule:
    """Actor or critics with target network and Adam, shared by all workers; see SharedAdam.

    Attributes:
        optimizer: Adam of the trained parameters.
        loss: last loss, a scalar; NaN before the first.
    """

    def __init__(
        self, tracked: WithTarget[Any], learning_rate: float, device: torch.device, alone: bool
    ) -> None:
        self._shared, self.loss = SharedModel(tracked, device), torch.tensor(math.nan)
        self.optimizer = SharedAdam(self._shared, learning_rate, alone=alone)

    @property
    def online(self) -> Any:
        """The trained module."""
        return self._shared.module.online

    @property
    def target(self) -> Any:
        """The target network."""
        return self._shared.module.target

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self._shared.flat.device

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that an update changes."""
        return [self._shared.flat, *self.optimizer.tensors]

    def step(self, loss: Tensor) -> float | Tensor:
        """Takes a gradient step if the gradient is finite.

        Returns:
            Gradient norm, non-finite if no step was taken; on a GPU a tensor [] on that device.
        """
        self.loss = loss.detach()
        gradient = self._shared.gradient(loss)
        if gradient.device.type != "cpu":
            return self.optimizer.apply_if_finite(gradient)
        norm = math.sqrt(float(gradient.dot(gradient)))
        if math.isfinite(norm):
            self.optimizer.apply(gradient)
        return norm

    def polyak_update(self, tau: float) -> None:
        """Target network: θ' ← (1 − τ) θ' + τ θ."""
        polyak_update_(self._shared.flat, tau)


class ActorAndCritics:
    """Networks and optimizers, shared by all workers.

    Attributes:
        module: the networks.
        actor, critics: μ and the Q_i with their target networks and optimizers.
    """

    def __init__(
        self,
        module: DeterministicActorCritic,
        learning_rate: float,
        device: torch.device,
        alone: bool,
    ) -> None:
        self.module: nn.Module = module
        self.actor = TargetedModule(module.actor, learning_rate, device, alone)
        self.critics = TargetedModule(module.critics, learning_rate, device, alone)

    def _parts(self) -> dict[str, TargetedModule]:
        return {"actor": self.actor, "critics": self.critics}

    def __getstate__(self) -> dict[str, Any]:
        return self._parts()  # the module is views of both

    def state_dict(self) -> dict[str, Any]:
        """State of both optimizers."""
        return {n: part.optimizer.state_dict() for n, part in self._parts().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a `state_dict`."""
        for name, part in self._parts().items():
            part.optimizer.load_state_dict(state_dict[name])


class OffPolicyLearner:
    """One worker's access to actor, critics and target networks, which all workers share.

    On a GPU a minibatch is one copy, and a captured update is one launch.

    Args:
        worker, task: this worker, and the run.
        update: function that does one update with a minibatch.
        policy_delay: critic updates per policy update.

    Attributes:
        actor, critics: μ and Q_i.
        generator: random generator of the updates.
        updates: number of updates of this worker.
    """

    def __init__(
        self, worker: Worker, task: Task[Any], update: "Update", policy_delay: int = 1
    ) -> None:
        model, config = task.state.model, task.config
        self.actor: TargetedModule = model.actor
        self.critics: TargetedModule = model.critics
        self.device, self.updates = self.actor.device, 0
        _, _, sampling, learning = worker.random_seeds(4)
        self.generator = torch.Generator(self.device).manual_seed(learning)
        self._sampling = torch.Generator().manual_seed(sampling)
        self.counters = task.state.counters.writer(worker.index)
        self._config, self._update, self._policy_delay = config, update, policy_delay
        self._outcomes, self._compiled = Outcomes(self.counters, self.device), task.compiled
        self._captured: dict[bool, Callable[[], Tensor]] = {}  # by whether the policy is updated
        self._buffers: Any = None
        self._threads = devices.tuned_threads()
        next(self._threads)

    def step(self, replay: ReplayBuffer) -> None:
        """Samples a minibatch and does one update."""
        size, on_cpu = self._config.batch_size, self.device.type == "cpu"
        if self._buffers is None:
            self._buffers = replay.empty(size, pinned=self.device.type == "cuda")
            self._copy = self._buffers if on_cpu else replay.empty(size, self.device)
        updates_before = self.counters.total_updates()
        self.updates += 1
        minibatch = replay.sample(size, self._sampling, self._buffers[1])
        norm: float | Tensor
        if on_cpu:
            start_s = time.perf_counter()
            norm = float(self._update(self, minibatch, self._config))
            self._threads.send(time.perf_counter() - start_s)
        else:
            self._copy[0].copy_(self._buffers[0])  # waits for the previous update
            policy_too = self.updates % self._policy_delay == 0
            if policy_too not in self._captured:
                self._captured[policy_too] = self._capture()
            norm = self._captured[policy_too]()
        self._outcomes.add(norm, updates_before)
        self.counters.lap("learn")
        if time.monotonic() >= self._outcomes.due_s:
            self._outcomes.log(self._gauges(), self._config.learning_rate)

    def _gauges(self) -> tuple[float, ...]:
        """Losses of actor and critics; the other gauges of a loss are undefined."""
        return float(self.actor.loss), float(self.critics.loss), *[math.nan] * 4

    def _capture(self) -> Callable[[], Tensor]:
        def update() -> Tensor:
            return torch.as_tensor(self._update(self, self._copy[1], self._config))

        if not self._compiled:
            return update
        with cuda_graphs.recording(make.name_of(self._config.network)):
            changes = [*self.actor.tensors, *self.critics.tensors]
            return cuda_graphs.Captured(update, self.device, self.generator, changes)

    def finish(self) -> None:
        """Counts the last update of a GPU."""
        self._outcomes.finish()


Update: TypeAlias = Callable[[OffPolicyLearner, Transitions, Any], float | Tensor]
"""One update with a minibatch; returns the sum of the gradient norms, non-finite if one is."""


class ReplayCollector:
    """Collects transitions with exploration noise into a replay buffer.

    Args:
        worker, task: this worker, and the run.
        learner: learner whose actor selects the actions.

    Attributes:
        replay: this worker's buffer.
    """

    def __init__(self, worker: Worker, task: Task[Any], learner: OffPolicyLearner) -> None:
        config, counters = task.config, learner.counters
        env_seed, exploration, _, _ = worker.random_seeds(4)
        self._config, self._worker = config, worker
        self._learner, self._counters = learner, counters
        self._exploration = torch.Generator().manual_seed(exploration)
        codec = config.env_codec(task.env)
        self.replay = config.replay(codec)
        self._noise = config.explore(codec, self._exploration)
        self._file = _ReplayFile(
            pathlib.Path(task.folder) / _REPLAY_FILE.format(worker.index), self.replay, config
        )
        self._file.restore()
        (envs,) = collector.open_environments(task)
        self._source = TransitionCollector(envs, codec, self.replay, env_seed, counters.lap)
        starts = -(-config.learning_starts // config.workers)
        resumed = task.steps_before or int(task.state.counters.rows["steps"][worker.index])
        self._random_until = 0 if resumed else starts
        self._learn_from = max(config.batch_size, starts)
        self._collected, self._new = len(self.replay), 0  # transitions

    def collect(self) -> None:
        """Steps every environment: a = clip(μ(s) + ε, −1, 1), at first uniformly random."""
        source, counters = self._source, self._counters
        source.step(self._actions())
        self._noise.reset(source.ended)
        counters.add_rollout(source.steps, source.episodes)
        counters.add_nonfinite(source.nonfinite_envs)
        if source.nonfinite_envs:
            counters.add_dropped()
        self._new += source.kept
        self._collected += source.kept

    def _actions(self) -> Tensor:
        if self._collected < self._random_until:
            return torch.rand(self._noise.shape, generator=self._exploration) * 2 - 1
        with torch.no_grad():
            observations = self._source.observations.to(self._learner.device)
            actions: Tensor = self._learner.actor.online(observations).cpu()
        noisy: Tensor = (actions + self._noise.sample()).clamp_(-1, 1)
        return noisy

    def due_updates(self) -> Iterator[int]:
        """Numbers of the updates that follow the transitions collected so far."""
        config = self._config
        if self._new >= config.train_every * config.envs_per_worker:
            ready = len(self.replay) and self._collected >= self._learn_from
            updates = config.updates_after(self._new)
            for number in range(updates if ready else 0):
                if self._worker.should_stop():
                    break
                yield number
            self._new = 0
        self._file.save_when_due()

    def state(self) -> None:
        """Returns None: random streams and environments are not saved."""

    def restore(self, state: dict[str, Any] | None) -> None:
        """Does nothing; see `state`."""

    def finish(self) -> None:
        """Counts the last update and writes the replay buffer."""
        self._learner.finish()
        self._file.save()


class _ReplayFile:
    """File of a worker's replay buffer in the run's folder, if `save_replay` is set."""

    def __init__(self, path: pathlib.Path, replay: ReplayBuffer, config: OffPolicyConfig) -> None:
        self._path, self._replay, self._on = path, replay, config.save_replay
        self._every_s, self._saved_s = config.checkpoint_every, time.monotonic()
        self._writes = files.BestEffortWrites()

    def restore(self) -> None:
        """Loads the file if its settings match."""
        if not (self._on and self._path.exists()):
            return
        saved = torch.load(self._path, weights_only=True, mmap=True)  # memory holds one buffer
        if not self._replay.restore(saved):
            line = f"{self._path} has other settings: the replay buffer starts empty"
            print(line, file=sys.stderr)

    def save_when_due(self) -> None:
        """Saves every `checkpoint_every` seconds."""
        if time.monotonic() - self._saved_s >= self._every_s:
            self.save()

    def save(self) -> None:
        """Writes the file atomically."""
        self._saved_s = time.monotonic()
        if self._on:
            with self._writes.at(self._path), files.atomic_write(self._path) as file:
                torch.save(self._replay.state(), file)


def _check_replay_files(config: OffPolicyConfig) -> int:
    """Number of workers whose replay buffer was saved.

    Raises:
        UserError: a file is invalid.
    """
    if config.resume is None or not config.save_replay:
        return 0
    paths = [pathlib.Path(config.resume, _REPLAY_FILE.format(i)) for i in range(config.workers)]
    saved = [path for path in paths if path.exists()]
    for path in saved:
        message = f"{path} is not a valid replay buffer: remove it to start with an empty one"
        try:
            state = torch.load(path, weights_only=True, mmap=True)  # without reading all of it
        except Exception as error:  # the unpickler can raise anything
            raise UserError(message) from error
        if not isinstance(state, dict):
            raise UserError(message)
    return len(saved)


def train(
    algorithm: str, config: OffPolicyConfig, critics: int, function: launch.WorkerFunction
) -> Agent:
    """Trains for `total_timesteps`: one worker in this process, several in processes.

    Raises:
        UserError: invalid setting, environment or folder; nothing was changed.
        RunFailedError: workers kept failing; a checkpoint was written.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint was written.
    """
    prepare_process()  # before torch starts threads, which inherit the flushing
    run = Run(algorithm, config)
    backend = vectorize.choose(run.env.source, "auto", config.envs_per_worker, cores=1)
    memory = config.check_memory(config.env_codec(run.env))
    saved = _check_replay_files(config)
    alone = config.workers == 1
    if not alone:
        resources.check_workers(config.workers)
    network = config.model(run.env, critics)
    chosen = devices.choose(config.device if alone else "cpu", network)
    compiled = config.compiles(chosen.device)
    model = ActorAndCritics(network, config.learning_rate, chosen.device, alone)
    state = TrainState(model, model, config.normalization(run.env), workers=config.workers)
    if not alone:
        config.check_sendable(network)
    run.open(state)
    run.info(f"{memory}; device {chosen.device}: {chosen.reason}")
    if run.before.steps and saved < config.workers:
        which = "it starts" if saved == 0 else f"that of {config.workers - saved} workers starts"
        run.info(f"the replay buffer was not saved (--save-replay): {which} empty")
    task = Task.of(run, backend, state, group_size=config.envs_per_worker, compiled=compiled)
    if not alone:
        return launch.in_processes(run, function, task)
    with (
        devices.enough_memory(f"batch_size {config.batch_size}"),
        devices.limit_threads(network, config.batch_size, on_gpu=chosen.is_gpu, most=_MOST_THREADS),
    ):
        return launch.in_this_process(run, function, task)
