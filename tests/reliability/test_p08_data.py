"""P8: what is wrong with data is said before the first step, with its file, row or class; healthy twins train."""

import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from steps import QUICK

import makers

pytestmark = pytest.mark.full
Run = Callable[..., Any]
Count = Callable[[str], None]
Fault = Callable[[Path], object]
KEYS = ("trainer.epochs=1", "trainer.batch_size=16", "dataset.val_fraction=0.1", *QUICK)
RAW = "MNIST/raw/"
IMAGES, LABELS = RAW + "train-images-idx3-ubyte", RAW + "train-labels-idx1-ubyte"
TEST_LABELS = RAW + "t10k-labels-idx1-ubyte"


def changed(name: str, change: Callable[[bytes], bytes]) -> Fault:
    """A file with other bytes."""

    def fault(root: Path) -> None:
        path = root / name
        path.write_bytes(change(path.read_bytes()))

    return fault


def patched(content: bytes, place: int, new: bytes) -> bytes:
    """`content` with `new` at `place`."""
    return content[:place] + new + content[place + len(new) :]


def digits(root: Path) -> tuple[str, ...]:
    """A healthy MNIST."""
    makers.write_mnist(root)
    return ("dataset=mnist", f"dataset.root={root}", "dataset.download=false", "model.hidden_units=[8]")


def photographs(root: Path) -> tuple[str, ...]:
    """A CIFAR-10 of the right form, whose sums are not the published ones."""
    makers.write_cifar10(root)
    return ("dataset=cifar10", f"dataset.root={root}", "dataset.download=false", "model.hidden_units=[8]")


def folders(root: Path) -> tuple[str, ...]:
    """Images in folders."""
    draw = np.random.default_rng(0)
    for label in ("cat", "dog", "emu"):
        (root / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / label / f"{number}.png")
    return ("dataset=image_folder", f"dataset.root={root}", "model.hidden_units=[8]")


def split_folders(root: Path) -> tuple[str, ...]:
    """The same with train and test apart."""
    for part in ("train", "test"):
        folders(root / part)
    return ("dataset=image_folder", f"dataset.root={root}", "model.hidden_units=[8]")


def table(root: Path) -> tuple[str, ...]:
    """A CSV file."""
    draw = random.Random(0)
    lines = [f"{draw.random():.3f},{draw.random():.3f},{'ab'[n % 2]}" for n in range(60)]
    root.mkdir(exist_ok=True)
    (root / "t.csv").write_text("\n".join(["x,y,label", *lines]) + "\n")
    return ("dataset=csv", f"dataset.path={root / 't.csv'}", "dataset.target=label", "model.hidden_units=[8]")


def line(number: int, text: str) -> Fault:
    """The table with another line, 1 being the header."""

    def fault(root: Path) -> None:
        lines = (root / "t.csv").read_text().splitlines()
        lines[number - 1] = text
        (root / "t.csv").write_text("\n".join(lines) + "\n")

    return fault


def remove(name: str) -> Fault:
    """A file or a tree is not there."""

    def fault(root: Path) -> None:
        path = root / name
        for part in sorted(path.rglob("*"), reverse=True):
            part.rmdir() if part.is_dir() else part.unlink()
        path.rmdir() if path.is_dir() else path.unlink()

    return fault


def put(name: str, content: bytes) -> Fault:
    """A file with this content."""
    return lambda root: (root / name).write_bytes(content)


def bomb(root: Path) -> None:
    """A small PNG of very many pixels."""
    Image.new("1", (20_000, 20_000)).save(root / "cat" / "0.png")


