"""Layers, and the LSTM between body and heads."""

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
    """A linear layer with orthogonal weights and zero bias.

    Args:
        inputs, outputs: sizes.
        gain: √2 in front of an activation, 1 for a value, 0.01 for a policy, so that the first
            policy is close to uniform.
        generator: source of the weights.

    Source: Saxe et al. 2014 (arXiv:1312.6120); the gains are those of Huang et al. 2022, "The 37
    Implementation Details of Proximal Policy Optimization", detail 2.
    """
    with torch.random.fork_rng(devices=[]):  # torch's own draw leaves the caller's stream alone
        layer = nn.Linear(inputs, outputs)
    return orthogonal(layer, gain, generator)


def mlp(
    inputs: int, hidden: Sequence[int], activation: str, generator: torch.Generator
) -> nn.Sequential:
    """Linear layers of these sizes, the activation after each: [..., inputs] → [..., H]."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [linear(inputs, size, math.sqrt(2), generator), ACTIVATIONS[activation]()]
        inputs = size
    return nn.Sequential(*layers)


def custom_body(
    make: BodyMaker, codec: ObservationCodec, generator: torch.Generator
) -> tuple[nn.Module, int]:
    """A body that a caller's function makes for a space, and the size of its features.

    Args:
        make: the function; it may draw initial weights from torch's global stream.
        codec: of the rows.
        generator: source of that stream's seed.

    Raises:
        UserError: it is no module, or does not give features for rows [T, B, *O].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        body = make(codec.space)
        name = getattr(make, "__name__", str(make))
        if not isinstance(body, nn.Module):
            kind = type(body).__name__
            raise UserError(f"network {name} must return a torch.nn.Module, got {kind}")
        statistics = ", ".join(label for label, _ in body.named_buffers())
        if statistics:
            raise UserError(
                f"network {name} has buffers ({statistics}) that no gradient changes: use "
                "LayerNorm in place of BatchNorm"
            )
        dtype = torch.uint8 if codec.dtype == np.uint8 else torch.float32
        with torch.no_grad():  # lazy layers draw their weights here
            features = body(torch.zeros(1, 1, *codec.shape, dtype=dtype))
    gave = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 3 or gave[:2] != [1, 1]:
        raise UserError(
            f"network must give [T, B, features] for rows {['T', 'B', *codec.shape]}, but for "
            f"{[1, 1, *codec.shape]} it gave {gave}"
        )
    return body, int(features.shape[-1])


class LSTMCore(nn.Module):
    """An LSTM cell that is carried along the time axis.

    Its state is one tensor [2, B, H]: what it puts out, and what it keeps.

    Args:
        features: size of the input.
        size: H.
        generator: source of the weights.

    At first its units forget at different rates, the shortest in a step or two, the longest in 32:
    with biases of 0 all would halve what they keep at every step, and nobody would find out that a
    cue of 20 steps ago matters.

    Source: Hochreiter and Schmidhuber 1997; in A3C: Mnih et al. 2016, section 5.1. The biases of
    the forget gates: Tallec and Ollivier 2018 (arXiv:1804.11188), section 2, evenly spread.
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
        spans = torch.linspace(1, _LONGEST_SPAN - 1, size)  # b = log(T − 1) keeps for T steps
        self.cell.bias_ih.detach()[size : 2 * size] = spans.log()

    def nothing(self, B: int) -> Tensor:
        """The state [2, B, H] in which nothing is remembered."""
        return self.cell.weight_hh.new_zeros(2, B, self.cell.hidden_size)

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        """The state [2, B, H] after features [B, F]; its first half is the output."""
        return torch.stack(self.cell(features, (state[0], state[1])))

    def forward(self, features: Tensor, state: Tensor, valid: Tensor) -> Tensor:
        """The outputs [T+1, B, H] for features [T+1, B, F].

        Args:
            features: of rows 0..T.
            state: before row 0, [2, B, H].
            valid: [T, B] bool; the row after one that is not valid begins an episode, and finds
                the state forgotten.
        """
        carried, outputs = valid.unsqueeze(-1), []
        for t, row in enumerate(features.unbind()):
            if t > 0:
                state = state.where(carried[t - 1], 0.0)  # also where it is not finite
            state = self.step(row, state)
            outputs.append(state[0])
        return torch.stack(outputs)


class Standardize(nn.Module):
    """Numbers with their running mean taken off, in units of their running deviation.

        x' = clip((x − μ) / σ, −10, 10)

    μ and σ are parameters that are not trained: they travel, and are kept, with the others.

    Args:
        size: how many numbers at the start of a row are treated so; others stay as they are.
    """

    _CLIP = 10.0

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(size), requires_grad=False)  # 1 / σ

    def forward(self, rows: Tensor) -> Tensor:
        """[..., O] from [..., O]."""
        head, rest = rows[..., : self._size], rows[..., self._size :]
        standard = ((head - self.mean) * self.scale).clamp(-self._CLIP, self._CLIP)
        return torch.cat([standard, rest], dim=-1) if rest.shape[-1] else standard


class MeanImageNorm(nn.Module):
    """Bytes as numbers of about unit size: scaled alone, or with a running mean picture taken off.

        x' = (x − μ) / σ

    μ is a picture of whole numbers, σ one number for all pixels: what never changes is 0, and what
    moves stands out. In Pong the deviation over all pixels is 0.026 of their range and their mean
    0.42; without this, gradients are all about the background, and the ball is found much later.

    Args:
        image: what a picture looks like.

    Attributes:
        mean: μ before rounding, [P], and 0 at first; not trained.
        scale: 1 / σ, [1], and 1 / 255 at first; not trained.
    """

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._shape = image.shape
        pixels = math.prod(image.shape)
        self.mean = nn.Parameter(torch.zeros(pixels), requires_grad=False)
        self.scale = nn.Parameter(torch.full((1,), 1 / 255), requires_grad=False)

    @property
    def picture(self) -> Tensor:
        """μ in bytes, [1, *shape]."""
        return self.mean.round().to(torch.uint8).view(1, *self._shape)

    def forward(self, pictures: Tensor) -> Tensor:
        """[..., *shape] from bytes [..., *shape]."""
        return (pictures - self.picture.to(computed_in(pictures.device))).mul_(self.scale)


def orthogonal(layer: _Layer, gain: float, generator: torch.Generator) -> _Layer:
    """The layer, with orthogonal weights and zero bias; see `linear`."""
    assert layer.bias is not None
    nn.init.orthogonal_(layer.weight, gain, generator)
    nn.init.zeros_(layer.bias)
    return layer


def computed_in(device: torch.device) -> torch.dtype:
    """What the layers behind compute in: float32, or less under autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.get_default_dtype()
