"""Start and watch the worker processes of a run with trainer.devices > 1."""

import contextlib
import ctypes
import importlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, cast

import torch

from mcls.errors import DataError, FolderError, MachineError, MclsError, RequestError, RunError, Stopped
from mcls.system.device import resolve_device
from mcls.system.distributed import World
from mcls.system.signals import ASKING, StopRequest
from mcls.system.torchrun import rank_and_size

DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


END_TIMEOUT = 5  # seconds that a process is given to end by itself


READY = "ready"


Worker = subprocess.Popen[str]


@contextlib.contextmanager
def launch_workers(
    world: World, device: torch.device, entry: str, given: dict[str, Any], stop: StopRequest
) -> Iterator[None]:
    """As the first process: start the others, unless torchrun has, and join them. At the end they are gone.

    Args:
        entry: `module:function` of what the others do, `function(world, url, given, stop, ready)`; it calls `ready()`
            when it can join the others at `url`, where torch makes the process group.
        given: the configuration; goes there as JSON.

    Raises RunError when one of them ends before its time or stops answering, or the error that it ended with.
    """
    seconds = given["trainer"]["timeout_seconds"]
    if world.size == 1:
        yield
        return
    if rank_and_size()[1] > 1:
        with peer_errors(seconds):
            world.broadcast_object(True)
            yield
        return
    if not hasattr(signal, "pthread_sigmask"):
        raise MachineError(f"trainer.devices: {world.size} processes, which mcls can't start on Windows. Set it to 1.")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")  # this machine's alone
    helpers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="mcls-") as folder, contextlib.ExitStack() as ends:
        ends.callback(stop_workers, helpers)
        address = f"file://{folder}/meeting"
        task = {"size": world.size, "url": address, "entry": entry, "given": given, "parent": os.getpid()}
        helpers.extend(start_worker({**task, "rank": rank}) for rank in range(1, world.size))
        wait_for_workers(helpers, stop)
        with peer_errors(seconds):
            try:
                with world.init_process_group(address, device, seconds):
                    yield
            except RuntimeError as error:
                raise_worker_error(helpers, error)
                raise


@contextlib.contextmanager
def joined(config: dict[str, Any]) -> Iterator[World]:
    """While entered, the processes that torchrun started for a run of `config` are connected."""
    world = World(*rank_and_size())
    if world.size == 1:
        yield world
        return
    config["trainer"]["devices"] = world.size
    seconds = config["trainer"]["timeout_seconds"]
    with peer_errors(seconds), world.init_process_group("env://", resolve_device(config["device"], world), seconds):
        yield world


def dismiss_workers() -> None:
    """Tell the other processes that torchrun started that there is nothing to train."""
    World(*rank_and_size()).broadcast_object(False)


@contextlib.contextmanager
def peer_errors(seconds: float) -> Iterator[None]:
    """Raise RunError for what torch raises when a process that it waits for is gone, or silent for `seconds`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or re.search("gloo|nccl|by peer", str(error), re.I):
            what = "another process ended"
            if re.search("timed? ?out", str(error), re.I):
                what = f"another process did not answer within trainer.timeout_seconds={seconds:g}"
            raise RunError(f"trainer.devices: {what}. What is saved is good: mcls resume.") from error
        raise


def start_worker(task: dict[str, Any]) -> Worker:
    """Start a process that does `task`; on its stdout it says that it is ready, or what is in its way."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from mcls.training.launch import worker_process; worker_process()"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # inherited: signals wait until its handlers stand
    try:
        command = [sys.executable, "-c", code, json.dumps(task)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_output(helper: Worker) -> IO[str]:
    """Where a process says how it goes."""
    return cast(IO[str], helper.stdout)


def stop_workers(helpers: list[Worker]) -> None:
    """Wait until the processes have ended, and no longer than END_TIMEOUT: nothing is their own."""
    deadline = time.monotonic() + END_TIMEOUT
    for helper in helpers:
        try:
            helper.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            helper.kill()
            helper.wait()
        worker_output(helper).close()


def wait_for_workers(helpers: list[Worker], stop: StopRequest) -> None:
    """Wait until every process is ready. Raises the error of one that fails, or Stopped when a signal comes first."""
    try:
        for rank, helper in enumerate(helpers, start=1):
            while not select.select([worker_output(helper)], [], [], 0.05)[0]:
                if signal_number := stop():
                    raise Stopped("stopped", signal_number)
            if (line := worker_output(helper).readline().strip() or str(helper.wait())) != READY:
                raise Stopped("stopped", stop()) if stop() else worker_error(rank, line)
    except MclsError:
        for helper in helpers:  # nothing is trained yet
            helper.kill()
        raise


def raise_worker_error(helpers: list[Worker], error: RuntimeError) -> None:
    """Raise what a process ended with, if one has: it is why the others can't go on."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and not any(helper.poll() for helper in helpers):
        time.sleep(0.01)
    for rank, helper in enumerate(helpers, start=1):
        if status := helper.poll():
            line = worker_output(helper).readline().strip()
            raise worker_error(
                rank, line or f"1 it ended with status {status}. What is saved is good: mcls resume."
            ) from error


def worker_error(rank: int, line: str) -> MclsError:
    """The error that a process reported as `status message`."""
    status, _, message = line.partition(" ")
    if status in {str(128 + signal_number) for signal_number in ASKING}:
        return Stopped("stopped", int(status) - 128)
    kinds = {str(kind.status): kind for kind in (RunError, RequestError, DataError, MachineError, FolderError)}
    return kinds.get(status, RunError)(f"trainer.devices: process {rank}: {message or 'it ended'}")


def worker_process() -> None:
    """The life of a started process. It prints nothing of its own; errors are sent to rank 0."""
    task = json.loads(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != task["parent"]:  # it died before this
        return
    line = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, name = task["entry"].split(":")
    with StopRequest() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        try:
            work = getattr(importlib.import_module(module), name)
            work(World(task["rank"], task["size"]), task["url"], task["given"], stop, lambda: line.write(f"{READY}\n"))
        except MclsError as error:
            line.write(f"{error.status} {error}\n")
            sys.exit(0 if isinstance(error, Stopped | RunError) else 1)  # those all processes raise together
        except Exception as error:
            line.write(f"1 {error!r}".splitlines()[0] + "\n")
            sys.exit(1)
