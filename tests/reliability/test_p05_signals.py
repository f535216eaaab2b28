"""P5: SIGINT, SIGTERM and SIGHUP: everything is saved, the way on is said, exit 130, 143 or 129, no child is left."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from steps import QUICK, TRAIN, only_run, outcome, result

pytestmark = pytest.mark.full
Run = Callable[..., Any]
Count = Callable[[str], None]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# phase: the call before which the signal comes, and whether there is something to resume
PHASES = {
    "build": ("mcls.training.setup.resolve_precision", 1, False),
    "first step": ("mcls.training.optim.LRScheduler.set", 1, True),
    "train": ("mcls.training.optim.LRScheduler.set", 11, True),
    "validate": ("mcls.metrics.EvalAccumulator.add", 2, True),
    "save": ("os.fsync", 20, True),
    "between epochs": ("mcls.training.trainer.Trainer.report", 2, True),
    "test": ("mcls.metrics.EvalAccumulator.measure", 4, True),
}
KEYS = (*TRAIN, "trainer.figures=true")
TWO = ("trainer.devices=2", "device=cpu")


@pytest.fixture(scope="module")
def whole(server: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    child = server.run(*KEYS, cwd=root, MCLS_DATA=str(digits))
    assert child.status == 0, child.stderr
    folder = only_run(root)
    assert folder is not None
    return outcome(folder)


def check_end(child: Any, number: int) -> list[str]:
    """The exit status, the two lines at most, and that nobody is left. Returns the lines about the stop."""
    assert child.status == SIGNALS[signal.Signals(number)], child.stderr
    assert child.seconds < 10
    told = [line for line in child.stderr.splitlines() if line.startswith("mcls: ")]
    assert 1 <= len(told) <= 2 and child.stderr.splitlines()[-1] == told[-1]
    assert "Traceback" not in child.stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
    return told


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_every_phase(
    number: signal.Signals, phase: str, whole: Any, mcls: Run, tmp_path: Path, count: Count
) -> None:
    name, call, begun = PHASES[phase]
    child = mcls(*KEYS, setup=[["signal_before", name, call, number]])
    told = check_end(child, number)
    folder = only_run(tmp_path)
    assert (folder is not None) is begun
    if folder is not None:
        assert told[-1].endswith(f"go on with: mcls resume {folder.relative_to(tmp_path)}")
        assert result(folder)["status"] == "stopped"
        child = mcls("resume", str(folder))
        assert child.status == 0, child.stderr
        assert outcome(folder) == whole
    count(f"{number.name} while: {phase}")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_a_sweep(number: signal.Signals, mcls: Run, tmp_path: Path, count: Count) -> None:
    keys = ("train", "-m", "seed=1,2,3", "trainer.epochs=2", "hydra.sweep.dir=sweep", *QUICK)
    child = mcls(*keys, setup=[["signal_before", "mcls.training.optim.LRScheduler.set", 15, number]])
    told = check_end(child, number)
    assert "mcls resume sweep" in told[-1]
    statuses = [result(folder)["status"] for folder in sorted((tmp_path / "sweep").glob("?_*"))]
    assert statuses == ["finished", "stopped"]
    child = mcls("resume", "sweep")
    assert child.status == 0, child.stderr
    statuses = [result(folder)["status"] for folder in sorted((tmp_path / "sweep").glob("?_*"))]
    assert statuses == ["finished"] * 3
    count(f"{number.name} while: sweep")


@pytest.fixture(scope="module")
def whole_of_two(server: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted run of two processes."""
    root = tmp_path_factory.mktemp("two")
    child = server.run(*KEYS, *TWO, cwd=root, MCLS_DATA=str(digits))
    assert child.status == 0, child.stderr
    folder = only_run(root)
    assert folder is not None
    return outcome(folder)


