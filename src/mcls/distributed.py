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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import torch
from torch import Tensor, distributed, nn

from mcls.errors import MclsError, RunError, Stopped
from mcls.signals import ASKING, StopRequest

DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
PATIENCE = 5  # seconds that a process is given to end by itself
READY = "ready"


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them. Every method but `cut`, `share` and `weigh` waits for all of them.

    Args:
        rank: number of this process; 0 leads.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def cut(self, start: int, end: int) -> tuple[int, int]:
        """This process's part of a row from `start` to `end`: the row is cut into `size` parts, equal but for one."""
        count = end - start
        return start + count * self.rank // self.size, start + count * (self.rank + 1) // self.size

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch if self.size == 1 else batch[slice(*self.cut(0, len(batch)))]

    def weigh(self, loss: Tensor, mine: int, whole: int) -> Tensor:
        """The mean loss over `mine` samples, so weighed that the processes' mean is that over the `whole` batch."""
        return loss if self.size == 1 else loss * (mine * self.size / whole)

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, with gradients that are the mean over all processes, and the leader's weights."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)

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
            distributed.broadcast(tensor, 0)

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


def launched() -> Team | None:
    """The team that `torchrun` made this process a part of, if it did."""
    rank, size = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    return Team(rank, size) if size > 1 else None


@contextlib.contextmanager
def leading(team: Team, device: torch.device, entry: str, given: dict[str, Any], stop: StopRequest) -> Iterator[None]:
    """As the first process: start the others, unless torchrun has, and join them. At the end they are gone.

    Args:
        entry: `module:function` of what the others do, `function(team, place, given, stop, ready)`; it calls `ready()`
            when it can join the team at `place`.
        given: goes there as JSON.

    Raises RunError when one of them fails or is killed.
    """
    if team.size == 1:
        yield
        return
    if launched() is not None:
        with team.joined("env://", device):
            yield
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        place = f"file://{folder}/meeting"
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"  # this machine's alone
        helpers = []
        for rank in range(1, team.size):
            task = {"rank": rank, "size": team.size, "place": place, "entry": entry, "given": given}
            helpers.append(start({**task, "parent": os.getpid()}))
            ends.callback(end, helpers[-1])
        await_all(helpers, stop)
        try:
            with team.joined(place, device):
                yield
        except RuntimeError as error:  # what torch raises when a process that it waits for is gone
            if reason := blame(helpers):
                raise RunError(reason) from error
            raise


def start(task: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a process that does `task`; on its stdout it says that it is ready, or what is in its way."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from mcls.distributed import serve; serve()"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # inherited: signals wait until its handlers stand
    try:
        command = [sys.executable, "-c", code, json.dumps(task)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(helper: subprocess.Popen[str]) -> None:
    """Wait until a process has ended, and no longer than PATIENCE: nothing is its own."""
    try:
        helper.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()
    output(helper).close()


def output(helper: subprocess.Popen[str]) -> IO[str]:
    """Where a process says how it goes."""
    return cast(IO[str], helper.stdout)


def await_all(helpers: list[subprocess.Popen[str]], stop: StopRequest) -> None:
    """Wait until every process is ready. Raises RunError when one is not, Stopped when a signal comes first."""
    for rank, helper in enumerate(helpers, start=1):
        while not select.select([output(helper)], [], [], 0.05)[0]:
            if number := stop():
                raise Stopped("stopped", number)
        if (line := output(helper).readline().strip()) != READY:
            raise RunError(f"trainer.devices: process {rank} can't begin: {line or 'it ended'}")


def blame(helpers: list[subprocess.Popen[str]]) -> str:
    """Which processes have failed and why, or nothing when all are well."""
    found = []
    for rank, helper in enumerate(helpers, start=1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            if status := helper.wait(PATIENCE):
                found.append(f"process {rank}: {output(helper).readline().strip() or f'ended with status {status}'}")
    return f"trainer.devices: {'; '.join(found)}. What is saved is good: mcls resume." if found else ""


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
        except (Stopped, RunError):
            pass  # all processes raise these together
        except BaseException as error:
            line.write(f"{error if isinstance(error, MclsError) else repr(error)}".splitlines()[0] + "\n")
            sys.exit(1)
