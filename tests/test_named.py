"""`name=NAME`: one folder, whatever stops the command, and nothing but the run that was named."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcls.runs.folder import RunFolder

Main = Callable[..., int]
QUICK = ("trainer.figures=false", "trainer.epochs=2", "device=cpu")


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_the_same_command_goes_on(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Begun, finished, and without its result: the same folder and weights, and the test set opened as often."""
    assert mcls("train", *QUICK) == 0
    [whole] = (tmp_path / "outputs").glob("blobs-mlp/*")
    lines = ("train", *QUICK, "name=x-1")
    assert mcls(*lines) == 0
    folder = tmp_path / "outputs" / "x-1"
    before = result_of(folder)
    assert before["weights_sha256"] == result_of(whole)["weights_sha256"]
    written = (folder / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert mcls(*lines, "trainer.log_every_steps=7") == 0
    out, err = capsys.readouterr()
    assert err == "already finished, 2 epochs\n" and "everything is in outputs/x-1" in out
    assert (folder / "result.json").stat().st_mtime_ns == written
    (folder / "result.json").unlink()
    assert mcls(*lines) == 0 and "resumed after epoch 2" in capsys.readouterr().err
    assert result_of(folder)["weights_sha256"] == before["weights_sha256"]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["blobs-mlp", "x-1"]
    assert mcls("train", "--from", str(folder), "seed=3") == 0  # its name is not taken over
    assert len(list((tmp_path / "outputs" / "blobs-mlp").iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["optimizer.lr=0.3"], "optimizer.lr: outputs/x holds a run with 0.05, not 0.3. Choose another name."),
        (
            ["seed=1", "model.dropout=0.5"],
            "seed: outputs/x holds a run with 0, not 1; also different: model.dropout. Choose another name.",
        ),
        (
            ["trainer.epochs=5"],
            "trainer.epochs: outputs/x holds a run with 2, not 5. Choose another name, or go on with: "
            "mcls resume outputs/x trainer.epochs=5.",
        ),
        (["name=blobs-mlp"], "name: outputs/blobs-mlp is a folder of other folders. Give another name."),
        (["name='a/b'"], "name: must be the name of a folder, got 'a/b'. Use letters, digits and . _ - = +."),
        (["-m", "seed=1,2"], "name: names one run. Use sweep.name."),
        (["hydra.run.dir=y"], "name: names one run. Leave out hydra.run.dir."),
    ],
)
def test_another_run_is_refused(
    more: list[str], said: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("train", *QUICK, *(["name=x"] if not more[0].startswith("name=") else []))
    if more[0][:2] not in ("-m", "hy"):
        assert mcls("train", *QUICK, "name=x") == 0
        (tmp_path / "outputs" / "blobs-mlp" / "2026").mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert mcls(*lines, *more) == 2
    assert capsys.readouterr().err == f"mcls: {said}\n"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_and_typed_again_equals_whole(mcls: Main, tmp_path: Path) -> None:
    """kill -9 in the middle, then the same line."""
    lines = ("train", "trainer.figures=false", "device=cpu", "trainer.epochs=400", "trainer.checkpoint_every_steps=5")
    command = [sys.executable, "-m", "mcls", *lines, "name=x"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "outputs" / "x" / "best.pt").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    folder = RunFolder(tmp_path / "outputs" / "x")
    assert folder.begun and folder.finished() is None
    assert mcls(*lines, "name=x") == 0
    assert mcls(*lines, "name=whole") == 0
    assert result_of(folder.path)["weights_sha256"] == result_of(tmp_path / "outputs/whole")["weights_sha256"]


def test_tags_and_notes(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are found again, do not make it another run, and are not taken over by --from."""
    (tmp_path / "wine.csv").write_text("a,b,kind\n" + "".join(f"{i},{i % 3},{'xy'[i % 2]}\n" for i in range(60)))
    keys = ("dataset=csv", "dataset.path=wine.csv", "dataset.target=kind", *QUICK)
    assert mcls("train", *keys, "tags=[first,small]", "note='only a trial'") == 0
    [folder] = (tmp_path / "outputs" / "wine-mlp").iterdir()
    about = json.loads((folder / "run.json").read_text())["hyperparameters"]
    assert (about["tags"], about["note"]) == ("first,small", "only a trial")
    assert mcls("train", "--from", str(folder), "seed=1") == 0
    for words, count in ((["tags=small"], 1), (["tags=none"], 0), (["note=only a trial"], 1)):
        capsys.readouterr()
        assert mcls("runs", *words, "--json", "--all") == 0
        assert len(json.loads(capsys.readouterr().out)) == count
    assert mcls("resume", str(folder), "tags=[kept]", "trainer.epochs=3") == 0
    assert mcls("runs", "tags=kept", "--all") == 0 and "1 of 2 runs" in capsys.readouterr().err


def test_tags_and_a_note_typed_again(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is new in the command is written, what was set since the run began is kept; finished or not."""
    folder, lines = tmp_path / "outputs" / "x", ("train", *QUICK, "name=x")

    def told(*words: str) -> str:
        capsys.readouterr()
        assert mcls(*words) == 0
        return capsys.readouterr().err

    def remarks() -> tuple[Any, Any]:
        about = json.loads((folder / "run.json").read_text())["hyperparameters"]
        return about.get("tags"), about.get("note")

    told(*lines, "note=one", "tags=[a]")
    told("runs", "note", "outputs/x", "by hand")
    for words in ((), ("note=one", "tags=[a]")):
        assert told(*lines, *words) == "already finished, 2 epochs\n" and remarks() == ("a", "by hand")
    assert told(*lines, "note=two", "tags=[a]") == "already finished, 2 epochs\noutputs/x: note two\n"
    assert remarks() == ("a", "two")
    capsys.readouterr()
    assert mcls("resume", str(folder), "tags=[b,c]") == 0 and remarks() == ("b,c", "two")
    assert capsys.readouterr().out.splitlines()[1:] == ["outputs/x: tags b,c"]
    for words, expected in (((), ("b,c", "two")), (("note=null", "tags=[d]"), ("d", None))):
        (folder / "result.json").unlink()
        assert "resumed after epoch 2" in told(*lines, *words) and remarks() == expected


def torchrun(root: Path, launcher: tuple[str, ...], *lines: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "mcls", "train", *lines]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


TEAM = ("--standalone", "--nproc-per-node=2")
LONG = (*QUICK[::2], "trainer.epochs=60", "model.dropout=0.1", "trainer.checkpoint_every_steps=3")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for child processes")
@pytest.mark.slow
def test_torchrun_restarts_a_run_with_a_name(tmp_path: Path) -> None:
    """A process is killed three times at random, MCLS_KILLS=20 for as many: the whole run's weights."""
    with torchrun(tmp_path, TEAM, *LONG, "name=whole") as process:
        assert process.communicate(timeout=120) and process.returncode == 0
    whole = result_of(tmp_path / "outputs" / "whole")["weights_sha256"]
    chance = random.Random(5)
    for number in range(-(-int(os.environ.get("MCLS_KILLS", 3)) // 3)):
        folder = tmp_path / "outputs" / f"x{number}"
        kills = 0
        with torchrun(tmp_path, ("--max-restarts=3", *TEAM), *LONG, f"name=x{number}") as process:
            while process.poll() is None and kills < 3:
                before = (folder / "last.pt").stat().st_mtime_ns if (folder / "last.pt").exists() else 0
                deadline = time.monotonic() + 60
                while process.poll() is None and time.monotonic() < deadline:
                    if (folder / "last.pt").exists() and (folder / "last.pt").stat().st_mtime_ns > before:
                        break
                    time.sleep(0.01)
                time.sleep(chance.random() * 0.3)
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                found = children.read_text().split() if children.exists() else []
                if len(found) == 2:
                    os.kill(int(chance.choice(found)), signal.SIGKILL)
                    kills += 1
                    time.sleep(1)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert kills > 1 and result_of(folder)["weights_sha256"] == whole
    assert len(list((tmp_path / "outputs").glob("*/run.json"))) == number + 2


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for child processes")
@pytest.mark.slow
def test_torchrun_restarts_a_run_with_a_silent_process(tmp_path: Path) -> None:
    """One is stopped: the other ends after the timeout, torchrun kills both, and the weights are the whole run's."""
    with torchrun(tmp_path, TEAM, *LONG, "name=whole") as process:
        assert process.communicate(timeout=120) and process.returncode == 0
    folder = tmp_path / "outputs" / "x"
    again = ("--max-restarts=1", "--shutdown-timeout=1", *TEAM)
    with torchrun(tmp_path, again, *LONG, "name=x", "trainer.timeout_seconds=3") as process:
        deadline = time.monotonic() + 60
        while not (folder / "last.pt").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        silent = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[1]
        os.kill(int(silent), signal.SIGSTOP)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "mcls: trainer.devices: another process did not answer within trainer.timeout_seconds=3. What is" in err
    one, two = (result_of(tmp_path / "outputs" / name)["weights_sha256"] for name in ("whole", "x"))
    assert one == two


@pytest.mark.slow
def test_a_restart_without_a_name_is_refused(mcls: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert mcls("train", *QUICK) == 2 and not (tmp_path / "outputs").exists()
    assert mcls("train", *QUICK, "name=x") == 0


def two_machines() -> tuple[str, ...]:
    """How torchrun is told, on each of two machines that are both this one, where they meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    each = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=t")
    return (*each, place, "--local-addr=127.0.0.1")


@pytest.mark.slow
def test_two_machines_train_as_one(tmp_path: Path) -> None:
    """Two agents of torchrun, one process each, on the loopback: the weights of one machine's two processes."""
    with torchrun(tmp_path, TEAM, *QUICK, "name=one") as process:
        assert process.communicate(timeout=120) and process.returncode == 0
    machine = two_machines()
    with (
        torchrun(tmp_path, machine, *QUICK, "name=two") as first,
        torchrun(tmp_path, machine, *QUICK, "name=two") as other,
    ):
        texts = [process.communicate(timeout=120)[1] for process in (first, other)]
        assert (first.returncode, other.returncode) == (0, 0), texts
    one, two = (result_of(tmp_path / "outputs" / name)["weights_sha256"] for name in ("one", "two"))
    assert one == two
    assert sum("\n  2/2  " in text for text in texts) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for child processes")
@pytest.mark.slow
def test_two_machines_go_on_when_a_process_of_one_is_killed(tmp_path: Path) -> None:
    """Each in turn loses its process: one folder, with the weights of the run that was not disturbed."""
    lines = (*LONG, "trainer.epochs=20")
    with torchrun(tmp_path, TEAM, *lines, "name=whole") as process:
        assert process.communicate(timeout=120) and process.returncode == 0
    machine, folder = ("--max-restarts=3", *two_machines()), tmp_path / "outputs" / "two"
    with (
        torchrun(tmp_path, machine, *lines, "name=two") as first,
        torchrun(tmp_path, machine, *lines, "name=two") as other,
    ):
        for agent in (other, first):
            before = (folder / "last.pt").stat().st_mtime_ns if (folder / "last.pt").exists() else 0
            deadline = time.monotonic() + 60
            while not (folder / "last.pt").exists() or (folder / "last.pt").stat().st_mtime_ns == before:
                assert time.monotonic() < deadline and agent.poll() is None
                time.sleep(0.01)
            [child] = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGKILL)
        texts = [process.communicate(timeout=120)[1] for process in (first, other)]
        assert (first.returncode, other.returncode) == (0, 0), texts
    assert sum(text.count("resumed after epoch") for text in texts) >= 2
    one, two = (result_of(tmp_path / "outputs" / name)["weights_sha256"] for name in ("whole", "two"))
    assert one == two and len(list((tmp_path / "outputs").glob("*/run.json"))) == 2
