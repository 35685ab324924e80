"""Samples of PPO: a rollout with the values of its acting time, in shuffled minibatches."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.learn import returns
from hogwild_rl.models.actor_critic import ActorCritic

_AT_ONCE = 2**13  # transitions that are evaluated at once, to bound the memory of image networks


@dataclasses.dataclass(frozen=True)
class Samples:
    """Transitions of a rollout, as N columns [1, N]; with an LSTM, B environments [T, B].

    Attributes:
        observations: s_t, [T, N, *O].
        state: recurrent state before row 0, [2, N, H].
        actions: a_t, [T, N, *A].
        valid: [T, N] bool.
        log_probs: log π_old(a_t|s_t) at acting time, [T, N].
        values: V_old(s_t) at acting time, [T, N].
        advantages, targets: A_t and R_t = A_t + V_old(s_t), [T, N].
    """

    observations: Tensor
    state: Tensor
    actions: Tensor
    valid: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: ActorCritic, rollout: Rollout, config: Any) -> "Samples":
        """Samples of a rollout [T, B], of which `model` has selected the actions.

        Args:
            model: network of policy and value function.
            rollout: the rollout; the samples share its memory.
            config: settings with gamma and gae_lambda.
        """
        log_probs, values = evaluate(model, rollout)
        flags = (rollout.terminated, rollout.truncated, rollout.valid)
        discounts = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
        advantages = returns.generalized_advantages(rollout.rewards, values, *flags, **discounts)
        samples = cls(
            observations=rollout.observations[:-1],
            state=rollout.state,
            actions=rollout.actions,
            valid=rollout.valid,
            log_probs=log_probs,
            values=values[:-1],
            advantages=advantages,
            targets=advantages + values[:-1],
        )
        if model.state_size:
            return samples
        rows = {n: t.reshape(1, -1, *t.shape[2:]) for n, t in vars(samples).items() if n != "state"}
        return cls(**rows, state=rollout.state.new_zeros(2, rollout.valid.numel(), 0))


@torch.no_grad()
def evaluate(model: ActorCritic, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the actions, [T, B], and values, [T+1, B], without gradient."""
    T, B = rollout.valid.shape
    rows = T if model.state_size else max(1, _AT_ONCE // B)
    log_probs, values = [], []
    for t in range(0, T, rows):
        end = min(t + rows, T)
        observations = rollout.observations[t : end + (end == T)]
        policy, values_of_rows = model(observations, rollout.state, rollout.valid[t:end])
        log_probs.append(policy.log_prob(rollout.actions[t:end]))
        values.append(values_of_rows)
    return torch.cat(log_probs), torch.cat(values)


class Minibatches:
    """Shuffled minibatches of samples, all of one shape and in the same buffers.

    Args:
        count: minibatches per epoch; it divides the number of columns.
        permutation: function that returns a random permutation of 0..n-1, [n] int64.
    """

    def __init__(self, count: int, permutation: Callable[[int], Tensor]) -> None:
        self._count, self._permutation = count, permutation
        self._buffers: dict[str, Tensor] = {}

    def epoch(self, samples: Samples) -> Iterator[Samples]:
        """Yields minibatches with each column once; the next one overwrites the last."""
        count, device = samples.valid.shape[1], samples.valid.device
        single = self._count == 1  # the order makes no difference
        columns = torch.arange(count, device=device) if single else self._permutation(count)
        for chosen in columns.view(self._count, -1):
            for name, tensor in vars(samples).items():
                if name not in self._buffers:
                    self._buffers[name] = tensor.index_select(1, chosen)
                torch.index_select(tensor, 1, chosen, out=self._buffers[name])
            yield Samples(**self._buffers)
