"""The temperature that is fitted on val, and abstention with a bound: recorded by evaluate, applied by the others."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from mcls.errors import RequestError
from mcls.inference import evaluate
from mcls.inference.calibration import error_bound, rejection_curve, rejection_threshold
from mcls.inference.load import load_run
from mcls.inference.predict import from_onnx, from_run
from mcls.inference.served import metadata
from mcls.runs.folder import RunFolder
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A run that is wrong on some of its val samples."""
    keys = ("dataset.n_samples=4000", "dataset.cluster_std=2.0", "dataset.val_fraction=0.5", "trainer.epochs=20")
    return train(tmp_path_factory.mktemp("blobs") / "run", data_root, *keys)


def rows_of(capsys: Capture) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_what_is_missing_is_said(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.csv").write_text("1,2\n")
    told = f"the run was not measured on val. Run first: mcls evaluate {blobs} --split val --checkpoint best"
    for flag, *value in (["--temperature", "val"], ["--reject-below", "0.1"]):
        capsys.readouterr()
        assert mcls("predict", str(blobs), "x.csv", flag, *value) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"mcls: {flag}: {told[:40]}")
    assert mcls("export", str(blobs), "--format", "onnx", "--temperature", "val") == 2
    assert mcls("predict", str(blobs), "x.csv", "--reject-below", "2") == 2
    assert "must be a number between 0 and 1, got '2'" in capsys.readouterr().err
    assert mcls("predict", str(blobs), "x.csv", "--reject-below", "0.1", "--format", "wide") == 2
    assert "which names no class" in capsys.readouterr().err


