"""P4: the result does not depend on where a run was stopped, on its workers, or on the sweep that it is in."""

import hashlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import QUICK, TRAIN, only_run, outcome, result

from mcls.augmentations import CropFlip
from mcls.data.loader import Loader, Normalise
from mcls.data.types import Split
from mcls.system.distributed import World

pytestmark = pytest.mark.full
Run = Callable[..., Any]
Count = Callable[[str], None]
STREAM = ("trainer.data_on_device=false",)
SIXTY, STEPS = (*TRAIN, "trainer.batch_size=12"), 60  # as many steps, in three epochs
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wholes(server: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The uninterrupted run with no workers, in memory, and with two."""
    found = {}
    for workers in (0, 2):
        root = tmp_path_factory.mktemp(f"workers{workers}")
        child = server.run(*SIXTY, *streaming(workers), cwd=root, MCLS_DATA=str(digits))
        assert child.status == 0, child.stderr
        folder = only_run(root)
        assert folder is not None
        found[workers] = outcome(folder)
    return found


def streaming(workers: int) -> tuple[str, ...]:
    """The keys for that many workers; none means data in memory."""
    return (*STREAM, f"trainer.workers={workers}") if workers else ()


def test_workers_change_nothing(wholes: dict[int, dict[str, Any]]) -> None:
    assert wholes[0] == wholes[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_at_every_step(
    workers: int, wholes: Any, mcls: Run, tmp_path: Path, size: Callable[[int, int], int], count: Count
) -> None:
    """Asked to stop at step n, resumed; once more after three further steps."""
    points = range(1, STEPS, 6) if size(0, 1) == 0 else range(1, STEPS + 1)
    for point in points:
        root = tmp_path / str(point)
        root.mkdir()
        ask = [["signal_before", "mcls.training.optim.LRScheduler.set", point, signal.SIGTERM]]
        child = mcls(*SIXTY, *streaming(workers), cwd=root, setup=ask)
        assert child.status == 143, child.stderr
        folder = only_run(root)
        assert folder is not None and not (folder / "figures").exists()
        again = [["signal_before", "mcls.training.optim.LRScheduler.set", 3, signal.SIGINT]]
        status = mcls("resume", str(folder), cwd=root, setup=again).status
        assert status == (130 if point + 3 <= STEPS else 0)
        child = mcls("resume", str(folder), cwd=root)
        assert child.status == 0, child.stderr
        assert outcome(folder) == wholes[workers]
    count(f"{len(points)} stop points with {workers} workers, equal bit for bit")


def test_control_weights_differ_from_step_to_step(wholes: Any, mcls: Run, tmp_path: Path) -> None:
    """A run with another seed, and one that is shorter, must not be equal, or the comparison sees nothing."""
    for number, key in enumerate(("seed=1", "trainer.epochs=2")):
        root = tmp_path / str(number)
        root.mkdir()
        assert mcls(*SIXTY, key, cwd=root).status == 0
        folder = only_run(root)
        assert folder is not None
        assert outcome(folder)["best"] != wholes[0]["best"]


def test_alone_or_in_a_sweep(mcls: Run, tmp_path: Path, count: Count) -> None:
    keys = ("train", "dataset=blobs", "model.dropout=0.1", "trainer.epochs=2", *QUICK)
    child = mcls(*keys, "-m", "seed=1,2,3", "optimizer.lr=0.1", "hydra.sweep.dir=sweep", "sweep.test=all")
    assert child.status == 0, child.stderr
    for seed, folder in zip((1, 2, 3), sorted((tmp_path / "sweep").glob("?_*")), strict=True):
        root = tmp_path / f"solo{seed}"
        root.mkdir()
        assert mcls(*keys, f"seed={seed}", "optimizer.lr=0.1", cwd=root).status == 0
        alone = only_run(root)
        assert alone is not None
        assert result(alone)["weights_sha256"] == result(folder)["weights_sha256"]
        assert outcome(alone) == outcome(folder)
    count("3 positions in a sweep equal to their solo runs")


def batches(loader: Any, epochs: int) -> Iterator[str]:
    """A digest of every batch."""
    for epoch in range(epochs):
        for inputs, targets in loader.epoch(epoch):
            yield hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()


def test_batches_are_the_same_from_any_place_on() -> None:
    split = Split(torch.randint(256, (90, 3, 8, 8), dtype=torch.uint8), torch.arange(90) % 5)
    serve: dict[str, Any] = {"augment": CropFlip(padding=1, flip=0.5), "seed": 4}
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, CPU)
    whole = list(batches(Loader(split, 32, CPU, normalise, **serve), 2))
    torch.manual_seed(99)
    torch.rand(7)
    assert list(batches(Loader(split, 32, CPU, normalise, **serve), 2)) == whole
    loader = Loader(split, 32, CPU, normalise, **serve)
    late = [hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest() for x, y in loader.epoch(1, first=1)]
    assert late == whole[4:]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_order_is_the_same_for_any_number_of_processes(size: int, count: Count) -> None:
    """What the processes get of each batch is together the batch of one, augmented as it was."""
    split = Split(torch.randint(256, (90, 3, 8, 8), dtype=torch.uint8), torch.arange(90) % 5)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, CPU)
    loader = Loader(split, 32, CPU, normalise, augment=CropFlip(padding=1, flip=0.5), seed=4)
    for epoch in range(2):
        shares = [loader.epoch(epoch, world=World(rank, size)) for rank in range(size)]
        for whole, parts in zip(loader.epoch(epoch), zip(*shares, strict=True), strict=True):
            together = [torch.cat([part[column] for part in parts]) for column in (0, 1)]
            assert all(torch.equal(*pair) for pair in zip(whole, together, strict=True))
    count(f"samples and pixels the same for {size} processes")


def test_two_processes_resume_as_they_were(mcls: Run, tmp_path: Path, count: Count) -> None:
    """Stopped at a step and resumed, in two processes that talk through gloo."""
    whole, keys = tmp_path / "whole", (*TRAIN, "trainer.devices=2", "device=cpu")
    whole.mkdir()
    assert mcls(*keys, cwd=whole).status == 0
    for point in (1, 9, 17):
        root = tmp_path / str(point)
        root.mkdir()
        child = mcls(
            *keys, cwd=root, setup=[["signal_before", "mcls.training.optim.LRScheduler.set", point, signal.SIGTERM]]
        )
        assert child.status == 143, child.stderr
        folder, other = only_run(root), only_run(whole)
        assert folder is not None and other is not None
        assert mcls("resume", str(folder), cwd=root).status == 0
        assert outcome(folder) == outcome(other)
    count("3 stop points of two processes")


def test_control_a_global_generator_is_not() -> None:
    """torch's own shuffling loader, broken off and begun again, serves other batches: the reason for ours."""
    data = torch.utils.data.TensorDataset(torch.arange(90))
    torch.manual_seed(4)
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    first, second = (torch.cat([batch for (batch,) in loader]) for _ in range(2))
    torch.manual_seed(4)
    assert torch.equal(torch.cat([batch for (batch,) in loader]), first)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    next(iter(loader))  # broken off after a batch: what follows is another order than the second epoch's rest
    assert not torch.equal(torch.cat([batch for (batch,) in loader]), first)
