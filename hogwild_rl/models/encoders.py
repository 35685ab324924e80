"""Image encoders: CNNs and flattened pixels."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hogwild_rl.envs.codecs import Image, ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.models import layers

_SCALE = 1 / 255
_SQUARE = 4  # pixels; four bytes are one 32-bit word


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


def image_encoder(
    image: Image,
    network: str,
    generator: torch.Generator,
    contrast: layers.MeanImageNorm | None = None,
) -> "ConvEncoder | PixelEncoder":
    """What looks at an image: a CNN, or the pixels alone.

    Args:
        image: what a picture looks like.
        network: name of a CNN, mlp, or auto for A3C's CNN where the picture is large enough.
        generator: source of the weights.
        contrast: what pictures are compared with.

    Raises:
        UserError: the picture is too small for the CNN asked for.
    """
    cnn = CNNS["a3c" if network == "auto" else network] if network != "mlp" else None
    if cnn is not None and min(_sides(image, cnn)) > 0:
        return ConvEncoder(image, cnn, generator, contrast)
    if network in CNNS:
        height, width = image.chw[1:]
        raise UserError(f"images of {height}×{width} are too small for {network}: use mlp")
    return PixelEncoder(image, contrast)


def encoder(
    codec: ObservationCodec,
    network: str,
    generator: torch.Generator,
    contrast: layers.MeanImageNorm | None = None,
) -> tuple[nn.Module, int]:
    """What turns rows [..., *O] into one vector of numbers each, and its size.

    Args:
        codec: of the rows.
        network: of their images, see `eye`; where there are none, rows are such vectors already.
        generator: source of the weights.
        contrast: what a single image is compared with.

    Raises:
        UserError: a CNN is asked for and there are no images, or they are too small for it.
    """
    if not codec.images:
        if network in CNNS:
            raise UserError(f"network {network} is for images: use auto or mlp")
        return nn.Identity(), codec.vector
    seen = [image_encoder(image, network, generator, contrast) for image in codec.images]
    if codec.dtype == np.uint8:
        return seen[0], seen[0].features
    return CombinedEncoder(codec, seen), codec.vector + sum(part.features for part in seen)


class ConvEncoder(nn.Module):
    """A CNN over images of bytes: [..., *image.shape] → [..., features].

    Args:
        image: what a picture looks like, large enough for the layers.
        cnn: its layers.
        generator: source of the weights.
        contrast: what pictures are compared with; bytes are scaled to 0..1 without it.
    """

    def __init__(
        self,
        image: Image,
        cnn: CNN,
        generator: torch.Generator,
        contrast: layers.MeanImageNorm | None = None,
    ) -> None:
        super().__init__()
        self._image, self.features, self.contrast = image, cnn.features, contrast
        channels, height, width = image.chw
        convolutions: list[nn.Conv2d] = []
        for convolution in cnn.convolutions:
            with torch.random.fork_rng(devices=[]):
                layer = nn.Conv2d(channels, *convolution)
            convolutions.append(layers.orthogonal(layer, math.sqrt(2), generator))
            channels = convolution.channels
        flat = channels * math.prod(_sides(image, cnn))
        last = layers.mlp(flat, [cnn.features], "relu", generator)
        self.first, *others = convolutions
        hidden = itertools.chain.from_iterable((layer, nn.ReLU()) for layer in others)
        self.rest = nn.Sequential(nn.ReLU(), *hidden, nn.Flatten(), *last)
        planes = image.channels_first or len(image.shape) == 2
        fits = cnn.convolutions[0][1:] == (2 * _SQUARE, _SQUARE)
        self._by_squares = planes and fits and not (height % _SQUARE or width % _SQUARE)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in 0..255."""
        shape = self._image.shape
        leading = images.shape[: images.dim() - len(shape)]
        pictures = images.reshape(-1, *shape)
        if self._by_squares and pictures.dtype == torch.uint8:
            seen = self._first_by_squares(pictures.reshape(-1, *self._image.chw))
        else:
            seen = self.first(self._planes(_scaled(pictures, self.contrast)))
        features: Tensor = self.rest(seen)
        return features.reshape(*leading, features.shape[-1])

    def _planes(self, pictures: Tensor) -> Tensor:
        """[N, C, H, W] from pictures [N, *shape]."""
        if len(self._image.shape) == 2:
            return pictures.unsqueeze(1)
        if len(self._image.shape) == 4:
            return pictures.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return pictures if self._image.channels_first else pictures.permute(0, 3, 1, 2)

    def _first_by_squares(self, pictures: Tensor) -> Tensor:
        """The first convolution of pictures [N, C, H, W], as one of squares of pixels.

        A kernel of 8×8 with stride 4 over pixels is one of 2×2 with stride 1 over squares of 4×4
        pixels, each with 16·C channels: long rows of numbers, which processors like. Bytes are
        whole numbers that bfloat16 holds exactly; the kernel is scaled instead of them. Measured on
        the CPU in bfloat16, A3C's CNN, 168 pictures of 4×84×84: forward 64 → 46 µs each, forward
        and backward 162 → 120.
        """
        squares, scale = self._squares(pictures), torch.tensor(_SCALE)
        if self.contrast is not None:  # differences of bytes are exact in bfloat16 too
            mean = self.contrast.picture.view(1, *self._image.chw)
            squares, scale = squares.sub_(self._squares(mean)), self.contrast.scale
        kernel = self.first.weight.view(-1, len(pictures[0]), 2, _SQUARE, 2, _SQUARE)
        kernel = kernel.permute(0, 1, 3, 5, 2, 4).flatten(1, 3) * scale
        return nn.functional.conv2d(squares.permute(0, 3, 1, 2), kernel, self.first.bias)

    def _squares(self, pictures: Tensor) -> Tensor:
        """The pixels of pictures [N, C, H, W] by squares: [N, H/4, W/4, 16 C], as numbers."""
        N, C, H, W = pictures.shape
        h, w = H // _SQUARE, W // _SQUARE
        rows = pictures.view(torch.int32).view(N, C, h, _SQUARE, w)  # four bytes in one piece
        squares = rows.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8).view(N, h, w, -1)
        return squares.to(layers.computed_in(pictures.device))


class PixelEncoder(nn.Module):
    """The pixels of small images, one after another: [..., *shape] → [..., P].

    Args:
        image: what a picture looks like.
        contrast: what pictures are compared with; bytes are scaled to 0..1 without it.
    """

    def __init__(self, image: Image, contrast: layers.MeanImageNorm | None = None) -> None:
        super().__init__()
        self._axes, self.features = len(image.shape), math.prod(image.shape)
        self.contrast = contrast

    def forward(self, images: Tensor) -> Tensor:
        """Numbers of about unit size."""
        return _scaled(images, self.contrast).flatten(-self._axes)


class CombinedEncoder(nn.Module):
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


def _scaled(images: Tensor, contrast: layers.MeanImageNorm | None) -> Tensor:
    """Bytes as numbers in 0..1, or with a contrast."""
    if contrast is not None:
        return contrast(images)  # type: ignore[no-any-return]
    return images.to(layers.computed_in(images.device), copy=True).mul_(_SCALE)
