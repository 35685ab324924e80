"""Optimizers whose statistics live in shared memory beside the parameters, for lock-free workers.

Concurrency: every worker updates θ and the statistics without a lock. Updates may be lost or
interleave element by element; single float32 stores are not torn. With more than one worker no two
runs are equal. A learning rate belongs to the process that sets it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import adam

from hogwild_rl.hogwild import memory
from hogwild_rl.hogwild.model import SharedModel
from hogwild_rl.hogwild.optimizer import SharedOptimizer


class SharedRMSprop(SharedOptimizer):
    """RMSprop whose running average lives in shared memory.

        g ← α g + (1 − α) Δθ²
        θ ← θ − η Δθ / √(g + ε)         with momentum μ:  m ← μ m + Δθ / √(g + ε),  θ ← θ − η m

    ε stands inside the root as in Mnih et al. 2016 (arXiv:1602.01783), "Shared RMSProp";
    torch.optim.RMSprop adds it outside, so an equal ε is not an equal step.

    Args:
        model: the shared model to step.
        lr: η ≥ 0.
        alpha: α in [0, 1).
        eps: ε > 0.
        momentum: μ in [0, 1); 0 keeps no momentum buffer.
        eps_inside_root: False gives √g + ε, torch's form.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        model: SharedModel[Any],
        lr: float = 7e-4,
        alpha: float = 0.99,
        eps: float = 0.1,
        momentum: float = 0.0,
        eps_inside_root: bool = True,
    ) -> None:
        _check_range(alpha=alpha, momentum=momentum)
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "eps_inside_root": eps_inside_root,
        }
        super().__init__(model, defaults)

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"square_avg": memory.zeros_like(parameter)}
        if self.defaults["momentum"]:
            state["momentum_buffer"] = memory.zeros_like(parameter)
        return state

    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        square_avg, alpha, eps = state["square_avg"], group["alpha"], group["eps"]
        average = square_avg.mul(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        square_avg.copy_(average)
        # The root is of our own average: the shared one may by now lack this very gradient.
        root = average.add_(eps).sqrt_() if group["eps_inside_root"] else average.sqrt_().add_(eps)
        if self._rate is None and not group["momentum"]:
            parameter.addcdiv_(gradient, root, value=-group["lr"])
            return
        step = gradient / root
        if group["momentum"]:
            step = state["momentum_buffer"].mul_(group["momentum"]).add_(step)
        if self._rate is None:
            parameter.add_(step, alpha=-group["lr"])
        else:
            parameter.addcmul_(step, self._rate, value=-1)


class SharedAdam(SharedOptimizer):
    """Adam whose moments and step count live in shared memory.

        m ← β₁ m + (1 − β₁) Δθ        v ← β₂ v + (1 − β₂) Δθ²        t ← t + 1
        θ ← θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

    The count t is shared with the moments it corrects: a count of a worker's own would correct the
    moments of all as if they were as young as that worker.

    Workers that interleave can leave an m with a gradient in it that v lacks, and where v is 0 so
    far that would be a step of m / ε. So the quotient is held to what no m and v of the same
    gradients exceed, at which a single worker never arrives: see `largest_quotient`.

    Args:
        model: the shared model to step.
        lr: η ≥ 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε > 0.
        alone: no other process updates this model, so nothing interleaves: torch's fused step is
            used, which takes a third of the time on the CPU.

    Raises:
        ValueError: a number is out of its range.

    Source: Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1.
    """

    _fused = False  # what was sent to another process is not alone

    def __init__(
        self,
        model: SharedModel[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        alone: bool = False,
    ) -> None:
        _check_range(beta1=betas[0], beta2=betas[1])
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        super().__init__(model, {"lr": lr, "betas": betas, "eps": eps})
        self._fused = alone

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        on_cpu = parameter.device.type == "cpu"  # elsewhere torch's fused step counts in float32
        return {
            "step": memory.zeros(dtype=torch.float64) if on_cpu else parameter.new_zeros(()),
            "exp_avg": memory.zeros_like(parameter),
            "exp_avg_sq": memory.zeros_like(parameter),
        }

    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        beta1, beta2 = group["betas"]
        if self._fused:
            adam.adam(
                [parameter],
                [gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )
            return
        step = float(state["step"].add_(1))
        exp_avg = state["exp_avg"].lerp(gradient, 1 - beta1)
        exp_avg_sq = state["exp_avg_sq"].mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg_sq"].copy_(exp_avg_sq)
        state["exp_avg"].copy_(exp_avg)
        # Both corrections are one factor of the quotient.
        root_correction = math.sqrt(1 - beta2**step)
        correction = root_correction / (1 - beta1**step)
        quotient = exp_avg.div_(exp_avg_sq.sqrt_().add_(group["eps"] * root_correction))
        largest = largest_quotient(beta1, beta2, step) / correction
        parameter.add_(quotient.clamp_(-largest, largest), alpha=-group["lr"] * correction)


def largest_quotient(beta1: float, beta2: float, step: float) -> float:
    """The most that |m̂| / √v̂ can be after so many steps of Adam, whatever the gradients.

        m̂ = Σ w_i g_i, v̂ = Σ u_i g_i²  ⇒  m̂² ≤ v̂ Σ w_i² / u_i        by Cauchy and Schwarz

    >>> largest_quotient(0.9, 0.999, 1)
    1.0
    >>> round(largest_quotient(0.9, 0.999, 1_000_000), 1)
    7.3
    """
    if beta1**2 >= beta2:  # the sum may grow without end
        return 1.0 if step == 1 else math.inf
    ratio = beta1**2 / beta2
    weights = ((1 - beta1) / (1 - beta1**step)) ** 2 * (1 - beta2**step) / (1 - beta2)
    return math.sqrt(weights * (1 - ratio**step) / (1 - ratio))


class SharedSGD(SharedOptimizer):
    """Stochastic gradient descent on shared parameters, the algorithm of the Hogwild paper.

        θ ← θ − η Δθ                            with momentum μ:  m ← μ m + Δθ,  θ ← θ − η m

    Args:
        model: the shared model to step.
        lr: η ≥ 0.
        momentum: μ in [0, 1); 0 keeps no momentum buffer.

    Raises:
        ValueError: a number is out of its range.

    Source: Recht et al. 2011 (arXiv:1106.5730), algorithm 1.
    """

    def __init__(self, model: SharedModel[Any], lr: float = 1e-2, momentum: float = 0.0) -> None:
        _check_range(momentum=momentum)
        super().__init__(model, {"lr": lr, "momentum": momentum})

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return (
            {"momentum_buffer": memory.zeros_like(parameter)} if self.defaults["momentum"] else {}
        )

    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["momentum"]:
            gradient = (
                self.state[parameter]["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
            )
        parameter.add_(gradient, alpha=-group["lr"])


def _check_range(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
