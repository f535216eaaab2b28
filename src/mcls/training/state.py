"""The trainer's settings, its progress, and the interface that it reports to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mcls.metrics import Metrics


@dataclass(frozen=True)
class Settings:
    """How long and how to train and measure; the keys of `trainer` and `evaluate` that concern the loop."""

    epochs: int
    patience: int | None
    monitor: str
    grad_clip_norm: float | None
    ema: float | None
    accumulate: int
    oom: str
    max_steps: int | None
    max_minutes: float | None
    tta: str | None
    top_k: int

    @property
    def ranked(self) -> int | None:
        """`top_k` if the monitored measure takes the probabilities of all samples."""
        return self.top_k if self.monitor in ("auroc", "average_precision", "top_k") else None

    @property
    def max_seconds(self) -> float:
        """Seconds of training and measuring that are allowed."""
        return math.inf if self.max_minutes is None else 60 * self.max_minutes

    def reached(self, progress: "Progress") -> str:
        """The key whose number of epochs or steps is reached, `pruner` of a run that is given up, or nothing."""
        if progress.epoch >= self.epochs:
            return "epochs"
        if progress.pruned:
            return "pruner"
        if self.patience is not None and progress.waited >= self.patience:
            return "patience"
        return "max_steps" if self.max_steps is not None and progress.step >= self.max_steps else ""

    log_every_steps: int
    checkpoint_every_seconds: float
    checkpoint_every_steps: int | None


@dataclass
class Progress:
    """Progress of a run. With the weights, optimizer and random state it is all that resuming needs."""

    epoch: int = 0  # finished epochs
    step: int = 0  # optimizer updates
    batch: int = 0  # batches of the current epoch that are done
    loss_sum: float = 0.0  # of the current epoch, over samples
    correct: int = 0
    seen: int = 0
    window: list[float] = field(default_factory=lambda: [0.0, 0, 0])  # loss sum, correct, seen since the last record
    train_seconds: float = 0.0  # in the current epoch's updates
    seconds: float = 0.0  # in all
    samples_and_seconds: list[float] = field(default_factory=lambda: [0, 0.0])  # in all updates
    best: list[float] = field(default_factory=list)  # the best epoch's value, larger is better; then minus its loss
    best_epoch: int = 0
    waited: int = 0  # epochs since the best one
    pieces: int = 1  # that a batch is computed in because it takes too much memory otherwise
    pruned: bool = False  # the search that it is a trial of gave it up

    def count(self, losses: Sequence[float], sizes: Sequence[int], correct: int, seconds: float) -> None:
        """Add steps, done in `seconds`: the loss and the samples of each, and how many samples were right in all."""
        for loss, size in zip(losses, sizes, strict=True):
            self.loss_sum += loss * size
            self.window[0] += loss * size
        samples = sum(sizes)
        self.correct += correct
        self.seen += samples
        self.window[1] += correct
        self.window[2] += samples
        self.train_seconds += seconds
        self.seconds += seconds
        self.samples_and_seconds = [self.samples_and_seconds[0] + samples, self.samples_and_seconds[1] + seconds]

    def seconds_left(self, settings: Settings, share: float = 0.0) -> float:
        """How long the run takes at most from here on, at the pace that it had so far.

        Args:
            share: of the current epoch that is done.
        """
        passed, epochs = self.seconds, self.epoch + share
        paces = [(settings.epochs - epochs) / epochs if epochs else math.inf]
        paces += [(settings.max_steps - self.step) / self.step] if settings.max_steps and self.step else []
        return max(0.0, min(passed * min(paces), settings.max_seconds - passed)) if passed else math.inf

    def begin_epoch(self) -> None:
        """Count the current epoch anew."""
        self.batch = self.correct = self.seen = 0
        self.loss_sum = self.train_seconds = 0.0


def epoch_record(progress: Progress, measures: dict[str, Metrics], monitor: str, rate: float) -> dict[str, Any]:
    """A line of metrics.jsonl: the epoch that `progress` has just finished, what was measured, the learning rate."""
    return {
        "epoch": progress.epoch,
        "step": progress.step,
        "train": {"loss": progress.loss_sum / progress.seen, "accuracy": progress.correct / progress.seen},
        **{name: metrics.scalars() | {monitor: metrics.value(monitor)} for name, metrics in measures.items()},
        "lr": rate,
        "train_seconds": progress.train_seconds,
        "seconds": progress.seconds,
        "samples_per_second": progress.seen / max(progress.train_seconds, 1e-9),
    }


class MetricWriter(Protocol):
    """Interface that the loop reports to; never raises for a failed write."""

    def steps(self, step: int, scalars: dict[str, float]) -> None:
        """Values of the training steps up to `step` since the last report."""

    def epoch(self, record: dict[str, Any]) -> None:
        """One finished epoch: a line of metrics.jsonl."""


class NullWriter:
    """A MetricWriter that writes nothing."""

    def steps(self, step: int, scalars: dict[str, float]) -> None:
        """Nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""
