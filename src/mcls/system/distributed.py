"""One run in several processes: each trains on its shard of every batch, and sums are taken over all of them.

Rank 0 alone has the run folder, prints, and evaluates at the end. The processes communicate through gloo on CPUs,
through NCCL on GPUs.
"""

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. Every method except `cut` waits for all of them.

    Args:
        rank: number of this process; rank 0 has the run folder.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def cut(self, start: int, end: int) -> tuple[int, int]:
        """This process's shard of the range from `start` to `end`; the sizes of the shards differ by at most one."""
        count = end - start
        return start + count * self.rank // self.size, start + count * (self.rank + 1) // self.size

    def loss_share(self, targets: Tensor, whole: int, weights: Tensor | None) -> Tensor | float | None:
        """The weight of this process's mean loss in that of a batch of `whole` samples; None for a single process.

        Args:
            targets: classes of this process's samples.
            weights: of each class, if the mean is weighted; float (C,).
        """
        if self.size == 1:
            return None
        mine = loss_mass(targets, weights)
        return mine / self.sum(mine.clone()) if isinstance(mine, Tensor) else mine / whole

    def add_gradients(self, weights: Iterable[Tensor]) -> None:
        """Sum the gradients over all processes, in one buffer, so in the same order at every step."""
        if self.size == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        sums = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, sums.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """`values`, summed over all processes in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def all_reduce_max(self, value: int) -> int:
        """The maximum of `value` over all processes. It does not wait for a GPU."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace `tensors` by those of rank 0."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor.detach(), 0)

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's object, on all ranks."""
        objects = [value]
        if self.size > 1:
            distributed.broadcast_object_list(objects, 0)
        return objects[0]

    def all_gather(self, value: Any) -> list[Any]:
        """The processes' values, in the order of their ranks."""
        gathered = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(gathered, value)
        return gathered

    def agree_on_start(self, store: Any, seconds: float) -> str:
        """A name that the processes of this start share and that no earlier start had.

        torchrun's `store` survives a restart and still holds the addresses of ended processes, and agents on several
        machines do not count restarts alike (pytorch#135712). So each process writes a name of its own; rank 0 answers
        the newest names with the name of this start until all have joined. Names of ended processes are never read.

        Raises DistError if not all have joined after `seconds`.
        """
        own = uuid.uuid4().hex
        if self.rank:
            store.set(f"mcls/rank/{self.rank}", own)
            start: str = store.get(f"mcls/start/{own}").decode()
            store.set(f"mcls/joined/{start}/{self.rank}", "")
            return start
        deadline = time.monotonic() + seconds
        for rank in range(1, self.size):
            while not store.check([f"mcls/joined/{own}/{rank}"]):
                if store.check([f"mcls/rank/{rank}"]):
                    store.set(f"mcls/start/{store.get(f'mcls/rank/{rank}').decode()}", own)
                if time.monotonic() > deadline:
                    raise distributed.DistError(f"timed out: process {rank} has not joined")
                time.sleep(0.01)
        return own

    @contextlib.contextmanager
    def init_process_group(self, address: str, device: torch.device, seconds: float) -> Iterator[None]:
        """Within the context, the processes that call this with `address` (a URL of torch's) are connected.

        Collective operations raise RuntimeError when a process is gone, or does not answer for `seconds`.
        """
        timeout = timedelta(seconds=seconds)
        keys: dict[str, Any] = {"rank": self.rank, "world_size": self.size, "timeout": timeout}
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if address == "env://":
            store = next(rendezvous(address, timeout=timeout))[0]
            store = distributed.PrefixStore(self.agree_on_start(store, seconds), store)  # type: ignore[attr-defined]
            distributed.init_process_group(backend, store=store, **keys)
        else:
            distributed.init_process_group(backend, init_method=address, **keys)
        try:
            yield
        finally:
            distributed.destroy_process_group()


SINGLE_PROCESS = World()


def loss_mass(targets: Tensor, weights: Tensor | None) -> Tensor | int:
    """The weight of samples in a mean loss: their number, or the sum of their classes' `weights`.

    Args:
        targets: class numbers (N,), or probabilities of the classes (N, C).
    """
    if weights is None:
        return len(targets)
    return (targets @ weights).sum() if targets.is_floating_point() else weights[targets].sum()
