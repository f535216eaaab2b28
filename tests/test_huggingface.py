"""`dataset=huggingface`: pictures and tables of Hugging Face's `datasets`, in folders and from its cache."""

import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.data import image_io
from mcls.data.image_files import ImageFiles
from mcls.data.types import Dataset
from mcls.errors import DataError, MachineError, MclsError, RequestError
from test_evaluate import MEASURED, written
from test_image_folder import cut_tree, splits
from test_image_table import parts
from test_resume import stopped

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
Rows = dict[str, list[Any]]
NAMES = datasets.ClassLabel(names=["emu", "cat"])  # in no natural order
PICTURES = datasets.Features(image=datasets.Image(), label=NAMES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def read(path: Path | str | None, *keys: str, choice: str = "huggingface", **runtime: Any) -> Dataset:
    with checker() as check:
        place = [] if path is None else [f"dataset.{'root' if choice == 'image_folder' else 'path'}={path}"]
        config = check.check([f"dataset={choice}", *place, *keys], False).config
    found: Dataset = build("dataset", config["dataset"], **runtime)
    return found


def encoded(image: Image.Image, form: str = "PNG") -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, form)
    return {"bytes": file.getvalue(), "path": None}


def pictures(count: int = 40, seed: int = 0, **more: list[Any]) -> datasets.Dataset:
    random = np.random.default_rng(seed)
    images = [encoded(Image.fromarray(random.integers(0, 256, (8, 9, 3), dtype=np.uint8))) for _ in range(count)]
    rows: Rows = {"image": images, "label": [row % 2 for row in range(count)], **more}
    features = datasets.Features({**PICTURES, **{name: datasets.Value("string") for name in more}})
    return datasets.Dataset.from_dict(rows, features=features)


def save(path: Path, **found: datasets.Dataset) -> Path:
    datasets.DatasetDict(found).save_to_disk(path)
    return path


