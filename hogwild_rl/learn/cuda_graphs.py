"""CUDA graphs: work of fixed shapes, recorded once and replayed as a single launch."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from hogwild_rl.collect.rollout import Act, Rollout
from hogwild_rl.envs import checks
from hogwild_rl.errors import UserError

_WARM_UPS = 3  # what cuBLAS and autograd set up at first must not be recorded
# Since 2.14 a graph finds its generators itself, and every call that names one prints a warning.
_NAMES_GENERATORS = TorchVersion(torch.__version__) < TorchVersion("2.14")


class Captured:
    """A function of tensors that stay where they are, on the GPU.

    Its inputs are read, and its output written, at the same addresses in every call. Each graph
    has a stream, and with it a cuBLAS workspace, of its own.

    Args:
        function: without arguments; it may not wait for the GPU, nor change shapes.
        device: of its tensors.
        generator: its source of random numbers, on the GPU; recording leaves it as it was.
        changes: tensors that the function changes; recording leaves them as they were.
    """

    def __init__(
        self,
        function: Callable[[], Tensor],
        device: torch.device,
        generator: torch.Generator | None = None,
        changes: Sequence[Tensor] = (),
    ) -> None:
        with torch.cuda.device(device):
            state = None if generator is None else generator.get_state()
            before = [tensor.clone() for tensor in changes]
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            for tensor, unchanged in zip(changes, before, strict=True):
                tensor.copy_(unchanged)
            gc.collect()  # a tensor that is freed during the recording would end it
            self._graph = torch.cuda.CUDAGraph()
            if generator is not None and state is not None:
                generator.set_state(state)
                if _NAMES_GENERATORS:
                    self._graph.register_generator_state(generator)
            with torch.cuda.graph(self._graph, stream=stream):
                self._output = function()

    def __call__(self) -> Tensor:
        """The output, overwritten by the next call."""
        self._graph.replay()
        return self._output


@contextlib.contextmanager
def recording(network: str) -> Iterator[None]:
    """Around recordings: UserError where a network reads a tensor on the host, or masks."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f"network {network} cannot be recorded as a CUDA graph "
            f"({checks.abbreviate(str(error))}): give compile False, or leave out .item() and masks"
        ) from error


def captured_act(act: Act, rollout: Rollout, size: int, generator: torch.Generator) -> Act:
    """`act` as a graph, for groups of `size` environments of a rollout on the GPU.

    Args:
        act: draws from `generator`.
        rollout: an example.
        size: B of the observations it will be given.
        generator: on the same device.
    """
    observations = rollout.observations[0, :size].clone()
    state = rollout.state[:, :size].clone()
    after = torch.zeros_like(state)

    def from_buffers() -> Tensor:
        actions, remembered = act(observations, state)
        if remembered is not None:
            after.copy_(remembered)
        return actions

    with torch.no_grad():
        graph = Captured(from_buffers, observations.device, generator)

    def replayed(seen: Tensor, remembered: Tensor) -> tuple[Tensor, Tensor]:
        observations.copy_(seen)
        state.copy_(remembered)
        return graph(), after

    return replayed
