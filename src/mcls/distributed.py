"""One run in several processes: each trains on its share of every batch, and every sum is taken over all of them.

The first process leads: it alone has the run folder, speaks, and measures at the end. They talk through gloo on CPUs,
through NCCL on GPUs.
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import torch
from torch import Tensor, distributed

from mcls.errors import DataError, FolderError, MachineError, MclsError, RequestError, RunError, Stopped
from mcls.signals import ASKING, StopRequest
from mcls.torchrun import rank_and_size

DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
PATIENCE = 5  # seconds that a process is given to end by itself
READY = "ready"


Helper = subprocess.Popen[str]


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them. Every method but `cut` and `share` waits for all of them.

    Args:
        rank: number of this process; 0 leads.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def cut(self, start: int, end: int) -> tuple[int, int]:
        """This process's part of a row from `start` to `end`; the sizes of the parts differ by one at most."""
        count = end - start
        return start + count * self.rank // self.size, start + count * (self.rank + 1) // self.size

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch if self.size == 1 else batch[slice(*self.cut(0, len(batch)))]

    def weigh(self, loss: Tensor, targets: Tensor, whole: int, weights: Tensor | None) -> Tensor:
        """This process's part of the mean loss over a batch of `whole` samples; the parts add up to it.

        Args:
            loss: mean over this process's `targets`.
            weights: of each class, if the mean is weighed; float (C,).
        """
        if self.size == 1:
            return loss
        if weights is None:
            return loss * (len(targets) / whole)
        mine = weights[targets].sum()
        return loss * (mine / self.sum(mine.clone()))

    def add_gradients(self, weights: Iterable[Tensor]) -> None:
        """Add the gradients of all processes up: in one buffer, so in the same order at every step."""
        if self.size == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        sums = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, sums.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """`values`, added up in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers. It does not wait for a GPU."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Take the leader's `tensors`."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor.detach(), 0)

    def told(self, value: Any) -> Any:
        """What the leader gives."""
        found = [value]
        if self.size > 1:
            distributed.broadcast_object_list(found, 0)
        return found[0]

    def collect(self, value: Any) -> list[Any]:
        """The processes' values, in the order of their ranks."""
        found = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, value)
        return found

    @contextlib.contextmanager
    def joined(self, place: str, device: torch.device) -> Iterator[None]:
        """While entered, the processes that meet at `place` (a URL of torch's) are connected."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=place, rank=self.rank, world_size=self.size)
        try:
            yield
        finally:
            distributed.destroy_process_group()


ALONE = Team()


@contextlib.contextmanager
def leading(team: Team, device: torch.device, entry: str, given: dict[str, Any], stop: StopRequest) -> Iterator[None]:
    """As the first process: start the others, unless torchrun has, and join them. At the end they are gone.

    Args:
        entry: `module:function` of what the others do, `function(team, place, given, stop, ready)`; it calls `ready()`
            when it can join the team at `place`.
        given: goes there as JSON.

    Raises RunError when one of them ends before its time, or the error that it ended with.
    """
    if team.size == 1:
        yield
        return
    if rank_and_size()[1] > 1:
        with team.joined("env://", device):
            yield
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")  # this machine's alone
    helpers: list[Helper] = []
    with tempfile.TemporaryDirectory(prefix="mcls-") as folder, contextlib.ExitStack() as ends:
        ends.callback(end, helpers)
        place = f"file://{folder}/meeting"
        task = {"size": team.size, "place": place, "entry": entry, "given": given, "parent": os.getpid()}
        helpers.extend(start({**task, "rank": rank}) for rank in range(1, team.size))
        await_all(helpers, stop)
        try:
            with team.joined(place, device):
                yield
        except RuntimeError as error:  # what torch raises when a process that it waits for is gone
            blame(helpers, error)
            raise


def start(task: dict[str, Any]) -> Helper:
    """Start a process that does `task`; on its stdout it says that it is ready, or what is in its way."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from mcls.distributed import serve; serve()"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # inherited: signals wait until its handlers stand
    try:
        command = [sys.executable, "-c", code, json.dumps(task)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def output(helper: Helper) -> IO[str]:
    """Where a process says how it goes."""
    return cast(IO[str], helper.stdout)


def end(helpers: list[Helper]) -> None:
    """Wait until the processes have ended, and no longer than PATIENCE: nothing is their own."""
    deadline = time.monotonic() + PATIENCE
    for helper in helpers:
        try:
            helper.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            helper.kill()
            helper.wait()
        output(helper).close()


def await_all(helpers: list[Helper], stop: StopRequest) -> None:
    """Wait until every process is ready. Raises what is in the way of one, or Stopped when a signal comes first."""
    try:
        for rank, helper in enumerate(helpers, start=1):
            while not select.select([output(helper)], [], [], 0.05)[0]:
                if number := stop():
                    raise Stopped("stopped", number)
            if (line := output(helper).readline().strip() or str(helper.wait())) != READY:
                raise Stopped("stopped", stop()) if stop() else failure(rank, line)
    except MclsError:
        for helper in helpers:  # nothing is trained yet
            helper.kill()
        raise


def blame(helpers: list[Helper], error: RuntimeError) -> None:
    """Raise what a process ended with, if one has: it is why the others can't go on."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and not any(helper.poll() for helper in helpers):
        time.sleep(0.01)
    for rank, helper in enumerate(helpers, start=1):
        if status := helper.poll():
            line = output(helper).readline().strip()
            raise failure(
                rank, line or f"1 it ended with status {status}. What is saved is good: mcls resume."
            ) from error


def failure(rank: int, line: str) -> MclsError:
    """The error that a process told of as `status message`."""
    status, _, message = line.partition(" ")
    if status in {str(128 + number) for number in ASKING}:
        return Stopped("stopped", int(status) - 128)
    kinds = {str(kind.status): kind for kind in (RunError, RequestError, DataError, MachineError, FolderError)}
    return kinds.get(status, RunError)(f"trainer.devices: process {rank}: {message or 'it ended'}")


def serve() -> None:
    """The life of a started process. It prints nothing of its own; what goes wrong goes to the leader."""
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
            work(Team(task["rank"], task["size"]), task["place"], task["given"], stop, lambda: line.write(f"{READY}\n"))
        except MclsError as error:
            line.write(f"{error.status} {error}\n")
            sys.exit(0 if isinstance(error, Stopped | RunError) else 1)  # those all processes raise together
        except Exception as error:
            line.write(f"1 {error!r}".splitlines()[0] + "\n")
            sys.exit(1)
