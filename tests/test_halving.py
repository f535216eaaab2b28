"""`search=halving`: all settings for a few epochs, the best of them for more."""

import csv
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcls.errors import RunError, Stopped
from mcls.runs.tracking import RunLogger
from mcls.sweep import task
from mcls.training import run

Main = Callable[..., int]
SPACE = (
    "dataset.n_samples=300",
    "trainer.epochs=9",
    "trainer.figures=false",
    "optimizer.lr=1e-5,1e-4,1e-3,0.01,0.1,0.3",
)
HALVING = ("train", "-m", "search=halving", *SPACE)
ENDS = (1, 3, 9)


def results(folder: Path) -> list[dict[str, Any]]:
    """result.json of each job, in the order of their numbers."""
    files = sorted(folder.glob("*/result.json"), key=lambda path: int(path.parent.name.split("_")[0]))
    return [json.loads(path.read_text()) for path in files]


def curves(folder: Path) -> list[list[float]]:
    """The val accuracy of each job, from epoch to epoch."""
    files = sorted(folder.glob("*/metrics.jsonl"), key=lambda path: int(path.parent.name.split("_")[0]))
    return [[json.loads(line)["val"]["accuracy"] for line in path.read_text().splitlines()] for path in files]


def ended(folder: Path) -> list[tuple[int, str, str]]:
    """How each job ended."""
    return [(job["epochs"], job["ended_by"], job["weights_sha256"]) for job in results(folder)]


def swept(root: Path, *line: str) -> Path:
    """The folder of a sweep in `root`."""
    from mcls.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main([*line, "sweep.name=s"]) == 0
    return root / "outputs" / "sweeps" / "s"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same jobs, all trained to their end, in one go."""
    return swept(tmp_path_factory.mktemp("whole"), "train", "-m", *SPACE, "sweep.test=none")


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep, in one go."""
    return swept(tmp_path_factory.mktemp("halved"), *HALVING)


def expected(whole: Path) -> list[int]:
    """The epochs that each job should have, by the curves of the jobs that were trained to their end."""
    values, going = curves(whole), list(range(6))
    epochs = [ENDS[0]] * 6
    for end, after, size in zip(ENDS, ENDS[1:], (2, 1), strict=False):
        going = sorted(going, key=lambda job: (-max(values[job][:end]), job))[:size]
        for job in going:
            epochs[job] = after
    return epochs


def test_the_best_go_on_and_are_as_if_never_stopped(halved: Path, whole: Path) -> None:
    found, reference = results(halved), results(whole)
    assert [job["epochs"] for job in found] == expected(whole)
    assert sorted(job["epochs"] for job in found) == [1, 1, 1, 1, 3, 9]
    for job, other in zip(found, reference, strict=True):
        last = job["epochs"] == 9
        assert job["ended_by"] == ("trainer.epochs" if last else "search.pruner")
        assert (job["weights_sha256"] == other["weights_sha256"]) or not last
        assert (job["test"] is not None) is last
    for curve, longer in zip(curves(halved), curves(whole), strict=True):
        assert curve == longer[: len(curve)]


def test_what_does_not_go_on_is_a_row_with_its_epochs(halved: Path) -> None:
    header, *rows = [line.split(",") for line in (halved / "sweep.csv").read_text().splitlines()]
    epochs, status = header.index("epochs"), header.index("status")
    assert [row[status] for row in rows] == ["finished", *["pruned"] * 5]
    assert sorted(row[epochs] for row in rows) == ["1", "1", "1", "1", "3", "9"]
    assert "search" not in (halved / "sweep.md").read_text().split("again:")[1]


