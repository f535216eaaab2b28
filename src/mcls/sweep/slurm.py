"""`launcher=slurm`: the jobs of a sweep as job arrays, and the process of a job: python -m mcls.sweep.slurm ...

Everything between the two is in the sweep's folder: slurm/NUMBER.json has the jobs of an array, NUMBER.sh is what
sbatch was given, jobs.json says under which number SLURM knows a job.
"""

import contextlib
import getpass
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from mcls.errors import FolderError, MachineError, RequestError, RunError, Stopped
from mcls.runs.folder import RunFolder, parse_json, read_text
from mcls.sweep.task import Task, record_failure, run_task
from mcls.system.console import console
from mcls.system.files import make_folder, publish, to_json
from mcls.system.signals import StopRequest
from mcls.system.text import clean, plural

log = logging.getLogger("mcls")

ARRAY = 1000  # jobs in the queue at a time; SLURM takes arrays of 1,000 as it is shipped
LOOK = 5.0  # seconds between two looks into the queue
ABSENT = 2  # looks in a row without a job, after which it has ended: what it wrote may arrive late
SAVING = 120  # seconds before its time is over at which a job is asked to save


def cluster_command(*words: str) -> str | None:
    """What a command of SLURM prints; None where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def check_cluster(settings: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise MachineError without SLURM, RequestError for a job that would not get the GPUs that it trains on."""
    if shutil.which("sbatch") is None:
        raise MachineError("launcher: there is no sbatch here. Type this on a machine of the cluster, or omit it.")
    devices, gpus = config["trainer"]["devices"], settings["gpus"]
    if gpus and devices != gpus:
        raise RequestError(f"launcher.gpus: {gpus}, but trainer.devices={devices}. Set both to the same number.")


class Slurm:
    """Hands jobs to SLURM and watches its queue. The jobs don't end with this process: the next one finds them again.

    Args:
        settings: of configs/launcher/slurm.yaml.
        sweep: its folder.
        stop: looked at while it waits.
    """

    def __init__(self, settings: dict[str, Any], sweep: Path, stop: StopRequest) -> None:
        self.settings, self.sweep, self.stop = settings, sweep.resolve(), stop
        self.capacity, self.accepts = settings["jobs"], ARRAY
        self.folder = self.sweep / "slurm"
        make_folder(self.folder)
        make_folder(self.sweep / "logs")
        self.ended: list[tuple[int, str]] = []  # that were finished before
        self.waiting: list[Task] = []
        self.watched: dict[int, Task] = {}
        self.absent: dict[int, int] = {}
        known = self.folder / "jobs.json"
        self.names = parse_json(read_text(known), known, {"*": "text"}) if known.exists() else {}
        self.found = (self.queue() or set()) if self.names else set()

    def queue(self) -> set[str] | None:
        """The jobs of this user that run or wait, as ARRAY_INDEX; None where the queue can't be asked now."""
        listed = cluster_command("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format=%i")
        return None if listed is None else set(listed.split())

    def submit(self, task: Task) -> None:
        """Have the job in the next array, unless it is in the queue already, or finished."""
        if (name := self.names.get(str(task.number))) in self.found:
            log.info(f"job {task.number}: already in SLURM's queue, as {name}")
            self.found.discard(name)
            self.watched[task.number] = task
        elif not task.once_more and task.until is None and self.status_of_job(task) == "finished":
            self.ended.append((task.number, ""))
        else:
            self.waiting.append(task)

    def status_of_job(self, task: Task) -> str:
        """What the job's folder says; nothing where it can't be read, which the job will say."""
        with contextlib.suppress(FolderError):
            return str((RunFolder(task.folder).read_result() or {}).get("status"))
        return ""

    def running(self) -> int:
        """Jobs that were submitted and have not come out of `wait`."""
        return len(self.ended) + len(self.waiting) + len(self.watched)

    def wait(self) -> list[tuple[int, str]]:
        """Wait for at least one job. Raises Stopped after a signal; the jobs go on."""
        self.flush()
        if self.ended:
            before, self.ended = self.ended, []
            return before
        while True:
            next_look = time.monotonic() + LOOK
            while time.monotonic() < next_look:
                if signal_number := self.stop():
                    names = " ".join(sorted({self.names[str(number)].split("_")[0] for number in self.watched}))
                    told = f"the jobs go on in SLURM, scancel {names} ends them" if names else "no job is in the queue"
                    raise Stopped(f"stopped; {told}", signal_number)
                time.sleep(0.05)
            if (there := self.queue()) is None:
                continue
            for number in self.watched:
                gone = self.names[str(number)] not in there
                self.absent[number] = self.absent.get(number, 0) + 1 if gone else 0
            if ended := [number for number in self.watched if self.absent[number] >= ABSENT]:
                return [(number, self.outcome(self.watched.pop(number))) for number in ended]

    def flush(self) -> None:
        """Hand over what waits, as one array. Raises MachineError where sbatch refuses it."""
        if not self.waiting:
            return
        tasks, self.waiting = self.waiting, []
        taken = [int(path.stem) for path in self.folder.glob("*.sh") if path.stem.isdecimal()]
        name = str(max(taken, default=-1) + 1)
        publish(self.folder / f"{name}.json", json.dumps([asdict(task) for task in tasks], default=str).encode())
        script = self.folder / f"{name}.sh"
        publish(script, script_of(self.settings, self.sweep, name, len(tasks)).encode())
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
        if done.returncode:
            why = clean(" ".join(done.stderr.split()))
            raise MachineError(f"sbatch: {why or done.returncode}. Its script is {script}; change launcher.* for it.")
        array = done.stdout.strip().split(";")[0]
        for index, task in enumerate(tasks):
            self.names[str(task.number)] = f"{array}_{index}"
            self.watched[task.number] = task
            self.absent.pop(task.number, None)
        publish(self.folder / "jobs.json", (to_json(self.names) + "\n").encode())
        log.info(f"in SLURM's queue: {array}, {plural(len(tasks), 'job')}")

    def outcome(self, task: Task) -> str:
        """Why a job that has left the queue failed, as its folder says, or recorded there; nothing if it did not."""
        folder = RunFolder(task.folder)
        status = (result := folder.read_result() or {}).get("status")
        if status == "finished":
            return ""
        if status in ("failed", "stopped"):
            return str(result.get("reason") or status)
        name = self.names[str(task.number)]
        state = cluster_command("sacct", "--noheader", "--allocations", "-j", name, "--format=State%30") or ""
        ended = f" ({' '.join(state.split())})" if state.strip() else ""
        error = RunError(f"SLURM ended it{ended}, see logs/{task.number}.txt and logs/slurm-{name}.txt")
        record_failure(folder, error, task.overrides)
        return str(error)

    def close(self) -> None:
        """Nothing: the jobs go on."""


