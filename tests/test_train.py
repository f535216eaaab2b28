"""`mcls train` from end to end."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.data import get_worker_info

from mcls.config import files
from mcls.data import datasets
from mcls.data.loader import IndexDataset
from mcls.runs import checkpoint
from mcls.runs.folder import read_yaml

Main = Callable[..., int]
QUICK = ["trainer.figures=false", "trainer.epochs=2"]
REPORT = {
    "mcc", "kappa", "auroc", "average_precision",
    "accuracy", "loss", "precision_macro", "recall_macro", "balanced_accuracy", "f1_macro", "ece", "n", "per_class",
    "confusion"
}  # fmt: skip


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("config.yaml"))


def only(folder: Path) -> Path:
    (path,) = runs(folder)
    return path


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events_of(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def assert_finite(folder: Path) -> None:
    for path in folder.rglob("*.pt"):
        for tensor in tensors_in(checkpoint.load_checkpoint(path)):
            assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), path


@pytest.mark.parametrize("dataset", ["blobs", "mnist"])
def test_what_is_in_a_run_folder(dataset: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", f"dataset={dataset}", "trainer.epochs=3", "trainer.batch_size=32", "optimizer.lr=0.02"]
    assert mcls(command) == 0
    out, err = capsys.readouterr()
    run = only(tmp_path)
    assert run.parent.relative_to(tmp_path) == Path("outputs") / f"{dataset}-mlp"
    names = {path.name for path in run.iterdir() if "tfevents" not in path.name}
    projector = {"plugins"} if dataset == "mnist" else set()  # of more than two features
    assert names - {"previous.pt", "lock"} == projector | {
        "config.yaml", "run.json", "metrics.jsonl", "result.json", "best.pt", "last.pt", "figures", "train.log",
        "test_openings.jsonl",
    }  # fmt: skip
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    figures = {
        "curves",
        "confusion",
        "reliability",
        "roc",
        "precision-recall",
        *(("regions",) if dataset == "blobs" else ("predictions", "surest", "embedding")),
    }
    drawn = {path.stem for path in (run / "figures").glob("*.png")}
    assert figures <= drawn <= figures | {"mistakes"}
    assert not [path for path in run.rglob("*") if path.name.endswith(".part")]

    config = read_yaml(run / "config.yaml")
    assert config["trainer"]["batch_size"] == 32 and config["optimizer"]["lr"] == 0.02
    assert config["model"]["_target_"] == "mcls.models.MLP" and "hydra" not in config

    about = json.loads((run / "run.json").read_text())
    assert about["command"] == "mcls " + " ".join(command)
    assert about["overrides"] == command[1:]
    assert about["choices"]["dataset"] == dataset and about["choices"]["optimizer"] == "sgd"
    assert (about["seed"], about["precision"]) == (0, "fp32")
    assert {"mcls", "python", "packages", "commit", "threads"} <= set(about["environment"])

    lines = lines_of(run)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert {"epoch", "step", "train", "val", "lr", "train_seconds", "seconds"} <= set(line)
        assert set(line["train"]) == {"loss", "accuracy"} and set(line["val"]) >= {"loss", "accuracy"}
        assert "test" not in line and line["lr"] == pytest.approx(0.02)
    steps = lines[0]["step"]
    assert [line["step"] for line in lines] == [steps, 2 * steps, 3 * steps]

    result = result_of(run)
    assert (result["status"], result["epochs"], result["steps"]) == ("finished", 3, 3 * steps)
    assert result["test_openings"] == 1 and len(result["weights_sha256"]) == 64
    for split in ("val", "test"):
        found = result[split]
        more = {"top_5"} if dataset == "mnist" else set()
        assert set(found) == REPORT | more | {"interval" if split == "test" else "selected_on_val"}
        low, high = found.get("interval", (0, 1))
        assert 0 <= low <= found["accuracy"] <= high <= 1
        right = sum(row[number] for number, row in enumerate(found["confusion"]))
        assert found["accuracy"] == right / found["n"] and found["n"] == sum(map(sum, found["confusion"]))
        assert len(found["per_class"]) == len(found["confusion"])
    whole = sum(line["samples_per_second"] * line["train_seconds"] for line in lines)
    trained = sum(line["train_seconds"] for line in lines)
    assert result["samples_per_second"] == pytest.approx(whole / trained) and trained < result["seconds"]
    assert f"val   {result['val']['accuracy'] * 100:.2f} % (selected on val) of {result['val']['n']}, best of" in out
    best = max(lines, key=lambda line: (line["val"]["accuracy"], -line["val"]["loss"]))
    assert result["best_epoch"] == best["epoch"]
    assert result["val"]["accuracy"] == best["val"]["accuracy"]

    weights = checkpoint.load_checkpoint(run / "best.pt")["model"]
    assert checkpoint.weights_digest(weights) == result["weights_sha256"]
    last = checkpoint.load_checkpoint(run / "last.pt")
    assert last["progress"]["epoch"] == 3 and {"model", "optimizer", "rng", "data"} <= set(last)
    assert_finite(run)

    assert f"{result['test']['accuracy'] * 100:.2f} %" in out and str(run.relative_to(tmp_path)) in out
    log = (run / "train.log").read_text()
    for text in (log, err):  # a heading, and a line for each epoch
        assert [number for number in range(1, 5) if f" {number}/3  " in text] == [1, 2, 3]
        assert text.count("train loss") == 1
    assert "Traceback" not in err


def test_what_tensorboard_reads(mcls: Main, tmp_path: Path) -> None:
    command = [
        "train",
        "trainer.epochs=3",
        "trainer.log_every_steps=2",
        "trainer.evaluate_test_each_epoch=true",
        "seed=3",
    ]
    assert mcls(command) == 0
    run = only(tmp_path)
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["figures"]
    events = events_of(run)
    scalars = events.Tags()["scalars"]
    wanted = {"lr", "time/samples_per_second"}
    wanted |= {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "accuracy")}
    assert wanted | {"test/f1_macro", "val/f1_macro"} <= set(scalars)
    for tag in scalars:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
    lines, result = lines_of(run), result_of(run)
    for tag in ("train/loss", "val/accuracy", "test/f1_macro"):
        split, name = tag.split("/")
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(line["step"], pytest.approx(line[split][name], rel=1e-6)) for line in lines]
    assert result["test_openings"] == 4
    assert {"test/confusion", "test/reliability", "test/regions", "test/roc", "test/precision-recall"} == set(
        events.Tags()["images"]
    )
    for tag in events.Tags()["images"]:
        (image,) = events.Images(tag)
        assert image.width >= 200 and image.encoded_image_string.startswith(b"\x89PNG")

    plugins = {tag: events.SummaryMetadata(tag).plugin_data for tag in events.Tags()["tensors"]}
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag, data in plugins.items()
        if data.plugin_name == "text"
    }
    assert any("mcls train trainer.epochs=3" in text for text in texts.values())
    assert any("hidden_units" in text for text in texts.values())
    assert any(data.plugin_name == "custom_scalars" for data in plugins.values())


def hparams_of(run: Path) -> dict[str, Any]:
    """What the HPARAMS tab reads: tag to its message."""
    events = events_of(run)
    found = {}
    for tag, content in events.summary_metadata.items():
        if content.plugin_data.plugin_name == "hparams":
            found[tag] = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content)
    return found


def test_the_hparams_tab_is_filled(mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", *QUICK) == 0
    found = hparams_of(only(tmp_path))
    start = next(data.session_start_info for tag, data in found.items() if tag.endswith("session_start_info"))
    end = next(data.session_end_info for tag, data in found.items() if tag.endswith("session_end_info"))
    assert start.hparams["optimizer.lr"].number_value == read_yaml(only(tmp_path) / "config.yaml")["optimizer"]["lr"]
    assert start.hparams["model"].string_value == "mlp"
    assert start.hparams["optimizer.nesterov"].bool_value is False
    assert end.status == 1  # success
    assert re.fullmatch(r"blobs-mlp trainer.epochs=2 \([0-9a-f]{6}\)", start.group_name), start.group_name


def test_hparams_averages_seeds_and_the_text_tab_has_the_job_s_command(mcls: Main, tmp_path: Path) -> None:
    lines = ("trainer.epochs=1", "trainer.figures=false", "note='not compared'")
    assert mcls("train", "-m", *lines, "seed=0,1", "optimizer.lr=0.1,0.2") == 0
    names = []
    for run in runs(tmp_path):
        found = hparams_of(run)
        names += [data.session_start_info.group_name for tag, data in found.items() if tag.endswith("start_info")]
        texts = [t.tensor_proto.string_val[0].decode() for t in events_of(run).Tensors("command/text_summary")]
        rate = read_yaml(run / "config.yaml")["optimizer"]["lr"]
        assert " -m " not in texts[0] and f"optimizer.lr={rate}" in texts[0]
    assert len(names) == 4 and len(set(names)) == 2
    assert {name.rsplit(" (")[0] for name in names} == {
        f"blobs-mlp trainer.epochs=1 optimizer.lr={rate}" for rate in ("0.1", "0.2")
    }


def test_the_same_command_gives_the_same_weights_alone_and_in_a_sweep(mcls: Main, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert mcls("train", *QUICK, "seed=1", f"outputs={folder}") == 0
    assert mcls("train", "-m", *QUICK, "seed=0,1", "outputs=c") == 0
    alone = [result_of(only(tmp_path / folder))["weights_sha256"] for folder in ("a", "b")]
    swept = {read_yaml(run / "config.yaml")["seed"]: result_of(run)["weights_sha256"] for run in runs(tmp_path / "c")}
    assert alone[0] == alone[1] == swept[1] != swept[0]


@pytest.mark.slow
def test_what_is_only_measured_changes_no_weight(mcls: Main, tmp_path: Path) -> None:
    variants = [
        [],
        ["trainer.evaluate_test_each_epoch=true"],
        ["trainer.log_every_steps=1"],
        ["trainer.checkpoint_every_steps=3"],
        ["trainer.checkpoint_every_seconds=0"],
        ["trainer.data_on_device=false"],
        ["trainer.figures=true"],
    ]
    for number, lines in enumerate(variants):
        assert mcls("train", "trainer.figures=false", "trainer.epochs=2", *lines, f"outputs=run{number}") == 0
    digests = {result_of(only(tmp_path / f"run{number}"))["weights_sha256"] for number in range(len(variants))}
    assert len(digests) == 1
    assert (only(tmp_path / "run3") / "previous.pt").is_file()


def test_the_test_set_is_opened_once_at_the_end_and_selects_nothing(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[bool] = []
    read = datasets.read_torchvision

    def watch(name: str, root: str, train: bool, download: bool) -> Any:
        loaded.append(train)
        found = read(name, root, train, download)
        if not train and spoil:  # every label of the test set another one
            found.targets = (found.targets + 1) % 10
        return found

    monkeypatch.setattr(datasets, "read_torchvision", watch)
    for spoil in (False, True):
        assert mcls("train", "dataset=mnist", "optimizer.lr=0.01", *QUICK, f"outputs=run{spoil}") == 0
    assert loaded == [True, False] * 2
    honest, spoiled = (result_of(only(tmp_path / f"run{spoil}")) for spoil in (False, True))
    assert honest["test_openings"] == spoiled["test_openings"] == 1
    assert honest["weights_sha256"] == spoiled["weights_sha256"]
    assert honest["val"] == spoiled["val"] and honest["test"]["accuracy"] != spoiled["test"]["accuracy"]


def test_training_on_all_of_train(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", *QUICK, "dataset.val_fraction=0") == 0
    run = only(tmp_path)
    result = result_of(run)
    assert result["val"] is None and result["best_epoch"] == 2
    assert all("val" not in line for line in lines_of(run))
    last = checkpoint.load_checkpoint(run / "last.pt")["model"]
    assert checkpoint.weights_digest(last) == result["weights_sha256"]
    assert "val " not in capsys.readouterr().out


def test_patience_stops_early(mcls: Main, tmp_path: Path) -> None:
    lines = ["optimizer.lr=1e-12", "trainer.patience=2", "trainer.epochs=50", "trainer.monitor=accuracy"]
    assert mcls("train", *lines, "trainer.figures=false") == 0
    run = only(tmp_path)
    result = result_of(run)
    assert result["epochs"] == len(lines_of(run)) < 10
    assert result["epochs"] == result["best_epoch"] + 2


def test_a_smaller_loss_renews_patience_as_it_renews_the_best(mcls: Main, tmp_path: Path) -> None:
    """Two far clouds: every epoch is right on all of val, and its loss is smaller than the last one's."""
    clouds = ["dataset.centers=2", "dataset.cluster_std=0.01", "trainer.patience=3", "trainer.epochs=12"]
    assert mcls("train", *clouds, "trainer.figures=false") == 0
    lines = lines_of(only(tmp_path))
    first = next(line["epoch"] for line in lines if line["val"]["accuracy"] == 1)
    assert first + 3 < len(lines) == 12
    assert lines[-1]["val"]["loss"] < lines[first - 1]["val"]["loss"]
    assert result_of(only(tmp_path))["best_epoch"] == 12


