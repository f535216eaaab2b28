"""Several processes train as one does: the same samples, sums and weights, one folder; and they end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from mcls.augmentations import CropFlip
from mcls.data.loader import Loader, Normalise
from mcls.data.types import Split
from mcls.runs import checkpoint
from mcls.system.distributed import World

CPU = torch.device("cpu")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mcls")
TWO = ("trainer.devices=2", "device=cpu", "trainer.figures=false")
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for child processes")


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("resident", [False, True])
def test_the_shares_of_a_batch_make_the_batch(size: int, balanced: bool, resident: bool) -> None:
    """Order and augmentation are those of one process, whatever the number."""
    split = Split(torch.randint(256, (91, 3, 8, 8), dtype=torch.uint8), torch.arange(91) % 5)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, CPU)
    augment = CropFlip(padding=1, flip=0.5)
    loader = Loader(split, 32, CPU, normalise, augment=augment, seed=4, balanced=balanced, resident=resident)
    whole = list(loader.epoch(1, first=1))
    shares = [list(loader.epoch(1, first=1, world=World(rank, size))) for rank in range(size)]
    for (inputs, targets), *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), inputs)
        assert torch.equal(torch.cat([part for _, part in parts]), targets)
    assert not torch.equal(shares[0][0][0], shares[1][0][0][: len(shares[0][0][0])])


def test_a_split_smaller_than_the_team_is_measured_once() -> None:
    split = Split(torch.rand(2, 3), torch.tensor([0, 1]))
    loader = Loader(split, 32, CPU, Normalise(None, None, CPU))
    found = [len(list(loader.epoch(world=World(rank, 3)))) for rank in range(3)]
    assert found == [0, 1, 1]


def test_a_start_shares_a_name_that_no_start_before_had() -> None:
    """In one store, as torchrun keeps it: whole starts, and starts in which a process ended before it had joined."""
    store = distributed.HashStore()  # type: ignore[attr-defined]
    names = []
    for size in (2, 4, 1, 3):
        store.set("mcls/rank/1", "of a process that is gone")
        with ThreadPoolExecutor(size) as threads:
            late = [threads.submit(World(rank, size).agree_on_start, store, 10.0) for rank in range(size)]
            names.append({one.result() for one in late})
        with pytest.raises(distributed.DistError, match="timed out: process 1 has not joined"):
            World(0, 2).agree_on_start(store, 0.05)
    assert [len(name) for name in names] == [1, 1, 1, 1] and len(set.union(*names)) == 4


def run(root: Path, *arguments: str, command: tuple[str, ...] = ("-m", "mcls")) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )


def only(root: Path) -> Path:
    [found] = (root / "outputs").glob("*/*/run.json")
    return found.parent


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("loss.class_weights=[1,2,3,4]", "loss.label_smoothing=0.1", "optimizer=adam")])
def test_two_processes_train_as_one(more: tuple[str, ...], tmp_path: Path) -> None:
    folders = []
    for devices in (1, 2):
        root = tmp_path / str(devices)
        root.mkdir()
        keys = (
            "optimizer.lr=0.01",
            "trainer.epochs=3",
            "trainer.batch_size=31",
            "trainer.evaluate_test_each_epoch=true",
        )
        done = run(root, "train", *TWO, *keys, *more, f"trainer.devices={devices}")
        assert done.returncode == 0, done.stderr
        assert (
            len(done.stderr.splitlines()) == 4 + 1 + 3
        )  # what is trained, the heading, the epochs; the others say nothing
        folders.append(only(root))
    one, two = folders
    for before, after in zip(records(one), records(two), strict=True):
        assert before["step"] == after["step"]
        for split in ("train", "val", "test"):
            assert before[split]["accuracy"] == pytest.approx(after[split]["accuracy"], abs=1e-9)
            assert before[split]["loss"] == pytest.approx(after[split]["loss"], rel=1e-5)
    weights = [checkpoint.load_checkpoint(folder / "best.pt")["model"] for folder in folders]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6)
    assert result(one)["test"]["accuracy"] == result(two)["test"]["accuracy"]


@pytest.mark.slow
def test_torchrun_makes_one_folder_and_the_same_weights(tmp_path: Path) -> None:
    keys = ("train", *TWO[1:], "trainer.epochs=2", "model.dropout=0.1")
    digests = []
    for name, command, more in (("own", ("-m", "mcls"), TWO[:1]), ("torchrun", TORCHRUN, ())):
        root = tmp_path / name
        root.mkdir()
        done = run(root, *keys, *more, command=command)
        assert done.returncode == 0, done.stderr
        digests.append(result(only(root))["weights_sha256"])
    assert digests[0] == digests[1]
    done = run(tmp_path / "torchrun", "train", "-m", "seed=1,2", *TWO, command=TORCHRUN)
    assert done.returncode != 0 and "mcls: -m: not under torchrun. Set trainer.devices=N instead." in done.stderr
    assert not (tmp_path / "torchrun" / "outputs" / "sweeps").exists()
    again = run(tmp_path / "torchrun", "resume", str(only(tmp_path / "torchrun")), "trainer.epochs=4", command=TORCHRUN)
    assert again.returncode == 0, again.stderr
    run(tmp_path / "own", "resume", str(only(tmp_path / "own")), "trainer.epochs=4")
    folders = [only(tmp_path / name) for name in ("own", "torchrun")]
    assert result(folders[0])["weights_sha256"] == result(folders[1])["weights_sha256"] != digests[0]


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def begin(root: Path, *keys: str) -> subprocess.Popen[str]:
    """A run of two processes that is in the middle of its training."""
    command = [sys.executable, "-m", "mcls", "train", *TWO, "model.dropout=0.1", "trainer.epochs=100000", *keys]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 500 for path in root.rglob("metrics.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process


@LINUX_ONLY
@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number", "status"),
    [("the leader", signal.SIGHUP, 129), ("another", signal.SIGTERM, 143), ("all", signal.SIGINT, 130)],
)
def test_a_signal_to_any_process_stops_all(whom: str, number: int, status: int, tmp_path: Path) -> None:
    with begin(tmp_path) as process:
        [other] = children(process.pid)
        send = {"the leader": os.kill, "another": os.kill, "all": os.killpg}[whom]
        started = time.monotonic()
        send(other if whom == "another" else process.pid, number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == status and time.monotonic() - started < 10
    assert len([line for line in err.splitlines() if line.startswith("mcls: ")]) == 1 and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    folder = only(tmp_path)
    stopped = result(folder)
    assert stopped["status"] == "stopped"
    state = checkpoint.load_checkpoint(folder / "last.pt")
    assert len(state["rng"]) == 2 and not torch.equal(state["rng"][0]["cpu"], state["rng"][1]["cpu"])


@pytest.mark.slow
def test_resumed_equals_whole(tmp_path: Path) -> None:
    """Three processes with dropout that finish and then go on for longer: bit for bit."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    keys = ("model.dropout=0.1", "trainer.batch_size=31", "trainer.devices=3")
    for root, epochs in ((whole, 4), (halves, 2)):
        root.mkdir()
        done = run(root, "train", *TWO, *keys, f"trainer.epochs={epochs}")
        assert done.returncode == 0, done.stderr
    done = run(halves, "resume", str(only(halves)), "trainer.epochs=4")
    assert done.returncode == 0, done.stderr
    assert result(only(halves))["weights_sha256"] == result(only(whole))["weights_sha256"]
    done = run(halves, "resume", str(only(halves)), "trainer.devices=1", "trainer.epochs=8")
    assert done.returncode == 0 and "trainer.devices: 3 -> 1: the samples and their order stay" in done.stderr
    assert result(only(halves))["epochs"] == 8


