"""Data sets of image files: one folder per class, or a table that lists them."""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcls.data import image_io
from mcls.data.image_cache import scan_kept
from mcls.data.image_files import ImageFiles, ImageTree, ScanResult, Shape
from mcls.data.image_index import IndexEntry, index_images
from mcls.data.image_table import Columns, read_image_table
from mcls.data.image_tree import find_images
from mcls.data.splits import check_classes, materialise, split_train_test, split_train_val, warn_missing_classes
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, RequestError
from mcls.system.device import memory_bytes
from mcls.system.text import plural, quote_names

log = logging.getLogger("mcls")

MAX_SIDE = 224  # side to which images of many sizes are brought, at most
BIG = 512  # side in pixels above which images of one size are reported as large
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes without colour


def fits_here(size: int) -> bool:
    """Whether `size` bytes are at most a quarter of the machine's memory."""
    return size <= memory_bytes(torch.device("cpu")) / 4


@dataclass(frozen=True)
class ImageKeys:
    """How the images of a data set are read and split; see configs/dataset/image_folder.yaml."""

    size: int | None
    channels: str | int
    mean: str | Sequence[float]
    std: str | Sequence[float]
    bad_images: str
    max_bad_fraction: float
    max_pixels: int
    bits: str | int
    resize: str
    crop_fraction: str | float
    interpolation: str
    jpeg_draft: bool
    test_fraction: float
    test_seed: int
    val_fraction: float
    val_seed: int
    folds: int | None = None
    fold: int | None = None

    def reading(self, bits: int) -> image_io.Reading:
        """How the files become arrays, grey pixels of more than 8 bits having `bits`."""
        asked: dict[str, Any] = {
            key: getattr(self, key) for key in ("resize", "crop_fraction", "interpolation", "jpeg_draft")
        }
        return image_io.Reading(bits, **{key: value for key, value in asked.items() if value != "auto"})


def image_folder(
    root: str | None,
    fits: Callable[[int], bool] = fits_here,
    cache: str | None = None,
    group: int | None = None,
    **keys: Any,
) -> Dataset:
    """The images below `root`, one folder per class; see configs/dataset/image_folder.yaml for the arguments.

    Raises RequestError without a root, DataError, naming the folder or the file, for what is wrong there.
    """
    if root is None:
        raise RequestError("dataset.root: must be set to the folder of the images, dataset.root=DIR.")
    source = f"dataset.root: {root}"
    return image_dataset(lambda: find_images(Path(root), group), source, ImageKeys(**keys), fits, cache)


def image_table(
    path: str | None,
    root: str | None,
    path_column: str,
    target: str,
    split_column: str | None,
    group: str | None,
    fits: Callable[[int], bool] = fits_here,
    cache: str | None = None,
    **keys: Any,
) -> Dataset:
    """The images that a table names, with their classes; see configs/dataset/image_table.yaml for the arguments.

    Raises RequestError without a path, DataError, naming the row or the file, for what is wrong in them.
    """
    if path is None:
        raise RequestError("dataset.path: must be set to the table of the images, dataset.path=FILE.")
    images = Path(path).parent if root is None else Path(root)
    columns = Columns(path_column, target, split_column, group)
    return image_dataset(
        lambda: read_image_table(Path(path), images, columns), f"dataset.path: {path}", ImageKeys(**keys), fits, cache
    )


def image_dataset(
    find: Callable[[], ImageTree], source: str, keys: ImageKeys, fits: Callable[[int], bool], cache: str | None
) -> Dataset:
    """The data set of the images that `find` returns, which messages call `source`.

    Every file is read once, so that a bad one is found and the statistics are exact, or was for an earlier run with
    the same `cache` folder. `fits` decides, from the bytes
    that all images take, whether they are kept; if not, they are read again whenever they are wanted.
    """
    if keys.channels not in ("auto", 1, 3):
        raise RequestError(f"dataset.channels: must be auto, 1 or 3, got {keys.channels}.")
    tree = find()
    if keys.folds is not None:  # which train and val together are cut into
        tree.parts["train"] += tree.parts.pop("val", [])
    check_classes(tree.classes, source.partition(": ")[2])
    index = index_images(tree.paths, Path(source.partition(": ")[2]), keys.max_pixels, cache)
    images = [entry for sample in tree.parts["train"] if (entry := index[sample]).mode]
    shape = choose_shape(images, keys.size, keys.channels)
    reading = keys.reading(choose_bits([entry.largest for entry in images if entry.mode[0] == "I"], keys.bits))
    files = ImageFiles(tree.paths, shape, keys.max_pixels, reading)
    looked, files = scan_kept(files, [entry.sha256 for entry in index], fits(len(files) * math.prod(shape)), cache)
    parts = {name: readable_images(numbers, tree, index, looked) for name, numbers in tree.parts.items()}
    report_unreadable(tree, looked, keys.max_bad_fraction if keys.bad_images == "skip" else None)
    split_off(parts, keys, tree.groups)
    warn_missing_classes(tree.classes, parts)
    middle, spread = statistics_of(looked.sums[torch.as_tensor(parts["train"].inputs)], shape)
    if not any(spread):
        raise DataError(
            f"{source}: every pixel of the training images has the same colour, so there is nothing to learn. "
            "Open some of them to check."
        )
    splits = {
        name: materialise(part, files if looked.pixels is None else looked.pixels) for name, part in parts.items()
    }
    middle, spread = given("mean", keys.mean, middle), given("std", keys.std, tuple(value or 1.0 for value in spread))
    return Dataset(
        tree.classes, splits["train"], splits.get("val"), lambda: splits["test"], middle, spread, reading=reading
    )


