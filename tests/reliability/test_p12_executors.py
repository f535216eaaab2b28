"""P12 for each executor: whatever breaks a sweep off, `mcls resume` leaves the table and the runs of a whole one."""

import csv
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steps import QUICK, outcome, result

Run = Callable[..., Any]
Size = Callable[[int, int], int]
EXECUTORS = {"inline": (), "parallel": ("launcher=parallel", "launcher.jobs=2")}
KEYS = (
    "dataset.n_samples=300",
    "trainer.epochs=8",
    "model.dropout=0.1",
    "trainer.checkpoint_every_steps=1",
    *QUICK,
    "sweep.test=all",
)
# for sweep.test=best, a sweep with a failed job opens the test set of the best of the others
FULL_DISK = 30_000  # bytes that a file may have: more than sweep.json, fewer than a checkpoint
CASES = [
    pytest.param(
        executor, fault, marks=[] if (executor, fault) in (("inline", "parent"), ("parallel", "child")) else full
    )
    for full in [pytest.mark.full]
    for executor in EXECUTORS
    for fault in ("fail", "child", "parent", "SIGTERM", "disk")
    if (executor, fault) != ("inline", "child")
]


@pytest.fixture(scope="module")
def sweep(size: Size) -> tuple[str, ...]:
    """The command: 4 jobs, 12 of them in a full run."""
    return ("train", "-m", "optimizer.lr=0.02,0.1", f"seed=range(1,{1 + size(2, 6)})", "sweep.name=s", *KEYS)


@pytest.fixture(scope="module")
def whole(server: Any, sweep: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert server.run(*sweep, cwd=root).status == 0
    return root / "outputs" / "sweeps" / "s"


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of sweep.csv without their times; none before a job has ended."""
    if not (folder / "sweep.csv").exists():
        return []
    with (folder / "sweep.csv").open() as file:
        return [{key: row[key] for key in row if key != "seconds"} for row in csv.DictReader(file)]


def owners(folder: Path) -> dict[int, Path]:
    """The processes that hold unfinished jobs."""
    found = {}
    for lock in folder.glob("*/lock"):
        if (lock.parent / "metrics.jsonl").exists() and result(lock.parent)["status"] == "running":
            found[int(lock.read_text().split()[1])] = lock.parent
    return found


def wait_until(true: Callable[[], object]) -> None:
    """Until then, a minute at most."""
    begun = time.monotonic()
    while not true() and time.monotonic() < begun + 60:
        time.sleep(0.01)


def disturb(fault: str, child: Any, folder: Path, draw: random.Random) -> None:
    """Let it happen to the sweep that `child` runs in `folder`, in its second job or later."""
    wait_until(lambda: len(list(folder.glob("*/metrics.jsonl"))) > 1)
    time.sleep(draw.uniform(0, 0.3))
    if fault == "child":
        wait_until(lambda: owners(folder))
        os.kill(next(iter(owners(folder))), signal.SIGKILL)
    else:
        workers = owners(folder)
        child.kill(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
        child.status = child.wait()
        wait_until(lambda: not any(Path(f"/proc/{number}").exists() for number in workers))


@pytest.mark.parametrize(("executor", "fault"), CASES)
def test_broken_off_and_resumed_it_has_the_table_of_the_whole(
    executor: str, fault: str, sweep: tuple[str, ...], whole: Path, start: Run, mcls: Run, tmp_path: Path, count: Run
) -> None:
    folder, keys = tmp_path / "outputs" / "sweeps" / "s", EXECUTORS[executor]
    planted = {"fail": [["fail_for_seeds", {"2": "machine"}]], "disk": [["limit_file_size", FULL_DISK]]}.get(fault, [])
    own = {"MCLS_FAULTS": json.dumps(planted)} if fault == "fail" and keys else {}
    child = start(*sweep, *keys, setup=planted, **own)
    if not planted:
        disturb(fault, child, folder, random.Random(executor))
    if not hasattr(child, "status"):
        child.status = child.wait()
    assert child.status == {"parent": -9, "SIGTERM": 143}.get(fault, 1), child.stderr
    assert "Traceback" not in child.stderr
    broken = sum(row["status"].startswith(("finished", "failed")) for row in table(folder))
    if fault in ("fail", "child", "disk"):
        assert f"Again: mcls resume {folder.relative_to(tmp_path)}" in child.stderr
        assert sum("failed" in row["status"] for row in table(folder)) == (1 if fault == "child" else 2)
    again = mcls("resume", str(folder), *keys)
    assert again.status == 0, again.stderr
    assert table(folder) == table(whole)
    for job in whole.glob("*_*/"):
        mine, other = outcome(folder / job.name), outcome(job)
        assert mine["result"] == other["result"] and mine == other
    jobs = len(list(whole.glob("*_*/")))
    count(f"{executor}, {fault}: {broken} rows at first; {jobs} runs and their table equal to the undisturbed sweep's")
