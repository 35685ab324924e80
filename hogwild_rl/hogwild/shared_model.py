"""Flat parameter tensor of a module, shared by all workers, and local replicas of it."""

import math
import pickle
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hogwild_rl.hogwild import pickling, shared_memory

M = TypeVar("M", bound=nn.Module)


class SharedModel(Generic[M]):
    """All parameters of a module in one flat float32 tensor in shared memory, or on a device.

    Trainable parameters come first (`parameter`, updated by optimizers), frozen ones after them.
    The parameters of the given module become views of that memory and always show the latest
    updates. Workers receive the SharedModel as an argument of their process and compute with a
    `replica`; a single training process computes with `module` itself.

    Args:
        module: torch module of float32 CPU parameters; tied and frozen ones stay tied and frozen.
        device: device of the flat tensor; processes share it on the CPU only.

    Attributes:
        module: the given module, its parameters now views.
        flat: all parameters, [P].
        parameter: the trainable parameters, [P_trainable].
        gradient: computes the gradient of a loss of `module`.

    Raises:
        ValueError: a parameter is not float32 on the CPU, no parameter is trainable, or the module
            has buffers (running statistics), which a gradient step does not update.
    """

    def __init__(self, module: M, device: torch.device | str = "cpu") -> None:
        _check(module)
        size = sum(p.numel() for p in module.parameters())
        on_cpu = torch.device(device).type == "cpu"
        self.flat = shared_memory.zeros(size) if on_cpu else torch.zeros(size, device=device)
        self.module = module
        trainable = _flatten(module, self.flat)
        self.parameter = nn.Parameter(self.flat[:trainable])
        self.gradient = FlatGradient(module)

    def replica(self) -> "Replica[M]":
        """Local copy for one worker, with the current parameters."""
        return Replica(self.flat, _unpickle_module(_pickle_module(self.module)))

    def __getstate__(self) -> dict[str, Any]:
        # The module is pickled by value, without parameter data: otherwise each parameter would be
        # sent as a shared tensor of its own, with its own file descriptor.
        return {
            "flat": self.flat,
            "parameter": self.parameter,
            "blueprint": _pickle_module(self.module),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.flat = state["flat"]
        self.parameter = state["parameter"]
        self.module = _unpickle_module(state["blueprint"])
        _bind(self.module, self.flat)
        self.gradient = FlatGradient(self.module)


class Replica(Generic[M]):
    """Local copy of a shared model: its parameters are views of one local flat tensor.

    Attributes:
        module: the local module.
        flat: its parameters, [P].
        gradient: computes the gradient of a loss of `module`.
    """

    def __init__(self, shared: Tensor, module: M) -> None:
        self.module = module
        self.flat = shared.clone()
        _bind(module, self.flat)
        self.gradient = FlatGradient(module)
        size = len(self.gradient.flat)
        self._own, self._shared = self.flat[:size], shared[:size]

    def pull(self) -> None:
        """Copies the current trainable parameters; other workers may write them meanwhile."""
        self._own.copy_(self._shared)


class FlatGradient:
    """Gradients of a module in the flat layout of `SharedModel.parameter`.

    Each call computes a new gradient without accumulation: no zero_grad is needed, and no earlier
    gradient can reach the optimizer.

    Attributes:
        flat: the latest gradient, [P_trainable], always the same tensor.
    """

    def __init__(self, module: nn.Module) -> None:
        self._trainable = [p for p in module.parameters() if p.requires_grad]
        size = sum(p.numel() for p in self._trainable)
        self.flat = torch.empty(size, device=self._trainable[0].device)

    def __call__(self, loss: Tensor) -> Tensor:
        """Gradient of a scalar loss, [P_trainable]; 0 for parameters that it does not depend on.

        The next call overwrites it.
        """
        gradients = torch.autograd.grad(loss, self._trainable, materialize_grads=True)
        with torch.no_grad():  # before torch 2.10, materialized gradients require gradients
            return torch.cat(tuple(map(torch.ravel, gradients)), out=self.flat)


def clip_by_global_norm_(gradient: Tensor, max_norm: float) -> float:
    """Scales a flat gradient in place so that its norm is at most `max_norm`.

    Args:
        gradient: [P].
        max_norm: maximum norm > 0; infinity disables clipping.

    Returns:
        Norm before clipping; not finite if any element is not: such a gradient must be dropped.
    """
    norm = float(torch.linalg.vector_norm(gradient))
    if math.isfinite(norm) and norm > max_norm:
        gradient.mul_(max_norm / norm)
    return norm


def _check(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(
                f"parameter {name} must be float32 on the CPU, got {parameter.dtype} on "
                f"{parameter.device}: convert the module with .float().cpu()"
            )
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("the module has no trainable parameter: set requires_grad of at least one")
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        raise ValueError(
            f"the module has buffers ({', '.join(buffers)}), which workers do not share: "
            "use layers without running statistics, such as LayerNorm"
        )


def _flatten(module: nn.Module, flat: Tensor) -> int:
    """Moves the parameters into `flat` as views; returns the number of trainable elements."""
    parameters = _trainable_first(module)
    flat.copy_(torch.cat([p.detach().reshape(-1) for p in parameters]))
    _bind(module, flat)
    return sum(p.numel() for p in parameters if p.requires_grad)


def _bind(module: nn.Module, flat: Tensor) -> None:
    offset = 0
    for parameter in _trainable_first(module):
        parameter.data = flat[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()


def _trainable_first(module: nn.Module) -> list[nn.Parameter]:
    """Every parameter once, tied ones too: trainable first, then frozen."""
    return sorted(module.parameters(), key=lambda p: not p.requires_grad)


def _pickle_module(module: nn.Module) -> bytes:
    """Pickles a module without parameter data: the receiver binds it to a flat tensor."""
    return pickling.dumps(module, {nn.Parameter: _reduce_parameter})


def _reduce_parameter(parameter: nn.Parameter) -> tuple[Any, ...]:
    return _empty_parameter, (tuple(parameter.shape), parameter.requires_grad)


def _empty_parameter(shape: tuple[int, ...], requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=requires_grad)


def _unpickle_module(blueprint: bytes) -> Any:
    return pickle.loads(blueprint)  # noqa: S301  pickled by this process or its parent
