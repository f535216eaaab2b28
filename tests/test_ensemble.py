"""`mcls evaluate SWEEP --ensemble` and `mcls predict SWEEP`: the mean of the probabilities of seeds or folds."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss

from mcls.data.table_encoder import Table, count_unseen, encode_table
from mcls.inference import evaluate
from mcls.inference.ensemble import difference, mean_run
from mcls.inference.load import LoadedRun, load_run
from mcls.runs.folder import RunFolder, find_runs
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
QUICK = ("trainer.epochs=2", "optimizer.lr=0.03")
TABLE = ("dataset=csv", "dataset.path=t.csv", "dataset.target=kind", "dataset.handle_unknown=ignore")


def write_table(path: Path, rows: int = 60) -> None:
    """Two columns of numbers and one of text, with a category that one row alone has."""
    random = np.random.default_rng(0)
    colours = ["grey", *(("red", "blue")[n % 2] for n in range(rows - 1))]
    lines = [
        f"{random.normal(n % 3, 0.8):.3f},{random.normal():.3f},{colour},{'abc'[n % 3]}"
        for n, colour in enumerate(colours)
    ]
    path.write_text("\n".join(["x,y,colour,kind", *lines]) + "\n")


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A folder with a table, and a sweep of it: two settings of two folds."""
    root = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_table(root / "t.csv")
        keys = ("dataset.folds=2", "dataset.fold=0,1", "optimizer.momentum=0.9,0", "trainer.epochs=8")
        train(root / "unused", data_root, "-m", *TABLE, *keys, "sweep.name=s")
    return root


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A folder with a sweep of two seeds on images, and two images."""
    root = tmp_path_factory.mktemp("seeds")
    random = np.random.default_rng(1)
    for number in range(2):
        Image.fromarray(random.integers(0, 255, (28, 28), dtype=np.uint8)).save(root / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train(root / "unused", data_root, "-m", "dataset=mnist", *QUICK, "seed=0,1", "sweep.name=s")
    return root


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a root to where the test runs, and returns its sweep."""

    def copied(root: Path) -> Path:
        shutil.copytree(root, tmp_path, dirs_exist_ok=True)
        return tmp_path / "outputs" / "sweeps" / "s"

    return copied