def of_files(root: Path, classes: list[str]) -> datasets.Dataset:
    """The files below a split of an image folder, as rows that name them."""
    files = sorted(root.rglob("*.png"))
    rows = {"image": list(map(str, files)), "label": [classes.index(file.parent.name) for file in files]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("fits", [True, False])
def test_a_folders_images_are_the_same_however_they_are_kept(
    tmp_path: Path, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As paths, as bytes in Arrow files, in Parquet files, and from the cache without decoding any."""
    root = cut_tree(tmp_path / "tree", train=6, val=3, test=4)
    whole = read(root, "dataset.size=7", choice="image_folder")
    theirs, classes = splits(whole), list(whole.classes)
    names = {"train": "train", "validation": "val", "test": "test"}
    found = {name: of_files(root / part, classes) for name, part in names.items()}
    (tmp_path / "parquet").mkdir()
    for name, split in found.items():
        split.to_parquet(tmp_path / "parquet" / f"{name}-00000-of-00001.parquet")
    cache = str(tmp_path / "cache")
    places = [save(tmp_path / "saved", **found), tmp_path / "parquet", tmp_path / "saved", tmp_path / "saved"]
    for number, place in enumerate(places):
        if number == 3:
            monkeypatch.setattr(image_io, "read_image", lambda *_: pytest.fail("decoded"))
        mine = read(place, "dataset.size=7", fits=lambda _: fits, cache=cache if number > 1 else None)
        assert (mine.classes, mine.mean) == (whole.classes, whole.mean)
        for name, split in splits(mine).items():
            assert isinstance(split.inputs, torch.Tensor) == fits
            assert torch.equal(split.inputs[:], theirs[name].inputs) and torch.equal(
                split.targets, theirs[name].targets
            )
            assert split.digests == theirs[name].digests


def test_pictures_of_every_mode_are_read_as_files_are(tmp_path: Path) -> None:
    """Grey, 16 bits, with alpha, CMYK, turned by EXIF; and a null is an empty file."""
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (8, 9, 4), dtype=np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    jpeg = io.BytesIO()
    colour.convert("RGB").save(jpeg, "JPEG", exif=turned)
    deep = Image.fromarray(random.integers(0, 60000, (8, 9), dtype=np.uint16))
    kinds = [
        encoded(colour.convert("L")), encoded(deep, "TIFF"), encoded(colour.convert("LA")), encoded(colour),
        encoded(colour.convert("CMYK"), "JPEG"), {"bytes": jpeg.getvalue(), "path": None}, encoded(colour.convert("P")),
    ]  # fmt: skip
    rows: Rows = {"image": kinds * 4, "label": [row % 2 for row in range(28)]}
    (tmp_path / "files").mkdir()
    for row, kind in enumerate(rows["image"]):
        (tmp_path / "files" / f"{row}.bin").write_bytes(kind["bytes"])
    listed = "\n".join(["path,label", *(f"{row}.bin,{NAMES.names[row % 2]}" for row in range(28))])
    (tmp_path / "files" / "table.csv").write_text(listed + "\n")
    place = save(tmp_path / "saved", train=datasets.Dataset.from_dict(rows, features=PICTURES))
    mine, theirs = read(place), read(tmp_path / "files" / "table.csv", choice="image_table")
    images = {
        name: image for split in parts(theirs).values() for name, image in zip(split.names, split.inputs, strict=True)
    }
    for split in parts(mine).values():
        for name, image in zip(split.names, split.inputs, strict=True):
            assert torch.equal(image, images[name[len("train[") : -1] + ".bin"])
    place = save(
        tmp_path / "null",
        train=datasets.Dataset.from_dict(rows | {"image": [*kinds * 3, *kinds[:6], None]}, features=PICTURES),
    )
    with pytest.raises(DataError, match=r"null, train\[27\]: empty \(1 of 28 images\)\. Fix or remove it, or set "):
        read(place)
    assert sum(map(len, parts(read(place, "dataset.bad_images=skip", "dataset.max_bad_fraction=0.1")).values())) == 27


def test_a_run_that_reads_pictures_from_the_disk_is_resumed_exactly_and_used(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcls.training.setup.fits_in_memory", lambda *_: False)
    taken: list[int] = []
    getitem = ImageFiles.__getitem__
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda files, rows: (taken.append(1), getitem(files, rows))[1])
    place = save(tmp_path / "saved", train=pictures(80), test=pictures(20, seed=1))
    keys = ["dataset=huggingface", f"dataset.path={place}", "augment=crop_flip", "trainer.workers=0"]
    run = stopped(mcls, tmp_path, monkeypatch, *keys, "trainer.batch_size=16", epochs=2, step=7)
    assert mcls("resume", str(run), "trainer.workers=1") == 0 and taken
    whole = tmp_path / "whole"
    lines = [*keys, "trainer.batch_size=16", "trainer.epochs=2", "trainer.figures=false", f"hydra.run.dir={whole}"]
    assert mcls("train", *lines) == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, whole)]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["fingerprints"] == results[1]["fingerprints"]
    assert mcls("evaluate", str(run)) == 0
    Image.new("RGB", (30, 20)).save(tmp_path / "new.jpg")
    assert mcls("predict", str(run), str(tmp_path / "new.jpg"), "--output", str(tmp_path / "found.csv")) == 0
    assert (tmp_path / "found.csv").read_text().splitlines()[1].split(",")[1] in NAMES.names
    assert mcls("data", "check", *keys[:2]) == 0


def table(count: int = 60, seed: int = 0) -> tuple[datasets.Dataset, str]:
    """A data set of numbers, and the same rows as CSV."""
    random = np.random.default_rng(seed)
    rows: Rows = {
        "a": random.normal(size=count).tolist(), "n": random.integers(0, 9, count).tolist(),
        "kind": random.choice(["x", "y"], count).tolist(), "label": [row % 2 for row in range(count)],
    }  # fmt: skip
    values = {"a": datasets.Value("float64"), "n": datasets.Value("int32"), "kind": datasets.Value("string")}
    lines = [f"{a!r},{n},{kind},{NAMES.names[label]}" for a, n, kind, label in zip(*rows.values(), strict=True)]
    found = datasets.Dataset.from_dict(rows, features=datasets.Features({**values, "label": NAMES}))
    return found, "\n".join(["a,n,kind,label", *lines]) + "\n"


def test_a_table_is_that_of_a_csv_file(mcls: Main, tmp_path: Path) -> None:
    (train, train_text), (val, _), (test, test_text) = (table(count, count) for count in (60, 20, 30))
    (tmp_path / "train.csv").write_text(train_text)
    (tmp_path / "test.csv").write_text(test_text)
    place = save(tmp_path / "saved", train=train, validation=val, test=test)
    csv = [f"dataset.path={tmp_path}/train.csv", f"dataset.test_path={tmp_path}/test.csv", "dataset.target=label"]
    rest = "dataset.val_fraction=0"
    mine, theirs = read(place, "dataset.val_split=null", rest), read(None, *csv, rest, choice="csv")
    assert (mine.encoder, mine.classes, theirs.classes) == (theirs.encoder, ("emu", "cat"), ("cat", "emu"))
    assert torch.equal(mine.open_test().inputs[:], theirs.open_test().inputs[:])
    assert torch.equal(mine.open_test().targets, 1 - theirs.open_test().targets)
    assert torch.equal(mine.train.inputs[:], theirs.train.inputs[:])
    own = parts(read(place))
    assert [len(split) for split in own.values()] == [60, 20, 30]
    folds = read(place, "dataset.folds=4", "dataset.fold=1")
    assert folds.val is not None and (len(folds.train), len(folds.val)) == (60, 20)
    keys = ["dataset=huggingface", f"dataset.path={place}", "trainer.epochs=1", "trainer.figures=false"]
    assert mcls("train", *keys, f"hydra.run.dir={tmp_path}/run") == 0
    assert mcls("evaluate", str(tmp_path / "run")) == 0
    assert mcls("predict", str(tmp_path / "run"), str(tmp_path / "test.csv"), "--output", "found.csv") == 0
    assert mcls("export", str(tmp_path / "run"), "--format", "safetensors") == 0


def test_rows_without_a_class_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    found = made(x=(datasets.Value("float32"), [float(row) for row in range(40)]), label=(NAMES, [0, 1, 0, -1] * 10))
    place = save(tmp_path / "saved", train=found)
    kept = parts(read(place, "dataset.missing_values_strategy=drop"))
    whole = save(tmp_path / "whole", train=found.filter(lambda row: row["label"] in range(2)))
    for split, other in zip(kept.values(), parts(read(whole)).values(), strict=True):
        assert torch.equal(split.inputs[:], other.inputs[:]) and torch.equal(split.targets, other.targets)
    some = made(x=NUMBER, label=(NAMES, [0, -1] * 10))
    save(tmp_path / "some", train=found.filter(lambda row: row["label"] in range(2)), test=some)
    with pytest.raises(
        DataError, match=r"test\[1\].* Remove them: .*, or leave the split out: dataset\.test_split=null"
    ):
        read(tmp_path / "some")
    nothing = made(x=NUMBER, label=(NAMES, [-1] * 20))
    with pytest.raises(
        DataError, match=r"\(20 of 20 rows\)\. Add the classes, or name another column in dataset\.target"
    ):
        read(save(tmp_path / "nothing", train=nothing), "dataset.missing_values_strategy=drop")


def test_columns_that_are_dropped_are_not_chosen(tmp_path: Path) -> None:
    found = made(a=PICTURE, b=PICTURE, label=LABEL, coarse=(datasets.ClassLabel(names=["u", "v"]), [1, 1, 0, 0] * 5))
    place = save(tmp_path / "saved", train=found)
    mine = read(place, "dataset.drop_columns=[b,label]")
    assert mine.classes == ("u", "v")
    named = read(place, "dataset.image_column=a", "dataset.target=coarse")
    assert torch.equal(mine.train.targets, named.train.targets)
    with pytest.raises(DataError, match=r"^dataset\.drop_columns: .* has no column 'c'\. It has 'a', 'b', "):
        read(place, "dataset.drop_columns=[c]")


def test_a_folder_of_other_data_is_measured_as_the_runs_own(
    mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures as files, saved and in Parquet; a run of one kind on another, and a table."""
    root = cut_tree(tmp_path / "tree", train=6, test=4)
    classes = sorted(path.name for path in (root / "train").iterdir())
    found = {part: of_files(root / part, classes) for part in ("train", "test")}
    saved, rows = save(tmp_path / "saved", **found), tmp_path / "rows"
    rows.mkdir()
    found["test"].to_parquet(rows / "test-00000-of-00001.parquet")
    rest = ["dataset.size=7", "trainer.epochs=1", "trainer.figures=false"]
    for choice, key, place in (("huggingface", "path", saved), ("image_folder", "root", root)):
        run = tmp_path / choice
        assert mcls("train", f"dataset={choice}", f"dataset.{key}={place}", *rest, f"hydra.run.dir={run}") == 0
        assert mcls("evaluate", str(run)) == 0
        own = written(run, "test")
        for other in (saved, rows, saved / "test", root / "test"):
            capsys.readouterr()
            assert mcls("evaluate", str(run), "--data", str(other)) == 0
            measured = written(run, f"data-{other.name}")
            assert {name: measured[name] for name in MEASURED} == {name: own[name] for name in MEASURED}
            told = f"data    {saved}: its split 'test' is measured" if other == saved else ""
            assert capsys.readouterr().err == (f"{told}\n" if told else "")
    table_place = save(tmp_path / "table", train=table(60)[0], test=table(30, seed=1)[0])
    lines = ["dataset=huggingface", f"dataset.path={table_place}", "trainer.epochs=1", "trainer.figures=false"]
    assert mcls("train", *lines, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert mcls("evaluate", str(tmp_path / "run")) == 0
    own = written(tmp_path / "run", "test")
    (tmp_path / "test.csv").write_text(table(30, seed=1)[1])
    for other in (table_place, table_place / "test", tmp_path / "test.csv"):
        assert mcls("evaluate", str(tmp_path / "run"), "--data", str(other)) == 0
        measured = written(tmp_path / "run", f"data-{other.name}")
        assert {name: measured[name] for name in MEASURED} == {name: own[name] for name in MEASURED}
    odd = made(image=PICTURE, label=(datasets.ClassLabel(names=[classes[0], "yak"]), [0, 0, 1, -1] * 5))
    assert mcls("evaluate", str(tmp_path / "huggingface"), "--data", str(save(tmp_path / "odd", test=odd))) == 0
    measured = written(tmp_path / "huggingface", "data-odd")
    assert (measured["n"], measured["unknown_classes"], measured["absent"]) == (10, {"yak": 5, "": 5}, classes[1:])
    capsys.readouterr()
    several = save(tmp_path / "several", train=pictures(), validation=pictures())
    for place, status, message in (
        (several, 2, f"--data: {several} has the splits 'train', 'validation', no test. Name a folder with one."),
        (table_place, 2, f"--data: {table_place}, test has no column of pictures, which this run takes."),
    ):
        assert mcls("evaluate", str(tmp_path / "huggingface"), "--data", str(place)) == status
        assert capsys.readouterr().err.splitlines()[-1] == f"mcls: {message}"
    assert mcls("evaluate", str(tmp_path / "run"), "--data", str(saved)) == 3
    assert "--data: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert mcls("evaluate", str(tmp_path / "run"), "--data", str(table_place)) == 4
    assert capsys.readouterr().err == "mcls: --data: datasets is not installed. Install it: pip install 'mcls[hf]'\n"


def test_a_name_is_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numbers").mkdir()
    table()[0].to_parquet(tmp_path / "numbers" / "train.parquet")
    assert len(read(tmp_path / "numbers").train) == 43
    (tmp_path / "numbers").rename(tmp_path / "moved")
    assert len(read("numbers").train) == 43
    for key, reason in (("false", r"dataset\.download=false"), ("true", "Couldn't reach .*OfflineModeIsEnabled.*")):
        with pytest.raises(
            MachineError,
            match=rf"^dataset\.path: user/data is neither .*hub \({reason}\)\. Where .*: hf "
            r"download user/data --repo-type dataset --local-dir DIR\. Bring DIR, and set dataset",
        ):
            read("user/data", f"dataset.download={key}")
    assert not logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)  # of five tries without a network
    with pytest.raises(RequestError, match=r"^dataset\.name: numbers: Couldn't find cache for numbers for config 'x'"):
        read("numbers", "dataset.name=x")
    with pytest.raises(DataError, match=r"^dataset\.path: \.\./none: no such folder, and no name of a data set"):
        read("../none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match=r"datasets is not installed\. Install it: pip install 'mcls\[hf\]'$"):
        read("numbers")


def made(**columns: tuple[Any, list[Any]]) -> datasets.Dataset:
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    return datasets.Dataset.from_dict({name: cells for name, (_, cells) in columns.items()}, features=features)


LABEL, NUMBER = (NAMES, [0, 1] * 10), (datasets.Value("float32"), [0.5] * 20)
PICTURE = (datasets.Image(), [encoded(Image.new("L", (4, 4), row)) for row in range(20)])


@pytest.mark.parametrize(
    ("found", "keys", "error", "message"),
    [
        (
            {"image": PICTURE, "label": LABEL},
            ["target=lable"],
            DataError,
            r"target: .* has no column 'lable'\. Did you",
        ),
        (
            {"image": PICTURE, "label": LABEL},
            ["group=who"],
            DataError,
            r"group: .* has no column 'who'\. It has 'image'",
        ),
        (
            {"image": PICTURE, "label": LABEL},
            ["group=image"],
            DataError,
            r"group: .*: column 'image' holds Image\. Name another",
        ),
        (
            {"image": PICTURE, "label": LABEL},
            ["image_column=label"],
            RequestError,
            r"'label' holds no pictures\. These",
        ),
        (
            {"image": PICTURE, "label": LABEL},
            ["test_split=dev"],
            RequestError,
            r"test_split: .* no split 'dev'\. It has",
        ),
        ({"image": PICTURE, "label": LABEL}, ["val_split=train"], RequestError, r"val_split: 'train' is another split"),
        ({"image": PICTURE, "label": LABEL}, ["train_split=x"], RequestError, r"train_split: .* has no split 'x'"),
        (
            {"image": PICTURE, "a": LABEL, "b": LABEL},
            [],
            RequestError,
            r"target: .* has 2 columns of classes, 'a', 'b'\.",
        ),
        (
            {"image": PICTURE, "x": NUMBER},
            [],
            RequestError,
            r"target: .* has no column of classes\. Name one: dataset\.ta",
        ),
        (
            {"image": PICTURE, "label": NUMBER},
            [],
            DataError,
            r"target: .*column 'label' holds float32; classes are text",
        ),
        (
            {"a": PICTURE, "b": PICTURE, "label": LABEL},
            [],
            RequestError,
            r"image_column: .* pictures 'a', 'b'\. Name one",
        ),
        (
            {"image": PICTURE, "label": (NAMES, [0, -1] * 10)},
            [],
            DataError,
            r"train\[1\], column 'label': no class, got -1 \(10 of 20 rows\)\. Remove them: "
            r"data\.filter\(lambda row: row\['label'\] in range\(2\)\)\.$",
        ),
        (
            {"x": NUMBER, "label": (NAMES, [0, None] * 10)},
            [],
            DataError,
            r"train\[1\], column 'label': no class, got null \(10 of 20 rows\)\. Remove them: data\.filter\(",
        ),
        (
            {"image": PICTURE, "label": (datasets.Value("string"), ["a", None] * 10)},
            [],
            DataError,
            r"\[1\].*: no class, got null \(10 of 20 rows\)\. Remove them: .* row\['label'\] not in \(None, ''\)\)\.$",
        ),
        ({"image": PICTURE, "label": (datasets.Value("int8"), [3] * 20)}, [], DataError, r"only one class, '3'"),
        (
            {"image": PICTURE, "label": LABEL},
            ["image_column=null"],
            DataError,
            r"'image' holds Image, not one value per",
        ),
        (
            {"x": (datasets.List(datasets.Value("int8")), [[1]] * 20), "label": LABEL},
            [],
            DataError,
            r"'x' holds List, not",
        ),
        ({"x": NUMBER, "label": LABEL}, ["drop_columns=[y]"], DataError, r"drop_columns: .* has no column 'y'"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(
    found: dict[str, Any], keys: list[str], error: type[MclsError], message: str, tmp_path: Path
) -> None:
    place = save(tmp_path / "saved", train=made(**found))
    with pytest.raises(error, match=message) as caught:
        read(place, *(f"dataset.{key}" for key in keys))
    assert "\n" not in str(caught.value)


def test_a_test_split_without_labels_and_a_damaged_folder_are_named(tmp_path: Path) -> None:
    hidden = made(image=PICTURE, label=(NAMES, [-1] * 20))
    place = save(tmp_path / "saved", train=pictures(), test=hidden, unsupervised=hidden)
    with pytest.raises(
        DataError, match=r"no class, got -1 \(20 of 20 rows\)\. Leave the split out: dataset\.test_split=null\.$"
    ):
        read(place)
    assert len(read(place, "dataset.test_split=null").open_test()) == 8
    groups = save(tmp_path / "groups", train=pictures(who=[str(row // 4) for row in range(40)]))
    taken = [
        {int(name[6:-1]) // 4 for name in split.names} for split in parts(read(groups, "dataset.group=who")).values()
    ]
    assert sum(map(len, taken)) == len(set.union(*taken)) == 10
    lacking = save(tmp_path / "lacking", train=table()[0], test=table()[0].remove_columns("n"))
    with pytest.raises(
        DataError, match=r"^dataset\.test_split: .*lacking, test has no column 'n'\. It has 'a', 'kind', "
    ):
        read(lacking)
    (tmp_path / "saved" / "train" / "data-00000-of-00001.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"^dataset\.path: .*saved: cannot be read \("):
        read(place)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows").mkdir()
    pictures().to_parquet(tmp_path / "rows" / "train.parquet")
    pictures(0).to_parquet(tmp_path / "rows" / "test.parquet")
    for folder in (tmp_path / "rows", save(tmp_path / "none", train=pictures(), test=pictures(0))):
        with pytest.raises(DataError, match=r": cannot be read \(a split has no row; remove it from the data set\)\.$"):
            read(folder)
    with pytest.raises(DataError, match=r"^dataset\.path: .*bare: a data set without a split\. Save it again with one"):
        read(save(tmp_path / "bare"))
    with pytest.raises(DataError, match=r"^dataset\.path: .*empty: cannot be read \("):
        read(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match=r"^dataset\.path: .*file is a file\. Name a folder\.$"):
        read(tmp_path / "file")
    with pytest.raises(
        RequestError, match=r"^dataset\.path: must be set to a folder, or the name of a cached data set"
    ):
        read(None)
    with pytest.raises(RequestError, match=r"^dataset\.path: must be set to a folder"):
        read("")
    alone = read(save(tmp_path / "alone", test=pictures()))  # the only split is train, from which test is split off
    assert len(alone.train) < 40 and len(alone.open_test()) > 0
