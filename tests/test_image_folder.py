"""Trees of images: which folders are classes and splits, what is read from files, and what is wrong in them."""

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import struct
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mcls.augmentations import CropFlip
from mcls.config.instantiate import build
from mcls.data import image_index, image_io
from mcls.data.image_index import header_of
from mcls.data.image_tree import FOLDER_LAYOUT, counted
from mcls.data.loader import Loader, Normalise
from mcls.data.types import Dataset
from mcls.errors import DataError, MclsError, RequestError
from mcls.inference.inputs import walk
from mcls.report.run_figures import fingerprint
from mcls.runs import checkpoint
from mcls.system.distributed import World
from mcls.training.setup import build_components, resolve_workers

CONFIG = Path(__file__).parents[1] / "configs" / "dataset" / "image_folder.yaml"
CPU = torch.device("cpu")
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def image(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Noise, width x height."""
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write(folder: Path, count: int, seed: int = 0, **keys: Any) -> None:
    """PNG files 0.png, 1.png, ... in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image(seed + number, **keys).save(folder / f"{number}.png")


def tree(root: Path, classes: tuple[str, ...] = ("cat", "dog", "emu"), count: int = 20, seed: int = 0) -> Path:
    """A healthy tree of classes."""
    for number, name in enumerate(classes):
        write(root / name, count, seed + 1000 * number)
    return root


def cut_tree(root: Path, **counts: int) -> Path:
    """A healthy tree with folders for the splits."""
    for number, (part, count) in enumerate(counts.items()):
        tree(root / part, count=count, seed=number * 100_000)
    return root


def read(root: Path | None, **keys: Any) -> Dataset:
    """The tree as mcls reads it, with the keys of the configuration file."""
    node = {**yaml.safe_load(CONFIG.read_text()), "root": None if root is None else str(root), **keys}
    runtime = {key: node.pop(key) for key in ("fits", "cache") if key in node}
    found: Dataset = build("dataset", node, **runtime)
    return found


def splits(found: Dataset) -> dict[str, Any]:
    return {"train": found.train, "val": found.val, "test": found.open_test()}


def sizes(found: Dataset) -> list[int]:
    return [0 if split is None else len(split) for split in splits(found).values()]


def test_one_tree_is_cut_by_class(tmp_path: Path) -> None:
    found = read(tree(tmp_path))
    assert found.classes == ("cat", "dog", "emu")
    assert sizes(found) == [43, 5, 12]
    for split, each in ((found.train, [14, 14, 15]), (found.val, [2, 2, 1]), (found.open_test(), [4, 4, 4])):
        assert split is not None
        assert torch.bincount(split.targets).tolist() == each
        assert isinstance(split.inputs, torch.Tensor) and split.inputs.dtype == torch.uint8
        for pixels, target, name in zip(split.inputs, split.targets.tolist(), split.names, strict=True):
            assert name.split("/")[0] == found.classes[target]
            assert np.array_equal(np.asarray(Image.open(tmp_path / name)).transpose(2, 0, 1), pixels.numpy())
    names = [name for split in splits(found).values() for name in split.names]
    assert len(names) == len(set(names)) == 60


def test_cuts_depend_on_their_own_seeds_alone(tmp_path: Path) -> None:
    tree(tmp_path)
    first, again = read(tmp_path), read(tmp_path)
    assert first.train.names == again.train.names
    other_val, other_test = read(tmp_path, val_seed=1), read(tmp_path, test_seed=1)
    assert other_val.open_test().names == first.open_test().names != other_test.open_test().names
    assert other_val.val is not None and first.val is not None and other_val.val.names != first.val.names


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"train": 20, "val": 5, "test": 7}, [60, 15, 21]),
        ({"train": 20, "test": 7}, [54, 6, 21]),
        ({"train": 20, "val": 5}, [48, 15, 12]),
        ({"train": 20}, [43, 5, 12]),
        ({"Train": 10, "validation": 5, "TEST": 5}, [30, 15, 15]),
        ({"train": 10, "valid": 5, "test": 5}, [30, 15, 15]),
        ({"Training": 10, "Testing": 5}, [27, 3, 15]),
    ],
    ids=str,
)
def test_folders_of_splits(tmp_path: Path, folders: dict[str, int], expected: list[int]) -> None:
    assert sizes(read(cut_tree(tmp_path, **folders))) == expected


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = read(tree(tmp_path, ("car", "train", "bus")))
    assert found.classes == ("bus", "car", "train") and sum(sizes(found)) == 60


def test_splits_of_unknown_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(cut_tree(tmp_path / "one", seen=10, unseen=5)).classes == ("seen", "unseen")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "data    'seen', 'unseen' are taken for classes, but hold no image themselves and all the same folders, "
        "'cat', 'dog', 'emu'. Are they splits? Call them train, val and test."
    ]
    caplog.clear()
    image(0).save(tmp_path / "one" / "seen" / "loose.png")
    read(tmp_path / "one")
    for name in ("cat", "dog"):  # one folder in each is no class
        write(tmp_path / "two" / name / "images", 5)
    read(tmp_path / "two")
    assert "Are they splits" not in caplog.text


