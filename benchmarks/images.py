"""Images a second of one epoch: mcls beside torchvision's ImageFolder and DataLoader, timm's loader and Ultralytics.

    python benchmarks/images.py [--each 1000] [--workers 2] [--rounds 3] [--contestants timm mcls]

JPEGs of 500 x 375 are made, in four classes; each is resized and cropped to 224 x 224. Each way is measured cold, in
its first epoch with nothing kept from before (those of mcls and Ultralytics include a look at every file, those of
mcls the statistics of the data set too); warm, in the second epoch of the same run; and, where it has a cache on disk,
in the first epoch of a run that finds it. The files are in the system's cache throughout. The contestants take turns; a
ratio is the median of the ratios within a round. What is not installed is skipped.
"""

import argparse
import importlib.util
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.data.loader import Loader, Normalise

Epoch = Callable[[], int]  # runs one and returns how many samples it had
Way = Callable[[Path, Path, int], Iterator[tuple[str, Epoch]]]
CPU = torch.device("cpu")
BATCH = 128


def write_images(folder: Path, each: int) -> None:
    """Noise, smoothed, so that a file takes about what a photograph takes."""
    random = np.random.default_rng(0)
    for name in "abcd":
        (folder / name).mkdir(parents=True)
        for number in range(each):
            small = Image.fromarray(random.integers(0, 256, (47, 63, 3), dtype=np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / name / f"{number}.jpg", quality=90)


def mcls(folder: Path, cache: Path, workers: int) -> Iterator[tuple[str, Epoch]]:
    """mcls's epochs; it reads in threads and keeps the pixels in memory."""
    keys = ["dataset.size=224", "dataset.resize=crop", "dataset.val_fraction=0", "dataset.test_fraction=0.005"]
    with checker() as check:
        config = check.check(["dataset=image_folder", f"dataset.root={folder}", *keys], False).config

    def load(kept: str | None) -> Loader:
        found = build("dataset", config["dataset"], cache=kept)
        return Loader(found.train, BATCH, CPU, Normalise(found.mean, found.std, CPU), seed=0)

    def served(loader: Loader, epoch: int = 0) -> int:
        return sum(len(targets) for _, targets in loader.epoch(epoch))

    loaders: list[Loader] = []

    def cold() -> int:
        loaders.append(load(None))
        return served(loaders[0])

    yield "cold", cold
    yield "warm", lambda: served(loaders[0], 1)
    yield "filling the cache", lambda: served(load(str(cache)))
    yield "from the cache", lambda: served(load(str(cache)))


def torchvision(folder: Path, cache: Path, workers: int) -> Iterator[tuple[str, Epoch]]:
    """ImageFolder and DataLoader."""
    from torchvision import datasets
    from torchvision import transforms as ops

    steps = [ops.Resize(224), ops.CenterCrop(224), ops.ToTensor(), ops.Normalize([0.5] * 3, [0.25] * 3)]
    loaders: list[Any] = []

    def cold() -> int:
        images = datasets.ImageFolder(folder, ops.Compose(steps))
        how: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        loaders.append(torch.utils.data.DataLoader(images, BATCH, shuffle=True, **how))
        return warm()

    def warm() -> int:
        return sum(len(targets) for _, targets in loaders[0])

    yield "cold", cold
    yield "warm", warm


def timm(folder: Path, cache: Path, workers: int) -> Iterator[tuple[str, Epoch]]:
    """timm's loader, prepared as for validation."""
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    how: dict[str, Any] = {"crop_pct": 1.0, "interpolation": "bilinear", "num_workers": workers, "device": CPU}
    loaders: list[Any] = []

    def cold() -> int:
        images = create_dataset("", str(folder))
        loaders.append(create_loader(images, (3, 224, 224), BATCH, use_prefetcher=False, **how))
        return warm()

    def warm() -> int:
        return sum(len(targets) for _, targets in loaders[0])

    yield "cold", cold
    yield "warm", warm


def ultralytics(folder: Path, cache: Path, workers: int) -> Iterator[tuple[str, Epoch]]:
    """Ultralytics' data set, prepared as for validation, in torch's loader: its own reads on after the epoch."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import ClassificationDataset

    loaders: list[Any] = []

    def cold(kept: str | bool = False) -> int:
        images = ClassificationDataset(folder, get_cfg(overrides={"imgsz": 224, "cache": kept}))
        how: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        loaders[:] = [torch.utils.data.DataLoader(images, BATCH, shuffle=True, **how)]
        return warm()

    def warm() -> int:
        return sum(len(batch["cls"]) for batch in loaders[0])

    def forget() -> None:
        folder.with_suffix(".cache").unlink(missing_ok=True)
        for file in folder.rglob("*.npy"):
            file.unlink()

    yield "cold", cold
    yield "warm", warm
    forget()
    yield "filling the cache", lambda: cold("disk")
    yield "from the cache", lambda: cold("disk")
    forget()


WAYS: dict[str, Way] = {"torchvision": torchvision, "timm": timm, "ultralytics": ultralytics, "mcls": mcls}


def processor_seconds() -> float:
    """Of this process and of those that it started, ended or not."""
    total = sum(os.times()[:4])
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


def timed(epoch: Epoch) -> tuple[float, float]:
    """Images a second, and a processor second."""
    started, before = time.monotonic(), processor_seconds()
    samples = epoch()
    return samples / (time.monotonic() - started), samples / (processor_seconds() - before)


def middle(values: Sequence[float], digits: int = 0) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def show_table(rates: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    """A row for each contestant and epoch; the last columns say how many times mcls is as fast."""
    print("\n| who | epoch | images/s | a processor second | mcls to it | by processor seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, case), found in rates.items():
        cells = [middle([rate[clock] for rate in found]) for clock in (0, 1)]
        for clock in (0, 1):
            pairs = zip(rates.get(("mcls", case), []), found, strict=False)
            ratios = [mine[clock] / other[clock] for mine, other in pairs]
            cells.append(middle(ratios, 2) if ratios and name != "mcls" else "")
        print(f"| {name} | {case} | {' | '.join(cells)} |")


def main() -> None:
    """Make the images and time each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", choices=list(WAYS), default=list(WAYS))
    given = parser.parse_args()
    for name in [name for name in given.contestants if importlib.util.find_spec(name) is None]:
        print(f"{name}: not installed, skipped")
        given.contestants.remove(name)
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "images", Path(place) / "cache"
        write_images(folder, given.each)
        for _, name in product(range(given.rounds), given.contestants):
            shutil.rmtree(cache, ignore_errors=True)
            for case, epoch in WAYS[name](folder, cache, given.workers):
                rates.setdefault((name, case), []).append(timed(epoch))
                wall, processor = rates[name, case][-1]
                load = os.getloadavg()[0]
                print(
                    f"{name:12} {case:18} {wall:7.0f} images/s {processor:7.0f} a processor second, load {load:.1f}",
                    flush=True,
                )
    show_table(rates)


if __name__ == "__main__":
    main()
