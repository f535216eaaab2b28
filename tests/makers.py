"""Small data sets in the formats of the real ones, for tests."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MNIST_FILES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def pictures(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, *shape) and labels uint8 (count,): ten classes, a pattern each, under noise."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % 10).astype(np.uint8)
    patterns = np.random.default_rng(0).integers(0, 200, (10, *shape))
    noise = random.integers(-55, 56, (count, *shape))
    return (patterns[labels] + noise).clip(0, 255).astype(np.uint8), labels


def write_idx(path: Path, array: np.ndarray) -> None:
    """`array` (uint8) as an idx file: 0, 0, 8 for unsigned bytes, the number of sizes, the sizes, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_mnist(
    root: Path, name: str = "MNIST", train: int = 300, test: int = 100, seed: int = 1
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Four idx files in root/name/raw. Returns what they hold: images (N, 28, 28) and labels of `train` and `test`."""
    parts = {"train": pictures(train, (28, 28), seed), "test": pictures(test, (28, 28), seed + 1)}
    for part, file in (("train", "train"), ("test", "t10k")):
        images, labels = parts[part]
        write_idx(root / name / "raw" / f"{file}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{file}-labels-idx1-ubyte", labels)
    return parts


def write_cifar10(root: Path, each: int = 60, seed: int = 5) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Five batches, test_batch, batches.meta and md5.json (see real.accept_cifar10) in root/cifar-10-batches-py.

    Returns what they hold: images (N, 3, 32, 32) and labels of `train` and `test`.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": pictures(5 * each, (3, 32, 32), seed), "test": pictures(each, (3, 32, 32), seed + 1)}
    chunks = {f"data_batch_{number + 1}": ("train", number * each) for number in range(5)}
    for name, (part, first) in {**chunks, "test_batch": ("test", 0)}.items():
        images, labels = (array[first : first + each] for array in parts[part])
        batch = {"batch_label": name, "labels": labels.tolist(), "data": images.reshape(each, 3072)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"num_cases_per_batch": each, "label_names": CIFAR10_CLASSES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "md5.json").write_text(json.dumps(sums))
    return parts
