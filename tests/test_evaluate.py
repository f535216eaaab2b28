"""`mcls evaluate` against scikit-learn, its counting of openings, and runs that it refuses."""

import base64
import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

from mcls.commands.evaluate import ordinal, print_class_metrics
from mcls.data.types import Split
from mcls.inference import evaluate
from mcls.inference.evaluate import EACH, Evaluation, accumulate, by_class, doubted
from mcls.inference.explain import covered, in_red, occlusion
from mcls.inference.load import LoadedRun, load_run
from mcls.inference.predict import from_run
from mcls.inference.temperature import fit_temperature
from mcls.metrics import brier
from mcls.ranks import top_hits
from mcls.report import figures
from mcls.report.run_figures import fingerprint
from mcls.runs.folder import RunFolder
from mcls.training.precision import autocast
from trained import train

Main = Callable[..., int]
KINDS = ("confusion", "reliability", "roc", "precision-recall")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def blobs_run(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    return train(tmp_path_factory.mktemp("blobs") / "run", data_root, "trainer.epochs=3")


@pytest.fixture(scope="module")
def mnist_run(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    arguments = ["dataset=mnist", "trainer.epochs=2", "trainer.batch_size=32", "optimizer.lr=0.01"]
    return train(tmp_path_factory.mktemp("mnist") / "run", data_root, *arguments)


@pytest.fixture
def blobs(blobs_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(blobs_run, tmp_path / "blobs"))


@pytest.fixture
def mnist(mnist_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mnist_run, tmp_path / "mnist"))


def written(folder: Path, split: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())[split]
    return found


def close(found: float, expected: float) -> None:
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_equal_to_scikit_learn(mcls: Main, mnist: Path, split: str) -> None:
    assert mcls("evaluate", str(mnist), "--split", split) == 0
    report = written(mnist, split)
    loaded = load_run(RunFolder(mnist), device="cpu")
    dataset = evaluate.rebuild_dataset(loaded, download=False)
    part = {"test": dataset.open_test(), "val": dataset.val, "train": dataset.train}[split]
    assert part is not None
    with torch.inference_mode():
        scores = loaded.model(loaded.normalise(torch.as_tensor(part.inputs))).double().softmax(dim=1).numpy()
    truth, guess, labels = part.targets.numpy(), scores.argmax(axis=1), list(range(10))
    close(report["accuracy"], metrics.accuracy_score(truth, guess))
    close(report["top_5"], metrics.top_k_accuracy_score(truth, scores, k=5, labels=labels))
    close(report["loss"], metrics.log_loss(truth, scores, labels=labels))
    close(report["mcc"], metrics.matthews_corrcoef(truth, guess))
    close(report["kappa"], metrics.cohen_kappa_score(truth, guess))
    close(report["auroc"], metrics.roc_auc_score(truth, scores, multi_class="ovr", labels=labels))
    hot = np.eye(10)[truth]
    close(report["average_precision"], metrics.average_precision_score(hot, scores))
    if split == "test":
        result = json.loads((mnist / "result.json").read_text())["test"]
        for key in ("mcc", "kappa", "auroc", "average_precision", "top_5"):
            close(result[key], report[key])
        for key, (low, high) in report["intervals"].items():
            assert low <= report[key] <= high
    assert ("intervals" in report) is (split != "val")
    close(report["brier"], metrics.brier_score_loss(truth, scores, labels=labels, scale_by_half=False))
    expected = metrics.precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[key] for row in report["per_class"]], values, atol=1e-6)
        if key != "support":
            close(report[f"{key}_macro"], values.mean())
    close(report["balanced_accuracy"], metrics.balanced_accuracy_score(truth, guess))
    np.testing.assert_array_equal(report["confusion"], metrics.confusion_matrix(truth, guess, labels=labels))
    assert report["n"] == len(part) and report["split"] == split and report["checkpoint"] == "best"


