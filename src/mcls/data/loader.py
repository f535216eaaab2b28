"""Batches of a split: slices of an epoch's order, prepared on the device. No state: the order of an epoch is a function
of (seed, epoch) and the augmentation of a sample one of (seed, epoch, sample), whoever reads them and from where."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mcls.data.augment import Augmentation
from mcls.data.datasets import Split

ORDER, AUGMENT = 0, 1  # what a generator is for


def generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """A CPU generator of its own for every (seed, epoch, purpose)."""
    mixed = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1)  # torch uses the low 32 bits of a seed
    return torch.Generator().manual_seed(int(mixed[0]))


class Normalise:
    """Turns a batch as it is stored into what a model is given: uint8 images to floats of mean 0 and deviation 1.

    Args:
        mean, std: of each channel, in 0..1; None for inputs that are floats already.
    """

    def __init__(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, device: torch.device) -> None:
        self.scale = self.shift = None
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            deviation = torch.tensor(std, dtype=torch.float64)
            self.scale = (1 / (255 * deviation)).float().view(shape).to(device)
            self.shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).float().view(shape).to(device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """float32 of the shape of `inputs`."""
        if self.scale is None or self.shift is None:
            return inputs
        return (inputs * self.scale).add_(self.shift)


class Rows:
    """A split as a map-style data set of whole batches, for `DataLoader`."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.inputs[indices]


class Loader:
    """Serves a split in batches on a device.

    Args:
        split: the samples.
        batch_size: samples a batch; the last one of an epoch may be smaller.
        device: where the batches are wanted.
        normalise: applied to every batch, after augmentation.
        augment: applied to every batch as it is stored; None for val and test.
        seed: of the order and the augmentation; None serves the samples in their own order.
        resident: keep the whole split on the device; otherwise it stays where it is and batches are brought over.
        workers: processes that read the batches of a split that is not resident.
        channels_last: memory order of image batches.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        device: torch.device,
        normalise: Normalise,
        *,
        augment: Augmentation | None = None,
        seed: int | None = None,
        resident: bool = True,
        workers: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.inputs = split.inputs.to(device) if resident else split.inputs
        self.targets = split.targets.to(device)
        self.batch_size, self.device, self.normalise = batch_size, device, normalise
        self.augment, self.seed = augment, seed
        self.resident, self.workers = resident, workers
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        return len(self.targets)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Sample numbers (int64, on the CPU) in the order in which `epoch` serves them."""
        if self.seed is None:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=generator(self.seed, epoch, ORDER))

    def uniforms(self, epoch: int) -> Tensor | None:
        """The random numbers of `epoch`'s augmentation, one row for each sample number; None without augmentation."""
        if self.augment is None or self.seed is None:
            return None
        draws = torch.rand(self.samples, self.augment.draws, generator=generator(self.seed, epoch, AUGMENT))
        return draws.to(self.device)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs float (N, ...) and targets int64 (N,) of every batch of `epoch` from number `first` on."""
        order = self.order(epoch)
        uniforms = self.uniforms(epoch)
        batches = list(order.split(self.batch_size))[first:]
        on_device = order.to(self.device).split(self.batch_size)[first:]
        for stored, indices in zip(self.stored(batches, on_device), on_device, strict=True):
            if self.augment is not None and uniforms is not None:
                stored = self.augment(stored, uniforms[indices])
            inputs = self.normalise(stored)
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=self.memory_format)
            yield inputs, self.targets[indices]

    def stored(self, batches: list[Tensor], on_device: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """The inputs of each batch as they are stored, on the device."""
        if self.resident:
            yield from (self.inputs.index_select(0, indices) for indices in on_device)
            return
        pin = self.device.type == "cuda"
        rows: Any = DataLoader(
            Rows(self.inputs),  # type: ignore[arg-type]
            sampler=batches,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=pin,
            generator=torch.Generator(),  # or it would draw from torch's own, which dropout uses
        )
        yield from (inputs.to(self.device, non_blocking=pin) for inputs in rows)