@pytest.mark.parametrize(
    "folders",
    [
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("train/training", "test/test"),
        ("asl_train_images", "asl_test_images"),
    ],
    ids=str,
)
def test_folders_of_splits_by_longer_names_and_nested_once_more(
    tmp_path: Path, folders: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for number, folder in enumerate(folders):
        tree(tmp_path / folder, count=10 - 5 * number, seed=100_000 * number)
    write(tmp_path / "seg_pred" / "seg_pred", 2)
    found = read(tmp_path)
    assert found.classes == ("cat", "dog", "emu") and sizes(found) == [27, 3, 15]
    assert found.train.names[0].startswith(folders[0] + "/cat/")
    assert "data    folders beside train are not used: 'seg_pred'" in caplog.text


def test_classes_are_not_splits_by_chance(tmp_path: Path) -> None:
    for number, names in enumerate((("steam_train", "crash_test"), ("night_train", "night_test"))):
        assert read(tree(tmp_path / str(number), names)).classes == tuple(sorted(names))


@pytest.mark.parametrize(("part", "expected"), [("test", [9, 0, 6]), ("val", [18, 6, 6])])
def test_pictures_of_a_split_without_classes_are_left_alone(
    tmp_path: Path, part: str, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path / "train", count=10 if part == "val" else 5)
    write(tmp_path / part / part, 7)
    keys = {"val_fraction": 0.0} if part == "test" else {"val_fraction": 0.25}
    assert sizes(read(tmp_path, **keys, test_fraction=0.4 if part == "test" else 0.2)) == expected
    place = tmp_path / part / part
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"data    {place}: 7 images in no class folder, left out; {part} is split off from train. "
        f"To classify them: mcls predict RUN {place}"
    ]


def test_names_that_look_the_same_are_one_class(tmp_path: Path) -> None:
    one, two = "Caf\u00e9", "Cafe\u0301"
    tree(tmp_path / "train", (one, "Bar"), count=5)
    tree(tmp_path / "val", (two, "Bar"), count=2, seed=100)
    tree(tmp_path / "test", (one, two, "Bar"), count=3, seed=200)
    found = read(tmp_path)
    assert found.classes == ("Bar", one) and sizes(found) == [10, 4, 9]
    assert torch.bincount(found.open_test().targets).tolist() == [3, 6]


def test_runs_and_figures_of_mcls_are_no_classes(
    tmp_path: Path, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path, ("cat", "dog"))
    write(tmp_path / "plots", 3, seed=50)  # a class, with a picture of that name
    image(90).save(tmp_path / "plots" / "grid.png")
    line = ["dataset=image_folder", "dataset.root=.", "trainer.epochs=1", "trainer.batch_size=8"]
    told = "data    folders with runs or figures of mcls are not classes: "
    assert mcls("train", line) == 0 and told not in capsys.readouterr().err
    assert mcls("data", "check", line, "--output", "look/here") == 0
    assert mcls("train", line, "-m", "seed=1,2", "outputs=cat/deep", "trainer.figures=false") == 0
    assert mcls("train", line, "-m", "seed=1,2", "hydra.sweep.dir=s") == 0 and (tmp_path / "s" / "sweep.png").exists()
    assert mcls("tune", "lr", line, "--steps", "20", "--output", "rates/tune-lr.png") == 0
    capsys.readouterr()
    assert mcls("train", line) == 0
    assert f"{told}'deep', 'look', 'outputs', 'rates', 's'\n" in capsys.readouterr().err
    found = read(tmp_path)
    assert found.classes == ("cat", "dog", "plots") and sum(sizes(found)) == 44
    assert mcls("evaluate", str(next(tmp_path.glob("outputs/*/*")))) == 0
    write(tmp_path / "look" / "own", 2)  # with images of the user's it is one
    assert read(tmp_path).classes == ("cat", "dog", "look", "plots")


def test_no_val_is_cut_for_a_fraction_of_zero(tmp_path: Path) -> None:
    assert read(cut_tree(tmp_path, train=10, test=5), val_fraction=0.0).val is None


def test_classes_are_in_natural_order_and_mapped_by_name(tmp_path: Path) -> None:
    tree(tmp_path / "train", ("10", "2", "1", "a"), count=5)
    tree(tmp_path / "val", ("a", "10", "2", "1"), count=2)
    tree(tmp_path / "test", ("2", "a"), count=2)
    found = read(tmp_path)
    assert found.classes == ("1", "2", "10", "a")
    for split in splits(found).values():
        assert [found.classes[target] for target in split.targets] == [name.split("/")[1] for name in split.names]


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    found = read(tree(tmp_path))
    assert isinstance(found.train.inputs, torch.Tensor) and found.mean is not None and found.std is not None
    values = found.train.inputs.double().transpose(0, 1).flatten(1) / 255
    assert found.mean == pytest.approx(values.mean(dim=1).tolist(), rel=1e-12)
    assert found.std == pytest.approx(values.std(dim=1, correction=0).tolist(), rel=1e-12)
    assert read(tmp_path, mean=[0.1, 0.2, 0.3]).mean == (0.1, 0.2, 0.3)
    with pytest.raises(
        RequestError, match=r"^dataset\.std: 1 number for 3 channels\. Give one per channel, or auto\.$"
    ):
        read(tmp_path, std=[0.5])


def test_a_channel_without_any_contrast_has_a_deviation(tmp_path: Path) -> None:
    for name, red in (("a", 7), ("b", 9)):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (4, 4), (red, 7, 7)).save(tmp_path / name / f"{number}.png")
    assert read(tmp_path).std == (1 / 255, 1.0, 1.0)


