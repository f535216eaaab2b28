"""Mixing the samples of a batch: pure functions of the samples, their partners and random numbers drawn outside.

The loader draws the numbers from (seed, epoch, sample), and takes the next sample of the batch as a partner.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mcls.augmentations import box

__all__ = ["CutMix", "Mixup"]


class Mix(Protocol):
    """What the loader asks of a mixing of samples."""

    @property
    def images(self) -> bool:
        """Whether samples must be images."""

    def draw(self, count: int, random: np.random.Generator) -> Tensor:
        """Random numbers, float32 (count, any), a row for each sample."""

    def __call__(self, inputs: Tensor, partners: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed inputs (N, ...), and the fraction of each sample's own class in its target, (N,)."""


@dataclass(frozen=True)
class Mixup:
    """The weighted mean of a sample and its partner (Zhang et al., 2018).

    Args:
        alpha: of the beta distribution of the weight; 0.2 mixes most samples little, 1 by any weight alike.
    """

    alpha: float
    images: bool = field(default=False, init=False)

    def draw(self, count: int, random: np.random.Generator) -> Tensor:
        """The weights of the samples themselves, (count, 1)."""
        return torch.from_numpy(random.beta(self.alpha, self.alpha, (count, 1)).astype(np.float32))

    def __call__(self, inputs: Tensor, partners: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed by column 0 of `drawn`."""
        share = drawn[:, 0]
        return torch.lerp(partners, inputs, share.view(-1, *[1] * (inputs.ndim - 1))), share


@dataclass(frozen=True)
class CutMix:
    """A rectangle of the partner in the image of a sample (Yun et al., 2019).

    Args:
        alpha: of the beta distribution of the fraction of the image that is the sample's own.
    """

    alpha: float
    images: bool = field(default=True, init=False)

    def draw(self, count: int, random: np.random.Generator) -> Tensor:
        """The fraction, and the centre of the rectangle, row and column."""
        drawn = [random.beta(self.alpha, self.alpha, (count, 1)), random.random((count, 2))]
        return torch.from_numpy(np.concatenate(drawn, axis=1).astype(np.float32))

    def __call__(self, inputs: Tensor, partners: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The share is that of the pixels: a rectangle at the border is cut off there."""
        share, row, column = drawn.unbind(1)
        side = (1 - share).sqrt()
        inside = box(inputs, side, side, row, column)
        return torch.where(inside, partners, inputs), 1 - inside.float().mean(dim=(1, 2, 3))
