"""The life of a learner from a replay: act, keep, draw, learn. What it learns is the caller's."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hogwild_rl.collect.replay import ReplayBuffer
from hogwild_rl.collect.transitions import TransitionCollector
from hogwild_rl.config import resources
from hogwild_rl.config.network import name_of
from hogwild_rl.config.off_policy import OffPolicyConfig
from hogwild_rl.envs import make, vectorize
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import shared_memory
from hogwild_rl.hogwild.counters import Counters, CounterWriter
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.learn import cuda_graphs
from hogwild_rl.runs import files
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.training import devices, launch
from hogwild_rl.training.learner import Learner, Optimizers, TargetedModule, Update
from hogwild_rl.training.outcomes import Outcomes

_REPLAY_FILE = "replay_{}.pt"


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker is given.

    Attributes:
        env_info: of the environment.
        backend: that steps it.
        config: settings of the algorithm.
        update: the algorithm's.
        policy_delay: every so many updates do the same.
        actor, critics: what is learnt.
        device: where.
        counters: to count in.
        before: the steps of the run's earlier lives.
        folder: of the run.
    """

    env_info: make.EnvInfo
    backend: vectorize.Backend
    config: OffPolicyConfig
    update: Update
    policy_delay: int
    actor: TargetedModule
    critics: TargetedModule
    device: torch.device
    counters: Counters
    before: int
    folder: pathlib.Path