def test_called_again_it_trains_nothing(
    halved: Path, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(halved, tmp_path / "outputs" / "sweeps" / "s")
    before = ended(halved)
    assert mcls(*HALVING, "sweep.name=s") == 0
    assert mcls("resume", "outputs/sweeps/s") == 0
    assert " 1/9  " not in capsys.readouterr().err
    assert ended(tmp_path / "outputs" / "sweeps" / "s") == before
    assert mcls(*HALVING, "sweep.name=s", "search.keep=0.5") == 2
    assert "already holds another sweep" in capsys.readouterr().err


def test_a_job_that_did_not_go_on_can_be_trained_to_its_end(
    halved: Path, whole: Path, mcls: Main, tmp_path: Path
) -> None:
    folder = shutil.copytree(halved, tmp_path / "outputs" / "sweeps" / "s")
    number = next(index for index, job in enumerate(results(folder)) if job["epochs"] == 1)
    assert mcls("resume", str(next(folder.glob(f"{number}_*")))) == 0
    assert results(folder)[number]["weights_sha256"] == results(whole)[number]["weights_sha256"]
    assert mcls("resume", "outputs/sweeps/s") == 0
    assert [job["epochs"] for job in results(folder)].count(9) == 2


@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ("after", 8),
        pytest.param("before", 7, marks=pytest.mark.slow),
        pytest.param("after", 3, marks=pytest.mark.slow),
    ],
)
def test_stopped_anywhere_it_ends_as_if_it_was_not(
    place: str, calls: int, halved: Path, mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = {"before": (task, "make_folder"), "after": (run, "train_in_processes")}[place]
    inner, count = getattr(owner, name), [0]

    def stopping(*arguments: Any) -> Any:
        count[0] += 1
        found = inner(*arguments)
        if count[0] == calls:
            raise Stopped("stopped", signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping)
        assert mcls(*HALVING, "sweep.name=s") == 128 + signal.SIGTERM
    assert mcls("resume", "outputs/sweeps/s") == 0
    assert ended(tmp_path / "outputs" / "sweeps" / "s") == ended(halved)


@pytest.mark.slow
def test_a_job_that_fails_in_a_later_rung_goes_on_in_it(
    halved: Path, mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, recorded = (*HALVING, "sweep.name=s", "trainer.checkpoint_every_seconds=0"), RunLogger.epoch
    folder = tmp_path / "outputs" / "sweeps" / "s"

    def failing(self: RunLogger, record: dict[str, Any]) -> None:
        recorded(self, record)
        if record["epoch"] == 6:
            raise RunError("the power is out")

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "epoch", failing)
        assert mcls(*command) == 1
    assert [job.get("reason") for job in results(folder)].count("the power is out") == 1
    assert mcls(*command) == 0
    assert ended(folder) == ended(halved)


def test_seeds_go_on_together(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line: tuple[str, ...] = (
        "train",
        "-m",
        "search=halving",
        "search.rungs=2",
        "search.keep=0.5",
        "dataset.n_samples=300",
    )
    line += ("trainer.epochs=2", "trainer.figures=false", "optimizer.lr=1e-5,0.1", "seed=0,1", "sweep.name=s")
    assert mcls(*line) == 0
    folder = tmp_path / "outputs" / "sweeps" / "s"
    assert [job["epochs"] for job in results(folder)] == [1, 1, 2, 2]
    assert "4 of 4 jobs of this rung done" in capsys.readouterr().err
    assert mcls("runs", str(folder), "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["n"], row["status"]) for row in rows] == [("2", "finished"), ("2", "pruned")]
    for row, other in zip(rows, listed, strict=True):
        assert (int(row["n"]), row["status"]) == (other["n"], other["status"])
        assert row["val accuracy"] == f"{other['values']['val/accuracy']:.4f}"
        assert row["val interval"] == other["values"]["val/interval"]


@pytest.mark.slow
def test_in_processes_it_is_the_same(halved: Path, mcls: Main, tmp_path: Path) -> None:
    assert mcls(*HALVING, "sweep.name=s", "launcher=parallel", "launcher.jobs=2") == 0
    assert ended(tmp_path / "outputs" / "sweeps" / "s") == ended(halved)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["trainer.epochs=3"], "search.rungs: 3 rungs with search.keep=0.333 would end after 0, 1, 3 epochs. Lower"),
        (["search.keep=1"], "search.keep: must be float > 0 < 1, got 1"),
        (["search.rungs=1"], "search.rungs: must be int > 1 <= 10, got 1"),
        (["optimizer.lr=interval(0.1,1)"], "optimizer.lr=interval(0.1,1): needs a search, such as search=tpe."),
        (["dataset.val_fraction=0"], "search=halving: searches on val, never on test"),
        (["search.trials=3"], "search.trials: no such key of search=halving."),
        (["search.rung=2", "trainer.epochs=3"], "search.rung: no such key. Did you mean search.rungs?"),
        (["search.rungs=5", "trainer.epoch=90"], "trainer.epoch: no such key. Did you mean trainer.epochs?"),
    ],
)
def test_what_cannot_be_halved(
    lines: list[str], told: str, mcls: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mcls(*HALVING, *lines) == 2
    err = capsys.readouterr().err
    assert err.startswith("mcls: ") and err.count("\n") == 1 and told in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [1.5, -1, 1e200])
def test_settings_that_no_command_can_have(
    keep: float, halved: Path, mcls: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(halved, tmp_path / "s")
    plan = json.loads((folder / "sweep.json").read_text())
    plan["search"]["settings"]["keep"] = keep
    (folder / "sweep.json").write_text(json.dumps(plan))
    capsys.readouterr()
    assert mcls("resume", "s") == 5
    assert "sweep.json: damaged, search.rungs or search.keep is out of range." in capsys.readouterr().err