def test_images_without_any_contrast_are_wrong(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("L", (4, 4), 7).save(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError, match=r"^dataset\.root: \S+: every pixel of the training images has the same colour"):
        read(tmp_path)


def deep_tree(root: Path, largest: int, dtype: Any = np.uint16, suffix: str = "png") -> Path:
    """Greys of 16 bits, 0 to `largest`, in two classes."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, largest + 1, (8, 8)).astype(dtype)
            pixels[0, 0] = largest
            Image.fromarray(pixels).save(root / name / f"{number}.{suffix}")
    return root


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (200, 8), (256, 9), (1023, 10), (4095, 12), (2100, 12), (65535, 16)]
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_greys_of_more_than_8_bits_keep_the_upper_8_that_they_use(
    tmp_path: Path, largest: int, bits: int, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mcls")
    found = read(deep_tree(tmp_path, largest, suffix=suffix))
    assert found.reading.bits == bits
    shown = f"images  20 of more than 8 bits: values 0 to {2**bits - 1} ({bits} bits) become 0 to 255"
    assert [record.getMessage() for record in caplog.records if "bits" in record.getMessage()] == [shown]
    for pixels, name in zip(torch.as_tensor(found.train.inputs), found.train.names, strict=True):
        assert np.array_equal(pixels[0].numpy(), np.asarray(Image.open(tmp_path / name)) // 2 ** (bits - 8))
    streamed = read(tmp_path, fits=lambda size: False).train
    assert torch.equal(streamed.inputs[:], torch.as_tensor(found.train.inputs))
    assert read(tmp_path, bits=min(16, bits + 1)).reading.bits == min(16, bits + 1)
    assert torch.equal(torch.as_tensor(read(tmp_path, bits=bits).train.inputs), torch.as_tensor(found.train.inputs))


def test_only_the_training_images_say_how_many_bits_there_are(tmp_path: Path) -> None:
    deep_tree(tmp_path / "train", 4095)
    deep_tree(tmp_path / "test", 8000)
    found = read(tmp_path)
    assert found.reading.bits == 12 and int(found.open_test().inputs[:].max()) == 255
    deep_tree(tmp_path / "val", 60_000)  # another scale
    with pytest.raises(DataError, match=r"val/a/0\.png: cannot be read \(values up to 60000, expected 0 to 4095\)"):
        read(tmp_path)


def test_a_run_keeps_its_bits(tmp_path: Path, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """In evaluate, resume and predict, of the run and of its export; a run that says nothing of bits has 16."""
    deep_tree(tmp_path / "own", 4095)
    dim = deep_tree(tmp_path / "dim", 500)  # would be of 9 bits by itself
    line = "dataset=image_folder dataset.root=own trainer.epochs=2 trainer.batch_size=8 trainer.figures=false"
    probabilities = {}
    for kind, bits in (("new", "auto"), ("old", "16")):
        assert mcls("train", line.split(), f"dataset.bits={bits}", f"outputs={kind}") == 0
        run = next(tmp_path.glob(f"{kind}/*/*"))
        assert (
            checkpoint.load_checkpoint(run / "best.pt")["data"].get("bits", "none") == {"new": 12, "old": "none"}[kind]
        )
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("bits: 16", "bits: auto"))  # as keys that are missing are filled
        assert mcls("evaluate", str(run)) == 0 and mcls("evaluate", str(run), "--split", "val") == 0
        assert mcls("resume", str(run), "trainer.epochs=3") == 0
        assert mcls("predict", str(run), str(dim), "--format", "jsonl", "--top", "2") == 0
        assert mcls("export", str(run), "--format", "onnx") == 0
        capsys.readouterr()
        for model in (run, next(run.glob("*.onnx"))):
            assert mcls("predict", str(model), str(dim), "--format", "jsonl", "--top", "2") == 0
            probabilities[kind, model == run] = capsys.readouterr().out
    rows = {key: [json.loads(row)["probability"] for row in text.splitlines()] for key, text in probabilities.items()}
    for kind in ("new", "old"):
        assert rows[kind, True] == pytest.approx(rows[kind, False], abs=1e-5) and len(rows[kind, True]) == 20
    assert rows["new", True] != pytest.approx(rows["old", True], abs=1e-3)


def test_size_and_channels_come_from_the_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mcls")
    write(tmp_path / "one" / "a", 10, size=(12, 6), mode="L")
    write(tmp_path / "one" / "b", 10, size=(12, 6), mode="L")
    assert read(tmp_path / "one").input_shape == (1, 6, 12)
    assert "images  12 x 6 (L 20); taken as 12 x 6 grey" in caplog.text
    assert read(tmp_path / "one", channels=3).input_shape == (3, 6, 12)
    assert read(tmp_path / "one", size=5).input_shape == (1, 5, 5)
    write(tmp_path / "two" / "a", 10, size=(10, 30))
    write(tmp_path / "two" / "b", 10, size=(40, 20), mode="L")
    assert read(tmp_path / "two").input_shape == (3, 15, 15)
    assert "images  2 sizes, 30 x 10 to 20 x 40" not in caplog.text
    assert "images  2 sizes, 40 x 20 to 10 x 30 (RGB 10, L 10); taken as 15 x 15 RGB" in caplog.text
    write(tmp_path / "three" / "a", 2, size=(300, 400))
    write(tmp_path / "three" / "b", 3, size=(500, 300))
    assert read(tmp_path / "three", val_fraction=0.0).input_shape == (3, 224, 224)
    with pytest.raises(RequestError, match=r"^dataset\.channels: must be auto, 1 or 3, got 2\.$"):
        read(tmp_path / "one", channels=2)


def save_turned(path: Path, source: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    source.save(path, exif=exif, quality=95)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_sizes_are_those_of_turned_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_turned(path, image(0, (10, 4)))
    assert header_of(path) == (10, 4, "RGB")
    assert image_io.read_image(path, 3).size == (4, 10)
    image(0, (10, 4)).save(path)
    assert header_of(path) == (4, 10, "RGB")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            save_turned(tmp_path / name / f"{number}.jpg", image(number, (10, 4)))
    found = read(tmp_path)
    assert found.input_shape == (3, 10, 4)  # C, H, W as shown
    pixels = np.asarray(Image.open(tmp_path / found.train.names[0])).transpose(2, 0, 1)
    assert np.array_equal(found.train.inputs[0].numpy(), np.rot90(pixels, -1, (1, 2)))


def odd_modes() -> dict[str, Callable[[Path], None]]:
    source = image(1)
    grey16 = Image.fromarray((np.asarray(source.convert("L")).astype(np.uint16) << 8) + 5)
    return {
        "16-bit": lambda path: grey16.save(path.with_suffix(".png")),
        "CMYK": lambda path: source.convert("CMYK").save(path.with_suffix(".jpg")),
        "palette": lambda path: source.quantize(16).save(path.with_suffix(".gif")),
        "alpha": lambda path: source.convert("RGBA").save(path.with_suffix(".webp"), lossless=True),
        "grey and alpha": lambda path: source.convert("LA").save(path.with_suffix(".png")),
        "one bit": lambda path: source.convert("1").save(path.with_suffix(".bmp")),
        "tiff": lambda path: source.save(path.with_suffix(".tiff")),
        "upper case": lambda path: source.save(path.with_suffix(".PNG")),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", odd_modes())
def test_any_format_becomes_grey_or_rgb(tmp_path: Path, kind: str, channels: int) -> None:
    odd_modes()[kind](tree(tmp_path) / "cat" / "odd")
    found = read(tmp_path, channels=channels, val_fraction=0.0)
    split = next(split for split in (found.train, found.open_test()) if any("odd" in name for name in split.names))
    pixels = split.inputs[next(number for number, name in enumerate(split.names) if "odd" in name)]
    wanted = image(1).convert("L" if channels == 1 else "RGB")
    grey = {"16-bit", "grey and alpha"}
    if kind in grey or (channels == 1 and kind in ("alpha", "tiff", "upper case")):
        expected = np.asarray(image(1).convert("L" if kind in grey else wanted.mode).convert(wanted.mode))
        assert np.array_equal(pixels.numpy(), expected[None] if channels == 1 else expected.transpose(2, 0, 1))
    assert pixels.shape == (channels, 8, 8)


def test_hidden_folders_loose_files_and_other_suffixes_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mcls")
    tree(tmp_path, count=10)
    for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.thumbs"):
        write(tmp_path / hidden, 2)
    image(0).save(tmp_path / "loose.png")
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "cat" / "notes.txt").write_text("words")
    (tmp_path / "cat" / "a.dcm").write_text("words")
    (tmp_path / "dog" / "b.dcm").write_text("words")
    (tmp_path / "dog" / ".DS_Store").write_text("words")
    found = read(tmp_path)
    assert found.classes == ("cat", "dog", "emu") and sum(sizes(found)) == 30
    told = [record.getMessage() for record in caplog.records]
    assert told.count("data    hidden and system folders are not looked into: "
                      "'.ipynb_checkpoints', '.thumbs', '@eaDir', '__MACOSX'") == 1  # fmt: skip
    assert "data    files that are not images are not used: 2 .dcm, 1 .txt" in told
    assert "data    not used: 1 image outside the class folders" in told


def test_links_are_followed_but_never_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path / "real", count=10)
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "cat" / "loop").symlink_to(tmp_path / "real" / "cat")
    assert sum(sizes(read(tmp_path / "linked"))) == 20
    assert "not followed: 1 link to folders that were scanned already" in caplog.text


def test_names_that_are_not_utf_8_or_hold_control_characters_are_escaped(tmp_path: Path) -> None:
    tree(tmp_path, ("a\nb", "plain"), count=10)
    odd = os.fsdecode(b"caf\xe9")
    try:
        tree(tmp_path, (odd,), count=10, seed=50)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    assert read(tmp_path).classes == ("a\\nb", "caf\\udce9", "plain")


def test_a_split_without_a_class_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_tree(tmp_path, train=10, test=3)
    for path in (tmp_path / "test" / "dog").iterdir():
        path.unlink()
    write(tmp_path / "train" / "fox", 1, 9)
    read(tmp_path)
    assert "data    val has no sample of 'fox': nothing is measured of them there." in caplog.text
    assert "data    test has no sample of 'dog', 'fox': nothing is measured of them there." in caplog.text


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        r"cannot be read \(.+\)",
    ),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "html": (lambda path: path.write_text("<!DOCTYPE html><html>404</html>"), r"cannot be read \(not a picture\)"),
    "text": (lambda path: path.write_text("x" * 500), r"cannot be read \(not a picture\)"),
    "fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "not a plain file"),
    "broken link": (
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        r"cannot be read \(No such file or directory\)",
    ),
    "eps": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"),
        r"cannot be read \(not a picture\)",
    ),
    "too many pixels": (
        lambda path: image(0, (60, 60)).save(path),
        r"refused, 60 x 60 pixels exceed max_pixels, 3,000",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named(tmp_path: Path, kind: str) -> None:
    spoil, reason = BAD[kind]
    keys = {"max_pixels": 3000}
    assert sum(sizes(read(tree(tmp_path), **keys))) == 60  # the healthy twin
    path = tmp_path / "dog" / "7.png"
    spoil(path)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        read(tmp_path, **keys)
    advice = r"Fix or remove it, or set dataset\.bad_images=skip dataset\.max_bad_fraction=0\.02\."
    wanted = rf"{path}: {reason} \(1 of 60 images\)\. {advice}"
    assert re.fullmatch(wanted, str(caught.value))
    assert time.monotonic() - started < 5


def test_all_bad_images_are_counted_and_noted(tmp_path: Path) -> None:
    tree(tmp_path)
    for number in (3, 5):
        (tmp_path / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png: empty \(2 of 60 images\)\. Fix or remove them, or set ") as caught:
        read(tmp_path)
    assert [note.split("/")[-1] for note in caught.value.__notes__] == ["3.png: empty.", "5.png: empty."]


def test_bad_images_are_skipped_up_to_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, ("a", "b"), count=50)
    (tmp_path / "a" / "3.png").write_bytes(b"")
    found = read(tmp_path, bad_images="skip")
    assert sum(sizes(found)) == 99
    assert "a/3.png" not in {name for split in splits(found).values() for name in split.names}
    assert "images  1 of 100 skipped because they can't be read, the first: " in caplog.text
    (tmp_path / "b" / "3.png").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"\(2 of 100 images\)\. Fix or remove them, or raise the limit of bad_images=skip: "
        r"dataset\.max_bad_fraction=0\.02\.\n",
    ):
        read(tmp_path, bad_images="skip")
    assert sum(sizes(read(tmp_path, bad_images="skip", max_bad_fraction=0.02))) == 98
    with pytest.raises(DataError, match=r"dataset\.max_bad_fraction=0\.01\.\n"):
        (tmp_path / "b" / "3.png").write_bytes((tmp_path / "b" / "4.png").read_bytes())
        read(tmp_path, bad_images="skip", max_bad_fraction=0.0)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((1, 1, 1), "Add samples, two of a class at least."),
        ((4, 1, 1), "Set dataset.test_fraction=0.09."),
    ],
)
def test_advice_for_too_few_images_to_test_on_helps(tmp_path: Path, counts: tuple[int, ...], message: str) -> None:
    for number, count in enumerate(counts):
        write(tmp_path / str(number), count, 10 * number)
    for fraction in (0.05, 0.95) if "Add" in message else (0.05,):
        wanted = f"dataset.test_fraction: {fraction} of {sum(counts)} samples leaves none to test on. {message}"
        with pytest.raises(RequestError, match=f"^{re.escape(wanted)}$"):
            read(tmp_path, test_fraction=fraction)
    if "Say" in message:
        assert sizes(read(tmp_path, test_fraction=float(message.split("=")[1][:-1]), val_fraction=0.0)) == [5, 0, 1]


def test_a_file_without_a_suffix_that_may_not_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path)
    (tmp_path / "cat" / "secret").write_bytes(b"x")
    opened = Image.open

    def refuse(file: Any, *rest: Any, **more: Any) -> Any:
        if str(file).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(file, *rest, **more)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"secret: cannot be read \(Permission denied\) \(1 of 61 images\)\. Fix or "):
        read(tmp_path)
    assert len(list(walk(str(tmp_path), {*image_io.suffixes(), ""}))) == 61


def test_files_without_a_suffix_are_known_by_their_content(
    tmp_path: Path, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "own")
    expected = read(tmp_path / "own")
    for path in (tmp_path / "own").glob("*/*.png"):
        path.rename(path.with_suffix(""))
    (tmp_path / "own" / "cat" / "README").write_text("words " * 100)
    (tmp_path / "own" / "cat" / "blob").write_bytes(bytes(range(256)) * 4)
    os.mkfifo(tmp_path / "own" / "cat" / "pipe")
    found = read(tmp_path / "own")
    assert sizes(found) == sizes(expected) == [43, 5, 12] and found.mean == expected.mean
    assert torch.equal(torch.as_tensor(found.train.inputs), torch.as_tensor(expected.train.inputs))
    line = "dataset=image_folder dataset.root=own trainer.epochs=1 trainer.batch_size=16 outputs=out"
    assert mcls("train", line.split()) == 0
    assert "data    files that are not images are not used: 3 without a suffix\n" in capsys.readouterr().err
    assert mcls("predict", str(next(tmp_path.glob("out/*/*"))), "own", "--strict") == 0
    assert len(capsys.readouterr().out.splitlines()) == 61


def test_heic_files_are_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    """Pillow's plugin, in a process of its own."""
    assert counted(Counter({".heic": 2})) == "2 .heic. To read HEIC files: pip install pillow-heif"
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    tree(tmp_path / "own")
    command = "import sys; from PIL import Image; from pathlib import Path; from mcls.data import image_io\n"
    command += (
        "image_io.formats(); path = Path(sys.argv[1]); Image.open(path).save(path.with_suffix('.heic'), quality=100)\n"
    )
    command += "path.unlink(); print(image_io.read_image(path.with_suffix('.heic'), 3).size)"
    made = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path / "own/cat/0.png")], capture_output=True, text=True
    )
    assert made.stdout == "(8, 8)\n"
    assert sum(sizes(read(tmp_path / "own"))) == 60


