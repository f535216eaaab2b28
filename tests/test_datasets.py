"""Data sets against what was written, scikit-learn's own calls, and files that are wrong."""

import gzip
import hashlib
import re
import socket
import tarfile
import time
from typing import Any

import pytest
import torch
import yaml
from sklearn.datasets import make_blobs
from sklearn.model_selection import train_test_split

import makers
import real
from makers import MNIST_FILES, write_idx, write_mnist
from mcls.data import datasets
from mcls.data.splits import check_labels, split_train_val, stratified
from mcls.data.types import Split
from mcls.errors import DataError, MachineError, RequestError

BLOBS: dict[str, Any] = {"n_samples": 500, "n_features": 2, "centers": 4, "cluster_std": 1.5, "random_state": 666}
TEST: dict[str, Any] = {"test_fraction": 0.2, "test_seed": 888}
GREY = {"mean": [0.5], "std": [0.5]}
COLOUR = {"mean": [0.5] * 3, "std": [0.5] * 3}


def read(name: str, root, download: bool = False, val_fraction: float = 0.0, val_seed: int = 0):
    """One of the data sets of images under `root`."""
    keys = COLOUR if name == "cifar10" else GREY
    return getattr(datasets, name)(str(root), download, **keys, val_fraction=val_fraction, val_seed=val_seed)


def test_stratified_parts_are_disjoint_sorted_and_everything():
    targets = torch.randint(5, (503,), generator=torch.Generator().manual_seed(0))
    first, second = stratified(targets, 0.2, seed=3)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(503))
    assert all(torch.equal(part, part.sort().values) for part in (first, second))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_stratified_takes_the_same_part_of_every_class(fraction):
    targets = torch.arange(4).repeat_interleave(torch.tensor([400, 40, 100, 13]))
    _, second = stratified(targets, fraction, seed=0)
    expected = [round(fraction * size) for size in (400, 40, 100, 13)]
    assert torch.bincount(targets[second], minlength=4).tolist() == expected


def test_stratified_takes_no_pass_over_the_data_for_each_class():
    targets = torch.arange(100_000).repeat(2)
    started = time.process_time()
    _, second = stratified(targets, 0.5, seed=0)
    assert torch.equal(targets[second].sort().values, torch.arange(100_000))
    assert time.process_time() - started < 20  # it were minutes


def test_stratified_depends_on_its_seed_alone():
    targets = torch.arange(300) % 3
    torch.manual_seed(1)
    one = stratified(targets, 0.3, seed=5)
    torch.manual_seed(2)
    two = stratified(targets, 0.3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[1], stratified(targets, 0.3, seed=6)[1])


def test_stratified_keeps_the_only_sample_of_a_class_for_training():
    first, second = stratified(torch.tensor([0, 1, 1, 1, 1, 2]), 0.99, seed=0)
    assert {0, 5} <= set(first.tolist())
    assert len(second) == 3


def test_cut_of_nothing_leaves_no_val_and_all_of_train():
    whole = Split(torch.zeros(10, 2), torch.arange(10) % 2)
    assert split_train_val(whole, 0.0, 0) == (whole, None)


def test_cut_that_leaves_nothing_to_validate_on_is_refused():
    whole = Split(torch.zeros(10, 2), torch.arange(10) % 2)
    with pytest.raises(RequestError, match=r"^dataset\.val_fraction: 0\.01 of 10 samples leaves none"):
        split_train_val(whole, 0.01, 0)


def tensor(split: Split) -> torch.Tensor:
    """The inputs of a split in memory."""
    assert isinstance(split.inputs, torch.Tensor)
    return split.inputs


@pytest.mark.parametrize(
    "keys", [{}, {"n_features": 5, "centers": 3, "random_state": 0}, {"n_samples": 1003, "cluster_std": 0.3}]
)
def test_blobs_are_scikit_learns(keys):
    keys = {**BLOBS, **keys}
    points, labels = make_blobs(**keys)
    train, test, train_labels, test_labels = train_test_split(points, labels, test_size=0.2, random_state=888)
    found = datasets.blobs(**keys, **TEST, val_fraction=0.0, val_seed=0)
    assert found.val is None
    assert found.mean is found.std is None
    assert found.input_shape == (keys["n_features"],)
    assert found.classes == tuple(map(str, range(keys["centers"])))
    for split, inputs, targets in ((found.train, train, train_labels), (found.open_test(), test, test_labels)):
        assert torch.equal(tensor(split), torch.from_numpy(inputs).float())
        assert torch.equal(split.targets, torch.from_numpy(targets))
        assert (split.inputs.dtype, split.targets.dtype) == (torch.float32, torch.int64)


def test_blobs_keep_part_of_train_for_val():
    whole = datasets.blobs(**BLOBS, **TEST, val_fraction=0.0, val_seed=0)
    found = datasets.blobs(**BLOBS, **TEST, val_fraction=0.25, val_seed=0)
    first, second = stratified(whole.train.targets, 0.25, 0)
    assert (len(first) + len(second), len(found.open_test())) == (400, 100)
    assert found.val is not None
    assert torch.equal(tensor(found.train), tensor(whole.train)[first])
    assert torch.equal(tensor(found.val), tensor(whole.train)[second])
    assert torch.equal(tensor(found.open_test()), tensor(whole.open_test()))


