"""Runs that are trained as one: networks of the same linear layers, their weights stacked along a leading dimension.

Each run keeps its own `Trainer`, whose weights and optimizer state are slices of the stacked ones: what is measured,
selected, reported and saved is the trainer's. Only the steps and the forward passes of the validation are the stack's,
as batched matrix products, which take half the time that `torch.vmap` takes for these networks.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW

from mcls.data.loader import Loader
from mcls.losses import CrossEntropy, NegativeLogLikelihood, is_log_loss
from mcls.metrics import EvalAccumulator
from mcls.models import MLP
from mcls.runs.folder import RunFolder
from mcls.runs.tracking import log_to_folder
from mcls.system.console import progress_bar
from mcls.system.text import plural
from mcls.training.epoch_table import FIRST, INTERVAL, EpochTable
from mcls.training.optim import StackedOptimizer
from mcls.training.precision import autocast
from mcls.training.setup import Components
from mcls.training.trainer import Trainer

log = logging.getLogger("mcls")

ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity)
PLAIN = {"dampening": 0, "maximize": False, "amsgrad": False, "capturable": False, "differentiable": False}


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a network that can be stacked, in their order; none of any other."""
    layers = [nn.Flatten(), *model.layers] if type(model) is MLP else [*model] if type(model) is nn.Sequential else []
    rest = layers[1:] if layers and type(layers[0]) is nn.Flatten else layers
    linear = [layer for layer in rest if type(layer) is nn.Linear]
    plain = all(type(layer) in (nn.Linear, *ELEMENTWISE) for layer in rest)
    return (
        layers if linear and plain and all(len([*layer.parameters()]) == 2 for layer in linear) else []
    )  # with a bias


def obstacle(parts: Components) -> str:
    """What of a run can't be stacked; nothing where it can."""
    if not layers_of(parts.model) or not all(weight.requires_grad for weight in parts.model.parameters()):
        return "its model is not linear layers with activations between them"
    groups = parts.optimizer.param_groups
    plain = all(groups[0].get(key, value) == value for key, value in PLAIN.items())
    if type(parts.optimizer) not in (SGD, Adam, AdamW) or len(groups) > 1 or not plain:
        return "its optimizer is not plain SGD, Adam or AdamW with one learning rate"
    if type(parts.loss) not in (CrossEntropy, NegativeLogLikelihood) or parts.class_weights is not None:
        return "its loss is not cross-entropy without class weights"
    return "" if parts.train.resident else "its data are not kept on the device"