@LINUX_ONLY
@pytest.mark.slow
def test_a_killed_process_ends_the_run_by_name(tmp_path: Path) -> None:
    with begin(tmp_path, "trainer.checkpoint_every_steps=5") as process:
        [other] = children(process.pid)
        os.kill(other, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("mcls: trainer.devices: process 1: it ended with status -9.")
    assert checkpoint.load_checkpoint(only(tmp_path) / "last.pt")["progress"]["step"] > 0


@LINUX_ONLY
@pytest.mark.slow
@pytest.mark.parametrize("silent", ["the leader", "another"])
def test_a_silent_process_ends_the_others(silent: str, tmp_path: Path) -> None:
    """One that is stopped, as on a machine that hangs: one line after the timeout, and the run goes on from there."""
    with begin(tmp_path, "trainer.checkpoint_every_steps=5", "trainer.timeout_seconds=2") as process:
        [other] = children(process.pid)
        started = time.monotonic()
        os.kill(process.pid if silent == "the leader" else other, signal.SIGSTOP)
        if silent == "the leader":
            while "State:\tZ" not in Path(f"/proc/{other}/status").read_text():  # the other ends by itself
                assert time.monotonic() < started + 20
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and time.monotonic() - started < 20 and "Traceback" not in err
    why = {"the leader": "another process ended", "another": "another process did not answer within"}[silent]
    assert err.splitlines()[-1].startswith(f"mcls: trainer.devices: {why}"), err
    assert result(only(tmp_path))["status"] == "failed"
    step = checkpoint.load_checkpoint(only(tmp_path) / "last.pt")["progress"]["step"]
    done = run(tmp_path, "resume", str(only(tmp_path)), f"trainer.max_steps={step + 3}")
    assert done.returncode == 0 and result(only(tmp_path))["status"] == "finished", done.stderr


@pytest.mark.slow
def test_what_is_in_the_way_of_another_process_is_told(tmp_path: Path) -> None:
    """A process that can't begin ends the run with its own error and exit status."""
    (tmp_path / "other.py").write_text(
        "import sys\nfrom mcls.errors import DataError\nfrom mcls.models.mlp import MLP\n"
        "class Net(MLP):\n    def __init__(self, input_shape, num_classes):\n"
        "        super().__init__(input_shape, num_classes, [8], 0.0)\n"
        "        if 'worker_process' in ''.join(sys.orig_argv):\n            raise DataError('a.png: empty.')\n"
    )
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "other.yaml").write_text("_target_: other.Net\n")
    keys = ("--config-dir", "configs", "model=other", "trust=[other]", "trainer.epochs=1")
    started = time.monotonic()
    done = run(tmp_path, "train", *TWO, *keys)
    assert done.returncode == 3 and time.monotonic() - started < 20
    assert done.stderr.splitlines()[-1] == "mcls: trainer.devices: process 1: a.png: empty."
    assert result(only(tmp_path))["status"] == "failed"


