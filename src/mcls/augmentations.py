"""Augmentation of image batches: pure functions of the images and of random numbers drawn outside.

An augmentation is an object with `draws`, how many uniform random numbers it wants for each sample, that is called
with a batch of images and those numbers. The loader draws the numbers from (seed, epoch, sample), so neither the batch
size nor the number of worker processes nor a restart changes what a sample becomes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CropFlip", "Cutout", "Standard", "rand_augment", "trivial_augment"]


class Augmentation(Protocol):
    """What the loader asks of an augmentation."""

    @property
    def draws(self) -> int:
        """Uniform random numbers wanted for each sample."""

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """New images (N x C x H x W) from `images` of that shape and `uniforms` (N x draws), each in [0, 1)."""


@dataclass(frozen=True)
class CropFlip:
    """Zero-padded random crop and random horizontal flip, each sample by itself.

    Args:
        padding: zeros added on every side before a crop of the old size; 0 does not crop.
        flip: probability that a sample is flipped.
    """

    padding: int
    flip: float
    draws: int = 3

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Crop where uniforms 0 and 1 say, row and column; flip where uniform 2 is below `flip`."""
        offsets = (uniforms[:, :2] * (2 * self.padding + 1)).long()
        return crop_flip(images, offsets[:, 0], offsets[:, 1], uniforms[:, 2] < self.flip, self.padding)


def crop_flip(images: Tensor, rows: Tensor, columns: Tensor, flipped: Tensor, padding: int) -> Tensor:
    """Pad with zeros, crop sample n at (rows[n], columns[n]), flip it left to right where flipped[n].

    Args:
        images: (N, C, H, W), any type.
        rows, columns: int64 (N,), top left corner of each crop in the padded image, 0 to 2 * padding.
        flipped: bool (N,).
        padding: zeros on every side.

    Returns:
        (N, C, H, W), as `images`.
    """
    count, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    across = torch.arange(width, device=images.device)
    across = torch.where(flipped[:, None], width - 1 - across, across) + columns[:, None]
    down = rows[:, None] + torch.arange(height, device=images.device)
    pixels = down[:, :, None] * (width + 2 * padding) + across[:, None, :]
    pixels = pixels.view(count, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, pixels).view(count, channels, height, width)


