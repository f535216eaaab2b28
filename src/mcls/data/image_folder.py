"""Data sets from folders of images, a folder a class."""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcls.data import image_io
from mcls.data.image_files import ImageFiles, ScanResult, Shape, header_of, scan_images, significant_bits, threaded
from mcls.data.image_tree import ImageTree, find_images
from mcls.data.splits import check_classes, materialise, split_train_test, split_train_val, warn_missing_classes
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, RequestError
from mcls.system.device import memory_bytes
from mcls.system.text import quote_names

log = logging.getLogger("mcls")

MAX_SIDE = 224  # side to which images of many sizes are brought, at most
BIG = 512  # side in pixels above which images of one size are reported as large
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes without colour


def fits_here(size: int) -> bool:
    """Whether `size` bytes are at most a quarter of the machine's memory."""
    return size <= memory_bytes(torch.device("cpu")) / 4


def image_folder(
    root: str | None,
    size: int | None,
    channels: str | int,
    mean: str | Sequence[float],
    std: str | Sequence[float],
    bad_images: str,
    max_bad_fraction: float,
    max_pixels: int,
    bits: str | int,
    resize: str,
    crop_fraction: str | float,
    interpolation: str,
    test_fraction: float,
    test_seed: int,
    val_fraction: float,
    val_seed: int,
    fits: Callable[[int], bool] = fits_here,
) -> Dataset:
    """The images below `root`; see configs/dataset/image_folder.yaml for the arguments.

    Every file is read once, so that a bad one is found and the statistics are exact. `fits` decides, from the bytes
    that all images take, whether they are kept; if not, they are read again whenever they are wanted.

    Raises RequestError without a root, DataError, naming the folder or the file, for what is wrong there.
    """
    if root is None:
        raise RequestError("dataset.root: must be set to the folder of the images, dataset.root=DIR.")
    if channels not in ("auto", 1, 3):
        raise RequestError(f"dataset.channels: must be auto, 1 or 3, got {channels}.")
    found = find_images(Path(root))
    check_classes(found.classes, root)
    paths = [found.paths[number] for number in found.parts["train"]]
    headers = threaded(header_of, paths, "looking at")
    shape = choose_shape([header for header in headers if header is not None], size, channels)
    deep = [path for path, header in zip(paths, headers, strict=True) if header and header[2].startswith("I")]
    depth = choose_bits(deep, bits, max_pixels)
    asked: dict[str, Any] = {"resize": resize, "crop_fraction": crop_fraction, "interpolation": interpolation}
    reading = image_io.Reading(depth, **{key: value for key, value in asked.items() if value != "auto"})
    files = ImageFiles(found.paths, shape, max_pixels, reading)
    keep = fits(len(files) * math.prod(shape))
    looked = scan_images(files, keep)
    parts = {name: readable_images(numbers, found, looked) for name, numbers in found.parts.items()}
    report_unreadable(found, looked, max_bad_fraction if bad_images == "skip" else None)
    split_off(parts, test_fraction, test_seed, val_fraction, val_seed)
    warn_missing_classes(found.classes, parts)
    middle, spread = statistics_of(looked.sums[torch.as_tensor(parts["train"].inputs)], shape)
    if not any(spread):
        raise DataError(
            f"dataset.root: {root}: every pixel of the training images has the same colour, so there is nothing to "
            "learn. "
            "Open some of them to check."
        )
    splits = {
        name: materialise(part, files if looked.pixels is None else looked.pixels) for name, part in parts.items()
    }
    middle, spread = given("mean", mean, middle), given("std", std, tuple(value or 1.0 for value in spread))
    return Dataset(
        found.classes, splits["train"], splits.get("val"), lambda: splits["test"], middle, spread, reading=reading
    )


def split_off(
    parts: dict[str, Split], test_fraction: float, test_seed: int, val_fraction: float, val_seed: int
) -> None:
    """Cut test and val off from train, in `parts`, where they have none of their own."""
    if "test" not in parts:
        parts["train"], parts["test"] = split_train_test(parts["train"], test_fraction, test_seed)
    if "val" not in parts and val_fraction > 0:
        parts["train"], val = split_train_val(parts["train"], val_fraction, val_seed)
        parts |= {"val": val} if val is not None else {}


def choose_bits(deep: Sequence[Path], bits: str | int, max_pixels: int) -> int:
    """The bits of a grey pixel in the training images `deep`, of more than 8 bits, and a line that says it."""
    if not deep:
        return image_io.BITS
    found = bits if isinstance(bits, int) else significant_bits(deep, max_pixels)
    log.info(f"images  {len(deep):,} of more than 8 bits: values 0 to {2**found - 1} ({found} bits) become 0 to 255")
    return found


def choose_shape(headers: Sequence[tuple[int, int, str]], size: int | None, channels: str | int) -> Shape:
    """Channels, height and width for training images of these headers, and a line of the log that says why."""
    sizes = Counter((height, width) for height, width, _ in headers)
    modes = Counter(mode for _, _, mode in headers)
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


def readable_images(numbers: Sequence[int], found: ImageTree, looked: ScanResult) -> Split:
    """The images of a split that can be read: their numbers in place of inputs, classes and names."""
    good = [number for number in numbers if looked.errors[number] is None]
    targets = torch.tensor([found.targets[number] for number in good], dtype=torch.int64)
    names, files = tuple(found.names[number] for number in good), tuple(found.paths[number] for number in good)
    return Split(torch.tensor(good, dtype=torch.int64), targets, names, files)


def report_unreadable(found: ImageTree, looked: ScanResult, limit: float | None) -> None:
    """Raise DataError, with a note for each, when more than a fraction of `limit` can't be read; else say which.

    None allows no image, and is not a limit to be raised.
    """
    bad = [error for error in looked.errors if error is not None]
    if not bad:
        return
    share = len(bad) / len(found.paths)
    if limit is None or share > limit:
        needed = f"dataset.max_bad_fraction={math.ceil(share * 100) / 100:g}"
        advice = f"raise the limit of bad_images=skip: {needed}" if limit is not None else "set dataset.bad_images=skip"
        if limit is None and share > 0.01:
            advice += f" {needed}"
        others = f" ({len(bad):,} of {len(found.paths):,} images)"
        failure = DataError(
            f"{str(bad[0]).rstrip('.')}{others}. Fix or remove {'them' if len(bad) > 1 else 'it'}, or {advice}."
        )
        for error in bad:
            failure.add_note(str(error))
        raise failure
    log.warning(f"images  {len(bad)} of {len(found.paths):,} skipped because they can't be read, the first: {bad[0]}")
    for part, numbers in found.parts.items():
        left = {found.targets[number] for number in numbers if looked.errors[number] is None}
        lost = [name for number, name in enumerate(found.classes) if number not in left]
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
    """`value`, or what was computed where it is `auto`. Raises RequestError unless there is one number a channel."""
    if isinstance(value, str):
        return computed
    if len(value) != len(computed):
        raise RequestError(
            f"dataset.{key}: {len(value)} numbers for {len(computed)} channels. Give one per channel, or auto."
        )
    return tuple(value)
