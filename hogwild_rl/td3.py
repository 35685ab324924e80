"""TD3: DDPG with two critics, smoothed targets and a policy that takes its time.

    python -m hogwild_rl.td3 --env Pendulum-v1
    python -m hogwild_rl.td3 --env HalfCheetah-v5 --workers 4

A policy that climbs what a critic thinks finds every error in the critic's favour. Three remedies:

    ã = clip(μ'(s') + clip(ε, −c, c), −1, 1)    ε ~ N(0, σ²)    like actions are worth alike
    y = r + γ (1 − terminated) min_i Q'_i(s', ã)                 of two critics the gloomier one
    critics: min Σ_i (y − Q_i(s, a))²        policy: max Q_1(s, μ(s))    at every `policy_delay`-th
                                                                        update, as are the copies

With one critic, no smoothing and no delay it is DDPG, bit for bit.

Source: Fujimoto et al. 2018 (arXiv:1802.09477), algorithm 1.
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
from hogwild_rl.config import base, cli, validation
from hogwild_rl.config.off_policy import OffPolicyConfig
from hogwild_rl.learn import losses, returns
from hogwild_rl.runs.agent import Agent
from hogwild_rl.training import off_policy
from hogwild_rl.training.learner import Learner


@base.with_presets("td3")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OffPolicyConfig):
    """Settings of TD3. What is not given comes from the environment's preset."""

    critics: int = 2
    """Estimates of Q, of which the least counts."""
    policy_delay: int = 2
    """Updates of the critics for each of the policy and of the slow copies."""
    target_noise: float = 0.2
    """σ of the noise on the target's actions, where half an action's range is 1."""
    target_noise_clip: float = 0.5
    """Bound c of that noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("critics", "policy_delay"):
            validation.at_least(name, getattr(self, name), 1)
        for name in ("target_noise", "target_noise_clip"):
            validation.between(name, getattr(self, name), 0, 1e9)


def update(learner: Learner, batch: Transitions, config: Config) -> bool | Tensor:
    """One update with a batch. False where a gradient was not finite, and its step not taken."""
    actor, critics = learner.actor, learner.critics
    with torch.no_grad():
        drawn = torch.empty_like(batch.actions).normal_(generator=learner.generator)
        noise = (drawn * config.target_noise).clamp_(
            -config.target_noise_clip, config.target_noise_clip
        )
        next_actions = actor.target(batch.next_observations) + noise
        next_values = critics.target(batch.next_observations, next_actions.clamp_(-1, 1))
        targets = returns.td_targets(
            batch.rewards, next_values.amin(0), batch.terminated, gamma=config.gamma
        )
    values = critics.online(batch.observations, batch.actions)
    taken = critics.step(losses.td_loss(values, targets))
    if learner.updates % config.policy_delay:
        return taken
    actions = actor.online(batch.observations)
    worth = critics.online.q1(batch.observations, actions)
    taken = actor.step(-worth.mean()) & taken
    actor.polyak_update(config.tau)
    critics.polyak_update(config.tau)
    return taken


def train(config: Config) -> Agent:
    """Trains until `total_timesteps`, and returns the agent; see `replaying.train`."""
    return off_policy.train("td3", config, config.critics, update, config.policy_delay)


def main() -> None:
    """The command line: ``python -m hogwild_rl.td3 --help``."""
    train(cli.parse(Config, "td3", "DDPG with twin critics, smoothed targets and a slower policy."))


if __name__ == "__main__":
    cli.run(main)
