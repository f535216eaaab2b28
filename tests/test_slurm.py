"""`launcher=slurm` against a cluster of scripts on the PATH (fake_slurm.py)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcls.errors import MachineError, RequestError, Stopped
from mcls.runs.folder import RunFolder
from mcls.sweep import slurm
from mcls.sweep.slurm import Slurm, check_cluster, script_of
from mcls.sweep.task import Task
from mcls.system.signals import StopRequest

Main = Callable[..., int]
LINE = ("train", "-m", "trainer.figures=false", "sweep.name=s", "launcher=slurm", "launcher.cpus=1")
SETTINGS: dict[str, Any] = {
    **{"kind": "slurm", "jobs": 2, "partition": None, "time": 60, "cpus": 1, "gpus": 0, "mem": None},
    **{"sbatch": [], "setup": [], "requeues": 3},
}
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "srun")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state of a cluster whose commands are on the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cluster").mkdir()
    for name in COMMANDS:
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("fake_slurm.py").read_text())
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "cluster"))
    monkeypatch.setattr(slurm, "LOOK", 0.1)
    yield tmp_path / "cluster"
    for path in (tmp_path / "cluster").glob("*.job"):
        if pid := json.loads(path.read_text())["pid"]:
            os.killpg(pid, signal.SIGKILL)


def task(number: int, folder: Path) -> Task:
    """A job that fails at once: its folder is no run."""
    return Task(number, folder / str(number), [], "", "", None, {}, [])


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """result.json of each job, by its number."""
    found = {path.parent.name.split("_")[0]: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return dict(sorted(found.items()))


def test_the_script_asks_for_what_the_keys_say(tmp_path: Path) -> None:
    asked = {"partition": "gpu", "gpus": 2, "cpus": 6, "mem": "16G", "time": "1-12:00:00", "setup": ["module load x"]}
    text = script_of({**SETTINGS, **asked, "sbatch": ["--account=a b"]}, tmp_path / "a%j b", "0", 5)
    for line in (
        "--array=0-4%2", "--time=1-12:00:00", "--nodes=1 --ntasks=1 --cpus-per-task=6", "--gpus-per-node=2",
        "--partition=gpu", "--mem=16G", "--account=a b", "--requeue --signal=TERM@120 --open-mode=append",
        f"--output='{tmp_path}/a%%j b/logs/slurm-%A_%a.txt'",
    ):  # fmt: skip
        assert f"\n#SBATCH {line}\n" in text
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    assert "\nexport OMP_NUM_THREADS=6\nmodule load x\nexec srun --ntasks=1 --cpus-per-task=6 --unbuffered " in text
    (tmp_path / "script.sh").write_text(text)
    subprocess.run(["bash", "-n", str(tmp_path / "script.sh")], check=True)
    assert "partition" not in script_of(SETTINGS, tmp_path, "0", 1)


@pytest.mark.parametrize(
    ("keys", "status", "said"),
    [
        (
            ["launcher=slurm"],
            4,
            "launcher: there is no sbatch here. Type this on a machine of the cluster, or omit it.",
        ),
        (["launcher=slurm", "launcher.cpus=0"], 2, "launcher.cpus: must be int > 0, got 0"),
        (["launcher=slurm", "launcher.sbatch=x"], 2, "launcher.sbatch: must be list of text, got 'x'"),
    ],
)
def test_what_cannot_be_launched(
    keys: list[str], status: int, said: str, mcls: Main, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mcls("train", "-m", "seed=0,1", *keys) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_gpus_are_those_of_the_trainer(cluster: Path, mcls: Main, capsys: Any) -> None:
    check_cluster({**SETTINGS, "gpus": 4}, {"trainer": {"devices": 4}})
    with pytest.raises(RequestError, match=r"^launcher\.gpus: 4, but trainer\.devices=1\. Set both"):
        check_cluster({**SETTINGS, "gpus": 4}, {"trainer": {"devices": 1}})
    assert mcls(*LINE[:-2], "launcher=slurm-multi-gpu", "seed=0,1") == 2
    assert "launcher.gpus: 4, but trainer.devices=1" in capsys.readouterr().err


def test_jobs_are_one_array_and_found_again(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The array is there and nothing runs it: what is seen are the two processes that watch it."""
    monkeypatch.setattr(slurm, "script_of", lambda *_: "#SBATCH --array=0-1%2\n#SBATCH --output=/dev/null\nsleep 100")
    monkeypatch.setattr(StopRequest, "__call__", lambda _: int((cluster / "1000_1.job").exists()) * signal.SIGINT)
    first = Slurm(SETTINGS, tmp_path / "s", StopRequest())
    for number in (0, 7):
        first.submit(task(number, tmp_path / "s"))
    assert first.running() == 2 and not list(cluster.glob("*.sh"))
    with pytest.raises(Stopped, match="stopped; the jobs go on in SLURM, scancel 1000 ends them"):
        first.wait()
    assert json.loads((tmp_path / "s" / "slurm" / "jobs.json").read_text()) == {"0": "1000_0", "7": "1000_1"}
    assert [each["number"] for each in json.loads((tmp_path / "s" / "slurm" / "0.json").read_text())] == [0, 7]
    again = Slurm(SETTINGS, tmp_path / "s", StopRequest())
    again.submit(task(7, tmp_path / "s"))
    done = RunFolder(tmp_path / "s" / "5")
    done.path.mkdir()
    done.write_json(done.result, {"status": "finished"})
    again.submit(task(5, tmp_path / "s"))
    assert again.running() == 2 and again.wait() == [(5, "")] and again.running() == 1
    assert len(list(cluster.glob("*.sh"))) == 1
    (cluster / "down").touch()
    assert again.queue() is None  # and no job is taken to have ended


