"""P11: runs that begin at once never share a folder, a run in use is not resumed, a dead owner blocks nobody."""

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps import QUICK, TRAIN, only_run, outcome, result

Run = Callable[..., Any]
Count = Callable[[str], None]
TINY = ("train", "trainer.epochs=1", "dataset.n_samples=200", *QUICK)


def test_runs_that_begin_in_the_same_second(
    start: Run, tmp_path: Path, size: Callable[[int, int], int], count: Count
) -> None:
    number = size(20, 100)
    children = [start(*TINY, f"seed={seed}", setup=[["same_second", False]]) for seed in range(number)]
    for child in children:
        assert child.wait(240) == 0, child.stderr
    folders = list(tmp_path.glob("outputs/*/*"))
    assert len(folders) == number
    seeds = {
        line for folder in folders for line in (folder / "config.yaml").read_text().splitlines() if "seed: " in line[:6]
    }
    assert len(seeds) == number
    assert all(result(folder)["status"] == "finished" for folder in folders)
    count(f"{number} starts in one second: {len(folders)} folders")


def test_control_folders_made_as_usual(start: Run, tmp_path: Path) -> None:
    """`exist_ok=True` and a time of one second: they share one, and the lock turns all but one away."""
    children = [start(*TINY, f"seed={seed}", setup=[["same_second", True]]) for seed in range(4)]
    for child in children:
        child.wait()
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1


def stopped(mcls: Run, root: Path, *more: str) -> Path:
    """A run that waits to be resumed."""
    root.mkdir()
    assert (
        mcls(
            *TRAIN, *more, cwd=root, setup=[["signal_before", "mcls.training.optim.LRScheduler.set", 9, signal.SIGTERM]]
        ).status
        == 143
    )
    folder = only_run(root)
    assert folder is not None
    return folder


def test_one_of_two_resumes_wins(
    mcls: Run, start: Run, tmp_path: Path, size: Callable[[int, int], int], count: Count
) -> None:
    number = size(4, 20)
    assert mcls(*TRAIN, cwd=tmp_path).status == 0
    whole = only_run(tmp_path)
    assert whole is not None
    for attempt in range(number):
        folder = stopped(mcls, tmp_path / str(attempt))
        slow = [["sleep_before", "mcls.training.trainer.Trainer.train_epoch", 1, 1.5]]
        children = [start("resume", str(folder), setup=slow) for _ in range(2)]
        statuses = [child.wait() for child in children]
        assert sorted(statuses) == [0, 4], [child.stderr for child in children]
        winner, loser = (children[statuses.index(status)] for status in (0, 4))
        assert loser.stderr.count("\n") == 1
        assert f"{folder}: in use by process {winner.pid} on " in loser.stderr
        assert outcome(folder) == outcome(whole)
    count(f"{number} double resumes: one winner each, its process named")


def free(folder: Path) -> bool:
    """Whether nobody holds the lock of `folder`."""
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_dead_owner_blocks_nobody(start: Run, mcls: Run, tmp_path: Path, count: Count) -> None:
    """Its data-loading processes outlive it by seconds; they must not hold its lock."""
    waits = []
    for attempt in range(3):
        folder = stopped(mcls, tmp_path / str(attempt), "trainer.data_on_device=false", "trainer.workers=2")
        child = start("resume", str(folder), setup=[["sleep_before", "mcls.training.optim.LRScheduler.set", 3, 20]])
        begun = time.monotonic()
        while free(folder) and time.monotonic() < begun + 10:
            time.sleep(0.01)
        time.sleep(1)
        assert not free(folder)
        members = [path for path in Path("/proc").glob("[0-9]*") if session(path) == child.pid]
        assert len(members) >= 3, "the workers are there"
        child.kill()
        begun = time.monotonic()
        while not free(folder):
            assert time.monotonic() < begun + 5
            time.sleep(0.005)
        waits.append(time.monotonic() - begun)
        child.wait()
        with_rest = time.monotonic()
        while any(session(path) == child.pid for path in Path("/proc").glob("[0-9]*")):
            assert time.monotonic() < with_rest + 30
            time.sleep(0.2)
    assert max(waits) < 1
    count(f"a killed owner's lock free within {max(waits):.2f} s")


def session(process: Path) -> int | None:
    """The session of a process that is alive."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[3])


def test_control_a_lock_file_that_is_only_there(tmp_path: Path, mcls: Run) -> None:
    """A lock that is a file's existence would turn this resume away for ever; flock does not."""
    folder = stopped(mcls, tmp_path / "run")
    (folder / "lock").write_text(f"process {os.getpid()} on elsewhere\n")
    assert mcls("resume", str(folder)).status == 0
