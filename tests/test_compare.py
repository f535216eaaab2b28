"""`mcls compare`: the test against scipy's, what flipped, what is refused, and how often the test set was opened."""

import csv
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from browser import busy_parts
from mcls.config.instantiate import build
from mcls.inference.compare import unequal
from mcls.inference.load import load_run
from mcls.runs.folder import RunFolder
from mcls.significance import mcnemar
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
MNIST = ["dataset=mnist", "trainer.epochs=1", "trainer.batch_size=32"]


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    train(root / "mnist" / "a", data_root, *MNIST, "optimizer.lr=0.01")
    train(root / "mnist" / "b", data_root, *MNIST, "optimizer.lr=0.02", "seed=1")
    train(root / "blobs" / "a", data_root, "trainer.epochs=2")
    train(root / "blobs" / "b", data_root, "trainer.epochs=2", "model.hidden_units=[4]")
    train(root / "blobs" / "cut", data_root, "trainer.epochs=1", "dataset.val_fraction=0.2")
    train(root / "blobs" / "whole", data_root, "trainer.epochs=1", "dataset.val_fraction=0")
    return root


@pytest.fixture
def runs(trained_runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_runs, tmp_path / "runs"))


def right(folder: Path) -> list[bool]:
    """Whether the run in `folder` is right, for each test sample, by the shortest way there is."""
    loaded = load_run(RunFolder(folder), device="cpu")
    test = build("dataset", loaded.config["dataset"]).open_test()
    with torch.inference_mode():
        found: list[bool] = (loaded.model(loaded.normalise(test.inputs)).argmax(1) == test.targets).tolist()
    return found


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def alter(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 5), (3, 3), (8, 24), (317, 348), (0, 3000), (2000, 1000)])
def test_mcnemar_is_the_binomial_test(counts: tuple[int, int]) -> None:
    expected = binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(*counts) == mcnemar(*reversed(counts))


def test_images(mcls: Main, runs: Path, capsys: Capture) -> None:
    a, b = runs / "mnist" / "a", runs / "mnist" / "b"
    counted = ("result.json", "test_openings.jsonl")
    before = {path.name: path.read_bytes() for path in a.iterdir() if path.is_file() and path.name not in counted}
    assert mcls("compare", str(a), str(b), "--device", "cpu") == 0
    out = capsys.readouterr().out
    mine, theirs = right(a), right(b)
    flips = [index for index, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]]
    alone = sum(mine[index] for index in flips)
    assert flips, "two such short trainings agree everywhere: choose others"
    target = a / "compare" / "mnist_b"
    with (target / "test_flipped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample"]) for row in rows] == flips
    assert [row["right"] == "A" for row in rows] == [mine[index] for index in flips]
    for row in rows:
        assert row[row["right"]] == row["label"]
        assert row["A"] != row["B"]
    assert busy_parts(np.asarray(Image.open(target / "test_flipped.png").convert("RGB")), 20) > 0.2
    assert f"A alone is right on {alone} samples, B alone on {len(flips) - alone}, of 100." in out
    assert f"p = {mcnemar(alone, len(flips) - alone):.2g}," in out
    lines = [line.split() for line in out.splitlines()]
    assert ["seed", "0", "1"] in lines
    assert ["optimizer.lr", "0.01", "0.02"] in lines
    gain = (sum(theirs) - sum(mine)) / len(mine) * 100
    (accuracy,) = (line for line in out.splitlines() if line.startswith("test/accuracy"))
    assert accuracy.endswith(f"{gain:+.2f} points")
    low, high = result(a)["test"]["interval"]
    assert f"{result(a)['test']['accuracy'] * 100:.2f} % [{low * 100:.2f}, {high * 100:.2f}] of 100" in accuracy
    assert {path.name: path.read_bytes() for path in a.iterdir() if path.name in before} == before


def test_each_opening_of_the_test_set_is_counted(mcls: Main, runs: Path, capsys: Capture) -> None:
    a, b = runs / "blobs" / "a", runs / "blobs" / "b"
    for times in (2, 3):
        assert mcls("compare", str(a), str(b), "--device", "cpu") == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert said == f"Evaluations of the test set so far: {times} for A, {times} for B."
        assert [result(a)["test_openings"], result(b)["test_openings"]] == [times, times]
    assert mcls("compare", str(a), str(b), "--split", "val") == 0
    assert "This opened" not in capsys.readouterr().out
    assert result(a)["test_openings"] == 3


