"""What the gradient is taken of. Means are over valid transitions only."""

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.learn import returns


@dataclasses.dataclass(frozen=True)
class ActorCriticLoss:
    """The parts of an actor-critic loss, each a scalar, and their weighted sum."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor


def mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the valid entries, a scalar; 0 where there is none."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def a2c_loss(
    log_probs: Tensor,
    entropies: Tensor,
    values: Tensor,
    advantages: Tensor,
    targets: Tensor,
    valid: Tensor,
    *,
    vf_coef: float,
    ent_coef: float,
) -> ActorCriticLoss:
    """The advantage actor-critic loss.

        L = mean(−A_t log π(a_t|s_t)) + c_v mean((R_t − V(s_t))²) − β mean(H(π(·|s_t)))

    Mnih et al. sum over the rollout where this takes the mean, so that a step size does not depend
    on the rollout's length.

    Args:
        log_probs: log π(a_t|s_t), [T, B], with gradient.
        entropies: H(π(·|s_t)) in nats, [T, B], with gradient.
        values: V(s_t) of the T rows, [T, B], with gradient.
        advantages: A_t, [T, B], without gradient.
        targets: R_t, [T, B], without gradient.
        valid: [T, B] bool; the other entries do not count.
        vf_coef: c_v ≥ 0.
        ent_coef: β ≥ 0.

    Source: Mnih et al. 2016 (arXiv:1602.01783), section 4 and algorithm S3.
    """
    policy = -mean(advantages * log_probs, valid)
    value = mean((targets - values).square(), valid)
    entropy = mean(entropies, valid)
    return ActorCriticLoss(policy + vf_coef * value - ent_coef * entropy, policy, value, entropy)


def reinforce_loss(log_probs: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """What REINFORCE minimises: its gradient is minus the policy gradient's estimate.

        L = −1/B Σ_b Σ_t w_t log π(a_t|s_t)

    Summed over an episode and averaged over episodes: a mean over steps would weigh an episode's
    steps by the lengths of the others, and the estimate would be biased.

    Args:
        log_probs: log π(a_t|s_t), [T, B], with gradient.
        weights: w_t, returns less baselines, [T, B], without gradient.
        valid: [T, B] bool, False after an episode's end.

    Source: Williams 1992, equation 4; with the return to go: Sutton et al. 2000, theorem 1.
    """
    return -torch.where(valid, weights * log_probs, 0.0).sum(0).mean()


def td_loss(values: Tensor, targets: Tensor) -> Tensor:
    """What critics minimise, each on its own: Σ_i mean((y − Q_i(s, a))²).

    Args:
        values: Q_i(s, a), [N, B], with gradient.
        targets: y, [B], without gradient.

    Source: Fujimoto et al. 2018 (arXiv:1802.09477), algorithm 1.
    """
    return (values - targets).square().mean(1).sum()


class ActorCritic(Protocol):
    """A policy and a value function in one."""

    def __call__(self, observations: Tensor, state: Tensor, valid: Tensor) -> tuple[Any, Tensor]:
        """The policy over [T, B] and values [T+1, B] of a rollout."""


class Objective(Protocol):
    """What weighs the parts of a loss; any settings with these names."""

    @property
    def gamma(self) -> float:
        """Discount γ."""

    @property
    def gae_lambda(self) -> float:
        """λ."""

    @property
    def vf_coef(self) -> float:
        """c_v."""

    @property
    def ent_coef(self) -> float:
        """β."""


def actor_critic_loss(model: ActorCritic, rollout: Rollout, objective: Objective) -> Tensor:
    """The actor-critic loss of one rollout, with one batched forward over all its rows."""
    policy, values = model(rollout.observations, rollout.state, rollout.valid)
    advantages = returns.generalized_advantages(
        rollout.rewards,
        values.detach(),
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma=objective.gamma,
        gae_lambda=objective.gae_lambda,
    )
    return a2c_loss(
        policy.log_prob(rollout.actions),
        policy.entropy(),
        values[:-1],
        advantages,
        advantages + values[:-1].detach(),
        rollout.valid,
        vf_coef=objective.vf_coef,
        ent_coef=objective.ent_coef,
    ).total