@pytest.mark.parametrize("epochs", [1, 5])
@pytest.mark.parametrize(
    "lines",
    [[], ["trainer.log_every_steps=1"], ["dataset.val_fraction=0"], ["trainer.checkpoint_every_steps=1"]],
    ids=" ".join,
)
def test_a_loss_that_is_not_finite_stops_the_run(
    epochs: int, lines: list[str], mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", "optimizer.lr=1e30", f"trainer.epochs={epochs}", *lines) == 1
    err = capsys.readouterr().err
    message = err.splitlines()[-1]
    assert message.startswith("mcls: step ") and "last finite loss " in message and "Lower optimizer.lr" in message
    run = only(tmp_path)
    result = result_of(run)
    assert result["status"] == "failed" and message == f"mcls: {result['reason']}"
    assert result["reason"] in (run / "train.log").read_text()
    assert_finite(run)
    ends = [data.session_end_info for tag, data in hparams_of(run).items() if tag.endswith("session_end_info")]
    assert [end.status for end in ends] == [2]  # failure


def test_the_message_names_step_rate_and_last_finite_loss(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "optimizer.lr=1e30", "trainer.log_every_steps=1") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        line.startswith("mcls: step 2: the training loss is ") and ", learning rate 1e+30, last finite loss 1." in line
    )