def test_output_folder_and_data_without_pictures(mcls: Main, runs: Path, tmp_path: Path, capsys: Capture) -> None:
    a, b = runs / "blobs" / "a", runs / "blobs" / "b"
    assert mcls("compare", str(a), str(b), "--output", "new/place") == 0
    assert "which: new/place/test_flipped.csv\n" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "new" / "place").iterdir()) == ["test.json", "test_flipped.csv"]
    assert not (a / "compare").exists()


def test_a_copy_flips_nothing(mcls: Main, runs: Path, capsys: Capture) -> None:
    a = runs / "mnist" / "a"
    copy = shutil.copytree(a, runs / "mnist" / "copy")
    assert mcls("compare", str(a), str(copy)) == 0
    out = capsys.readouterr().out
    assert "the same configuration\n" in out
    assert "A alone is right on 0 samples, B alone on 0, of 100.\n" in out
    assert "p = 1, not significant at the 5 % level: no evidence that either is better.\n" in out
    left = sorted(path.name for path in (a / "compare" / "mnist_copy").iterdir())
    assert left == ["test.json", "test_flipped.csv"]


def test_the_page_of_two_runs_says_what_compare_says(mcls: Main, runs: Path, capsys: Capture) -> None:
    """It opens no test set: McNemar's test is that of val, and that of test once `mcls compare` has made it."""
    a, b = runs / "blobs" / "a", runs / "blobs" / "b"
    before = result(a), result(b)
    assert mcls("report", str(a), str(b)) == 0
    path = a / "report-b.html"
    page = html.unescape(path.read_text())
    assert (result(a), result(b)) == before and "On test" not in page
    assert "<td>model.hidden_units</td><td>[128, 64]</td><td>[4]</td>" in page and "model.dropout" not in page
    assert page.count("<polyline") == 8 and page.count("<caption") == 2
    counts = [str(count) for each in before for row in each["test"]["confusion"] for count in row]
    assert re.findall(r'<td class="h\d">(\d+)</td>', page) == counts
    for split, line in (("val", "On val, on which both were selected: "), ("test", "On test: ")):
        capsys.readouterr()
        assert mcls("compare", str(a), str(b), "--split", split, "--device", "cpu") == 0
        told = capsys.readouterr().out
        assert mcls("report", str(a), str(b)) == 0
        page = html.unescape(path.read_text())
        said = " ".join(row for row in told.splitlines() if row.startswith(("A alone", "McNemar")))
        assert f"<p>{line}{said}</p>" in page
        row = next(row for row in told.splitlines() if row.startswith(f"{split}/loss"))
        assert "".join(f"<td>{cell}</td>" for cell in row.split()) in page
    assert mcls("report", str(a), str(a)) == mcls("report", str(runs), str(a)) - 3 == 2
    capsys.readouterr()
    assert mcls("report", str(a), str(runs / "mnist" / "a")) == mcls("compare", str(a), str(runs / "mnist" / "a")) == 2
    assert capsys.readouterr().err.count("Runs on different data can't be compared.") == 2


def test_the_same_data_in_another_place(mcls: Main, runs: Path, tmp_path: Path, data_root: Path) -> None:
    a, b = runs / "mnist" / "a", runs / "mnist" / "b"
    shutil.copytree(data_root / "MNIST", tmp_path / "moved" / "MNIST")
    alter(b / "config.yaml", f"root: {data_root}", f"root: {tmp_path / 'moved'}")
    assert mcls("compare", str(a), str(b)) == 0


def test_other_samples_under_the_same_name(
    mcls: Main, runs: Path, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    a, b = runs / "mnist" / "a", runs / "mnist" / "b"
    shutil.copytree(data_root / "FashionMNIST", tmp_path / "other" / "MNIST")
    alter(b / "config.yaml", f"root: {data_root}", f"root: {tmp_path / 'other'}")
    assert mcls("compare", str(a), str(b)) == 2
    expected = f"mcls: dataset: {a} and {b} have different test samples, so the runs can't be compared.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("first", "second", "status", "message"),
    [
        (
            *("mnist/a", "blobs/a", 2),
            "dataset._target_: 'mcls.datasets.mnist' and 'mcls.datasets.blobs'. "
            "Runs on different data can't be compared.",
        ),
        ("blobs/a", "blobs/../blobs/a", 2, "RUNS/blobs/a and RUNS/blobs/../blobs/a: the same run. Name two."),
        (
            "blobs/a",
            "blobs",
            5,
            "RUNS/blobs: not a run folder, it has no run.json. List the runs in it: mcls runs RUNS/blobs",
        ),
        ("nowhere", "blobs", 5, "RUNS/nowhere: not a run folder, it has no run.json."),
    ],
)
def test_refusals(mcls: Main, runs: Path, capsys: Capture, first: str, second: str, status: int, message: str) -> None:
    assert mcls("compare", f"{runs}/{first}", f"{runs}/{second}") == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"mcls: {message.replace('RUNS', str(runs))}\n")
    assert result(runs / "blobs" / "a")["test_openings"] == 1