def script_of(settings: dict[str, Any], sweep: Path, name: str, count: int) -> str:
    """The script for sbatch of array `name`, which has `count` jobs."""
    cpus, logs = settings["cpus"], str(sweep / "logs").replace("%", "%%")
    lines = [
        f"--job-name={shlex.quote(f'mcls-{sweep.name}')}",
        f"--array=0-{count - 1}%{settings['jobs']}",
        f"--time={settings['time']}",
        f"--nodes=1 --ntasks=1 --cpus-per-task={cpus}",
        f"--requeue --signal=TERM@{SAVING} --open-mode=append",
        f"--output={shlex.quote(f'{logs}/slurm-%A_%a.txt')}",
        *([f"--gpus-per-node={settings['gpus']}"] if settings["gpus"] else []),
        *(f"--{key}={shlex.quote(settings[key])}" for key in ("partition", "mem") if settings[key]),
        *settings["sbatch"],
    ]
    tasks = sweep / "slurm" / f"{name}.json"
    job = shlex.join([sys.executable, "-m", "mcls.sweep.slurm", str(tasks), str(settings["requeues"])])
    commands = [f"export OMP_NUM_THREADS={cpus}", *settings["setup"]]
    commands.append(f'exec srun --ntasks=1 --cpus-per-task={cpus} --unbuffered {job} "$SLURM_ARRAY_TASK_ID"')
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), *commands]) + "\n"


def run_slurm_job(tasks: Path, requeues: int, index: int) -> int:
    """Run a job of an array. On SIGTERM or SIGUSR2 it saves at once, and goes into the queue again.

    Returns the exit status, 1 for a job that failed.
    """
    values = json.loads(tasks.read_text("utf-8"))[index]
    with (tasks.parents[1] / "logs" / f"{values['number']}.txt").open("ab") as file:
        os.dup2(file.fileno(), 2)
    task = Task(**{**values, "folder": Path(values["folder"])})

    def leave_or_requeue(number: int, _frame: FrameType | None) -> None:
        if (RunFolder(task.folder).read_result() or {}).get("status") != "finished":
            requeue(requeues)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, leave_or_requeue)
    with console(), StopRequest(exits=False) as stop:
        try:
            return int(bool(run_task(task, stop)))
        except Stopped as error:
            log.info(f"mcls: {error}")
            leave_or_requeue(error.signal_number, None)
    return 0


def requeue(most: int) -> None:
    """Put this job into SLURM's queue again, up to `most` times, unless somebody cancels it."""
    name = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    state = cluster_command("squeue", "--noheader", "--array", "-j", name, "--format=%T")
    if (state or "").strip() != "RUNNING":  # of a job that is cancelled: COMPLETING
        log.info("it is not put into the queue again: it was cancelled")
    elif (count := int(os.environ.get("SLURM_RESTART_COUNT") or 0)) >= most:
        log.info(f"it is not put into the queue again: it was {plural(count, 'time')} (launcher.requeues)")
    elif cluster_command("scontrol", "requeue", name) is None:
        log.error("scontrol requeue failed; go on with mcls resume")
    else:
        log.info("it goes into the queue again")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run_slurm_job(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
