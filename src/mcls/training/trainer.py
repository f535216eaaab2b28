"""The training loop. Read `Trainer.fit`, then `Trainer.train_epoch`: nothing happens that is not written there."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mcls.data.loader import Loader
from mcls.errors import RunError, Stopped
from mcls.metrics import Metrics, RunningLoss
from mcls.system.device import rng_states, set_rng_states
from mcls.system.distributed import SINGLE_PROCESS, World
from mcls.training.optim import LRScheduler, raw_step
from mcls.training.precision import autocast, evaluate_loader

log = logging.getLogger("mcls")

LINES = 100  # epochs that get a line on the terminal, at most


@dataclass(frozen=True)
class Settings:
    """How long and how to train; the keys of configs/trainer that concern the loop."""

    epochs: int
    patience: int | None
    monitor: str
    grad_clip_norm: float | None
    log_every_steps: int
    checkpoint_every_seconds: float
    checkpoint_every_steps: int | None


@dataclass
class Progress:
    """How far a run is. With the weights, the optimizer and the random state it is all that a resumed run needs."""

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


class MetricWriter(Protocol):
    """Where the loop reports; never raises for a failed write."""

    def steps(self, step: int, scalars: dict[str, float]) -> None:
        """Values of the training steps up to `step` since the last report."""

    def epoch(self, record: dict[str, Any]) -> None:
        """One finished epoch: a line of metrics.jsonl."""


class Trainer:
    """Trains a model; everything that changes is in `state_dict()`.

    Args:
        model: inputs (N, ...) to logits (N, C), on `device`.
        loss: logits and targets to a mean, weighted by `class_weights`, float (C,) on `device`, if there are any.
        optimizer: over the model's parameters.
        rates: sets the optimizer's learning rates before each step.
        settings: see Settings.
        device, precision: where and with what arithmetic the forward pass runs.
        recorder: gets the numbers.
        save: writes a checkpoint of the state; told whether its best weights are new since the last call.
        stop: number of the signal that asks to stop, or 0; asked after every step.
        team: the processes that train together; connected before the trainer is made.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        rates: LRScheduler,
        settings: Settings,
        *,
        num_classes: int,
        device: torch.device,
        precision: str,
        recorder: MetricWriter,
        save: Callable[[dict[str, Any], bool], None],
        stop: Callable[[], int],
        world: World = SINGLE_PROCESS,
        class_weights: Tensor | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.rates, self.settings = model, loss, optimizer, rates, settings
        self.num_classes, self.class_weights = num_classes, class_weights
        self.device, self.precision = device, precision
        self.recorder, self.save, self.stop, self.world = recorder, save, stop, world
        world.broadcast([*model.parameters(), *model.buffers()])
        self.asked = 0  # the signal that all processes agreed to stop for
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.step = raw_step(optimizer)
        self.progress = Progress()
        self.running = RunningLoss()
        self.best: dict[str, Any] | None = None
        self.best_is_new, self.last_loss = False, math.nan
        self.saved_at = time.monotonic()

    def fit(self, train: Loader, val: Loader | None, test: Loader | None = None) -> None:
        """Train to the end of the last epoch, or until patience runs out. Raises Stopped after a signal.

        Selects the best epoch on `val`; without it the last one counts. `test` is measured and selects nothing.
        """
        progress = self.progress
        while not self.finished:
            self.train_epoch(train)
            started = time.monotonic()
            measured = {"val": val, "test": test}
            try:
                measures = {name: self.evaluate(loader) for name, loader in measured.items() if loader is not None}
            except Stopped as stopped:
                self.asked = stopped.signal_number
                self.pause()  # which raises it again, when everything is saved
            self.record()  # with the epoch, so that a checkpoint at its last step has both written or neither
            if "val" in measures:
                self.select(measures["val"])
            progress.epoch += 1
            progress.seconds += time.monotonic() - started
            self.report(measures)
            progress.batch = progress.correct = progress.seen = 0
            progress.loss_sum = progress.train_seconds = 0.0
            if self.pause_due() or self.settings.checkpoint_every_seconds == 0:
                self.pause()
        self.checkpoint()

    def train_epoch(self, train: Loader) -> None:
        """The rest of the current epoch, one optimizer step a batch."""
        progress, settings = self.progress, self.settings
        self.model.train()
        started = time.monotonic()
        title = f"epoch {progress.epoch + 1}/{settings.epochs}"
        batches, quiet = train.epoch(progress.epoch, progress.batch, self.world), True if self.world.rank else None
        with tqdm(total=len(train), initial=progress.batch, desc=title, leave=False, delay=0.5, disable=quiet) as bar:
            for inputs, targets in batches:
                self.rates.set(progress.step)
                with autocast(self.device, self.precision):
                    logits = self.model(inputs)
                    loss = self.loss(logits, targets)
                size = train.size(progress.batch)
                loss = self.world.scale_loss(loss, targets, size, self.class_weights)
                self.optimizer.zero_grad()
                self.scaler.scale(loss).backward()
                self.world.add_gradients(self.model.parameters())
                if settings.grad_clip_norm is not None:
                    self.scaler.unscale_(self.optimizer)
                    nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip_norm)
                if self.precision == "fp16":
                    self.scaler.step(self.optimizer)  # skipped where gradients overflowed; the scaler then adapts
                    self.scaler.update()
                else:
                    self.step()
                self.running.add(loss, logits, targets, size)
                progress.step += 1
                progress.batch += 1
                bar.update()
                if progress.step % settings.log_every_steps == 0 and progress.batch < len(train):
                    started = self.flush(started)
                    self.record()
                    bar.set_postfix_str(f"loss {self.last_loss:.4f}", refresh=False)
                if self.pause_due() and progress.batch < len(train):
                    self.flush(started)
                    self.pause()
                    started = time.monotonic()
        self.flush(started)

    def flush(self, started: float) -> float:
        """Read the losses of the steps since the last call, the one wait for the device. Returns the time.

        Raises RunError at the first loss that is not finite.
        """
        losses, sizes, correct = self.running.flush(self.world)
        now = time.monotonic()
        if not losses:
            return now
        progress, rate = self.progress, self.optimizer.param_groups[0]["lr"]
        for number, (loss, size) in enumerate(zip(losses, sizes, strict=True), start=progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise RunError(
                    f"step {number}: the training loss is {loss}, learning rate {rate:g}, "
                    f"last finite loss {self.last_loss:g}. Lower optimizer.lr, or clip with trainer.grad_clip_norm=1."
                )
            self.last_loss = loss
            progress.loss_sum += loss * size
            progress.window[0] += loss * size
        progress.correct += correct
        progress.seen += sum(sizes)
        progress.window[1] += correct
        progress.window[2] += sum(sizes)
        progress.train_seconds += now - started
        progress.seconds += now - started
        samples, seconds = progress.samples_and_seconds
        progress.samples_and_seconds = [samples + sum(sizes), seconds + now - started]
        return now

    def record(self) -> None:
        """Report the steps since the last record, wherever a checkpoint was written between them."""
        loss, correct, seen = self.progress.window
        if seen:
            rate = self.optimizer.param_groups[0]["lr"]
            scalars = {"train/loss_step": loss / seen, "train/accuracy_step": correct / seen, "lr": rate}
            self.recorder.steps(self.progress.step, scalars)
        self.progress.window = [0.0, 0, 0]

    def evaluate(self, loader: Loader) -> Metrics:
        """Measure the current weights on everything that `loader` serves. Raises Stopped after a signal."""
        self.world.broadcast(self.model.buffers())
        with contextlib.suppress(Stopped):
            accumulator = evaluate_loader(self.model, loader, self.num_classes, self.precision, self.stop, self.world)
        if number := self.world.all_reduce_max(self.stop()):
            raise Stopped("stopped while measuring", number)  # in every process
        return accumulator.measure(self.world)

    def select(self, val: Metrics) -> None:
        """Keep a copy of the weights if they are the best so far on `val`; a tie goes to the smaller loss.

        Raises RunError when the validation loss is not finite.
        """
        progress = self.progress
        if not math.isfinite(val.loss):
            raise RunError(f"epoch {progress.epoch + 1}: the validation loss is {val.loss}. Lower optimizer.lr.")
        value = -val.loss if self.settings.monitor == "loss" else val.scalars()[self.settings.monitor]
        if progress.best and [value, -val.loss] <= progress.best:
            progress.waited += 1
            return
        progress.best, progress.best_epoch, progress.waited = [value, -val.loss], progress.epoch + 1, 0
        self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.best_is_new = True

    def report(self, measures: dict[str, Metrics]) -> None:
        """One finished epoch to the recorder and, for at most LINES of them, the log."""
        progress, epochs = self.progress, self.settings.epochs
        speed = progress.seen / max(progress.train_seconds, 1e-9)
        record = {
            "epoch": progress.epoch,
            "step": progress.step,
            "train": {"loss": progress.loss_sum / progress.seen, "accuracy": progress.correct / progress.seen},
            **{name: found.scalars() for name, found in measures.items()},
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_seconds": progress.train_seconds,
            "seconds": progress.seconds,
            "samples_per_second": speed,
        }
        self.recorder.epoch(record)
        if progress.epoch % -(-epochs // LINES) == 0 or self.finished:
            parts = [
                f"{name} loss {record[name]['loss']:.4f} acc {record[name]['accuracy']:.2%}"
                for name in ("train", *measures)
            ]
            log.info(f"epoch {progress.epoch}/{epochs}  {'  '.join(parts)}  {speed:,.0f} samples/s")

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done or patience has run out."""
        progress, patience = self.progress, self.settings.patience
        return progress.epoch >= self.settings.epochs or (patience is not None and progress.waited >= patience)

    def pause_due(self) -> bool:
        """Whether a signal came to any process, or enough steps or seconds have passed since the last checkpoint."""
        steps, seconds = self.settings.checkpoint_every_steps, self.settings.checkpoint_every_seconds
        due = steps is not None and self.progress.step % steps == 0
        due = due or (seconds > 0 and time.monotonic() - self.saved_at >= seconds)
        agreed = self.world.all_reduce_max(2 * self.stop() + due)
        self.asked = agreed // 2
        return agreed > 0

    def pause(self) -> None:
        """Write a checkpoint; then raise Stopped if a signal asked for it."""
        self.checkpoint()
        if self.asked:
            raise Stopped(f"stopped at step {self.progress.step}", self.asked)

    def checkpoint(self) -> None:
        """Save everything. Raises RunError rather than save weights that are not finite."""
        self.world.broadcast(self.model.buffers())
        weights = dict(self.model.state_dict())
        for number, values in enumerate(self.optimizer.state.values()):
            weights |= {f"the optimizer's {key} of weight {number}": item for key, item in values.items()}
        for name, tensor in weights.items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                raise RunError(
                    f"step {self.progress.step}: {name} is not finite, last finite loss {self.last_loss:g}; not saved. "
                    "Lower optimizer.lr, or clip with trainer.grad_clip_norm=1."
                )
        self.save(self.state_dict(), self.best_is_new)
        self.best_is_new = False
        self.saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as tensors and plain values. Every process of a team has to ask for it."""
        return {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "rng": self.world.all_gather(rng_states(self.device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.best = state["best"]
        self.best_is_new = self.best is not None  # best.pt may be older than this, or damaged: it is written again
        set_rng_states(state["rng"][self.world.rank], self.device)
