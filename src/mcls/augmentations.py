"""Augmentation of image batches: pure functions of the images and of random numbers drawn outside.

An augmentation is an object with `draws`, how many uniform random numbers it wants for each sample, that is called
with a batch of images and those numbers. The loader draws the numbers from (seed, epoch, sample), so neither the batch
size nor the number of worker processes nor a restart changes what a sample becomes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CropFlip"]


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