def test_a_link_to_nothing_that_may_be_a_class_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path)
    (tmp_path / "fox").symlink_to(tmp_path / "gone")
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "gone")
    assert read(tmp_path).classes == ("cat", "dog", "emu")
    assert "data    links to nothing are not used: 'fox', 'more'" in caplog.text


def test_a_class_that_loses_its_only_image_is_wrong(tmp_path: Path) -> None:
    tree(tmp_path, ("a", "b"), count=100)
    write(tmp_path / "c", 1)
    (tmp_path / "c" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"c/0\.png: empty, and no image of 'c' is left in train\.$"):
        read(tmp_path, bad_images="skip")


def test_huge_images_are_refused_by_their_header_without_a_warning(tmp_path: Path) -> None:
    tree(tmp_path, count=3)
    Image.new("1", (10_000, 9_000)).save(tmp_path / "cat" / "bomb.png")
    with warnings.catch_warnings(action="error"):
        with pytest.raises(
            DataError, match=r"bomb\.png: refused, 10000 x 9000 pixels exceed max_pixels, 64,000,000 \("
        ):
            read(tmp_path)
        assert (
            sum(sizes(read(tmp_path, max_pixels=90_000_000, size=8, channels=1, test_fraction=0.5, val_fraction=0.0)))
            == 10
        )


