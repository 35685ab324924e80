"""A3C: asynchronous advantage actor-critic, N processes that update one model without a lock.

    python -m hogwild_rl.a3c --workers 16
    python -m hogwild_rl.a3c --env LunarLander-v3 --total-timesteps 3_000_000

Every worker copies the shared parameters, plays `n_steps` steps of its environments with them,
takes the gradient of its own loss, and steps the shared parameters with it, whatever the others do
meanwhile.

Source: Mnih et al. 2016 (arXiv:1602.01783), algorithm S3; lock-free: Recht et al. 2011.
"""

import signal

from hogwild_rl.hogwild import workers

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before training starts needs no words
    workers.preload(
        "hogwild_rl.runs.session"
    )  # the workers' import of torch runs beside ours, below

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from hogwild_rl.envs import vector
from hogwild_rl.hogwild.model import SharedModel, clip_by_global_norm_
from hogwild_rl.hogwild.optim import SharedRMSprop
from hogwild_rl.hogwild.slots import Slots
from hogwild_rl.hogwild.worker import Worker
from hogwild_rl.learning import losses, returns
from hogwild_rl.learning.rollout import Collector, Rollout
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.runs import cli, settings
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.session import Session

_OBSERVE_EVERY_S = 0.05
_STOP_TIMEOUT_S = 10.0


@settings.completed("a3c")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.RunSettings):
    """Settings of A3C. What is not given comes from the environment's preset."""

    workers: int = dataclasses.field(default_factory=settings.usable_cores)
    """Worker processes; by default one per usable core."""
    envs_per_worker: int = 1
    """Environments each worker steps together; 1 is the paper's A3C."""
    n_steps: int = 16
    """Steps of each environment between updates."""
    learning_rate: float = 1e-3
    """Step size η at the start."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: η falls to 0 at total_timesteps."""
    gamma: float = 0.99
    """Discount γ."""
    gae_lambda: float = 0.95
    """λ of generalized advantage estimation; 1 is the paper's n-step return."""
    reward_scale: float = 1.0
    """Factor on rewards in the loss; reported returns are as the environment pays them."""
    ent_coef: float = 0.01
    """Weight β of the policy's entropy."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global norm."""
    rms_alpha: float = 0.99
    """Decay α of RMSprop's running average."""
    rms_eps: float = 1e-5
    """ε of RMSprop, inside the root."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""
    shared_trunk: bool = False
    """One body under policy and value, instead of one for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "envs_per_worker", "n_steps"):
            settings.at_least(name, getattr(self, name), 1)
        for name in ("gamma", "gae_lambda"):
            settings.between(name, getattr(self, name), 0, 1)
        for name in ("ent_coef", "vf_coef"):
            settings.between(name, getattr(self, name), 0, 1e9)
        for name in ("learning_rate", "reward_scale", "max_grad_norm", "rms_eps"):
            settings.above(name, getattr(self, name), 0)
        settings.between("rms_alpha", self.rms_alpha, 0, 0.999_999)
        for size in self.hidden:
            settings.at_least("hidden", size, 1)


def loss(model: ActorCritic, rollout: Rollout, config: Config) -> Tensor:
    """The actor-critic loss of one rollout, with one batched forward over all its rows."""
    policy, values = model(rollout.observations)
    advantages = returns.generalized_advantages(
        rollout.rewards * config.reward_scale,
        values.detach(),
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    return losses.actor_critic(
        policy.log_prob(rollout.actions),
        policy.entropy(),
        values[:-1],
        advantages,
        advantages + values[:-1].detach(),
        rollout.valid,
        vf_coef=config.vf_coef,
        ent_coef=config.ent_coef,
    ).total


def work(
    worker: Worker,
    source: vector.EnvSource,
    config: Config,
    shared: SharedModel[ActorCritic],
    optimizer: SharedRMSprop,
    slots: Slots,
    steps_before: int,
) -> None:
    """One worker's life: pull, act, learn, step, until the steps of all add up to the total."""
    env_seed, action_seed = worker.random_seeds(2)
    generator = torch.Generator().manual_seed(action_seed)
    local, slot = shared.replica(), slots.writer(worker.index)
    envs = vector.make_vector_env(source, config.envs_per_worker)
    collector = Collector(envs, config.n_steps, env_seed, generator, slot.lap)
    while not worker.stopping:
        progress = (steps_before + slots.total("steps")) / config.total_timesteps
        if progress >= 1:
            break
        updates_at_pull = slot.total_updates()
        local.pull()
        slot.lap("share")
        rollout = collector.collect(local.module)
        slot.add_rollout(collector.steps, collector.episodes)
        gradient = local.gradient(loss(local.module, rollout, config))
        norm = clip_by_global_norm_(gradient, config.max_grad_norm)
        slot.lap("learn")
        if math.isfinite(norm):
            optimizer.learning_rate = learning_rate(config, progress)
            optimizer.apply(gradient)
            slot.add_update(updates_at_pull)
        else:
            slot.add_dropped()
        slot.lap("share")
    envs.close()


def learning_rate(config: Config, progress: float) -> float:
    """η after a share of the run in [0, 1), by the progress of all workers together."""
    return config.learning_rate * (1 - progress if config.lr_schedule == "linear" else 1)


def train(config: Config) -> Agent:
    """Trains until `total_timesteps`, and returns the agent.

    Raises:
        UserError: a setting, the environment or the folder cannot be used; nothing was changed.
        WorkersFailedError: a worker failed; the others were stopped and a checkpoint was written.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, likewise.
    """
    session = Session("a3c", config)
    model = ActorCritic(
        session.facts.observation_space,
        session.facts.action_space,
        Architecture(config.hidden, config.activation, config.shared_trunk),
        torch.Generator().manual_seed(config.seed),
    )
    shared = SharedModel(model)
    optimizer = SharedRMSprop(shared, config.learning_rate, config.rms_alpha, config.rms_eps)
    slots = Slots(config.workers)
    session.open(shared.module, optimizer)
    arguments = (session.facts.source, config, shared, optimizer, slots, session.before.steps)
    crew = workers.Workers(work, arguments, config.workers, config.seed, session.before.lives)
    failures: list[workers.Failure] = []
    with session.interruptible():
        try:
            with crew:
                while crew.running and not failures and not session.ending:
                    failures = crew.wait(_OBSERVE_EVERY_S)
                    session.observe(slots)
                failures += crew.stop(_STOP_TIMEOUT_S)
        finally:
            agent = session.close(slots, failed=bool(failures))
    if failures:
        raise cli.WorkersFailedError("\n".join(map(str, failures)))
    return agent


def main() -> None:
    """The command line: ``python -m hogwild_rl.a3c --help``."""
    train(cli.parse(Config, "a3c", "Asynchronous advantage actor-critic on this machine's cores."))


if __name__ == "__main__":
    cli.run(main)
