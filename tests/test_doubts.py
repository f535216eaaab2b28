"""`mcls data doubts`: the labels that the runs of a k-fold sweep doubt, found against labels that were made wrong."""

import csv
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs

from makers import write_idx
from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.inference.evaluate import logits_of, rebuild_dataset
from mcls.inference.labels import cross_validated, in_doubt
from mcls.inference.load import load_run
from mcls.runs.folder import RunFolder

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
QUICK = ("trainer.figures=false", "threads=1", "sweep.test=none")


def planted(path: Path, rows: int, share: float) -> set[str]:
    """A table of four clouds, a `share` of whose labels is another one. Returns the names of those rows."""
    random = np.random.default_rng(0)
    points, labels = make_blobs(rows, 2, centers=4, cluster_std=0.5, random_state=3)
    chosen = random.choice(rows, round(share * rows), replace=False)
    labels[chosen] = (labels[chosen] + random.integers(1, 4, len(chosen))) % 4
    lines = [f"{x:.4f},{y:.4f},c{label}" for (x, y), label in zip(points, labels, strict=True)]
    path.write_text("\n".join(["x,y,class", *lines]) + "\n")
    return {f"row {row + 2}" for row in chosen}  # after the header


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_wrong_labels_of_a_table_are_found(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    wrong = planted(tmp_path / "t.csv", 300, 0.05)
    keys = ("dataset=csv", "dataset.path=t.csv", "dataset.target=class", "trainer.epochs=15", "optimizer.lr=0.1")
    assert mcls("train", "-m", *keys, "dataset.folds=3", "dataset.fold=0,1,2", "sweep.name=s", *QUICK) == 0
    capsys.readouterr()
    assert mcls("data", "doubts", "outputs/sweeps/s") == 0
    out, err = capsys.readouterr()
    rows = read(tmp_path / "outputs" / "sweeps" / "s" / "label-doubts.csv")
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    found = cross_validated([RunFolder(path.parent) for path in sorted(sweep.glob("*/run.json"))], [], "cpu")
    judged = wrong & set(found.names)
    named = {row["sample"] for row in rows}
    assert len(found.names) == len(set(found.names)) == 240 and len(judged) >= 10
    assert len(named & judged) >= 0.9 * len(judged) and len(named & judged) >= 0.6 * len(named)
    text = (tmp_path / "t.csv").read_text().splitlines()
    for row in rows:  # the label is that of the file
        assert (
            text[int(row["sample"].removeprefix("row ")) - 1].endswith(f",{row['label']}")
            and row["label"] != row["suggested"]
        )
    sure = [float(row["its probability"]) for row in rows]
    assert sure == sorted(sure) and err == ""
    lines = out.splitlines()
    assert lines[0] == f"labels in doubt: {len(rows)} of 240; all are in outputs/sweeps/s/label-doubts.csv"
    assert len(lines) == 2 + min(10, len(rows))


def test_each_sample_is_judged_by_the_runs_that_have_not_seen_it(mcls: Main, tmp_path: Path) -> None:
    """Without names they are numbers of train; several seeds of a fold are averaged."""
    keys = ("dataset.n_samples=200", "dataset.folds=2", "dataset.fold=0,1", "seed=0,1", "trainer.epochs=2")
    assert mcls("train", "-m", *keys, "sweep.name=s", *QUICK) == 0
    folders = [RunFolder(path.parent) for path in sorted((tmp_path / "outputs" / "sweeps" / "s").glob("*/run.json"))]
    found = cross_validated(folders, [], "cpu")
    with checker() as check:
        config = check.check(["dataset.n_samples=200", "dataset.val_fraction=0"], False).config
    whole = build("dataset", config["dataset"]).train
    order = torch.tensor([int(name) for name in found.names])
    assert order.sort().values.tolist() == list(range(len(whole)))
    assert torch.equal(whole.targets[order], found.targets)
    assert torch.equal(whole.inputs[order], torch.cat([torch.as_tensor(fold.inputs) for fold in found.folds]))
    assert torch.equal(found.pictures([3, len(order) - 1]), whole.inputs[order[[3, -1]]])
    runs = [load_run(folder) for folder in folders]
    second = [run for run in runs if run.config["dataset"]["fold"] == 1]
    split = rebuild_dataset(second[0], download=False).val
    assert split is not None and len(second) == 2
    mean = sum(logits_of(run, split).double().softmax(dim=1) for run in second) / 2
    assert torch.allclose(found.probabilities[-len(split) :], torch.as_tensor(mean), atol=1e-12)


@pytest.mark.slow
def test_what_is_no_cross_validation_is_one_line(
    mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("dataset.n_samples=100", "trainer.epochs=1", *QUICK)
    assert mcls("train", "-m", *keys, "seed=0,1", "sweep.name=seeds") == 0
    assert mcls("train", "-m", *keys, "dataset.folds=3", "dataset.fold=0,1", "sweep.name=two") == 0
    root = tmp_path / "outputs" / "sweeps"
    shutil.copytree(root / "two", root / "stopped")
    result = next((root / "stopped").glob("0*/result.json"))
    result.write_text(json.dumps({"status": "stopped"}))
    (root / "stopped" / "0" / "lock").parent.mkdir(exist_ok=True)
    capsys.readouterr()
    expected = {
        "outputs": (5, "outputs: not the folder of a sweep, it has no sweep.json."),
        "outputs/sweeps/seeds": (
            2,
            "outputs/sweeps/seeds: its runs are no folds, so none judges all samples. Train them: mcls train -m ... "
            "dataset.folds=5 dataset.fold=0,1,2,3,4",
        ),
        "outputs/sweeps/two": (2, "outputs/sweeps/two: has no run of fold 2 of 3. Train it first."),
        "outputs/sweeps/stopped": (
            5,
            "outputs/sweeps/stopped: no setting has all its jobs finished. Continue with: mcls resume "
            "outputs/sweeps/stopped",
        ),
    }
    for folder, (status, message) in expected.items():
        assert mcls("data", "doubts", folder) == status
        assert capsys.readouterr() == ("", f"mcls: {message}\n")
    wrong = (["x=1"], ["seed=1"], ["--augment"])
    assert [mcls("data", "doubts", "outputs/sweeps/two", *words) for words in wrong] == [2, 2, 2]
    assert mcls("data", "doubts") == 2
    capsys.readouterr()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert mcls("data", "doubts", "outputs/sweeps/two") == 4
    assert capsys.readouterr().err == "mcls: cleanlab is not installed. Install it: pip install 'mcls[labels]'\n"


@pytest.mark.slow
def test_data_that_have_changed_since_are_refused(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    planted(tmp_path / "t.csv", 100, 0.0)
    keys = ("dataset=csv", "dataset.path=t.csv", "dataset.target=class", "trainer.epochs=1", *QUICK)
    assert mcls("train", "-m", *keys, "dataset.folds=2", "dataset.fold=0,1", "sweep.name=s") == 0
    lines = (tmp_path / "t.csv").read_text().splitlines()
    values = [line.split(",") for line in lines[1:]]
    values[0][2], values[1][2] = values[1][2], values[0][2]
    (tmp_path / "t.csv").write_text("\n".join([lines[0], *map(",".join, values)]) + "\n")
    capsys.readouterr()
    assert mcls("data", "doubts", "outputs/sweeps/s") == 3
    assert capsys.readouterr().err.startswith("mcls: dataset: ")


@pytest.mark.slow
def test_wrong_labels_of_pictures_are_found(mcls: Main, tmp_path: Path, data_root: Path, real_root: Path) -> None:
    from torchvision.datasets import MNIST

    real, raw = MNIST(real_root, train=True), tmp_path / "mn" / "MNIST" / "raw"
    random = np.random.default_rng(0)
    labels = real.targets.numpy()[:3000].astype(np.uint8)
    chosen = random.choice(3000, 150, replace=False)
    labels[chosen] = (labels[chosen] + random.integers(1, 10, 150)) % 10
    for name, images, targets in (("train", real.data[:3000], labels), ("t10k", real.data[:100], labels[:100])):
        write_idx(raw / f"{name}-images-idx3-ubyte", images.numpy())
        write_idx(raw / f"{name}-labels-idx1-ubyte", targets)
    keys = ("dataset=mnist", "dataset.root=mn", "trainer.epochs=5", *QUICK)
    assert mcls("train", "-m", *keys, "dataset.folds=5", "dataset.fold=0,1,2,3,4", "sweep.name=s") == 0
    assert mcls("data", "doubts", "outputs/sweeps/s", "--output", "found") == 0
    named = [int(row["sample"]) for row in read(tmp_path / "found" / "label-doubts.csv")]
    right = len(set(named) & set(chosen.tolist()))
    assert right >= 0.8 * len(chosen) and right >= 0.4 * len(named)
    assert (tmp_path / "found" / "label-doubts.png").read_bytes().startswith(b"\x89PNG")


def test_no_doubt_and_absent_classes() -> None:
    """The list is empty where every label is the likeliest class by far; a class without samples does no harm."""
    targets = torch.arange(60) % 3
    probabilities = torch.full((60, 4), 0.02, dtype=torch.float64)
    probabilities[torch.arange(60), targets] = 0.94
    found = type("Found", (), {"targets": targets, "probabilities": probabilities})
    assert in_doubt(found) == []  # type: ignore[arg-type]
    targets[5] = 0
    assert in_doubt(found) == [5]  # type: ignore[arg-type]
