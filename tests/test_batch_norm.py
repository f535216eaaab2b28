"""Batch norm in several processes: `trainer.sync_batchnorm` makes them train as one does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcls.runs import checkpoint
from mcls.system.distributed import SINGLE_PROCESS
from mcls.training.batch_norm import share_statistics

Main = Callable[..., int]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(5), (7, 5)),
        (nn.BatchNorm1d(5, momentum=None), (7, 5, 3)),
        (nn.BatchNorm2d(5, affine=False), (2, 5, 3, 4)),
        (nn.BatchNorm2d(5, track_running_stats=False, eps=0.1), (2, 5, 3, 4)),
    ],
)
def test_the_arithmetic_is_torchs(norm: nn.Module, shape: tuple[int, ...], precision: torch.dtype) -> None:
    """In one process: values, gradients and running statistics, of inputs far from 0; in eval they are torch's."""
    inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 100).to(precision)
    direction = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(precision)
    found: list[list[Tensor | None]] = []
    start = {name: value.clone() for name, value in norm.state_dict().items()}
    for shared in (False, True):
        norm.load_state_dict(start)
        if shared:
            share_statistics(norm, SINGLE_PROCESS)
        given = inputs.clone().requires_grad_()
        norm.zero_grad()  # to None: the results are kept
        norm.train()(norm(given)).mul(direction).sum().backward()
        results = [given.grad, *(weight.grad for weight in norm.parameters()), norm.eval()(inputs)]
        found.append([*results, *(value.clone() for value in norm.state_dict().values())])
    tolerance = {torch.float32: 2e-4, torch.bfloat16: 2e-2}[precision]
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=tolerance)


def trained(mcls: Main, run: Path, *keys: str) -> dict[str, Any]:
    line = ("dataset=mnist", "model=small-resnet", "trainer.max_steps=6", "trainer.figures=false", "device=cpu")
    assert mcls("train", *line, "trainer.batch_size=31", "optimizer.lr=0.01", *keys, f"hydra.run.dir={run}") == 0
    found: dict[str, Any] = checkpoint.load_checkpoint(run / "last.pt")["model"]
    return found


@pytest.mark.slow
def test_two_processes_have_the_statistics_of_one(mcls: Main, tmp_path: Path) -> None:
    """Weights and running statistics, of shards of 15 and 16 samples; without the key they are others."""
    one = trained(mcls, tmp_path / "one", "trainer.sync_batchnorm=true")  # which is nothing to a single process
    two = trained(mcls, tmp_path / "two", "trainer.devices=2", "trainer.sync_batchnorm=true")
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-5)
    shards = trained(mcls, tmp_path / "shards", "trainer.devices=2")
    far = max(float((shards[name].float() - weights.float()).abs().max()) for name, weights in one.items())
    near = max(float((two[name].float() - weights.float()).abs().max()) for name, weights in one.items())
    assert far > 100 * near


def test_whole_batches_alone(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("trainer.devices=2", "trainer.sync_batchnorm=true", "trainer.accumulate=2", "device=cpu")
    assert mcls("train", "dataset=mnist", "model=small-resnet", *keys) == 2
    told = "trainer.sync_batchnorm: true is for whole batches, got trainer.accumulate=2. Set one of them only."
    assert capsys.readouterr().err.splitlines()[-1] == f"mcls: {told}"
