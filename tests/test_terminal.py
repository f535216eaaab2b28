"""What a run says on the terminal: its epochs, its end, and what is wrong with it."""

import contextlib
import csv
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mcls.report.ending import signs_of_trouble
from mcls.runs.folder import RunFolder, as_yaml
from mcls.training.epoch_table import EpochTable

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
SIGNS = ("val loss:", "val accuracy:", "overfitting:", "model.freeze:")
QUICK = ["trainer.figures=false", "device=cpu"]


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """A CSV file with the columns f0, f1, ... and the class."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"f{index}" for index in range(len(rows[0]) - 1)), "kind"])
        writer.writerows(rows)


def iris(path: Path) -> None:
    """150 flowers with the means and standard deviations of the iris data."""
    draw = random.Random(0)
    means = {"setosa": (5.0, 3.4, 1.5, 0.2), "versicolor": (5.9, 2.8, 4.3, 1.3), "virginica": (6.6, 3.0, 5.6, 2.0)}
    spread = {"setosa": (0.35, 0.38, 0.17, 0.1), "versicolor": (0.5, 0.3, 0.5, 0.2), "virginica": (0.6, 0.3, 0.6, 0.3)}
    kinds = [kind for kind in means for _ in range(50)]
    write_table(path, [[*map(draw.gauss, means[kind], spread[kind]), kind] for kind in kinds])


def noise(path: Path, columns: int, shares: Sequence[float]) -> None:
    """600 rows of random numbers and random classes with these shares."""
    draw = random.Random(0)
    rows = [[draw.gauss(0, 1) for _ in range(columns)] for _ in range(600)]
    write_table(path, [[*row, draw.choices("abcd"[: len(shares)], shares)[0]] for row in rows])


def told(out: str) -> list[str]:
    """The signs of trouble in what a run printed."""
    return [line for line in out.splitlines() if line.startswith(SIGNS)]


def test_ordinary_runs_show_no_sign_of_trouble(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    iris(tmp_path / "iris.csv")
    table = ["dataset=csv", f"dataset.path={tmp_path / 'iris.csv'}", "dataset.target=kind"]
    assert mcls("train", *QUICK, "trainer.epochs=4") == 0
    assert mcls("train", *QUICK, "trainer.epochs=8", *table) == 0
    assert mcls("train", *QUICK, "trainer.epochs=2", "dataset=mnist", "optimizer=adam", "optimizer.lr=0.001") == 0
    out = capsys.readouterr().out
    assert told(out) == [] and out.count("done in") == 3


def test_a_run_that_learns_nothing(mcls: Main, capsys: Capture) -> None:
    assert mcls("train", *QUICK, "optimizer.lr=1e-9", "trainer.epochs=2") == 0
    sign = told(capsys.readouterr().out)[0]
    assert "no better than guessing one of 4 classes, 1.3863." in sign and "mcls tune lr" in sign


def test_a_run_that_knows_one_class_only(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    noise(tmp_path / "uneven.csv", 1, [0.9, 0.1])
    table = ["dataset=csv", f"dataset.path={tmp_path / 'uneven.csv'}", "dataset.target=kind"]
    assert mcls("train", *QUICK, *table, "model=linear-softmax", "trainer.epochs=3", "optimizer.lr=0.1") == 0
    assert "of val is of one class" in told(capsys.readouterr().out)[0]


def test_a_run_that_overfits(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    noise(tmp_path / "noise.csv", 40, [0.25] * 4)
    table = ["dataset=csv", f"dataset.path={tmp_path / 'noise.csv'}", "dataset.target=kind", "dataset.val_fraction=0.3"]
    line = ["optimizer=adam", "optimizer.lr=0.01", "trainer.epochs=15"]
    assert mcls("train", *QUICK, *table, *line) == 0
    assert "overfitting:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("node", "trouble"),
    [
        ({"freeze": True, "weights": None}, True),
        ({"freeze": "backbone", "weights": None, "unfreeze_epoch": None}, True),
        ({"freeze": "backbone", "weights": None, "unfreeze_epoch": 2}, False),
        ({"freeze": True, "weights": "IMAGENET1K_V1"}, False),
        ({"freeze": "none", "weights": None}, False),
        ({"hidden": [8]}, False),
    ],
)
def test_a_frozen_backbone_with_random_weights(node: dict[str, object], trouble: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(as_yaml({"model": node, "trainer": {}}))
    assert len(signs_of_trouble(RunFolder(tmp_path), {"val": None})) == trouble


def test_what_ended_a_run_before_its_last_epoch(mcls: Main, capsys: Capture) -> None:
    line = ["optimizer.lr=1e-12", "trainer.patience=2", "trainer.epochs=50", "trainer.monitor=accuracy"]
    assert mcls("train", *QUICK, *line) == 0
    assert capsys.readouterr().out.startswith(
        "stopped early after 3 of 50 epochs: val accuracy has not improved for 2 epochs (trainer.patience)\n"
    )
    assert mcls("train", *QUICK, "trainer.max_steps=8", "trainer.epochs=50") == 0
    assert capsys.readouterr().out.startswith("ended in epoch 2 by trainer.max_steps=8\n")
    assert mcls("train", *QUICK, "trainer.epochs=2") == 0
    assert capsys.readouterr().out.startswith("val   ")


def test_a_loss_that_is_not_the_log_loss_is_called_objective(mcls: Main, capsys: Capture) -> None:
    plain = [["loss=ce"], ["loss=nll"]]
    other = [["loss.label_smoothing=0.1"], ["loss=nll", "loss.class_weights=balanced"], ["dataset=mnist", "mix=mixup"]]
    for line in [*plain, *other]:
        assert mcls("train", *QUICK, *line, "trainer.epochs=1") == 0
        heading = next(text for text in capsys.readouterr().err.splitlines() if text.startswith("epoch"))
        assert ("objective" in heading, "train loss" in heading) == (line in other, line in plain)


def record(epoch: int, *splits: str) -> dict[str, object]:
    """What is measured in an epoch."""
    measures = {name: {"loss": 1234.5, "accuracy": 1.0} for name in splits}
    return {"epoch": epoch, "samples_per_second": 1234567.0, **measures}


@pytest.mark.parametrize("splits", [["train"], ["train", "val"], ["train", "val", "test"]])
def test_epochs_are_a_table_of_80_columns(splits: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mcls")
    table = EpochTable(1000, True)
    for epoch in (1, 999, 1000):
        table.add(record(epoch, *splits), 8e6, best=False, last=epoch == 1000)
    heading, *lines = caplog.messages
    assert max(map(len, [heading, *lines])) <= 80
    assert [len(line) for line in lines[:2]] == [len(heading)] * 2
    for column in ("acc", "samples/s", "left"):  # each value ends where its heading does
        if column in heading:
            end = heading.index(column) + len(column)
            assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in lines[:2])


def test_how_long_an_epoch_takes_decides_how_many_lines_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mcls")
    counts = []
    for seconds in (0.01, 0.3, 1.0, 60.0):
        now = iter([seconds * epoch for epoch in range(1000)])
        monkeypatch.setattr("mcls.training.epoch_table.time.monotonic", lambda now=now: next(now))
        table, before = EpochTable(200, True), len(caplog.messages)
        for epoch in range(1, 201):
            table.add(record(epoch, "train"), 1.0, best=False, last=epoch == 200)
        counts.append(len(caplog.messages) - before - 1)
    assert counts == [12, 58, 200, 200]


def in_a_terminal(*arguments: str, columns: int = 80, **environment: str) -> tuple[str, int]:
    """What `.venv/bin/mcls ARGUMENTS` prints in a terminal, and its exit status; it is not on the PATH."""
    import pty
    import termios

    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, columns))
    variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    variables |= {"TERM": "xterm-256color", "PATH": "/usr/bin:/bin", **environment}
    script = str(Path(sys.executable).with_name("mcls"))
    with subprocess.Popen([script, *arguments], stdin=its, stdout=its, stderr=its, env=variables) as process:
        os.close(its)
        text = b""
        with contextlib.suppress(OSError):  # which says on Linux that nobody writes any more
            while part := os.read(ours, 4096):
                text += part
    os.close(ours)
    return text.decode().replace("\r\n", "\n"), process.returncode


@pytest.mark.skipif(sys.platform != "linux", reason="a pseudo-terminal of Linux")
@pytest.mark.parametrize(
    ("environment", "coloured", "cleared"),
    [({}, True, True), ({"NO_COLOR": "1"}, False, True), ({"TERM": "dumb"}, False, False)],
)
def test_colour(environment: dict[str, str], coloured: bool, cleared: bool) -> None:
    script = Path(sys.executable).with_name("mcls")
    text, status = in_a_terminal("trian", columns=1000, **environment)
    assert status == 2
    assert ("\x1b[36mDid you mean" in text, "\x1b[31mmcls: " in text) == (coloured, coloured)
    assert ("\r\x1b[K" in text) == cleared
    plain = re.sub(r"\x1b\[\d*[mK]|\r", "", text)
    assert plain.startswith(f"mcls: trian: no such command. Did you mean {script} train? There are train, ")


@pytest.mark.skipif(sys.platform != "linux", reason="a pseudo-terminal of Linux")
def test_progress_is_shown_and_cleared_in_a_terminal(tmp_path: Path) -> None:
    """The first word comes before torch is there; nothing of it is left at the end."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text("{}")
    text, status = in_a_terminal("evaluate", str(tmp_path / "run"))
    assert status == 5
    first, *others = text.split("\r\x1b[K")[1:]
    assert first.startswith("reading /") and first.endswith(" ...") and len(first) < 80
    assert all(part == "" or part.endswith("\n") for part in others)