def test_the_same_numbers_as_training_and_every_opening_counted(mcls: Main, blobs: Path, capsys: Capture) -> None:
    trained = json.loads((blobs / "result.json").read_text())
    for number in ("2nd", "3rd"):
        assert mcls("evaluate", str(blobs)) == 0
        assert f"test set evaluated for the {number} time" in capsys.readouterr().out
    assert mcls("evaluate", str(blobs), "--split", "val") == 0
    out = capsys.readouterr().out
    assert "opened" not in out and out.startswith(
        f"val   {trained['val']['accuracy'] * 100:.2f} % (selected on val) of 80;"
    )
    again = json.loads((blobs / "result.json").read_text())
    assert again == {**trained, "test_openings": 3}
    for split in ("test", "val"):
        report = written(blobs, split)
        for key, value in trained[split].items():
            assert report[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    pictures = {path.name for path in (blobs / "figures").glob("evaluation-*.png")}
    assert pictures == {f"evaluation-{split}-{kind}.png" for split in ("test", "val") for kind in KINDS}


def test_classes_that_do_not_occur_are_left_empty_and_last(capsys: Capture) -> None:
    nothing = {"precision": None, "recall": None, "f1": None, "support": 0}
    known = {"precision": 1.0, "recall": 0.5, "f1": 0.6667, "support": 2}
    rows = [{"class": f"c{number}", **(nothing if number < 3 else known)} for number in range(42)]
    print_class_metrics({"per_class": rows, "confusion": []}, ("many",) * 42)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[4] == ["c3", "1.0000", "0.5000", "0.6667", "2"]
    assert lines[-1] == ["c0", "0"]


def test_last_checkpoint(mcls: Main, blobs: Path) -> None:
    assert mcls("evaluate", str(blobs), "--split", "val", "--checkpoint", "last") == 0
    assert (written(blobs, "val")["checkpoint"], written(blobs, "val")["epoch"]) == ("last", 3)


def test_the_temperature_is_the_best_one_and_mends(mcls: Main, blobs: Path) -> None:
    assert mcls("evaluate", str(blobs)) == 0
    mended = written(blobs, "test")["temperature"]
    loaded = load_run(RunFolder(blobs), device="cpu")
    dataset = evaluate.rebuild_dataset(loaded, download=False)
    assert dataset.val is not None
    logits, targets = evaluate.logits_of(loaded, dataset.val).double(), dataset.val.targets
    loss = torch.nn.functional.cross_entropy
    best = loss(logits / mended["value"], targets)
    assert all(loss(logits / (mended["value"] * factor), targets) > best for factor in (0.99, 1.01))
    assert mended["fitted_on"] == "val"
    assert mended["ece"] < written(blobs, "test")["ece"] and mended["loss"] < written(blobs, "test")["loss"]


def test_no_logits_are_kept_but_those_that_the_temperature_is_fitted_on(
    mcls: Main, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 10,000 samples of as many classes take 400 MB."""
    kept, whole = [], evaluate.logits_of
    monkeypatch.setattr(evaluate, "logits_of", lambda loaded, split: (kept.append(len(split)), whole(loaded, split))[1])
    assert mcls("evaluate", str(blobs), "--mistakes") == 0
    assert kept == [json.loads((blobs / "result.json").read_text())["val"]["n"]] != [written(blobs, "test")["n"]]


@pytest.mark.parametrize("recorded", ["fp32", "bf16"])
def test_the_arithmetic_is_that_of_the_training(
    recorded: str, mcls: Main, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By run.json, whatever `precision: auto` would mean on this machine, and without TF32 as in training."""
    about = json.loads((blobs / "run.json").read_text())
    (blobs / "run.json").write_text(json.dumps({**about, "precision": recorded}))
    other = "bf16" if recorded == "fp32" else "fp32"
    monkeypatch.setattr(
        "mcls.training.precision.resolve_precision", lambda name, device: other if name == "auto" else name
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    loaded = load_run(RunFolder(blobs), device="cpu")
    split = evaluate.rebuild_dataset(loaded, download=False).open_test()
    inputs = torch.as_tensor(split.inputs)
    with torch.inference_mode(), autocast(loaded.device, recorded):
        expected = loaded.model(inputs.clone()).float()
    assert torch.equal(evaluate.logits_of(loaded, split), expected)
    assert not torch.backends.cudnn.allow_tf32
    probabilities = from_run(RunFolder(blobs), "cpu", []).probabilities(inputs.numpy())
    np.testing.assert_array_equal(probabilities, expected.softmax(dim=1).numpy())
    with torch.inference_mode(), autocast(loaded.device, other):
        assert not torch.equal(loaded.model(inputs.clone()).float(), expected)


@pytest.mark.parametrize(
    ("key", "recorded", "told"),
    [
        (
            "precision",
            "fp16",
            "precision: the run was trained in fp16, which cpu does not support; fp32 is used here.\n",
        ),
        (
            "precision",
            "fp32_medium",
            "precision: the run was trained in fp32_medium, which cpu does not support; fp32 ",
        ),
        ("nothing", "fp16", ""),
    ],
)
def test_a_precision_that_is_not_to_be_had_here_is_told(
    key: str, recorded: str, told: str, mcls: Main, blobs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = json.loads((blobs / "run.json").read_text())
    del about["precision"]  # as in folders of older versions
    (blobs / "run.json").write_text(json.dumps({**about, key: recorded}))
    monkeypatch.setattr("mcls.training.precision.product_error", lambda: 1e-3)
    capsys.readouterr()
    assert mcls("evaluate", str(blobs)) == 0
    err = capsys.readouterr().err
    assert err.startswith(told) and err.count("\n") == (told != "")
    assert mcls("compare", str(blobs), str(shutil.copytree(blobs, blobs.parent / "other"))) == 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_temperature_of_known_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=generator)
    targets = torch.multinomial((logits / 2).softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, targets) == pytest.approx(2, rel=0.03)
    assert fit_temperature(10 * logits, targets) == pytest.approx(
        10 * (fit_temperature(logits, targets) or 0), rel=1e-5
    )
    assert fit_temperature(logits, logits.argmax(1)) is None  # the smaller the better
    assert fit_temperature(logits, logits.argmin(1)) is None  # the larger the better
    one_mistake = torch.cat([logits.argmax(1)[:-1], logits.argmin(1)[-1:]])
    assert fit_temperature(logits, one_mistake) is not None
    assert fit_temperature(1000 * logits, targets) is None
    assert fit_temperature(logits[:0], targets[:0]) is None


def test_no_temperature_where_none_can_be_fitted(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    """On blobs far apart val has no mistakes, and then the smallest T would be taken for the best."""
    folder = train(tmp_path / "apart", data_root, "dataset.cluster_std=0.1", "trainer.epochs=20")
    capsys.readouterr()
    assert mcls("evaluate", str(folder)) == 0
    fitted = written(folder, "test")["temperature"]
    assert fitted == {"value": None, "fitted_on": "val", "reason": "no misclassified sample"}
    out = capsys.readouterr().out
    assert "temperature" in out and "cannot be fitted on val: no misclassified sample" in out
    assert "log-loss at it" not in out


def test_top_k_and_brier_by_hand() -> None:
    logits = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]).log()
    targets = torch.tensor([1, 2])
    assert brier(logits.double().softmax(dim=1), targets) == pytest.approx((0.375 + 0.875) / 2)
    assert 2 * top_hits(logits, targets, 1) == top_hits(logits, targets, 3) == len(targets)


def test_mistakes(mcls: Main, mnist: Path, capsys: Capture) -> None:
    assert mcls("evaluate", str(mnist), "--split", "train", "--mistakes") == 0
    report = written(mnist, "train")
    with (mnist / "mistakes-train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report["n"] - sum(row[index] for index, row in enumerate(report["confusion"])) > 0
    doubts = [float(row["probability"]) for row in rows]
    assert doubts == sorted(doubts)
    assert all(row["label"] != row["predicted"] and row["its probability"] >= row["probability"] for row in rows)
    assert f"doubtful labels: {len(rows)} of 270, the most" in capsys.readouterr().out
    with Image.open(mnist / "figures" / "evaluation-train-mistakes.png") as drawn:
        assert drawn.width > 300 and drawn.height > 100


def test_a_number_in_a_figure_of_the_most_confused_classes_is_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no installed font has a name."""
    targets = torch.arange(40)
    logits = torch.eye(40)[[*range(37), 38, 38, 39]]  # of class 37 the model says 38
    accumulator = accumulate([logits], targets, 40)
    found = Evaluation(
        Split(torch.zeros(40, 2), targets), logits, logits, accumulator, accumulator.measure(), {"split": "test"}
    )
    drawn: list[str] = []
    confusion = figures.confusion
    monkeypatch.setattr(figures, "confusion", lambda *given: (drawn.extend(given[1]), confusion(*given))[1])
    evaluate.draw_evaluation(found, RunFolder(tmp_path), [*map(str, range(37)), chr(0x10FFF0), "38", "39"], None)
    assert drawn[-3:] == ["#37", "38", "39"]


def test_what_a_prediction_rests_on_is_where_covering_it_matters() -> None:
    """A model that looks at the brightness of the upper left quarter alone, and one picture where there is none."""

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        seen = inputs[:, 0, :8, :8].mean(dim=(1, 2))
        return torch.stack([seen, 1 - seen], dim=1)

    model = SimpleNamespace(logits=logits, normalise=lambda pictures: pictures / 255, device="cpu")
    pictures = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    pictures[0, :, :8, :8] = 255
    heat = occlusion(cast("LoadedRun", model), pictures, torch.tensor([0, 1]))
    assert heat.shape == (2, 16, 16) and heat[0].max() == 1 and heat[0, :8, :8].mean() > 0.4
    assert heat[0, 11:].max() == heat[0, :, 11:].max() == 0 and heat[1].max() == 0
    shown = in_red(pictures, heat)
    assert (shown[1] == 0).all() and (shown[0, 0] > shown[0, 2])[:6, :6].all()
    assert [covered(part, 5) for part in (0, 7)] == [slice(0, 1), slice(4, 6)]


def test_mistakes_are_explained_in_a_picture_and_on_the_page(mcls: Main, mnist: Path, blobs: Path) -> None:
    assert mcls("evaluate", str(mnist), "--explain", "--device", "cpu") == 0
    path = mnist / "figures" / "evaluation-test-explain.png"
    with Image.open(path) as drawn:
        assert drawn.width == 1000
    assert mcls("report", str(mnist)) == 0
    assert base64.b64encode(path.read_bytes()).decode() in (mnist / "report.html").read_text()
    before = json.loads((blobs / "result.json").read_text())["test_openings"]
    assert mcls("evaluate", str(blobs), "--explain") == 2
    assert json.loads((blobs / "result.json").read_text())["test_openings"] == before


def test_the_grid_of_mistakes_has_a_row_for_each_class_the_most_doubted_first() -> None:
    """Three classes of 1, 3 and no doubted samples, in the order of their numbers."""
    logits = torch.tensor([[2.0, 0, 0], [4, 0, 0], [3, 0, 0], [0, 0, 9], [0, 0, 9]])
    targets = torch.tensor([1, 1, 1, 0, 2])
    split = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), targets)
    accumulator = accumulate([logits], targets, 3)
    probabilities = logits.double().softmax(dim=1)
    label, surest = probabilities[torch.arange(5), targets], probabilities.amax(dim=1)
    found = Evaluation(split, label, surest, accumulator, accumulator.measure(), {})
    chosen, labels = by_class(found, doubted(found), ("a", "b", "c"))
    rows = chosen.view(-1, EACH).tolist()
    assert [[index for index in row if index >= 0] for row in rows] == [[3], [1, 2, 0]]
    assert [label.split()[0] for label in labels if label] == ["a", "b", "b", "b"]
    assert [label.splitlines()[-1] for label in labels if label] == ["c", "a", "a", "a"]
    assert labels[1] == "" and len(labels) == 2 * EACH


def test_no_mistakes_at_all(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    folder = train(
        tmp_path / "easy", data_root, "dataset.cluster_std=0.01", "dataset.val_fraction=0", "trainer.epochs=40"
    )
    assert mcls("evaluate", str(folder), "--mistakes") == 0
    assert "doubtful labels: 0 of 200, the most" in capsys.readouterr().out
    assert written(folder, "test")["temperature"] == {"value": None, "reason": "no val"}
    assert mcls("evaluate", str(folder), "--split", "val") == 2
    message = "mcls: --split val: the run has no validation split. Use --split test.\n"
    assert capsys.readouterr().err == message


def test_the_data_may_be_elsewhere_but_not_others(
    mcls: Main, mnist: Path, data_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data_root / "MNIST", moved / "MNIST")
    config = mnist / "config.yaml"
    config.write_text(config.read_text().replace(str(data_root), "/nowhere"))
    assert mcls("evaluate", str(mnist)) == 4  # download is on in the run, and must not be tried for a folder
    assert "dataset.download=false" in capsys.readouterr().err
    assert not Path("/nowhere").exists()
    assert mcls("evaluate", str(mnist), f"dataset.root={moved}", "--split", "val") == 0
    assert json.loads((mnist / "result.json").read_text())["test_openings"] == 1
    assert mcls("evaluate", str(mnist), "optimizer.lr=1") == 2


@pytest.mark.parametrize("resident", ["true", "false"])
def test_another_test_set_is_not_the_runs_own(
    resident: str, mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    """Same train, other test: another number, other classes, other pictures; a copy elsewhere is the same."""
    own = tmp_path / "own"
    draw = np.random.default_rng(0)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (own / place).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 120, (8, 8), dtype=np.uint8) + (100 if place.endswith("b") else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(own / place / f"{number:02}.png")
    keys = ("dataset=image_folder", f"dataset.root={own}", "dataset.val_fraction=0.2", "trainer.batch_size=4")
    folder = train(tmp_path / "run", data_root, *keys, "trainer.epochs=1", f"trainer.data_on_device={resident}")

    def evaluated(place: Path, split: str = "test") -> tuple[str, str, int]:
        capsys.readouterr()
        assert mcls("evaluate", str(folder), "--split", split, f"dataset.root={place}") == 0
        said = capsys.readouterr()
        return said.out, said.err, json.loads((folder / "result.json").read_text())["test_openings"]

    same = tmp_path / "same"
    shutil.copytree(own, same)
    assert "test set evaluated for the 2nd time" in evaluated(same)[0]
    mine = written(folder, "test")
    fewer, swapped, redrawn = (Path(shutil.copytree(own, tmp_path / name)) for name in ("fewer", "swapped", "redrawn"))
    (fewer / "test" / "a" / "03.png").unlink()
    (swapped / "test" / "a").rename(swapped / "x")
    (swapped / "test" / "b").rename(swapped / "test" / "a")
    (swapped / "x").rename(swapped / "test" / "b")
    shutil.copy(own / "test" / "b" / "00.png", redrawn / "test" / "b" / "05.png")
    told = {fewer: "23 in place of 24", swapped: "what is in them differs", redrawn: "what is in them differs"}
    for other, why in told.items():
        out, err, openings = evaluated(other)
        assert f"test    not the samples of {folder}: {why}; another set, measured as other-test\n" in err
        assert openings == 2 and "opened" not in out and out.startswith("other-test ")
        assert written(folder, "test") == mine and written(folder, "other-test")["n"] == (23 if other == fewer else 24)
        assert (folder / "figures" / "evaluation-other-test-confusion.png").is_file()
    assert "other-val" not in evaluated(same, "val")[0]
    result = json.loads((folder / "result.json").read_text())
    del result["fingerprints"]  # as in folders of older versions
    (folder / "result.json").write_text(json.dumps(result))
    assert evaluated(fewer)[2] == 3


def test_another_train_set_is_named(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    """Two pictures in each other's place: the same statistics, but not the same samples in the same order."""
    own, other = tmp_path / "own", tmp_path / "other"
    draw = np.random.default_rng(0)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (own / place).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(own / place / f"{number}.png")
    shutil.copytree(own, other)
    for source, target in (("0", "1"), ("1", "0")):
        shutil.copy(own / "train" / "a" / f"{source}.png", other / "train" / "a" / f"{target}.png")
    folder = train(
        tmp_path / "run",
        data_root,
        "dataset=image_folder",
        f"dataset.root={own}",
        "dataset.val_fraction=0",
        "trainer.epochs=1",
    )
    known = json.loads((folder / "run.json").read_text())["fingerprints"]["train"]
    files = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted((own / "train").rglob("*.png")))
    assert known["samples"] == 8 and known["inputs"] == hashlib.sha256(files).hexdigest()
    for root, name in ((own, "train"), (other, "other-train")):
        capsys.readouterr()
        assert mcls("evaluate", str(folder), "--split", "train", f"dataset.root={root}") == 0
        said = capsys.readouterr()
        assert said.out.startswith(f"{name} ") and ("what is in them differs" in said.err) == (root == other)
    for root, told in ((own, False), (other, True)):
        epochs = 3 if told else 2
        assert mcls("resume", str(folder), f"dataset.root={root}", f"trainer.epochs={epochs}") == 0
        assert ("train   not the samples that the run began with: what is in them" in capsys.readouterr().err) == told


def test_the_fingerprint_is_of_every_sample_and_its_order() -> None:
    split = Split(torch.arange(24, dtype=torch.uint8).view(3, 1, 2, 4), torch.tensor([0, 1, 0]))
    same = Split(split.inputs[:].clone(), split.targets.clone())
    others = [split.rows(torch.tensor(rows)) for rows in ([0, 1], [1, 0, 2], [2, 1, 0])]
    others.append(Split(split.inputs, torch.tensor([0, 1, 1])))
    assert fingerprint(same) == fingerprint(split)
    assert all(fingerprint(other) != fingerprint(split) for other in others)


def test_data_of_a_relative_path_are_asked_for_elsewhere(
    mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "table.csv").write_text("x,class\n" + "0.5,a\n-0.5,b\n" * 100)
    lines = ("dataset=csv", "dataset.path=t/table.csv", "dataset.target=class", "trainer.epochs=1")
    folder = train(tmp_path / "run", data_root, *lines)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    for change in ([], ["dataset.path=none.csv"]):
        assert mcls("evaluate", str(folder), change) == 3
        told = " The run was trained with dataset.path=t/table.csv; set dataset.path=FILE.\n"
        assert capsys.readouterr().err.endswith(told)
    assert mcls("evaluate", str(folder), "dataset.path=../t/table.csv") == 0


def test_folders_that_are_refused(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    def refused(status: int, message: str, *arguments: str) -> None:
        assert mcls("evaluate", *arguments) == status
        assert capsys.readouterr().err == f"mcls: {message}\n"

    refused(5, f"{tmp_path}/none: not a run folder, it has no run.json.", f"{tmp_path}/none")
    (blobs / "last.pt").unlink()
    going_on = f"Continue with: mcls resume {blobs}"
    refused(5, f"{blobs}/last.pt: no such checkpoint yet. {going_on}", str(blobs), "--checkpoint", "last")
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(blobs / "figures", ignore_errors=True)
    (blobs / "figures").symlink_to(outside)
    refused(5, f"{blobs}/figures: refused, not a plain folder.", str(blobs), "--split", "val")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("val_fraction", [0, 0.1])
def test_a_run_that_was_stopped_is_measured_and_labelled(
    val_fraction: float, mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    """Its newest weights where none were selected; the opening counts, and counts on when the run is resumed."""
    folder = train(tmp_path / "run", data_root, f"dataset.val_fraction={val_fraction}", "trainer.epochs=2")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("  epochs: 2", "  epochs: 5"))
    (folder / "result.json").write_text('{"status": "stopped", "reason": "x", "test_openings": 0}')
    if not val_fraction:
        (folder / "best.pt").unlink()
    capsys.readouterr()
    assert mcls("evaluate", str(folder)) == 0
    told = capsys.readouterr().out
    assert "the run is not finished: stopped after 2 of 5 epochs\ntest set evaluated for the 1st time\n" in told
    report = written(folder, "test")
    assert report["unfinished"] == "stopped after 2 of 5 epochs"
    assert (report["checkpoint"] == "best") is (val_fraction > 0)
    assert json.loads((folder / "result.json").read_text())["status"] == "stopped"
    assert mcls("resume", str(folder)) == 0
    assert json.loads((folder / "result.json").read_text())["test_openings"] == 2
    assert mcls("evaluate", str(folder)) == 0
    assert "unfinished" not in written(folder, "test")
    (folder / "result.json").unlink()
    assert mcls("evaluate", str(folder)) == 2
    assert capsys.readouterr().err.endswith(f"{folder}: never started. Continue with: mcls resume {folder}\n")


@pytest.mark.parametrize(
    "arguments",
    [["--device", "gpu"], ["--split", "all"], ["--checkpoint", "first"], ["trainer.epochs=3"], ["model=mlp"], ["lr=1"]],
)
def test_wrong_arguments_come_without_torch(arguments: list[str], blobs: Path) -> None:
    script = "import sys; from mcls.cli import main\nstatus = main(sys.argv[1:])\n"
    script += "assert 'torch' not in sys.modules\nsys.exit(status)"
    command = [sys.executable, "-c", script, "evaluate", str(blobs), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "AssertionError" not in done.stderr
    assert arguments[0] != "--device" or "must be auto, cpu, cuda, cuda:N or mps, got 'gpu'" in done.stderr


def test_ordinals() -> None:
    found = " ".join(map(ordinal, (1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111, 112)))
    assert found == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 101st 111th 112th"


def test_a_folder_that_cannot_be_written_to(
    mcls: Main, blobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in blobs.rglob("*")}
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as on a read-only file system, for root too
    capsys.readouterr()
    assert mcls("evaluate", str(blobs)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("test ") and "log-loss" in out and "everything is in" not in out
    assert err.splitlines()[-1].endswith("blobs: not writable; the results are neither saved nor counted.")
    assert {path: path.stat().st_mtime_ns for path in blobs.rglob("*")} == before


MEASURED = ("accuracy", "interval", "n", "loss", "brier", "ece", "per_class", "confusion", "f1_macro")


def openings(folder: Path) -> int:
    return int(json.loads((folder / "result.json").read_text())["test_openings"])


def test_other_images_are_measured_as_the_runs_own(mcls: Main, mnist: Path, tmp_path: Path, capsys: Capture) -> None:
    """The test set as a folder of classes: all measures are equal, and it is no opening of the run's test set."""
    assert mcls("evaluate", str(mnist), "--split", "test") == 0
    own, before = written(mnist, "test"), openings(mnist)
    split = evaluate.rebuild_dataset(load_run(RunFolder(mnist), device="cpu"), download=False).open_test()
    for index, target in enumerate(split.targets.tolist()):
        folder = tmp_path / "other set" / str(target)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.as_tensor(split.inputs)[index, 0].numpy()).save(folder / f"{index}.png")
    capsys.readouterr()
    assert mcls("evaluate", str(mnist), "--data", str(tmp_path / "other set"), "--mistakes") == 0
    found = written(mnist, "data-other_set")
    for key in MEASURED:
        assert (
            found[key] == pytest.approx(own[key], rel=1e-6) if isinstance(own[key], float) else found[key] == own[key]
        )
    assert found["data"] == str(tmp_path / "other set") and openings(mnist) == before
    assert (mnist / "figures" / "evaluation-data-other_set-mistakes.png").is_file()
    assert (mnist / "mistakes-data-other_set.csv").is_file()
    assert "skipped" not in capsys.readouterr().err


def test_other_images_with_other_classes(mcls: Main, mnist: Path, tmp_path: Path, capsys: Capture) -> None:
    """Classes that the run lacks are left out, those that are absent named, files that cannot be read skipped."""
    for name in ("3", "4", "cat"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (30, 20), 40 * index).save(tmp_path / "d" / name / f"{index}.png")
    (tmp_path / "d" / "3" / "0.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert mcls("evaluate", str(mnist), "--data", "d") == 0
    found = written(mnist, "data-d")
    assert (found["n"], found["unknown_classes"], found["wrong"]) == (5, {"cat": 3}, 1)
    assert found["absent"] == [name for name in "0123456789" if name not in "34"]
    assert [row["support"] for row in found["per_class"]] == [0, 0, 0, 2, 3, 0, 0, 0, 0, 0]
    assert capsys.readouterr().err.splitlines() == [
        "skipped d/3/0.png: cannot be read (not a picture).",
        "data    3 samples left out, the run has no class 'cat'",
        "data    no sample of '0', '1', '2', '5', '6', '7', '8', '9'; means over classes are over the others",
    ]
    for words, status, told in (
        (["--data", "gone"], 2, "--data: gone: no such file or folder."),
        (["--data", "d/cat"], 2, "--data: d/cat: must be a folder that holds a folder of images for each class."),
        (["--data", "d", "--split", "val"], 2, "--data: not with --split, which names data of the run. Omit one."),
        (["--data", "d/3/1.png"], 2, "--data: d/3/1.png: must be a folder that holds a folder of images for each"),
    ):
        assert mcls("evaluate", str(mnist), *words) == status
        assert told in capsys.readouterr().err
    (tmp_path / "e" / "cat").mkdir(parents=True)
    shutil.copy(tmp_path / "d" / "3" / "1.png", tmp_path / "e" / "cat")
    assert mcls("evaluate", str(mnist), "--data", "e") == 3
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "data    1 sample left out, the run has no class 'cat'",
        "mcls: e: no sample of a class of the run, which has '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'.",
    ]


def test_other_tables_are_measured_as_the_runs_own(
    mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    rows = [f"{20 + index % 50},{'red' if index % 3 else 'blue'},{'ab'[index % 50 > 20]}" for index in range(120)]
    (tmp_path / "train.csv").write_text("\n".join(["age,colour,kind", *rows[:90], ""]))
    (tmp_path / "new.csv").write_text("\n".join(["age,colour,kind", *rows[90:], ""]))
    keys = ("dataset=csv", "dataset.path=train.csv", "dataset.test_path=new.csv", "dataset.target=kind")
    run = train(tmp_path / "run", data_root, *keys, "trainer.epochs=3")
    assert mcls("evaluate", str(run)) == 0
    assert mcls("evaluate", str(run), "--data", "new.csv") == 0
    own, found = written(run, "test"), written(run, "data-new.csv")
    assert {key: found[key] for key in MEASURED} == {key: own[key] for key in MEASURED}
    (tmp_path / "odd.csv").write_text("kind;colour;age\na;red;30\nc;red;30\na;green;30\nb;red;x\nb;blue;60\n")
    capsys.readouterr()
    assert mcls("evaluate", str(run), "--data", "odd.csv") == 0
    found = written(run, "data-odd.csv")
    assert (found["n"], found["unknown_classes"], found["absent"], found["wrong"]) == (2, {"c": 1}, [], 2)
    assert "skipped odd.csv, row 4, column 'colour': 'green' is a category" in capsys.readouterr().err
    (tmp_path / "one.csv").write_text("age,colour,kind\n30,red,\n60,blue,a\n31,red,a\n")
    assert mcls("evaluate", str(run), "--data", "one.csv") == 0
    out, err = capsys.readouterr()
    assert "data    1 sample left out, without a label\n" in err and "''" not in err
    assert (
        "AUROC" not in out and "average precision" not in out
    )  # neither is defined where all samples are of one class
    areas = {"auroc", "average_precision"}
    assert (
        not areas & written(run, "data-one.csv").keys() and not areas & written(run, "data-one.csv")["intervals"].keys()
    )
    assert mcls("evaluate", str(run), "--data", str(tmp_path)) == 2
    assert f"--data: {tmp_path}: must be a table, or a folder with a data set of Hugging" in capsys.readouterr().err
    (tmp_path / "none.csv").write_text("age,colour\n30,red\n")
    assert mcls("evaluate", str(run), "--data", "none.csv") == 3
    assert "--data: none.csv has no column 'kind'. It has 'age', 'colour'." in capsys.readouterr().err


def test_other_data_of_a_run_without_columns(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    assert mcls("evaluate", str(blobs), "--data", "a.csv") == 2
    assert "neither on images nor on a table with a header" in capsys.readouterr().err