def split_off(parts: dict[str, Split], keys: ImageKeys, groups: Tensor | None) -> None:
    """Cut test and val off from train, in `parts`, where they have none of their own; no group of images is cut."""

    def of(part: Split) -> Tensor | None:
        return None if groups is None else groups[torch.as_tensor(part.inputs)]

    whole = parts["train"]
    if "test" not in parts:
        parts["train"], parts["test"] = split_train_test(whole, keys.test_fraction, keys.test_seed, of(whole))
        whole = parts["train"]
    if "val" not in parts:
        cut = keys.val_fraction, keys.val_seed, of(whole), keys.folds, keys.fold
        parts["train"], val = split_train_val(whole, *cut)
        parts |= {"val": val} if val is not None else {}


def choose_bits(largest: Sequence[int], bits: str | int) -> int:
    """The bits of a grey pixel in training images of more than 8 bits, and a line that says it.

    Args:
        largest: value in each of them.
    """
    if not largest:
        return image_io.BITS
    chosen = bits if isinstance(bits, int) else min(max(8, max(largest).bit_length()), image_io.BITS)
    log.info(
        f"images  {len(largest):,} of more than 8 bits: values 0 to {2**chosen - 1} ({chosen} bits) become 0 to 255"
    )
    return chosen


def choose_shape(images: Sequence[IndexEntry], size: int | None, channels: str | int) -> Shape:
    """Channels, height and width for training images like these, and a line of the log that says why."""
    sizes = Counter((image.height, image.width) for image in images)
    modes = Counter(image.mode for image in images)
    depth = channels if isinstance(channels, int) else 1 if modes and all(mode in GREY for mode in modes) else 3
    if size is not None:
        height = width = size
    elif len(sizes) == 1:
        height, width = next(iter(sizes))
    else:
        height = width = min(MAX_SIDE, round(statistics.median(map(min, sizes.elements())))) if sizes else 1
    if sizes:
        low, high = (f"{extreme(sizes)[1]} x {extreme(sizes)[0]}" for extreme in (min, max))
        had = low if len(sizes) == 1 else f"{len(sizes)} sizes, {low} to {high}"
        kinds = ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common())
        log.info(f"images  {had} ({kinds}); taken as {width} x {height} {'grey' if depth == 1 else 'RGB'}")
    if size is None and max(height, width) > BIG:
        log.warning(f"images  {width} x {height} is large, training will be slow; dataset.size={MAX_SIDE} reduces it")
    return depth, height, width


def readable_images(numbers: Sequence[int], tree: ImageTree, index: Sequence[IndexEntry], looked: ScanResult) -> Split:
    """The images of a split that can be read: their numbers in place of inputs, classes and names."""
    good = [sample for sample in numbers if looked.errors[sample] is None]
    targets = torch.tensor([tree.targets[sample] for sample in good], dtype=torch.int64)
    names, digests = tuple(tree.names[sample] for sample in good), tuple(index[sample].sha256 for sample in good)
    return Split(torch.tensor(good, dtype=torch.int64), targets, names, digests)


def report_unreadable(tree: ImageTree, looked: ScanResult, limit: float | None) -> None:
    """Raise DataError, with a note for each, when more than a fraction of `limit` can't be read; else say which.

    None allows no image, and is not a limit to be raised.
    """
    bad = [error for error in looked.errors if error is not None]
    if not bad:
        return
    share = len(bad) / len(tree.paths)
    if limit is None or share > limit:
        needed = f"dataset.max_bad_fraction={math.ceil(share * 100) / 100:g}"
        advice = f"raise the limit of bad_images=skip: {needed}" if limit is not None else "set dataset.bad_images=skip"
        if limit is None and share > 0.01:
            advice += f" {needed}"
        others = f" ({len(bad):,} of {plural(len(tree.paths), 'image')})"
        failure = DataError(
            f"{str(bad[0]).rstrip('.')}{others}. Fix or remove {'them' if len(bad) > 1 else 'it'}, or {advice}."
        )
        for error in bad:
            failure.add_note(str(error))
        raise failure
    log.warning(f"images  {len(bad)} of {len(tree.paths):,} skipped because they can't be read, the first: {bad[0]}")
    for part, numbers in tree.parts.items():
        left = {tree.targets[sample] for sample in numbers if looked.errors[sample] is None}
        lost = [name for sample, name in enumerate(tree.classes) if sample not in left]
        if not left or (part == "train" and lost):
            raise DataError(f"{str(bad[0]).rstrip('.')}, and no image of {quote_names(lost)} is left in {part}.")


def statistics_of(sums: Tensor, shape: Shape) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1, from sums int64 (N, C, 2)."""
    count = len(sums) * shape[1] * shape[2]
    means, deviations = [], []
    for total, squares in sums.sum(dim=0).tolist():
        means.append(total / count / 255)
        variance = (squares * count - total * total) / count**2  # whole numbers until the division
        deviations.append(variance**0.5 / 255)
    return tuple(means), tuple(deviations)


def given(key: str, value: str | Sequence[float], computed: tuple[float, ...]) -> tuple[float, ...]:
    """`value`, or what was computed where it is `auto`. Raises RequestError unless there is one number per channel."""
    if isinstance(value, str):
        return computed
    if len(value) != len(computed):
        raise RequestError(
            f"dataset.{key}: {plural(len(value), 'number')} for {plural(len(computed), 'channel')}. Give one "
            "per channel, or auto."
        )
    return tuple(value)
