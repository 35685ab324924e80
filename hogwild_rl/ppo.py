"""PPO: proximal policy optimization, in one process or by N lock-free workers.

    python -m hogwild_rl.ppo --env CartPole-v1
    python -m hogwild_rl.ppo --env CartPole-v1 --workers 4

    T steps of B environments with actions from π_old = π(·|s; θ)             collect
    log π_old(a_t|s_t), V_old(s_t), A_t, R_t                                  samples
    K epochs of M shuffled minibatches:  θ ← θ − η Adam(clip(∇L(θ)))          step

    L(θ) = mean(−min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t) + c_v (R_t − V(s_t))² − β H(π(·|s_t)))
    r_t = π(a_t|s_t; θ) / π_old(a_t|s_t)

With `--workers N` each worker does this with its own environments and a copy θ' of the shared θ,
which it updates without a lock and pulls before each minibatch. Updates of other workers change
r_t like its own, and are limited in the same way. One worker equals one process bit for bit.

Source: Schulman et al. 2017 (arXiv:1707.06347), algorithm 1. "Detail n" in the code refers to Huang
et al. 2022, The 37 Implementation Details of Proximal Policy Optimization.
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare(idle_threads_sleep=True)

import dataclasses

from hogwild_rl.config import base, cli, resources
from hogwild_rl.config.ppo import PPOConfig
from hogwild_rl.envs import vectorize
from hogwild_rl.hogwild.processes import Worker, prepare_process
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn.losses import ppo_loss
from hogwild_rl.learn.samples import Minibatches, Samples
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.runs.state import TrainState
from hogwild_rl.training import devices, launch
from hogwild_rl.training.collector import Collector
from hogwild_rl.training.distributed import Ranks
from hogwild_rl.training.learner import Learner
from hogwild_rl.training.task import Task
from hogwild_rl.training.worker import iterations


@base.with_presets("ppo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PPOConfig):
    """PPO settings; unset fields come from the environment's preset."""


def learn(worker: Worker, task: Task[Config]) -> None:
    """The training loop of one worker, or of the only process."""
    config = task.config
    learner = Learner(worker, task, ppo_loss, replica=config.workers > 0)
    collector = Collector(worker, task, learner)
    minibatches = Minibatches(config.minibatches, collector.permutation)
    for progress in iterations(worker, task, collector):
        learner.pull()  # θ' ← θ
        rollout = collector.collect()  # [T, B] steps with π_old
        if collector.source.nonfinite_envs:
            learner.drop()
            continue
        samples = Samples.of(learner.model, rollout, config)  # log π_old, A_t, R_t
        for _ in range(config.epochs):
            for minibatch in minibatches.epoch(samples):
                learner.pull()
                learner.step(minibatch, progress)  # θ ← θ − η Adam(clip(∇L(θ'))), no lock
            if config.target_kl and float(learner.loss_of(minibatch).kl) > config.target_kl:
                break
        learner.log(minibatch)


def train(config: Config) -> Agent:
    """Trains for `total_timesteps` and returns the agent.

    Raises:
        UserError: invalid setting, environment or folder; nothing was changed.
        RunFailedError: workers or environments kept failing; a checkpoint was written.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint was written.
    """
    workers, size = max(1, config.workers), config.envs_of_worker
    if config.workers:  # on the CPU
        config = dataclasses.replace(config, device="cpu")
        resources.check_workers(workers)
    else:
        prepare_process()
    run = Run("ppo", config)
    config.check_rollouts(run.env, workers * size)
    cores = 1 if config.workers else base.usable_cores()
    backend = vectorize.choose(run.env.source, config.vectorization, size, cores)
    network, device, precision = devices.place(config, run.env, Ranks())
    if config.workers:
        config.check_sendable(network)
    elif backend.name == "async":
        resources.check_environments(size)
    with (
        devices.enough_memory(f"{size} environments and n_steps {config.n_steps}"),
        devices.limit_threads(network, size, on_gpu=device.is_gpu),
    ):
        model = SharedModel(network, device.device)
        optimizer = config.shared_optimizer(model, alone=workers == 1)
        state = TrainState(model, optimizer, config.normalization(run.env, workers), workers)
        run.open(state)
        run.info(f"device {device.device}: {device.reason}")
        run.info(f"vectorization {backend.name}: {backend.reason}")
        precision.report(run.info)
        how = {"cores": cores, "compiled": config.compiles(device.device)}
        task = Task.of(run, backend, state, group_size=size, **how)
        start = launch.in_processes if config.workers else launch.in_this_process
        return start(run, learn, task)


def main() -> None:
    """Command line: ``python -m hogwild_rl.ppo --help``."""
    train(cli.parse(Config, "ppo", "Proximal policy optimization, batched or lock-free."))


if __name__ == "__main__":
    cli.run(main)
