"""Importance weights of actions that an older policy has selected."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.learn import returns
from hogwild_rl.learn.losses import PolicyLoss, a2c_loss
from hogwild_rl.learn.samples import evaluate
from hogwild_rl.models.actor_critic import ActorCritic


@dataclasses.dataclass(frozen=True)
class ActedRollout(Rollout):
    """Rollout with the log-probabilities of its actions at acting time.

    Attributes:
        log_probs: log π_p(a_t|s_t) of the policy that acted, [T, B].
    """

    log_probs: Tensor

    @classmethod
    def of(cls, model: ActorCritic, rollout: Rollout) -> "ActedRollout":
        """A rollout, which shares its memory, and its log-probabilities by the current model."""
        log_probs, _ = evaluate(model, rollout)
        return cls(**vars(rollout), log_probs=log_probs)


def weighted_actor_critic_loss(
    model: ActorCritic, rollout: ActedRollout, config: Any
) -> PolicyLoss:
    """Actor-critic loss of a model that is newer than the one that acted.

        ρ_t = min(1, π(a_t|s_t) / π_p(a_t|s_t))
        L = mean(−ρ_t A_t log π(a_t|s_t)) + c_v mean((v_t − V(s_t))²) − β mean(H(π(·|s_t)))

    late-pull takes A_t of GAE and v_t = A_t + V(s_t). v-trace also weights their sums by ρ_t, see
    `returns.v_trace`. Without the weights the policy gradient would be biased.

    Args:
        model: network of policy and value function.
        rollout: rollout of T steps, [T, B].
        config: settings with staleness, gamma, gae_lambda, vf_coef and ent_coef.

    Source: Espeholt et al. 2018 (arXiv:1802.01561), section 4.
    """
    policy, values = model(rollout.observations, rollout.state, rollout.valid)
    log_probs = policy.log_prob(rollout.actions)
    weights = (log_probs.detach() - rollout.log_probs).exp().clamp(max=1)
    traces = weights if config.staleness == "v-trace" else torch.ones_like(weights)
    advantages, targets = returns.v_trace(
        *(rollout.rewards, values.detach(), rollout.terminated, rollout.truncated, rollout.valid),
        traces,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    terms = (log_probs, policy.entropy(), values[:-1], weights * advantages, targets, rollout.valid)
    return a2c_loss(*terms, vf_coef=config.vf_coef, ent_coef=config.ent_coef)