def test_the_temperature_is_applied_and_recorded(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    """By predict, serve and export: softmax(logits / T), T that of evaluate; its log-loss on val is the smaller one."""
    assert mcls("evaluate", str(blobs), "--split", "val") == 0
    report = json.loads((blobs / "evaluation.json").read_text())["val"]
    temperature = report["temperature"]["value"]
    assert temperature is not None and abs(temperature - 1) > 1e-3
    loaded = load_run(RunFolder(blobs), device="cpu")
    val = evaluate.rebuild_dataset(loaded, download=False).val
    assert val is not None
    expected = (evaluate.logits_of(loaded, val) / temperature).softmax(dim=1).numpy()
    model = from_run(RunFolder(blobs), "cpu", [], scaled=True)
    found = model.probabilities(torch.as_tensor(val.inputs).numpy())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert -np.log(found[range(len(found)), val.targets]).mean() == pytest.approx(
        report["temperature"]["loss"], abs=1e-6
    )
    assert report["temperature"]["loss"] < report["loss"]
    assert metadata("m", model)["temperature"] == temperature
    place = tmp_path / "m.onnx"
    capsys.readouterr()
    assert mcls("export", str(blobs), "--format", "onnx", "--temperature", "val", "--output", str(place)) == 0
    assert f"temperature: {temperature:.3f}, fitted on val, applied\n" in capsys.readouterr().out
    exported = from_onnx(place, "cpu")
    assert exported.temperature == temperature
    np.testing.assert_allclose(exported.probabilities(torch.as_tensor(val.inputs).numpy()), expected, atol=1e-5)
    (tmp_path / "x.csv").write_text("1,2\n")
    capsys.readouterr()
    assert mcls("predict", str(place), "x.csv", "--temperature", "val") == 2
    assert "--temperature: takes a run folder. mcls export --temperature val puts" in capsys.readouterr().err
    assert mcls("predict", str(place), "x.csv", "--reject-below", "0.1") == 2
    told = "--reject-below: takes the folder of a run, an exported file has no val. Name the run."
    assert capsys.readouterr().err.splitlines()[-1] == f"mcls: {told}"
    rows = "".join(f"{x!r},{y!r}\n" for x, y in torch.as_tensor(val.inputs)[:20].tolist())
    (tmp_path / "x.csv").write_text(rows)
    assert mcls("predict", str(blobs), "x.csv", "--temperature", "val") == 0
    probabilities = [float(row["probability"]) for row in rows_of(capsys)]
    np.testing.assert_allclose(probabilities, expected[:20].max(axis=1), atol=2e-6)


def test_the_temperature_of_an_evaluation_on_test_is_that_of_val(
    mcls: Main, blobs: Path, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    """It is fitted on val whatever is measured, so no other evaluation is asked for; without a val there is none."""
    run = Path(shutil.copytree(blobs, tmp_path / "run"))
    (run / "evaluation.json").unlink(missing_ok=True)
    found = {}
    for split in ("test", "val"):
        assert mcls("evaluate", str(run), "--split", split) == 0
        found[split] = from_run(RunFolder(run), "cpu", [], scaled=True).temperature
        record = json.loads((run / "evaluation.json").read_text())[split]["temperature"]
        assert (record["fitted_on"], record["value"]) == ("val", found[split])
        if split == "test":
            assert mcls("predict", str(run), "x.csv", "--reject-below", "0.1") == 2
    assert found["test"] == found["val"]
    alone = train(
        tmp_path / "alone", data_root, "dataset.cluster_std=2.0", "dataset.val_fraction=0", "trainer.epochs=1"
    )
    assert mcls("evaluate", str(alone)) == 0
    capsys.readouterr()
    assert mcls("predict", str(alone), "x.csv", "--temperature", "val") == 2
    told = "--temperature: the run has no val, which it is measured on. Omit it."
    assert capsys.readouterr().err.splitlines()[-1] == f"mcls: {told}"


def test_no_temperature_where_val_has_no_mistakes(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    run = train(tmp_path / "run", data_root, "dataset.cluster_std=0.1", "trainer.epochs=30")
    assert mcls("evaluate", str(run), "--split", "val") == 0
    (tmp_path / "x.csv").write_text("1,2\n")
    capsys.readouterr()
    assert mcls("predict", str(run), "x.csv", "--temperature", "val") == 2
    told = "--temperature: cannot be fitted on val: no misclassified sample. Omit it."
    assert capsys.readouterr().err.splitlines()[-1] == f"mcls: {told}"
    path = run / "evaluation.json"
    content = json.loads(path.read_text())
    content["val"]["epoch"] = 1
    path.write_text(json.dumps(content))
    assert mcls("predict", str(run), "x.csv", "--reject-below", "0.2") == 2
    assert "what was measured on val are other weights or another --tta. Run first" in capsys.readouterr().err
    content["val"]["rejection"]["plain"] = [["a"]]
    path.write_text(json.dumps(content))
    assert mcls("predict", str(run), "x.csv", "--reject-below", "0.2") == 5


@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_rejected(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture, scaled: bool) -> None:
    """On val itself: those below the threshold, and the error among the others is below the risk by its bound."""
    assert mcls("evaluate", str(blobs), "--split", "val") == 0
    report = json.loads((blobs / "evaluation.json").read_text())["val"]
    risk = (1 - report["accuracy"]) * 0.7
    least, kept = rejection_threshold(report["rejection"]["scaled" if scaled else "plain"], risk)
    loaded = load_run(RunFolder(blobs), device="cpu")
    val = evaluate.rebuild_dataset(loaded, download=False).val
    assert val is not None and 0 < kept < 1
    (tmp_path / "x.csv").write_text("".join(f"{x!r},{y!r}\n" for x, y in torch.as_tensor(val.inputs).tolist()))
    capsys.readouterr()
    extra = ["--temperature", "val"] if scaled else []
    assert mcls("predict", str(blobs), "x.csv", "--reject-below", repr(risk), "--top", "2", *extra) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    named = [row["class"] != "" for row in rows]
    sure = [float(row["probability"]) for row in rows]  # rounded, so what is next to the threshold is left out
    assert all(has == (part >= least) for has, part in zip(named, sure, strict=True) if abs(part - least) > 1e-5)
    assert sum(named) == pytest.approx(kept * len(rows), abs=2)
    assert all(row["class_2"] for row in rows)
    errors = sum(
        int(row["class"]) != target for row, target in zip(rows, val.targets.tolist(), strict=True) if row["class"]
    )
    assert errors / sum(named) < risk
    assert f"no class below the probability {least:.4f}; on val {kept:.1%} are at least as sure\n" in err
    assert err.endswith(f"{len(rows):,} classified\nno class for {named.count(False):,} of them\n")
    assert mcls("predict", str(blobs), "x.csv", "--reject-below", "0.0001") == 2
    assert "the error can be kept at 0.0001. Allow more." in capsys.readouterr().err


@pytest.mark.parametrize(("errors", "count"), [(0, 10), (3, 50), (49, 50), (50, 50), (7, 1000)])
def test_the_bound_is_clopper_and_pearsons(errors: int, count: int) -> None:
    expected = binomtest(errors, count, alternative="less").proportion_ci(0.95, method="exact").high
    assert error_bound(errors, count, 0.05) == pytest.approx(expected, rel=1e-9)


def test_the_risk_is_kept() -> None:
    """In 400 draws of a val whose true error at each confidence is known: broken in at most 5 %, and not by luck."""
    random, broken, kept = np.random.default_rng(0), 0, []
    for _ in range(400):
        confidence = random.uniform(0.5, 1, 2000)
        right = random.uniform(size=2000) < confidence  # so the error above t is (1 - t) / 2
        rows = rejection_curve(torch.from_numpy(confidence), torch.from_numpy(right))
        least, share = rejection_threshold(rows, 0.15)
        broken += (1 - least) / 2 > 0.15
        kept.append(share)
    assert broken <= 20
    assert np.mean(kept) > 0.4  # 0.6 are sure enough
    with pytest.raises(RequestError, match="does not show with 95% confidence"):
        rejection_threshold(rows, 0.001)
