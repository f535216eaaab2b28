"""`mcls resume` in this process: what it goes on with, what it refuses, what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcls.config.stored import HARMLESS

Main = Callable[..., int]
QUICK = ("trainer.figures=false", "trainer.epochs=3")


def only(folder: Path) -> Path:
    (path,) = (path.parent for path in folder.rglob("run.json"))
    return path


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_every_opening_of_the_test_set_is_counted_once(mcls: Main, tmp_path: Path) -> None:
    """Three epochs and the end; two more epochs and another end."""
    assert mcls("train", *QUICK, "trainer.test_every_epoch=true") == 0
    run = only(tmp_path)
    assert result_of(run)["test_openings"] == 4
    assert mcls("resume", str(run), "trainer.epochs=5") == 0
    assert result_of(run)["test_openings"] == 7


def test_openings_of_a_run_that_failed_are_counted(mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mcls.session.evaluate", fail)  # at the end, after three epochs
    assert mcls("train", *QUICK, "trainer.test_every_epoch=true") == 4
    assert result_of(only(tmp_path))["test_openings"] == 3 + 1  # the last one is counted before it happens


def test_a_run_that_lost_its_patience_is_not_gone_on_with(
    mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("optimizer.lr=1e-12", "trainer.patience=2", "trainer.figures=false", "trainer.epochs=20")
    assert mcls("train", *lines) == 0
    run = only(tmp_path)
    before = (run / "result.json").read_bytes()
    capsys.readouterr()
    for more in ([], ["trainer.epochs=40"]):
        assert mcls("resume", str(run), more) == 0
        assert capsys.readouterr().out == "already finished: trainer.patience ran out after 3 of 20 epochs\n"
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("device", "cuda:0", "device: the run began with cuda, here it is cpu. Resume it where it began."),
        ("precision", "bf16", "precision: the run began with bf16, here it is fp32. Resume it where it began."),
        ("channels_last", True, "channels_last: the run began with True, here it is False. Resume it where it began."),
    ],
)
def test_another_machine_is_an_error(
    key: str, value: object, message: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", *QUICK) == 0
    run = only(tmp_path)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, key: value}))
    capsys.readouterr()
    assert mcls("resume", str(run), "trainer.epochs=4") == 4
    assert capsys.readouterr().err == f"mcls: {message}\n"


def test_data_of_another_size_are_refused(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, row = tmp_path / "table.csv", "0.5,1.5,a\n-0.5,-1.5,b\n"
    table.write_text("x,y,class\n" + 100 * row)
    assert mcls("train", "dataset=csv", f"dataset.path={table}", "dataset.target=class", *QUICK) == 0
    table.write_text("x,y,class\n" + 300 * row)
    run = only(tmp_path)
    capsys.readouterr()
    assert mcls("resume", str(run), "trainer.epochs=4") == 5
    told = f"mcls: {run}: refused, the data set's classes, shape, statistics or sizes are others.\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize(("schedule", "warns"), [("constant", False), ("cosine", True)])
def test_a_schedule_that_is_stretched_is_told(
    schedule: str, warns: bool, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", *QUICK, f"schedule={schedule}") == 0
    capsys.readouterr()
    assert HARMLESS[0] == "trainer.epochs"
    assert mcls("resume", str(only(tmp_path)), "trainer.epochs=4") == 0
    assert ("the learning rate goes back" in capsys.readouterr().err) is warns
