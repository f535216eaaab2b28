"""`launcher=stacked`: runs that are trained as one are those of one after the other."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mcls.config.compose import checker
from mcls.data.loader import Loader
from mcls.runs import checkpoint
from mcls.runs.folder import RunFolder
from mcls.sweep.stacked import why_single
from mcls.sweep.task import Task
from mcls.training.run import make_trainer
from mcls.training.setup import build_components
from mcls.training.stack import Member, fit_stacked, layers_of, obstacle
from mcls.training.state import NullWriter
from mcls.training.trainer import Trainer

Main = Callable[..., int]
LINE = ("train", "-m", "trainer.figures=false", "trainer.epochs=17")  # of six steps each, on blobs
STACKED = (*LINE, "launcher=stacked")


def close(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Assert that two nested states hold the same up to rounding."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, dict):
            close(value, second[key])
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-5)
        elif isinstance(value, float):
            assert second[key] == pytest.approx(value, rel=1e-5, abs=1e-5)


def trainer_of(config: dict[str, Any]) -> tuple[Trainer, Any, list[dict[str, Any]]]:
    """A trainer, its components, and where its last checkpoint goes."""
    parts, saved = build_components(config), []
    return make_trainer(parts, NullWriter(), lambda state, _: saved.append(state), int), parts, saved


@pytest.mark.parametrize(
    "keys",
    [
        ["optimizer.lr={r}e-2", "optimizer.momentum=0.{r}", "seed=0"],
        ["optimizer.lr={r}e-2", "seed={r}", "model=linear-softmax", "trainer.class_balanced_sampling=true"],
        ["optimizer.nesterov=true", "optimizer.weight_decay={r}e-3", "seed={h}", "loss.label_smoothing=0.{r}"],
        [
            "optimizer=adam",
            "model=linear-softmax",
            "optimizer.lr={r}e-3",
            "optimizer.weight_decay={h}e-2",
            "loss=nll",
            "schedule=cosine",
        ],
        [
            "optimizer=adamw",
            "model=linear-softmax",
            "optimizer.lr={r}e-3",
            "optimizer.weight_decay=0.{r}",
            "seed={h}",
            "trainer.patience=5",
        ],
        [
            "model.hidden_units=[7,5,6]",
            "optimizer.lr=0.01",
            "seed={r}",
            "trainer.max_steps=101",
            "trainer.drop_last=true",
            "trainer.batch_size=70",
        ],
    ],
    ids=lambda keys: keys[0].split("=")[0] + keys[0].split("=")[1][:4],
)
def test_a_stack_is_its_runs_one_by_one(keys: list[str], tmp_path: Path) -> None:
    base = ["trainer.epochs=17", "trainer.log_every_steps=5"]
    with checker() as check:
        configs = [
            check.check([*base, *(key.format(r=r, h=r // 2) for key in keys)], False).config for r in range(1, 5)
        ]
    alone, stacked = [], []
    trains: dict[int, Loader] = {}
    for config in configs:
        trainer, parts, _ = trainer_of(config)
        trainer.fit(parts.train, parts.val)
        assert trainer.progress.step > 100 or config["trainer"]["patience"]
        alone.append(trainer)
        trainer, parts, _ = trainer_of(config)
        stacked.append(Member(trainer, trains.setdefault(config["seed"], parts.train), RunFolder(tmp_path)))
    fit_stacked(stacked, parts.val)
    for solo, member in zip(alone, stacked, strict=True):
        assert member.error is None
        first, second = solo.state_dict(), member.trainer.state_dict()
        names = ["model", "optimizer"]
        if config["trainer"]["max_steps"] is None:  # or the epoch that it cuts short is ended later
            names += ["best", "progress"]
        for state in (first, second):
            for key in ("train_seconds", "seconds", "samples_and_seconds"):
                state["progress"].pop(key)
        close({name: first[name] for name in names}, {name: second[name] for name in names})


def test_what_can_be_stacked() -> None:
    assert layers_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    for other in (
        nn.Linear(4, 2),
        nn.Sequential(nn.ReLU()),
        nn.Sequential(nn.Linear(4, 2, bias=False)),
        nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Sequential(nn.Linear(4, 2))),
    ):
        assert layers_of(other) == []


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """result.json of each job, by its number."""
    found = {path.parent.name.split("_")[0]: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return dict(sorted(found.items()))


def test_a_stacked_sweep_leaves_what_one_by_one_leaves(mcls: Main, tmp_path: Path, capsys: Any) -> None:
    keys = ("optimizer.lr=0.1,1e38", "seed=0,1", "trainer.patience=4", "model=linear-softmax")
    assert mcls(*LINE, *keys, "sweep.name=one") == 1
    capsys.readouterr()
    assert mcls(*STACKED, *keys, "sweep.name=all") == 1
    err = capsys.readouterr().err
    assert "stack   jobs 0 1 2 3: 4 runs as one" in err and "job 2 (optimizer.lr=1e+38 seed=0): failed: step " in err
    assert (
        err.count("jobs done") == 1 and "job 3 (optimizer.lr=1e+38 seed=1): failed" in err.split("4 of 4 jobs done")[0]
    )
    one, all_ = (tmp_path / "outputs" / "sweeps" / name for name in ("one", "all"))
    for number, job in results(one).items():
        other = results(all_)[number]
        assert job.keys() == other.keys()
        same = ("status", "ended_by", "epochs", "best_epoch", "steps", "test_openings", "reason", "val_correct")
        assert {key: job.get(key) for key in same} == {key: other.get(key) for key in same}
    for folder in sorted(one.glob("[01]_*")):
        mine, theirs = RunFolder(folder), RunFolder(all_ / folder.name)
        own = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
        assert own == {path.name for path in theirs.path.iterdir() if "tfevents" not in path.name}
        for path, other_path in ((mine.last, theirs.last), (mine.best, theirs.best)):
            states = [checkpoint.load_checkpoint(each) for each in (path, other_path)]
            for state in states:
                state.pop("progress", None)
            close(*states)
            assert abs(path.stat().st_size - other_path.stat().st_size) < 2000
        lines = [[json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (mine, theirs)]
        for record, other in zip(*lines, strict=True):
            close({key: record[key] for key in ("train", "val", "lr")}, {k: other[k] for k in ("train", "val", "lr")})
        text = theirs.log.read_text()
        assert text.count(f"/{len(lines[1])} ") >= 10 and "runs as one" not in text
    assert "launcher" not in (all_ / "0_optimizer.lr=0.1,seed=0" / "config.yaml").read_text()
    tables = [(sweep / "sweep.md").read_text() for sweep in (one, all_)]
    assert tables[0].split("| epochs")[0] == tables[1].split("| epochs")[0]
    assert mcls("resume", str(all_ / "0_optimizer.lr=0.1,seed=0"), "trainer.epochs=30", "trainer.patience=30") == 0


def test_what_cannot_be_stacked_is_trained_one_by_one(mcls: Main, tmp_path: Path, capsys: Any) -> None:
    keys = ("model=mlp,linear-softmax", "trainer.epochs=1", "sweep.test=all")
    assert mcls(*STACKED, *keys, "seed=0,1", "model.dropout=0.5", "sweep.name=s") == 0
    err = capsys.readouterr().err
    assert "jobs 0 1: not stacked, its model is not linear layers" in err
    assert "stack   jobs 2 3: 2 runs as one" in err
    found = results(tmp_path / "outputs" / "sweeps" / "s")
    assert [job["status"] for job in found.values()] == ["finished"] * 4 and all(job["test"] for job in found.values())


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("optimizer=rmsprop", "its optimizer is not plain SGD"),
        ("optimizer.head_lr_factor=2", "its optimizer is not plain SGD"),
        ("loss.class_weights=balanced", "its loss is not cross-entropy"),
        ("model.dropout=0.1", "its model is not linear layers"),
        ("trainer.data_on_device=false", "its data are not kept on the device"),
        ("trainer.ema=0.9", "trainer.ema=0.9"),
        ("precision=fp16", "precision=fp16"),
        ("seed=3", ""),
    ],
)
def test_why_a_run_is_not_stacked(key: str, said: str, tmp_path: Path) -> None:
    with checker() as check:
        config = check.check([key], False).config
    task = Task(0, tmp_path, [], "", "", config, {}, [])
    reason = why_single([task, task]) or obstacle(build_components(config))
    assert reason.startswith(said) and bool(reason) == bool(said)
    assert why_single([task]).startswith(said if "=" in said else "no other job differs from it")


@pytest.mark.slow
@pytest.mark.parametrize("number", [15, 9])
def test_a_stack_that_is_stopped_goes_on(number: int, mcls: Main, tmp_path: Path) -> None:
    keys = ("seed=0,1", "optimizer.lr=0.01,0.02", "trainer.checkpoint_every_seconds=0", "model=linear-softmax")
    line = [*STACKED, *keys, "trainer.epochs=40", "sweep.name=s"]
    process = subprocess.Popen([sys.executable, "-m", "mcls", *line], stderr=subprocess.PIPE, text=True)
    sweep, deadline = tmp_path / "outputs" / "sweeps" / "s", time.monotonic() + 60
    while time.monotonic() < deadline and len([*sweep.glob("*/last.pt")]) < 4:
        time.sleep(0.02)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == (143 if number == 15 else -9)
    if number == 15:
        assert [job["status"] for job in results(sweep).values()] == ["stopped"] * 4
        assert err.splitlines()[-1].endswith("mcls resume outputs/sweeps/s launcher=stacked")
    states = {path.parent.name: checkpoint.load_checkpoint(path) for path in sweep.glob("*/last.pt")}
    assert all(0 < state["progress"]["epoch"] < 40 for state in states.values())
    assert mcls("resume", "outputs/sweeps/s", "launcher=stacked") == 0
    assert [(job["status"], job["epochs"]) for job in results(sweep).values()] == [("finished", 40)] * 4
    assert mcls(*line[:-1], "trainer.checkpoint_every_seconds=60", "sweep.name=one") == 0
    for folder in sweep.glob("[0-3]_*"):
        close(
            *(
                checkpoint.load_checkpoint(RunFolder(sweep.parent / name / folder.name).last)["model"]
                for name in ("one", "s")
            )
        )
