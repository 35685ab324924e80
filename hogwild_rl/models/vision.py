"""What looks at images: CNNs, and the pixels alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hogwild_rl import UserError
from hogwild_rl.envs.observations import Image, ObservationCodec
from hogwild_rl.models import networks


class Convolution(NamedTuple):
    """A layer of a CNN: a ReLU follows it."""

    channels: int
    kernel: int
    stride: int


class CNN(NamedTuple):
    """Convolutions and a last linear layer of `features`."""

    convolutions: tuple[Convolution, ...]
    features: int


CNNS = {
    # Mnih et al. 2016 (arXiv:1602.01783), section 8; first in Mnih et al. 2013 (arXiv:1312.5602).
    "a3c": CNN((Convolution(16, 8, 4), Convolution(32, 4, 2)), 256),
    # Mnih et al. 2015 (Nature 518), methods.
    "nature": CNN((Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1)), 512),
}


def eye(image: Image, network: str, generator: torch.Generator) -> "Vision | Pixels":
    """What looks at an image: a CNN, or the pixels alone.

    Args:
        image: what a picture looks like.
        network: name of a CNN, mlp, or auto for A3C's CNN where the picture is large enough.
        generator: source of the weights.

    Raises:
        UserError: the picture is too small for the CNN asked for.
    """
    cnn = CNNS["a3c" if network == "auto" else network] if network != "mlp" else None
    if cnn is not None and min(_sides(image, cnn)) > 0:
        return Vision(image, cnn, generator)
    if network in CNNS:
        height, width = image.chw[1:]
        raise UserError(f"images of {height}×{width} are too small for {network}: use mlp")
    return Pixels(image)


class Vision(nn.Module):
    """A CNN over images of bytes: [..., *image.shape] → [..., features].

    Args:
        image: what a picture looks like, large enough for the layers.
        cnn: its layers.
        generator: source of the weights.
    """

    def __init__(self, image: Image, cnn: CNN, generator: torch.Generator) -> None:
        super().__init__()
        self._image, self.features = image, cnn.features
        layers: list[nn.Module] = []
        channels = image.chw[0]
        for convolution in cnn.convolutions:
            with torch.random.fork_rng(devices=[]):
                layer = nn.Conv2d(channels, *convolution)
            layers += [networks.orthogonal(layer, math.sqrt(2), generator), nn.ReLU()]
            channels = convolution.channels
        layers += [nn.Flatten()]
        layers += networks.mlp(
            channels * math.prod(_sides(image, cnn)), [cnn.features], "relu", generator
        )
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in 0..255."""
        shape = self._image.shape
        leading = images.shape[: images.dim() - len(shape)]
        pictures = _scaled(images.reshape(-1, *shape))
        if len(shape) == 2:
            pictures = pictures.unsqueeze(1)
        elif len(shape) == 4:
            pictures = pictures.permute(0, 1, 4, 2, 3).flatten(1, 2)
        elif not self._image.channels_first:
            pictures = pictures.permute(0, 3, 1, 2)
        # Measured on the CPU in bfloat16, 48 pictures: forward 74 → 61 µs each.
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.layers(pictures)
        return features.reshape(*leading, features.shape[-1])


class Pixels(nn.Module):
    """The pixels of small images as they are, one after another: [..., *shape] → [..., P]."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._axes, self.features = len(image.shape), math.prod(image.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Numbers in 0..1."""
        return _scaled(images.flatten(-self._axes))


class SideBySide(nn.Module):
    """Images each through a part of its own, with the rest of a row: [..., *O] → [..., F].

    Args:
        codec: of rows with images in them.
        parts: one for each image.
    """

    def __init__(self, codec: ObservationCodec, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self._vector = codec.vector
        self._shapes = [image.shape for image in codec.images]
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: Tensor) -> Tensor:
        """The vector and the images' features."""
        sizes = [self._vector, *map(math.prod, self._shapes)]
        vector, *images = torch.split(rows, sizes, dim=-1)
        seen = [
            part(image.reshape(*image.shape[:-1], *shape))
            for part, image, shape in zip(self.parts, images, self._shapes, strict=True)
        ]
        return torch.cat([vector, *(features.to(rows.dtype) for features in seen)], dim=-1)


def _sides(image: Image, cnn: CNN) -> list[int]:
    """Height and width of what the convolutions give; 0 where they do not fit."""
    sides = list(image.chw[1:])
    for _, kernel, stride in cnn.convolutions:
        sides = [max(0, (side - kernel) // stride + 1) for side in sides]
    return sides


def _scaled(images: Tensor) -> Tensor:
    """Bytes as numbers in 0..1, in the type that the layers behind compute in."""
    kind = images.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else torch.get_default_dtype()
    return images.to(dtype, copy=True).mul_(1 / 255)
