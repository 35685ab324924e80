"""The life of a learner from a replay: act, keep, draw, learn. What it learns is the caller's."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hogwild_rl.envs import backends, vector
from hogwild_rl.hogwild import memory
from hogwild_rl.hogwild.model import SharedModel, clip_by_global_norm_
from hogwild_rl.hogwild.optim import SharedAdam
from hogwild_rl.hogwild.slots import Slots
from hogwild_rl.hogwild.worker import Worker
from hogwild_rl.learning.experience import Experience
from hogwild_rl.learning.replay import Batch, Replay
from hogwild_rl.models.deterministic import Tracked, follow_
from hogwild_rl.runs import crew, devices, files
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.off_policy import OffPolicySettings
from hogwild_rl.runs.session import Session

_REPLAY_FILE = "replay_{}.pt"


class Part:
    """The policy or the critics of all workers, with their slow copy and their optimizer.

    Args:
        tracked: in place; from now on a view of one flat tensor.
        learning_rate: η of Adam.
        device: where the tensor lies.

    Attributes:
        optimizer: of what is trained.
    """

    def __init__(self, tracked: Tracked[Any], learning_rate: float, device: torch.device) -> None:
        self._shared = SharedModel(tracked, device)
        self.optimizer = SharedAdam(self._shared, learning_rate)

    @property
    def online(self) -> Any:
        """The module that is trained."""
        return self._shared.module.online

    @property
    def target(self) -> Any:
        """Its slow copy."""
        return self._shared.module.target

    def descend(self, loss: Tensor) -> bool:
        """One step against the gradient of a loss. False where it is not finite: no step."""
        gradient = self._shared.gradient(loss)
        if not math.isfinite(clip_by_global_norm_(gradient, math.inf)):
            return False
        self.optimizer.apply(gradient)
        return True

    def follow(self, tau: float) -> None:
        """Lets the slow copy follow by a share τ."""
        follow_(self._shared.flat, tau)


@dataclasses.dataclass
class Learner:
    """What one worker learns with. Workers read and write the same parameters, without a lock.

    Attributes:
        actor: μ.
        critics: the Q_i.
        generator: for what an update draws.
        updates: that this worker has taken.
    """

    actor: Part
    critics: Part
    generator: torch.Generator
    updates: int = 0


Update: TypeAlias = Callable[[Learner, Batch, Any], bool]
"""One update with a batch, under the algorithm's settings; False where it was dropped."""