@LINUX_ONLY
@pytest.mark.slow
def test_no_process_outlives_a_killed_leader(tmp_path: Path) -> None:
    with begin(tmp_path) as process:
        [other] = children(process.pid)
        process.kill()
        process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{other}").exists() and "State:\tZ" not in Path(f"/proc/{other}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["trainer.devices=0"], "trainer.devices: must be int >= 1 <= 256, got 0."),
        (["trainer.devices=4", "trainer.batch_size=3"], "trainer.batch_size: 3 is too few for trainer.devices=4."),
        (
            ["trainer.devices=4", "trainer.batch_size=359"],
            "trainer.batch_size: 359 leaves 2 of the 720 training samples for the last batch, too few for "
            "trainer.devices=4. Try 360.",
        ),
        (
            ["trainer.devices=2", "device=cuda:0"],
            "device: cuda:0 is one GPU, but trainer.devices=2 needs as many. Set device=cuda.",
        ),
    ],
)
def test_what_can_not_be_shared_out(
    keys: list[str], said: str, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", *keys) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mcls: {said}"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["trainer.devices=256", "device=cpu"], rf"mcls: trainer\.devices: 256 processes on {os.cpu_count()} cores\."),
        (
            ["trainer.devices=200", "device=cuda"],
            r"mcls: trainer\.devices: 200 GPUs requested, but this machine has \d+\.",
        ),
    ],
)
def test_what_the_machine_has_too_little_of(
    keys: list[str], said: str, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mcls("train", *keys) == 4
    assert re.match(said, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "outputs").exists()
