"""`mcls predict`: the answers of evaluate on the same samples, whatever is thrown at it, and flat memory."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mcls.data import image_io
from mcls.errors import DataError, FolderError, RequestError
from mcls.inference import evaluate, inputs, predict
from mcls.inference.load import load_run
from mcls.runs.folder import RunFolder
from mcls.runs.formats import check_encoder
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
SAID = "images are rotated by EXIF and resized to 28 x 28 grey"


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    return train(tmp_path_factory.mktemp("mnist") / "run", data_root, "dataset=mnist", "trainer.epochs=3")


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    return train(tmp_path_factory.mktemp("blobs") / "run", data_root, "trainer.epochs=2")


@pytest.fixture(scope="module")
def mnist_onnx(mnist: Path) -> Path:
    from mcls.cli import main

    assert main(["export", str(mnist), "--format", "onnx"]) == 0
    return mnist / "model.onnx"


@pytest.fixture
def folder(mnist: Path, tmp_path: Path) -> Path:
    """40 pictures of the test split in a tree, and what the run says of them."""
    loaded = load_run(RunFolder(mnist), device="cpu")
    split = evaluate.rebuild_dataset(loaded, download=False).open_test()
    for index in range(40):
        place = tmp_path / "pictures" / f"part{index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.as_tensor(split.inputs)[index, 0].numpy()).save(place / f"{index}.png")
    probabilities = evaluate.logits_of(loaded, split.rows(torch.arange(40))).softmax(dim=1)
    np.save(tmp_path / "expected.npy", probabilities.numpy())
    return tmp_path / "pictures"


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("model", ["mnist", "mnist_onnx"])
def test_the_same_answers_as_evaluate(
    mcls: Main, model: str, folder: Path, request: pytest.FixtureRequest, capsys: Capture
) -> None:
    expected = np.load(folder.parent / "expected.npy")
    path = str(request.getfixturevalue(model))
    capsys.readouterr()
    assert mcls("predict", path, str(folder), "--top", "10", "--batch-size", "7") == 0
    said = capsys.readouterr()
    assert said.err == f"{SAID}\n40 classified\n"
    rows = table(said.out)
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows) and len(rows) == 40
    for row in rows:
        truth = expected[int(Path(row["file"]).stem)]
        places = ["", *(f"_{place}" for place in range(2, 11))]
        found = {int(row[f"class{place}"]): float(row[f"probability{place}"]) for place in places}
        np.testing.assert_allclose([found[label] for label in range(10)], truth, atol=2e-6)
        assert int(row["class"]) == truth.argmax()


def test_formats_patterns_lists_and_files(
    mcls: Main, mnist_onnx: Path, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> str:
        capsys.readouterr()
        assert mcls("predict", str(mnist_onnx), *arguments) == 0
        return capsys.readouterr().out

    whole = table(said(str(folder)))
    pattern = f"{folder}/part1/*.png"
    part = [row for row in whole if "/part1/" in row["file"]]
    assert table(said(pattern)) == part
    assert table(said(f"{folder}/**/1.png")) == [row for row in whole if row["file"].endswith("/1.png")]
    lines = [json.loads(line) for line in said(pattern, "--format", "jsonl", "--top", "2").splitlines()]
    assert [line["file"] for line in lines] == [row["file"] for row in part]
    assert [line["top"][0] for line in lines] == [
        {"class": row["class"], "probability": float(row["probability"])} for row in part
    ]
    header, *rows = said(pattern, "--format", "table").splitlines()
    assert header.split() == ["class", "probability", "file"]
    assert [line.split()[::2] for line in rows] == [[row["class"], row["file"]] for row in part]
    listing = "".join(f"{row['file']}\n" for row in part).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listing)))
    assert table(said("-")) == part
    output = folder.parent / "found.csv"
    output.write_text("old")
    assert said(pattern, "--output", str(output)) == ""
    assert table(output.read_text()) == part
    wide = table(said(pattern, "--format", "wide", "--id", "image"))
    assert list(wide[0]) == ["image", *map(str, range(10))]
    assert [row["image"] for row in wide] == [Path(row["file"]).name for row in part]
    np.testing.assert_allclose(
        [float(row[best["class"]]) for row, best in zip(wide, part, strict=True)],
        [float(row["probability"]) for row in part], rtol=1e-5,
    )  # fmt: skip
    assert not list(folder.parent.glob("*.part"))


def test_unreadable_files_are_named_skipped_and_counted(
    mcls: Main, mnist: Path, tmp_path: Path, capsys: Capture
) -> None:
    place = tmp_path / "mixed"
    place.mkdir()
    Image.new("L", (28, 28), 7).save(place / "good.png")
    content = (place / "good.png").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    (place / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:2000])
    (place / "zero.jpg").write_bytes(b"")
    (place / "page.jpg").write_text("<html>not found</html>")
    (place / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (place / "ps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(place / "pipe.png")
    (place / "notes.txt").write_text("not looked at")
    (place / "evil\x1b[31m\n.png").write_bytes(b"x")
    (place / "=cmd.png").write_bytes(content)
    Image.new("1", (9000, 8000)).save(place / "huge.png")
    capsys.readouterr()
    assert mcls("predict", str(mnist), str(place)) == 3
    said = capsys.readouterr()
    assert [Path(row["file"]).name for row in table(said.out)] == ["=cmd.png", "good.png"]
    assert said.err.splitlines() == [
        SAID,
        f"skipped {place}/cut.png: cannot be read (image file is truncated).",
        f"skipped {place}/evil\\x1b[31m\\n.png: cannot be read (not a picture).",
        f"skipped {place}/huge.png: refused, 9000 x 8000 pixels exceed max_pixels, 64,000,000.",
        f"skipped {place}/page.jpg: cannot be read (not a picture).",
        f"skipped {place}/pipe.png: not a plain file.",
        f"skipped {place}/ps.png: cannot be read (not a picture).",
        f"skipped {place}/zero.jpg: empty.",
        "2 classified",
        "mcls: invalid images: 7 of 9, left out.",
    ]
    assert mcls("predict", str(mnist), str(place), "--strict", "--output", str(tmp_path / "no.csv")) == 3
    assert (
        capsys.readouterr().err.splitlines()[1] == f"mcls: {place}/cut.png: cannot be read (image file is truncated)."
    )
    assert not list(tmp_path.glob("*no.csv*"))
    assert mcls("predict", str(mnist), f"{place}/huge.png", "--max-pixels", "100000000", "--strict") == 0
    assert mcls("predict", str(mnist), f"{place}/good.png", f"{place}/gone.png") == 2
    assert f"{place}/gone.png: no such file or folder, and nothing matches it." in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert mcls("predict", str(mnist), "=cmd.png") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("=cmd.png,")


def pixels(image: Image.Image, path: Path, channels: int = 3, **settings: Any) -> list[Any]:
    image.save(path, **settings)
    found: list[Any] = image_io.resize_image(image_io.read_image(path, channels), (1, 1))[:, 0, 0].tolist()
    return found


def test_modes_of_pictures(tmp_path: Path) -> None:
    size = (3, 3)
    assert pixels(Image.new("RGB", size, (1, 2, 3)), tmp_path / "a.png") == [1, 2, 3]
    assert pixels(Image.new("RGBA", size, (0, 0, 0, 0)), tmp_path / "b.png") == [255, 255, 255]
    assert pixels(Image.new("RGBA", size, (10, 20, 30, 255)), tmp_path / "c.png", 1) == [18]
    assert pixels(Image.new("LA", size, (9, 255)), tmp_path / "d.png") == [9, 9, 9]
    assert pixels(Image.new("CMYK", size, (255, 0, 0, 0)), tmp_path / "f.tif") == [0, 255, 255]
    assert pixels(Image.new("1", size, 1), tmp_path / "g.png", 1) == [255]
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    assert pixels(palette, tmp_path / "h.png") == [50, 60, 70]
    assert pixels(palette, tmp_path / "i.gif", transparency=1) == [255, 255, 255]
    deep = Image.fromarray(np.full(size, 0x80FF, dtype=np.uint16))
    assert pixels(deep, tmp_path / "j.png", 1) == pixels(deep, tmp_path / "k.tif", 1) == [0x80]
    assert pixels(Image.fromarray(np.full(size, 0.5, dtype=np.float32)), tmp_path / "l.tif", 1) == [127]
    assert pixels(Image.fromarray(np.full(size, 0x80FF, dtype=np.int32)), tmp_path / "m.tif", 1) == [0x80]
    with pytest.raises(DataError, match="2 are wanted"):
        image_io.read_image(tmp_path / "a.png", 2)


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.int32, 200, 40_000), (np.float32, 0.1, 1.1)])
def test_pictures_of_more_than_8_bits_have_one_scale(tmp_path: Path, dtype: Any, low: float, high: float) -> None:
    """What a pixel becomes does not depend on the others in its picture."""
    found = []
    for other in (0, high):
        Image.fromarray(np.array([[low, other]], dtype=dtype)).save(tmp_path / "a.tif")
        found.append(np.asarray(image_io.read_image(tmp_path / "a.tif", 1))[0, 0])
    assert found[0] == found[1]
    Image.fromarray(np.array([[low, 200_000]], dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: cannot be read \(values up to 200000, expected 0 to (1|65535)\)"):
        image_io.read_image(tmp_path / "a.tif", 1)


def test_hidden_and_system_files_are_left_out_as_in_training(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/._1.png", ".thumbs/1.png", "__MACOSX/a/1.png", "a/@eaDir/1.png", "B.PNG", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list(inputs.paths([str(tmp_path)], {".png"}, io.BytesIO()))
    assert found == [f"{tmp_path}/B.PNG", f"{tmp_path}/a/1.png"]
    assert list(inputs.paths([f"{tmp_path}/.thumbs"], {".png"}, io.BytesIO())) == [f"{tmp_path}/.thumbs/1.png"]


def test_exif_turns_and_sizes_are_stretched(tmp_path: Path) -> None:
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white on top
    image.save(tmp_path / "turned.png", exif=exif)
    found = image_io.resize_image(image_io.read_image(tmp_path / "turned.png", 1), (10, 10))
    assert found.shape == (1, 10, 10) and found.dtype == np.uint8
    assert (found[0, :4] == 255).all() and (found[0, 6:] == 0).all()


@pytest.mark.parametrize("batch", ["1", "3"])
def test_rows_of_numbers(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture, batch: str) -> None:
    loaded = load_run(RunFolder(blobs), device="cpu")
    split = evaluate.rebuild_dataset(loaded, download=False).open_test()
    values = torch.as_tensor(split.inputs)[:5].tolist()
    expected = evaluate.logits_of(loaded, split.rows(torch.arange(5))).softmax(dim=1)
    for text in ("", "x,y\n", "\ufeffx;y\n", "# made by a tool\nx,y\n", "sep=;\n"):
        separator = ";" if ";" in text else ","
        path = tmp_path / "points.csv"
        path.write_text(text + "".join(f"{x!r}{separator}{y!r}\n" for x, y in values))
        capsys.readouterr()
        assert mcls("predict", str(blobs), str(path), "--batch-size", batch) == 0
        rows = table(capsys.readouterr().out)
        assert [row["file"] for row in rows] == [f"{path}:{row + 1 + text.count(chr(10))}" for row in range(5)]
        assert [int(row["class"]) for row in rows] == expected.argmax(dim=1).tolist()
        np.testing.assert_allclose([float(row["probability"]) for row in rows], expected.max(dim=1).values, atol=1e-6)


BAD_ROWS = [
    ("1,2\n3\n", "row 2: 1 cell, the model takes 2 numbers."),
    ("1,2,3\n", "row 1: 3 cells, the model takes 2 numbers."),
    ("x,y\n1,two\n", "row 2: 'two' is not a number."),
    ("1,two\n", "row 1: 'two' is not a number."),
    ("x,y\n1,nan\n", "row 2: 'nan' is not a number."),
    ("x,y\n1,\n", "row 2: '' is not a number."),
    ('1,2\n3,"4\n', "row 2: unexpected end of data. Is a quote not closed? The rest is not read."),
    (
        "1,2\n\xff,4\n",
        "row 2: not UTF-8 (byte 0xff). Save it as UTF-8, Excel's 'CSV UTF-8'. The rest is not read.",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_ROWS)
def test_rows_that_are_wrong(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("latin-1"))
    capsys.readouterr()
    assert mcls("predict", str(blobs), str(path), "--strict") == 3
    separator = ", " if message.startswith("row") else ": "
    assert capsys.readouterr().err == f"mcls: {path}{separator}{message}\n"


def test_rows_that_are_wrong_are_named_skipped_and_counted(
    mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture
) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text('x,y\n1,2\n1,two\n3\n3,4\n5,"6\n')
    other.write_text("5,6\n")
    capsys.readouterr()
    assert mcls("predict", str(blobs), str(one), f"{tmp_path}/../{tmp_path.name}", str(other)) == 3
    out, err = capsys.readouterr()
    assert [row["file"].split("/")[-1] for row in table(out)] == [*["one.csv:2", "one.csv:5"] * 2, *["other.csv:1"] * 2]
    assert err.splitlines()[:3] == [
        f"skipped {one}, row 3: 'two' is not a number.",
        f"skipped {one}, row 4: 1 cell, the model takes 2 numbers.",
        f"skipped {one}, row 6: unexpected end of data. Is a quote not closed? The rest is not read.",
    ]
    assert err.splitlines()[-1] == "mcls: wrong rows or files: 6 of 12, left out."
    place = tmp_path / "found.out"
    assert mcls("predict", str(blobs), str(one), "--output", str(place)) == 3 and not place.exists()
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"mcls: wrong rows or files: 3 of 5, left out; {place} is not written."
    )


def fail(error: DataError) -> None:
    """As --strict does."""
    raise error


ENCODER = {
    "columns": ["age", "colour"],
    "means": [40.0, 0.0],
    "stds": [10.0, 1.0],
    "categories": [[], ["blue", "red"]],
    "missing": "error",
    "missing_values": ["NA"],
    "unseen": "error",
    "target": "kind",
}


def test_rows_through_an_encoder(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("colour;id;age\n" + "red;1;30\nblue;2;60\n" * 300)
    found = list(inputs.rows([str(path)], ENCODER, fail))
    assert [name for name, _ in found] == [f"{path}:{row}" for row in range(2, 602)]
    np.testing.assert_array_equal(np.stack([values for _, values in found[-2:]]), [[-1, 0, 1], [2, 1, 0]])
    with path.open("a") as file:
        file.write("green;3;60\n")
    with pytest.raises(DataError, match="row 602, column 'colour': 'green' is a category that does not occur in train"):
        list(inputs.rows([str(path)], ENCODER, fail))


def test_wrong_rows_and_files_of_a_table_cost_no_others(tmp_path: Path) -> None:
    path, said = tmp_path / "people.csv", list[str]()
    wrong = ["green;3;60", "red;1", "red;4;old", "red;5;NA"]
    path.write_text("\n".join(["colour;id;age", *["red;1;30"] * 200, *wrong, "blue;2;60", '"red;1;30']))
    files = [tmp_path / name for name in ("empty.csv", "short.csv", "gone.csv", "twice.csv")]
    files[0].write_text("")
    files[1].write_text("colour\nred\n")
    files[3].write_text("age,colour,age\n30,red,40\n")
    found = list(inputs.rows(map(str, [*files, path]), ENCODER, lambda error: said.append(str(error))))
    assert [name for name, _ in found] == [f"{path}:{row}" for row in [*range(2, 202), 206]]
    assert [values.tolist() for _, values in found[-2:]] == [[-1, 0, 1], [2, 1, 0]]
    assert said[:4] == [
        f"{files[0]}: empty.",
        f"inputs: {files[1]} has no column 'age'. It has 'colour'.",
        f"{files[2]}: no such file.",
        f"{files[3]}, row 1: two columns are called 'age'. Rename one.",
    ]
    starts = [
        f"{path}, row 207: unexpected end of data. Is a quote not closed? The rest is not read.",
        f"{path}, row 203: 2 cells, the header has 3.",
        f"{path}, row 202, column 'colour': 'green' is a category that does not occur in train",
        f"{path}, row 204, column 'age': 'old' is not a number. Fix it, or",
        f"{path}, row 205, column 'age': missing, got 'NA'.",
    ]
    for text, start in zip(said[4:], starts, strict=True):
        assert text.startswith(start)


@pytest.mark.parametrize("quote", ["", '"'])
def test_tables_are_cut_as_the_runs_own_was(tmp_path: Path, quote: str) -> None:
    """By what it was trained with, whatever the header looks like, and otherwise by what the header suggests."""
    path = tmp_path / "people.csv"
    named = {**ENCODER, "columns": ["age, in years", "colour"], "delimiter": ";"}
    path.write_text(f"id, a, b, c;{quote}age, in years{quote};colour\n1;30;red\n")
    [(_, values)] = inputs.rows([str(path)], named, fail)
    assert values.tolist() == [-1, 0, 1]
    path.write_text(f"{quote}age{quote},{quote}colour{quote}\n30,red\n")
    for delimiter in (";", "auto", "tab"):
        [(_, values)] = inputs.rows([str(path)], {**ENCODER, "delimiter": delimiter}, fail)
        assert values.tolist() == [-1, 0, 1]


def test_unknown_categories_are_counted_where_they_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "mcls")
    path = tmp_path / "people.csv"
    path.write_text("colour,age\n" + "green,30\nred,30\n" * 300)
    found = list(inputs.rows([str(path)], {**ENCODER, "unseen": "ignore"}, fail))
    np.testing.assert_array_equal(np.stack([values for _, values in found[-2:]]), [[-1, 0, 0], [-1, 0, 1]])
    assert len(found) == 600
    told = "300 cells with a category that train does not have, which counts as none"
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {told}"]


def test_rows_are_named_by_a_column(tmp_path: Path) -> None:
    path, other, said = tmp_path / "people.csv", tmp_path / "other.csv", list[str]()
    path.write_text("colour,id,age\nred,a 7,30\ngreen,b,30\nblue,=c,40\n")
    other.write_text("colour,age\nred,30\n")
    found = inputs.rows([str(path), str(other)], ENCODER, lambda error: said.append(str(error)), "id")
    assert [next(found)[0], next(found)[0]] == ["a 7", "=c"]
    assert said[0].startswith(f"{path}, row 3, column 'colour': 'green' is a category") and len(said) == 1
    with pytest.raises(RequestError) as caught:
        next(found)
    assert str(caught.value) == f"--id: {other} has no column 'id'. It has 'colour', 'age'."


def test_a_submission_in_the_layout_of_otto(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    """93 features, 9 classes: the rows' ids and the probabilities of all classes, in full, as the run has them."""
    random = np.random.default_rng(0)
    features = random.poisson(1.0, (400, 93))
    features[range(400), np.arange(400) % 9] += 40
    lines = [
        ",".join(map(str, [index + 1, *row, f"Class_{index % 9 + 1}"])) for index, row in enumerate(features.tolist())
    ]
    header = ",".join(["id", *(f"feat_{index}" for index in range(1, 94))])
    (tmp_path / "train.csv").write_text("\n".join([f"{header},target", *lines[:300], ""]))
    (tmp_path / "test.csv").write_text("\n".join([header, *(line.rpartition(",")[0] for line in lines[300:]), ""]))
    run = train(
        tmp_path / "run", data_root, "dataset=csv", f"dataset.path={tmp_path / 'train.csv'}", "dataset.target=target",
        "dataset.drop_columns=[id]", "trainer.epochs=30", "optimizer.lr=1.0", "loss=nll",
    )  # fmt: skip
    assert mcls("export", str(run), "--format", "onnx") == 0
    submission = tmp_path / "submission.csv"
    for model in (run, run / "model.onnx"):
        line = ["predict", str(model), "test.csv", "--format", "wide", "--id", "id", "--output", str(submission)]
        assert mcls(*line) == 0
        head, *body = csv.reader(submission.read_text().splitlines())
        assert head == ["id", *(f"Class_{index}" for index in range(1, 10))]
        assert [row[0] for row in body] == [str(index) for index in range(301, 401)]
        parts = np.array([list(map(float, row[1:])) for row in body])
        assert (parts > 0).all() and np.abs(parts.sum(axis=1) - 1).max() < 1e-12
        assert parts.min() < 1e-6 and (parts.argmax(axis=1) == np.arange(300, 400) % 9).mean() > 0.9
        samples_in = list(inputs.rows(["test.csv"], load_run(RunFolder(run), device="cpu").encoder or {}, fail))
        expected = predict.from_run(RunFolder(run), "cpu", []).probabilities(np.stack([x for _, x in samples_in]))
        np.testing.assert_allclose(parts, expected, rtol=1e-4)


