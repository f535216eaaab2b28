"""`search=tpe|random|gp`: jobs that Optuna chooses."""

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

from mcls.errors import Stopped
from mcls.sweep.study import open_study, pruner_of
from mcls.training import run

pytest.importorskip("optuna")

Main = Callable[..., int]
QUICK = ("trainer=debug", "trainer.figures=false", "trainer.epochs=1")
SPACE = ("optimizer.lr=tag(log,interval(0.001,1))", "optimizer=sgd,adam")


def plan_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def hashes(folder: Path) -> list[str]:
    """Of the weights of each job, in the order of their numbers."""
    runs = sorted(folder.glob("*/result.json"), key=lambda path: int(path.parent.name.split("_")[0]))
    return [json.loads(path.read_text())["weights_sha256"] for path in runs]


@pytest.mark.parametrize("kind", ["tpe", "random", "gp"])
def test_jobs_are_sampled_from_the_space(kind: str, mcls: Main, tmp_path: Path) -> None:
    lines = (f"search={kind}", "search.trials=3", *SPACE, "trainer.batch_size=range(16,65,16)", "sweep.name=s")
    assert mcls("train", "-m", *QUICK, *lines) == 0
    folder = tmp_path / "outputs" / "sweeps" / "s"
    plan = plan_of(folder)
    assert len(plan["jobs"]) == len(plan["frozen"]) == len(hashes(folder)) == 3
    for base in plan["bases"]:
        config = base["config"]
        assert 0.001 <= config["optimizer"]["lr"] <= 1 and config["trainer"]["batch_size"] in (16, 32, 48, 64)
        assert base["choices"]["optimizer"] in ("sgd", "adam") and "search" not in config
    assert len({base["config"]["optimizer"]["lr"] for base in plan["bases"]}) == 3
    assert sum(json.loads(path.read_text())["test"] is not None for path in folder.glob("*/result.json")) == 1
    assert (folder / "sweep.md").exists()


def test_the_same_command_with_more_trials_goes_on(mcls: Main, tmp_path: Path) -> None:
    command = ("train", "-m", *QUICK, "search=random", *SPACE, "sweep.name=s")
    folder = tmp_path / "outputs" / "sweeps" / "s"
    assert mcls(*command, "search.trials=2") == 0
    before, jobs = hashes(folder), plan_of(folder)["jobs"]
    assert mcls(*command, "search.trials=4") == 0
    assert hashes(folder)[:2] == before and len(hashes(folder)) == 4
    assert plan_of(folder)["jobs"][:2] == jobs
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = str(folder / "search.journal")
    (study,) = JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file))).get_all_studies()
    assert study.study_name == "mcls"


