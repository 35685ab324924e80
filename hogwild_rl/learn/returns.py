"""Advantages and returns over a rollout."""

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantage estimates (GAE) of the taken actions.

        δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
        A_t = δ_t + γ λ (1 − ended_t) A_{t+1}            ended = terminated or truncated

    λ = 1 is the n-step advantage of A3C, λ = 0 the one-step TD error. The critic's targets are
    ``advantages + values[:-1]``. At a truncated step, V(s_{t+1}) is the value of the final
    observation. It is in the next row, as the reset step comes after it and is not valid.

    Args:
        rewards: r_t, [T, B].
        values: V(s_t) for t = 0..T, [T+1, B], without gradient.
        terminated: [T, B] bool, the environment reached an absorbing state.
        truncated: [T, B] bool, a time limit cut the episode.
        valid: [T, B] bool, False where the step only reset the environment.
        gamma: discount γ in [0, 1].
        gae_lambda: λ in [0, 1].

    Returns:
        A_t, [T, B], without gradient; 0 where not valid.

    Raises:
        ValueError: the shapes do not agree.

    >>> r, no = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    >>> generalized_advantages(r, torch.zeros(3, 1), no, no, ~no, gamma=0.5, gae_lambda=1.0).T
    tensor([[1.5000, 1.0000]])

    Source: Schulman et al. 2016 (arXiv:1506.02438), section 3; r_t is the reward that follows a_t.
    """
    T, B = rewards.shape
    shapes = (terminated.shape, truncated.shape, valid.shape)
    if values.shape != (T + 1, B) or shapes != ((T, B),) * 3:
        raise ValueError(
            f"rewards are [{T}, {B}], so values must be [{T + 1}, {B}] and flags [{T}, {B}], got "
            f"{list(values.shape)} and {[list(shape) for shape in shapes]}"
        )
    targets = torch.where(terminated, rewards, rewards + gamma * values[1:])
    deltas = torch.where(valid, targets - values[:-1], 0.0)
    return _accumulate_(deltas, gamma * gae_lambda * (valid & ~(terminated | truncated)))


def v_trace(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    weights: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """V-trace: advantages and critic's targets from the actions of another policy.

        D_t = ρ_t δ_t + γ λ (1 − ended_t) ρ_t D_{t+1}            δ_t as in `generalized_advantages`
        A_t = δ_t + γ λ (1 − ended_t) D_{t+1}        v_t = V(s_t) + D_t

    With λ = 1 it is the published one, A_t = r_t + γ v_{t+1} − V(s_t), to be multiplied by ρ_t in
    the policy gradient. If every ρ_t is 1, A_t = D_t is the generalized advantage estimate.

    Args:
        rewards, values, terminated, truncated, valid, gamma, gae_lambda: see
            `generalized_advantages`.
        weights: importance weights ρ_t = c_t = min(1, π(a_t|s_t) / π_p(a_t|s_t)), [T, B], without
            gradient.

    Returns:
        A_t and v_t, [T, B] each, without gradient.

    Source: Espeholt et al. 2018 (arXiv:1802.01561), equation 1 and remark 1, with λ as in remark 2.
    """
    flags = (terminated, truncated, valid)
    deltas = generalized_advantages(rewards, values, *flags, gamma=gamma, gae_lambda=0.0)
    carries = gamma * gae_lambda * (valid & ~(terminated | truncated))
    weights = torch.where(valid, weights, 0.0)  # they may be NaN elsewhere
    sums = _accumulate_(weights * deltas, weights * carries)
    deltas[:-1].addcmul_(carries[:-1], sums[1:])
    return deltas, values[:-1] + sums


def _accumulate_(terms: Tensor, factors: Tensor) -> Tensor:
    """x_t ← x_t + f_t x_{t+1} in place, from the last row to the first, [T, B]."""
    rows, carried = terms.unbind(), factors.unbind()
    for t in reversed(range(len(rows) - 1)):
        rows[t].addcmul_(carried[t], rows[t + 1])
    return terms


def td_targets(rewards: Tensor, next_values: Tensor, terminated: Tensor, *, gamma: float) -> Tensor:
    """One-step TD targets.

        y = r + γ (1 − terminated) v(s')

    Args:
        rewards: r, [N].
        next_values: v(s'), [N].
        terminated: [N] bool; False at a time limit, where the target bootstraps.
        gamma: discount γ in [0, 1].

    Returns:
        y, [N].

    >>> ended = torch.tensor([False, True])
    >>> td_targets(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 4.0]), ended, gamma=0.5)
    tensor([3., 1.])
    """
    return rewards + gamma * next_values.masked_fill(terminated, 0.0)


def returns_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted returns-to-go: returns from each step to the end of its episode.

        R_t = r_t + γ R_{t+1}

    Args:
        rewards: r_t of whole episodes, one per column, 0 after its end, [T, B].
        gamma: discount γ in [0, 1].

    Returns:
        R_t, [T, B].

    >>> returns_to_go(torch.tensor([[1.0], [2.0], [4.0]]), gamma=0.5).T
    tensor([[3., 4., 4.]])
    """
    returns = rewards.clone()
    for t in reversed(range(len(rewards) - 1)):
        returns[t] += gamma * returns[t + 1]
    return returns


def total_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted return of the whole episode, Σ γ^t r_t, repeated at each step, [T, B].

    >>> total_returns(torch.tensor([[1.0], [2.0], [4.0]]), gamma=0.5).T
    tensor([[3., 3., 3.]])
    """
    return returns_to_go(rewards, gamma)[0].expand_as(rewards)


def mean_of_others(returns: Tensor) -> Tensor:
    """Leave-one-out baseline: mean return of the other episodes at the same step, [T, B].

    A mean that includes the episode's own return would depend on the action that it is used for.

    >>> mean_of_others(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[4.0000, 3.5000, 1.5000]])
    """
    B = returns.shape[1]
    return (returns.sum(1, keepdim=True) - returns) / max(B - 1, 1)
