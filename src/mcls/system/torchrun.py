"""What `torchrun` passes to a process in environment variables."""

import os

from mcls.errors import RequestError


def rank_and_size() -> tuple[int, int]:
    """Rank and number of processes; (0, 1) without torchrun."""
    rank, size = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    return (rank, size) if size > 1 else (0, 1)


def processes_here(size: int) -> int:
    """How many of the `size` processes of a run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size)) if rank_and_size()[1] > 1 else size


def check_restart(name: str | None) -> None:
    """Raise RequestError if torchrun restarts a run without a `name`, which would begin a second run."""
    if name is None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        raise RequestError("name: torchrun restarted a run without a name, which would begin anew. Set name=NAME.")
