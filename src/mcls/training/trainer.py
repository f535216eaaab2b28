"""The training loop. Read `Trainer.fit`, then `Trainer.train_epoch`: nothing happens that is not written there."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcls.data.loader import Loader
from mcls.errors import RunError, Stopped
from mcls.losses import is_log_loss
from mcls.metrics import Metrics, RunningLoss
from mcls.system.console import progress_bar
from mcls.system.device import rng_states, set_rng_states
from mcls.system.distributed import SINGLE_PROCESS, World, loss_mass
from mcls.system.signals import never
from mcls.system.text import lasting
from mcls.training.average import WeightAverage
from mcls.training.epoch_table import EpochTable
from mcls.training.graph import GraphedStep
from mcls.training.memory import compute_in_memory
from mcls.training.optim import LRScheduler, not_finite, raw_step, train_mode
from mcls.training.precision import autocast, evaluate_loader
from mcls.training.state import MetricWriter, Progress, Settings, epoch_record


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
        world: the processes that train together; connected before the trainer is made.
        cuda_graph: record a step and replay it.
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
        cuda_graph: bool = False,
    ) -> None:
        self.model, self.loss, self.optimizer, self.rates, self.settings = model, loss, optimizer, rates, settings
        self.num_classes, self.class_weights, self.device = num_classes, class_weights, device
        self.precision, self.recorder, self.save, self.stop, self.world = precision, recorder, save, stop, world
        world.broadcast([*model.parameters(), *model.buffers()])
        self.asked, self.out_of_time = 0, False  # all agreed: a signal to stop for, trainer.max_minutes passed
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.graphed = GraphedStep(raw_step(optimizer), optimizer) if cuda_graph else None
        self.step = raw_step(optimizer) if self.graphed is None else self.graphed.optimizer_step
        self.average = None if settings.ema is None else WeightAverage(model, settings.ema)
        self.prune: Callable[[int, float], bool] = never  # from an epoch and its val accuracy: whether to give up
        self.progress, self.running, self.measure = Progress(), RunningLoss(), evaluate_loader
        self.best: dict[str, Any] | None = None
        self.best_is_new, self.last_loss = False, math.nan
        self.saved_at = self.flushed_at = time.monotonic()

    def fit(self, train: Loader, val: Loader | None, test: Loader | None = None) -> str:
        """Train until `ended_by` names what ends it, and return that. Raises Stopped after a signal.

        Selects the best epoch on `val`; without it the last one counts. `test` is measured and selects nothing.
        An epoch that a limit cuts short is measured like any other, but what is saved is from before that: a resumed
        run goes on with the epoch.
        """
        self.table = EpochTable(self.settings.epochs, train.mix is None and is_log_loss(self.loss))
        loaders = {name: loader for name, loader in {"val": val, "test": test}.items() if loader is not None}
        while not self.ended_by:
            self.train_epoch(train)
            if self.progress.batch < len(train):
                break
            self.end_epoch(loaders)
            if self.pause_due() or self.settings.checkpoint_every_seconds == 0:
                self.pause()
        self.checkpoint()
        if (ended := self.ended_by).startswith("max_") and self.progress.batch:
            self.end_epoch(loaders)
        return ended

    def train_epoch(self, train: Loader) -> None:
        """The rest of the current epoch, one optimizer step a batch, to its end or to a limit."""
        progress, settings = self.progress, self.settings
        train_mode(self.model, progress.epoch)
        self.flushed_at = time.monotonic()
        title = f"epoch {progress.epoch + 1}/{settings.epochs}"
        batches = train.epoch(progress.epoch, progress.batch, self.world)
        with progress_bar(title, len(train), progress.batch, quiet=self.world.rank > 0) as bar:
            for inputs, targets in batches:
                self.rates.set(progress.step)
                size = train.size(progress.batch)
                if self.graphed is None:
                    loss, logits = self.update(inputs, targets, size, train.batch_size)
                else:
                    loss, logits = self.graphed(self.update, inputs, targets, size, train.batch_size)
                if self.average is not None:
                    self.average.update(progress.step)
                self.running.add(loss, logits, targets, size)
                progress.step += 1
                progress.batch += 1
                bar.update()
                if progress.step % settings.log_every_steps == 0 and progress.batch < len(train):
                    self.flush()
                    self.record()
                    left = progress.seconds_left(settings, progress.batch / len(train))
                    bar.set_postfix_str(f"loss {self.last_loss:.4f}, run {lasting(left)} left", refresh=False)
                if self.pause_due() and progress.batch < len(train):
                    self.flush()
                    if self.ended_by and not self.asked:
                        break
                    self.pause()
                    self.flushed_at = time.monotonic()
        self.flush()

    def update(self, inputs: Tensor, targets: Tensor, size: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """One optimizer step on this process's part of a batch of `size` samples. Returns loss and logits."""
        share = self.world.loss_share(targets, size, self.class_weights)
        compute = partial(self.gradients, inputs, targets, share, batch_size)
        loss, logits = compute_in_memory(compute, batch_size, self.progress, self.settings, self.optimizer, self.world)
        self.world.add_gradients(self.model.parameters())
        if self.settings.grad_clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip_norm)
        if self.precision == "fp16":
            self.scaler.step(self.optimizer)  # skipped where gradients overflowed; the scaler then adapts
            self.scaler.update()
        else:
            self.step()
        return loss, logits

    def backward(
        self, inputs: Tensor, targets: Tensor, share: Tensor | float | None, first: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The gradients of samples that are `share` of a batch, None for all of it, added to those of earlier samples
        unless they are its `first`. Returns loss and logits."""
        with autocast(self.device, self.precision):
            logits = self.model(inputs)
            loss = self.loss(logits, targets)
        if share is not None:
            loss = loss * share
        if first:
            self.optimizer.zero_grad()  # not before the forward pass, which would take their memory, to be had in cache
        self.scaler.scale(loss).backward()
        return loss.detach(), logits.detach()

    def gradients(
        self, inputs: Tensor, targets: Tensor, share: Tensor | float | None, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """`backward`, of a batch of up to `batch_size` samples of all processes together, in pieces if asked."""
        if (count := self.settings.accumulate * self.progress.pieces) == 1:
            return self.backward(inputs, targets, share)
        pieces = -(-len(targets) // -(-batch_size // (count * self.world.size)))
        computed: list[tuple[Tensor, Tensor]] = []
        whole = loss_mass(targets, self.class_weights)
        for part, truth in zip(inputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
            fraction = loss_mass(truth, self.class_weights) / whole
            computed.append(self.backward(part, truth, fraction if share is None else fraction * share, not computed))
        losses, logits = zip(*computed, strict=True)
        return torch.stack(losses).sum(), torch.cat(logits)

    def end_epoch(self, loaders: dict[str, Loader]) -> None:
        """Measure the weights at the end of an epoch, select on val, report, and begin to count the next epoch."""
        progress, started = self.progress, time.monotonic()
        try:
            measures = {name: self.evaluate(loader) for name, loader in loaders.items()}
        except Stopped as stopped:
            self.asked = stopped.signal_number
            self.pause()  # which raises it again, when everything is saved
        self.record()  # with the epoch, so that a checkpoint at its last step has both written or neither
        if (val := measures.get("val")) is not None:
            self.select(val)
            progress.pruned = self.world.all_reduce_max(int(self.prune(progress.epoch + 1, val.accuracy))) > 0
        progress.epoch += 1
        self.flushed_at = time.monotonic()
        progress.seconds += self.flushed_at - started
        self.report(measures)
        progress.begin_epoch()

    def flush(self) -> None:
        """Read the losses of the steps since the last call; the only place that waits for the device.

        Raises RunError at the first loss that is not finite.
        """
        losses, sizes, correct = self.running.flush(self.world)
        if not losses:
            return
        passed, self.flushed_at = time.monotonic() - self.flushed_at, time.monotonic()
        progress, rate = self.progress, self.optimizer.param_groups[0]["lr"]
        for step, loss in enumerate(losses, start=progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise RunError(
                    f"step {step}: the training loss is {loss}, learning rate {rate:g}, "
                    f"last finite loss {self.last_loss:g}. Lower optimizer.lr, or clip with trainer.grad_clip_norm=1."
                )
            self.last_loss = loss
        progress.count(losses, sizes, correct, passed)

    def record(self) -> None:
        """Report the steps since the last record, independent of checkpoints written in between."""
        loss, correct, seen = self.progress.window
        if seen:
            rate = self.optimizer.param_groups[0]["lr"]
            scalars = {"train/loss_step": loss / seen, "train/accuracy_step": correct / seen, "lr": rate}
            self.recorder.steps(self.progress.step, scalars)
        self.progress.window = [0.0, 0, 0]

    def evaluate(self, loader: Loader) -> Metrics:
        """Evaluate the current or averaged weights on all samples of `loader`. Raises Stopped after a signal."""
        self.agree()
        with self.average.applied() if self.average else contextlib.nullcontext(), contextlib.suppress(Stopped):
            how = (self.precision, self.stop, self.world, self.settings.tta, self.settings.ranked)
            accumulator = self.measure(self.model, loader, self.num_classes, *how)
        if signal_number := self.world.all_reduce_max(self.stop()):
            raise Stopped("stopped while measuring", signal_number)  # in every process
        return accumulator.measure(self.world)

    def select(self, val: Metrics) -> None:
        """Keep a copy of the weights if they are the best so far on `val`; a tie goes to the smaller loss.

        Raises RunError when the validation loss is not finite.
        """
        progress = self.progress
        if not math.isfinite(val.loss):
            raise RunError(f"epoch {progress.epoch + 1}: the validation loss is {val.loss}. Lower optimizer.lr.")
        value = -val.loss if self.settings.monitor == "loss" else val.value(self.settings.monitor)
        if progress.best and [value, -val.loss] <= progress.best:
            progress.waited += 1
            return
        progress.best, progress.best_epoch, progress.waited = [value, -val.loss], progress.epoch + 1, 0
        self.best, self.best_is_new = {name: tensor.detach().clone() for name, tensor in self.weights.items()}, True

    def report(self, measures: dict[str, Metrics]) -> None:
        """Pass a finished epoch to the recorder and to the table in the log."""
        record = epoch_record(self.progress, measures, self.settings.monitor, self.optimizer.param_groups[0]["lr"])
        self.recorder.epoch(record)
        left, best = self.progress.seconds_left(self.settings), self.progress.best_epoch == self.progress.epoch
        self.table.add(record, left, best, last=bool(self.ended_by))

    @property
    def ended_by(self) -> str:
        """The key of `trainer` whose value ends the training now; nothing while it goes on."""
        return self.settings.reached(self.progress) or "max_minutes" * self.out_of_time

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that are evaluated and selected: the average with `trainer.ema`, else the model's."""
        return self.model.state_dict() if self.average is None else self.average.weights

    def agree(self) -> None:
        """Copy rank 0's buffers and their average to all ranks; each rank computes them on its own samples."""
        self.world.broadcast([*self.model.buffers(), *(self.average.weights.values() if self.average else ())])

    def pause_due(self) -> bool:
        """Whether a signal came to any process, a limit is reached, or a checkpoint is due by its steps or seconds."""
        settings, step, now = self.settings, self.progress.step, time.monotonic()
        steps, seconds = settings.checkpoint_every_steps, settings.checkpoint_every_seconds
        due = step == settings.max_steps or (steps is not None and step % steps == 0)
        due = due or (seconds > 0 and now - self.saved_at >= seconds)
        over = self.progress.seconds + now - self.flushed_at >= settings.max_seconds
        agreed = self.world.all_reduce_max(4 * self.stop() + 2 * over + due)
        self.asked, self.out_of_time = agreed // 4, self.out_of_time or agreed % 4 > 1
        return agreed > 0

    def pause(self) -> None:
        """Write a checkpoint; then raise Stopped if a signal asked for it."""
        self.checkpoint()
        if self.asked:
            raise Stopped(f"stopped at step {self.progress.step}", self.asked)

    def checkpoint(self) -> None:
        """Save everything. Raises RunError rather than save weights that are not finite."""
        self.agree()
        if name := not_finite(self.model, self.optimizer):
            raise RunError(
                f"step {self.progress.step}: {name} is not finite, last finite loss {self.last_loss:g}; not saved. "
                "Lower optimizer.lr, or clip with trainer.grad_clip_norm=1."
            )
        self.save(self.state_dict(), self.best_is_new)
        self.best_is_new, self.saved_at = False, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """All state that changes, as tensors and plain values. All ranks must call it."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.weights if self.average else None,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "rng": self.world.all_gather(rng_states(self.device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        progress = self.progress = Progress(**state["progress"])
        given_up = progress.pruned and self.prune(progress.epoch, math.nan)
        progress.pruned = self.world.all_reduce_max(int(given_up)) > 0
        self.out_of_time = progress.seconds >= self.settings.max_seconds
        self.best, self.best_is_new = state["best"], state["best"] is not None  # best.pt may be older, or damaged
        here = self.world.size == len(state["rng"])
        set_rng_states(state["rng"][self.world.rank if here else 0], self.device)
        if not here:  # resumed on another number of processes
            torch.manual_seed(int(torch.randint(2**31, ())) + self.world.rank)
