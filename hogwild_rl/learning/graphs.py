"""CUDA graphs: work of fixed shapes, recorded once and replayed without launching it anew."""

from collections.abc import Callable

import torch
from torch import Tensor

from hogwild_rl.learning.rollout import Act, Rollout

_WARM_UPS = 3  # what cuBLAS and autograd set up at first must not be recorded


class Captured:
    """A function of tensors that stay where they are, on the GPU.

    Its inputs are read, and its output written, at the same addresses in every call.

    Args:
        function: without arguments; it may not wait for the GPU, nor change shapes.
        generator: that it draws from, on the GPU; it goes on as if the function had been called.
    """

    def __init__(
        self, function: Callable[[], Tensor], generator: torch.Generator | None = None
    ) -> None:
        before = None if generator is None else generator.get_state()
        warming = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warming.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warming):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(warming)
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None and before is not None:
            generator.set_state(before)
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self._output = function()

    def __call__(self) -> Tensor:
        """The output, overwritten by the next call."""
        self._graph.replay()
        return self._output


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
        graph = Captured(from_buffers, generator)

    def replayed(seen: Tensor, remembered: Tensor) -> tuple[Tensor, Tensor]:
        observations.copy_(seen)
        state.copy_(remembered)
        return graph(), after

    return replayed
