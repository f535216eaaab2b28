"""`launcher=parallel`: the jobs of a sweep in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mcls.errors import MachineError, RequestError
from mcls.sweep.executors import Parallel, shares
from mcls.system.signals import StopRequest

Main = Callable[..., int]
LINE = ("train", "-m", "trainer.figures=false", "trainer.log_every_steps=1")
BEGUN = 60.0  # seconds until a job trains, on a busy machine


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """result.json of each job, by its number."""
    found = {path.parent.name.split("_")[0]: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return dict(sorted(found.items()))


def begin(folder: Path, *keys: str, epochs: int = 100000) -> subprocess.Popen[str]:
    """A sweep of three long jobs, two at a time, in outputs/sweeps/s; returns when both train."""
    line = [*LINE, f"trainer.epochs={epochs}", "seed=0,1,2", "launcher=parallel", "launcher.jobs=2", "sweep.name=s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mcls", *line, *keys],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + BEGUN
    sweep = folder / "outputs" / "sweeps" / "s"
    while time.monotonic() < deadline and process.poll() is None:
        if all((sweep / f"{job}_seed={job}" / "metrics.jsonl").exists() for job in (0, 1)):
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1])


def workers(folder: Path) -> list[int]:
    """Process numbers of those that hold a run of the sweep."""
    locks = (folder / "outputs" / "sweeps" / "s").glob("*/lock")
    return [int(lock.read_text().split()[1]) for lock in locks]


def gone(numbers: list[int]) -> bool:
    """Whether none of these processes is left 10 s from now."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{number}").exists() for number in numbers):
            return True
        time.sleep(0.05)
    return False