def test_what_sbatch_refuses_is_one_line(cluster: Path, tmp_path: Path) -> None:
    runs = Slurm({**SETTINGS, "sbatch": ["--refused"]}, tmp_path / "s", StopRequest())
    runs.submit(task(0, tmp_path / "s"))
    with pytest.raises(
        MachineError, match=r"^sbatch: sbatch: error: invalid partition specified: nowhere\. Its script"
    ):
        runs.wait()


def test_a_job_that_leaves_the_queue_is_what_its_folder_says(cluster: Path, tmp_path: Path) -> None:
    runs = Slurm(SETTINGS, tmp_path / "s", StopRequest())
    runs.names = {"0": "1_0", "1": "1_1", "2": "1_2"}
    said = {0: {"status": "finished"}, 1: {"status": "failed", "reason": "why"}, 2: {"status": "running"}}
    for number, result in said.items():
        folder = RunFolder(tmp_path / "s" / str(number))
        folder.path.mkdir(parents=True)
        folder.write_json(folder.result, result)
        runs.watched[number] = task(number, tmp_path / "s")
    ended = dict(runs.wait())
    assert ended[0] == "" and ended[1] == "why"
    assert ended[2] == "SLURM ended it (OUT_OF_ME+), see logs/2.txt and logs/slurm-1_2.txt"
    assert (RunFolder(tmp_path / "s" / "2").read_result() or {})["reason"] == ended[2]