def planted(root: Path) -> None:
    """A pickle that runs code, where torchvision reads pickles."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(root / "ran"),)

    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Evil()))


def truncated(root: Path) -> None:
    """An image that ends early."""
    path = root / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:80])


def pipe(root: Path) -> None:
    """A pipe that nobody writes to, called an image."""
    os.mkfifo(root / "cat" / "pipe.png")


RUBBISH = (b"", b'"', b"\0", b",", b"\n", b"\xff", b"\r", b";")

CASES: dict[str, tuple[Callable[[Path], tuple[str, ...]], Fault, tuple[int, ...], str]] = {
    "idx images missing": (digits, remove(IMAGES), (3, 4), "MNIST"),
    "idx all missing": (digits, remove("MNIST"), (3, 4), "MNIST"),
    "idx labels missing": (digits, remove(LABELS), (3, 4), "MNIST"),
    "idx images empty": (digits, changed(IMAGES, lambda _: b""), (3,), "MNIST"),
    "idx images short": (digits, changed(IMAGES, lambda b: b[:5000]), (3,), "MNIST"),
    "idx images long": (digits, changed(IMAGES, lambda b: b + bytes(784)), (3,), "MNIST"),
    "idx wrong magic": (digits, changed(IMAGES, lambda b: patched(b, 2, b"\x0d")), (3,), "MNIST"),
    "idx wrong rank": (digits, changed(IMAGES, lambda b: patched(b, 3, b"\x02")), (3,), "MNIST"),
    "idx not for anybody": (digits, changed(IMAGES, lambda _: b"<html>404</html>"), (3,), "MNIST"),
    "idx count is a lie": (digits, changed(IMAGES, lambda b: patched(b, 4, struct.pack(">i", 301))), (3,), "MNIST"),
    "idx negative count": (digits, changed(IMAGES, lambda b: patched(b, 4, struct.pack(">i", -1))), (3,), "MNIST"),
    "idx label 77": (digits, changed(LABELS, lambda b: patched(b, 20, b"\x4d")), (3,), "row 12"),
    "idx label 10": (digits, changed(LABELS, lambda b: patched(b, 8, b"\x0a")), (3,), "row 0"),
    "idx one label less": (
        digits,
        changed(LABELS, lambda b: patched(b, 4, struct.pack(">i", 299))[:-1]),
        (3,),
        "300 images but 299 labels",
    ),
    "idx labels are images": (digits, lambda r: (r / LABELS).write_bytes((r / IMAGES).read_bytes()), (3,), "MNIST"),
    "idx test label 10": (digits, changed(TEST_LABELS, lambda b: patched(b, 8, b"\x0a")), (3,), "row 0"),
    "idx a folder in its place": (digits, lambda r: (remove(IMAGES)(r), (r / IMAGES).mkdir()), (3, 4), "MNIST"),
    "cifar wrong sum": (photographs, lambda r: None, (3, 4), "CIFAR10"),
    "cifar planted pickle": (photographs, planted, (3, 4), "CIFAR10"),
    "cifar missing": (photographs, remove("cifar-10-batches-py"), (3, 4), "CIFAR10"),
    "folder missing": (folders, remove("."), (3,), ""),
    "folder empty": (folders, lambda r: [remove(c)(r) for c in ("cat", "dog", "emu")], (3,), ""),
    "folder one class": (folders, lambda r: [remove(c)(r) for c in ("cat", "dog")], (3,), "emu"),
    "folder empty class": (folders, lambda r: (r / "fox").mkdir(), (3,), "fox"),
    "folder truncated image": (folders, truncated, (3,), "3.png"),
    "folder empty image": (folders, put("dog/3.png", b""), (3,), "3.png"),
    "folder page of a server": (folders, put("dog/3.png", b"<html></html>"), (3,), "3.png"),
    "folder bomb": (folders, bomb, (3,), "0.png"),
    "folder pipe": (folders, pipe, (0, 3), ""),
    "folder class of one image": (folders, lambda r: [remove(f"emu/{n}.png")(r) for n in range(11)], (0, 3), ""),
    "folder is a file": (
        folders,
        lambda r: [remove(c)(r) for c in ("cat", "dog", "emu")] + [r.rmdir(), r.write_text("x")],
        (2,),
        "",
    ),
    "split classes differ": (split_folders, lambda r: (r / "test" / "cat").rename(r / "test" / "cow"), (3,), "cow"),
    "csv missing": (table, remove("t.csv"), (3,), "t.csv"),
    "csv empty": (table, put("t.csv", b""), (3,), "t.csv"),
    "csv header alone": (table, put("t.csv", b"x,y,label\n"), (3,), "t.csv"),
    "csv no such column": (table, line(1, "x,y,lable"), (3,), "label"),
    "csv column twice": (table, line(1, "x,x,label"), (3,), "x"),
    "csv short row": (table, line(7, "0.1,0.2"), (3,), "7"),
    "csv long row": (table, line(7, "0.1,0.2,a,4"), (3,), "7"),
    "csv empty label": (table, line(7, "0.1,0.2,"), (3,), "label"),
    "csv empty cell": (table, line(7, ",0.2,a"), (3,), "7"),
    "csv infinite": (table, line(7, "inf,0.2,a"), (3,), "7"),
    "csv unclosed quote": (table, line(7, '"0.1,0.2,a'), (3,), "t.csv"),
    "csv nul": (table, put("t.csv", b"x,y,label\n1,2,\0\n"), (3,), "t.csv"),
    "csv latin-1": (table, put("t.csv", "x,y,label\n1,2,\xe9\n".encode("latin-1")), (3,), "t.csv"),
    "csv one class": (table, put("t.csv", b"x,y,label\n" + b"1,2,a\n" * 40), (3,), "a"),
    "csv huge field": (table, put("t.csv", b"x,y,label\n1,2," + b"a" * 200_000 + b"\n"), (3,), "t.csv"),
}


def test_there_are_enough() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_before_the_first_step(name: str, mcls: Run, tmp_path: Path, count: Count) -> None:
    make, fault, codes, told = CASES[name]
    keys = make(tmp_path / "data")
    fault(tmp_path / "data")
    child = mcls("train", *keys, *KEYS, limit=30)
    assert child.seconds < 10
    assert child.status in codes, child.stderr
    assert not (tmp_path / "data" / "ran").exists()
    if child.status:
        said = child.stderr.splitlines()
        assert said[-1].startswith("mcls: ") and told in said[-1], child.stderr
        assert "Traceback" not in child.stderr and "bug in mcls" not in child.stderr
        if "test" not in name:
            assert not (tmp_path / "outputs").exists(), "found out after the run had begun"
            assert "train loss" not in child.stderr
    count(name)


@pytest.mark.parametrize("make", [digits, folders, split_folders, table])
def test_control_healthy_twins_train(make: Callable[[Path], tuple[str, ...]], mcls: Run, tmp_path: Path) -> None:
    child = mcls("train", *make(tmp_path / "data"), *KEYS)
    assert child.status == 0, child.stderr


def test_fuzzed_tables(mcls: Run, tmp_path: Path, size: Callable[[int, int], int], count: Count) -> None:
    """Tables with bytes changed: read, or refused in a sentence; never anything else."""
    from mcls.data.tabular import csv_file
    from mcls.errors import MclsError

    table(tmp_path)
    whole, path, draw = (tmp_path / "t.csv").read_bytes(), tmp_path / "f.csv", random.Random(8)
    rest: dict[str, Any] = {"test_path": None, "delimiter": "auto", "drop_columns": [], "categorical_columns": []}
    rest |= {
        "missing_values_strategy": "error",
        "missing_values": ["NA"],
        "handle_unknown": "error",
        "max_categories": 50,
    }
    rest |= {"test_fraction": 0.2, "test_seed": 0, "val_fraction": 0.1, "val_seed": 0}
    number, refused = size(150, 1000), 0
    for _ in range(number):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(content))
            content[place : place + draw.randrange(3)] = draw.choice(
                (b"", b'"', b"\0", b",", b"\n", b"\xff", b"\r", b";")
            )
        path.write_bytes(content)
        try:
            csv_file(str(path), "label", **rest)
        except MclsError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).strip()
    assert 0 < refused < number
    count(f"{number} fuzzed tables, {refused} refused in a sentence")
