"""`mcls data check`: what it prints, what it finds wrong, and its exit status."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from test_csv import HEADER, rows
from test_csv import write as write_csv
from test_image_folder import cut_tree, image, tree

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def test_a_healthy_tree(tmp_path: Path, mcls: Main, capsys: Capture) -> None:
    tree(tmp_path / "own")
    assert mcls("data", "check", "dataset=image_folder", "dataset.root=own", "--output", "look/here") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "samples     43 train, 5 val, 12 test; 3 x 8 x 8, uint8"
    assert lines[1].startswith("statistics  mean 0.")
    assert lines[3:7] == [
        "class  train  val  test",
        "cat    14     2    4",
        "dog    14     2    4",
        "emu    15     1    4",
    ]
    assert lines[8:] == [
        "labels      0 to 2, all within 3 classes",
        "pictures    look/here/grid.png",
        "nothing wrong",
    ]
    assert err == "images  8 x 8 (RGB 60); taken as 8 x 8 RGB\n"
    with Image.open(tmp_path / "look" / "here" / "grid.png") as grid:
        colours = grid.convert("RGB").getcolors(1 << 20)
        assert min(grid.size) > 300 and colours is not None and len(colours) > 1000
    assert not (tmp_path / "outputs").exists()


def test_a_leak_is_counted_with_examples(tmp_path: Path, mcls: Main, capsys: Capture) -> None:
    root = cut_tree(tmp_path / "own", train=10, val=4, test=4)
    line = ("data", "check", "dataset=image_folder", "dataset.root=own")
    assert mcls(*line) == 0  # the healthy twin
    assert "leak" not in capsys.readouterr().out
    shutil.copy(root / "train" / "cat" / "3.png", root / "test" / "cat" / "x.png")
    shutil.copy(root / "train" / "cat" / "4.png", root / "test" / "dog" / "y.png")
    shutil.copy(root / "val" / "cat" / "0.png", root / "test" / "cat" / "z.png")
    shutil.copy(root / "train" / "cat" / "4.png", root / "train" / "cat" / "44.png")
    assert mcls(*line) == 3
    out, err = capsys.readouterr()
    assert "doubles     1 of 31 in train occur earlier in the split" in out
    assert "leak        2 of 15 in test are in train too, 1 of them with another label" in out
    assert "            test/cat/x.png = train/cat/3.png; test/dog/y.png = train/cat/4.png" in out
    assert "leak        1 of 15 in test are in val too\n            test/cat/z.png = val/cat/0.png" in out
    assert err.splitlines()[-1] == "mcls: data check: test images are in train too (2); test images are in val too (1)."
    assert "nothing wrong" not in out


def test_unreadable_images_are_listed_and_the_rest_is_looked_at(tmp_path: Path, mcls: Main, capsys: Capture) -> None:
    tree(tmp_path / "own", count=70)
    line = ("data", "check", "dataset=image_folder", "dataset.root=own")
    (tmp_path / "own" / "cat" / "3.png").write_bytes(b"")
    (tmp_path / "own" / "dog" / "5.png").write_text("<html>")
    assert mcls(*line) == 3
    out, err = capsys.readouterr()
    listed = ["unreadable  own/cat/3.png: empty.", "unreadable  own/dog/5.png: cannot be read (not a picture)."]
    assert out.splitlines()[:2] == listed
    assert "samples     149 train, 17 val, 42 test" in out
    assert err.splitlines()[-1] == "mcls: data check: images can't be read (2)."
    for number in range(20, 50):
        (tmp_path / "own" / "emu" / f"{number}.png").write_bytes(b"")
    assert mcls(*line) == 3
    out, err = capsys.readouterr()
    assert out.count("unreadable") == 21 and "unreadable  and 12 more" in out and "samples" not in out
    assert err.splitlines()[-1].startswith("mcls: own/cat/3.png: empty (32 of 210 images). Fix or remove them, or set ")


def test_uneven_classes_are_told(tmp_path: Path, mcls: Main, capsys: Capture) -> None:
    tree(tmp_path / "own", ("many",), count=120)
    tree(tmp_path / "own", ("few",), count=10, seed=5000)
    assert mcls("data", "check", "dataset=image_folder", "dataset.root=own") == 0
    remedies = "loss.class_weights=balanced or trainer.class_balanced_sampling=true"
    advice = f"times the samples of the smallest: consider {remedies}"
    assert f"uneven      the largest class has 12 {advice}" in capsys.readouterr().out


def test_a_table(tmp_path: Path, mcls: Main, capsys: Capture) -> None:
    body = rows()
    write_csv(tmp_path / "own.csv", body)
    line = ("data", "check", "dataset=csv", "dataset.path=own.csv", "dataset.target=kind", "dataset.drop_columns=[id]")
    assert mcls(*line, "--output", "look") == 0
    out, err = capsys.readouterr()
    assert "samples     43 train, 5 val, 12 test; 5, float32" in out
    assert "\ncolumn  kind    in train\nsize    number  mean " in out
    assert "\ncolour  text    3 categories: blue, green, red\n" in out
    assert err == "columns 2 numeric, standardised, 1 of text as 3 categories\n"
    assert not (tmp_path / "look").exists()
    write_csv(tmp_path / "own.csv", [*body, *([str(100 + n), *body[0][1:]] for n in range(12))])
    assert mcls(*line) == 0  # rows may be equal by chance: told, not a fault
    out = capsys.readouterr().out
    assert "in test are in train too" in out and " = row " in out and "nothing wrong" in out


def test_data_sets_of_mcls_itself(mcls: Main, capsys: Capture) -> None:
    assert mcls("data", "check") == 0
    assert "samples     720 train, 80 val, 200 test; 2, float32" in capsys.readouterr().out
    assert mcls("data", "check", "dataset=mnist", "dataset.val_fraction=0") == 0
    assert "samples     300 train, 100 test; 1 x 28 x 28, uint8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("dataset=image_folder", 2, "dataset.root: must be set to the folder of the images, dataset.root=DIR."),
        ("dataset.rot=x", 2, "dataset.rot: no such key. See mcls train --help."),
        ("dataset=csv dataset.path=x.csv dataset.target=y", 3, "x.csv: no such file."),
        ("--config-dir /no/such/folder", 2, "--config-dir: no folder /no/such/folder."),
    ],
)
def test_wrong_requests(mcls: Main, capsys: Capture, line: str, status: int, message: str) -> None:
    assert mcls("data", "check", line.split()) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mcls: ")
    assert err == f"mcls: {message}\n" or "no such key" in message


def test_a_folder_that_cannot_be_written(tmp_path: Path, mcls: Main, capsys: Capture) -> None:
    tree(tmp_path / "own")
    (tmp_path / "file").write_text("")
    assert mcls("data", "check", "dataset=image_folder", "dataset.root=own", "--output", "file/look") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("mcls: file/look: can't be a folder (")


def test_names_are_shown_without_control_characters(tmp_path: Path, mcls: Main, capsys: Capture) -> None:
    root = cut_tree(tmp_path / "own", train=10, test=3)
    image(1).save(root / "train" / "cat" / "\x1b[31mred.png")
    image(1).save(root / "test" / "cat" / "\x1b[31mred.png")
    write_csv(tmp_path / "t.csv", [[*row[:4], "\x1b[31m" + row[4]] for row in rows()], HEADER)
    assert mcls("data", "check", "dataset=image_folder", "dataset.root=own") == 3
    assert mcls("data", "check", "dataset=csv", "dataset.path=t.csv", "dataset.target=kind") == 0
    assert "\x1b" not in "".join(capsys.readouterr())
