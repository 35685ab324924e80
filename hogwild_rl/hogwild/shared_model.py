"""A module's parameters as one flat tensor: shared by all workers, and copied by each."""

import copyreg
import io
import math
import pickle
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hogwild_rl.hogwild import shared_memory

M = TypeVar("M", bound=nn.Module)


class SharedModel(Generic[M]):
    """Every parameter of a module in one flat float32 tensor in shared memory, or on a device.

    Trainable parameters come first (`parameter`, what optimizers step), frozen ones after them. The
    module given becomes a view of that memory, so reading it always shows what the workers wrote.
    Workers receive the SharedModel as an argument of their process and compute with a `replica`;
    where a single process trains, it computes with `module` itself.

    Args:
        module: any torch module of float32 CPU parameters; tied and frozen ones are kept so.
        device: where the flat tensor lies; processes share it on the CPU only.

    Attributes:
        module: the module given, its parameters now views.
        flat: all of them, [P].
        parameter: the trainable ones, [P_trainable].
        gradient: gives the gradient of a loss computed with `module`.

    Raises:
        ValueError: a parameter is not float32 on the CPU, there is none that can be trained, or
            the module has buffers (running statistics), which have no place in a gradient step.
    """

    def __init__(self, module: M, device: torch.device | str = "cpu") -> None:
        _check(module)
        size = sum(p.numel() for p in module.parameters())
        on_cpu = torch.device(device).type == "cpu"
        self.flat = shared_memory.zeros(size) if on_cpu else torch.zeros(size, device=device)
        self.module = module
        trainable = _lay_out(module, self.flat)
        self.parameter = nn.Parameter(self.flat[:trainable])
        self.gradient = FlatGradient(module)

    def replica(self) -> "Replica[M]":
        """A local copy for one worker, holding the parameters of this moment."""
        return Replica(self.flat, _thaw(_freeze(self.module)))

    def __getstate__(self) -> dict[str, Any]:
        # The blueprint travels by value: as a live module, every parameter would travel as a shared
        # tensor of its own, with a file descriptor each.
        return {
            "flat": self.flat,
            "parameter": self.parameter,
            "blueprint": _freeze(self.module),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.flat = state["flat"]
        self.parameter = state["parameter"]
        self.module = _thaw(state["blueprint"])
        _bind(self.module, self.flat)
        self.gradient = FlatGradient(self.module)


class Replica(Generic[M]):
    """One worker's own copy of a shared model: its parameters are views of one local flat tensor.

    Attributes:
        module: the local module, to compute with.
        flat: its parameters, [P].
        gradient: gives the gradient of a loss computed with `module`.
    """

    def __init__(self, shared: Tensor, module: M) -> None:
        self.module = module
        self.flat = torch.empty_like(shared)
        self._shared = shared
        _bind(module, self.flat)
        self.pull()
        self.gradient = FlatGradient(module)

    def pull(self) -> None:
        """Copies the shared parameters as they are now; other workers may be writing meanwhile."""
        self.flat.copy_(self._shared)


class FlatGradient:
    """Gradients of a module in the flat layout of `SharedModel.parameter`.

    Each is computed anew and returned, never accumulated: nothing has to be zeroed, and nothing of
    an earlier update can reach the optimizer.

    Attributes:
        flat: the newest gradient, [P_trainable], always the same tensor.
    """

    def __init__(self, module: nn.Module) -> None:
        self._trainable = [p for p in module.parameters() if p.requires_grad]
        size = sum(p.numel() for p in self._trainable)
        self.flat = torch.empty(size, device=self._trainable[0].device)

    def __call__(self, loss: Tensor) -> Tensor:
        """The gradient of a scalar: [P_trainable], 0 where it does not reach.

        The next call overwrites it.
        """
        gradients = torch.autograd.grad(loss, self._trainable, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in gradients], out=self.flat)


def clip_by_global_norm_(gradient: Tensor, max_norm: float) -> float:
    """Scales a flat gradient down, in place, so that its norm is at most `max_norm`.

    Args:
        gradient: [P].
        max_norm: > 0; infinity leaves the gradient as it is.

    Returns:
        The norm before clipping. Not finite if any element is not: such a gradient must be dropped.
    """
    norm = float(gradient.norm())
    if math.isfinite(norm) and norm > max_norm:
        gradient.mul_(max_norm / norm)
    return norm


def _check(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(
                f"parameter {name} is {parameter.dtype} on {parameter.device}: shared ones are "
                "float32 on the CPU, so convert the module with .float().cpu()"
            )
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("the module has no parameter that requires a gradient")
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        raise ValueError(
            f"the module has buffers ({', '.join(buffers)}), which each worker would change apart: "
            "use layers without running statistics, such as LayerNorm"
        )


def _lay_out(module: nn.Module, flat: Tensor) -> int:
    """Moves the parameters into `flat`, as views; returns how many can be trained."""
    parameters = _in_order(module)
    flat.copy_(torch.cat([p.detach().reshape(-1) for p in parameters]))
    _bind(module, flat)
    return sum(p.numel() for p in parameters if p.requires_grad)


def _bind(module: nn.Module, flat: Tensor) -> None:
    offset = 0
    for parameter in _in_order(module):
        parameter.data = flat[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()


def _in_order(module: nn.Module) -> list[nn.Parameter]:
    """Each parameter once, tied ones too: the trainable first, then the frozen."""
    return sorted(module.parameters(), key=lambda p: not p.requires_grad)


def _freeze(module: nn.Module) -> bytes:
    """The module by value. Parameter data is left out: it is bound to a flat tensor on arrival."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=5)
    pickler.dispatch_table = {**copyreg.dispatch_table, nn.Parameter: _blueprint}
    pickler.dump(module)
    return stream.getvalue()


def _blueprint(parameter: nn.Parameter) -> tuple[Any, ...]:
    return _empty_parameter, (tuple(parameter.shape), parameter.requires_grad)


def _empty_parameter(shape: tuple[int, ...], requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=requires_grad)


def _thaw(blueprint: bytes) -> Any:
    return pickle.loads(blueprint)  # noqa: S301  made by this process or its parent
