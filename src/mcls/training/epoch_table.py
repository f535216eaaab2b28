"""The epochs of a run as the lines of a table."""

import logging
import math
import time
from typing import Any

from mcls.system.console import GOOD
from mcls.system.text import lasting

log = logging.getLogger("mcls")

FIRST = 10  # epochs that get a line however short they are
INTERVAL = 1.0  # seconds between two lines after them


class EpochTable:
    """Logs finished epochs: each of the first ones and the last one, and of the others one a second at most.

    Args:
        epochs: how many are planned.
        plain: whether the training loss is the plain log-loss, as those of val and test are.
    """

    def __init__(self, epochs: int, plain: bool) -> None:
        self.epochs, self.plain = epochs, plain
        self.lines, self.told = 0, -math.inf

    def add(self, record: dict[str, Any], left: float, best: bool, last: bool) -> None:
        """Log an `epoch_record`.

        Args:
            left: seconds that the run still takes.
            best, last: whether the epoch is the best one so far, the last one.
        """
        now = time.monotonic()
        if self.lines >= FIRST and now - self.told < INTERVAL and not last:
            return
        splits = [name for name in ("train", "val", "test") if name in record]
        names, width = {"train": "train loss" if self.plain else "objective"}, len(f"{self.epochs}/{self.epochs}")
        cells = [("epoch", f"{record['epoch']}/{self.epochs}", width)]
        for name in splits:
            cells += [(names.get(name, f"{name} loss"), loss_cell(record[name]["loss"]), 7)]
            cells += [("acc", f"{record[name]['accuracy']:.2%}", 7)]
        if len(splits) < 3:  # or a line has more than 80 characters
            cells += [("samples/s", f"{record['samples_per_second']:,.0f}", 9)]
        cells += [("left", "" if last else lasting(left), 6)]
        if not self.lines:
            log.info("  ".join(head.rjust(max(len(head), least)) for head, _, least in cells))
        line = "  ".join(cell.rjust(max(len(head), least)) for head, cell, least in cells)
        log.info(line.rstrip(), extra={"colour": GOOD if best else ""})
        self.lines, self.told = self.lines + 1, now


def loss_cell(loss: float) -> str:
    """A loss in seven characters."""
    return f"{loss:.4f}" if abs(loss) < 100 else f"{loss:.2g}"
