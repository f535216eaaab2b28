"""P13: a number that is not finite stops the run, is named, and never gets into a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steps import TRAIN, finite, only_run, result

Run = Callable[..., Any]
PLACES = ("input", "loss", "gradient", "weight")
KEYS = (*TRAIN, "trainer.checkpoint_every_steps=3", "trainer.log_every_steps=4")


def reaches(name: str, steps: list[int], number: str, mcls: Run, tmp_path: Path) -> None:
    """Plant it, and look at what is kept."""
    for step in steps:
        root = tmp_path / f"{name}{step}"
        root.mkdir()
        child = mcls(
            *KEYS, f"precision={number}", cwd=root, setup=[["plant", name, step, float("inf" if step % 2 else "nan")]]
        )
        assert child.status == 1, (step, child.stderr)
        told = child.stderr.splitlines()[-1]
        assert told.startswith(("mcls: step ", "mcls: epoch ")) and "bug" not in told
        folder = only_run(root)
        assert folder is not None
        assert result(folder)["status"] == "failed"
        assert finite(folder), "it was kept"
        checkpoints = {path.name for path in folder.glob("*.pt")}
        assert step < 4 or "last.pt" in checkpoints


@pytest.mark.parametrize("place", PLACES)
def test_it_is_named_and_not_kept(
    place: str, mcls: Run, tmp_path: Path, size: Any, count: Callable[[str], None]
) -> None:
    steps = [1, 4, 8, 16, 23]
    numbers = ["fp32", "bf16"][: size(1, 2)]
    for number in numbers:
        root = tmp_path / number
        root.mkdir()
        reaches(place, steps, number, mcls, root)
    count(f"{len(steps) * len(numbers)} times in the {place}")


def test_control_a_trainer_that_does_not_look(mcls: Run, tmp_path: Path) -> None:
    child = mcls(*KEYS, setup=[["check_nothing"], ["plant", "weight", 4, float("nan")]])
    folder = only_run(tmp_path)
    assert folder is not None, child.stderr
    assert not finite(folder)


def test_no_plant_no_alarm(mcls: Run, tmp_path: Path) -> None:
    assert mcls(*KEYS, setup=[["plant", "weight", 10_000, float("nan")]]).status == 0
    folder = only_run(tmp_path)
    assert folder is not None and finite(folder)
