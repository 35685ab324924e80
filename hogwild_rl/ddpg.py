"""DDPG: a deterministic policy that climbs what a critic thinks, from a replay of the past.

    python -m hogwild_rl.ddpg --env Pendulum-v1
    python -m hogwild_rl.ddpg --env MountainCarContinuous-v0 --noise ou --noise-std 0.5

The critic learns what an action is worth from what it paid and what is thought of the state it led
to; the policy learns the action of which the critic thinks most:

    y = r + γ (1 − terminated) Q'(s', μ'(s'))
    critic: min (y − Q(s, a))²        policy: max Q(s, μ(s))

Q' and μ' are slow copies, θ' ← (1 − τ) θ' + τ θ, or the critic would chase its own tail. A batch is
drawn from all that was lived through. With `--workers N` as many actor-learners update one critic
and one policy without a lock, each with environments and a replay of its own.

Source: Lillicrap et al. 2016 (arXiv:1509.02971), algorithm 1.
"""

import os
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before training starts needs no words
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")  # torch's threads wait, but not for ever

import dataclasses
import os
import signal

import torch
from torch import Tensor

from hogwild_rl.collect.replay import Transitions
from hogwild_rl.config import base, cli
from hogwild_rl.config.off_policy import OffPolicyConfig
from hogwild_rl.learn import losses, returns
from hogwild_rl.runs.agent import Agent
from hogwild_rl.training import off_policy
from hogwild_rl.training.learner import Learner


@base.with_presets("ddpg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OffPolicyConfig):
    """Settings of DDPG. What is not given comes from the environment's preset."""


def update(learner: Learner, batch: Transitions, config: Config) -> bool | Tensor:
    """One update with a batch. False where a gradient was not finite, and its step not taken."""
    actor, critics = learner.actor, learner.critics
    with torch.no_grad():
        next_actions = actor.target(batch.next_observations)
        (next_values,) = critics.target(batch.next_observations, next_actions)
        targets = returns.td_targets(
            batch.rewards, next_values, batch.terminated, gamma=config.gamma
        )
    values = critics.online(batch.observations, batch.actions)
    taken = critics.step(losses.td_loss(values, targets))
    actions = actor.online(batch.observations)
    worth = critics.online.q1(batch.observations, actions)
    taken = actor.step(-worth.mean()) & taken
    actor.polyak_update(config.tau)
    critics.polyak_update(config.tau)
    return taken


def train(config: Config) -> Agent:
    """Trains until `total_timesteps`, and returns the agent; see `replaying.train`."""
    return off_policy.train("ddpg", config, critics=1, update=update)


def main() -> None:
    """The command line: ``python -m hogwild_rl.ddpg --help``."""
    train(cli.parse(Config, "ddpg", "A deterministic policy, from a replay."))


if __name__ == "__main__":
    cli.run(main)