def test_blobs_with_a_class_without_a_point_are_refused():
    with pytest.raises(RequestError, match=r"^dataset\.n_samples: 10 points leave one of 10 classes empty\."):
        datasets.blobs(**{**BLOBS, "n_samples": 10, "centers": 10}, **TEST, val_fraction=0.0, val_seed=0)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_grey_images_are_those_that_were_written(tmp_path, name, folder):
    parts = write_mnist(tmp_path, folder, train=50, test=20)
    found = read(name, tmp_path)
    assert found.val is None
    assert found.input_shape == (1, 28, 28)
    assert len(found.classes) == 10
    for split, (images, labels) in ((found.train, parts["train"]), (found.open_test(), parts["test"])):
        assert split.inputs.dtype == torch.uint8
        assert torch.equal(split.inputs[:, 0], torch.from_numpy(images))
        assert split.targets.tolist() == labels.tolist()


def test_colour_images_are_those_that_were_written(data_root, accept_cifar10, tmp_path):
    parts = makers.write_cifar10(tmp_path)  # the same again
    found = read("cifar10", data_root)
    assert found.classes == tuple(makers.CIFAR10_CLASSES)
    assert found.input_shape == (3, 32, 32)
    for split, (images, labels) in ((found.train, parts["train"]), (found.open_test(), parts["test"])):
        assert torch.equal(split.inputs, torch.from_numpy(images))
        assert split.inputs.is_contiguous()
        assert split.targets.tolist() == labels.tolist()


def test_class_names_are_words(data_root):
    assert read("mnist", data_root).classes == tuple("0123456789")
    assert read("fashion_mnist", data_root).classes[:2] == ("T-shirt/top", "Trouser")


def test_val_is_cut_from_train_by_class(data_root):
    whole, found = read("mnist", data_root), read("mnist", data_root, val_fraction=0.2)
    assert torch.bincount(found.val.targets).tolist() == [6] * 10
    first, second = stratified(whole.train.targets, 0.2, 0)
    assert torch.equal(found.train.inputs, whole.train.inputs[first])
    assert torch.equal(found.val.inputs, whole.train.inputs[second])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_test_set_is_opened_by_open_test_alone(data_root, accept_cifar10, monkeypatch, name):
    loaded = []
    original = datasets.read_torchvision

    def spy(name, root, train, download):
        loaded.append("train" if train else "test")
        return original(name, root, train, download)

    monkeypatch.setattr(datasets, "read_torchvision", spy)
    found = read(name, data_root, val_fraction=0.1)
    assert loaded == ["train"]
    found.open_test()
    assert loaded == ["train", "test"]


def test_damaged_test_files_are_found_when_the_test_set_is_opened(tmp_path):
    write_mnist(tmp_path, train=30, test=20)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    found = read("mnist", tmp_path)
    with pytest.raises(DataError):
        found.open_test()


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("kept", [0, 2, 10, 16, 1000])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_cut_off_file_is_wrong_data(tmp_path, file, kept, download):
    write_mnist(tmp_path, train=2000, test=20)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError) as caught:
        read("mnist", tmp_path, download=download)
    message = str(caught.value)
    assert message.startswith(f"{path.parent}: ")
    assert message.endswith("Delete the damaged file and run again.")
    assert "\n" not in message


@pytest.mark.parametrize(
    "start", [b"<html><body>404", bytes([0, 0, 10, 3]), bytes([0, 0, 9, 3]), bytes([0, 0, 8, 9])], ids=repr
)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_file_that_is_no_idx_file_of_bytes_is_wrong_data(tmp_path, file, start):
    write_mnist(tmp_path, train=30, test=20)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(DataError):
        read("mnist", tmp_path)


def test_a_label_that_is_no_class_is_named_with_its_row(tmp_path):
    _, labels = write_mnist(tmp_path, train=50, test=20)["train"]
    labels[[7, 30]] = 11, 10
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", labels)
    with pytest.raises(DataError, match=r"^MNIST, row 7: label 11 is not in 0\.\.9 \(2 such rows\)\.$"):
        read("mnist", tmp_path)


def test_labels_below_zero_are_refused():
    with pytest.raises(DataError, match=r"^x, row 1: label -1 is not in 0\.\.2 \(1 such row\)\.$"):
        check_labels(torch.tensor([0, -1, 2]), 3, "x")
    check_labels(torch.tensor([0, 1, 2]), 3, "x")


