"""Loss functions. Means are over valid transitions only."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.learn import returns
from hogwild_rl.learn.samples import Samples
from hogwild_rl.models.actor_critic import ActorCritic

EPSILON = 1e-8  # added to the standard deviation of advantages


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Terms of a loss, each a scalar, and their weighted sum `total`.

    `values`, `targets` and `valid`, [T, B], are those of the value loss. `kl`, a scalar, estimates
    KL(π_old || π) of PPO, and `clipped` is the fraction of clipped ratios; NaN in other losses.
    """

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    values: Tensor
    targets: Tensor
    valid: Tensor
    kl: Tensor | float = math.nan
    clipped: Tensor | float = math.nan

    def gauges(self) -> list[float]:
        """Policy and value loss, entropy, explained variance, KL and clip fraction, for the log."""
        explained = explained_variance(self.values, self.targets, self.valid)
        terms = (self.policy, self.value, self.entropy, explained)
        return [*(float(term.detach()) for term in terms), float(self.kl), float(self.clipped)]


def mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid entries, a scalar; 0 if there are none."""
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
) -> PolicyLoss:
    """Advantage actor-critic loss.

        L = mean(−A_t log π(a_t|s_t)) + c_v mean((R_t − V(s_t))²) − β mean(H(π(·|s_t)))

    Mnih et al. sum over the rollout. The mean makes the step size independent of its length.

    Args:
        log_probs: log π(a_t|s_t), [T, B], with gradient.
        entropies: H(π(·|s_t)) in nats, [T, B], with gradient.
        values: V(s_t) of the T rows, [T, B], with gradient.
        advantages: A_t, [T, B], without gradient.
        targets: R_t, [T, B], without gradient.
        valid: [T, B] bool; other entries are ignored.
        vf_coef: value loss coefficient c_v ≥ 0.
        ent_coef: entropy coefficient β ≥ 0.

    Source: Mnih et al. 2016 (arXiv:1602.01783), section 4 and algorithm S3.
    """
    policy = -mean(advantages * log_probs, valid)
    value = mean((targets - values).square(), valid)
    entropy = mean(entropies, valid)
    total = policy + vf_coef * value - ent_coef * entropy
    return PolicyLoss(total, policy, value, entropy, values, targets, valid)


@torch.no_grad()
def explained_variance(values: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Explained variance 1 − Var(R − V) / Var(R) of the valid entries, a scalar.

    1 is a perfect value function, 0 is no better than the mean of the targets.

    Args:
        values: V(s_t), [T, B].
        targets: R_t, [T, B].
        valid: [T, B] bool.
    """
    errors = targets - values
    variances = [mean((each - mean(each, valid)).square(), valid) for each in (errors, targets)]
    return 1 - variances[0] / variances[1]


def reinforce_loss(log_probs: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """REINFORCE loss; its gradient is the negative policy gradient estimate.

        L = −1/B Σ_b Σ_t w_t log π(a_t|s_t)

    The sum is over the steps of an episode, the mean over episodes. A mean over steps would weight
    the steps of an episode by the lengths of the others and bias the estimate.

    Args:
        log_probs: log π(a_t|s_t), [T, B], with gradient.
        weights: w_t, return minus baseline, [T, B], without gradient.
        valid: [T, B] bool, False after the end of an episode.

    Source: Williams 1992, equation 4; with the return-to-go: Sutton et al. 2000, theorem 1.
    """
    return -torch.where(valid, weights * log_probs, 0.0).sum(0).mean()


def td_loss(values: Tensor, targets: Tensor) -> Tensor:
    """TD loss: sum of the mean squared errors of N critics, Σ_i mean((y − Q_i(s, a))²).

    Args:
        values: Q_i(s, a), [N, B], with gradient.
        targets: y, [B], without gradient.

    Source: Fujimoto et al. 2018 (arXiv:1802.09477), algorithm 1.
    """
    return (values - targets).square().mean(1).sum()


def ppo_loss(model: ActorCritic, samples: Samples, config: Any) -> PolicyLoss:
    """Loss of PPO with a clipped surrogate objective.

        r_t = π(a_t|s_t) / π_old(a_t|s_t)
        L = −mean(min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t)) + c_v mean(v_t) − β mean(H(π(·|s_t)))
        v_t = (R_t − V(s_t))², or with ε_v the larger of it and
              (R_t − clip(V(s_t), V_old(s_t) − ε_v, V_old(s_t) + ε_v))²

    π_old are the probabilities at acting time. A concurrent update of another worker changes r_t
    like one of this worker's own: both are corrected, and limited to 1 ± ε.

    Args:
        model: network of policy and value function.
        samples: minibatch of N transitions, [1, N] or, with an LSTM, [T, b].
        config: settings with clip_range ε, clip_value_range ε_v or 0, normalize_advantages,
            vf_coef c_v and ent_coef β.

    Source: Schulman et al. 2017 (arXiv:1707.06347), equations 7 and 9; numbered details: Huang et
    al. 2022, The 37 Implementation Details of Proximal Policy Optimization.
    """
    policy, values = model(samples.observations, samples.state, samples.valid)
    valid, advantages, targets = samples.valid, samples.advantages, samples.targets
    if config.normalize_advantages:  # detail 7: per minibatch
        centered = advantages - mean(advantages, valid)
        advantages = centered / (mean(centered.square(), valid).sqrt() + EPSILON)
    log_ratios = policy.log_prob(samples.actions) - samples.log_probs
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - config.clip_range, 1 + config.clip_range)  # detail 8
    surrogate = torch.minimum(ratios * advantages, clipped * advantages)
    errors = (targets - values).square()
    if config.clip_value_range:  # detail 9
        near = samples.values + (values - samples.values).clamp(
            -config.clip_value_range, config.clip_value_range
        )
        errors = torch.maximum(errors, (targets - near).square())
    losses = -mean(surrogate, valid), mean(errors, valid), mean(policy.entropy(), valid)
    total = losses[0] + config.vf_coef * losses[1] - config.ent_coef * losses[2]  # detail 10
    with torch.no_grad():  # detail 12: an estimate of low variance (Schulman 2020)
        kl = mean(ratios - 1 - log_ratios, valid)
        fraction = mean((ratios != clipped).float(), valid)
    return PolicyLoss(total, *losses, values, targets, valid, kl, fraction)


def actor_critic_loss(model: ActorCritic, rollout: Rollout, config: Any) -> PolicyLoss:
    """Actor-critic loss of one rollout, with one batched forward pass over all rows.

    Args:
        model: network of policy and value function.
        rollout: rollout of T steps, [T, B].
        config: settings with gamma, gae_lambda, vf_coef and ent_coef.
    """
    policy, values = model(rollout.observations, rollout.state, rollout.valid)
    flags = (rollout.terminated, rollout.truncated, rollout.valid)
    discounts = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
    advantages = returns.generalized_advantages(
        rollout.rewards, values.detach(), *flags, **discounts
    )
    values = values[:-1]
    targets = advantages + values.detach()
    log_probs, entropies = policy.log_prob(rollout.actions), policy.entropy()
    terms = (log_probs, entropies, values, advantages, targets, rollout.valid)
    return a2c_loss(*terms, vf_coef=config.vf_coef, ent_coef=config.ent_coef)
