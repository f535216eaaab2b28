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
        (["search=tpe"], 2, "-m: nothing varies."),
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
    assert capsys.readouterr().err == "mcls: search: is for sweeps. Say mcls train -m.\n"


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
