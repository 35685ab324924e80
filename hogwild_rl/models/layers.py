"""Layers: MLP, LSTM, and normalization of observations."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hogwild_rl.envs import checks
from hogwild_rl.envs.codecs import Image, ObservationCodec
from hogwild_rl.errors import UserError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)
BodyMaker = Callable[[Space[Any]], nn.Module]

# Layers whose result for a row can depend on other rows or on chance.
_MIXING = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, _BatchNorm, _DropoutNd)
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

    A body for [N, *O] is made again, with the same random weights, and adapted by `FlattenRows`.
    The function may sample initial weights from torch's global stream.

    Raises:
        UserError: the body is not a module, has buffers, maps neither [T, B, *O] to [T, B, F] nor
            [N, *O] to [N, F], or the features of a row depend on other rows or on chance.
    """
    name = getattr(make, "__name__", str(make))
    seed, problems = int(torch.randint(2**62, (), generator=generator)), []
    for axes in (2, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            body = _call(make, codec.space, f"network {name}")
            if not isinstance(body, nn.Module):
                returned = type(body).__name__
                raise UserError(f"network {name} must return a torch.nn.Module, got {returned}")
            buffers = ", ".join(label for label, _ in body.named_buffers())
            if buffers:
                raise UserError(
                    f"network {name} has buffers ({buffers}), which no gradient updates: use "
                    "LayerNorm instead of BatchNorm"
                )
            try:
                size = _row_wise_size(body, _random_rows(codec).flatten(0, 2 - axes), axes)
            except UserError as error:
                problems.append(error)
            else:
                return body if axes == 2 else FlattenRows(body), size
    shape = ", ".join(map(str, codec.shape))
    causes = {str(error).partition("] ")[2]: str(error) for error in problems}  # equal ones once
    raise UserError(
        f"network {name} must map [T, B, {shape}] to float32 [T, B, F], or [N, {shape}] to [N, F], "
        f"each row by itself (use --lstm, LayerNorm, no dropout): {'; '.join(causes.values())}"
    ) from problems[0].__cause__


class FlattenRows(nn.Sequential):
    """Adapter for a body of one batch axis, [N, *O] → [N, F]: [T, B, *O] → [T, B, F]."""

    def forward(self, rows: Tensor) -> Tensor:
        """Returns the features, [T, B, F]."""
        features: Tensor = super().forward(rows.flatten(0, 1))  # type: ignore[no-untyped-call]
        return features.view(*rows.shape[:2], -1)


def _random_rows(codec: ObservationCodec) -> Tensor:
    """Random observations of the space, [3, 2, *O], within ±1000, as bounds can be huge."""
    space = copy.deepcopy(codec.space)  # the space's own generator is not advanced
    space.seed(0)
    try:
        with np.errstate(over="ignore"):
            rows = np.stack([codec.row(space.sample()) for _ in range(6)]).astype(np.float64)
    except OverflowError:  # bounds of ±1.8e308
        rows = np.zeros((6, *codec.shape))
    rows = rows.clip(-1000, 1000).astype(codec.dtype)
    return torch.from_numpy(rows).view(3, 2, *codec.shape)


def _call(function: Callable[[Any], Any], given: Any, label: str) -> Any:
    try:
        return function(given)
    except Exception as error:  # arbitrary user code
        raise UserError(f"{label} raised {checks.describe_exception(error)}") from error


@torch.no_grad()
def _row_wise_size(body: nn.Module, rows: Tensor, axes: int) -> int:
    """Feature size F of a body that maps rows with `axes` leading axes, each row by itself.

    Rounding in float32 changes features by up to 3e-6 of the largest, layers that mix rows by much
    more than the tolerance. Layers with dropout are searched for, as they may drop nothing here.
    """
    suspects = ""

    def features(given: Tensor) -> Tensor:
        label = f"{list(given.shape)}{suspects}"
        found = _call(body, given, label)
        if not isinstance(found, Tensor):
            raise UserError(f"{label} gave {checks.describe_type(found)}")
        if found.shape[:-1] != given.shape[:axes] or found.dtype != torch.get_default_dtype():
            raise UserError(f"{label} gave {list(found.shape)} {found.dtype}")
        return found

    batch, ones = features(rows), (1,) * axes  # lazy layers sample their weights here
    mixing = [f"{type(m).__name__} {n}" for n, m in body.named_modules() if isinstance(m, _MIXING)]
    suspects = f" with {checks.abbreviate(', '.join(mixing))}" if mixing else ""
    alone = [features(row.view(*ones, *row.shape)) for row in rows.flatten(0, axes - 1)]
    atol = 1e-4 * float(batch.nan_to_num(0, 0, 0).abs().max())
    singles = torch.cat(alone).view_as(batch).numpy()
    same = np.allclose(singles, batch.numpy(), 1e-2, atol, equal_nan=True)
    dropout = [m for m in body.modules() if isinstance(m, _DropoutNd) and m.training and m.p > 0]
    if dropout or not same:
        raise UserError(f"{list(rows.shape)}{suspects} gave a row other features than alone")
    return batch.shape[-1]


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

    CLIP = 10.0

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(size), requires_grad=False)  # 1 / σ

    def forward(self, rows: Tensor) -> Tensor:
        """Standardizes observations, [..., O] → [..., O]."""
        head, rest = rows[..., : self._size], rows[..., self._size :]
        standard = ((head - self.mean) * self.scale).clamp(-self.CLIP, self.CLIP)
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
