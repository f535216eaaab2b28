"""Baselines are scikit-learn's own, and their run folders are read as those of networks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mcls.runs.folder import RunFolder
from mcls.training.baseline import ABSENT, METHODS

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def samples(classes: list[int], count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, 5) with many equal values, and labels that they tell apart, not always."""
    random = np.random.default_rng(0)
    targets = np.array(classes)[np.arange(count) % len(classes)]
    inputs = random.normal(size=(count, 5)) + targets[:, None] * [1, 0.5, 0, -0.3, 0.1]
    return np.round(inputs, 2).astype(np.float32), targets


def probabilities(method: str, inputs: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    _, model = METHODS[method](inputs, targets, np.bincount(targets, minlength=classes), 3)
    with torch.inference_mode():
        found: np.ndarray = model(torch.from_numpy(inputs)).softmax(1).numpy()
    return found


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3], [0, 2, 3], [1, 3]])
def test_they_answer_as_scikit_learn_does(labels: list[int]) -> None:
    """Also where train lacks some of the four classes."""
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid

    inputs, targets = samples(labels)
    theirs = {
        "logistic-regression": LogisticRegression().fit(inputs, targets),
        "gradient-boosting": HistGradientBoostingClassifier(random_state=3).fit(inputs, targets),
    }
    classes = max(labels) + 1
    for method, fitted in theirs.items():
        found = probabilities(method, inputs, targets, classes)
        np.testing.assert_allclose(found[:, labels], fitted.predict_proba(inputs), atol=2e-5)
        assert np.delete(found, labels, axis=1).max(initial=0) < np.exp(-ABSENT / 2)
    nearest = NearestCentroid().fit(inputs, targets).predict(inputs)
    assert (probabilities("nearest-centroid", inputs, targets, classes).argmax(1) == nearest).all()
    most = np.concatenate([targets, [labels[-1]]])
    inputs = np.concatenate([inputs, inputs[:1]])
    frequent = DummyClassifier(strategy="most_frequent").fit(inputs, most).predict(inputs)
    assert (probabilities("majority", inputs, most, classes).argmax(1) == frequent).all()


def test_they_are_runs(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    assert mcls("baseline", "outputs=o", "trainer.figures=false", "seed=5") == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"fits {name}" for name in METHODS]
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == list(METHODS)
    assert out.endswith("beside your own runs: mcls runs o\n")
    folders = {name: next((tmp_path / "o" / f"blobs-{name}").iterdir()) for name in METHODS}
    accuracy = {name: (RunFolder(folder).finished() or {})["test"]["accuracy"] for name, folder in folders.items()}
    assert accuracy["majority"] < 0.4 < 0.8 < min(accuracy[name] for name in list(METHODS)[1:])
    assert mcls("runs", "o", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["hyperparameters"]["model"] for row in rows} == set(METHODS) and {row["n"] for row in rows} == {1}
    for name, folder in folders.items():
        assert (RunFolder(folder).read_result() or {})["test_openings"] == 1
        assert mcls("evaluate", str(folder)) == 0
        report = json.loads((folder / "evaluation.json").read_text())["test"]
        assert report["accuracy"] == accuracy[name]
        assert mcls("report", str(folder)) == 0
        assert mcls("export", str(folder), "--format", "safetensors") == 0
    capsys.readouterr()
    assert mcls("compare", str(folders["majority"]), str(folders["gradient-boosting"])) == 0
    assert "B is better on this data" in capsys.readouterr().out
    assert mcls("resume", str(folders["majority"])) == 2
    told = "the baseline majority, fitted at once; there is nothing to resume."
    assert capsys.readouterr().err == f"mcls: {folders['majority']}: {told}\n"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_trees_are_exported(mcls: Main, tmp_path: Path, capsys: Capture, form: str) -> None:
    assert mcls("baseline", "outputs=o", "--only", "gradient-boosting") == 0
    (folder,) = (tmp_path / "o" / "blobs-gradient-boosting").iterdir()
    assert (folder / "figures" / "regions.png").is_file()
    assert mcls("export", str(folder), "--format", form) == 0


def test_the_same_command_gives_the_same_baseline(mcls: Main, tmp_path: Path) -> None:
    for _ in range(2):
        assert mcls("baseline", "outputs=o", "trainer.figures=false", "--only", "gradient-boosting") == 0
    first, second = (
        RunFolder(folder).finished() or {} for folder in (tmp_path / "o" / "blobs-gradient-boosting").iterdir()
    )
    assert first["weights_sha256"] == second["weights_sha256"] and first["test"] == second["test"]


def test_images_are_read_by_their_pixels(mcls: Main, tmp_path: Path, data_root: Path) -> None:
    keys = ("dataset=mnist", f"dataset.root={data_root}", "outputs=o", "trainer.figures=false")
    assert mcls("baseline", *keys, "--only", "nearest-centroid") == 0
    (folder,) = (tmp_path / "o" / "mnist-nearest-centroid").iterdir()
    assert (RunFolder(folder).finished() or {})["val"]["accuracy"] > 0.3


def test_a_file_names_the_folder_and_a_method_named_twice_is_fitted_once(mcls: Main, tmp_path: Path) -> None:
    rows = "".join(f"{number},{number % 2}\n" for number in range(60))
    for name in ("wine", "iris"):
        (tmp_path / f"{name}.csv").write_text("size,kind\n" + rows)
        keys = (f"dataset.path={name}.csv", "dataset=csv", "dataset.target=kind", "trainer.figures=false", "outputs=o")
        assert mcls("baseline", *keys, *["--only", "majority"] * 2) == 0
        assert mcls("tune", "lr", *keys, "--steps", "20") == 0
    names = ["iris-majority", "iris-mlp", "wine-majority", "wine-mlp"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    assert all(len(list((tmp_path / "o" / name).iterdir())) == 1 for name in names)


def test_wrong_requests(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    assert mcls("baseline", "--only", "knn") == 2
    assert capsys.readouterr().err.startswith("mcls: --only: must be majority, nearest-centroid, ")
    assert mcls("baseline", "seed=0,1") == 2
    assert capsys.readouterr().err.startswith("mcls: seed=0,1: several values make a sweep.")
    assert not list(tmp_path.iterdir())
