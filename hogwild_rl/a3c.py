"""A3C: asynchronous advantage actor-critic; N processes update one shared model without locks.

    python -m hogwild_rl.a3c --workers 16
    python -m hogwild_rl.a3c --env LunarLander-v3 --total-timesteps 3_000_000

Each actor-learner repeats, until all of them together have taken `total_timesteps` steps:

    θ' ← θ                                                       pull
    T steps of B environments with actions from π(·|s; θ')       collect
    θ ← θ − η RMSprop(clip(∇L(θ')))                              step, lock-free

    L(θ') = mean(−A_t log π(a_t|s_t) + c_v (R_t − V(s_t))² − β H(π(·|s_t)))

R_t is the n-step return, A_t = R_t − V(s_t); with gae_lambda < 1, those of GAE (`learn.returns`).

Source: Mnih et al. 2016 (arXiv:1602.01783), algorithm S3; lock-free updates: Recht et al. 2011.
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare(fork_server=True)  # it imports torch while this process does

import dataclasses
from typing import Literal

from hogwild_rl.config import base, cli, resources
from hogwild_rl.config.policy import LockFreeConfig
from hogwild_rl.envs import vectorize
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn.losses import actor_critic_loss
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.runs.state import TrainState
from hogwild_rl.training import devices, launch
from hogwild_rl.training.collector import Collector
from hogwild_rl.training.learner import Learner
from hogwild_rl.training.task import Task
from hogwild_rl.training.worker import iterations


@base.with_presets("a3c")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LockFreeConfig, base.HogwildConfig):
    """A3C settings; unset fields come from the environment's preset."""

    vectorization: Literal["auto", "native", "sync", "envpool"] = "auto"
    """Backend of the environments: native, sync or envpool."""


def actor_learner(worker: Worker, task: Task[Config]) -> None:
    """One actor-learner process of algorithm S3."""
    learner = Learner(worker, task, actor_critic_loss, replica=True)
    collector = Collector(worker, task, learner)
    for progress in iterations(worker, task, collector):
        learner.pull()  # θ' ← θ
        rollout = collector.collect()  # [T, B] steps with π(·|s; θ')
        learner.step(rollout, progress)  # θ ← θ − η RMSprop(clip(∇L(θ'))), no lock


def train(config: Config) -> Agent:
    """Trains for `total_timesteps` and returns the agent.

    Raises:
        UserError: invalid setting, environment or folder; nothing was changed.
        RunFailedError: workers kept failing; a checkpoint was written.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint was written.
    """
    run = Run("a3c", config)  # checks everything, writes nothing
    resources.check_workers(config.workers)
    config.check_rollouts(run.env, config.workers * config.envs_per_worker)
    precision = devices.bfloat16(config.precision, run.env)
    size = config.envs_per_worker
    backend = vectorize.choose(run.env.source, config.vectorization, size, cores=1)
    network = config.model(run.env, precision.on)
    config.check_sendable(network)
    model = SharedModel(network)  # one flat tensor in shared memory
    optimizer = config.shared_optimizer(model)
    moments = config.normalization(run.env, config.workers)
    state = TrainState(model, optimizer, moments, workers=config.workers)
    run.open(state)  # folder, log, resumed checkpoint
    precision.report(run.info)
    return launch.in_processes(run, actor_learner, Task.of(run, backend, state, group_size=size))


def main() -> None:
    """Command line: ``python -m hogwild_rl.a3c --help``."""
    train(cli.parse(Config, "a3c", "Asynchronous advantage actor-critic on CPU cores."))


if __name__ == "__main__":
    cli.run(main)