def test_no_probability_in_full_is_zero() -> None:
    from mcls.commands.predict import as_wide

    found = [(["x", "=y"], np.array([[1, 0, 0], [1e-45, 0.25, 0.75]], dtype=np.float32))]
    rows = table("".join(as_wide(found, ["a", "=b", "c"], 1, "id")))
    assert [row["id"] for row in rows] == ["x", "=y"]
    parts = np.array([[float(row[label]) for label in ("a", "=b", "c")] for row in rows])
    assert (parts > 0).all() and np.isfinite(np.log(parts)).all() and (np.abs(parts.sum(axis=1) - 1) < 1e-15).all()


def test_an_encoder_from_a_strange_folder_is_checked(tmp_path: Path) -> None:
    check_encoder(ENCODER, (3,), tmp_path)
    check_encoder(None, (3,), tmp_path)
    wrong: list[Any] = [7, {}, {**ENCODER, "means": ["x", 0.0]}, {**ENCODER, "columns": [1, 2]}]
    wrong += [
        {**ENCODER, "delimiter": 7},
        {**ENCODER, "stds": [1.0]},
        {**ENCODER, "categories": [[], "ab"], "columns": None},
    ]
    for encoder in wrong:
        with pytest.raises(FolderError, match=r"inconsistent|must be|it lacks"):
            check_encoder(encoder, (3,), tmp_path)
    with pytest.raises(FolderError, match=r"inconsistent|must be|it lacks"):
        check_encoder(ENCODER, (4,), tmp_path)


