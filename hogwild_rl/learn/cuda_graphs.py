"""CUDA graphs: kernels of fixed shapes, captured once and replayed as a single launch."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from hogwild_rl.collect.rollout import Act, Rollout
from hogwild_rl.envs import checks
from hogwild_rl.errors import UserError

_WARM_UPS = 3  # the lazy initialization of cuBLAS and autograd must not be captured
# Since 2.14 a graph registers its generators itself, and registering one prints a warning.
_NAMES_GENERATORS = TorchVersion(torch.__version__) < TorchVersion("2.14")


class Captured:
    """CUDA graph of a function of static tensors.

    Inputs and output have the same addresses in every call. Each graph has its own stream, and
    with it its own cuBLAS workspace.

    Args:
        function: takes no arguments; it must not synchronize with the GPU or change shapes.
        device: device of its tensors.
        generator: source of its random numbers, on the GPU; restored after the capture.
        changes: tensors that the function modifies; restored after the capture.
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
            gc.collect()  # a tensor freed during the capture would abort it
            self._graph = torch.cuda.CUDAGraph()
            if generator is not None and state is not None:
                generator.set_state(state)
                if _NAMES_GENERATORS:
                    self._graph.register_generator_state(generator)
            with torch.cuda.graph(self._graph, stream=stream):
                self._output = function()

    def __call__(self) -> Tensor:
        """Replays the graph; returns the output, which the next call overwrites."""
        self._graph.replay()
        return self._output


@contextlib.contextmanager
def recording(network: str) -> Iterator[None]:
    """Context of a capture: UserError if the network reads a tensor on the host, or masks."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f"network {network} cannot be captured as a CUDA graph "
            f"({checks.abbreviate(str(error))}): set compile to False, or avoid .item() and masks"
        ) from error


def captured_act(act: Act, rollout: Rollout, size: int, generator: torch.Generator) -> Act:
    """Returns `act`, which samples with `generator`, as a CUDA graph for groups of `size`.

    The rollout on the GPU is an example for shapes and dtypes.
    """
    observations = rollout.observations[0, :size].clone()
    state = rollout.state[:, :size].clone()
    next_state = torch.zeros_like(state)

    def from_buffers() -> Tensor:
        actions: Tensor
        actions, new_state = act(observations, state)
        if new_state is not None:
            next_state.copy_(new_state)
        return actions

    with torch.no_grad():
        graph = Captured(from_buffers, observations.device, generator)

    def replay(new_observations: Tensor, new_state: Tensor) -> tuple[Tensor, Tensor]:
        observations.copy_(new_observations)
        state.copy_(new_state)
        return graph(), next_state

    return replay
