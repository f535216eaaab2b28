"""Data sets: each function takes a root folder or parameters and returns a `Dataset`; configs/dataset names it."""

import contextlib
import http.client
import io
import logging
import math
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import lock_descriptor

from mcls.data.splits import check_labels, split_train_val
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, MachineError, RequestError
from mcls.system.files import refuse_file
from mcls.system.text import plural

log = logging.getLogger("mcls")

DOWNLOAD_TIMEOUT = 30.0  # seconds of silence after which a download is given up
# what torchvision's readers raise for files that are missing, a RuntimeError, or damaged
UNREADABLE = (RuntimeError, ValueError, TypeError, KeyError, AssertionError, EOFError, OSError)
MOST = 100_000_000  # numbers in blobs: a run folder may be a stranger's


def blobs(
    n_samples: int,
    n_features: int,
    centers: int,
    cluster_std: float,
    random_state: int,
    test_fraction: float,
    test_seed: int,
    val_fraction: float,
    val_seed: int,
    folds: int | None = None,
    fold: int | None = None,
) -> Dataset:
    """Gaussian clouds, the numbers of scikit-learn's `make_blobs`; the test split is that of its `train_test_split`.

    They are computed here because the import of scikit-learn takes as long as all the rest of a short run. Args are
    scikit-learn's; `test_fraction` and `test_seed` are `train_test_split`'s `test_size` and `random_state`.
    """
    numbers = max(n_samples, centers) * n_features
    if numbers > MOST:
        raise RequestError(f"dataset.n_samples: these points are {numbers:,} numbers, more than {MOST:,}. Lower it.")
    random = np.random.RandomState(random_state)
    means = random.uniform(-10, 10, (centers, n_features))
    counts = [n_samples // centers + (label < n_samples % centers) for label in range(centers)]
    clouds = [random.normal(mean, cluster_std, (count, n_features)) for mean, count in zip(means, counts, strict=True)]
    random.shuffle(order := np.arange(n_samples))
    points = torch.from_numpy(np.concatenate(clouds)[order])
    labels = torch.from_numpy(np.repeat(np.arange(centers), counts)[order])
    shuffled = torch.from_numpy(np.random.RandomState(test_seed).permutation(n_samples))
    test_rows, rows = shuffled.tensor_split([math.ceil(test_fraction * n_samples)])
    targets = labels[rows]
    if len(targets.unique()) < centers:
        raise RequestError(
            f"dataset.n_samples: {plural(n_samples, 'point')} leave one of {centers} classes empty. Increase it."
        )
    train, val = split_train_val(Split(points[rows].float(), targets), val_fraction, val_seed, None, folds, fold)
    test = Split(points[test_rows].float(), labels[test_rows])
    return Dataset(tuple(map(str, range(centers))), train, val, lambda: test)


def mnist(
    root: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
    val_fraction: float,
    val_seed: int,
    folds: int | None = None,
    fold: int | None = None,
) -> Dataset:
    """MNIST (LeCun et al., 1998): 60,000 + 10,000 images 1 x 28 x 28, in root/MNIST/raw."""
    return torchvision_set("MNIST", root, download, mean, std, val_fraction, val_seed, folds, fold)


def fashion_mnist(
    root: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
    val_fraction: float,
    val_seed: int,
    folds: int | None = None,
    fold: int | None = None,
) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 images 1 x 28 x 28, in root/FashionMNIST/raw."""
    return torchvision_set("FashionMNIST", root, download, mean, std, val_fraction, val_seed, folds, fold)


def cifar10(
    root: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
    val_fraction: float,
    val_seed: int,
    folds: int | None = None,
    fold: int | None = None,
) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 images 3 x 32 x 32, in root/cifar-10-batches-py."""
    return torchvision_set("CIFAR10", root, download, mean, std, val_fraction, val_seed, folds, fold)


def torchvision_set(
    name: str,
    root: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
    val_fraction: float,
    val_seed: int,
    folds: int | None = None,
    fold: int | None = None,
) -> Dataset:
    """One of torchvision's image sets, read whole into uint8 tensors."""
    source = read_torchvision(name, root, train=True, download=download)
    classes = tuple(str(label).split(" - ")[0] for label in source.classes)
    whole = as_split(source, name, len(classes))
    train, val = split_train_val(whole, val_fraction, val_seed, None, folds, fold)

    def open_test() -> Split:
        return as_split(read_torchvision(name, root, train=False, download=download), name, len(classes))

    return Dataset(classes, train, val, open_test, tuple(mean), tuple(std))


def as_split(source: Any, name: str, num_classes: int) -> Split:
    """torchvision's arrays as a Split: images (N, C, H, W) uint8, targets int64."""
    images = torch.from_numpy(np.asarray(source.data))  # no view of another tensor: `Loader.release` can free it
    images = images.unsqueeze_(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    targets = torch.as_tensor(source.targets)
    check_labels(targets, num_classes, name)
    if len(images) != len(targets):
        raise DataError(
            f"{name}: {plural(len(images), 'image')} but {plural(len(targets), 'label')}. Delete the "
            "files and run again."
        )
    return Split(images, targets)


def read_torchvision(name: str, root: str, train: bool, download: bool) -> Any:
    """torchvision's reader of data set `name`, after a download if that is needed and allowed.

    Raises MachineError when the files are not there and can't be had, DataError when damaged, RequestError for a file.
    """
    from torchvision import datasets

    reader = getattr(datasets, name)
    root = str(Path(root).expanduser())
    refuse_file("dataset.root", Path(root))
    folder = Path(root) / (reader.base_folder if name == "CIFAR10" else f"{name}/raw")
    try:
        return reader(root, train=train)
    except UNREADABLE as error:
        if not isinstance(error, RuntimeError) or "not found" not in str(error):
            raise DataError(f"{folder}: {one_line(error)}. Delete the damaged file and run again.") from error
        reason = "dataset.download=false"
    if download:
        try:
            download_set(reader, Path(root), folder)
            return reader(root, train=train)
        except (RuntimeError, http.client.HTTPException, EOFError, OSError) as error:
            reason = one_line(error)
    raise MachineError(
        f"dataset.root: {name} is missing or damaged in {folder.absolute()} and could not be downloaded ({reason}). "
        f"Bring {wanted_files(reader, name)} there, or name the folder that has them with dataset.root or MCLS_DATA."
    )


def download_set(reader: Any, root: Path, folder: Path) -> None:
    """Download a data set of torchvision's to `folder` below `root`, whole or not at all, one process at a time.

    torchvision writes to the names that it looks for, and takes what a killed process left there for the data.
    """
    root.mkdir(parents=True, exist_ok=True)
    part, top = root / f".{reader.__name__}.part", folder.relative_to(root).parts[0]
    silence = socket.getdefaulttimeout()
    with (root / f".{reader.__name__}.lock").open("a") as lock:
        lock_descriptor(lock.fileno())
        try:
            reader(str(root), train=True)
            return  # another process was faster
        except UNREADABLE:
            shutil.rmtree(part, ignore_errors=True)
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            part.mkdir()
            if (root / top).exists():  # archives, or what an older download left: torchvision takes what is good of it
                shutil.copytree(root / top, part / top)
            if (archive := root / getattr(reader, "filename", top)).is_file():
                shutil.copy(archive, part)
            with contextlib.redirect_stdout(io.StringIO()):
                reader(str(part), train=True, download=True)
            if (root / top).exists():
                (root / top).replace(part / "before")
            (part / top).replace(root / top)
        finally:
            socket.setdefaulttimeout(silence)
            shutil.rmtree(part, ignore_errors=True)


def wanted_files(reader: Any, name: str) -> str:
    """What torchvision looks for, and where it comes from."""
    if name == "CIFAR10":
        files = [file for file, _ in reader.train_list + reader.test_list]
        return f"{', '.join(files)} and {reader.meta['filename']} (from {reader.url})"
    files = [Path(file).stem for file, _ in reader.resources]
    return f"{', '.join(files)} (from {reader.mirrors[0]})"


def one_line(error: BaseException) -> str:
    """The first line of an error's text, without a full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")
