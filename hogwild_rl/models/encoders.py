"""Image encoders: CNNs and flattened pixels."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import Space
from torch import Tensor, nn

from hogwild_rl.envs import codecs
from hogwild_rl.envs.codecs import Image, ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.models import layers

_SQUARE = 4  # pixels; four bytes are one 32-bit word


class Convolution(NamedTuple):
    """Convolution of a CNN; a ReLU follows it."""

    channels: int
    kernel: int
    stride: int


class CNN(NamedTuple):
    """Convolutions and a final linear layer of `features` units."""

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
    """Returns the encoder of an image: a CNN, or the flattened pixels; see `encoder`."""
    cnn = CNNS["a3c" if network == "auto" else network] if network != "mlp" else None
    if cnn is not None and min(_sides(image, cnn)) > 0:
        return ConvEncoder(image, cnn, generator, contrast)
    if network in CNNS:
        height, width = image.chw[1:]
        raise UserError(f"images of {height}×{width} are too small for network {network}: use mlp")
    return PixelEncoder(image, contrast)


def encoder(
    codec: ObservationCodec,
    network: str,
    generator: torch.Generator,
    contrast: layers.MeanImageNorm | None = None,
) -> tuple[nn.Module, int]:
    """Returns the encoder of observations, [..., *O] → [..., F], and F.

    Args:
        codec: codec of the observations.
        network: name of a CNN, mlp, or auto for the CNN of A3C if the images are large enough;
            without images the encoder is the identity.
        generator: source of the weights.
        contrast: normalization of a single image, if any.

    Raises:
        UserError: a CNN is requested without images, or for images that are too small.
    """
    if not codec.images:
        if network in CNNS:
            raise UserError(f"network {network} is for images: use auto or mlp")
        return nn.Identity(), codec.vector
    parts = [image_encoder(image, network, generator, contrast) for image in codec.images]
    if codec.shape == codec.images[0].shape:
        return parts[0], parts[0].features
    return CombinedEncoder(codec, parts), codec.vector + sum(part.features for part in parts)


def flattened_images(space: Space[Any]) -> list[str]:
    """Descriptions of the image-like parts of a space that network auto flattens for an MLP."""
    lines = []
    for part in filter(codecs.image_like, codecs.leaves(space)):
        image, size = codecs.as_image(part), math.prod(part.shape)
        if image is None or not min(_sides(image, CNNS["a3c"])):
            scaling = f"divided by {image.high}" if image else "not scaled as images are"
            lines.append(
                f"observations of {list(part.shape)} are flattened to {size:,} numbers, {scaling}: "
                "normalize them, give a network, or network mlp if intended"
            )
    return lines


class ConvEncoder(nn.Module):
    """CNN over images: [..., *image.shape] → [..., features].

    Args:
        image: shape, axis order and range of the images, large enough for the layers.
        cnn: layers of the CNN.
        generator: source of the weights.
        contrast: normalization of images of bytes; if None, images are scaled to at most 1.
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
        fits = cnn.convolutions[0][1:] == (2 * _SQUARE, _SQUARE)
        fits = fits and not (height % _SQUARE or width % _SQUARE)
        self._by_squares = image.channels_first and fits

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of images."""
        shape = self._image.shape
        leading = images.shape[: images.dim() - len(shape)]
        images = images.reshape(-1, *shape)
        if self._by_squares and images.dtype == torch.uint8:
            hidden = self._first_by_squares(images.reshape(-1, *self._image.chw))
        else:
            hidden = self.first(self._planes(_scaled(images, self._image, self.contrast)))
        features: Tensor = self.rest(hidden)
        return features.reshape(*leading, features.shape[-1])

    def _planes(self, images: Tensor) -> Tensor:
        """Transposes images [N, *shape] to [N, C, H, W]."""
        planes = images if self._image.channels_first else images.movedim(-1, -3)
        return planes.reshape(-1, *self._image.chw)

    def _first_by_squares(self, images: Tensor) -> Tensor:
        """Computes the first convolution of images [N, C, H, W] over squares of 4×4 pixels.

        An 8×8 kernel with stride 4 over pixels equals a 2×2 kernel with stride 1 over squares of
        4×4 pixels with 16·C channels, which has longer contiguous rows. bfloat16 represents bytes
        exactly, so the kernel is scaled instead of the images. Measured on the CPU in bfloat16,
        A3C's CNN, 168 images of 4×84×84: forward 64 → 46 µs each, forward and backward 162 → 120.
        """
        squares, scale = self._squares(images), torch.tensor(1 / self._image.high)
        if self.contrast is not None:  # differences of bytes are exact in bfloat16, too
            mean = self.contrast.mean_image.view(1, *self._image.chw)
            squares, scale = squares.sub_(self._squares(mean)), self.contrast.scale
        kernel = self.first.weight.view(-1, len(images[0]), 2, _SQUARE, 2, _SQUARE)
        kernel = kernel.permute(0, 1, 3, 5, 2, 4).flatten(1, 3) * scale
        return nn.functional.conv2d(squares.permute(0, 3, 1, 2), kernel, self.first.bias)

    def _squares(self, images: Tensor) -> Tensor:
        """Groups the pixels of images [N, C, H, W] by squares: floats [N, H/4, W/4, 16 C]."""
        N, C, H, W = images.shape
        h, w = H // _SQUARE, W // _SQUARE
        rows = images.view(torch.int32).view(N, C, h, _SQUARE, w)  # four bytes per word
        squares = rows.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8).view(N, h, w, -1)
        return squares.to(layers.computed_in(images.device))


class PixelEncoder(nn.Module):
    """Flattened pixels of images: [..., *shape] → [..., P].

    Args:
        image: shape and range of the images.
        contrast: normalization of images of bytes; if None, images are scaled to at most 1.
    """

    def __init__(self, image: Image, contrast: layers.MeanImageNorm | None = None) -> None:
        super().__init__()
        self._image, self.features = image, math.prod(image.shape)
        self.contrast = contrast

    def forward(self, images: Tensor) -> Tensor:
        """Returns the normalized and flattened pixels."""
        return _scaled(images, self._image, self.contrast).flatten(-len(self._image.shape))


class CombinedEncoder(nn.Module):
    """Concatenation of the vector part and the features of each image: [..., *O] → [..., F].

    Args:
        codec: codec of observations with images.
        parts: one encoder per image.
    """

    def __init__(self, codec: ObservationCodec, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self._vector = codec.vector
        self._shapes = [image.shape for image in codec.images]
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: Tensor) -> Tensor:
        """Returns the vector entries followed by the features of the images."""
        sizes = [self._vector, *map(math.prod, self._shapes)]
        vector, *images = torch.split(rows, sizes, dim=-1)
        encoded = [
            part(image.reshape(*image.shape[:-1], *shape))
            for part, image, shape in zip(self.parts, images, self._shapes, strict=True)
        ]
        return torch.cat([vector, *(features.to(rows.dtype) for features in encoded)], dim=-1)


def _sides(image: Image, cnn: CNN) -> list[int]:
    """Height and width of the output of the convolutions; 0 if they do not fit."""
    sides = list(image.chw[1:])
    for _, kernel, stride in cnn.convolutions:
        sides = [max(0, (side - kernel) // stride + 1) for side in sides]
    return sides


def _scaled(images: Tensor, image: Image, contrast: layers.MeanImageNorm | None) -> Tensor:
    """Scales images to at most 1, or applies the image normalization."""
    if contrast is not None:
        return contrast(images)  # type: ignore[no-any-return]
    return images.to(layers.computed_in(images.device), copy=True).mul_(1 / image.high)