@dataclass
class Member:
    """A run of a stack.

    Args:
        trainer: of it alone.
        train: its batches; runs of the same seed share them.
        folder: its own.
        error: what ended it before its time; the others go on.
    """

    trainer: Trainer
    train: Loader
    folder: RunFolder
    error: Exception | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For what concerns this run only: its log is the one in its folder, and an error ends no other run."""
        levels = [(handler, handler.level) for handler in log.handlers]
        for handler, _ in levels:
            handler.setLevel(logging.WARNING)
        try:
            with log_to_folder(self.folder):
                yield
        except Exception as error:
            self.error = error
        finally:
            for handler, level in levels:
                handler.setLevel(level)


class ProductOfShared(torch.autograd.Function):
    """The first layer of a stack: several runs' weights times the batch that they share."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sizes: list[int], *batches: Tensor) -> Tensor:
        """Products (runs, out, N) of `weight` (runs, out, in) and `batches`, each (N, in) and for `sizes` runs."""
        ctx.sizes, ctx.batches = sizes, batches
        parts = zip(weight.flatten(0, 1).split([size * weight.shape[1] for size in sizes]), batches, strict=True)
        products = [rows @ batch.t() for rows, batch in parts]
        whole = products[0] if len(products) == 1 else torch.cat(products)
        return whole.view(len(weight), weight.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the weight; the batches need none."""
        gradient = gradients[0]
        parts = zip(
            gradient.flatten(0, 1).split([size * gradient.shape[1] for size in ctx.sizes]), ctx.batches, strict=True
        )
        products = [rows @ batch.to(rows.dtype) for rows, batch in parts]
        whole = products[0] if len(products) == 1 else torch.cat(products)
        return whole.view(len(gradient), gradient.shape[1], -1).float(), None, *[None] * len(ctx.batches)


class Stack:
    """The networks of several runs as one, for an epoch. What is computed has shape (runs, units, samples).

    Args:
        members: of the same layers, optimizer and batch size, with the same progress; those that share batches follow
            one another.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members, self.trainers = members, [member.trainer for member in members]
        first, count = self.trainers[0], len(members)
        self.device, self.precision, self.layers = first.device, first.precision, layers_of(first.model)
        shares = Counter(member.train for member in members)
        self.loaders, self.sizes = [*shares], [*shares.values()]
        self.which = torch.arange(len(shares), device=self.device).repeat_interleave(
            torch.tensor(self.sizes).to(self.device)
        )
        parameters = [[*trainer.model.parameters()] for trainer in self.trainers]
        weights = [torch.stack([each.detach() for each in same]) for same in zip(*parameters, strict=True)]
        for run, owned in enumerate(parameters):
            for weight, stacked in zip(owned, weights, strict=True):
                weight.data = stacked[run]
        flat = [weight.view(count, -1) for weight in weights]
        self.optimizer = StackedOptimizer([trainer.optimizer for trainer in self.trainers], parameters, flat)
        self.weights = [weight.requires_grad_() for weight in weights]
        smoothing = [float(getattr(trainer.loss, "label_smoothing", 0)) for trainer in self.trainers]
        self.smoothing = torch.tensor(smoothing, device=self.device) if any(smoothing) else None
        self.rates = torch.tensor([trainer.rates.base for trainer in self.trainers], device=self.device)
        self.losses: list[Tensor] = []
        self.taken: list[int] = []  # samples of each step that is not flushed
        self.hits = torch.zeros(count, dtype=torch.int64, device=self.device)

    def logits(self, batches: Sequence[Tensor], sizes: list[int]) -> Tensor:
        """Logits (runs, C, N) of `batches`, each (N, ...) and for as many runs as `sizes` says."""
        weights = iter(self.weights)
        hidden: Tensor | None = None
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                weight, bias = next(weights), next(weights)[:, :, None]
                if hidden is None:
                    hidden = ProductOfShared.apply(weight, sizes, *batches) + bias
                else:
                    hidden = torch.baddbmm(bias, weight, hidden)
            elif hidden is None:
                batches = [batch.flatten(1) if isinstance(layer, nn.Flatten) else layer(batch) for batch in batches]
            else:
                hidden = layer(hidden)
        return hidden if hidden is not None else batches[0]

    def update(self, batches: Sequence[Tensor], targets: Tensor, rates: Tensor) -> None:
        """One step of every run, with targets (runs, N) and learning rates (runs, 1)."""
        with autocast(self.device, self.precision):
            logits = self.logits(batches, self.sizes)
        logarithms = functional.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
        losses = -logarithms.gather(1, targets[:, None]).mean((1, 2))
        if self.smoothing is not None:
            losses = torch.lerp(losses, -logarithms.mean((1, 2)), self.smoothing)
        gradients = torch.autograd.grad(losses.sum(), self.weights)
        self.optimizer.step([each.reshape(len(targets), -1) for each in gradients], rates)
        self.losses.append(losses.detach())
        self.taken.append(targets.shape[1])
        self.hits += (logits.detach().max(1).indices == targets).sum(1)

    def train_epoch(self) -> None:
        """The current epoch of every run, as `Trainer.train_epoch`."""
        first, train = self.trainers[0], self.loaders[0]
        progress, settings, rates = first.progress, first.settings, first.rates
        for trainer in self.trainers:
            trainer.flushed_at = time.monotonic()
        title = f"epoch {progress.epoch + 1}/{settings.epochs}, {plural(len(self.members), 'run')}"
        served = zip(*(loader.epoch(progress.epoch, progress.batch) for loader in self.loaders), strict=True)
        with progress_bar(title, len(train), progress.batch) as bar:
            for shares in served:
                targets = torch.stack([targets for _, targets in shares])[self.which]
                factor = rates.schedule(progress.step / rates.total_steps)
                self.update([inputs for inputs, _ in shares], targets, self.rates * factor)
                for trainer in self.trainers:
                    trainer.progress.step += 1
                    trainer.progress.batch += 1
                bar.update()
                within = progress.batch < len(train)
                if progress.step % settings.log_every_steps == 0 and within:
                    self.flush()
                    self.each(Trainer.record)
                if first.pause_due() and within:
                    self.flush()
                    if first.ended_by and not first.asked:
                        break
                    self.pause()
        self.flush()

    def end_epoch(self, val: Loader | None) -> None:
        """Measure all runs at once, and end the epoch of each; save those that are to be saved."""
        loaders = {}
        if val is not None:
            loaders["val"], begun = val, time.monotonic()
            accumulators = self.evaluate(val)
            for trainer, accumulator in zip(self.trainers, accumulators, strict=True):
                trainer.measure = lambda *_, measured=accumulator: measured
                trainer.progress.seconds += time.monotonic() - begun
        self.each(lambda trainer: trainer.end_epoch(loaders))
        first = self.trainers[0]
        if first.pause_due() or first.settings.checkpoint_every_seconds == 0:
            self.pause()

    @torch.inference_mode()
    def evaluate(self, loader: Loader) -> list[EvalAccumulator]:
        """What each run predicts on all samples of `loader`; a part of them after a signal."""
        first = self.trainers[0]
        accumulators = [EvalAccumulator(first.num_classes, self.device, first.settings.ranked) for _ in self.trainers]
        for inputs, targets in loader.epoch():
            with autocast(self.device, self.precision):
                logits = self.logits([inputs], [len(self.members)])
            for accumulator, own in zip(accumulators, logits.transpose(1, 2).unbind(), strict=True):
                accumulator.add(own, targets)
            if first.stop():
                break
        return accumulators

    def each(self, act: Callable[[Trainer], object]) -> None:
        """Have every trainer whose run has not failed do its own part."""
        for member in self.members:
            if member.error is None:
                with member.alone():
                    act(member.trainer)

    def flush(self) -> None:
        """Hand each run the losses of its steps since the last time, which it reads."""
        if self.losses:
            columns = torch.stack(self.losses).unbind(1)
            for trainer, losses, hits in zip(self.trainers, columns, self.hits.unbind(), strict=True):
                trainer.running.extend(losses.unbind(), self.taken, hits)
                trainer.rates.set(trainer.progress.step - 1)  # which is reported
            self.losses, self.taken, self.hits = [], [], torch.zeros_like(self.hits)
            self.each(Trainer.flush)

    def pause(self) -> None:
        """Write a checkpoint of every run; after a signal they end."""
        for trainer in self.trainers:
            trainer.asked = self.trainers[0].asked
        self.each(Trainer.pause)

    def report(self) -> None:
        """Log how the runs are doing, in one line."""
        first = self.trainers[0]
        best = [trainer.progress.best[0] for trainer in self.trainers if trainer.progress.best]
        said = f"  best val {first.settings.monitor} {min(best):.4f} to {max(best):.4f}" if best else ""
        log.info(f"epoch {first.progress.epoch}/{first.settings.epochs}  {plural(len(self.members), 'run')}{said}")


def fit_stacked(members: Sequence[Member], val: Loader | None) -> None:
    """Train every run until something ends it, as `Trainer.fit` up to its last checkpoint. What ends one with an error
    is that member's `error`, `Stopped` of each after a signal."""
    told = time.monotonic()
    for member in members:
        trainer = member.trainer
        trainer.table = EpochTable(trainer.settings.epochs, is_log_loss(trainer.loss))
    while going := [member for member in members if member.error is None and not member.trainer.ended_by]:
        stack = Stack(going)
        stack.train_epoch()
        progress, now = going[0].trainer.progress, time.monotonic()
        if progress.batch < len(going[0].train):  # a limit cut the epoch short, or a signal
            return
        stack.end_epoch(val)
        if progress.epoch <= FIRST or now - told >= INTERVAL:
            stack.report()
            told = now