def work(worker: Worker, job: Job) -> None:
    """One worker's life: act, keep, draw, learn, until the steps of all add up to the total."""
    config, counts = job.config, job.counters.writer(worker.index)
    env_seed, *seeds = worker.random_seeds(4)
    exploring, drawing = (torch.Generator().manual_seed(seed) for seed in seeds[:2])
    learner = Learner(job.actor, job.critics, torch.Generator(job.device).manual_seed(seeds[2]))
    env_codec = config.env_codec(job.env_info)
    replay, noise = config.replay(env_codec), config.explore(env_codec, exploring)
    kept = _Kept(job.folder / _REPLAY_FILE.format(worker.index), replay, config)
    kept.restore()
    envs = vectorize.make_envs(job.env_info.source, job.backend, config.envs_per_worker, cores=1)
    experience = TransitionCollector(envs, env_codec, replay, env_seed, counts.lap)
    update = _Update(job, learner, replay, drawing, counts)
    learn_from = -(-config.learning_starts // config.workers)
    begun = job.before or int(job.counters.rows["steps"][worker.index])  # by whom this one replaces
    random_until = 0 if begun else learn_from
    learn_from = max(config.batch_size, learn_from)
    lived = len(replay)  # transitions, those that were kept by an earlier life of the run included

    def choose() -> Tensor:
        if lived < random_until:
            return torch.rand(noise.shape, generator=exploring) * 2 - 1
        with torch.no_grad():
            actions: Tensor = job.actor.online(experience.observations.to(job.device)).cpu()
        chosen: Tensor = (actions + noise.sample()).clamp_(-1, 1)
        return chosen

    new = 0
    while not worker.stopping and job.before + job.counters.total("steps") < config.total_timesteps:
        experience.step(choose())
        noise.reset(experience.ended)
        counts.add_rollout(experience.steps, experience.episodes)
        counts.add_nonfinite(experience.nonfinite_envs)
        if experience.nonfinite_envs:
            counts.add_dropped()
        # A step that only reset an environment, or that broke it, is none to learn after.
        new, lived = new + experience.kept, lived + experience.kept
        if new >= config.train_every * config.envs_per_worker:
            for _ in range(config.updates_after(new) if len(replay) and lived >= learn_from else 0):
                if worker.stopping:
                    break
                update()
                counts.lap("learn")
            new = 0
        kept.save_when_due()
    update.finish()
    kept.save()
    envs.close()


class _Update:
    """Samples a batch and updates with it.

    On a device: through one copy of the batch, and where recorded by one launch of the update.
    """

    def __init__(
        self,
        job: Job,
        learner: Learner,
        replay: ReplayBuffer,
        drawing: torch.Generator,
        counts: CounterWriter,
    ) -> None:
        self._job, self._learner, self._counts = job, learner, counts
        self._replay, self._drawing, self._size = replay, drawing, job.config.batch_size
        self._on_cpu, pinned = job.device.type == "cpu", job.device.type == "cuda"
        self._flat, self._batch = replay.empty(self._size, pinned=pinned)
        if not self._on_cpu:
            self._device_flat, self._device_batch = replay.empty(self._size, job.device)
        self._outcomes = Outcomes(counts, job.device)
        self._compiled = job.config.compiles(job.device)
        self._recorded: dict[bool, Callable[[], Tensor]] = {}  # by whether the policy learns too

    def __call__(self) -> None:
        updates_before = self._counts.total_updates()
        self._learner.updates += 1
        self._replay.sample(self._size, self._drawing, self._batch)
        if not self._on_cpu:
            self._device_flat.copy_(self._flat)  # waits for the update before
            policy_learns = self._learner.updates % self._job.policy_delay == 0
            if policy_learns not in self._recorded:
                self._recorded[policy_learns] = self._record()
            self._outcomes.add(self._recorded[policy_learns]())
        elif self._job.update(self._learner, self._batch, self._job.config):
            self._counts.add_update(updates_before)
        else:
            self._counts.add_dropped()

    def _record(self) -> Callable[[], Tensor]:
        job = self._job

        def update() -> Tensor:
            return torch.as_tensor(job.update(self._learner, self._device_batch, job.config))

        if not self._compiled:
            return update
        with cuda_graphs.recording(name_of(job.config.network)):
            changes = [*job.actor.tensors, *job.critics.tensors]
            return cuda_graphs.Captured(update, job.device, self._learner.generator, changes)

    def finish(self) -> None:
        """Counts the last update of a device."""
        self._outcomes.finish()


class _Kept:
    """A worker's replay as a file in the run's folder, where that is asked for."""

    def __init__(self, path: pathlib.Path, replay: ReplayBuffer, config: OffPolicyConfig) -> None:
        self._path, self._replay, self._on = path, replay, config.save_replay
        self._every_s, self._saved_s = config.checkpoint_every, time.monotonic()
        self._attempts = files.BestEffortWrites()

    def restore(self) -> None:
        """Goes on with what an earlier life of the run kept, if it fits."""
        if not (self._on and self._path.exists()):
            return
        kept = torch.load(self._path, weights_only=True, mmap=True)  # memory has room for one
        if not self._replay.restore(kept):
            print(f"{self._path} is of other settings: the replay starts empty", file=sys.stderr)

    def save_when_due(self) -> None:
        """Saves as often as checkpoints are."""
        if time.monotonic() - self._saved_s >= self._every_s:
            self.save()

    def save(self) -> None:
        """Writes the file; it is there whole, or as before."""
        self._saved_s = time.monotonic()
        if self._on:
            with self._attempts.at(self._path), files.atomic_write(self._path) as file:
                torch.save(self._replay.state(), file)


def _check_kept(config: OffPolicyConfig) -> int:
    """Looks whether what workers will go on with is whole, before anything starts.

    Returns:
        How many of them have something.

    Raises:
        UserError: a file is not whole.
    """
    if config.resume is None or not config.save_replay:
        return 0
    paths = [pathlib.Path(config.resume, _REPLAY_FILE.format(i)) for i in range(config.workers)]
    there = [path for path in paths if path.exists()]
    for path in there:
        broken = f"{path} is not a replay, or it is damaged: remove it to begin with an empty one"
        try:
            state = torch.load(path, weights_only=True, mmap=True)  # without reading all of it
        except Exception as error:  # a foreign file can make the unpickler raise anything
            raise UserError(broken) from error
        if not isinstance(state, dict):
            raise UserError(broken)
    return len(there)


def train(
    algorithm: str, config: OffPolicyConfig, critics: int, update: Update, policy_delay: int = 1
) -> Agent:
    """Trains until `total_timesteps`, and returns the agent: one worker here, several in processes.

    Args:
        algorithm: its module's name.
        config: its settings.
        critics: how many estimates of Q.
        update: what it does with a batch; a function at the top level of a module.
        policy_delay: every so many updates it does the same.

    Raises:
        UserError: a setting, the environment or the folder cannot be used; nothing was changed.
        RunFailedError: a worker failed; the others were stopped and a checkpoint was written.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, likewise.
    """
    torch.set_flush_denormal(True)  # before torch has started threads, which inherit it
    shared_memory.retain_freed_memory()
    session = Run(algorithm, config)
    backend = vectorize.choose(session.env_info.source, "auto", config.envs_per_worker, cores=1)
    room = config.check_memory(config.env_codec(session.env_info))
    kept = _check_kept(config)
    if config.workers > 1:
        resources.check_workers(config.workers)
    model = config.model(session.env_info, critics)
    chosen = devices.choose("cpu" if config.workers > 1 else config.device, model)
    config.compiles(chosen.device)
    alone, rate = config.workers == 1, config.learning_rate
    actor = TargetedModule(model.actor, rate, chosen.device, alone)
    critic = TargetedModule(model.critics, rate, chosen.device, alone)
    counters, normalization = Counters(config.workers), config.normalization(session.env_info)
    session.open(model, Optimizers(actor, critic), normalization)
    session.info(f"{room}; device {chosen.device}: {chosen.reason}")
    if session.before.steps and kept < config.workers:
        which = "it starts" if kept == 0 else f"that of {config.workers - kept} workers starts"
        session.info(f"the replay was not kept (--save-replay): {which} empty")
    job = Job(
        env_info=session.env_info,
        backend=backend,
        config=config,
        update=update,
        policy_delay=policy_delay,
        actor=actor,
        critics=critic,
        device=chosen.device,
        counters=counters,
        before=session.before.steps,
        folder=session.folder,
    )
    if config.workers > 1:
        config.check_sendable(model)
        return launch.in_processes(session, counters, work, (job,), config)
    batch = f"batch_size {config.batch_size}"
    with devices.enough_memory(batch), devices.limit_threads(model, config.batch_size):
        return launch.in_this_process(session, counters, work, (job,), config)
