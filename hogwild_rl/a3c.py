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
    env_info: make.EnvInfo,
    backend: vectorize.Backend,
    config: Config,
    shared: SharedModel[ActorCritic],
    optimizer: SharedRMSprop,
    normalization: Normalization,
    counters: Counters,
    steps_before: int,
    resumed_state: dict[str, Any] | None,
    safe_point: SafePoint | None,
) -> None:
    """One worker's life: pull, act, learn, step, until the steps of all add up to the total."""
    env_seed, action_seed = worker.random_seeds(2)
    generator = torch.Generator().manual_seed(action_seed)
    local, counts = shared.replica(), counters.writer(worker.index)
    envs = vectorize.make_envs(env_info.source, backend, config.envs_per_worker, cores=1)
    normalizer = config.normalizer(normalization, worker.index)
    env_codec = config.env_codec(env_info, normalizer)
    collector = Collector([envs], env_codec, config.n_steps, env_seed, counts.lap)
    act = functools.partial(local.module.act, generator=generator)
    worker_state = WorkerState(generator, [envs], collector, normalizer)
    if safe_point is not None:
        safe_point.begin()
        if counters.rows["steps"][worker.index] == 0:  # not in the place of one that had gone on
            worker_state.restore(resumed_state, env_seed)
    while not worker.stopping:
        progress = (steps_before + counters.total("steps")) / config.total_timesteps
        if progress >= 1:
            break
        updates_at_pull = counts.total_updates()
        local.pull()
        normalization.write_to(local.module)
        counts.lap("share")
        rollout = collector.collect(act)
        normalizer.add(rollout)
        counts.add_rollout(collector.steps, collector.episodes)
        counts.add_nonfinite(collector.nonfinite_envs)
        gradient = local.gradient(losses.actor_critic_loss(local.module, rollout, config))
        norm = clip_by_global_norm_(gradient, config.max_grad_norm)
        counts.lap("learn")
        if math.isfinite(norm):
            optimizer.learning_rate = config.learning_rate_at(progress)
            optimizer.apply(gradient)
            counts.add_update(updates_at_pull)
        else:
            counts.add_dropped()
        counts.lap("share")
        if safe_point is not None:
            safe_point.reach(worker, worker_state.state)
    if safe_point is not None:
        safe_point.leave(worker_state.state())
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
    config.check_rollouts(session.env_info, config.workers * config.envs_per_worker)
    bfloat16 = devices.bfloat16(config.precision, session.env_info)
    backend = vectorize.choose(
        session.env_info.source, config.vectorization, config.envs_per_worker, cores=1
    )
    model = config.model(session.env_info, bfloat16.on)
    config.check_sendable(model)
    shared = SharedModel(model)
    optimizer = SharedRMSprop(shared, config.learning_rate, config.rms_alpha, config.rms_eps)
    normalization = config.normalization(session.env_info, config.workers)
    counters = Counters(config.workers)
    session.open(shared.module, optimizer, normalization)
    if bfloat16.reason:
        session.info(f"precision float32: {bfloat16.reason}")
    # Of several workers no two runs are equal: none is worth stopping for.
    safe_point = SafePoint(session.folder) if config.workers == 1 else None
    arguments = (
        session.env_info,
        backend,
        config,
        shared,
        optimizer,
        normalization,
        counters,
        session.before.steps,
        session.resumed_state,
        safe_point,
    )
    return launch.in_processes(session, counters, work, arguments, config, safe_point)


def main() -> None:
    """The command line: ``python -m hogwild_rl.a3c --help``."""
    train(cli.parse(Config, "a3c", "Asynchronous advantage actor-critic on this machine's cores."))


if __name__ == "__main__":
    cli.run(main)
