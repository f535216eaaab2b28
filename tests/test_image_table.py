"""`dataset=image_table`: images that a table names, with their classes, splits and groups."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.data.types import Dataset
from mcls.errors import DataError, RequestError

CLASSES = ("cat", "dog", "emu")


def write_images(root: Path, each: int = 20) -> list[tuple[str, str]]:
    """Images CLASS/NUMBER.png below `root`. Returns their paths and classes."""
    random = np.random.default_rng(0)
    rows = []
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
            rows.append((f"{name}/{number}.png", name))
    return rows


def write_table(path: Path, header: str, rows: Sequence[Sequence[str]]) -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def read(path: Path | None, *keys: str, dataset: str = "image_table") -> Dataset:
    with checker() as check:
        place = [] if path is None else [f"dataset.{'path' if dataset == 'image_table' else 'root'}={path}"]
        config = check.check([f"dataset={dataset}", *place, *keys], False).config
    found: Dataset = build("dataset", config["dataset"])
    return found


def parts(found: Dataset) -> dict[str, Any]:
    return {"train": found.train, "val": found.val, "test": found.open_test()}


def test_a_table_of_a_folders_images_is_that_folder(tmp_path: Path) -> None:
    rows = sorted(write_images(tmp_path / "images"))  # as a folder is read
    table = write_table(tmp_path / "labels.csv", "path,label", rows)
    mine, theirs = read(table, f"dataset.root={tmp_path / 'images'}"), read(tmp_path / "images", dataset="image_folder")
    assert mine.classes == theirs.classes and mine.mean == theirs.mean
    for name, split in parts(theirs).items():
        other = parts(mine)[name]
        assert sorted(other.names) == sorted(split.names)
        images = {
            where: (pixels, int(target))
            for where, pixels, target in zip(split.names, split.inputs, split.targets, strict=True)
        }
        for where, pixels, target in zip(other.names, other.inputs, other.targets, strict=True):
            assert torch.equal(images[where][0], pixels) and images[where][1] == target


def test_kaggles_ids_without_a_suffix_are_the_files_called_so(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images")
    ids = [(name.removesuffix(".png").replace("/", "-"), label) for name, label in rows]
    for (name, _), (number, _) in zip(rows, ids, strict=True):
        (tmp_path / "images" / name).rename(tmp_path / "images" / f"{number}.png")
    table = write_table(tmp_path / "train.csv", "id,breed", ids)
    keys = ["dataset.path_column=id", "dataset.target=breed", f"dataset.root={tmp_path / 'images'}"]
    assert sum(len(split) for split in parts(read(table, *keys)).values()) == 60
    (tmp_path / "images" / "cat-0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"row 2, column 'id': 'cat-0' may be 'cat-0.jpg', 'cat-0.png'. Add the suffix"):
        read(table, *keys)


def test_splits_and_groups_are_those_of_the_table(tmp_path: Path) -> None:
    rows = write_images(tmp_path)
    split = [(name, label, ("train", "Valid", "test")[index % 3]) for index, (name, label) in enumerate(rows)]
    found = parts(read(write_table(tmp_path / "labels.csv", "path,label,split", split)))
    for number, name in enumerate(("train", "val", "test")):
        assert found[name].names == tuple(row[0] for row in split[number::3])
    grouped = [(name, label, f"g{index // 4}") for index, (name, label) in enumerate(rows)]
    found = parts(read(write_table(tmp_path / "labels.csv", "path,label,group", grouped)))
    group = {name: of for name, _, of in grouped}
    sets = [{group[name] for name in split.names} for split in found.values()]
    assert all(sets) and sum(map(len, sets)) == len(set.union(*sets)) == 15
    loose = parts(read(tmp_path / "labels.csv", "dataset.group=null"))
    assert {group[name] for name in loose["train"].names} & {group[name] for name in loose["test"].names}


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,label", ("cat/99.png", "cat"), r"row 3, column 'path': no file .*cat/99\.png\. Set dataset\.root to"),
        ("path,label", ("cat/1.png", ""), r"row 3, column 'label': empty\. Complete the row or remove it\."),
        ("path,label", ("cat/0.png", "cat"), r"row 3, column 'path': 'cat/0\.png' is in an earlier row too\. Keep one"),
        ("path,class", ("cat/1.png", "cat"), r"dataset\.target: .* has no column 'label'"),
        ("path,label,split", ("cat/1.png", "cat", "x"), r"row 3, column 'split': must be train, val or test, got 'x'"),
        ("path,label,split", ("emu/1.png", "emu", "test"), r"column 'label': class 'emu' is not in train, which has"),
    ],
)
def test_wrong_rows_are_named(header: str, row: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    rest = ("train",) * (header.count(",") - 1)
    rows = [("cat/0.png", "cat", *rest), row, ("dog/0.png", "dog", *rest)]
    with pytest.raises(DataError, match=message) as caught:
        read(write_table(tmp_path / "labels.csv", header, rows))
    assert "\n" not in str(caught.value)


def test_a_group_in_two_splits_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    rows = [
        (name, label, ("train", "test")[index % 2], "g") for index, (name, label) in enumerate(write_images(tmp_path))
    ]
    with pytest.raises(DataError, match=r"group 'g' is in train and in test\. Put it in one split\."):
        read(write_table(tmp_path / "labels.csv", "path,label,split,group", rows))
    with pytest.raises(
        RequestError, match=r"^dataset\.path: must be set to the table of the images, dataset\.path=FILE"
    ):
        read(None)


def test_a_run_on_a_table_is_resumed_evaluated_and_predicts(mcls: Callable[..., int], tmp_path: Path) -> None:
    table = write_table(tmp_path / "labels.csv", "path,label", write_images(tmp_path))
    run, whole = tmp_path / "run", tmp_path / "whole"
    keys = ["dataset=image_table", f"dataset.path={table}", "trainer.figures=false", "trainer.batch_size=16"]
    assert mcls("train", *keys, "trainer.epochs=2", f"hydra.run.dir={whole}") == 0
    assert mcls("train", *keys, "trainer.epochs=1", f"hydra.run.dir={run}") == 0
    assert mcls("resume", str(run), "trainer.epochs=2") == 0
    digests = [json.loads((place / "result.json").read_text())["weights_sha256"] for place in (run, whole)]
    assert digests[0] == digests[1]
    assert mcls("evaluate", str(run)) == 0
    assert mcls("predict", str(run), str(tmp_path / "cat"), "--output", str(tmp_path / "found.csv")) == 0
    assert mcls("data", "check", *keys[:2]) == 0
