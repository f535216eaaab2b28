"""Kill a run again and again until it is finished."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps import TRAIN, only_run, result

Run = Callable[..., Any]


def command(root: Path, train: tuple[str, ...] = TRAIN) -> tuple[str, ...]:
    """What a user types next: begin, or go on."""
    folder = only_run(root)
    return train if folder is None or not (folder / "config.yaml").exists() else ("resume", str(folder))


def kill_until_done(
    start: Run, root: Path, draw: random.Random, longest: float, keys: dict[str, Any], train: tuple[str, ...] = TRAIN
) -> int:
    """Begin, kill and resume in `root` until the run is finished. Returns the number of kills, or raises."""
    kills = 0
    while True:
        child = start(*command(root, train), cwd=root, **keys)
        if kills % 7 == 6:  # let one in seven run to its end
            status = child.wait()
        else:
            begun = time.monotonic()
            while command(root, train) is train and time.monotonic() < begun + 20:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.005, longest))
            child.kill()
            status = child.wait()
        if status == -9:
            kills += 1
            continue
        assert status == 0, child.stderr
        folder = only_run(root)
        assert folder is not None
        if result(folder)["status"] == "finished":
            return kills