def test_damaged_files_of_every_kind_are_one_line(tmp_path: Path) -> None:
    """Bytes flipped in the files of many formats: an image or a DataError, nothing else."""
    random = np.random.default_rng(0)
    tree(tmp_path, ("a", "b"), count=3)
    outcomes = set()
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "pcx"):
        for trial in range(6):
            path = tmp_path / "a" / f"odd.{suffix}"
            image(trial, (16, 16)).save(path)
            content = bytearray(path.read_bytes())
            for place in random.integers(0, min(len(content), 200), 8):
                content[place] = random.integers(256)
            path.write_bytes(content)
            try:
                read(tmp_path, size=8, val_fraction=0.0)
                outcomes.add("read")
            except MclsError as error:
                assert isinstance(error, DataError) and "\n" not in str(error) and str(path) in str(error)
                outcomes.add("refused")
            path.unlink()
    assert outcomes == {"read", "refused"}


def spoil_empty_class(root: Path) -> None:
    (root / "fox").mkdir()


def spoil_unknown_class(root: Path) -> None:
    cut_tree(root / "cut", train=3, test=3)
    (root / "cut" / "test" / "dog").rename(root / "cut" / "test" / "dgo")


TREES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "missing": (lambda root: None, "nowhere", rf"dataset\.root: ROOT/nowhere: no such folder\. {FOLDER_LAYOUT}"),
    "no classes": (
        lambda root: None,
        "cat",
        rf"dataset\.root: ROOT/cat: 20 images in it, but no folders of classes\. {FOLDER_LAYOUT}",
    ),
    "nothing": (
        lambda root: (root / "bare").mkdir(),
        "bare",
        rf"dataset\.root: ROOT/bare: no folders of classes\. {FOLDER_LAYOUT}",
    ),
    "an empty class": (spoil_empty_class, "", rf"ROOT/fox: no image in this folder of a class\. {FOLDER_LAYOUT}"),
    "one class": (
        lambda root: write(root / "x" / "cat", 3),
        "x",
        "ROOT/x: only one class, 'cat'. A classifier needs at least two.",
    ),
    "other files": (
        lambda root: [
            (root / "phone").mkdir(),
            *((root / "phone" / name).write_text("ftyp") for name in ("a.DCM", "b.dcm", "c", "d.pdf")),
        ],
        "",
        r"ROOT/phone: no image in this folder of a class, but other files: 2 \.dcm, 1 without a suffix, 1 \.pdf\. "
        f"{FOLDER_LAYOUT}",
    ),
    "one folder too high": (
        lambda root: cut_tree(root / "up" / "a b" / "x-ray", train=3, test=3),
        "up",
        r"ROOT/up: only one class, 'a b', which holds the folders 'test', 'train'\. "
        r"Set \"dataset\.root='ROOT/up/a b/x-ray'\"\.",
    ),
    "pictures without classes": (
        lambda root: write(root / "cut" / "train", 3),
        "cut",
        rf"dataset\.root: ROOT/cut/train: 3 images in it, but no folders of classes\. {FOLDER_LAYOUT}",
    ),
    "unknown class": (
        spoil_unknown_class,
        "cut",
        r"ROOT/cut/test/dgo: class 'dgo' is not in train\. Did you mean 'dog'\? train has 'cat', 'dog', 'emu'\.",
    ),
    "nothing in test": (
        lambda root: (cut_tree(root / "cut", train=3), (root / "cut" / "test").mkdir()),
        "cut",
        rf"ROOT/cut/test: no image in it\. Remove the folder, or add images to it\. {FOLDER_LAYOUT}",
    ),
}


