"""A2C: synchronous advantage actor-critic; one vector environment, one batched update, CPU or GPU.

    python -m hogwild_rl.a2c --env CartPole-v1
    python -m hogwild_rl.a2c --env LunarLander-v3 --num-envs 64 --device auto
    torchrun --standalone --nproc-per-node 2 -m hogwild_rl.a2c --env CartPole-v1

    T steps of B environments with actions from π(·|s; θ)        collect
    θ ← θ − η RMSprop(clip(∇L(θ)))                               step, one for all environments

L is the loss of A3C, and A2C is A3C without `pull`: with one worker the two are equal bit for bit.

Source: Mnih et al. 2016 (arXiv:1602.01783), synchronous: Wu et al. 2017 (arXiv:1708.05144),
section 5.
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare(idle_threads_sleep=True)

import dataclasses
from typing import Literal

from hogwild_rl.config import base, cli, resources, validation
from hogwild_rl.config.policy import ActorCriticConfig
from hogwild_rl.envs import vectorize
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.processes import Worker, prepare_process
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn.losses import actor_critic_loss
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.runs.state import TrainState
from hogwild_rl.training import devices, launch
from hogwild_rl.training.collector import Collector
from hogwild_rl.training.distributed import Ranks
from hogwild_rl.training.learner import Learner
from hogwild_rl.training.task import Task
from hogwild_rl.training.worker import iterations

_GROUPS_FROM = 32  # environments


@base.with_presets("a2c")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig, base.DeviceConfig):
    """A2C settings; unset fields come from the environment's preset."""

    num_envs: int = 16
    """Environments stepped as one batch, over all ranks."""
    env_groups: Literal["auto"] | int = "auto"
    """2: one half acts while the other half steps; auto: 2 on a GPU for 32 or more environments
    that step in threads or processes, else 1."""
    vectorization: vectorize.Vectorization = "auto"
    """Backend of the environments: native, sync, async (a process each) or envpool."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.at_least("num_envs", self.num_envs, 1)
        if self.env_groups == "auto":
            return
        validation.at_least("env_groups", self.env_groups, 1)
        if self.num_envs % self.env_groups:
            raise UserError(
                f"num_envs must be a multiple of env_groups, got {self.num_envs} and "
                f"{self.env_groups}"
            )


def learn(worker: Worker, task: Task[Config]) -> None:
    """The training loop, for the environments of this rank (process of torchrun)."""
    learner = Learner(worker, task, actor_critic_loss)
    collector = Collector(worker, task, learner)
    for progress in iterations(worker, task, collector):
        rollout = collector.collect()  # [T, B] steps with π(·|s; θ)
        learner.step(rollout, progress)  # θ ← θ − η RMSprop(clip(∇L(θ))), averaged over ranks


def number_of_groups(config: Config, ranks: Ranks, overlapping: bool) -> int:
    """Groups of this rank's environments; auto: 2 if one steps while a GPU acts for the other."""
    if config.env_groups != "auto":
        return config.env_groups
    even = config.num_envs % (2 * ranks.count) == 0
    return 2 if overlapping and even and config.num_envs >= _GROUPS_FROM else 1


def train(config: Config) -> Agent:
    """Trains for `total_timesteps` and returns the agent.

    On the CPU it lets this thread flush denormals, and the process keeps memory that it frees.

    Raises:
        UserError: invalid setting, environment or folder; nothing was changed.
        RunFailedError: environment processes kept failing; a checkpoint was written.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint was written.
    """
    prepare_process()
    ranks = Ranks.here()  # torchrun's, or this process alone
    run = Run("a2c", config, reports=ranks.index == 0)
    cores, share = base.usable_cores(), ranks.share("num_envs", config.num_envs)
    network, device, precision = devices.place(config, run.env, ranks)
    together = share // number_of_groups(config, ranks, overlapping=False)
    backend = vectorize.choose(run.env.source, config.vectorization, together, cores)
    overlapping = device.is_gpu and vectorize.steps_asynchronously(run.env.source, backend)
    groups = number_of_groups(config, ranks, overlapping)
    size = ranks.share("num_envs / env_groups", config.num_envs // groups)
    config.check_rollouts(run.env, share)
    if backend.name == "async":
        resources.check_environments(share)
    with (
        devices.enough_memory(f"num_envs {config.num_envs} and n_steps {config.n_steps}"),
        devices.limit_threads(network, config.num_envs, on_gpu=device.is_gpu),
        ranks.joined(device.device),
    ):
        model = SharedModel(network, device.device)
        optimizer = config.shared_optimizer(model)
        moments = config.normalization(run.env, ranks.count)
        state = TrainState(model, optimizer, moments, workers=1)
        run.open(state)
        run.info(f"device {device.device}: {device.reason}")
        run.info(f"vectorization {backend.name}: {backend.reason}")
        precision.report(run.info)
        how = {"group_size": size, "groups": groups, "cores": cores, "ranks": ranks}
        task = Task.of(run, backend, state, compiled=config.compiles(device.device), **how)
        return launch.in_this_process(run, learn, task)


def main() -> None:
    """Command line: ``python -m hogwild_rl.a2c --help``."""
    train(cli.parse(Config, "a2c", "Synchronous advantage actor-critic, batched on one device."))


if __name__ == "__main__":
    cli.run(main)