@pytest.mark.parametrize("name", ["cut", "whole"])
def test_another_cut_of_train_leaves_the_test_set(mcls: Main, runs: Path, capsys: Capture, name: str) -> None:
    a, b = runs / "blobs" / "a", runs / "blobs" / name
    assert mcls("compare", str(a), str(b), "--split", "val") == 2
    other = {"cut": 0.2, "whole": 0.0}[name]
    message = f"mcls: dataset.val_fraction: 0.1 and {other}. Runs on different data can't be compared.\n"
    assert capsys.readouterr().err == message
    assert mcls("compare", str(a), str(b), "--device", "cpu") == 0
    out = capsys.readouterr().out
    mine, theirs = right(a), right(b)
    alone = [
        sum(first and not second for first, second in zip(*pair, strict=True))
        for pair in ((mine, theirs), (theirs, mine))
    ]
    assert f"A alone is right on {alone[0]} samples, B alone on {alone[1]}, of 200." in out
    assert ["dataset.val_fraction", "0.1", str(other)] in [line.split() for line in out.splitlines()]


def test_another_cut_of_a_table_is_refused_before_the_test_set_is_opened(
    mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    rows = "".join(f"{number / 7},{'ab'[number % 2]}\n" for number in range(300))
    (tmp_path / "table.csv").write_text(f"x,class\n{rows}")
    lines = ("dataset=csv", f"dataset.path={tmp_path}/table.csv", "dataset.target=class", "trainer.epochs=1")
    a = train(tmp_path / "a", data_root, *lines)
    b = train(tmp_path / "b", data_root, *lines, "dataset.val_fraction=0.2")
    capsys.readouterr()
    assert mcls("compare", str(a), str(b)) == 2
    assert "each run encodes the table by its own train split" in capsys.readouterr().err
    assert [result(a)["test_openings"], result(b)["test_openings"]] == [1, 1]


def test_no_val_to_compare_on(mcls: Main, runs: Path, capsys: Capture) -> None:
    whole = runs / "blobs" / "whole"
    copy = shutil.copytree(whole, runs / "blobs" / "copy")
    assert mcls("compare", str(whole), str(copy), "--split", "val") == 2
    assert "--split val: the run has no validation split" in capsys.readouterr().err


def test_unfinished_and_damaged_runs(mcls: Main, runs: Path, capsys: Capture) -> None:
    a, b = runs / "blobs" / "a", runs / "blobs" / "b"
    whole = (b / "result.json").read_text()
    (b / "result.json").write_text('{"status": "stopped"}')
    assert mcls("compare", str(a), str(b)) == 5
    assert capsys.readouterr().err == f"mcls: {b}: not finished, stopped. Continue with: mcls resume {b}\n"
    (b / "result.json").write_text(whole)
    (b / "best.pt").unlink()
    assert mcls("compare", str(a), str(b)) == 5
    assert f"{b / 'best.pt'}: no such checkpoint yet" in capsys.readouterr().err
    assert result(a)["test_openings"] == 1


def test_nothing_is_written_through_a_link(mcls: Main, runs: Path, tmp_path: Path, capsys: Capture) -> None:
    a, b = runs / "blobs" / "a", runs / "blobs" / "b"
    (tmp_path / "elsewhere").mkdir()
    (a / "compare").symlink_to(tmp_path / "elsewhere")
    assert mcls("compare", str(a), str(b)) == 5
    expected = f"mcls: {a}/compare/blobs_b: refused, it is outside the run's folder. Name another with --output.\n"
    assert capsys.readouterr().err == expected
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert mcls("compare", str(a), str(b), "--output", str(tmp_path / "elsewhere")) == 0


def test_other_classes_are_told_in_few_words() -> None:
    many = [f"c{number}" for number in range(1000)]
    told = unequal(["cat", *many], many)
    assert told == "A has 1001, B 1000; A alone has 'cat'"
    assert unequal(many, ["dog"]).endswith("'c9' and 990 more, B alone has 'dog'")
    assert unequal(["a", "b"], ["b", "a"]) == "A has 2, B 2; their order differs"
