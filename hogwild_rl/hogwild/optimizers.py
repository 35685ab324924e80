"""Optimizers over one flat tensor, with statistics in shared memory, for lock-free workers.

Concurrency: every worker updates θ and the statistics without a lock. Updates may be lost or
interleave element by element; single float32 stores are not torn. With more than one worker no two
runs are equal. A learning rate is local to the process that sets it.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import adam

from hogwild_rl.hogwild import shared_memory
from hogwild_rl.hogwild.shared_model import SharedModel


class SharedOptimizer(torch.optim.Optimizer, abc.ABC):
    """Torch optimizer over the flat parameter of a `SharedModel`, with eager, shared state."""

    _rate: Tensor | None = None  # learning rate on the device, for recorded steps

    def __init__(self, model: SharedModel[Any], defaults: dict[str, Any]) -> None:
        if not defaults["lr"] >= 0:
            raise ValueError(f"lr must be at least 0, got {defaults['lr']}")
        super().__init__([model.parameter], defaults)
        if model.parameter.device.type != "cpu":
            self._rate = torch.full((), defaults["lr"], device=model.parameter.device)
        for name, tensor in self._initial_state(model.parameter).items():
            self.state[model.parameter][name] = tensor

    @abc.abstractmethod
    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Statistics before the first step, by torch.optim's names."""

    @abc.abstractmethod
    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Takes one step on the flat parameter and its statistics, in place."""

    @property
    def parameter(self) -> nn.Parameter:
        """Flat shared parameter that the optimizer updates, [P]."""
        parameter: nn.Parameter = self.param_groups[0]["params"][0]
        return parameter

    @property
    def learning_rate(self) -> float:
        """η of the next step in this process; assign to it for a custom schedule."""
        return float(self.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.param_groups[0]["lr"] = value
        if self._rate is not None:
            self._rate.fill_(value)

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors that a step changes: the flat parameter and its statistics."""
        return [self.parameter.detach(), *self.state[self.parameter].values()]

    def apply(self, gradient: Tensor) -> None:
        """Takes one step with this gradient, [P].

        Bypasses torch's wrapper of `step` for the profiler and hooks, which costs as much as the
        step of a small model.
        """
        self._opt_called = True  # checked by torch's schedulers
        group = self.param_groups[0]
        with torch.no_grad():
            self._update_(group["params"][0], gradient, group)

    @torch.no_grad()
    def apply_if_finite(self, gradient: Tensor, max_norm: float = math.inf) -> Tensor:
        """Clips a gradient by its global norm and takes one step, without a host-device sync.

        If the norm is not finite, no parameter and no statistic changes. A CUDA graph of it follows
        `learning_rate`.

        Args:
            gradient: [P]; clipped in place, set to 0 if its norm is not finite.
            max_norm: maximum norm > 0.

        Returns:
            The norm before clipping, [] on the gradient's device; not finite if no step was taken.
        """
        norm: Tensor = gradient.norm()
        finite = norm.isfinite()
        clipped = gradient * (max_norm / norm).clamp(max=1.0)
        gradient.copy_(torch.where(finite, clipped, 0.0))
        before = [tensor.clone() for tensor in self.tensors]
        self._update_(self.parameter, gradient, self.param_groups[0])
        for tensor, unchanged in zip(self.tensors, before, strict=True):
            tensor.copy_(torch.where(finite, tensor, unchanged))
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Takes one step with `parameter.grad`; does nothing if it is None, as in torch."""
        assert closure is None, "shared optimizers do not support closures"
        gradient = self.parameter.grad
        if gradient is not None:
            self._update_(self.parameter, gradient, self.param_groups[0])

    # torch wraps these three so that torch.compile skips them, and the wrapper imports all of
    # torch._dynamo at its first call: 0.9 s in every process with an optimizer. They are never
    # compiled here, so the wrapped functions are called directly.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as in torch."""
        torch.optim.Optimizer.add_param_group.__wrapped__(self, param_group)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """State dict as in torch; its tensors are the shared ones."""
        state: dict[str, Any] = torch.optim.Optimizer.state_dict.__wrapped__(self)  # type: ignore[attr-defined]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copies saved statistics into the shared tensors, so that every worker sees them.

        Raises:
            ValueError: names or shapes differ from this optimizer's; nothing was changed.
        """
        shared = dict(self.state[self.parameter])
        saved = {name: list(t.shape) for name, t in state_dict["state"].get(0, {}).items()}
        expected = {name: list(t.shape) for name, t in shared.items()}
        if saved != expected:
            raise ValueError(f"saved state has {saved}, expected {expected}")
        torch.optim.Optimizer.load_state_dict.__wrapped__(self, state_dict)  # type: ignore[attr-defined]
        for name, tensor in shared.items():
            tensor.copy_(self.state[self.parameter][name])
        self.state[self.parameter] = shared


class SharedRMSprop(SharedOptimizer):
    """RMSprop whose running average is stored in shared memory.

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
        eps_inside_root: True for √(g + ε); False for √g + ε, as in torch.

    Raises:
        ValueError: an argument is out of range.
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
        _check_range(eps, alpha=alpha, momentum=momentum)
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum}
        super().__init__(model, defaults | {"eps_inside_root": eps_inside_root})

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"square_avg": shared_memory.zeros_like(parameter)}
        if self.defaults["momentum"]:
            state["momentum_buffer"] = shared_memory.zeros_like(parameter)
        return state

    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        square_avg, alpha, eps = state["square_avg"], group["alpha"], group["eps"]
        average = square_avg.mul(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        square_avg.copy_(average)
        # Root of the local average: the shared one may already lack this gradient.
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
    """Adam whose moments and step count are stored in shared memory.

        m ← β₁ m + (1 − β₁) Δθ        v ← β₂ v + (1 − β₂) Δθ²        t ← t + 1
        θ ← θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

    The step count t is shared, like the moments that it corrects: with a count per worker, a new
    worker would correct the shared moments as if they were at their first steps.

    Interleaved updates can leave a gradient in m that v lacks; where v is still 0, the step would
    be m / ε. So the quotient is clamped to the bound for m and v of the same gradients
    (`largest_quotient`), which a single worker never exceeds.

    Args:
        model: the shared model to step.
        lr: η ≥ 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε > 0.
        alone: True if no other process updates this model: nothing interleaves, so torch's fused
            step is used, which takes a third of the time on the CPU.

    Raises:
        ValueError: an argument is out of range.

    Source: Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1.
    """

    def __init__(
        self,
        model: SharedModel[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        alone: bool = False,
    ) -> None:
        _check_range(eps, beta1=betas[0], beta2=betas[1])
        super().__init__(model, {"lr": lr, "betas": betas, "eps": eps})
        self._fused = alone

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fused": self._fused}

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        on_cpu = parameter.device.type == "cpu"  # on a device torch's fused step counts in float32
        return {
            "step": shared_memory.zeros(dtype=torch.float64) if on_cpu else parameter.new_zeros(()),
            "exp_avg": shared_memory.zeros_like(parameter),
            "exp_avg_sq": shared_memory.zeros_like(parameter),
        }

    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        beta1, beta2 = group["betas"]
        if self._fused or self._rate is not None:
            statistics: tuple[Any, ...] = (
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
            )
            options: dict[str, Any] = {"amsgrad": False, "maximize": False, "fused": True}
            rate = group["lr"] if self._rate is None else self._rate
            options |= {"lr": rate, "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
            adam.adam([parameter], [gradient], *statistics, weight_decay=0.0, **options)
            return
        step = float(state["step"].add_(1))
        exp_avg = state["exp_avg"].lerp(gradient, 1 - beta1)
        exp_avg_sq = state["exp_avg_sq"].mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg_sq"].copy_(exp_avg_sq)
        state["exp_avg"].copy_(exp_avg)
        # Both bias corrections as one factor of the quotient.
        root_correction = math.sqrt(1 - beta2**step)
        correction = root_correction / (1 - beta1**step)
        quotient = exp_avg.div_(exp_avg_sq.sqrt_().add_(group["eps"] * root_correction))
        largest = largest_quotient(beta1, beta2, step) / correction
        parameter.add_(quotient.clamp_(-largest, largest), alpha=-group["lr"] * correction)


def largest_quotient(beta1: float, beta2: float, step: float) -> float:
    """Upper bound of |m̂| / √v̂ after `step` steps of Adam, for any gradients.

        m̂ = Σ w_i g_i, v̂ = Σ u_i g_i²  ⇒  m̂² ≤ v̂ Σ w_i² / u_i        (Cauchy-Schwarz)

    >>> largest_quotient(0.9, 0.999, 1)
    1.0
    >>> round(largest_quotient(0.9, 0.999, 1_000_000), 1)
    7.3
    """
    if beta1**2 >= beta2:  # the sum is unbounded
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
        ValueError: an argument is out of range.

    Source: Recht et al. 2011 (arXiv:1106.5730), algorithm 1.
    """

    def __init__(self, model: SharedModel[Any], lr: float = 1e-2, momentum: float = 0.0) -> None:
        _check_range(momentum=momentum)
        super().__init__(model, {"lr": lr, "momentum": momentum})

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        if not self.defaults["momentum"]:
            return {}
        return {"momentum_buffer": shared_memory.zeros_like(parameter)}

    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["momentum"]:
            buffer = self.state[parameter]["momentum_buffer"]
            gradient = buffer.mul_(group["momentum"]).add_(gradient)
        if self._rate is None:
            parameter.add_(gradient, alpha=-group["lr"])
        else:
            parameter.addcmul_(gradient, self._rate, value=-1)


def _check_range(eps: float = 1.0, **fractions: float) -> None:
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
