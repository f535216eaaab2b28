"""`mcls resume` in this process: what it goes on with, what it refuses, what it says."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcls.errors import Stopped
from mcls.runs import checkpoint
from mcls.sweep.plan import read_sweep
from mcls.training.trainer import Trainer

Main = Callable[..., int]
QUICK = ("trainer.figures=false", "trainer.epochs=3")


def raise_(error: BaseException) -> None:
    raise error


def only(folder: Path) -> Path:
    (path,) = (path.parent for path in folder.rglob("run.json"))
    return path


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_every_opening_of_the_test_set_is_counted_once(mcls: Main, tmp_path: Path) -> None:
    """Three epochs and the end; two more epochs and another end."""
    assert mcls("train", *QUICK, "trainer.evaluate_test_each_epoch=true") == 0
    run = only(tmp_path)
    assert result_of(run)["test_openings"] == 4
    assert mcls("resume", str(run), "trainer.epochs=5") == 0
    assert result_of(run)["test_openings"] == 7


def test_openings_of_a_run_that_failed_are_counted(mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mcls.training.run.evaluate_loader", fail)  # at the end, after three epochs
    assert mcls("train", *QUICK, "trainer.evaluate_test_each_epoch=true") == 4
    assert result_of(only(tmp_path))["test_openings"] == 3 + 1  # the last one is counted before it happens


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve as TensorBoard's own reader has it, but for times."""
    reader = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in reader.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("log_every_steps", [1, 4, 50])  # of 12 steps an epoch
def test_a_stop_before_validation_and_a_kill_after_it_leave_each_point_once(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every_steps: int
) -> None:
    keys = (
        *QUICK,
        "trainer.batch_size=64",
        f"trainer.log_every_steps={log_every_steps}",
        "trainer.checkpoint_every_seconds=1000",
    )
    assert mcls("train", *keys, f"hydra.run.dir={tmp_path / 'whole'}") == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(
            "mcls.training.trainer.Trainer.evaluate", lambda *_: raise_(Stopped("stopped while measuring", 15))
        )
        assert mcls("train", *keys, f"hydra.run.dir={run}") == 143
    with monkeypatch.context() as patch:
        train_epoch = Trainer.train_epoch
        patch.setattr(
            "mcls.training.trainer.Trainer.train_epoch",
            lambda trainer, train: raise_(MemoryError()) if trainer.progress.epoch else train_epoch(trainer, train),
        )
        assert mcls("resume", str(run)) == 4
    assert mcls("resume", str(run)) == 0
    assert curves(run) == curves(tmp_path / "whole")


