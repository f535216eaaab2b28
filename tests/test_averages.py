"""Averaged weights, accumulated gradients, limits of a training, and flips at test time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcls.errors import Stopped
from mcls.inference.evaluate import logits_of, rebuild_dataset
from mcls.inference.load import load_run
from mcls.runs import checkpoint
from mcls.runs.folder import RunFolder
from mcls.training.average import WeightAverage
from mcls.training.trainer import Trainer

Main = Callable[..., int]
QUICK = ("trainer.figures=false", "trainer.epochs=3", "trainer.batch_size=64")
IMAGES = (*QUICK, "dataset=mnist", "dataset.val_fraction=0.2", "model=small-resnet", "model.width=4")


def result_of(run: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "result.json").read_text())
    return found


def weights_of(run: str, name: str = "best.pt", key: str = "model") -> dict[str, Tensor]:
    found: dict[str, Tensor] = checkpoint.load_checkpoint(Path(run) / name)[key]
    return found


def test_the_average_equals_one_by_hand() -> None:
    """Batch norm's statistics are averaged as the weights are; its count of batches is the model's own."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, 0.9)
    by_hand = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(200):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        model(torch.randn(5, 3))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            floats = tensor.is_floating_point()
            by_hand[name] = decay * by_hand[name] + (1 - decay) * tensor if floats else tensor.clone()
    torch.testing.assert_close(average.weights, by_hand)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(dict(model.state_dict()), average.weights, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("val_fraction", [0, 0.2])
def test_the_average_is_what_is_measured_selected_and_loaded(val_fraction: float, mcls: Main, tmp_path: Path) -> None:
    keys = (*IMAGES, "trainer.ema=0.9", f"dataset.val_fraction={val_fraction}", "trainer.evaluate_test_each_epoch=true")
    assert mcls("train", *keys, "hydra.run.dir=run") == 0
    folder, result = RunFolder(tmp_path / "run"), result_of("run")
    line = [json.loads(line) for line in folder.metrics.read_text().splitlines()][result["best_epoch"] - 1]
    assert line["test"]["loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)
    average, model = weights_of("run", "last.pt", "average"), weights_of("run", "last.pt")
    assert any(not torch.equal(average[name], model[name]) for name in model)
    last = load_run(folder, "last").model.state_dict()
    assert all(torch.equal(last[name], average[name]) for name in average)
    if not val_fraction:
        assert checkpoint.weights_digest(average) == result["weights_sha256"]


PASSES = (
    ("trainer.ema=0.99",),
    ("trainer.accumulate=3", "trainer.batch_size=24"),
    ("trainer.drop_last=true", "trainer.ema=0.9", "trainer.accumulate=2", "trainer.batch_size=32"),
    ("trainer.overfit_batches=2",),
)


@pytest.mark.parametrize("keys", PASSES, ids=lambda keys: keys[0].split("=")[0])
@pytest.mark.parametrize("step", [2, 7])
def test_a_run_that_was_stopped_is_the_whole_run(
    keys: tuple[str, ...], step: int, mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*IMAGES, "trainer.epochs=5", *keys)
    assert mcls("train", *keys, "hydra.run.dir=whole") == 0

    def pause(trainer: Trainer) -> None:
        trainer.checkpoint()
        raise Stopped(f"stopped at step {trainer.progress.step}", 15)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "pause_due", lambda self: self.progress.step == step)
        patch.setattr(Trainer, "pause", pause)
        assert mcls("train", *keys, "hydra.run.dir=run") == 143
    assert mcls("resume", "run") == 0
    assert result_of("run")["weights_sha256"] == result_of("whole")["weights_sha256"]
    assert result_of("run")["test"] == result_of("whole")["test"]


@pytest.mark.parametrize("more", [(), ("loss.class_weights=[1,2,3,4]", "loss.label_smoothing=0.1", "loss=nll")])
@pytest.mark.parametrize("batch_size", [16, 20])  # of 720 samples: a last step with as many pieces, or with fewer
def test_accumulated_batches_equal_a_larger_one(more: tuple[str, ...], batch_size: int, mcls: Main) -> None:
    keys = ("train", "trainer.figures=false", "trainer.epochs=2", "model.hidden_units=[32]", *more)
    few = (f"trainer.batch_size={batch_size}", "trainer.accumulate=7", "trainer.log_every_steps=1")
    assert mcls(*keys, *few, "hydra.run.dir=few") == 0
    assert mcls(*keys, f"trainer.batch_size={7 * batch_size}", "hydra.run.dir=large") == 0
    few_weights, large = weights_of("few"), weights_of("large")
    torch.testing.assert_close(few_weights, large, rtol=0, atol=1e-6)
    assert result_of("few")["steps"] == result_of("large")["steps"] == 2 * -(-720 // (7 * batch_size))
    lines = [
        [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()] for run in ("few", "large")
    ]
    for one, other in zip(*lines, strict=True):
        assert one["train"] == pytest.approx(other["train"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("loss.class_weights=[1,2,3,4]",)])
def test_two_processes_accumulate_and_average_as_one(more: tuple[str, ...], tmp_path: Path) -> None:
    keys = ("trainer.figures=false", "device=cpu", "trainer.epochs=3", "trainer.batch_size=31", "trainer.accumulate=3")
    for devices in (1, 2):
        lines = (
            *keys,
            "trainer.ema=0.9",
            "trainer.max_steps=20",
            f"trainer.devices={devices}",
            f"hydra.run.dir={devices}",
        )
        command = [sys.executable, "-m", "mcls", "train", *lines, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    torch.testing.assert_close(weights_of("1"), weights_of("2"), rtol=1e-4, atol=1e-6)
    assert result_of("1")["ended_by"] == result_of("2")["ended_by"] == "trainer.max_steps"


def test_the_last_smaller_batch_is_left_out(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """720 samples are 11 batches of 64, and 16 more."""
    assert mcls("train", *QUICK, "trainer.drop_last=true", "hydra.run.dir=run") == 0
    assert result_of("run")["steps"] == 3 * 11
    assert mcls("train", *QUICK, "trainer.drop_last=true", "trainer.accumulate=12") == 2
    told = "mcls: trainer.drop_last: a step takes 768 samples, and train has 720. Set it to false.\n"
    assert capsys.readouterr().err.endswith(told)


def test_a_model_learns_the_batches_that_it_overfits_to(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    keys = (
        "dataset=mnist",
        "trainer.overfit_batches=2",
        "trainer.batch_size=8",
        "trainer.epochs=60",
        "optimizer.lr=0.01",
    )
    assert mcls("train", *QUICK, *keys, "hydra.run.dir=run") == 0
    assert "trainer.overfit_batches: trains on 16 of 270 training samples" in capsys.readouterr().err
    line = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert result_of("run")["steps"] == 120 and line["train"]["accuracy"] == 1


@pytest.mark.parametrize(("steps", "epochs"), [(5, 1), (12, 1), (17, 2)])  # of 12 steps an epoch
@pytest.mark.parametrize(("val_fraction", "batch_size"), [(0, 67), (0.1, 60)])
def test_a_run_ends_regularly_after_so_many_steps_and_goes_on_as_if_it_had_not(
    steps: int, epochs: int, val_fraction: float, batch_size: int, mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (f"dataset.val_fraction={val_fraction}", f"trainer.batch_size={batch_size}")
    keys = ("train", *QUICK, *data, "trainer.ema=0.9")
    assert mcls(*keys, f"trainer.max_steps={steps}", "hydra.run.dir=run") == 0
    result = result_of("run")
    assert (result["status"], result["ended_by"]) == ("finished", "trainer.max_steps")
    assert (result["steps"], result["epochs"]) == (steps, epochs)
    assert checkpoint.weights_digest(weights_of("run")) == result["weights_sha256"]
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [*range(1, epochs + 1)] and lines[-1]["step"] == steps
    capsys.readouterr()
    assert mcls("resume", "run") == 0
    told = f"already finished: trainer.max_steps ended it in epoch {epochs}; for more: mcls resume run"
    assert capsys.readouterr().out == f"{told} trainer.max_steps={2 * steps}\n"
    assert mcls("resume", "run", f"trainer.max_steps={steps + 3}") == 0
    assert result_of("run")["steps"] == steps + 3
    assert mcls("resume", "run", "trainer.max_steps=null") == 0
    assert mcls(*keys, "hydra.run.dir=whole") == 0
    assert result_of("run")["weights_sha256"] == result_of("whole")["weights_sha256"]
    assert result_of("run")["ended_by"] == "trainer.epochs"


def test_a_run_ends_after_its_minutes(mcls: Main) -> None:
    keys = ("train", *QUICK, "trainer.epochs=20")
    assert mcls(*keys, "trainer.max_minutes=0.0001", "hydra.run.dir=run") == 0
    result = result_of("run")
    assert result["ended_by"] == "trainer.max_minutes" and 0 < result["steps"] < 240
    assert mcls("resume", "run", "trainer.max_minutes=null") == 0
    assert mcls(*keys, "hydra.run.dir=whole") == 0
    assert result_of("run")["weights_sha256"] == result_of("whole")["weights_sha256"]


def test_a_run_killed_while_it_measures_at_its_limit_ends_as_it_would_have(
    mcls: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("train", *QUICK, "trainer.max_steps=17")
    assert mcls(*keys, "hydra.run.dir=whole") == 0
    end_epoch = Trainer.end_epoch

    def die(trainer: Trainer, loaders: Any) -> None:
        if trainer.progress.step == 17:
            raise MemoryError
        end_epoch(trainer, loaders)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", die)
        assert mcls(*keys, "hydra.run.dir=run") == 4
    assert mcls("resume", "run") == 0
    one, other = (
        {**result_of(run), "total_seconds": 0, "seconds": 0, "samples_per_second": 0} for run in ("run", "whole")
    )
    assert one == {**other, "test_openings": one["test_openings"]}


def test_the_schedule_ends_with_the_steps(mcls: Main) -> None:
    keys = ("train", *QUICK, "trainer.max_steps=18", "schedule=cosine", "schedule.end_factor=0")
    assert mcls(*keys, "hydra.run.dir=run") == 0
    line = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["lr"] < 0.01 * 0.05


def test_flips_at_test_time_average_the_logits(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", *IMAGES, "evaluate.tta=flip", "hydra.run.dir=run") == 0
    folder = RunFolder(tmp_path / "run")
    flipped, plain = load_run(folder), load_run(folder, tta="none")
    split = rebuild_dataset(plain, download=False).open_test()
    logits = logits_of(flipped, split)
    inputs = plain.normalise(split.inputs[:])
    with torch.inference_mode():
        by_hand = (plain.model(inputs) + plain.model(inputs.flip(-1))) / 2
    torch.testing.assert_close(logits, by_hand, rtol=0, atol=1e-5)
    accuracy = (by_hand.argmax(1) == split.targets).double().mean().item()
    assert result_of("run")["test"]["accuracy"] == pytest.approx(accuracy)
    assert mcls("evaluate", "run") == 0
    assert "test-time augmentation: flip" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]
    assert (found["tta"], found["accuracy"]) == ("flip", pytest.approx(accuracy))
    assert mcls("evaluate", "run", "--tta", "none") == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]
    assert "tta" not in found and found["loss"] != pytest.approx(result_of("run")["test"]["loss"], abs=1e-9)


def test_flips_are_of_images(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", *QUICK, "evaluate.tta=flip") == 2
    told = "flip requires images, but this data set has samples of shape 2. Omit it.\n"
    assert capsys.readouterr().err.endswith(f"mcls: evaluate.tta: {told}")
    assert mcls("train", *QUICK, "hydra.run.dir=run") == 0
    assert mcls("evaluate", "run", "--tta", "flip") == 2
    assert capsys.readouterr().err.endswith(f"mcls: --tta: {told}")
