"""Batches of a split: slices of an epoch's order, prepared on the device. No state: the order of an epoch is a function
of (seed, epoch) and the augmentation of a sample one of (seed, epoch, sample), whoever reads them and from where."""

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from mcls.augmentations import Augmentation
from mcls.data.types import Split
from mcls.errors import MachineError, MclsError
from mcls.mixing import Mix
from mcls.system.distributed import SINGLE_PROCESS, World

if TYPE_CHECKING:
    from mcls.data.image_files import ImageFiles

PREFETCHED = 4  # batches that each process reads ahead
ORDER, AUGMENT, MIX = 0, 1, 2  # what a generator is for


def generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """A CPU generator of its own for every (seed, epoch, purpose)."""
    mixed = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1)  # torch uses the low 32 bits of a seed
    return torch.Generator().manual_seed(int(mixed[0]))


def forward_batch(shape: tuple[int, ...], num_classes: int) -> int:
    """Samples of `shape` in a batch that needs no gradient: 1,024 while they take up to 32 MiB as floats.

    So do four copies of their logits, which are made where they are counted.
    """
    return max(1, min(1024, (32 << 20) // (4 * max(math.prod(shape), 4 * num_classes))))


class Normalise:
    """Turns a batch as it is stored into what a model is given: uint8 images to floats of mean 0 and deviation 1.

    Args:
        mean, std: of each channel, in 0..1; None for inputs that are floats already.
    """

    def __init__(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, device: torch.device) -> None:
        self.scale = self.shift = None
        self.centres = mean is not None and any(mean)  # a mean of 0 needs no pass over the batch
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            deviation = torch.tensor(std, dtype=torch.float64)
            self.scale = (1 / (255 * deviation)).float().view(shape).to(device)
            self.shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).float().view(shape).to(device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """float32 of the shape of `inputs`."""
        if self.scale is None or self.shift is None:
            return inputs.clone()  # a model may change its inputs in place
        scaled = inputs.to(torch.float32, copy=True).mul_(self.scale)  # twice as fast as mixing the types
        return scaled.add_(self.shift) if self.centres else scaled


class IndexDataset:
    """A split as a map-style data set of whole batches, for `DataLoader`."""

    def __init__(self, inputs: "Tensor | ImageFiles") -> None:
        self.inputs = inputs

    def __getitem__(self, indices: Tensor) -> Tensor | MclsError:
        """The samples with these numbers. What a file has against it is handed over, for a worker would wrap it."""
        try:
            return self.inputs[indices]
        except MclsError as error:
            return error


class Loader:
    """Serves a split in batches on a device.

    Args:
        split: the samples.
        batch_size: samples a batch; the last one of an epoch may be smaller.
        device: where the batches are wanted.
        normalise: applied to every batch, after augmentation.
        augment: applied to every batch as it is stored; None for val and test.
        seed: of the order and the augmentation; None serves the samples in their own order.
        balanced: an epoch draws as many samples, of each class as probably as of another, some more than once.
        mix: mixes each sample of a batch with the next one there, the last with the first; targets are then
            probabilities of the classes, float (N, C).
        num_classes: C, for `mix`.
        drop_last: leave out the last batch of an epoch where it is smaller than the others.
        resident: keep the whole split on the device; otherwise, and always when its inputs are `Files`, it stays where
            it is and batches are brought over.
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
        balanced: bool = False,
        mix: Mix | None = None,
        num_classes: int = 0,
        drop_last: bool = False,
        resident: bool = True,
        workers: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.resident = resident and isinstance(split.inputs, Tensor)
        self.inputs = split.inputs.to(device) if resident and isinstance(split.inputs, Tensor) else split.inputs
        self.targets = split.targets.to(device)
        self.batch_size, self.device, self.normalise = batch_size, device, normalise
        self.augment, self.seed = augment, seed
        self.mix, self.num_classes = mix, num_classes
        self.balanced, self.drop_last, self.workers = balanced, drop_last, workers
        self.batches: list[Tensor] = []
        self.rows: DataLoader[Any] | None = None  # of a split that is not resident
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        return len(self.targets)

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Sample numbers (int64, on the CPU) in the order in which `epoch` serves them."""
        if self.seed is None:
            return torch.arange(self.samples)
        if self.balanced:
            return draw_balanced(self.targets.cpu(), generator(self.seed, epoch, ORDER))
        return torch.randperm(self.samples, generator=generator(self.seed, epoch, ORDER))

    def uniforms(self, epoch: int) -> Tensor | None:
        """The random numbers of `epoch`'s augmentation, one row for each sample number; None without augmentation.

        When samples are drawn balanced, one row for each place in the order: a sample drawn twice is augmented twice.
        """
        if self.augment is None or self.seed is None:
            return None
        draws = torch.rand(self.samples, self.augment.draws, generator=generator(self.seed, epoch, AUGMENT))
        return draws.to(self.device)

    def size(self, batch: int) -> int:
        """Samples in batch number `batch` of an epoch."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def epoch(self, epoch: int = 0, first: int = 0, world: World = SINGLE_PROCESS) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs float (N, ...) and targets int64 (N,) of every batch of `epoch` from number `first` on.

        Each rank gets its share of a batch; nothing of a batch with fewer samples than ranks.
        """
        if self.seed is None:
            yield from self.in_order(first, world)
            return

        def cut(numbers: Tensor) -> list[Tensor]:
            batches = numbers.split(self.batch_size)[first : len(self)]
            cuts = [(batch, *world.cut(0, len(batch))) for batch in batches]
            if self.mix is not None:  # a share, and the partner of its last sample
                cuts = [(torch.cat([batch, batch[:1]]), start, end + (start < end)) for batch, start, end in cuts]
            return [batch[start:end] for batch, start, end in cuts if start < end]

        order = self.order(epoch)
        uniforms, drawn = self.uniforms(epoch), self.mix_numbers(epoch)
        batches, on_device = cut(order), cut(order.to(self.device))
        rows = cut(torch.arange(self.samples, device=self.device)) if self.balanced else on_device
        for stored, indices, row in zip(self.gather(batches, on_device), on_device, rows, strict=True):
            if self.augment is not None and uniforms is not None:
                stored = self.augment(stored, uniforms[row])
            inputs, targets = self.prepare(stored), self.targets[indices]
            if self.mix is not None and drawn is not None:  # the last one is only a partner
                inputs, share = self.mix(inputs[:-1], inputs[1:], drawn[row[:-1]])
                classes = functional.one_hot(targets, self.num_classes).to(share.dtype)
                targets = torch.lerp(classes[1:], classes[:-1], share[:, None])
            yield inputs, targets

    def mix_numbers(self, epoch: int) -> Tensor | None:
        """The random numbers of `mix` in `epoch`, as those of the augmentation; None without it."""
        if self.mix is None:
            return None
        random = np.random.default_rng(np.random.SeedSequence([self.seed or 0, epoch, MIX]))
        return self.mix.draw(self.samples, random).to(self.device)

    def in_order(self, first: int, world: World) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a split whose samples are served in their own order: slices, not copies."""
        starts = range(first * self.batch_size, self.samples, self.batch_size)
        cuts = [world.cut(start, min(start + self.batch_size, self.samples)) for start in starts]
        cuts = [(start, end) for start, end in cuts if start < end]
        if self.resident:
            batches: Iterator[Tensor] = (self.inputs[start:end] for start, end in cuts)
        else:
            batches = self.read([torch.arange(start, end) for start, end in cuts])
        for stored, (start, end) in zip(batches, cuts, strict=True):
            yield self.prepare(stored), self.targets[start:end]

    def prepare(self, stored: Tensor) -> Tensor:
        """A batch as a model is given it."""
        inputs = self.normalise(stored)
        return inputs.contiguous(memory_format=self.memory_format) if inputs.ndim == 4 else inputs

    def release(self) -> None:
        """Give back the memory of the samples, the split's own too where the loader shares it. Serves nothing after."""
        if isinstance(self.inputs, Tensor):
            self.inputs.set_()  # type: ignore[call-overload]

    def gather(self, batches: list[Tensor], on_device: list[Tensor]) -> Iterator[Tensor]:
        """The inputs of each batch as they are stored, on the device."""
        if self.resident and isinstance(self.inputs, Tensor):
            return (self.inputs.index_select(0, indices) for indices in on_device)
        return self.read(batches)

    def read(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """The same, of a split that is not on the device."""
        pin = self.device.type == "cuda"
        stays = self.workers > 0 and self.seed is not None  # processes for all epochs, each of which has its order
        if self.rows is not None and stays:
            self.batches[:] = batches
        else:
            self.batches = list(batches)
            self.rows = DataLoader(
                IndexDataset(self.inputs),  # type: ignore[arg-type]
                sampler=self.batches,
                batch_size=None,
                num_workers=self.workers,
                pin_memory=pin,
                persistent_workers=stays,
                prefetch_factor=PREFETCHED if self.workers else None,
                generator=torch.Generator(),  # or it would draw from torch's own, which dropout uses
            )
        for inputs in self.rows:
            if isinstance(inputs, MclsError):
                raise inputs
            yield inputs.to(self.device, non_blocking=pin)


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Raise MachineError where torch says that a process that reads the data is gone: by a signal handler, anywhere."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker (pid" not in text and "shared memory" not in text and "</torch_" not in text:
            raise
        raise MachineError(
            f"trainer.workers: a process that reads the data ended ({text.splitlines()[0].rstrip('. ')}), as when "
            "memory or shared memory runs out. The saved checkpoint is valid: lower trainer.workers and continue with "
            "mcls resume."
        ) from error


def draw_balanced(targets: Tensor, random: torch.Generator) -> Tensor:
    """As many sample numbers as there are `targets` (int64 (N,)), each from a class at random, with replacement."""
    by_class = targets.argsort(stable=True)
    sizes = targets.unique(return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    drawn = torch.randint(len(sizes), targets.shape, generator=random)
    within = (torch.rand(targets.shape, generator=random, dtype=torch.float64) * sizes[drawn]).long()
    return by_class[starts[drawn] + within]
