"""`mcls train --summary`: the layers of a model, without training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mcls.training.model_summary import HEADER, layer_rows

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def numbers(row: tuple[str, ...]) -> list[int]:
    return [int(cell.replace(",", "")) for cell in row[3:]]


def test_it_is_what_the_layers_are_by_hand() -> None:
    """A convolution, a batch norm and a linear layer used twice; what is frozen is not trained."""
    shared = nn.Linear(4, 4)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 64, 4), shared, shared
    )
    model[0].requires_grad_(False)
    rows = layer_rows(model.eval(), torch.zeros(1, 3, 8, 8))
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "whole model"]
    assert rows[0][1:] == ("Conv2d", "5 x 8 x 8", "140", "0", f"{64 * 5 * 27:,}")
    assert numbers(rows[4]) == [20, 20, 2 * 16]
    assert [sum(column) for column in zip(*map(numbers, rows[:-1]), strict=True)] == numbers(rows[-1])
    assert numbers(rows[-1])[:2] == [sum(weight.numel() for weight in model.parameters()), 10 + 1284 + 20]


def test_attention_is_counted_and_its_shape_told() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    rows = {row[0]: row for row in layer_rows(model.eval(), torch.zeros(1, 5, 8))}
    assert rows["self_attn"][2] == "5 x 8" and torch.backends.mha.get_fastpath_enabled()
    assert numbers(rows["self_attn"])[2] == 5 * 8 * 4 * 8 + 2 * 5 * 5 * 8


def test_it_trains_nothing(mcls: Main, capsys: Capture, tmp_path: Path) -> None:
    assert mcls("train", "--summary", "model.hidden_units=[8]", f"outputs={tmp_path}/outputs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == HEADER[0] and lines[-1].split()[2:] == ["MLP", "4", "60", "60", "48"]
    assert mcls("train", "model.hidden_units=[8],[4]", "-m", "--summary") == 0
    assert "whole model  MLP     4       60" in capsys.readouterr().out
    assert not (tmp_path / "outputs").exists()
    assert mcls("train", "--summary", "optimizer.lr=-1") == 2