def test_another_space_is_another_sweep(mcls: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ("train", "-m", *QUICK, "search=random", "search.trials=1", "sweep.name=s")
    assert mcls(*command, "optimizer.lr=interval(0.1,0.2)") == 0
    assert mcls(*command, "optimizer.lr=interval(0.1,0.3)") == 2
    assert "already holds another sweep. Name a new sweep.name." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "status", "told"),
    [
        (["search=tpe"], 2, "search: needs a key with several values."),
        (["search=tpe", "search.trials=2000", "seed=0,1"], 2, "search.trials: 2,000 are more than sweep.max_jobs"),
        (["search=tpe", "optimizer.lr=interval(-1,1)"], 2, "optimizer.lr: must be float > 0, got -1"),
        (["search=tpe", "optimizer.lr=tag(log,interval(1,0.1))"], 2, "the first end must be the smaller"),
        (["search=tpe", "optimizer.lrr=interval(0.1,1)"], 2, "optimizer.lrr: no such key. Did you mean optimizer.lr?"),
        (["optimizer.lr=interval(0.1,1)"], 2, "needs a search, such as search=tpe"),
        (["search=tpee", "seed=0,1"], 2, "search=tpee: no such choice. Did you mean tpe?"),
    ],
)
def test_what_cannot_be_searched(
    lines: list[str], status: int, told: str, mcls: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mcls("train", "-m", *QUICK, *lines) == status
    err = capsys.readouterr().err
    assert err.startswith("mcls: ") and err.count("\n") == 1 and told in err
    assert not list(tmp_path.iterdir())


def test_a_search_without_m(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "search=tpe") == 2
    whole = "mcls train -m search=tpe optimizer.lr=0.01,0.03,0.1"
    told = f"mcls: search: needs a key with several values. Use {whole}, or for one run mcls train.\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("content", ["no JSON\n", '{"op_code": 99}\n', "{}\n"])
def test_a_damaged_journal(content: str, mcls: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ("train", "-m", *QUICK, "search=random", "search.trials=1", "seed=range(0,9)", "sweep.name=s")
    assert mcls(*command) == 0
    (tmp_path / "outputs" / "sweeps" / "s" / "search.journal").write_text(content)
    capsys.readouterr()
    assert mcls("resume", "outputs/sweeps/s") == 5
    assert "search.journal: damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_resumed_a_search_has_every_trial_once(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mcls", "train", "-m", "search=random", "search.trials=5", "device=cpu", *SPACE]
    line += ["trainer.epochs=30", "trainer.figures=false", "sweep.name=s", "trainer.checkpoint_every_seconds=0"]
    folder = tmp_path / "outputs" / "sweeps" / "s"
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(folder.glob("2_*/last.pt")):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    again = [sys.executable, "-m", "mcls", "resume", "outputs/sweeps/s"]
    assert subprocess.run(again, cwd=tmp_path, capture_output=True, timeout=300).returncode == 0
    assert len(hashes(folder)) == len(plan_of(folder)["jobs"]) == 5
    rows = (folder / "sweep.csv").read_text().splitlines()
    assert len(rows) == 6 and sum(",finished," in row for row in rows) == 5


def results_of(folder: Path) -> list[dict[str, Any]]:
    """result.json of each job, in the order of their numbers."""
    runs = sorted(folder.glob("*/result.json"), key=lambda path: int(path.parent.name.split("_")[0]))
    return [json.loads(path.read_text()) for path in runs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruner", "launcher"),
    [("median", ()), ("hyperband", ()), ("median", ("launcher=parallel", "launcher.jobs=2"))],
)
def test_a_pruned_job_is_a_row_with_its_epoch(
    pruner: str, launcher: tuple[str, ...], mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("optimizer.lr=tag(log,interval(0.00001,1))", "trainer.epochs=6", "trainer.figures=false", "search=random")
    command = ("train", "-m", *lines, "search.trials=10")
    assert mcls(*command, f"search.pruner={pruner}", "sweep.name=pruned", *launcher) == 0
    assert mcls(*command, "sweep.name=whole") == 0
    folder, whole = tmp_path / "outputs/sweeps/pruned", results_of(tmp_path / "outputs/sweeps/whole")
    results = results_of(folder)
    pruned = [number for number, result in enumerate(results) if result["ended_by"] == "search.pruner"]
    assert 0 < len(pruned) < 10
    shown = capsys.readouterr().err.split("The best setting")[0]
    assert shown.count("pruned after epoch ") == len(pruned)
    assert all(f"pruned after epoch {results[number]['epochs']}" in shown for number in pruned)
    for number, (result, other) in enumerate(zip(results, whole, strict=True)):
        assert (result["epochs"] < 6) == (number in pruned)
        assert (result["weights_sha256"] == other["weights_sha256"]) or number in pruned
        assert result["test"] is None or number not in pruned
    rows = (folder / "sweep.csv").read_text().splitlines()
    assert [",pruned," in row for row in rows] == [False] * (11 - len(pruned)) + [True] * len(pruned)
    first = next(folder.glob(f"{pruned[0]}_*"))
    assert mcls("resume", str(first)) == 0  # by itself it goes on to its end, as if it had not been pruned
    assert results_of(folder)[pruned[0]]["weights_sha256"] == whole[pruned[0]]["weights_sha256"]


def test_an_unknown_pruner(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "-m", *QUICK, "search=random", *SPACE, "search.pruner=mean") == 2
    assert "search.pruner: must be" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_before_its_result_a_pruned_job_ends_at_the_same_epoch(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("optimizer.lr=tag(log,interval(0.00001,1))", "trainer.epochs=6", "trainer.figures=false", "search=random")
    command = ("train", "-m", *lines, "search.pruner=median", "sweep.test=none")
    assert mcls(*command, "search.trials=10", "sweep.name=whole") == 0
    whole = results_of(tmp_path / "outputs/sweeps/whole")
    first = next(number for number, result in enumerate(whole) if result["ended_by"] == "search.pruner")
    trained = run.train_in_processes

    def stopped(*arguments: Any) -> Any:
        found = trained(*arguments)
        if found[1] == "pruner":
            raise Stopped("stopped", signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(run, "train_in_processes", stopped)
        assert mcls(*command, f"search.trials={first + 1}", "sweep.name=broken") == 128 + signal.SIGTERM
    assert mcls("resume", "outputs/sweeps/broken") == 0
    again = results_of(tmp_path / "outputs/sweeps/broken")
    kept = ("epochs", "ended_by", "weights_sha256")
    assert [[each[key] for key in kept] for each in again] == [
        [each[key] for key in kept] for each in whole[: first + 1]
    ]


def test_epochs_that_are_done_again_prune_where_they_did(tmp_path: Path) -> None:
    settings = {"kind": "random", "seed": 0, "pruner": "median"}
    study = open_study(tmp_path, settings)
    for _ in range(5):
        trial = study.ask()
        for step in range(3):
            trial.report(0.5, step)
        study.tell(trial, 0.5)
    study.ask()
    prune = pruner_of(tmp_path, settings, 5)
    assert [prune(1, 0.9), prune(2, 0.95)] == [False, False]
    assert [prune(1, 0.9), prune(2, 0.95)] == [False, False]
    number = study.ask().number
    for _ in range(2):
        prune = pruner_of(tmp_path, settings, number)
        assert [prune(1, 0.4)] == [True]