def test_more_images_than_labels_are_wrong_data(tmp_path):
    _, labels = write_mnist(tmp_path, train=50, test=20)["train"]
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", labels[:-1])
    with pytest.raises(DataError, match=r"^MNIST: 50 images but 49 labels\."):
        read("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "files", "source"),
    [
        ("mnist", "MNIST/raw", MNIST_FILES, "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        (
            "fashion_mnist",
            "FashionMNIST/raw",
            MNIST_FILES,
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        (
            "cifar10",
            "cifar-10-batches-py",
            (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ],
)
def test_missing_files_are_named_with_their_folder_and_source(tmp_path, name, folder, files, source):
    with pytest.raises(MachineError) as caught:
        read(name, tmp_path, download=False)
    message = str(caught.value)
    assert message.startswith("dataset.root: ")
    assert str(tmp_path / folder) in message
    assert source in message
    assert "dataset.download=false" in message
    assert all(re.search(rf"\b{file}\b", message) for file in files)
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_blobs_have_a_largest_size():
    with pytest.raises(
        RequestError, match=r"^dataset\.n_samples: these points are 2,000,000,000 numbers, more than 100"
    ):
        datasets.blobs(**{**BLOBS, "n_samples": 10**9}, **TEST, val_fraction=0.0, val_seed=0)


def test_val_is_exactly_its_fraction():
    """Ten classes whose own tenths round down: the rest is made up, each class within one of its tenth."""
    targets = torch.arange(10).repeat_interleave(torch.tensor([54, 55, 53, 54, 52, 51, 54, 54, 59, 54]))
    first, second = stratified(targets, 0.1, 0)
    assert (len(first), len(second)) == (486, 54)
    assert (targets[second].bincount() - 0.1 * targets.bincount()).abs().max() < 1


def test_archives_that_are_there_need_no_network(tmp_path, monkeypatch):
    """What somebody brought by hand, as it is published: gz files of MNIST, the tar of CIFAR-10."""
    from torchvision.datasets import CIFAR10, MNIST

    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: pytest.fail("a connection"))
    raw, made = tmp_path / "MNIST" / "raw", tmp_path / "made"
    write_mnist(made)
    raw.mkdir(parents=True)
    sums = {}
    for path in (made / "MNIST" / "raw").iterdir():
        packed = gzip.compress(path.read_bytes())
        (raw / f"{path.name}.gz").write_bytes(packed)
        sums[f"{path.name}.gz"] = hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(MNIST, "resources", [(name, sums[name]) for name, _ in MNIST.resources])
    assert len(read("mnist", tmp_path, download=True).train) == len(read("mnist", made).train)
    makers.write_cifar10(made)
    real.accept_cifar10(made, monkeypatch.setattr)
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as archive:
        archive.add(made / CIFAR10.base_folder, CIFAR10.base_folder)
    tgz = hashlib.md5((tmp_path / CIFAR10.filename).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", tgz)
    assert len(read("cifar10", tmp_path, download=True).train) == 300
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["MNIST", CIFAR10.base_folder, "made"]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_download_without_a_network_fails_soon_in_one_line(tmp_path, monkeypatch, capfd, name):
    from torchvision import datasets as theirs

    monkeypatch.setattr(theirs.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(theirs.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(theirs.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    started = time.monotonic()
    with pytest.raises(MachineError) as caught:
        read(name, tmp_path, download=True)
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "could not be downloaded" in message
    assert str(tmp_path) in message
    assert "http://127.0.0.1:9/" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_one_missing_file_is_enough(tmp_path):
    write_mnist(tmp_path, train=30, test=20)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(MachineError, match=r"^dataset\.root: MNIST is missing"):
        read("mnist", tmp_path)


def test_batches_with_another_digest_are_not_read(tmp_path):
    """torchvision unpickles them: only the published ones are let in."""
    makers.write_cifar10(tmp_path)
    with pytest.raises(MachineError, match=r"^dataset\.root: CIFAR10 is missing or damaged"):
        read("cifar10", tmp_path)


def test_files_that_are_there_are_not_downloaded(data_root, monkeypatch):
    from torchvision import datasets as theirs

    def refuse(self):
        raise AssertionError("asked for a download")

    monkeypatch.setattr(theirs.MNIST, "download", refuse)
    assert len(read("mnist", data_root, download=True).train) == 300


@pytest.mark.real
@pytest.mark.parametrize(("name", "count"), [("mnist", 60_000), ("fashion_mnist", 60_000), ("cifar10", 50_000)])
def test_statistics_in_the_configuration_are_those_of_the_real_images(real_root, monkeypatch, request, name, count):
    import real

    if name == "cifar10":
        real.accept_cifar10(real_root, monkeypatch.setattr)
    stated = yaml.safe_load((request.config.rootpath / "configs" / "dataset" / f"{name}.yaml").read_text())
    found = read(name, real_root)
    assert len(found.train) == count
    assert len(found.open_test()) == 10_000
    for channel, (mean, std) in enumerate(zip(stated["mean"], stated["std"], strict=True)):
        accumulator = torch.bincount(found.train.inputs[:, channel].flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        middle = (accumulator * values).sum() / accumulator.sum()
        spread = ((accumulator * (values - middle) ** 2).sum() / accumulator.sum()).sqrt()
        assert (round(float(middle), 4), round(float(spread), 4)) == (mean, std)