class Optimizers:
    """Both parts' optimizers as one, for checkpoints."""

    def __init__(self, actor: Part, critics: Part) -> None:
        self._each = {"actor": actor.optimizer, "critics": critics.optimizer}

    def state_dict(self) -> dict[str, Any]:
        """As torch's, by part."""
        return {name: optimizer.state_dict() for name, optimizer in self._each.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, by part."""
        for name, optimizer in self._each.items():
            learning_rate = optimizer.learning_rate
            optimizer.load_state_dict(state_dict[name])
            optimizer.learning_rate = learning_rate  # settings decide, not the checkpoint


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker is given.

    Attributes:
        facts: of the environment.
        backend: that steps it.
        config: settings of the algorithm.
        update: the algorithm's.
        actor, critics: what is learnt.
        device: where.
        slots: to count in.
        before: the steps of the run's earlier lives.
        folder: of the run.
    """

    facts: vector.EnvFacts
    backend: backends.Backend
    config: OffPolicySettings
    update: Update
    actor: Part
    critics: Part
    device: torch.device
    slots: Slots
    before: int
    folder: pathlib.Path


def work(worker: Worker, job: Job) -> None:
    """One worker's life: act, keep, draw, learn, until the steps of all add up to the total."""
    config, slot = job.config, job.slots.writer(worker.index)
    env_seed, *seeds = worker.random_seeds(4)
    exploring, drawing, learning = (torch.Generator().manual_seed(seed) for seed in seeds)
    learner = Learner(job.actor, job.critics, learning)
    interface = config.interface(job.facts)
    replay, noise = config.replay(interface), config.explore(interface, exploring)
    kept = _Kept(job.folder / _REPLAY_FILE.format(worker.index), replay, config)
    kept.restore()
    envs = backends.make(job.facts.source, job.backend, config.envs_per_worker, cores=1)
    experience = Experience(envs, interface, replay, env_seed, slot.lap)
    random_until = 0 if job.before else -(-config.learning_starts // config.workers)
    learn_from = max(config.batch_size, -(-config.learning_starts // config.workers))

    lived = len(replay)  # transitions, those that were kept by an earlier life of the run included

    def choose() -> Tensor:
        if lived < random_until:
            return torch.rand(noise.shape, generator=exploring) * 2 - 1
        with torch.no_grad():
            actions: Tensor = job.actor.online(experience.observations.to(job.device)).cpu()
        return (actions + noise.draw()).clamp_(-1, 1)

    new = 0
    while not worker.stopping and job.before + job.slots.total("steps") < config.total_timesteps:
        experience.step(choose())
        noise.forget(experience.ended)
        slot.add_rollout(experience.steps, experience.episodes)
        new, lived = new + experience.steps, lived + experience.steps
        # A step that only reset an environment is none to learn after.
        if new >= config.train_every * config.envs_per_worker:
            for _ in range(config.updates_after(new) if lived >= learn_from else 0):
                updates_before = slot.total_updates()
                batch = replay.sample(config.batch_size, drawing).to(job.device)
                learner.updates += 1
                if job.update(learner, batch, config):
                    slot.add_update(updates_before)
                else:
                    slot.add_dropped()
            new = 0
            slot.lap("learn")
        kept.save_when_due()
    kept.save()
    envs.close()


class _Kept:
    """A worker's replay as a file in the run's folder, where that is asked for."""

    def __init__(self, path: pathlib.Path, replay: Replay, config: OffPolicySettings) -> None:
        self._path, self._replay, self._on = path, replay, config.save_replay
        self._every_s, self._saved_s = config.checkpoint_every_s, time.monotonic()

    def restore(self) -> None:
        """Goes on with what an earlier life of the run kept, if it fits."""
        if self._on and self._path.exists():
            self._replay.restore(torch.load(self._path, weights_only=True))

    def save_when_due(self) -> None:
        """Saves as often as checkpoints are."""
        if time.monotonic() - self._saved_s >= self._every_s:
            self.save()

    def save(self) -> None:
        """Writes the file; it is there whole, or as before."""
        self._saved_s = time.monotonic()
        if self._on:
            with files.replacing(self._path) as file:
                torch.save(self._replay.state(), file)


def train(algorithm: str, config: OffPolicySettings, critics: int, update: Update) -> Agent:
    """Trains until `total_timesteps`, and returns the agent: one worker here, several in processes.

    Args:
        algorithm: its module's name.
        config: its settings.
        critics: how many estimates of Q.
        update: what it does with a batch; a function at the top level of a module.

    Raises:
        UserError: a setting, the environment or the folder cannot be used; nothing was changed.
        WorkersFailedError: a worker failed; the others were stopped and a checkpoint was written.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, likewise.
    """
    session = Session(algorithm, config)
    backend = backends.choose(session.facts.source, "auto", config.envs_per_worker, cores=1)
    room = config.check_memory(config.interface(session.facts))
    model = config.model(session.facts, critics)
    chosen = devices.choose("cpu" if config.workers > 1 else config.device, model)
    actor = Part(model.actor, config.learning_rate, chosen.device)
    following = Part(model.critics, config.learning_rate, chosen.device)
    slots, normalization = Slots(config.workers), config.normalization(session.facts)
    session.open(model, Optimizers(actor, following), normalization)
    session.tell(f"{room}; device {chosen.device}: {chosen.reason}")
    if session.before.steps and not config.save_replay:
        session.tell("the replay was not kept (--save-replay): it starts empty")
    job = Job(
        facts=session.facts,
        backend=backend,
        config=config,
        update=update,
        actor=actor,
        critics=following,
        device=chosen.device,
        slots=slots,
        before=session.before.steps,
        folder=session.folder,
    )
    if config.workers > 1:
        config.check_sendable(model)
        return crew.in_processes(session, slots, work, (job,), config.seed)
    torch.set_flush_denormal(True)
    memory.keep_freed()
    with devices.few_threads(model, config.envs_per_worker):
        return crew.here(session, slots, work, (job,), config.seed)