def wide(mcls: Main, capsys: Capture, *words: str) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Names and probabilities that `mcls predict` writes."""
    capsys.readouterr()
    assert mcls("predict", *words, "--format", "wide") == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    return [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=float)


def chosen(sweep: Path) -> list[Path]:
    """The jobs that were measured on test: those of the best setting."""
    return [folder.path for folder in find_runs(sweep) if (folder.read_result() or {})["test"]]


@pytest.mark.parametrize("kind", ["folds", "seeds"])
def test_probabilities_are_the_mean_of_the_members(
    kind: str, folds: Path, seeds: Path, copy: Callable[[Path], Path], mcls: Main, capsys: Capture
) -> None:
    sweep = copy(folds if kind == "folds" else seeds)
    inputs = "t.csv" if kind == "folds" else "*.png"
    names, found = wide(mcls, capsys, str(sweep), inputs)
    members = [wide(mcls, capsys, str(run), inputs) for run in chosen(sweep)]
    assert len(members) == 2 and all(names == each for each, _ in members)
    mean = np.mean([each for _, each in members], axis=0)
    np.testing.assert_allclose(found, mean, atol=2e-7)
    assert np.abs(found - members[0][1]).max() > 1e-3  # they do differ
    for form in ("csv", "jsonl", "table"):
        assert mcls("predict", str(sweep), inputs, "--format", form, "--top", "2") == 0


def test_a_sweep_of_one_job_is_its_run(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    assert (
        mcls("train", "-m", "trainer.epochs=1", "optimizer.lr=0.03,1e-9", "sweep.name=s", "trainer.figures=false") == 0
    )
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    (run,) = chosen(sweep)
    (tmp_path / "v.csv").write_text("0.5,0.25\n1,2\n")
    whole, alone = (wide(mcls, capsys, str(path), "v.csv") for path in (sweep, run))
    assert whole[0] == alone[0] and np.array_equal(whole[1], alone[1])
    before = RunFolder(run).openings()
    capsys.readouterr()
    assert mcls("evaluate", str(sweep), "--ensemble") == 2
    told = f"of the best setting one run is finished. Measure it: mcls evaluate {run.relative_to(tmp_path)}"
    assert capsys.readouterr().err == f"mcls: --ensemble: {told}\n"
    assert RunFolder(run).openings() == before and not (sweep / "evaluation.json").exists()


def test_measured_beside_the_members(folds: Path, copy: Callable[[Path], Path], mcls: Main, capsys: Capture) -> None:
    sweep = copy(folds)
    runs = chosen(sweep)
    loaded = [load_run(RunFolder(run), device="cpu") for run in runs]
    tests = [evaluate.rebuild_dataset(each, download=False).open_test() for each in loaded]
    logits = [evaluate.logits_of(each, split) for each, split in zip(loaded, tests, strict=True)]
    mean = torch.stack([each.double().softmax(dim=1) for each in logits]).mean(dim=0)
    targets = tests[0].targets
    before = [(RunFolder(run).read_result() or {})["test_openings"] for run in runs]
    capsys.readouterr()
    assert mcls("evaluate", str(sweep), "--ensemble", "--mistakes") == 0
    out = capsys.readouterr().out
    assert "test set evaluated for the 2nd time" in out and "\nensemble " in out and "\nmean " in out
    assert [(RunFolder(run).read_result() or {})["test_openings"] for run in runs] == [each + 1 for each in before]
    report = json.loads((sweep / "evaluation.json").read_text())["test"]
    assert report["accuracy"] == pytest.approx(float((mean.argmax(1) == targets).double().mean()))
    assert report["loss"] == pytest.approx(log_loss(targets, mean, labels=range(mean.shape[1])), abs=1e-6)
    assert report["temperature"] == {"value": None, "reason": "no val"}  # it would be fitted on test
    assert "not fitted: no val" in out and "log-loss at it" not in out
    assert [each["accuracy"] for each in report["members"]] == [
        (RunFolder(run).read_result() or {})["test"]["accuracy"] for run in runs
    ]
    assert [each["run"] for each in report["members"]] == [run.name for run in runs]
    assert (sweep / "figures" / "evaluation-test-confusion.png").exists() and (sweep / "mistakes-test.csv").exists()
    assert not [folder for folder in find_runs(sweep) if folder.path not in runs and folder.openings()]
    assert_the_table_has_it(sweep, report, mcls)


def assert_the_table_has_it(sweep: Path, report: dict[str, Any], mcls: Main) -> None:
    """Assert that sweep.md and the page of the sweep say what was measured of the ensemble."""
    single = np.mean([each["accuracy"] for each in report["members"]])
    jobs = " ".join(each["run"].partition("_")[0] for each in report["members"])
    interval = "{:.4f} to {:.4f}".format(*report["interval"])
    told = f"The ensemble of jobs {jobs}: test accuracy {report['accuracy']:.4f} ({interval}); the mean of its jobs is"
    assert f"{told} {single:.4f}." in (sweep / "sweep.md").read_text()
    assert mcls("report", str(sweep)) == 0
    cells = ("test", jobs, f"{single:.4f}", f"{report['accuracy']:.4f}", interval)
    assert "".join(f"<td>{cell}</td>" for cell in cells) in (sweep / "report.html").read_text()
    (sweep / "evaluation.json").write_text('{"test": {"members": 3}}')
    assert mcls("report", str(sweep)) == 0 and "<h2>Ensemble" not in (sweep / "report.html").read_text()


def test_val_is_common_to_seeds_and_not_to_folds(
    folds: Path, seeds: Path, copy: Callable[[Path], Path], mcls: Main, capsys: Capture
) -> None:
    sweep = copy(seeds)
    assert mcls("evaluate", str(sweep), "--ensemble", "--split", "val") == 0
    report = json.loads((sweep / "evaluation.json").read_text())["val"]
    assert report["selected_on_val"] and report["temperature"]["fitted_on"] == "val"
    assert all("interval" not in each for each in report["members"])
    shutil.rmtree(sweep)
    sweep = copy(folds)
    before = [folder.openings() for folder in find_runs(sweep)]
    capsys.readouterr()
    assert mcls("evaluate", str(sweep), "--ensemble", "--split", "val") == 2
    assert capsys.readouterr().err.endswith("the members are folds, and each has another. Use --split test.\n")
    assert mcls("evaluate", str(sweep), "--ensemble", "--data", "t.csv") == 0
    report = json.loads((sweep / "evaluation.json").read_text())["data-t.csv"]
    assert report["n"] == 60 and len(report["members"]) == 2
    assert [folder.openings() for folder in find_runs(sweep)] == before


def test_temperatures_are_the_members_own(
    folds: Path, copy: Callable[[Path], Path], mcls: Main, capsys: Capture
) -> None:
    sweep = copy(folds)
    runs = [str(run) for run in chosen(sweep)]
    assert mcls("predict", str(sweep), "t.csv", "--temperature", "val") == 2
    assert "Run first: mcls evaluate" in capsys.readouterr().err
    for number, run in enumerate(runs):
        fitted = {"value": 0.5 + number}
        record = {"checkpoint": "best", "epoch": load_run(RunFolder(Path(run))).epoch, "temperature": fitted}
        RunFolder(Path(run)).write_json(
            Path(run) / "evaluation.json", {"val": {**record, "rejection": {"plain": [], "scaled": []}}}
        )
    _, found = wide(mcls, capsys, str(sweep), "t.csv", "--temperature", "val")
    members = [wide(mcls, capsys, run, "t.csv", "--temperature", "val")[1] for run in runs]
    np.testing.assert_allclose(found, np.mean(members, axis=0), atol=2e-7)


def test_an_encoder_of_members_puts_their_inputs_side_by_side() -> None:
    first: dict[str, Any] = {"columns": ["x", "c"], "means": [1.0, 0.0], "stds": [2.0, 1.0], "missing": "error"}
    first |= {"categories": [[], ["a", "b"]], "missing_values": [], "unseen": "error", "target": "y"}
    second = {**first, "means": [0.0, 0.0], "categories": [[], ["a", "b", "z"]]}
    table = Table.of("t", {"x": ["3", "5"], "c": ["a", "z"]}, [2, 3])
    whole = {**first, "unseen": "ignore", "members": [first, second]}
    expected = [encode_table(table, {**each, "unseen": "ignore"}) for each in (first, second)]
    assert np.array_equal(encode_table(table, whole), np.concatenate(expected, axis=1))
    assert count_unseen(table, whole) == 1


def fail_jobs(sweep: Path, number: int) -> None:
    """Let the first `number` jobs be ones that failed."""
    for folder in list(find_runs(sweep))[:number]:
        folder.write_json(folder.result, {"status": "failed", "reason": "x"})


def test_what_makes_no_ensemble(
    folds: Path, seeds: Path, copy: Callable[[Path], Path], mcls: Main, tmp_path: Path, capsys: Capture
) -> None:
    sweep = copy(folds)
    run = str(chosen(sweep)[0])

    def said(status: int, *words: str) -> str:
        capsys.readouterr()
        assert mcls(*words) == status
        return capsys.readouterr().err.splitlines()[-1]

    assert said(2, "evaluate", run, "--ensemble").endswith("takes the folder of a sweep, " + run + " is none. Omit it.")
    assert "Add --ensemble, or name one of its runs: mcls runs" in said(2, "evaluate", str(sweep))
    assert said(2, "predict", str(sweep), "t.csv", "--reject-below", "0.1").endswith("not of a sweep. Omit it.")
    fail_jobs(sweep, 2)
    capsys.readouterr()
    assert mcls("predict", str(sweep), "t.csv") == 0
    err = capsys.readouterr().err
    assert "1 more job of this setting" in err and "not finished, and left out" in err
    fail_jobs(sweep, 4)
    assert "none of its jobs is finished" in said(5, "predict", str(sweep), "t.csv")


def test_members_that_differ_are_one_line(folds: Path, seeds: Path) -> None:
    table, *others = (load_run(RunFolder(run), device="cpu") for run in chosen(folds / "outputs" / "sweeps" / "s"))
    images = load_run(RunFolder(chosen(seeds / "outputs" / "sweeps" / "s")[0]), device="cpu")
    from dataclasses import replace

    def changed(**values: Any) -> str:
        return difference(table, replace(others[0], **values))

    assert difference(table, others[0]) == ""
    assert changed(classes=("b", "a", "c")) == "its classes"
    assert changed(encoder={**(table.encoder or {}), "columns": ["y", "x", "colour"]}) == "the columns that it takes"
    assert difference(images, replace(images, input_shape=(1, 32, 32))) == "the samples that it takes"
    from mcls.errors import FolderError

    with pytest.raises(FolderError, match=r"its classes differ from those of .*, so they make no ensemble\. Use one"):
        mean_run([table, replace(others[0], classes=("b", "a", "c"))], RunFolder(folds))
    assert isinstance(mean_run([table, *others], RunFolder(folds)), LoadedRun)