@pytest.mark.parametrize("kind", TREES)
def test_wrong_trees(tmp_path: Path, kind: str) -> None:
    spoil, folder, message = TREES[kind]
    assert len(read(tree(tmp_path)).classes) == 3  # the healthy twin
    spoil(tmp_path)
    with pytest.raises(DataError, match=f"^{message.replace('ROOT', str(tmp_path))}$"):
        read(tmp_path / folder)


def test_a_root_must_be_given() -> None:
    with pytest.raises(
        RequestError, match=r"^dataset\.root: must be set to the folder of the images, dataset\.root=DIR\.$"
    ):
        read(None)


@forks
@pytest.mark.parametrize("augment", [None, CropFlip(2, 0.5)])
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_the_resident_ones_bit_for_bit(tmp_path: Path, workers: int, augment: Any) -> None:
    tree(tmp_path)
    save_turned(tmp_path / "cat" / "turned.jpg", image(3, (20, 10)))
    asked: list[int] = []
    kept = read(tmp_path, size=8)
    streamed = read(tmp_path, size=8, fits=lambda size: asked.append(size) or False)
    assert asked == [61 * 3 * 8 * 8]
    assert isinstance(kept.train.inputs, torch.Tensor) and not isinstance(streamed.train.inputs, torch.Tensor)
    assert (kept.mean, kept.std, kept.input_shape) == (streamed.mean, streamed.std, streamed.input_shape)
    normalise = Normalise(kept.mean, kept.std, CPU)
    for one, other in zip(splits(kept).values(), splits(streamed).values(), strict=True):
        assert one.names == other.names and torch.equal(one.targets, other.targets)
        assert other.inputs.shape == tuple(one.inputs.shape) and other.inputs.ndim == 4
        assert other.inputs.dtype == one.inputs.dtype and len(other.inputs) == len(one.inputs)
        loaders = [Loader(split, 7, CPU, normalise, augment=augment, seed=1, workers=workers) for split in (one, other)]
        assert [loader.resident for loader in loaders] == [True, False]
        for epoch in (0, 1):
            batches = [list(loader.epoch(epoch, first=1)) for loader in loaders]
            for (inputs, targets), (same, as_well) in zip(*batches, strict=True):
                assert torch.equal(inputs, same) and torch.equal(targets, as_well)


