"""CUDA graphs: work of fixed shapes, recorded once and replayed without launching it anew."""

from collections.abc import Callable

import torch
from torch import Tensor

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


def captured_act(
    act: Callable[[Tensor], Tensor], observations: Tensor, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """`act` as a graph, for observations of the shape and device of those given.

    Args:
        act: gives actions [B] for observations [B, *O], and draws from `generator`.
        observations: [B, *O], an example.
        generator: on the same device.
    """
    inputs = observations.clone()
    with torch.no_grad():
        graph = Captured(lambda: act(inputs), generator)

    def replayed(observations: Tensor) -> Tensor:
        inputs.copy_(observations)
        return graph()

    return replayed
