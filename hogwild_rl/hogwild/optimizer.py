"""What the shared optimizers have in common: a torch optimizer over one flat tensor."""

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hogwild_rl.hogwild.model import SharedModel


class SharedOptimizer(torch.optim.Optimizer, abc.ABC):
    """A torch optimizer over the flat parameter of a `SharedModel`, with eager, shared state."""

    _rate: Tensor | None = None  # on a device: where a recorded step reads its learning rate

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
        """The statistics before the first step, by torch.optim's names."""

    @abc.abstractmethod
    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """One step on the flat parameter and its statistics, in place."""

    @property
    def parameter(self) -> nn.Parameter:
        """The flat shared parameter that is stepped, [P]."""
        parameter: nn.Parameter = self.param_groups[0]["params"][0]
        return parameter

    @property
    def learning_rate(self) -> float:
        """η of the next step in this process; assign to follow a schedule of your own."""
        return float(self.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.param_groups[0]["lr"] = value
        if self._rate is not None:
            self._rate.fill_(value)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that a step changes: the flat parameter and its statistics."""
        return [self.parameter.detach(), *self.state[self.parameter].values()]

    def apply(self, gradient: Tensor) -> None:
        """Takes one step with this gradient, [P], handed over explicitly.

        It goes round the wrapper that torch puts about `step` for its profiler and hooks, which
        costs as much as the step of a small model.
        """
        self._opt_called = True  # what torch's schedulers look for
        with torch.no_grad():
            self._update_(self.parameter, gradient, self.param_groups[0])

    @torch.no_grad()
    def apply_if_finite(self, gradient: Tensor, max_norm: float = math.inf) -> Tensor:
        """Clips a gradient by its global norm and takes one step, without a read by the host.

        Where the norm is not finite, no parameter and no statistic changes. In a CUDA graph
        SharedRMSprop follows `learning_rate`; other optimizers keep the rate of the recording.

        Args:
            gradient: [P]; clipped in place, and 0 where its norm is not finite.
            max_norm: > 0.

        Returns:
            Whether the step was taken: bool [], on the gradient's device.
        """
        norm = gradient.norm()
        finite: Tensor = norm.isfinite()
        clipped = gradient * (max_norm / norm).clamp(max=1.0)
        gradient.copy_(torch.where(finite, clipped, 0.0))
        before = [tensor.clone() for tensor in self.tensors]
        self._update_(self.parameter, gradient, self.param_groups[0])
        for tensor, unchanged in zip(self.tensors, before, strict=True):
            tensor.copy_(torch.where(finite, tensor, unchanged))
        return finite

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Takes one step with `parameter.grad`; without one it does nothing, as in torch."""
        assert closure is None, "closures re-evaluate the loss, which shared optimizers never do"
        gradient = self.parameter.grad
        if gradient is not None:
            self._update_(self.parameter, gradient, self.param_groups[0])

    # torch wraps these three so that torch.compile passes them by, and the wrapper imports all of
    # torch._dynamo at its first call: 0.9 s in every process that makes an optimizer. They are
    # never compiled here, so the functions inside are called directly.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        torch.optim.Optimizer.add_param_group.__wrapped__(self, param_group)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """As in torch; the tensors in it are the shared ones."""
        state: dict[str, Any] = torch.optim.Optimizer.state_dict.__wrapped__(self)  # type: ignore[attr-defined]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copies saved statistics into the shared ones, so that every worker sees them.

        Raises:
            ValueError: they are of another optimizer; nothing was changed.
        """
        shared = dict(self.state[self.parameter])
        saved = {name: list(t.shape) for name, t in state_dict["state"].get(0, {}).items()}
        wanted = {name: list(t.shape) for name, t in shared.items()}
        if saved != wanted:
            raise ValueError(f"saved state has {saved}, wanted {wanted}")
        torch.optim.Optimizer.load_state_dict.__wrapped__(self, state_dict)  # type: ignore[attr-defined]
        for name, tensor in shared.items():
            tensor.copy_(self.state[self.parameter][name])
        self.state[self.parameter] = shared
