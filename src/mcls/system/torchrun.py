"""What `torchrun` told this process."""

import os


def rank_and_size() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) without torchrun."""
    rank, size = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    return (rank, size) if size > 1 else (0, 1)