def test_a_run_that_lost_its_patience_is_not_gone_on_with(
    mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("optimizer.lr=1e-12", "trainer.patience=2", "trainer.figures=false", "trainer.epochs=20")
    assert mcls("train", *lines) == 0
    run = only(tmp_path)
    before = (run / "result.json").read_bytes()
    capsys.readouterr()
    told = "already finished: trainer.patience ran out after 3 of 20 epochs; for more: mcls resume"
    for more in ([], ["trainer.epochs=40"], ["trainer.patience=1"]):
        assert mcls("resume", str(run), more) == 0
        assert capsys.readouterr().out == f"{told} {run} trainer.patience=4\n"
    assert (run / "result.json").read_bytes() == before
    assert mcls("resume", str(run), "trainer.patience=4") == 0
    assert result_of(run)["epochs"] == 5
    assert mcls("resume", str(run), "trainer.patience=null", "trainer.epochs=6") == 0
    assert result_of(run)["epochs"] == 6
    assert json.loads((run / "run.json").read_text())["hyperparameters"]["trainer.epochs"] == 6


MIDDLE = ("trainer.checkpoint_every_steps=1", "trainer.batch_size=80", "trainer.figures=false")


def stopped(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str, epochs: int = 4, step: int = 5
) -> Path:
    """A run of the 720 training samples of blobs, or 800 without val, that a signal stopped at `step`."""
    with monkeypatch.context() as patch:
        patch.setattr("mcls.training.trainer.Trainer.pause_due", lambda self: self.progress.step == step)
        patch.setattr("mcls.training.trainer.Trainer.pause", stop_here)
        assert mcls("train", *MIDDLE, f"trainer.epochs={epochs}", *more) == 143
    return only(tmp_path)


def stop_here(trainer: Any) -> None:
    trainer.checkpoint()
    raise Stopped(f"stopped at step {trainer.progress.step}", 15)


def test_a_stopped_run_can_end_with_the_epochs_that_are_done(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(mcls, tmp_path, monkeypatch, "schedule=cosine", epochs=6, step=33)  # in the fourth
    before = (run / "result.json").read_bytes()
    assert mcls("resume", str(run), "trainer.epochs=2") == 2
    told = "mcls: trainer.epochs: 3 are done, 2 would remove some. Give 3 or more.\n"
    assert capsys.readouterr().err.endswith(told)
    assert (run / "result.json").read_bytes() == before
    assert mcls("resume", str(run), "trainer.epochs=4") == 0
    warned = "the learning rate jumps ahead" in capsys.readouterr().err
    assert warned and result_of(run)["epochs"] == 4


@pytest.mark.parametrize("val_fraction", [0, 0.1])
def test_no_epoch_more_than_those_that_are_done(
    val_fraction: float,
    mcls: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The weights are those of the checkpoint, or of the best epoch; growing again goes on from there."""
    keys = (f"dataset.val_fraction={val_fraction}",)
    run = stopped(mcls, tmp_path, monkeypatch, *keys, step=23)
    done = (run / "metrics.jsonl").read_text().count("\n")
    step = checkpoint.load_checkpoint(run / "last.pt")["progress"]["step"]
    capsys.readouterr()
    assert mcls("resume", str(run), f"trainer.epochs={done}") == 0
    assert ("in the weights too: 3 steps of epoch 3" in capsys.readouterr().err) is (val_fraction == 0)
    result = result_of(run)
    assert (result["status"], result["epochs"], result["steps"]) == ("finished", done, step)
    assert mcls("resume", str(run), "trainer.epochs=4") == 0
    assert mcls("train", *MIDDLE, *keys, "trainer.epochs=4", f"hydra.run.dir={tmp_path / 'whole'}") == 0
    assert result_of(run)["weights_sha256"] == result_of(tmp_path / "whole")["weights_sha256"]


def test_patience_of_a_stopped_run_can_be_changed(mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped(mcls, tmp_path, monkeypatch, "optimizer.lr=1e-12", "trainer.patience=9", epochs=20, step=13)
    assert mcls("resume", str(run), "trainer.patience=2") == 0
    assert result_of(run)["epochs"] == 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("device", "cuda:0", "device: the run was started with cuda, got cpu. Resume it with cuda."),
        ("precision", "bf16", "precision: the run was started with bf16, got fp32. Resume it with bf16."),
        ("channels_last", True, "channels_last: the run was started with True, got False. Resume it with True."),
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
    told = f"mcls: {run}: refused, the data set's classes, shape, statistics or sizes differ.\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize(("schedule", "warns"), [("constant", False), ("cosine", True)])
def test_a_schedule_that_is_stretched_is_told(
    schedule: str, warns: bool, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", *QUICK, f"schedule={schedule}") == 0
    capsys.readouterr()
    assert mcls("resume", str(only(tmp_path)), "trainer.epochs=4") == 0
    assert ("the learning rate goes back" in capsys.readouterr().err) is warns


def test_a_finished_result_survives_data_that_are_gone(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mcls("train", *QUICK, "dataset=mnist", "model=linear-softmax") == 0
    run = only(tmp_path)
    before = (run / "result.json").read_bytes()
    moved = [f"dataset.root={tmp_path / 'none'}", "trainer.epochs=5"]
    assert mcls("resume", str(run), moved) == 4
    assert (run / "result.json").read_bytes() == before


SWEEP = ("train", "-m", "dataset=mnist", "model=linear-softmax", *QUICK, "hydra.sweep.dir=sweep")


def jobs_of(sweep: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sweep.glob("*/result.json")}


def test_finished_jobs_are_left_alone(
    mcls: Main, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the data gone, with the data elsewhere, and by the command that began the sweep."""
    assert mcls(*SWEEP, "seed=1,2") == 0
    before = jobs_of(tmp_path / "sweep")
    (tmp_path / "link").symlink_to(data_root)
    for place in ("none", "link"):
        monkeypatch.setenv("MCLS_DATA", str(tmp_path / place))
        assert mcls("resume", "sweep") == 0
        assert mcls(*SWEEP, "seed=1,2") == 0
        assert jobs_of(tmp_path / "sweep") == before


def test_a_job_goes_on_under_its_own_configuration(mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mcls(*SWEEP, "seed=1,2") == 0
    job = tmp_path / "sweep" / "0_seed=1"
    weights = result_of(job)["weights_sha256"]
    (job / "result.json").unlink()
    monkeypatch.setenv("MCLS_DATA", str(tmp_path / "none"))
    assert mcls("resume", "sweep") == 0
    assert result_of(job)["weights_sha256"] == weights
    (job / "result.json").unlink()
    root = json.loads((job / "run.json").read_text())
    assert "dataset.root" not in str(root["overrides"])
    assert mcls("resume", "sweep", f"dataset.root={tmp_path / 'none'}") == 1
    assert result_of(job)["status"] == "failed"


def test_a_folder_with_another_sweep_is_refused(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls(*SWEEP, "seed=1,2") == 0
    before = jobs_of(tmp_path / "sweep")
    capsys.readouterr()
    assert mcls(*SWEEP, "seed=1,2", "optimizer.lr=0.3") == 2
    told = "mcls: sweep: already holds another sweep. Name a new sweep.name.\n"
    assert capsys.readouterr() == ("", told)
    (tmp_path / "sweep" / "sweep.json").unlink()
    assert mcls(*SWEEP, "seed=1,2", "optimizer.lr=0.3") == 1
    told = "mcls: optimizer.lr: sweep/0_seed=1 holds a run with 0.05, not 0.3. Choose another sweep.name.\n"
    assert capsys.readouterr().err.endswith(told)
    assert jobs_of(tmp_path / "sweep") == before


@pytest.mark.parametrize(
    ("line", "folders"),
    [
        ("seed=shuffle(range(2))", {"0_seed=0", "1_seed=1", "0_seed=1", "1_seed=0"}),
        ("seed=0,1 hydra.sweep.subdir=job-${hydra.job.num}/${model.dropout}", {"job-0", "job-1"}),
    ],
)
def test_the_plan_of_a_sweep_holds_what_was_drawn_and_named(
    line: str, folders: set[str], mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", "-m", *QUICK, "hydra.sweep.dir=sweep", line.split()) == 0
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} <= folders
    results = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("result.json")}
    assert len(results) == 2
    capsys.readouterr()
    assert mcls("resume", "sweep") == 0
    assert capsys.readouterr().err.count("already finished") == 2
    assert {path: path.read_bytes() for path in results} == results


@pytest.mark.parametrize("names", [["../out", "b"], ["/tmp/out", "b"], ["a"], ["", "b"]])
def test_names_of_jobs_that_lead_elsewhere_are_refused(names: list[str], mcls: Main, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    plan = {"command": "mcls train -m seed=0,1", "fixed": [], "jobs": [["seed=0"], ["seed=1"]], "names": names}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(plan))
    assert mcls("resume", "sweep") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


@pytest.mark.parametrize("trainer", [{}, [], {"figures": "yes"}])
def test_a_damaged_configuration_in_a_sweep_is_refused(
    trainer: Any, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", "-m", *QUICK, "seed=0,1", "hydra.sweep.dir=sweep") == 0
    plan = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    plan["bases"][0]["config"]["trainer"] = trainer
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(plan))
    capsys.readouterr()
    assert mcls("resume", "sweep") == 5
    assert "sweep.json: damaged, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "again"),
    [
        ("model.hidden_units=[${trainer.epochs},8]", "mcls resume sweep"),
        ("model.hidden_units=[${oc.select:trainer.epochs},8]", "mcls resume sweep"),
    ],
)
def test_the_command_that_a_sweep_prints_is_taken(
    line: str, again: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("train", "-m", *QUICK, "hydra.sweep.dir=sweep", "optimizer.lr=0.01,1e30", line)
    assert mcls(*lines) == 1
    said = capsys.readouterr().err.splitlines()[-1].partition("Again: ")[2]
    assert said.startswith(again)
    assert mcls(shlex.split(said)[1:]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"Again: {said}")


def test_values_are_read_by_the_grammar_of_train(
    mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", *QUICK, "hydra.run.dir=run") == 0
    assert mcls("resume", "run", "trainer.log_every_steps=1e3", "trainer.epochs=4") == 0
    assert "log_every_steps: 1000\n" in (tmp_path / "run" / "config.yaml").read_text()
    capsys.readouterr()
    for line in ("trainer.epochs=8,9", "~trainer.epochs", "trainer.epochs=a'b"):
        assert mcls("resume", "run", line) == 2
        assert capsys.readouterr().err.startswith(f"mcls: {line}: ")


def test_a_sweep_with_a_package_of_ones_own(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder alone trusts nobody; who resumes it says so again, and where the configuration files are."""
    (tmp_path / "ones_own.py").write_text(
        "from torch import nn\ndef net(input_shape, num_classes):\n    return nn.Linear(*input_shape, num_classes)\n"
    )
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "own.yaml").write_text("_target_: ones_own.net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = ("--config-dir", "conf", "model=own", "trust=[ones_own]", "hydra.sweep.dir=sweep")
    assert mcls("train", "-m", *QUICK, *lines, "seed=1,2") == 0
    whole = {name: json.loads(result)["weights_sha256"] for name, result in jobs_of(tmp_path / "sweep").items()}
    (tmp_path / "sweep" / "0_seed=1" / "result.json").unlink()
    shutil.rmtree(tmp_path / "sweep" / "1_seed=2")
    capsys.readouterr()
    assert mcls("resume", "sweep") == 5
    told = "mcls: sweep/sweep.json: refused, trust=[ones_own] is only for a command line.\n"
    assert capsys.readouterr().err == told
    again = read_sweep(Path("sweep")).resume_command
    assert again == "mcls resume sweep 'trust=[ones_own]'"
    assert mcls(shlex.split(again)[1:]) == 0
    now = {name: json.loads(result)["weights_sha256"] for name, result in jobs_of(tmp_path / "sweep").items()}
    assert now == whole
    run = tmp_path / "sweep" / "1_seed=2"
    assert mcls("resume", str(run), "trust=[ones_own]", "trainer.epochs=4") == 0
    assert result_of(run)["epochs"] == 4


def test_a_resumed_run_keeps_the_batch_size_that_auto_stood_for(mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", *QUICK, "hydra.run.dir=run") == 0
    before = json.loads((tmp_path / "run" / "run.json").read_text())["hyperparameters"]
    assert mcls("resume", "run", "trainer.epochs=4") == 0
    after = json.loads((tmp_path / "run" / "run.json").read_text())["hyperparameters"]
    assert after == {**before, "trainer.epochs": 4} and isinstance(after["trainer.batch_size"], int)


@pytest.mark.parametrize("value", ["''", "-1", "[3]"])
def test_a_damaged_value_is_refused_though_a_change_replaces_it(
    value: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert mcls("train", *QUICK, "trainer.epochs=1", f"hydra.run.dir={run}") == 0
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("  epochs: 1\n", f"  epochs: {value}\n"))
    capsys.readouterr()
    assert mcls("resume", str(run), "trainer.epochs=2") == 5
    assert "config.yaml: refused: trainer.epochs: must be int > 0" in capsys.readouterr().err
