"""DDPG: deep deterministic policy gradient, off-policy, from a replay buffer.

    python -m hogwild_rl.ddpg --env Pendulum-v1
    python -m hogwild_rl.ddpg --env MountainCarContinuous-v0 --noise ou --noise-std 0.5

The critic learns from TD targets with target networks Q' and μ', the actor μ ascends the critic:

    y = r + γ (1 − terminated) Q'(s', μ'(s'))
    critic: min (y − Q(s, a))²        actor: max Q(s, μ(s))         θ' ← (1 − τ) θ' + τ θ

Minibatches are sampled uniformly from the replay buffer; actions are in −1..1 in each dimension.
With `--workers N`, N actor-learners update one critic and one actor without locks, each with
environments and a replay buffer of its own.

Source: Lillicrap et al. 2016 (arXiv:1509.02971), algorithm 1.
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare(idle_threads_sleep=True)

import dataclasses

import torch
from torch import Tensor

from hogwild_rl.collect.replay import Transitions
from hogwild_rl.config import base, cli
from hogwild_rl.config.off_policy import OffPolicyConfig
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.learn import losses, returns
from hogwild_rl.runs.agent import Agent
from hogwild_rl.training import off_policy
from hogwild_rl.training.off_policy import OffPolicyLearner, ReplayCollector
from hogwild_rl.training.task import Task
from hogwild_rl.training.worker import iterations


@base.with_presets("ddpg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OffPolicyConfig):
    """DDPG settings; unset fields come from the environment's preset."""


def update(learner: OffPolicyLearner, batch: Transitions, config: Config) -> float | Tensor:
    """One update with a minibatch; returns the sum of the gradient norms."""
    actor, critics = learner.actor, learner.critics
    with torch.no_grad():
        next_actions = actor.target(batch.next_observations)  # μ'(s')
        (next_values,) = critics.target(batch.next_observations, next_actions)
        targets = returns.td_targets(
            batch.rewards, next_values, batch.terminated, gamma=config.gamma
        )  # y
    q_values = critics.online(batch.observations, batch.actions)
    norm = critics.step(losses.td_loss(q_values, targets))
    actions = actor.online(batch.observations)
    q1 = critics.online.q1(batch.observations, actions)
    norm = norm + actor.step(-q1.mean())
    actor.polyak_update(config.tau)
    critics.polyak_update(config.tau)
    return norm


def actor_learner(worker: Worker, task: Task[Config]) -> None:
    """One worker: steps with exploration noise, and updates from its replay buffer."""
    learner = OffPolicyLearner(worker, task, update)
    collector = ReplayCollector(worker, task, learner)
    for _ in iterations(worker, task, collector):
        collector.collect()  # one step of every environment, into the replay buffer
        for _ in collector.due_updates():
            learner.step(collector.replay)  # a minibatch, and `update` with it


def train(config: Config) -> Agent:
    """Trains for `total_timesteps` and returns the agent; errors: see `off_policy.train`."""
    return off_policy.train("ddpg", config, 1, actor_learner)


def main() -> None:
    """Command line: ``python -m hogwild_rl.ddpg --help``."""
    train(cli.parse(Config, "ddpg", "Deep deterministic policy gradient."))


if __name__ == "__main__":
    cli.run(main)
