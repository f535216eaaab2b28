"""A batch that takes too much memory: what fits is named, or computed in pieces, as `trainer.accumulate` does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcls.models import MLP
from mcls.runs import checkpoint

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
KEYS = ("trainer.batch_size=64", "trainer.epochs=2", "trainer.figures=false", "model.hidden_units=[8]")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which no more than 20 samples can be trained on at a time."""
    plain = MLP.forward

    def forward(self: MLP, inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and len(inputs) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        found: Tensor = plain(self, inputs)
        return found

    monkeypatch.setattr(MLP, "forward", forward)


def result_of(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "result.json").read_text())
    return found


@pytest.mark.usefixtures("little_memory")
def test_the_batch_that_fits_is_named_and_fits(mcls: Main, capsys: Capture) -> None:
    assert mcls("train", *KEYS, "hydra.run.dir=run") == 4
    told = "trainer.batch_size: 64 samples take more memory than cpu has, 16 fit. Set trainer.batch_size=16, or "
    assert f"mcls: {told}trainer.oom=accumulate for the same steps in pieces of that size.\n" in capsys.readouterr().err
    assert mcls("train", *KEYS, "trainer.batch_size=16") == 0


def test_in_pieces_it_is_accumulated_gradients(mcls: Main, request: pytest.FixtureRequest, capsys: Capture) -> None:
    """The same weights as those of trainer.accumulate=4 with a quarter of the batch, bit for bit; said once."""
    assert mcls("train", *KEYS, "trainer.batch_size=16", "trainer.accumulate=4", "hydra.run.dir=asked") == 0
    request.getfixturevalue("little_memory")
    capsys.readouterr()
    assert mcls("train", *KEYS, "trainer.oom=accumulate", "hydra.run.dir=forced") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memory")]
    assert said == ["memory  64 samples take more memory than cpu has, 16 fit: each batch is computed in 4 pieces"]
    asked, forced = result_of("asked"), result_of("forced")
    assert asked["weights_sha256"] == forced["weights_sha256"] and (asked["steps"], forced["pieces"]) == (
        forced["steps"],
        4,
    )
    assert "pieces" not in asked


@pytest.mark.usefixtures("little_memory")
def test_a_resumed_run_goes_on_in_pieces(mcls: Main) -> None:
    keys = (*KEYS, "trainer.oom=accumulate", "trainer.max_steps=7", "schedule=constant")
    assert mcls("train", *KEYS, "trainer.oom=accumulate", "schedule=constant", "hydra.run.dir=constant") == 0
    assert mcls("train", *keys, "hydra.run.dir=halted") == 0
    assert checkpoint.load_checkpoint(Path("halted/last.pt"))["progress"]["pieces"] == 4
    assert mcls("resume", "halted", "trainer.max_steps=1000") == 0
    assert result_of("halted")["weights_sha256"] == result_of("constant")["weights_sha256"]


@pytest.mark.usefixtures("little_memory")
def test_where_nothing_fits_it_is_as_before(mcls: Main, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def backward(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("mcls.training.trainer.Trainer.backward", backward)
    assert mcls("train", *KEYS, "trainer.oom=accumulate") == 4
    assert capsys.readouterr().err.endswith(
        "mcls: not enough memory: CUDA out of memory. Use less data or a smaller batch.\n"
    )
    assert mcls("train", *KEYS, "trainer.oom=accumulate", "trainer.devices=2") == 2
    told = "trainer.oom: accumulate is for one process, got trainer.devices=2. Set trainer.accumulate."
    assert capsys.readouterr().err == f"mcls: {told}\n"
