"""`name=NAME`: one folder, whatever stops the command, and nothing but the run that was named."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcls.runs.folder import RunFolder

Main = Callable[..., int]
QUICK = ("trainer.figures=false", "trainer.epochs=2", "device=cpu")


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_the_same_command_goes_on(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Begun, finished, and without its result: the same folder and weights, and the test set opened as often."""
    assert mcls("train", *QUICK) == 0
    [whole] = (tmp_path / "outputs").glob("blobs-mlp/*")
    lines = ("train", *QUICK, "name=x-1")
    assert mcls(*lines) == 0
    folder = tmp_path / "outputs" / "x-1"
    before = result_of(folder)
    assert before["weights_sha256"] == result_of(whole)["weights_sha256"]
    written = (folder / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert mcls(*lines, "trainer.log_every_steps=7") == 0
    out, err = capsys.readouterr()
    assert err == "already finished, 2 epochs\n" and "everything is in outputs/x-1" in out
    assert (folder / "result.json").stat().st_mtime_ns == written
    (folder / "result.json").unlink()
    assert mcls(*lines) == 0 and "resumed after epoch 2" in capsys.readouterr().err
    assert result_of(folder)["weights_sha256"] == before["weights_sha256"]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["blobs-mlp", "x-1"]
    assert mcls("train", "--from", str(folder), "seed=3") == 0  # its name is not taken over
    assert len(list((tmp_path / "outputs" / "blobs-mlp").iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["optimizer.lr=0.3"], "optimizer.lr: outputs/x holds a run with 0.05, not 0.3. Choose another name."),
        (
            ["seed=1", "model.dropout=0.5"],
            "seed: outputs/x holds a run with 0, not 1; also different: model.dropout. Choose another name.",
        ),
        (
            ["trainer.epochs=5"],
            "trainer.epochs: outputs/x holds a run with 2, not 5. Choose another name, or go on with: "
            "mcls resume outputs/x trainer.epochs=5.",
        ),
        (["name=blobs-mlp"], "name: outputs/blobs-mlp is a folder of other folders. Give another name."),
        (["name='a/b'"], "name: must be the name of a folder, got 'a/b'. Use letters, digits and . _ - = +."),
        (["-m", "seed=1,2"], "name: names one run. Say sweep.name."),
        (["hydra.run.dir=y"], "name: names one run. Leave out hydra.run.dir."),
    ],
)
def test_another_run_is_refused(
    more: list[str], said: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("train", *QUICK, *(["name=x"] if not more[0].startswith("name=") else []))
    if more[0][:2] not in ("-m", "hy"):
        assert mcls("train", *QUICK, "name=x") == 0
        (tmp_path / "outputs" / "blobs-mlp" / "2026").mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert mcls(*lines, *more) == 2
    assert capsys.readouterr().err == f"mcls: {said}\n"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_and_typed_again_equals_whole(mcls: Main, tmp_path: Path) -> None:
    """kill -9 in the middle, then the same line."""
    lines = ("train", "trainer.figures=false", "device=cpu", "trainer.epochs=400", "trainer.checkpoint_every_steps=5")
    command = [sys.executable, "-m", "mcls", *lines, "name=x"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "outputs" / "x" / "best.pt").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    folder = RunFolder(tmp_path / "outputs" / "x")
    assert folder.begun and folder.finished() is None
    assert mcls(*lines, "name=x") == 0
    assert mcls(*lines, "name=whole") == 0
    assert result_of(folder.path)["weights_sha256"] == result_of(tmp_path / "outputs/whole")["weights_sha256"]
