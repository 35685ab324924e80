"""A3C: asynchronous advantage actor-critic, N processes that update one model without a lock.

    python -m hogwild_rl.a3c --workers 16
    python -m hogwild_rl.a3c --env LunarLander-v3 --total-timesteps 3_000_000

Every worker copies the shared parameters, plays `n_steps` steps of its environments with them,
takes the gradient of its own loss, and steps the shared parameters with it, whatever the others do
meanwhile.

Source: Mnih et al. 2016 (arXiv:1602.01783), algorithm S3; lock-free: Recht et al. 2011.
"""

import signal

from hogwild_rl.hogwild import processes

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before training starts needs no words
    processes.preload("hogwild_rl.runs.run")  # the workers' import of torch runs beside ours, below

import dataclasses
import functools
import math
import signal
from typing import Any, Literal

import torch

from hogwild_rl.collect.rollout import Collector
from hogwild_rl.config import base, cli, resources, validation
from hogwild_rl.config.policy import ActorCriticConfig
from hogwild_rl.envs import make, vectorize
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.optimizers import SharedRMSprop
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.shared_model import SharedModel, clip_by_global_norm_
from hogwild_rl.learn import losses
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.training import devices, launch
from hogwild_rl.training.exact_resume import SafePoint, WorkerState


@base.with_presets("a3c")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig, base.FaultToleranceConfig):
    """Settings of A3C. What is not given comes from the environment's preset."""

    workers: int = dataclasses.field(default_factory=base.usable_cores)
    """Worker processes; by default one per usable core."""
    envs_per_worker: int = 1
    """Environments each worker steps together; 1 is the paper's A3C."""
    vectorization: Literal["auto", "native", "sync", "envpool"] = "auto"
    """What steps them: their own vector form, one after another or EnvPool."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "envs_per_worker"):
            validation.at_least(name, getattr(self, name), 1)


def work(
    worker: Worker,
    facts: make.EnvInfo,
    backend: vectorize.Backend,
    config: Config,
    shared: SharedModel[ActorCritic],
    optimizer: SharedRMSprop,
    normalization: Normalization,
    slots: Counters,
    steps_before: int,
    recalled: dict[str, Any] | None,
    standstill: SafePoint | None,
) -> None:
    """One worker's life: pull, act, learn, step, until the steps of all add up to the total."""
    env_seed, action_seed = worker.random_seeds(2)
    generator = torch.Generator().manual_seed(action_seed)
    local, slot = shared.replica(), slots.writer(worker.index)
    envs = vectorize.make_envs(facts.source, backend, config.envs_per_worker, cores=1)
    normalizer = config.normalizer(normalization, worker.index)
    interface = config.interface(facts, normalizer)
    collector = Collector([envs], interface, config.n_steps, env_seed, slot.lap)
    act = functools.partial(local.module.act, generator=generator)
    recall = WorkerState(generator, [envs], collector, normalizer)
    if standstill is not None:
        standstill.begin()
        if slots.rows["steps"][worker.index] == 0:  # not in the place of one that had gone on
            recall.restore(recalled, env_seed)
    while not worker.stopping:
        progress = (steps_before + slots.total("steps")) / config.total_timesteps
        if progress >= 1:
            break
        updates_at_pull = slot.total_updates()
        local.pull()
        normalization.freeze(local.module)
        slot.lap("share")
        rollout = collector.collect(act)
        normalizer.add(rollout)
        slot.add_rollout(collector.steps, collector.episodes)
        slot.add_broken(collector.broken)
        gradient = local.gradient(losses.actor_critic_loss(local.module, rollout, config))
        norm = clip_by_global_norm_(gradient, config.max_grad_norm)
        slot.lap("learn")
        if math.isfinite(norm):
            optimizer.learning_rate = config.learning_rate_at(progress)
            optimizer.apply(gradient)
            slot.add_update(updates_at_pull)
        else:
            slot.add_dropped()
        slot.lap("share")
        if standstill is not None:
            standstill.pause(worker, recall.state)
    if standstill is not None:
        standstill.leave(recall.state())
    envs.close()


def train(config: Config) -> Agent:
    """Trains until `total_timesteps`, and returns the agent.

    Raises:
        UserError: a setting, the environment or the folder cannot be used; nothing was changed.
        RunFailedError: a worker failed; the others were stopped and a checkpoint was written.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, likewise.
    """
    session = Run("a3c", config)
    resources.check_workers(config.workers)
    config.check_rollouts(session.facts, config.workers * config.envs_per_worker)
    bfloat16 = devices.bfloat16(config.precision, session.facts)
    backend = vectorize.choose(
        session.facts.source, config.vectorization, config.envs_per_worker, cores=1
    )
    model = config.model(session.facts, bfloat16.on)
    config.check_sendable(model)
    shared = SharedModel(model)
    optimizer = SharedRMSprop(shared, config.learning_rate, config.rms_alpha, config.rms_eps)
    normalization = config.normalization(session.facts, config.workers)
    slots = Counters(config.workers)
    session.open(shared.module, optimizer, normalization)
    if bfloat16.reason:
        session.tell(f"precision float32: {bfloat16.reason}")
    # Of several workers no two runs are equal: none is worth stopping for.
    standstill = SafePoint(session.folder) if config.workers == 1 else None
    arguments = (
        session.facts,
        backend,
        config,
        shared,
        optimizer,
        normalization,
        slots,
        session.before.steps,
        session.recalled,
        standstill,
    )
    return launch.in_processes(session, slots, work, arguments, config, standstill)


def main() -> None:
    """The command line: ``python -m hogwild_rl.a3c --help``."""
    train(cli.parse(Config, "a3c", "Asynchronous advantage actor-critic on this machine's cores."))


if __name__ == "__main__":
    cli.run(main)
