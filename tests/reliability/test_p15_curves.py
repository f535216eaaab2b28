"""P15: after any number of kills TensorBoard and metrics.jsonl show each step once, in order, as the whole run's."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kills import kill_until_done
from steps import TRAIN, curves, epochs, only_run

pytestmark = pytest.mark.full
Run = Callable[..., Any]
# checkpoints are rarer than records: what was recorded after the last one is recorded again
RARE = (*TRAIN, "trainer.checkpoint_every_steps=5", "trainer.epochs=4")


def in_order(folder: Path) -> bool:
    """Whether every curve has each step once, rising."""
    steps = [[step for step, _ in curve] for curve in curves(folder).values()]
    lines = [line["epoch"] for line in epochs(folder)]
    return all(curve == sorted(set(curve)) for curve in steps) and lines == list(range(1, len(lines) + 1))


def test_each_step_once(
    start: Run, mcls: Run, tmp_path: Path, size: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert mcls(*RARE, cwd=whole).status == 0
    one = only_run(whole)
    assert one is not None
    draw, kills, runs = random.Random(15), 0, 0
    while kills < size(8, 50):
        root = tmp_path / str(runs)
        root.mkdir()
        kills += kill_until_done(start, root, draw, 0.5, {}, RARE)
        runs += 1
        folder = only_run(root)
        assert folder is not None
        assert in_order(folder)
        assert curves(folder) == curves(one)
        assert epochs(folder) == epochs(one)
    count(f"{kills} kills in {runs} runs: every curve whole, each step once")


def test_control_curves_that_only_grow(mcls: Run, tmp_path: Path) -> None:
    child = mcls(*RARE, setup=[["forget_nothing"], ["die_before", "mcls.training.optim.LRScheduler.set", 14]])
    assert child.status == -9
    folder = only_run(tmp_path)
    assert folder is not None
    assert mcls("resume", str(folder), setup=[["forget_nothing"]]).status == 0
    assert not in_order(folder)
