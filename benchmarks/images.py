"""Images a second of one epoch: mcls, cold, warm and from its cache, torchvision's ImageFolder and DataLoader, timm.

    python benchmarks/images.py [--each 1000] [--workers 2] [--rounds 2]

JPEGs of 500 x 375 are made, in four classes; each is resized and cropped to 224 x 224. mcls's figures include a look at
every file and the statistics of the data set.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.data.loader import Loader, Normalise

KEYS = ["dataset.size=224", "dataset.resize=crop", "dataset.crop_fraction=0.875", "dataset.val_fraction=0"]
CPU = torch.device("cpu")


def write_images(folder: Path, each: int) -> None:
    """Noise, smoothed, so that a file takes about what a photograph takes."""
    random = np.random.default_rng(0)
    for name in "abcd":
        (folder / name).mkdir(parents=True)
        for number in range(each):
            small = Image.fromarray(random.integers(0, 256, (47, 63, 3), dtype=np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / name / f"{number}.jpg", quality=90)


def ours(folder: Path, cache: str | None) -> Loader:
    """A loader of mcls's."""
    with checker() as check:
        config = check.check(["dataset=image_folder", f"dataset.root={folder}", *KEYS], False).config
    found = build("dataset", config["dataset"], cache=cache)
    return Loader(found.train, 128, CPU, Normalise(found.mean, found.std, CPU), seed=0)


def served(loader: Loader, epoch: int = 0) -> int:
    """Samples of an epoch of it."""
    return sum(len(targets) for _, targets in loader.epoch(epoch))


def torchvisions(folder: Path, workers: int) -> int:
    """Samples of an epoch of torchvision's."""
    from torchvision import datasets
    from torchvision import transforms as ops

    steps = [ops.Resize(256), ops.CenterCrop(224), ops.ToTensor(), ops.Normalize([0.5] * 3, [0.25] * 3)]
    images = datasets.ImageFolder(folder, ops.Compose(steps))
    loader = torch.utils.data.DataLoader(images, 128, shuffle=True, num_workers=workers)
    return sum(len(targets) for _, targets in loader)


def timms(folder: Path, workers: int) -> int:
    """Samples of an epoch of timm's, prepared as for validation."""
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    images = create_dataset("", str(folder))
    how: dict[str, Any] = {"crop_pct": 0.875, "interpolation": "bilinear", "num_workers": workers, "device": CPU}
    loader = create_loader(images, (3, 224, 224), 128, use_prefetcher=False, **how)
    return sum(len(targets) for _, targets in loader)


def timed(name: str, epoch: Callable[[], int]) -> None:
    """Run one epoch and print its speed."""
    started, before = time.monotonic(), os.times()
    samples, after = epoch(), os.times()
    seconds = time.monotonic() - started
    spent = sum(after[:4]) - sum(before[:4])
    print(f"{name:24} {samples / seconds:7.0f} images/s, {samples / spent:7.0f} a processor second", flush=True)


def main() -> None:
    """Make the images and time each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "images", str(Path(place) / "cache")
        write_images(folder, given.each)
        for _ in range(given.rounds):
            timed(f"torchvision, {given.workers} workers", lambda: torchvisions(folder, given.workers))
            timed(f"timm, {given.workers} workers", lambda: timms(folder, given.workers))
            timed("mcls, cold", lambda: served(ours(folder, None)))
            shutil.rmtree(cache, ignore_errors=True)
            timed("mcls, filling the cache", lambda: served(ours(folder, cache)))
            timed("mcls, from the cache", lambda: served(ours(folder, cache)))
            loader = ours(folder, cache)
            timed("mcls, a later epoch", partial(served, loader, 1))


if __name__ == "__main__":
    main()
