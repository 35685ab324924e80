"""Layers: MLP, LSTM, and normalization of observations."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor, nn

from hogwild_rl.envs.codecs import Image, ObservationCodec
from hogwild_rl.errors import UserError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)
BodyMaker = Callable[[Space[Any]], nn.Module]

_LONGEST_SPAN = 32  # steps


def linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """Linear layer with orthogonal weights and zero bias.

    Args:
        inputs, outputs: number of features in and out.
        gain: √2 before an activation, 1 for a value head, 0.01 for a policy head, so that the
            initial policy is close to uniform.
        generator: source of the weights.

    Source: Saxe et al. 2014 (arXiv:1312.6120); the gains are those of Huang et al. 2022, "The 37
    Implementation Details of Proximal Policy Optimization", detail 2.
    """
    with torch.random.fork_rng(devices=[]):  # the default initialization uses torch's global stream
        layer = nn.Linear(inputs, outputs)
    return orthogonal(layer, gain, generator)


def mlp(
    inputs: int, hidden: Sequence[int], activation: str, generator: torch.Generator
) -> nn.Sequential:
    """MLP with an activation after each linear layer: [..., inputs] → [..., H]."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [linear(inputs, size, math.sqrt(2), generator), ACTIVATIONS[activation]()]
        inputs = size
    return nn.Sequential(*layers)


def custom_body(
    make: BodyMaker, codec: ObservationCodec, generator: torch.Generator
) -> tuple[nn.Module, int]:
    """Returns a custom body, made by a function of the observation space, and its feature size.

    The function may sample initial weights from torch's global stream.

    Raises:
        UserError: the body is not a module, has buffers, or does not map [T, B, *O] to [T, B, F].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        body = make(codec.space)
        name = getattr(make, "__name__", str(make))
        if not isinstance(body, nn.Module):
            returned = type(body).__name__
            raise UserError(f"network {name} must return a torch.nn.Module, got {returned}")
        buffers = ", ".join(label for label, _ in body.named_buffers())
        if buffers:
            raise UserError(
                f"network {name} has buffers ({buffers}), which no gradient updates: use "
                "LayerNorm instead of BatchNorm"
            )
        dtype = torch.uint8 if codec.dtype == np.uint8 else torch.float32
        with torch.no_grad():  # lazy layers sample their weights here
            features = body(torch.zeros(1, 1, *codec.shape, dtype=dtype))
    got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 3 or got[:2] != [1, 1]:
        raise UserError(
            f"network {name} must map observations {['T', 'B', *codec.shape]} to features "
            f"['T', 'B', 'F'], got {got} for an input of {[1, 1, *codec.shape]}"
        )
    return body, int(features.shape[-1])


class LSTMCore(nn.Module):
    """LSTM over the time axis.

    Its state is one tensor [2, B, H]: the hidden state h and the cell state c.

    Args:
        features: number of input features F.
        size: number of units H.
        generator: source of the weights.

    The forget gate biases give the units time scales from 1-2 to 32 steps at initialization. With
    biases of 0 each step would halve every cell state, and the gradient through 20 steps would
    vanish.

    Source: Hochreiter and Schmidhuber 1997; in A3C: Mnih et al. 2016, section 5.1; forget gate
    biases: Tallec and Ollivier 2018 (arXiv:1804.11188), section 2, evenly spaced.
    """

    def __init__(self, features: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.cell = nn.LSTMCell(features, size)
        for name, parameter in self.cell.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter, 1.0, generator)
            else:
                nn.init.zeros_(parameter)
        spans = torch.linspace(1, _LONGEST_SPAN - 1, size)  # time scale T: b = log(T − 1)
        self.cell.bias_ih.detach()[size : 2 * size] = spans.log()

    def initial_state(self, B: int) -> Tensor:
        """Initial state of zeros, [2, B, H]."""
        return self.cell.weight_hh.new_zeros(2, B, self.cell.hidden_size)

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        """Returns the state [2, B, H] after features [B, F]; state[0] is the output."""
        return torch.stack(self.cell(features, (state[0], state[1])))

    def forward(self, features: Tensor, state: Tensor, valid: Tensor) -> Tensor:
        """Returns the outputs, [T+1, B, H].

        Args:
            features: features of rows 0..T, [T+1, B, F].
            state: state before row 0, [2, B, H].
            valid: [T, B] bool; the row after one that is not valid starts an episode, so the state
                is reset.
        """
        carried, outputs = valid.unsqueeze(-1), []
        for t, row in enumerate(features.unbind()):
            if t > 0:
                state = state.where(carried[t - 1], 0.0)  # also resets non-finite states
            state = self.step(row, state)
            outputs.append(state[0])
        return torch.stack(outputs)


class Standardize(nn.Module):
    """Standardization by running mean and standard deviation.

        x' = clip((x − μ) / σ, −10, 10)

    μ and 1/σ are parameters without gradient, so they are shared and saved with the weights.

    Args:
        size: number of leading entries of an observation to standardize; the rest is unchanged.
    """

    _CLIP = 10.0

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(size), requires_grad=False)  # 1 / σ

    def forward(self, rows: Tensor) -> Tensor:
        """Standardizes observations, [..., O] → [..., O]."""
        head, rest = rows[..., : self._size], rows[..., self._size :]
        standard = ((head - self.mean) * self.scale).clamp(-self._CLIP, self._CLIP)
        return torch.cat([standard, rest], dim=-1) if rest.shape[-1] else standard


class MeanImageNorm(nn.Module):
    """Image normalization: subtracts the running mean image, divides by one σ for all pixels.

        x' = (x − μ) / σ

    μ is rounded to integers, so static pixels become exactly 0. In Pong, σ over all pixels is 0.026
    of their range and their mean is 0.42. Without this layer the background dominates the gradient
    and learning is much slower.

    Args:
        image: shape and axis order of the images.

    Attributes:
        mean: μ before rounding, [P], initially 0; without gradient.
        scale: 1 / σ, [1], initially 1 / 255; without gradient.
    """

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._shape = image.shape
        pixels = math.prod(image.shape)
        self.mean = nn.Parameter(torch.zeros(pixels), requires_grad=False)
        self.scale = nn.Parameter(torch.full((1,), 1 / 255), requires_grad=False)

    @property
    def mean_image(self) -> Tensor:
        """Mean image μ in bytes, [1, *shape]."""
        return self.mean.round().to(torch.uint8).view(1, *self._shape)

    def forward(self, images: Tensor) -> Tensor:
        """Normalizes images of bytes, [..., *shape] → [..., *shape]."""
        return (images - self.mean_image.to(computed_in(images.device))).mul_(self.scale)


def orthogonal(layer: _Layer, gain: float, generator: torch.Generator) -> _Layer:
    """Initializes a layer with orthogonal weights and zero bias; see `linear`."""
    assert layer.bias is not None
    nn.init.orthogonal_(layer.weight, gain, generator)
    nn.init.zeros_(layer.bias)
    return layer


def computed_in(device: torch.device) -> torch.dtype:
    """Dtype in which layers compute: float32, or the lower precision of autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.get_default_dtype()
