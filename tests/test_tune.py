"""`mcls tune lr`: the range test trains as the trainer does, leaves no run, and suggests a rate that trains."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from mcls.config.compose import checker
from mcls.errors import RunError
from mcls.training.rate_test import MEMORY, RateTest, range_test, read_curve
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
BLOBS = ["model.hidden_units=[8]", "dataset.n_samples=400", "trainer.batch_size=64"]


def curve_of(*overrides: str, low: float = 1e-4, high: float = 10.0, steps: int = 60) -> RateTest:
    with checker(None) as check:
        config = check.check(list(overrides), False).config
    return range_test(config, low, high, steps)


def test_the_command_line_it_suggests_trains(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    """The other overrides stay, an old rate goes; there is a curve and no run folder."""
    assert mcls("tune", "lr", "optimizer=adam", *BLOBS, "optimizer.lr=5", "--steps", "80") == 0
    *_, curve, suggested = capsys.readouterr().out.splitlines()
    assert curve.split() == ["curve", "outputs/blobs-mlp/tune-lr.png"]
    assert [path.name for path in (tmp_path / "outputs").rglob("*") if path.is_file()] == ["tune-lr.png"]
    words = shlex.split(suggested.partition("  ")[2])
    assert words[:-1] == ["mcls", "train", "optimizer=adam", *BLOBS] and words[-1].startswith("optimizer.lr=")
    assert mcls(*words[1:], "trainer.epochs=15", "hydra.run.dir=run") == 0
    assert json.loads(Path("run/result.json").read_text())["test"]["accuracy"] > 0.8


def test_at_one_rate_it_is_the_training_itself(tmp_path: Path, data_root: Path) -> None:
    """Limits that hardly differ: the same losses as a run's with that rate, from epoch to epoch."""
    keys = ["optimizer.lr=0.05", *BLOBS, "trainer.log_every_steps=1"]
    found = curve_of(*keys, low=0.05, high=0.05 * (1 + 1e-12), steps=12)
    run = train(tmp_path / "run", data_root, *keys, "trainer.epochs=3", "schedule=constant")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    average, expected = 0.0, []
    for step, event in enumerate(events.Scalars("train/loss_step"), start=1):
        average = MEMORY * average + (1 - MEMORY) * event.value
        expected.append(average / (1 - MEMORY**step))
    assert len(expected) >= 12 and found.losses == pytest.approx(expected[:12], rel=1e-5)


def test_it_ends_when_the_loss_bursts_and_the_rate_is_below() -> None:
    found = curve_of(*BLOBS, "optimizer.momentum=0", high=1e4, steps=200)
    assert len(found.rates) < 200 and found.suggested < found.lowest < found.rates[-1] < 1e4
    assert found.losses[-1] >= 3 * min(found.losses)


def test_limits_whose_quotient_is_no_float() -> None:
    found = curve_of(*BLOBS, low=1e-300, high=1e38, steps=100)
    assert found.rates[0] == 1e-300 and 0 < found.suggested < found.rates[-1] < 1e38
    quotients = [second / first for first, second in zip(found.rates, found.rates[1:], strict=False)]
    assert quotients == pytest.approx([10 ** (338 / 99)] * len(quotients))


def test_factors_between_learning_rates_stay() -> None:
    found, other = (curve_of(*BLOBS, f"optimizer.head_lr_factor={factor}") for factor in (1, 4))
    assert found.rates[:10] == other.rates[:10] and found.losses[0] == other.losses[0]
    assert found.losses[10] != other.losses[10]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["what"], 2, "what: must be lr, got 'what'. See mcls tune --help."),
        (["lr", "--from", "1", "--to", "0.1"], 2, "--from: must be below --to, 0.1, got 1."),
        (["lr", "--from", "0"], 2, "--from: must be a number above 0, 1e38 at most, got '0'. See mcls tune --help."),
        (["lr", "--to", "1e39"], 2, "--to: must be a number above 0, 1e38 at most, got '1e39'. See mcls tune --help."),
        (
            ["lr", "seed=1,2", "hydra.mode=MULTIRUN"],
            2,
            "hydra.mode: mcls tune lr makes no sweep. Give each key one value.",
        ),
        (
            ["lr", "trainer.devices=2"],
            2,
            "trainer.devices: mcls tune lr tests in one process. Set it to 1; the rate is the same.",
        ),
        (["lr", "--steps", "1"], 1, "tune lr: no rate from 1e-06 to 1e-06 lowers the training loss"),
    ],
)
def test_what_it_refuses(mcls: Main, capsys: Capture, words: list[str], status: int, message: str) -> None:
    assert mcls("tune", *words) == status
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"mcls: {message}")
    assert not Path("outputs").exists()


def test_losses_that_are_not_finite() -> None:
    nan = float("nan")
    assert read_curve([0.1, 0.2, 0.4], [2.0, 1.0, nan]).suggested == 0.067
    with pytest.raises(RunError, match="lowers the training loss"):
        read_curve([0.1, 0.2], [nan, nan])
