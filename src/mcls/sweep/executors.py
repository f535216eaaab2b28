"""Where the jobs of a sweep run: here one after the other, several at a time in processes of their own, or in SLURM."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any, Protocol, cast

import torch

from mcls.errors import MachineError, RequestError, RunError, Stopped
from mcls.runs.folder import RunFolder, relative
from mcls.sweep.slurm import Slurm, check_cluster
from mcls.sweep.stacked import Stacked
from mcls.sweep.task import Outcome, Task, record_failure, run_task
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest
from mcls.system.text import plural
from mcls.training.setup import DEFAULT_THREADS

log = logging.getLogger("mcls")

POLL = 0.05  # seconds between two looks for a signal
PATIENCE = 9.0  # seconds that a process has to save its run and end


class Executor(Protocol):
    """Runs jobs.

    Args:
        capacity: jobs that run at a time.
        accepts: jobs that it takes at a time, those included that wait for others to end.
    """

    capacity: int
    accepts: int

    def submit(self, task: Task) -> None:
        """Start a job; call it only while there are fewer than `accepts`."""

    def running(self) -> int:
        """Jobs that were submitted and have not come out of `wait`."""

    def wait(self) -> list[Outcome]:
        """Wait for at least one job. Raises Stopped after a signal, when all jobs have ended."""

    def close(self) -> None:
        """Stop what still runs."""


class Inline:
    """Runs one job at a time, in this process."""

    capacity = accepts = 1

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self.ended: list[Outcome] = []

    def submit(self, task: Task) -> None:
        """Run the job to its end. Raises Stopped."""
        self.ended.append((task.number, run_task(task, self.stop)))

    def running(self) -> int:
        """Jobs that have ended and are not taken yet."""
        return len(self.ended)

    def wait(self) -> list[Outcome]:
        """What has ended."""
        ended, self.ended = self.ended, []
        return ended

    def close(self) -> None:
        """Nothing runs."""


class Worker:
    """A process that runs one job after the other, and the job that it is at.

    Args:
        logs: folder for what its jobs print.
        gpus: that it uses.
        ended: told whenever a job has ended: the process, and what it answers, None when it is gone.
    """

    def __init__(
        self, logs: Path, environment: dict[str, str], gpus: Sequence[str], ended: "SimpleQueue[tuple[Worker, str]]"
    ) -> None:
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        self.gpus, self.task, self.ended = list(gpus), cast(Task | None, None), ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mcls.sweep.worker", str(logs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, **visible},
            start_new_session=True,  # Ctrl-C is for this process, which passes it on
            text=True,
        )
        self.jobs, self.answers = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        self.listener = Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        """Pass on the answers."""
        with self.answers as answers:
            for line in answers:
                self.ended.put((self, line))
        self.ended.put((self, ""))

    def start(self, task: Task) -> None:
        """Give it a job."""
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # it is dead already, which `listen` finds
            self.jobs.write(json.dumps(asdict(task), default=str) + "\n")
            self.jobs.flush()


class Parallel:
    """Runs jobs in processes of their own, which end when this one does: their standard input is a pipe from here.

    Args:
        capacity: processes at a time.
        logs: folder for what they print.
        gpus: what CUDA_VISIBLE_DEVICES calls the GPUs; none where the jobs use the CPU.
        each: GPUs a job needs.
    """

    def __init__(self, capacity: int, logs: Path, gpus: Sequence[str], each: int, stop: StopRequest) -> None:
        self.capacity = self.accepts = capacity
        self.logs, self.each, self.stop = logs, each, stop
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores() // capacity)), **os.environ}
        self.free_gpus = list(gpus)
        self.idle: list[Worker] = []
        self.busy: list[Worker] = []
        self.answers: SimpleQueue[tuple[Worker, str]] = SimpleQueue()
        make_folder(logs)
        log.info(
            f"{capacity} {'job' if capacity == 1 else 'jobs'} at a time; what they print: {relative(logs)}/NUMBER.txt"
        )

    def submit(self, task: Task) -> None:
        """Give the job to a process that has none, or to a new one."""
        if self.idle:
            worker = self.idle.pop()
        else:
            gpus, self.free_gpus = self.free_gpus[: self.each], self.free_gpus[self.each :]
            worker = Worker(self.logs, self.environment, gpus, self.answers)
        self.busy.append(worker)
        worker.start(task)

    def running(self) -> int:
        """Jobs that were submitted and have not come out of `wait`."""
        return len(self.busy)

    def wait(self) -> list[Outcome]:
        """Wait for a job to end. Raises Stopped after a signal, when all have ended."""
        while True:
            if signal_number := self.stop():
                self.close()
                raise Stopped("stopped", signal_number)
            with contextlib.suppress(Empty):
                worker, answer = self.answers.get(timeout=POLL)
                if worker in self.idle and not answer:  # it died without a job
                    self.idle.remove(worker)
                    self.free_gpus += worker.gpus
                elif worker in self.busy and worker.task is not None:
                    self.busy.remove(worker)
                    if answer:
                        self.idle.append(worker)
                        return [(worker.task.number, json.loads(answer))]
                    self.free_gpus += worker.gpus
                    return [(worker.task.number, death_of(worker.process, worker.task))]

    def close(self) -> None:
        """Have every process save its run and end; one that does not in time is killed."""
        workers = [*self.busy, *self.idle]
        for worker in workers:
            with contextlib.suppress(BrokenPipeError):
                worker.jobs.close()  # which tells it to stop
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.listener.join()
        self.busy, self.idle = [], []


def death_of(process: subprocess.Popen[str], task: Task) -> str:
    """Why a job whose process is gone failed, recorded in its folder unless that says that it was stopped."""
    code = process.wait()
    folder = RunFolder(task.folder)
    if (folder.read_result() or {}).get("status") == "stopped":
        return "stopped"
    how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit status {code}"
    error = RunError(f"its process was ended by {how}, see logs/{task.number}.txt")
    record_failure(folder, error, task.overrides)
    return str(error)


@contextlib.contextmanager
def executor(settings: dict[str, Any], sweep: Path, config: dict[str, Any], stop: StopRequest) -> Iterator[Executor]:
    """The executor that `settings`, of configs/launcher, describe; what still runs here at the end is stopped.

    Args:
        sweep: its folder.
        config: of its first job.

    Raises RequestError or MachineError for what this machine does not have.
    """
    made: Executor
    if settings["kind"] == "inline":
        made = Inline(stop)
    elif settings["kind"] == "slurm":
        check_cluster(settings, config)
        made = Slurm(settings, sweep, stop)
    elif settings["kind"] == "stacked":
        made = Stacked(settings["jobs"], stop)
    else:
        count, gpus, each = shares(settings["jobs"], config)
        made = Parallel(count, sweep / "logs", gpus, each, stop)
    with contextlib.nullcontext() if isinstance(made, Inline | Stacked) else stop.patient():
        try:
            yield made
        finally:
            made.close()


def capacity(settings: dict[str, Any], config: dict[str, Any]) -> int:
    """Jobs that run at a time; arguments and errors as of `executor`."""
    if settings["kind"] == "slurm":
        check_cluster(settings, config)
        return int(settings["jobs"])
    return 1 if settings["kind"] != "parallel" else shares(settings["jobs"], config)[0]


def shares(jobs: int | str, config: dict[str, Any]) -> tuple[int, list[str], int]:
    """How many jobs run at a time, the GPUs that they take, by the names of CUDA_VISIBLE_DEVICES, and how many each.

    Raises RequestError where a job names a GPU, MachineError where there are too few.
    """
    device, each = config["device"], config["trainer"]["devices"]
    if device.startswith("cuda:"):
        raise RequestError(f"device: {device} would be used by several jobs at a time. Set device=cuda.")
    there = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if not there:
        fitting = max(1, cores() // (each * (config["threads"] or 1)))
        return (fitting if jobs == "auto" else int(jobs)), [], 0
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(there)))
    if each * (1 if jobs == "auto" else int(jobs)) > there:
        wanted = (
            f"{plural(int(jobs), 'job')} at a time with {each} each" if jobs != "auto" else f"trainer.devices={each}"
        )
        raise MachineError(f"launcher.jobs: {wanted} need more GPUs than the {there} of this machine. Lower it.")
    return there // each if jobs == "auto" else int(jobs), names.split(",")[:there], each


def cores() -> int:
    """CPU cores to share: those that torch would use, where the environment does not limit its threads."""
    return (os.cpu_count() or 1) if "OMP_NUM_THREADS" in os.environ else DEFAULT_THREADS
