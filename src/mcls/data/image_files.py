"""Images in files: looked through once, in threads; then kept as one tensor, or read whenever they are wanted."""

import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcls.data import image_io
from mcls.data.packed_image import PackedImage
from mcls.errors import DataError
from mcls.system.console import progress_bar

CHUNK = 64  # files a thread reads at a time
READER_THREADS = 16  # at most

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ImageTree:
    """The images of a data set, by their files.

    Args:
        classes: names, in natural order.
        paths: of all images, or what holds them.
        targets: class number of each.
        names: of each, below the root, without characters that a terminal would obey.
        parts: numbers of the images of each split that has a folder; `train` always.
        groups: a number of each image, equal for those that no split may part; None where each is by itself.
    """

    classes: tuple[str, ...]
    paths: list[Path | PackedImage]
    targets: list[int]
    names: list[str]
    parts: dict[str, list[int]]
    groups: Tensor | None = None


class ImageFiles:
    """Image files that are decoded and resized each time they are read, in place of a tensor uint8 (N, C, H, W).

    Args:
        paths: of the files.
        sample: C, H and W.
        max_pixels: of an image, before it is resized.
        reading: how the files become arrays.
        decoded: file of numpy's with all images of a data set, decoded and resized; None reads the files.
        rows: number of each image in it.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self,
        paths: Sequence[Path | PackedImage],
        sample: Shape,
        max_pixels: int,
        reading: image_io.Reading,
        decoded: Path | None = None,
        rows: Sequence[int] = (),
    ) -> None:
        self.paths, self.sample, self.max_pixels, self.reading = list(paths), sample, max_pixels, reading
        self.decoded, self.rows = decoded, list(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H and W."""
        return len(self.paths), *self.sample

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Any) -> Tensor:
        """The images that a tensor would give for `indices`. Raises DataError, naming the file."""
        rows = torch.arange(len(self))[indices]
        if self.decoded is not None:
            wanted = [self.rows[row] for row in rows.flatten().tolist()]
            return torch.from_numpy(np.load(self.decoded, mmap_mode="r")[wanted]).view(*rows.shape, *self.sample)
        read = [self.read(self.paths[row]) for row in rows.flatten().tolist()]
        pixels = np.stack(read) if read else np.empty((0, *self.sample), dtype=np.uint8)
        return torch.from_numpy(pixels).view(*rows.shape, *self.sample)

    def select(self, indices: Tensor) -> "ImageFiles":
        """The images with these numbers, unread."""
        numbers = indices.tolist()
        rows = [self.rows[index] for index in numbers] if self.rows else ()
        paths = [self.paths[index] for index in numbers]
        return ImageFiles(paths, self.sample, self.max_pixels, self.reading, self.decoded, rows)

    def decoded_in(self, file: Path) -> "ImageFiles":
        """The same images, read from numpy's `file`, which has them in this order."""
        return ImageFiles(self.paths, self.sample, self.max_pixels, self.reading, file, range(len(self)))

    def read(self, path: Path | PackedImage) -> NDArray[np.uint8]:
        """One image, uint8 (C, H, W). Raises DataError, naming the file."""
        return image_io.read_resized(path, self.sample, self.max_pixels, self.reading)


@dataclass(frozen=True)
class ScanResult:
    """What a look at every image found.

    Args:
        pixels: uint8 (N, C, H, W), None when they are not kept.
        sums: int64 (N, C, 2), sum of the pixels and of their squares.
        errors: what is wrong with each, None where nothing is.
    """

    pixels: Tensor | None
    sums: Tensor
    errors: list[DataError | None]


def scan_images(files: ImageFiles, keep: bool, into: NDArray[np.uint8] | None = None) -> ScanResult:
    """Read every image once, in threads; with `into`, to this array."""
    pixels = torch.zeros(files.shape, dtype=torch.uint8) if keep else None
    sums = torch.zeros(len(files), files.sample[0], 2, dtype=torch.int64)
    kept, summed = into if pixels is None else pixels.numpy(), sums.numpy()

    def look(index: int) -> DataError | None:
        try:
            image = files.read(files.paths[index])
        except DataError as error:
            return error
        flat = image.reshape(len(image), -1).astype(np.uint16)  # which holds the square of a pixel
        summed[index, :, 0] = flat.sum(axis=1, dtype=np.uint64)
        summed[index, :, 1] = (flat * flat).sum(axis=1, dtype=np.uint64)
        if kept is not None:
            kept[index] = image
        return None

    return ScanResult(pixels, sums, threaded(look, range(len(files)), "reading"))


def threaded(function: Callable[[Any], Any], items: Sequence[Any], verb: str) -> list[Any]:
    """`function` of every item, in order, in one thread per processor; shows a progress bar when it takes long."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    workers = min(os.cpu_count() or 1, READER_THREADS)
    with (
        warnings.catch_warnings(action="ignore"),  # Pillow's, about files that are reported anyway
        ThreadPoolExecutor(workers) as pool,
        progress_bar(f"{verb} images", len(items)) as bar,
    ):
        parts_done = []
        for part in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
            parts_done.append(part)
            bar.update(len(part))
    return list(itertools.chain.from_iterable(parts_done))