@pytest.mark.parametrize(
    ("state", "count", "again"), [("RUNNING", "0", True), ("RUNNING", "3", False), ("CANCELLED", "0", False)]
)
def test_a_job_is_requeued_unless_it_was_cancelled(
    state: str, count: str, again: bool, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ARRAY_JOB_ID", "5"), ("ARRAY_TASK_ID", "1"), ("RESTART_COUNT", count)):
        monkeypatch.setenv(f"SLURM_{name}", value)
    (cluster / "5_1.job").write_text(json.dumps({"state": state, "pid": 0}))
    slurm.requeue(3)
    assert (cluster / "5_1.requeue").exists() == again


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_jobs_in_the_cluster_are_those_of_one_process(
    cluster: Path, mcls: Main, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("trainer.epochs=1", "optimizer.lr=0.1,1e30")
    assert mcls(*LINE[:3], *keys, "sweep.name=here") == 1
    inline = results(tmp_path / "outputs" / "sweeps" / "here")
    capsys.readouterr()
    assert mcls(*LINE, *keys) == 1
    err = capsys.readouterr().err
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    found = results(sweep)
    assert {key: job.get("weights_sha256") for key, job in inline.items()} == {
        key: job.get("weights_sha256") for key, job in found.items()
    }
    assert found["0"]["test"] == inline["0"]["test"] and found["1"]["reason"] == inline["1"]["reason"]
    assert (
        "in SLURM's queue: 1000, 2 jobs" in err
        and "job 1 (optimizer.lr=1e+30): failed: step" in err
        and "2 of 2 jobs done" in err
    )
    assert "\n  1/1  " in (sweep / "logs" / "0.txt").read_text() and "\n  1/1  " not in err


@pytest.mark.slow
def test_jobs_that_are_asked_to_go_save_and_come_back(cluster: Path, mcls: Main, tmp_path: Path) -> None:
    keys = ("dataset.n_samples=4000", "trainer.epochs=30", "seed=0,1", "trainer.batch_size=64", "sweep.test=none")
    assert mcls(*LINE[:3], *keys, "sweep.name=here") == 0
    inline = results(tmp_path / "outputs" / "sweeps" / "here")
    watching = subprocess.Popen(
        [sys.executable, "-m", "mcls", *LINE, *keys], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    for job, number in enumerate((signal.SIGTERM, signal.SIGUSR2)):
        until((sweep / f"{job}_seed={job}" / "metrics.jsonl").exists)
        pid = json.loads((cluster / f"1000_{job}.job").read_text())["pid"]
        os.kill(pid, number)
        until(lambda: not Path(f"/proc/{pid}").exists())  # noqa: B023, waited for inside the loop
    watching.send_signal(signal.SIGINT)  # which ends the watching alone
    err = watching.communicate(timeout=60)[1]
    assert watching.returncode == 130
    told = "the jobs go on in SLURM, scancel 1000 ends them; go on with: mcls resume outputs/sweeps/s launcher=slurm"
    assert told in " ".join(err.split())
    assert mcls("resume", "outputs/sweeps/s", "launcher=slurm") == 0
    assert len(list(cluster.glob("*.sh"))) == 1  # found again, not submitted twice
    for job in (0, 1):
        log = (sweep / "logs" / f"{job}.txt").read_text()
        assert "it goes into the queue again" in log and "resumed" in log
    assert {key: job["weights_sha256"] for key, job in results(sweep).items()} == {
        key: job["weights_sha256"] for key, job in inline.items()
    }


@pytest.mark.slow
def test_the_script_of_the_page_on_several_gpus_goes_on_when_it_is_requeued(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as SLURM does: twice, the first time with SIGTERM to all processes of the step."""
    page = (Path(__file__).parents[1] / "docs" / "multi-gpu.md").read_text("utf-8")
    text = "\n".join(line[4:] for line in page.partition("    #!")[2].splitlines() if line.startswith("    "))
    keys = [
        "dataset.n_samples=20000",
        "trainer.batch_size=32",
        "trainer.epochs=3",
        "trainer.figures=false",
        "threads=1",
    ]
    assert text.count("threads=4 dataset=cifar10 model=resnet18") == text.count(":29500") == 1
    text = text.replace("threads=4 dataset=cifar10 model=resnet18", " ".join(keys)).replace(":29500", ":0")
    (tmp_path / "job.sh").write_text(f"#!{text}\n")
    subprocess.run(["bash", "-n", "job.sh"], check=True)
    (tmp_path / "bin").mkdir()
    scripts = {
        "srun": 'shift; echo $$ > step; exec setsid "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "scontrol": 'test "$1" = show && echo localhost || echo "$@" >> requeued',
    }
    for name, body in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    values = {"JOB_NODELIST": "n1", "JOB_NUM_NODES": "1", "GPUS_ON_NODE": "2", "JOB_ID": "7", "CPUS_PER_TASK": "1"}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    batch = subprocess.Popen(["bash", "job.sh"])
    run = tmp_path / "outputs" / "base"
    until((run / "metrics.jsonl").exists)
    os.killpg(int((tmp_path / "step").read_text()), signal.SIGTERM)
    batch.wait(timeout=120)
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert json.loads((run / "result.json").read_text())["status"] == "stopped"
    subprocess.run(["bash", "job.sh"], timeout=200, check=False)
    whole = json.loads((run / "result.json").read_text())
    assert whole["status"] == "finished" and (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert mcls("train", "name=alone", "trainer.devices=2", *keys) == 0
    alone = json.loads((tmp_path / "outputs" / "alone" / "result.json").read_text())
    assert whole["weights_sha256"] == alone["weights_sha256"]