def test_jobs_in_processes_are_those_of_one_process(mcls: Main, tmp_path: Path, capsys: Any) -> None:
    keys = ("trainer.epochs=2", "optimizer.lr=0.1,0.01,1e30,0.2")
    assert mcls(*LINE, *keys, "sweep.name=here") == 1
    inline = results(tmp_path / "outputs" / "sweeps" / "here")
    err = capsys.readouterr().err
    heads = [line for line in err.splitlines() if line.startswith("job ")]
    assert heads == [
        f"job {number}: optimizer.lr={rate}" for number, rate in enumerate(("0.1", "0.01", "1e+30", "0.2"))
    ]
    assert err.count("\ndevice ") == 4 and err.count("\ntest  ") == 1  # the run that is opened is not described again
    assert mcls(*LINE, *keys, "sweep.name=there", "launcher=parallel", "launcher.jobs=2") == 1
    err = capsys.readouterr().err
    there = tmp_path / "outputs" / "sweeps" / "there"
    parallel = results(there)
    assert [job.get("weights_sha256") for job in inline.values()] == [
        job.get("weights_sha256") for job in parallel.values()
    ]
    assert parallel["2"]["status"] == "failed" and parallel["2"]["reason"] == inline["2"]["reason"]
    assert "\njob 2 (optimizer.lr=1e+30): failed: step" in err and "4 of 4 jobs done" in err
    assert "\n\njob" not in err and err.count("\njob ") == 4 and "\ndevice " not in err
    assert "\n  2/2  " in (there / "logs" / "0.txt").read_text() and "\n  2/2  " not in err.split("the test set")[0]
    assert "launcher" not in (there / "0_optimizer.lr=0.1" / "config.yaml").read_text()
    assert mcls("resume", "outputs/sweeps/there", "launcher=parallel", "launcher.jobs=2") == 1
    assert {number: job.get("weights_sha256") for number, job in results(there).items()} == {
        number: job.get("weights_sha256") for number, job in parallel.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_sweep_ends_every_job_saved(number: int, tmp_path: Path) -> None:
    process = begin(tmp_path)
    children = workers(tmp_path)
    assert len(children) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert gone(children)
    found = results(tmp_path / "outputs" / "sweeps" / "s")
    assert [job["status"] for job in found.values()] == ["stopped", "stopped"]
    if number != signal.SIGKILL:
        assert err.splitlines()[-1].endswith("mcls resume outputs/sweeps/s launcher=parallel launcher.jobs=2")


@pytest.mark.slow
def test_a_killed_process_is_one_failed_job(mcls: Main, tmp_path: Path) -> None:
    process = begin(tmp_path, epochs=1000)
    os.kill(workers(tmp_path)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1, err
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    found = results(sweep)
    assert sorted(job["status"] for job in found.values()) == ["failed", "finished", "finished"]
    (reason,) = [job["reason"] for job in found.values() if job["status"] == "failed"]
    assert reason.startswith("its process was ended by SIGKILL")
    assert mcls("resume", "outputs/sweeps/s", "launcher=parallel", "launcher.jobs=2") == 0
    found = results(sweep)
    assert [job["status"] for job in found.values()] == ["finished"] * 3
    rows = (sweep / "sweep.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["jobs", "0 1 2"] and ",finished," in rows[1]


def test_each_process_has_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {"device": "auto", "threads": None, "trainer": {"devices": 1}}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert shares("auto", config) == (4, ["4", "5", "6", "7"], 1)
    assert shares(2, {**config, "trainer": {"devices": 2}}) == (2, ["4", "5", "6", "7"], 2)
    with pytest.raises(MachineError, match="more GPUs than the 4"):
        shares(3, {**config, "trainer": {"devices": 2}})
    with pytest.raises(RequestError, match="several jobs at a time"):
        shares(2, {**config, "device": "cuda:1"})
    assert shares(3, {**config, "device": "cpu"}) == (3, [], 0)


def test_processes_wait_for_jobs_and_end_with_the_executor(tmp_path: Path) -> None:
    from mcls.sweep.task import Task

    with StopRequest(exits=False) as stop:
        runs = Parallel(2, tmp_path / "logs", ["0", "1"], 1, stop)
        for number in (0, 1):
            runs.submit(Task(number, tmp_path / str(number), [], "", "", None, {}, []))
        assert sorted(worker.gpus[0] for worker in runs.busy) == ["0", "1"] and not runs.free_gpus
        processes = [worker.process for worker in runs.busy]
        ended = [*runs.wait()]
        while runs.running():
            ended += runs.wait()
        assert sorted(number for number, _ in ended) == [0, 1] and all("config.yaml" in why for _, why in ended)
        assert all(process.poll() is None for process in processes)
        runs.close()
        assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2  # by themselves


WAITING = """
import sys
from pathlib import Path
from mcls.sweep.executors import Parallel
from mcls.sweep.task import Task
from mcls.system.signals import StopRequest
runs = Parallel(2, Path("logs"), [], 1, StopRequest())
for number in (0, 1):
    runs.submit(Task(number, Path(str(number)), [], "", "", None, {}, []))
while runs.running():
    runs.wait()
print(*(worker.process.pid for worker in runs.idle), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_processes_that_wait_for_jobs_end_when_the_sweep_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    waiting = [int(word) for word in parent.stdout.readline().split()]
    assert len(waiting) == 2 and all(Path(f"/proc/{number}").exists() for number in waiting)
    parent.kill()
    parent.communicate()
    assert gone(waiting)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            ["-m", "launcher=parallel", "launcher.jobs=0", "seed=0,1"],
            "launcher.jobs: must be int > 0 or auto, got 0",
        ),
        (
            ["launcher=parallel"],
            "launcher: needs a key with several values. Use mcls train -m launcher=parallel seed=0,1,2, or",
        ),
        (["-m", "launcher=inline,parallel", "seed=0,1"], "a sweep has one launcher"),
        (["-m", "launcher=paralel", "seed=0,1"], "Did you mean parallel?"),
        (["-m", "launcher=parallel", "device=cuda:0", "seed=0,1"], "would be used by several jobs at a time"),
    ],
)
def test_what_cannot_be_launched(keys: list[str], said: str, mcls: Main, tmp_path: Path, capsys: Any) -> None:
    assert mcls("train", *keys) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_search_draws_the_same_in_processes_and_when_it_goes_on(mcls: Main, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    keys = ("search=random", "optimizer.lr=interval(0.01,0.1)", "trainer.epochs=1")

    def drawn(name: str) -> list[str]:
        plan = json.loads((tmp_path / "outputs" / "sweeps" / name / "sweep.json").read_text())
        return [job[-1] for job in plan["jobs"]]

    assert mcls(*LINE, *keys, "search.trials=4", "sweep.name=whole") == 0
    assert mcls(*LINE, *keys, "search.trials=2", "sweep.name=broken") == 0
    assert mcls(*LINE, *keys, "search.trials=4", "sweep.name=broken") == 0
    assert drawn("broken") == drawn("whole")
    assert mcls(*LINE, *keys, "search.trials=4", "sweep.name=p", "launcher=parallel", "launcher.jobs=2") == 0
    assert drawn("p") == drawn("whole")
