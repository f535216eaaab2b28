"""Data sets: each function takes a root folder or parameters and returns a `Dataset`; configs/dataset names it."""

import contextlib
import fcntl
import http.client
import io
import logging
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mcls.data.checked import check_labels, wrong_split
from mcls.data.names import listed
from mcls.errors import DataError, MachineError, RequestError
from mcls.files import refuse_file

if TYPE_CHECKING:
    from mcls.data.pictures import Files

log = logging.getLogger("mcls")

PATIENCE = 30.0  # seconds of silence after which a download is given up
# what torchvision's readers raise for files that are missing, a RuntimeError, or damaged
UNREADABLE = (RuntimeError, ValueError, TypeError, KeyError, AssertionError, EOFError, OSError)
MOST = 100_000_000  # numbers in blobs: a run folder may be a stranger's


@dataclass(frozen=True)
class Split:
    """Samples and their classes.

    Args:
        inputs: (N, ...), uint8 for images (N, C, H, W) and float32 for anything else; `Files` are images too big for
            memory, read at each indexing.
        targets: int64 (N,), class numbers.
        names: where each sample comes from, a file or a row; empty where there is no more to say than its number.
        files: of images in files, where the files are.
    """

    inputs: "Tensor | Files"
    targets: Tensor
    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, indices: Tensor) -> "Split":
        """The samples with these numbers."""
        names, files = (tuple(have[index] for index in indices.tolist() if have) for have in (self.names, self.files))
        return Split(select(self.inputs, indices), self.targets[indices], names, files)


def select(inputs: "Tensor | Files", indices: Tensor) -> "Tensor | Files":
    """The inputs with these numbers; files stay unread."""
    return inputs[indices] if isinstance(inputs, Tensor) else inputs.select(indices)


@dataclass(frozen=True)
class Dataset:
    """A data set, cut into splits.

    Args:
        classes: names, in the order of the class numbers.
        train: what is trained on.
        val: what choices are made on, cut from train; None when all of train is trained on.
        open_test: reads the test split. Called once, at the end, when every choice has been made.
        mean, std: of each channel, in 0..1, for uint8 images; None leaves float inputs as they are.
        encoder: what turns rows of a table into inputs (`encode_table`): text, floats and lists; None for others.
        bits: that grey pixels of more than 8 bits have in the files of images.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    open_test: Callable[[], Split]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    encoder: dict[str, Any] | None = None
    bits: int = 16

    def __post_init__(self) -> None:
        """Raise DataError unless the splits are as described above; the test split is checked when it is opened."""
        if len(self.classes) < 2 or not callable(self.open_test):
            raise DataError("dataset: wants two classes or more, and a function as open_test.")
        read = self.open_test
        object.__setattr__(self, "open_test", lambda: self.check("test", read()))
        self.check("train", self.train)
        if self.val is not None:
            self.check("val", self.val)

    def check(self, name: str, split: Any) -> Any:
        """`split`, when it is one and goes with the classes, the statistics and train."""
        wrong = None if isinstance(split, Split) else f"must be a Split, got {type(split).__name__}"
        if wrong := wrong or wrong_split(split, self.train, len(self.classes), self.mean, self.std):
            raise DataError(f"dataset: {name} {wrong}.")
        return split

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.inputs.shape[1:])


def stratified(targets: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Cut sample numbers in two, `fraction` of all and of each class in the second part, the same for the same seed.

    What rounding leaves over goes to the classes with the largest remainders. Returns two sorted int64 tensors. A class
    always keeps at least one sample in the first part.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    sizes = targets.unique(return_counts=True)[1]
    counts = (fraction * sizes).floor().long()
    missing = max(0, round(fraction * len(targets)) - int(counts.sum()))
    counts[(fraction * sizes - counts).argsort(descending=True, stable=True)[:missing]] += 1
    of_classes = targets.argsort(stable=True).split(sizes.tolist())
    for members, count in zip(of_classes, counts.minimum(sizes - 1).tolist(), strict=True):
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def cut(whole: Split, val_fraction: float, val_seed: int) -> tuple[Split, Split | None]:
    """`whole` cut into train and val (`stratified`); val is None when `val_fraction` is 0."""
    if val_fraction == 0:
        return whole, None
    return divide(whole, val_fraction, val_seed, "val_fraction", "to validate on", ", or say 0")


def cut_test(whole: Split, test_fraction: float, test_seed: int) -> tuple[Split, Split]:
    """`whole` cut into train and test (`stratified`), for data that come without a test split."""
    return divide(whole, test_fraction, test_seed, "test_fraction", "to test on", "")


def divide(whole: Split, fraction: float, seed: int, key: str, purpose: str, otherwise: str) -> tuple[Split, Split]:
    """The two parts of `stratified`. Raises RequestError, naming a fraction that does, when it leaves none for one."""
    first, second = stratified(whole.targets, fraction, seed)
    if len(second):
        return whole.rows(first), whole.rows(second)
    enough = (part / 100 for part in range(1, 100) if len(stratified(whole.targets, part / 100, seed)[1]))
    advice = next((f"Say dataset.{key}={part:g}" for part in enough), "Add samples, two of a class at least")
    raise RequestError(f"dataset.{key}: {fraction} of {len(whole)} samples leaves none {purpose}. {advice}{otherwise}.")


def filled(part: Split, inputs: "Tensor | Files") -> Split:
    """`part`, which has numbers of samples in place of inputs, with those of `inputs`."""
    return replace(part, inputs=select(inputs, torch.as_tensor(part.inputs)))


def tell_absent(classes: Sequence[str], splits: Mapping[str, Split | None]) -> None:
    """Warn of classes that a split has no sample of."""
    for name, split in splits.items():
        if split is None:
            continue
        counts = torch.bincount(split.targets, minlength=len(classes)).tolist()
        absent = [label for label, count in zip(classes, counts, strict=True) if not count]
        if absent:
            effect = "they are never learnt" if name == "train" else "nothing is measured of them there"
            log.warning(f"data    {name} has no sample of {listed(absent)}: {effect}.")


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
) -> Dataset:
    """Gaussian clouds of scikit-learn's `make_blobs`, the test cut off by its `train_test_split`.

    Args are scikit-learn's; `test_fraction` and `test_seed` are `train_test_split`'s `test_size` and `random_state`.
    """
    from sklearn.datasets import make_blobs
    from sklearn.model_selection import train_test_split

    numbers = max(n_samples, centers) * n_features
    if numbers > MOST:
        raise RequestError(f"dataset.n_samples: these points are {numbers:,} numbers, more than {MOST:,}. Lower it.")
    points, labels = make_blobs(
        n_samples, n_features, centers=centers, cluster_std=cluster_std, random_state=random_state
    )
    parts = train_test_split(points, labels, test_size=test_fraction, random_state=test_seed)
    inputs, test_inputs, targets, test_targets = map(torch.from_numpy, parts)
    if len(targets.unique()) < centers:
        raise RequestError(
            f"dataset.n_samples: {n_samples} points leave a class of {centers} without one. Ask for more."
        )
    train, val = cut(Split(inputs.float(), targets), val_fraction, val_seed)
    test = Split(test_inputs.float(), test_targets)
    return Dataset(tuple(map(str, range(centers))), train, val, lambda: test)


def mnist(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], val_fraction: float, val_seed: int
) -> Dataset:
    """MNIST (LeCun et al., 1998): 60,000 + 10,000 images 1 x 28 x 28, in root/MNIST/raw."""
    return torchvision_set("MNIST", root, download, mean, std, val_fraction, val_seed)


def fashion_mnist(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], val_fraction: float, val_seed: int
) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 images 1 x 28 x 28, in root/FashionMNIST/raw."""
    return torchvision_set("FashionMNIST", root, download, mean, std, val_fraction, val_seed)


