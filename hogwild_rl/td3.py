"""TD3, twin delayed DDPG: clipped double-Q, target policy smoothing, delayed policy updates.

    python -m hogwild_rl.td3 --env Pendulum-v1
    python -m hogwild_rl.td3 --env HalfCheetah-v5 --workers 4

The policy of DDPG exploits the critic's overestimation errors. TD3 has three remedies:

    ã = clip(μ'(s') + clip(ε, −c, c), −1, 1)    ε ~ N(0, σ²)    target policy smoothing
    y = r + γ (1 − terminated) min_i Q'_i(s', ã)                clipped double-Q
    critics: min Σ_i (y − Q_i(s, a))²
    actor: max Q_1(s, μ(s)), and the target networks: every `policy_delay` updates

Actions are in −1..1 in each dimension. With one critic, no smoothing and no delay it equals DDPG
bit for bit.

Source: Fujimoto et al. 2018 (arXiv:1802.09477), algorithm 1.
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare(idle_threads_sleep=True)

import dataclasses

import torch
from torch import Tensor

from hogwild_rl.collect.replay import Transitions
from hogwild_rl.config import base, cli, validation
from hogwild_rl.config.off_policy import OffPolicyConfig
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.learn import losses, returns
from hogwild_rl.runs.agent import Agent
from hogwild_rl.training import off_policy
from hogwild_rl.training.off_policy import OffPolicyLearner, ReplayCollector
from hogwild_rl.training.task import Task
from hogwild_rl.training.worker import iterations


@base.with_presets("td3")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OffPolicyConfig):
    """TD3 settings; unset fields come from the environment's preset."""

    critics: int = 2
    """Number of critics; targets take their minimum."""
    policy_delay: int = 2
    """Critic updates per update of policy and target networks."""
    target_noise: float = 0.2
    """σ of the noise on target actions, in units of half an action's range."""
    target_noise_clip: float = 0.5
    """Bound c of that noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("critics", "policy_delay"):
            validation.at_least(name, getattr(self, name), 1)
        for name in ("target_noise", "target_noise_clip"):
            validation.between(name, getattr(self, name), 0, 1e9)


def update(learner: OffPolicyLearner, batch: Transitions, config: Config) -> float | Tensor:
    """One update with a minibatch; returns the sum of the gradient norms."""
    actor, critics = learner.actor, learner.critics
    with torch.no_grad():
        epsilon = torch.empty_like(batch.actions).normal_(generator=learner.generator)
        c = config.target_noise_clip
        noise = (epsilon * config.target_noise).clamp_(-c, c)
        next_actions = (actor.target(batch.next_observations) + noise).clamp_(-1, 1)  # ã
        next_values = critics.target(batch.next_observations, next_actions)
        targets = returns.td_targets(
            batch.rewards, next_values.amin(0), batch.terminated, gamma=config.gamma
        )  # y
    q_values = critics.online(batch.observations, batch.actions)
    norm = critics.step(losses.td_loss(q_values, targets))
    if learner.updates % config.policy_delay:  # updates counts from 1
        return norm
    actions = actor.online(batch.observations)
    q1 = critics.online.q1(batch.observations, actions)
    norm = norm + actor.step(-q1.mean())
    actor.polyak_update(config.tau)
    critics.polyak_update(config.tau)
    return norm


def actor_learner(worker: Worker, task: Task[Config]) -> None:
    """One worker: steps with exploration noise, and updates from its replay buffer."""
    learner = OffPolicyLearner(worker, task, update, task.config.policy_delay)
    collector = ReplayCollector(worker, task, learner)
    for _ in iterations(worker, task, collector):
        collector.collect()  # one step of every environment, into the replay buffer
        for _ in collector.due_updates():
            learner.step(collector.replay)  # a minibatch, and `update` with it


def train(config: Config) -> Agent:
    """Trains for `total_timesteps` and returns the agent; errors: see `off_policy.train`."""
    return off_policy.train("td3", config, config.critics, actor_learner)


def main() -> None:
    """Command line: ``python -m hogwild_rl.td3 --help``."""
    train(cli.parse(Config, "td3", "Twin delayed deep deterministic policy gradient."))


if __name__ == "__main__":
    cli.run(main)