@dataclass(frozen=True)
class Cutout:
    """`CropFlip`, then a square of each image filled with its mean colour (DeVries and Taylor, 2017).

    Args:
        padding, flip: as of `CropFlip`.
        size: of the square's sides, a fraction of the image's; its centre may be anywhere in the image.
    """

    padding: int
    flip: float
    size: float
    draws: int = 5

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Crop and flip by uniforms 0 to 2; uniforms 3 and 4 are the centre of the square, row and column."""
        cropped = CropFlip(self.padding, self.flip)(images, uniforms[:, :3])
        side = torch.full_like(uniforms[:, 0], self.size)
        return erase(cropped, box(images, side, side, uniforms[:, 3], uniforms[:, 4]))


@dataclass(frozen=True)
class Standard:
    """A random crop resized to the image's size, flip, rotation, colour jitter and random erasing, in that order.

    Args:
        scale, ratio: ranges of the crop's area, a fraction of the image's, and of its width to its height.
        flip, erase: probabilities of a horizontal flip, and that a rectangle (2 to 33 % of the area) is erased.
        rotation: largest angle in degrees, either way.
        brightness, contrast, saturation: each is multiplied by a factor of up to this much more or less than 1.
        hue: largest turn of the colours, either way, a fraction of the whole circle.
    """

    scale: Sequence[float]
    ratio: Sequence[float]
    flip: float
    rotation: float
    brightness: float
    contrast: float
    saturation: float
    erase: float
    hue: float

    @property
    def draws(self) -> int:
        """Random numbers for each sample."""
        return 14 + (self.hue > 0)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Each uniform is for one choice; a key that is off leaves the numbers of the others as they are."""
        area, shape, row, column, flip, angle, *factors = uniforms[:, :9].unbind(1)
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        root = torch.exp((low + shape * (high - low)) / 2)
        width, height = (area.sqrt() * root).clamp(max=1), (area.sqrt() / root).clamp(max=1)
        centre = (2 * column - 1) * (1 - width), (2 * row - 1) * (1 - height)
        turn = torch.deg2rad((2 * angle - 1) * self.rotation)
        mirrored = torch.where(flip < self.flip, -1.0, 1.0)
        augmented = resample(images.float(), (width * mirrored, height), centre, turn)
        spreads = (self.brightness, self.contrast, self.saturation)
        augmented = jitter(
            augmented, *(1 + (2 * drawn - 1) * most for drawn, most in zip(factors, spreads, strict=True))
        )
        if self.hue > 0:
            augmented = turn_hue(augmented, 2 * math.pi * (2 * uniforms[:, 14] - 1) * self.hue)
        chosen, area, shape, row, column = uniforms[:, 9:14].unbind(1)
        side, root = (0.02 + 0.31 * area).sqrt(), torch.exp((2 * shape - 1) * math.log(3.3) / 2)
        inside = box(images, side / root, side * root, row, column)
        augmented = erase(augmented, inside & (chosen < self.erase)[:, None, None, None])
        return augmented.round().clamp(0, 255).to(images.dtype)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Float images (N, C, H, W), their colours turned by angles (N,) in radians, in YIQ: luma and greys stay."""
    if images.shape[1] != 3:
        return images
    yiq = images.new_tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cos, sin = turn.cos(), turn.sin()
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    turned = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    matrices: Tensor = torch.linalg.inv(yiq) @ turned @ yiq
    return (matrices @ images.flatten(2)).view_as(images)


def resample(images: Tensor, half: tuple[Tensor, Tensor], centre: tuple[Tensor, Tensor], turn: Tensor) -> Tensor:
    """Bilinear crops of float images (N, C, H, W), of their own size; black outside the image.

    Args:
        half: width and height of each crop, a fraction of the image's, (N,); a negative width mirrors.
        centre: of each crop, across and down, -1 to 1.
        turn: angle of each crop in radians.
    """
    (width, height), (across, down) = half, centre
    tall, wide = images.shape[2:]
    first = torch.stack([width * turn.cos(), -width * turn.sin() * tall / wide, across], dim=1)
    second = torch.stack([height * turn.sin() * wide / tall, height * turn.cos(), down], dim=1)
    grid = functional.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Float images (N, C, H, W) of 0 to 255 with these multiplied by factors (N,), as by torchvision's ColorJitter."""
    bright, sharp, vivid = (factor.view(-1, 1, 1, 1) for factor in (brightness, contrast, saturation))
    images = (images * bright).clamp(0, 255)
    images = torch.lerp(grey(images).mean(dim=(2, 3), keepdim=True), images, sharp).clamp(0, 255)
    return torch.lerp(grey(images), images, vivid).clamp(0, 255)


def grey(images: Tensor) -> Tensor:
    """The luminance (N, 1, H, W) of colour images; others, of one channel or many, by their mean."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    return (images * images.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def box(images: Tensor, height: Tensor, width: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Which pixels, bool (N, 1, H, W), are in a rectangle whose sides and centre (N,) are fractions of the image's."""
    tall, wide = images.shape[2:]
    down = (torch.arange(tall, device=images.device) + 0.5) / tall
    across = (torch.arange(wide, device=images.device) + 0.5) / wide
    below, right = down - (row - height / 2)[:, None], across - (column - width / 2)[:, None]
    rows, columns = (below >= 0) & (below < height[:, None]), (right >= 0) & (right < width[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(images: Tensor, inside: Tensor) -> Tensor:
    """`images` with the pixels that are `inside` in the mean colour of each image."""
    return torch.where(inside, images.float().mean(dim=(2, 3), keepdim=True).to(images.dtype), images)


@dataclass(frozen=True)
class PerSample:
    """A transform of torchvision that draws from torch's own random numbers, seeded for each sample by its uniforms."""

    transform: Any
    flip: float
    draws: int = 2

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Flip where uniform 0 is below `flip`; uniform 1 is the seed."""
        augmented = []
        with torch.random.fork_rng(devices=[]):
            for image, (flip, seed) in zip(images, uniforms.tolist(), strict=True):
                torch.default_generator.manual_seed(int(seed * (1 << 24)))  # all the bits that a float32 has
                augmented.append(self.transform(image.flip(-1) if flip < self.flip else image))
        return torch.stack(augmented)


def trivial_augment(flip: float) -> PerSample:
    """TrivialAugment (Müller and Hutter, 2021): one operation of random strength for each sample."""
    from torchvision.transforms import v2

    return PerSample(v2.TrivialAugmentWide(), flip)


def rand_augment(operations: int, magnitude: int, flip: float) -> PerSample:
    """RandAugment (Cubuk et al., 2019): `operations` random ones of strength `magnitude` (0 to 30) for each sample."""
    from torchvision.transforms import v2

    return PerSample(v2.RandAugment(operations, magnitude), flip)
