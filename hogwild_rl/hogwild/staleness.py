"""Stale gradients: corrections, and steps that are delayed on purpose.

A worker computes a gradient Δθ with parameters θ_p that it has pulled. Until its step, other
workers change the shared parameters to θ; their number of updates is the delay τ of the gradient.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hogwild_rl.hogwild.optimizers import SharedOptimizer

Correction: TypeAlias = Literal[
    "ignore",
    "compensate",
    "late-pull",
    "v-trace",
    "delay-adaptive",
    "inverse",
    "drop",
    "accumulate",
]


def compensated(
    gradient: Tensor, moved: Tensor, mean_square: Tensor, strength: float, eps: float
) -> Tensor:
    """Estimate of the gradient at θ from that at θ_p, [P].

        Δθ' = Δθ + λ Δθ² / √(g + ε) ⊙ (θ − θ_p)

    The Hessian of the first-order Taylor expansion is approximated by the diagonal of the outer
    product Δθ Δθᵀ.

    Args:
        gradient: Δθ, [P].
        moved: θ − θ_p, [P].
        mean_square: running average g of Δθ², [P].
        strength: λ ≥ 0.
        eps: ε > 0.

    Source: Zheng et al. 2017 (arXiv:1609.08326), equation 10, with the adaptive λ of section 6.
    """
    scaled = (mean_square + eps).rsqrt_().mul_(gradient).mul_(gradient)
    return torch.addcmul(gradient, scaled, moved, value=strength)


def delay_adaptive(delay: int, workers: int) -> float:
    """Factor N / max(N, τ) of the learning rate: smaller only for delays above the usual one.

    >>> delay_adaptive(3, 4), delay_adaptive(16, 4)
    (1.0, 0.25)

    Source: Mishchenko et al. 2022 (arXiv:2206.07638), Koloskova et al. 2022 (arXiv:2206.08307).
    """
    return workers / max(workers, delay)


def inverse(delay: int) -> float:
    """Factor 1 / (1 + τ) of the learning rate.

    >>> inverse(0), inverse(3)
    (1.0, 0.25)

    Source: Zhang et al. 2016 (arXiv:1511.05950), section 3.
    """
    return 1 / (1 + delay)


class _Gradient(NamedTuple):
    gradient: Tensor
    pulled: Tensor
    updates_at_pull: int


class StaleSteps:
    """Steps of one worker with corrected, dropped, accumulated or delayed gradients.

    Args:
        optimizer: shared optimizer.
        pulled: θ_p, parameters that the gradients are computed with, [P]; always the same tensor.
        total_updates: function that returns the number of updates of all workers.
        dropped: function that is called for each gradient that is dropped.
        workers: number N of workers.
        correction: see the functions above. late-pull and v-trace change the gradient, not the
            step (`learn.importance`). drop: gradients with a delay above `bound` are not
            applied (Ringmaster ASGD, Maranjyan et al. 2025, arXiv:2501.16168). accumulate: the mean
            of `count` gradients is one step (after Rennala SGD, Tyurin and Richtárik 2023).
        strength, bound, count: λ of compensate, bound of drop, number of accumulate.
        artificial_delay: each gradient is applied this number of own gradients later.
    """

    def __init__(
        self,
        optimizer: SharedOptimizer,
        pulled: Tensor,
        total_updates: Callable[[], int],
        dropped: Callable[[], None],
        *,
        workers: int = 1,
        correction: Correction = "ignore",
        strength: float = 2.0,
        bound: int = 0,
        count: int = 1,
        artificial_delay: int = 0,
    ) -> None:
        self._optimizer, self._pulled, self._total_updates = optimizer, pulled, total_updates
        self._dropped, self._workers, self._correction = dropped, workers, correction
        self._strength, self._bound, self._count = strength, bound, count
        self._delay, self._waiting = artificial_delay, deque[_Gradient]()
        self._sum, self._summed = torch.zeros_like(pulled), 0

    def apply(self, gradient: Tensor, updates_at_pull: int) -> int | None:
        """Takes the steps that are due after a gradient, [P].

        Args:
            gradient: gradient with the pulled parameters; it is copied if it has to wait.
            updates_at_pull: updates of all workers when they were pulled.

        Returns:
            `updates_at_pull` of the gradient that was applied, or None if there was none.
        """
        due = _Gradient(gradient, self._pulled, updates_at_pull)
        if self._delay:
            self._waiting.append(_Gradient(gradient.clone(), self._pulled.clone(), updates_at_pull))
            if len(self._waiting) <= self._delay:
                return None
            due = self._waiting.popleft()
        delay = self._total_updates() - due.updates_at_pull
        rate = self._optimizer.learning_rate
        if self._correction == "drop" and delay > self._bound:
            self._dropped()
            return None
        if self._correction == "accumulate":
            self._sum += due.gradient
            self._summed += 1
            if self._summed < self._count:
                return None
            due = due._replace(gradient=self._sum / self._summed)
            self._sum.zero_()
            self._summed = 0
        elif self._correction == "compensate":
            due = due._replace(gradient=self._compensated(due))
        elif self._correction == "delay-adaptive":
            self._optimizer.learning_rate = rate * delay_adaptive(delay, self._workers)
        elif self._correction == "inverse":
            self._optimizer.learning_rate = rate * inverse(delay)
        self._optimizer.apply(due.gradient)
        self._optimizer.learning_rate = rate
        return due.updates_at_pull

    def _compensated(self, due: _Gradient) -> Tensor:
        group: dict[str, Any] = self._optimizer.param_groups[0]
        state = self._optimizer.state[self._optimizer.parameter]
        mean_square = state["square_avg"] if "square_avg" in state else state["exp_avg_sq"]
        moved = self._optimizer.parameter.detach() - due.pulled
        return compensated(due.gradient, moved, mean_square, self._strength, group["eps"])