def test_weights_that_blow_up_in_the_last_step(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The only loss was finite; what the weights became is seen when they are measured."""
    lines = ["optimizer.lr=1e30", "trainer.epochs=1", "trainer.batch_size=full", "dataset.val_fraction=0"]
    assert mcls("train", *lines) == 1
    assert "a bug in mcls" not in capsys.readouterr().err
    assert result_of(only(tmp_path))["status"] == "failed"
    assert mcls("train", *lines[:3], "outputs=val") == 1
    assert "a bug in mcls" not in capsys.readouterr().err


def test_the_folder_that_the_user_names(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", *QUICK, "hydra.run.dir=my/run") == 0
    assert only(tmp_path) == tmp_path / "my" / "run"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "my").rglob("*")}
    capsys.readouterr()
    assert mcls("train", *QUICK, "hydra.run.dir=my/run") == 2
    line = capsys.readouterr().err
    assert line == "mcls: hydra.run.dir: my/run already holds a run. Name a new folder.\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "my").rglob("*")} == before


def test_two_runs_in_one_second_have_two_folders(mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcls.training.start.timestamp", lambda: "now")
    for _ in range(2):
        assert mcls("train", *QUICK) == 0
    assert [run.name for run in runs(tmp_path)] == ["now", "now-2"]


@pytest.mark.parametrize(
    "lines",
    [
        ["precision=bf16"],
        ["trainer.grad_clip_norm=0.01"],
        ["deterministic=true"],
        ["trainer.batch_size=full"],
        ["optimizer=adam", "schedule=one_cycle", "loss=nll", "loss.label_smoothing=0.1"],
        ["schedule=step", "schedule.warmup_fraction=0.2"],
        ["trainer.monitor=loss"],
        ["dataset.n_features=5", "dataset.centers=7"],
    ],
    ids=" ".join,
)
def test_other_ways_to_train(lines: list[str], mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", *QUICK, "trainer.epochs=6", "optimizer.lr=0.02", *lines) == 0
    result = result_of(only(tmp_path))
    assert result["status"] == "finished" and math.isfinite(result["test"]["loss"])
    torch.use_deterministic_algorithms(False)


def test_half_precision_that_overflows_at_first(mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 is for GPUs, but CPUs can do it too; the first scale of the loss, 65,536, is too large for large inputs."""
    monkeypatch.setattr("mcls.training.setup.resolve_precision", lambda *_: "fp16")
    rates = "optimizer.lr=1e-4", "dataset.cluster_std=100", "trainer.epochs=3", "trainer.figures=false"
    poison = [torch.full((size,), 1e30) for size in range(1, 20_000, 7)]
    del poison  # memory that is not zero, for a momentum that nobody writes
    assert mcls("train", *rates, "optimizer.momentum=0.9") == 0
    state = checkpoint.load_checkpoint(only(tmp_path) / "last.pt")
    assert state["scaler"]["scale"] < 65536
    assert state["optimizer"]["param_groups"][0]["fused"] is None
    assert_finite(tmp_path)


def test_clipping_keeps_the_steps_small(mcls: Main, tmp_path: Path) -> None:
    for name, norm in (("free", "null"), ("clipped", "1e-9")):
        assert mcls("train", *QUICK, f"trainer.grad_clip_norm={norm}", f"outputs={name}") == 0
    first = {name: lines_of(only(tmp_path / name))[-1]["train"]["loss"] for name in ("free", "clipped")}
    assert first["clipped"] > 1.2 > first["free"]


def test_a_sweep(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", *QUICK, "-m", "optimizer.lr=0.01,1e30", "seed=0,1") == 1
    out, err = capsys.readouterr()
    (root,) = (tmp_path / "outputs" / "sweeps").iterdir()
    jobs = runs(root)
    assert len(jobs) == 4
    assert all(job.name.split("_")[0].isdigit() and "optimizer.lr=" in job.name and "seed=" in job.name for job in jobs)
    assert sorted(int(job.name.split("_")[0]) for job in jobs) == [0, 1, 2, 3]
    with (root / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["optimizer.lr"], row["jobs"], row["status"]) for row in rows] == [
        ("0.01", "0 1", "finished"),
        ("1e+30", "2 3", "failed"),
    ]
    val = [result_of(job)["val"]["accuracy"] for job in sorted(jobs)[:2]]
    assert (rows[0]["n"], rows[0]["val accuracy"]) == ("2", f"{sum(val) / 2:.4f}")
    assert "job 2: step " in rows[1]["reason"] and "(and 1 more)" in rows[1]["reason"]
    table = (root / "sweep.md").read_text()
    assert table.startswith("| jobs | optimizer.lr | n | val accuracy (selected on) |")
    assert "val accuracy (selected on)" in out and all(row["reason"] in table for row in rows)
    assert err.splitlines()[-1].startswith("mcls: 2 of the sweep's jobs failed")
    assert sum(line.startswith("failed: step ") for line in err.splitlines()) == 2
    assert {result_of(job)["status"] for job in jobs} == {"finished", "failed"}
    assert_finite(root)


def test_a_sweep_that_takes_a_recipes_key_away(mcls: Main, tmp_path: Path) -> None:
    lines = [
        "experiment=blobs-mlp",
        "optimizer=adam,adamw",
        "~optimizer.momentum",
        "hydra.sweep.dir=mine",
        "sweep.test=all",
    ]
    assert mcls("train", "-m", *lines, *QUICK) == 0
    names = ["0_optimizer=adam", "1_optimizer=adamw"]
    assert sorted(run.name for run in runs(tmp_path)) == names
    assert mcls("resume", "mine") == 0
    assert sorted(run.name for run in runs(tmp_path)) == names
    assert "momentum" not in (tmp_path / "mine" / "sweep.csv").read_text()


def test_a_sweep_where_a_job_cannot_be_built(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before job 0."""
    assert mcls("train", *QUICK, "-m", "model=mlp,resnet18,small-resnet", "seed=0,1") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": model=")[0] for line in lines] == [
        "mcls: job 2 (model=resnet18 seed=0)",
        "mcls: job 4 (model=small-resnet seed=0)",
    ]
    assert "requires images" in lines[0] and not list(tmp_path.iterdir())


def test_files_that_are_edited_during_a_sweep_change_nothing_in_it(mcls: Main, tmp_path: Path) -> None:
    """Job 1 has not begun when its optimizer's file changes; the sweep's own command then is another sweep."""
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    file = tmp_path / "conf" / "optimizer" / "mine.yaml"
    file.write_text("defaults: [sgd]\nlr: 0.01\n")
    lines = ("train", *QUICK, "-m", "--config-dir", "conf", "optimizer=mine", "seed=0,1")
    assert mcls(*lines, "sweep.name=whole") == 0
    assert mcls(*lines, "sweep.name=cut") == 0
    job = tmp_path / "outputs" / "sweeps" / "cut" / "1_seed=1"
    shutil.rmtree(job)
    file.write_text("defaults: [sgd]\nlr: 0.5\n")
    assert mcls(*lines, "sweep.name=cut") == 2
    assert mcls("resume", "outputs/sweeps/cut") == 0
    assert yaml.safe_load((job / "config.yaml").read_text())["optimizer"]["lr"] == 0.01
    whole = result_of(tmp_path / "outputs" / "sweeps" / "whole" / "1_seed=1")
    assert result_of(job)["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize("name", ["a/b", "..", "-m?", ""])
def test_a_sweeps_name_that_is_none(name: str, mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", *QUICK, "-m", "seed=0,1", f"sweep.name='{name}'") == 2
    assert capsys.readouterr().err.startswith("mcls: sweep.name: must be the name of a folder, got ")


def test_curves_do_not_depend_on_when_checkpoints_are_written(mcls: Main, tmp_path: Path) -> None:
    """Of steps that are recorded four at a time, with checkpoints at every third one and at none."""
    found = []
    for steps in ("null", "3"):
        lines = [f"trainer.checkpoint_every_steps={steps}", "trainer.log_every_steps=4", f"hydra.run.dir=every_{steps}"]
        assert mcls("train", *QUICK, *lines) == 0
        events = events_of(tmp_path / f"every_{steps}")
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
        found.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert found[0] == found[1]
    assert [step for step, _ in found[0]["train/loss_step"]] == [4, 6, 8, 12]


def test_a_failed_job_of_a_sweep_lets_go_of_its_memory(mcls: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[weakref.ref[torch.nn.Module], list[bool]]] = []

    def fail(*_: object) -> None:
        model = torch.nn.Linear(2, 2)
        kept.append((weakref.ref(model), [there() is None for there, _ in kept]))
        raise RuntimeError(f"a job of {model}")

    monkeypatch.setattr("mcls.training.run.build_components", fail)
    assert mcls("train", "-m", "seed=1,2,3") == 1
    assert [gone for _, gone in kept] == [[], [True], [True, True]]


def test_a_sweep_in_folders_that_the_user_names(mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", *QUICK, "-m", "seed=0,1", "hydra.sweep.dir=mine", "hydra.sweep.subdir=s${seed}") == 0
    assert [str(run.relative_to(tmp_path)) for run in runs(tmp_path)] == ["mine/s0", "mine/s1"]
    assert (tmp_path / "mine" / "sweep.csv").is_file()


def loaded(sweep: Path) -> dict[str, tuple[int, bool]]:
    """How often each job of a sweep has opened the test set, and whether its result.json has what it says."""
    results = {job.name: result_of(job) for job in runs(sweep)}
    return {name: (result["test_openings"], result["test"] is not None) for name, result in results.items()}


SEEDS = ("train", "-m", *QUICK, "dataset.n_samples=300", "hydra.sweep.dir=sweep", "seed=0,1,2")


def test_a_sweep_opens_the_test_set_for_the_best_setting_alone(mcls: Main, tmp_path: Path) -> None:
    """For all its seeds."""
    assert mcls(*SEEDS, "optimizer.lr=0.0001,0.05") == 0
    jobs = runs(tmp_path)
    best = {job for job in jobs if "lr=0.05" in job.name}
    assert loaded(tmp_path) == {job.name: (1, True) if job in best else (0, False) for job in jobs}
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()))
    assert [bool(row["test accuracy"]) for row in rows] == [True, False] and rows[0]["n"] == "3"
    low, high = map(float, rows[0]["test interval"].split(" to "))
    assert low < float(rows[0]["test accuracy"]) < high and not rows[1]["test interval"]
    assert rows[0]["against the best"] == "best" and rows[1]["against the best"].startswith(("worse", "tied"))
    again = next(job for job in best if job.name.endswith("seed=1"))
    alone = [*SEEDS[2:-2], "optimizer.lr=0.05", "seed=1", "hydra.run.dir=alone"]
    assert mcls("train", *alone) == 0
    for key in ("val", "test", "weights_sha256", "test_openings", "steps"):
        assert result_of(again)[key] == result_of(tmp_path / "alone")[key]
    assert result_of(again)["total_seconds"] > result_of(again)["seconds"]
    before = [(job / "result.json").read_bytes() for job in jobs]
    for repeated in (("resume", "sweep"), (*SEEDS, "optimizer.lr=0.0001,0.05")):
        assert mcls(*repeated) == 0
        assert [(job / "result.json").read_bytes() for job in jobs] == before
    assert mcls("resume", "sweep", "sweep.test=all") == 0
    assert loaded(tmp_path / "sweep") == {job.name: (1, True) for job in jobs}


@pytest.mark.parametrize("killed", ["before the test set", "at the test set"])
def test_a_sweep_that_is_killed_after_its_last_job_opens_the_test_set_when_resumed(
    killed: str, mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mcls.sweep.runner.conclude", lambda *_: None)
        assert mcls(*SEEDS[:-1], "optimizer.lr=0.01,0.02,0.05") == 0
    jobs = runs(tmp_path)
    assert loaded(tmp_path) == {job.name: (0, False) for job in jobs}
    best = max(jobs, key=lambda job: result_of(job)["val"]["accuracy"])
    if killed == "at the test set":
        with monkeypatch.context() as patch:
            patch.setattr("mcls.training.restore.save_best", lambda *_: None)
            patch.setattr("mcls.training.run.evaluate_loader", lambda *_: (os.kill(os.getpid(), signal.SIGTERM), 1 / 0))
            assert mcls("resume", "sweep") == 1
        assert result_of(best)["status"] == "failed"
    assert mcls("resume", "sweep") == 0
    times = 2 if killed == "at the test set" else 1
    assert loaded(tmp_path) == {job.name: (times, True) if job == best else (0, False) for job in jobs}


@pytest.mark.parametrize(("which", "wanted"), [("all", [(1, True)] * 2), ("none", [(0, False)] * 2)])
def test_a_sweep_opens_the_test_set_for_every_job_or_none(
    which: str, wanted: list[tuple[int, bool]], mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", "-m", *QUICK, "seed=0,1", f"sweep.test={which}") == 0
    assert list(loaded(tmp_path).values()) == wanted
    job = runs(tmp_path)[0]
    assert mcls("report", str(job)) == 0
    page = (job / "report.html").read_text()
    assert ("test accuracy on" in page, "val accuracy on" in page) == (which == "all", which == "none")
    assert mcls("resume", str(job), "trainer.epochs=4") == 0
    assert ("test  not evaluated" in capsys.readouterr().out) == (which == "none")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["dataset.val_fraction=0"], "sweep.test: the best job is chosen on val, and there is none"),
        (["experiment=blobs-mlp"], "sweep.test: the best job is chosen on val, and there is none"),
        (
            ["trainer.evaluate_test_each_epoch=true"],
            "trainer.evaluate_test_each_epoch: opens test in every job, and sweep.test is best",
        ),
        *(
            (
                ["search=tpe", "dataset.val_fraction=0", line],
                "search=tpe: searches",
            )
            for line in ("sweep.test=all", "sweep.test=none", "sweep.test=best")
        ),
    ],
)
def test_nothing_is_chosen_on_the_test_set(
    lines: list[str], said: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", "-m", *QUICK, "seed=0,1", *lines) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith(f"mcls: {said}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "lines",
    [
        ["trainer.evaluate_test_each_epoch=true"],
        ["dataset=mnist", "dataset.val_fraction=0"],
        ["dataset=csv", "dataset.path=absent.csv", "dataset.target=y", "dataset.val_fraction=0"],
    ],
)
def test_a_sweep_whose_keys_open_test_is_refused_before_torch_is_imported(lines: list[str]) -> None:
    script = "import sys; from mcls.cli import main; sys.exit(main(sys.argv[1:]) + 10 * ('torch' in sys.modules))"
    command = [sys.executable, "-c", script, "train", "-m", "seed=0,1", *lines]
    assert subprocess.run(command, capture_output=True).returncode == 2


def test_a_job_without_val_is_refused_before_the_first_one_starts(mcls: Main, tmp_path: Path, capsys: Any) -> None:
    assert mcls("train", "-m", *QUICK, "dataset.val_fraction=0.1,0") == 2
    said = "job 1 (dataset.val_fraction=0): sweep.test: the best job is chosen on val, and there is none."
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_with_a_val_of_its_own_is_searched_on_it(mcls: Main, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (8, 8), (30 * number, 20 if name == "a" else 200, 0)).save(folder / f"{number}.png")
    lines = ["dataset=image_folder", "dataset.root=pictures", "dataset.size=8", "model=linear-softmax"]
    lines += ["dataset.val_fraction=0", "trainer.batch_size=4", "trainer.epochs=1", "trainer.figures=false"]
    assert mcls("train", "-m", *lines, "optimizer.lr=0.1,0.01") == 0  # two settings
    assert sorted(loaded(tmp_path).values()) == [(0, False), (1, True)]


@pytest.mark.parametrize(
    "lines",
    [
        ["hydra.run.dir=FILE"],
        ["outputs=FILE"],
        ["-m", "seed=0,1", "hydra.sweep.dir=FILE/x"],
        ["-m", "seed=0,1", "outputs=FILE"],
    ],
)
def test_a_folder_that_cannot_be_made(
    lines: list[str], mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").touch()
    assert mcls("train", *QUICK, *lines) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mcls: FILE") and "can't be a folder" in last
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


@pytest.mark.parametrize("name", ["image_folder", "mnist", "cifar10"])
@pytest.mark.parametrize("below", ["", "/x"])
def test_a_file_in_place_of_the_folder_of_the_data(
    name: str, below: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").touch()
    assert mcls("train", f"dataset={name}", f"dataset.root=FILE{below}") == 2
    assert capsys.readouterr().err == "mcls: dataset.root: FILE is a file. Name a folder.\n"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["-m", "seed=3,4", "--cfg", "job"], "seed: 3"),
        (["--cfg", "job", "--multirun", "seed=range(3,5)", "optimizer=adam,sgd"], "seed: 3"),
        (["-m", "seed=3,4", "--info", "defaults"], "optimizer/sgd"),
        (["seed=3", "optimizer=adam", "--hydra-help"], "Hydra"),
        (["-m", "seed=3,4", "--help"], "seed=3"),
    ],
)
def test_what_only_shows_something(
    words: list[str], shown: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = mcls("train", *words)
    except SystemExit as stopped:  # as argparse ends its help
        status = int(stopped.code or 0)
    assert status == 0
    assert shown in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["-m", "seed=0,1"], []])
def test_the_folder_is_never_changed(
    words: list[str], mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", *words, "hydra.job.chdir=true") == 2
    expected = "mcls: hydra.job.chdir: true, but relative paths are those of the folder you are in. Set it to false.\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())


def test_resume_says_where_the_data_were(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + "1,a\n2,b\n" * 20)
    assert mcls("train", *QUICK, "dataset=csv", "dataset.target=y", "dataset.path=t.csv", "hydra.run.dir=run") == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert mcls("resume", "../run", "trainer.epochs=4") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("The run was trained with dataset.path=t.csv; set dataset.path=FILE.")
    assert mcls("resume", "../run", "trainer.epochs=4", "dataset.path=../t.csv") == 0


STRANGE = ["a'b", "a b", "a,b", "a=b", "[a]", "a{b}", 'a"b', "a(b)", "a#b%c:d", "ä", "7", "null"]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_characters_in_folders(name: str, mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", *QUICK, f"hydra.run.dir=run/{name}") == 0
    assert (tmp_path / "run" / name / "result.json").is_file()
    assert mcls("train", "-m", *QUICK, "seed=0,1", f"hydra.sweep.dir={name}") == 0
    assert (tmp_path / name / "1_seed=1" / "result.json").is_file()
    assert mcls("resume", f"{tmp_path}/{name}") == 0


def test_the_home_folder_in_every_path(mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "my home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "t.csv").write_text("x,y\n" + "1,a\n2,b\n" * 20)
    table = ["dataset=csv", "dataset.target=y", "dataset.path=~/t.csv"]
    assert mcls("train", *QUICK[1:], *table, "hydra.run.dir=~/run") == 0
    assert mcls("train", *QUICK[1:], *table, "hydra.run.dir='~/other'", "seed=1", "--config-dir=~") == 0
    assert mcls("train", "-m", *QUICK[1:], *table, "hydra.sweep.dir=~/sweep", "seed=0,1") == 0
    assert mcls("resume", "~/sweep", "dataset.path=~/t.csv") == 0
    assert mcls("evaluate", "~/run", "dataset.path=~/t.csv") == 0
    (home / "new.csv").write_text("x\n1\n")
    assert mcls("predict", "~/run", "~/new.csv", "--output=~/p.csv") == 0
    assert mcls("export", "~/run", "--format=safetensors", "--output=~/m.safetensors") == 0
    assert mcls("report", "~/run", "--output=~/page.html") == 0
    assert mcls("compare", "~/run", "~/other", "--output=~/flips") == 0
    assert mcls("runs", "~") == 0
    assert mcls("data", "check", *table) == 0
    there = {path.name for path in home.iterdir()}
    assert {"run", "other", "sweep", "p.csv", "m.safetensors", "page.html", "flips"} <= there
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


def test_a_sweep_below_a_folder_with_a_strange_name(mcls: Main, tmp_path: Path) -> None:
    name = 'o\'n,e=[i] \\\\l "é"'
    quoted = name.replace("'", "\\'")
    assert mcls("train", "-m", *QUICK, f"outputs='{quoted}'", "seed=0,1") == 0
    assert len(runs(tmp_path / name / "sweeps")) == 2


@pytest.mark.parametrize(
    ("line", "jobs"),
    [
        ("seed=range(0,1000000000)", "1,000,000,000"),
        ("optimizer.lr=range(0.1,1.1,0.00001)", "100,000"),
        ("seed=1,2", "2"),
    ],
)
def test_a_sweep_of_too_many_jobs_is_refused(
    line: str, jobs: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = 1 if jobs == "2" else 1000
    assert mcls("train", "-m", line, f"sweep.max_jobs={limit}") == 2
    wanted = f"mcls: sweep.max_jobs: {limit:,}, and this sweep has {jobs} jobs. List fewer, or raise it.\n"
    assert capsys.readouterr() == ("", wanted)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines", [["seed=range(0,3)"], ["optimizer=glob(*)"], ["model=mlp,linear-softmax", "loss=ce,nll"]]
)
def test_other_sweeps(lines: list[str], mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", "-m", *QUICK, *lines, "optimizer.lr=0.01") == 0
    assert len(runs(tmp_path)) in (3, 4)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_saving(number: int, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mcls", "train", "trainer.epochs=1000000", "trainer.figures=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 500 for path in tmp_path.rglob("metrics.jsonl")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err.splitlines()[-1].startswith("mcls: stopped at step ") and "Traceback" not in err
    run = only(tmp_path)
    state = checkpoint.load_checkpoint(run / "last.pt")
    assert state["progress"]["step"] > 0 and state["model"]
    assert result_of(run)["status"] == "stopped"
    assert checkpoint.load_checkpoint(run / "best.pt")["epoch"] == state["progress"]["best_epoch"]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["epochs"] == 1000000


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_killed_reader_is_one_line_and_the_run_goes_on(
    mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "dataset=mnist",
        "model=linear-softmax",
        "trainer.figures=false",
        "trainer.epochs=2",
        "trainer.batch_size=16",
    )
    streamed = ("trainer.data_on_device=false", "trainer.workers=1", "trainer.checkpoint_every_seconds=0")
    assert mcls("train", *lines, "hydra.run.dir=whole") == 0
    read = IndexDataset.__getitem__

    def killed(rows: IndexDataset, indices: torch.Tensor) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(rows, indices)

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataset, "__getitem__", killed)
        assert mcls("train", *lines, *streamed) == 4
    err = capsys.readouterr().err
    message = err.splitlines()[-1]
    assert message.startswith("mcls: trainer.workers: a process that reads the data ended (DataLoader worker (pid")
    assert message.endswith("lower trainer.workers and continue with mcls resume.") and "Traceback" not in err
    run = only(tmp_path / "outputs")
    assert result_of(run)["status"] == "failed" and f"mcls: {result_of(run)['reason']}" == message
    assert mcls("resume", str(run)) == 0
    assert result_of(run)["weights_sha256"] == result_of(tmp_path / "whole")["weights_sha256"]


def test_a_model_that_does_not_fit_the_data_is_told_before_training(
    mcls: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine" / "model"
    folder.mkdir(parents=True)
    (folder / "squeeze.yaml").write_text("_target_: torchvision.models.squeezenet1_1\n")
    assert mcls("train", "--config-dir", "mine", "model=squeeze", "dataset=mnist") == 2
    message = capsys.readouterr().err
    assert message.startswith(
        "mcls: model: torchvision.models.squeezenet1_1 does not accept samples of shape 1 x 28 x 28: "
    )
    assert message.count("\n") == 1


def test_neither_a_run_nor_a_sweep_goes_through_hydra_main(mcls: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are composed once, by mcls; Hydra's program is for its plugins and its help."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("hydra.main")

    monkeypatch.setattr("hydra.main", refuse)
    assert mcls("train", *QUICK) == 0
    assert mcls("train", "-m", *QUICK, "seed=0,1") == 0


def test_a_run_is_composed_once(mcls: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    inner = hydra_compose

    def counted(name: str, overrides: list[str], **keys: Any) -> Any:
        composed.append(overrides)
        return inner(name, overrides, **keys)

    monkeypatch.setattr(files, "hydra_compose", counted)
    assert mcls("train", *QUICK, "model=linear-softmax", "optimizer.lr=0.1") == 0
    assert len(composed) == 1


def test_environment_variables_of_the_command_line_are_set(mcls: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCLS_TEST", "")
    assert mcls("train", *QUICK, "+hydra.job.env_set.MCLS_TEST=yes") == 0
    assert os.environ["MCLS_TEST"] == "yes"