def test_onnx_imports_no_torch(mnist_onnx: Path, folder: Path) -> None:
    code = (
        "import sys; from mcls.cli import main\n"
        f"status = main(['predict', {str(mnist_onnx)!r}, {str(folder)!r}])\n"
        "sys.exit(status or 'torch' in sys.modules or 'hydra' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"{SAID}\n40 classified\n")
    assert len(done.stdout.splitlines()) == 41


def test_a_reader_that_goes_away(mnist_onnx: Path, folder: Path) -> None:
    command = (
        f"{sys.executable} -m mcls predict {mnist_onnx} {folder} --batch-size 1 | head -1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["file,class,probability"]
    assert "Traceback" not in done.stderr and done.returncode in (0, 141)


def test_onnx_files_that_are_refused(mcls: Main, tmp_path: Path, mnist_onnx: Path, capsys: Capture) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    path.write_bytes(b"nothing")
    capsys.readouterr()
    assert mcls("predict", str(path), str(tmp_path)) == 5
    assert "m.onnx: refused, onnxruntime cannot load it" in capsys.readouterr().err
    model = onnx.load(mnist_onnx)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert mcls("predict", str(path), str(tmp_path)) == 5
    assert "refused, its metadata lack classes and inputs" in capsys.readouterr().err
    assert mcls("predict", str(mnist_onnx), str(tmp_path), "--device", "cuda") == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert mcls("predict", str(mnist_onnx), str(tmp_path)) == 4
    assert capsys.readouterr().err.endswith("pip install 'mcls[onnx]'\n")


def test_runs_and_requests_that_are_refused(mcls: Main, mnist: Path, tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert mcls("predict", str(tmp_path), "x") == 5
    assert capsys.readouterr().err == f"mcls: {tmp_path}: not a run folder, it has no run.json.\n"
    run = Path(shutil.copytree(mnist, tmp_path / "run"))
    (run / "best.pt").unlink()
    assert mcls("predict", str(run), "x") == 5
    assert mcls("predict", str(mnist), str(tmp_path), "--top", "11") == 2
    assert capsys.readouterr().err.endswith("mcls: --top 11: there are 10 classes.\n")
    assert mcls("predict", str(mnist), str(tmp_path), "--output", "/nowhere/x.csv") == 4
    wrong = {
        "--top 0": "--top: must be a whole number above 0, got '0'.",
        "--batch-size -1": "--batch-size: must be a whole number above 0, got '-1'.",
        "--format xml": "--format: must be csv, wide, jsonl or table, got 'xml'.",
        "--device tpu": "--device: must be auto, cpu, cuda, cuda:N or mps, got 'tpu'.",
        "--ouptut x": "--ouptut: no such option. Did you mean --output?",
    }
    for words, message in wrong.items():
        capsys.readouterr()
        assert mcls("predict", str(mnist), str(tmp_path), *words.split()) == 2
        assert capsys.readouterr().err == f"mcls: {message} See mcls predict --help.\n"
    assert mcls("predict", str(mnist)) == 2
    assert capsys.readouterr().err == "mcls: INPUT: missing. See mcls predict --help.\n"
    for name in ("m.pt2", "m.safetensors"):
        (tmp_path / name).touch()
        assert mcls("predict", str(tmp_path / name), "x") == 5
        assert (
            f"{name}: an exported model. This takes the folder of a run; only mcls predict" in capsys.readouterr().err
        )


def test_a_wrong_id_column_is_a_request_and_writes_nothing(
    mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    lines = ["x,id,kind", *(f"{index % 2},{index},{'ab'[index % 2]}" for index in range(40)), ""]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    keys = ("dataset=csv", f"dataset.path={tmp_path / 't.csv'}", "dataset.target=kind", "dataset.drop_columns=[id]")
    run = train(tmp_path / "run", data_root, *keys, "trainer.epochs=1", "trainer.batch_size=8")
    capsys.readouterr()
    assert mcls("predict", str(run), "t.csv", "--id", "idd") == 2
    there = "Did you mean 'id'? It has 'x', 'id', 'kind'."
    assert capsys.readouterr() == ("", f"mcls: --id: t.csv has no column 'idd'. {there}\n")
    (tmp_path / "wrong.csv").write_text("x\nmuch\n")
    assert mcls("predict", str(run), "wrong.csv") == 3
    assert capsys.readouterr().out == ""


def test_csv_holds_names_as_they_are() -> None:
    from mcls.commands.predict import as_csv

    names = ["+1", "=2", "@x", "-1"]
    found = [(names, np.eye(4, dtype=np.float32))]
    rows = table("".join(as_csv(found, names, 1, "file")))
    assert [(row["file"], row["class"]) for row in rows] == [(name, name) for name in names]


def test_nothing_to_classify_is_an_error(mcls: Main, mnist: Path, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "a.txt").touch()
    for run, kind in ((mnist, "pictures"), (blobs, "CSV files")):
        capsys.readouterr()
        assert mcls("predict", str(run), str(place), "--output", str(tmp_path / "found.csv")) == 3
        message = f"{place}: nothing to classify, this run takes {kind}. Name some, or a folder that holds some."
        assert capsys.readouterr().err.splitlines()[-1] == f"mcls: {message}"
    (place / "a.csv").write_text("1,2,3\n")
    (place / "b.csv").touch()
    assert mcls("predict", str(blobs), str(place), str(place / "b.csv"), "--output", str(tmp_path / "found.csv")) == 3
    assert capsys.readouterr().err.splitlines() == [
        f"skipped {place}/a.csv, row 1: 3 cells, the model takes 2 numbers.",
        f"mcls: {place} and 1 more: nothing was classified, all that was found is wrong.",
    ]
    assert not (tmp_path / "found.csv").exists()


def test_standard_input_may_be_closed(
    mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    capsys.readouterr()
    assert mcls("predict", str(blobs), "-") == 2
    message = "mcls: -: standard input is closed. Pipe a list of files, one per line.\n"
    assert capsys.readouterr().err == message
    (tmp_path / "a.csv").write_text("1,2\n")
    assert mcls("predict", str(blobs), str(tmp_path / "a.csv")) == 0
    capsys.readouterr()
    assert mcls("predict", str(blobs), str(tmp_path / "a.csv"), "--id", "id") == 2
    message = "mcls: --id: this run takes unnamed numeric columns. Omit it.\n"
    assert capsys.readouterr().err == message


def test_memory_stays_flat() -> None:
    """50,000 samples through reading, batching and writing hold no more than 2,000 do."""
    from mcls.commands.predict import as_csv

    classes = tuple("abcdefghij")

    def probabilities(batch: np.ndarray) -> np.ndarray:
        return np.full((len(batch), 10), 0.1, dtype=np.float32)

    def peak(count: int) -> int:
        def listed() -> Iterator[bytes]:
            yield from (f"folder/{index}.png\n".encode() for index in range(count))

        names = inputs.paths(["-"], {".png"}, listed())  # type: ignore[arg-type]
        found = ((name, np.zeros((1, 28, 28), dtype=np.uint8)) for name in names)
        model = predict.Classifier(classes, (1, 28, 28), True, None, probabilities)
        tracemalloc.start()
        written = sum(text.count("\n") for text in as_csv(predict.classify(model, found, 64), classes, 1, "file"))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert written == count + 1
        return most

    assert peak(50_000) < 1.2 * peak(2_000)


def test_a_run_on_a_table(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    """Rows that the run was tested on get the answers of evaluate, from the run and from its ONNX file."""
    random = np.random.default_rng(0)
    rows = [(random.normal(50, 9), "red" if index % 2 else "blue", f"kind {index % 2}") for index in range(120)]
    lines = [f"{size:.3f}:{colour}:{kind}\n" for size, colour, kind in rows]
    (tmp_path / "all.csv").write_text("size:colour:kind\n" + "".join(lines))
    run = train(
        tmp_path / "run", data_root, "dataset=csv", f"dataset.path={tmp_path / 'all.csv'}", "dataset.target=kind",
        "trainer.epochs=5", "trainer.batch_size=16", f"dataset.test_path={tmp_path / 'all.csv'}",
        "dataset.delimiter=':'",
    )  # fmt: skip
    loaded = load_run(RunFolder(run), device="cpu")
    split = evaluate.rebuild_dataset(loaded, download=False).open_test()
    expected = evaluate.logits_of(loaded, split).softmax(dim=1)
    assert mcls("export", str(run), "--format", "onnx") == 0
    new = tmp_path / "new.csv"
    new.write_text("colour;note;size\n" + "".join(f"{colour};x;{size:.3f}\n" for size, colour, _ in rows))
    for model in (run, run / "model.onnx"):
        capsys.readouterr()
        assert mcls("predict", str(model), str(tmp_path / "all.csv")) == 0
        assert len(table(capsys.readouterr().out)) == 120
        assert mcls("predict", str(model), str(new)) == 0
        found = table(capsys.readouterr().out)
        assert [row["class"] for row in found] == [loaded.classes[index] for index in expected.argmax(dim=1)]
        np.testing.assert_allclose([float(row["probability"]) for row in found], expected.max(dim=1).values, atol=2e-6)
        new.write_text(new.read_text() + "green;x;1\n")
        assert mcls("predict", str(model), str(new), "--strict") == 3
        message = f"mcls: {new}, row 122, column 'colour': 'green' is a category that does not occur in train"
        assert capsys.readouterr().err.startswith(message)
        assert mcls("predict", str(model), str(new)) == 3
        said = capsys.readouterr()
        assert len(table(said.out)) == 120
        assert said.err.splitlines()[-1] == "mcls: wrong rows or files: 1 of 121, left out."
        assert mcls("predict", str(model), str(new), "--handle-unknown", "ignore") == 0
        said = capsys.readouterr()
        assert len(table(said.out)) == 121
        assert said.err.startswith(f"{new}: 1 cell with a category that train does not have, which counts as none\n")
        new.write_text(new.read_text().removesuffix("green;x;1\n"))


def test_a_run_on_a_folder_of_pictures(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    """Pictures are read for prediction as they were for training."""
    random = np.random.default_rng(0)
    for index in range(60):
        place = tmp_path / "tree" / ("dark" if index % 2 else "light")
        place.mkdir(parents=True, exist_ok=True)
        shape = (int(random.integers(10, 30)), int(random.integers(10, 30)), 3)
        level = 40 if index % 2 else 160
        Image.fromarray(random.integers(0, 90, shape, dtype=np.uint8) + np.uint8(level)).save(place / f"{index}.jpg")
    arguments = [
        "dataset=image_folder",
        f"dataset.root={tmp_path / 'tree'}",
        "trainer.epochs=2",
        "trainer.batch_size=8",
    ]
    run = train(tmp_path / "run", data_root, *arguments)
    capsys.readouterr()
    assert mcls("evaluate", str(run), "--mistakes") == 0
    loaded = load_run(RunFolder(run), device="cpu")
    split = evaluate.rebuild_dataset(loaded, download=False).open_test()
    expected = evaluate.logits_of(loaded, split).softmax(dim=1).numpy()
    capsys.readouterr()
    assert mcls("predict", str(run), str(tmp_path / "tree"), "--top", "2") == 0
    found = {Path(row["file"]).name: row for row in table(capsys.readouterr().out)}
    assert len(found) == 60 and len(split) > 5
    for name, truth in zip(split.names, expected, strict=True):
        row = found[Path(name).name]
        best = [row["class"], row["class_2"]]
        assert best == [loaded.classes[index] for index in (-truth).argsort()]
        assert float(row["probability"]) == pytest.approx(truth.max(), abs=2e-6)


def test_the_precision_of_the_training(tmp_path: Path, data_root: Path) -> None:
    lines = ("dataset=mnist", "trainer.epochs=2", "trainer.batch_size=32", "optimizer.lr=0.01", "precision=bf16")
    folder = RunFolder(train(tmp_path / "run", data_root, *lines))
    loaded = load_run(folder, device="cpu")
    split = evaluate.rebuild_dataset(loaded, download=False).open_test()
    expected = evaluate.logits_of(loaded, split).softmax(dim=1).numpy()
    found = predict.from_run(folder, "cpu", []).probabilities(torch.as_tensor(split.inputs).numpy())
    with torch.inference_mode():
        exact = loaded.model(loaded.normalise(torch.as_tensor(split.inputs))).softmax(dim=1).numpy()
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(found - exact).max() > 1e-4
