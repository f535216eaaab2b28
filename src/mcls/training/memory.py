"""Steps that take more memory than the device has: say which batch fits, or compute the batch in pieces."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from mcls.errors import MachineError
from mcls.system.distributed import World
from mcls.training.state import Progress, Settings

log = logging.getLogger("mcls")

Step = Callable[[], tuple[Tensor, Tensor]]


def compute_in_memory(
    compute: Step, batch_size: int, progress: Progress, settings: Settings, optimizer: Optimizer, world: World
) -> tuple[Tensor, Tensor]:
    """What `compute` makes of a batch of up to `batch_size` samples, in `progress.pieces` times as many pieces.

    Where memory runs out the pieces are halved until they fit. `trainer.oom=accumulate` goes on with that number of
    pieces; otherwise MachineError names what fits. Raises torch.OutOfMemoryError where nothing does, while a step is
    recorded, and with several processes.
    """
    started = progress.pieces
    while True:
        try:
            outcome = compute()
            break
        except torch.OutOfMemoryError:
            device = optimizer.param_groups[0]["params"][0].device
            recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
            if recording or world.size > 1 or batch_size < 4 * settings.accumulate * progress.pieces:
                raise
        optimizer.zero_grad()  # here, where no error holds the tensors of the step that failed
        if device.type == "cuda":
            torch.cuda.empty_cache()
        progress.pieces *= 2
    if progress.pieces > started:
        whole, piece = (-(-batch_size // (settings.accumulate * pieces)) for pieces in (started, progress.pieces))
        told = f"{whole} samples take more memory than {device} has, {piece} fit"
        if settings.oom != "accumulate":
            raise MachineError(
                f"trainer.batch_size: {told}. Set trainer.batch_size={piece}, or trainer.oom=accumulate for the same "
                "steps in pieces of that size."
            )
        log.warning(f"memory  {told}: each batch is computed in {settings.accumulate * progress.pieces} pieces")
    return outcome