@pytest.mark.parametrize("whom", ["self", "children", "all"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_one_of_two_processes_or_both(
    number: signal.Signals, whom: str, whole_of_two: Any, mcls: Run, tmp_path: Path, count: Count
) -> None:
    child = mcls(*KEYS, *TWO, setup=[["signal_before", "mcls.training.optim.LRScheduler.set", 11, number, whom]])
    check_end(child, number)
    folder = only_run(tmp_path)
    assert folder is not None and result(folder)["status"] == "stopped"
    child = mcls("resume", str(folder))
    assert child.status == 0, child.stderr
    assert outcome(folder) == whole_of_two
    count(f"{number.name} to {whom} of two processes")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_torchrun(number: signal.Signals, digits: Path, mcls: Run, tmp_path: Path, count: Count) -> None:
    """torchrun hands the signal on; what its processes saved goes on without it, to the same weights."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mcls"]
    keys = [*TRAIN[:-3], "device=cpu", "trainer.epochs=150", *QUICK]
    environment = {**os.environ, "MCLS_DATA": str(digits), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*torchrun, *keys], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not any(path.stat().st_size > 5000 for path in tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.05)
        started = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and time.monotonic() - started < 15
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    folder = only_run(tmp_path)
    assert folder is not None and result(folder)["status"] == "stopped", errors
    assert mcls("resume", str(folder)).status == 0
    root = tmp_path / "whole"
    root.mkdir()
    assert mcls(*keys, "trainer.devices=2", cwd=root).status == 0
    whole = only_run(root)
    assert whole is not None
    assert outcome(folder) == outcome(whole)
    count(f"{number.name} to torchrun")


def test_signals_from_outside_at_any_time(
    start: Run, mcls: Run, whole: Any, tmp_path: Path, size: Callable[[int, int], int], count: Count
) -> None:
    draw, stops, attempts = random.Random(5), 0, size(6, 40)
    whole_run = mcls(*KEYS, cwd=tmp_path)
    for attempt in range(attempts):
        root = tmp_path / str(attempt)
        root.mkdir()
        number = draw.choice(list(SIGNALS))
        child = start(*KEYS, cwd=root)
        time.sleep(draw.uniform(0.2, whole_run.seconds))  # by then the tests have handed over to mcls
        child.kill(number)
        child.status = child.wait(15)
        folder = only_run(root)
        if child.status == 0:
            continue
        assert child.status in (SIGNALS[number], -number), child.stderr
        assert "Traceback" not in child.stderr and "bug" not in child.stderr
        stops += 1
        if folder is not None:
            child = mcls("resume", str(folder), cwd=root)
            assert child.status == 0, child.stderr
            assert outcome(folder) == whole
    assert stops >= attempts / 4
    count(f"{stops} signals at random times")


def test_a_second_interrupt_leaves_at_once(start: Run, mcls: Run, whole: Any, tmp_path: Path) -> None:
    slow = [["signal_before", "mcls.training.trainer.Trainer.checkpoint", 5, signal.SIGINT]]
    slow.append(["sleep_before", "mcls.system.files.sync_folder", 20, 30])
    child = start(*KEYS, setup=slow)
    time.sleep(3)
    child.kill(signal.SIGINT)
    assert child.wait(1) == 130
    folder = only_run(tmp_path)
    assert folder is not None
    assert mcls("resume", str(folder)).status == 0
    assert outcome(folder) == whole


def test_nohup_is_kept(tmp_path: Path) -> None:
    """A SIGHUP that the process was started to ignore stays ignored."""
    command = [sys.executable, "-m", "mcls", "train", "trainer.epochs=1", *QUICK]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    ignore = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=ignore, **quiet) as process:
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
    assert process.returncode == 0


def test_workers_are_gone_after_a_stop(mcls: Run, tmp_path: Path) -> None:
    streaming = ("trainer.data_on_device=false", "trainer.workers=2")
    child = mcls(
        *TRAIN, *streaming, setup=[["signal_before", "mcls.training.optim.LRScheduler.set", 11, signal.SIGTERM]]
    )
    check_end(child, signal.SIGTERM)


def test_control_without_the_handlers(mcls: Run, tmp_path: Path) -> None:
    """Python's own way: the process ends where it is, with nothing said and nothing saved."""
    remove = [["no_handlers"], ["signal_before", "mcls.training.optim.LRScheduler.set", 11, signal.SIGTERM]]
    child = mcls(*TRAIN[:-4], *QUICK, setup=remove)
    assert child.status == -15
    assert "mcls resume" not in child.stderr


BLOBS = ("trainer.epochs=20", "trainer.figures=true")
PLANNING = 8.0  # seconds that a sweep of this many jobs is planned for, at least
COMMANDS = {
    "train": [*BLOBS],
    "sweep": ["-m", *BLOBS, "seed=1,2", "hydra.sweep.dir=sweep"],
    "plan": ["-m", *BLOBS, "seed=range(0,20000)", "sweep.max_jobs=20000", "hydra.sweep.dir=sweep"],
    "resume": ["RUN", "trainer.epochs=40"],
    "evaluate": ["RUN", "--split", "val", "--mistakes"],
    "predict": ["RUN", "rows.csv", "--output", "found.csv"],
    "export": ["RUN", "--format", "onnx"],
    "runs": ["."],
    "compare": ["RUN", "other"],
    "report": ["RUN"],
    "data": ["check"],
}


def handlers_stand(pid: int) -> bool:
    """Whether a process has said what SIGHUP does in it; before that Python itself is being started."""
    found = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(found.split()[1], 16) >> (signal.SIGHUP - 1) & 1)


def interrupted(arguments: Sequence[str], root: Path, number: int, after: float) -> tuple[int, str]:
    """Exit status and stderr of a command that gets a signal `after` seconds of its own."""
    command = [sys.executable, "-m", "mcls", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as process:
        while not handlers_stand(process.pid):
            time.sleep(0.001)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_at_random_times(
    name: str, tmp_path: Path, size: Callable[[int, int], int], count: Count
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "rows.csv").write_text("a,b\n" + "1.5,-2\n" * 500)
    main = [sys.executable, "-m", "mcls"]
    subprocess.run([*main, "train", *BLOBS, "hydra.run.dir=run"], cwd=made, check=True, stderr=subprocess.DEVNULL)
    shutil.copytree(made / "run", made / "other")
    line = ["train" if name in ("sweep", "plan") else name, *(word.replace("RUN", "run") for word in COMMANDS[name])]
    started = time.monotonic()
    if name != "plan":  # which would train for hours
        subprocess.run([*main, *line], cwd=shutil.copytree(made, tmp_path / "whole"), check=True, capture_output=True)
    seconds, draw, hits = PLANNING if name == "plan" else time.monotonic() - started, random.Random(name), 0
    for number in SIGNALS:
        for attempt in range(size(1, 20)):
            root = shutil.copytree(made, tmp_path / f"{number}-{attempt}")
            after = draw.uniform(0, seconds)
            status, errors = interrupted(line, root, number, after)
            assert status in (0, SIGNALS[number], -number), (after, errors)  # a shell calls the last two the same
            told = [text for text in errors.splitlines() if text.startswith("mcls: ")]
            assert len(told) == (status == SIGNALS[number]), (after, errors)
            for word in ("Traceback", "Exception", "Error", "leaked", "bug"):
                assert word not in errors, (after, errors)
            assert not list(root.rglob("*.part"))
            for path in root.rglob("*.json"):
                json.loads(path.read_text())
            hits += status != 0
            shutil.rmtree(root)
    count(f"{hits} signals to {name}")
    assert hits >= 3 * size(1, 20) / 4