def cifar10(
    root: str, download: bool, mean: Sequence[float], std: Sequence[float], val_fraction: float, val_seed: int
) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 images 3 x 32 x 32, in root/cifar-10-batches-py."""
    return torchvision_set("CIFAR10", root, download, mean, std, val_fraction, val_seed)


def torchvision_set(
    name: str,
    root: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
    val_fraction: float,
    val_seed: int,
) -> Dataset:
    """One of torchvision's image sets, read whole into uint8 tensors."""
    source = read_torchvision(name, root, train=True, download=download)
    classes = tuple(str(label).split(" - ")[0] for label in source.classes)
    whole = as_split(source, name, len(classes))
    train, val = cut(whole, val_fraction, val_seed)

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
        raise DataError(f"{name}: {len(images)} images but {len(targets)} labels. Delete the files and run again.")
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
            fetch(reader, Path(root), folder)
            return reader(root, train=train)
        except (RuntimeError, http.client.HTTPException, EOFError, OSError) as error:
            reason = one_line(error)
    raise MachineError(
        f"dataset.root: {name} is missing or damaged in {folder.absolute()} and could not be downloaded ({reason}). "
        f"Bring {wanted_files(reader, name)} there, or name the folder that has them with dataset.root or MCLS_DATA."
    )


def fetch(reader: Any, root: Path, folder: Path) -> None:
    """Download a data set of torchvision's to `folder` below `root`, whole or not at all, one process at a time.

    torchvision writes to the names that it looks for, and takes what a killed process left there for the data.
    """
    root.mkdir(parents=True, exist_ok=True)
    part, top = root / f".{reader.__name__}.part", folder.relative_to(root).parts[0]
    silence = socket.getdefaulttimeout()
    with (root / f".{reader.__name__}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            reader(str(root), train=True)
            return  # another process was faster
        except UNREADABLE:
            shutil.rmtree(part, ignore_errors=True)
        socket.setdefaulttimeout(PATIENCE)
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