@forks
def test_processes_that_stay_serve_every_epoch_in_its_order(tmp_path: Path) -> None:
    """Also after an epoch that was left at a batch, as a limit or a signal leaves it."""
    streamed = read(tree(tmp_path), size=8, fits=lambda size: False).train
    loaders = [Loader(streamed, 7, CPU, Normalise(None, None, CPU), seed=1, workers=workers) for workers in (0, 2)]
    for epoch, batches in [(0, 2), (0, 9), (1, 1), (2, 9)]:
        plain, staying = ([inputs for inputs, _ in itertools.islice(one.epoch(epoch), batches)] for one in loaders)
        assert len(plain) == len(staying) > 0
        assert all(torch.equal(inputs, other) for inputs, other in zip(plain, staying, strict=True))
    assert loaders[1].rows is not None and loaders[1].rows.persistent_workers


def test_workers_are_chosen_where_files_are_decoded(tmp_path: Path) -> None:
    kept, streamed = (
        read(tree(tmp_path / str(fits)), size=8, fits=lambda size, fits=fits: fits) for fits in (True, False)
    )
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    assert resolve_workers("auto", kept, World(0, 1)) == 0
    assert resolve_workers("auto", streamed, World(0, 1)) == min(8, cores - 1)
    assert resolve_workers("auto", streamed, World(0, cores)) == 0
    assert resolve_workers(3, streamed, World(0, 1)) == 3


def test_a_jpeg_is_decoded_at_reduced_scale_where_it_is_asked_for(tmp_path: Path) -> None:
    """As Pillow's draft does it; no smaller than what is wanted, turned too; and not unless it is asked for."""
    random = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((300, 200)))
    for name in ("a.jpg", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    save_turned(tmp_path / "turned.jpg", Image.fromarray(pixels))
    plain, draft = image_io.Reading(), image_io.Reading(jpeg_draft=True)
    with Image.open(tmp_path / "a.jpg") as opened:
        opened.draft(None, (50, 50))
        assert opened.size == (75, 50)
        expected = image_io.resize_image(opened, (40, 50))
    assert np.array_equal(image_io.read_resized(tmp_path / "a.jpg", (3, 40, 50), 10**6, draft), expected)
    for name, size in (("a.jpg", 150), ("a.png", 20)):  # half of it would be too small; no JPEG
        one, other = (image_io.read_resized(tmp_path / name, (3, size, size), 10**6, how) for how in (plain, draft))
        assert np.array_equal(one, other)
    for name in ("a.jpg", "turned.jpg"):
        one, other = (image_io.read_resized(tmp_path / name, (3, 25, 25), 10**6, how) for how in (plain, draft))
        assert not np.array_equal(one, other) and np.abs(one.astype(int) - other).mean() < 15
    crop = image_io.Reading(resize="crop", crop_fraction=0.5, jpeg_draft=True)  # wants 100: half
    assert image_io.read_image(tmp_path / "a.jpg", 3, side=100).size == (150, 100)
    assert image_io.read_resized(tmp_path / "a.jpg", (3, 50, 50), 10**6, crop).shape == (3, 50, 50)
    assert draft.record() == {"jpeg_draft": True} and image_io.Reading.of(draft.record()) == draft
    assert plain.record() == {}


@pytest.mark.parametrize(
    "indices",
    [torch.tensor([3, 0]), slice(2, 7), slice(None), 4, -1, torch.arange(43) % 3 == 0, torch.empty(0).long()],
    ids=str,
)
def test_files_are_indexed_as_a_tensor_is(tmp_path: Path, indices: Any) -> None:
    tree(tmp_path)
    kept, streamed = read(tmp_path).train.inputs, read(tmp_path, fits=lambda size: False).train.inputs
    assert torch.equal(kept[indices], streamed[indices])


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_bad_in_training_is_one_line_from_every_worker(tmp_path: Path, workers: int) -> None:
    found = read(tree(tmp_path), fits=lambda size: False)
    path = tmp_path / found.train.names[5]
    path.write_bytes(b"")
    loader = Loader(found.train, 8, CPU, Normalise(found.mean, found.std, CPU), workers=workers)
    with pytest.raises(DataError, match=f"^{path}: empty\\.$"):
        list(loader.epoch())


def compose(*lines: str) -> dict[str, Any]:
    from mcls.config.compose import checker

    with checker() as check:
        return check.check(list(lines), False).config


def test_whether_images_stay_files_is_the_trainers_choice(tmp_path: Path) -> None:
    lines = ["dataset=image_folder", f"dataset.root={tree(tmp_path)}", "trainer.batch_size=8"]
    for choice, resident in (("auto", True), ("true", True), ("false", False)):
        parts = build_components(compose(*lines, f"trainer.data_on_device={choice}"))
        assert parts.train.resident is resident
        assert isinstance(parts.dataset.train.inputs, torch.Tensor) is resident


@pytest.mark.parametrize("resident", ["true", "false"])
def test_a_tree_trains_and_is_drawn(
    tmp_path: Path, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str], resident: str
) -> None:
    tree(tmp_path / "own")
    line = "dataset=image_folder dataset.root=own trainer.epochs=1 trainer.batch_size=16 outputs=out"
    assert mcls("train", line.split(), f"trainer.data_on_device={resident}") == 0
    out, err = capsys.readouterr()
    assert "of 12, loss" in out and "images  8 x 8 (RGB 60); taken as 8 x 8 RGB" in err
    assert len(list(tmp_path.glob("out/*/*/figures/predictions.png"))) == 1
    (tmp_path / "own" / "cat" / "3.png").write_bytes(b"")
    assert mcls("train", line.split()) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "mcls: own/cat/3.png: empty (1 of 60 images). Fix or remove it, or set dataset.bad_images=skip "
        "dataset.max_bad_fraction=0.02."
    )
    assert len(list(tmp_path.glob("out/*/*"))) == 1


def test_nothing_is_said_of_sizes_that_nobody_could_read(
    tmp_path: Path, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "own" / "a" / "0.png", tmp_path / "own" / "b" / "0.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no picture")
    assert mcls("data", "check", "dataset=image_folder", "dataset.root=own") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mcls: own/a/0.png: cannot be read")


def test_other_packages_print_nothing(tmp_path: Path) -> None:
    """Class names without a font, more workers than processors, no home to write to; TIFFs of 13 bands are named."""
    tree(tmp_path / "own", ("鱼", "鸟"))
    line = "dataset=image_folder dataset.root=own trainer.epochs=1 trainer.batch_size=8 trainer.data_on_device=false"
    command = [sys.executable, "-m", "mcls", "train", *line.split(), f"trainer.workers={(os.cpu_count() or 1) + 2}"]
    surroundings = {**os.environ, "HOME": "/proc", "OMP_NUM_THREADS": "1"}
    surroundings.pop("MPLCONFIGDIR", None)
    made = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    starts = ("images", "data", "batch", "model", "device", "folder", "epoch", "  1/1", "figures")
    assert [row for row in made.stderr.splitlines() if not row.startswith(starts)] == []
    sizes, tags = (16, 16), [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 13, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 200), (277, 3, 1, 13), (278, 3, 1, 16), (279, 4, 1, sizes[0] * sizes[1] * 26)]
    content = b"II*\0" + struct.pack("<I13HH", 34, *[16] * 13, len(tags))
    content += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    (tmp_path / "own" / "鱼" / "bands.tif").write_bytes(content.ljust(200, b"\0") + bytes(16 * 16 * 26))
    made = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    *others, last = made.stderr.splitlines()
    assert made.returncode == 3 and all(row.startswith(("images", "data")) for row in others)
    assert last.startswith("mcls: own/鱼/bands.tif: cannot be read (13 bands, a picture has 1 to 4) (1 of 41 images).")


def no_decoding(*_: Any, **__: Any) -> None:
    raise AssertionError("an image was decoded")


@pytest.mark.parametrize("fits", [True, False])
def test_the_cache_gives_the_same_images_without_decoding_one(
    tmp_path: Path, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"cache": str(tmp_path / "cache"), "fits": lambda size: fits, "size": 9}
    plain = read(tree(tmp_path / "images"), size=9)
    first = read(tmp_path / "images", **keys)
    monkeypatch.setattr(image_io, "read_image", no_decoding)
    again = read(tmp_path / "images", **keys)
    for found in (first, again):
        assert (found.mean, found.std, found.classes) == (plain.mean, plain.std, plain.classes)
        for name, split in splits(plain).items():
            other = splits(found)[name]
            assert isinstance(other.inputs, torch.Tensor) == fits
            assert torch.equal(other.inputs[:], torch.as_tensor(split.inputs)) and other.names == split.names
            few = torch.tensor([3, 0])
            assert torch.equal(other.rows(few).inputs[:], torch.as_tensor(split.inputs)[few])


def test_the_cache_is_not_used_for_other_files_or_another_size_or_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    read(tree(tmp_path / "images"), cache=cache)
    kept = sorted((tmp_path / "cache" / "images").iterdir())
    assert sorted(path.suffix for path in kept) == [".json", ".npy", ".npz"]
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="decoded"):
        patch.setattr(image_io, "read_image", no_decoding)
        read(tmp_path / "images", cache=cache, size=5)
    path = next((tmp_path / "images").rglob("*.png"))
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, "white").save(path)
    changed, plain = read(tmp_path / "images", cache=cache), read(tmp_path / "images")
    assert changed.mean == plain.mean
    for file in (tmp_path / "cache" / "images").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert read(tmp_path / "images", cache=cache).mean == plain.mean


def test_files_in_the_index_are_opened_again_only_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache, opened = tree(tmp_path / "images"), str(tmp_path / "cache"), []
    first = read(root, cache=cache)

    def counted(path: Path, *args: Any, **keys: Any) -> Any:
        opened.append(path)
        return plain_open(path, *args, **keys)

    plain_open = image_index.look_at
    monkeypatch.setattr(image_index, "look_at", counted)
    monkeypatch.setattr(Image, "open", no_decoding)
    again = read(root, cache=cache)
    assert not opened and fingerprint(again.train) == fingerprint(first.train)
    monkeypatch.undo()
    assert fingerprint(read(root).train) == fingerprint(first.train)
    monkeypatch.setattr(image_index, "look_at", counted)
    changed = root / "emu" / "3.png"
    image(1234).save(changed)
    assert {name for split in splits(read(root, cache=cache)).values() for name in split.digests} == {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.png")
    }
    assert opened == [changed]


def test_the_values_of_deep_images_are_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("a", 4095), ("b", 17)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((4, 4), value - number, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    first = read(tmp_path / "images", cache=str(tmp_path / "cache"))
    monkeypatch.setattr(Image, "open", no_decoding)
    again = read(tmp_path / "images", cache=str(tmp_path / "cache"))
    assert first.reading == again.reading and again.reading.bits == 12


def test_a_bad_image_is_bad_in_the_cache_too(tmp_path: Path) -> None:
    next(tree(tmp_path / "images").rglob("*.png")).write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "images", cache=str(tmp_path / "cache"))
