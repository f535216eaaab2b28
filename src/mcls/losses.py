"""Losses. A loss takes logits (N x C) and targets (N) and returns the mean over the batch's samples, or their mean
weighted by the buffer `weight` (C) of the loss, or with `reduction: none` the values (N) that `MeanOfValues` divides;
`checks.check_mean` refuses any other. One that goes with `mix` takes soft targets too, probabilities of the classes
(N x C).

`cross_entropy` and `nll` are what configs/loss names: they turn its keys and the counts of train into a module.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcls.errors import RequestError
from mcls.system.distributed import loss_mass
from mcls.system.text import plural

__all__ = ["cross_entropy", "nll"]

log = logging.getLogger("mcls")


def cross_entropy(
    label_smoothing: float, class_weights: str | Sequence[float] | None, counts: Tensor | None = None
) -> nn.Module:
    """`CrossEntropy` of logits.

    Args:
        label_smoothing: how much of each target is spread evenly over all classes, 0 to 1.
        class_weights: `balanced`, one number a class, or None for all alike; see `weights_of`.
        counts: int64 (C,), training samples of each class.
    """
    return CrossEntropy(weights_of(class_weights, counts), label_smoothing=label_smoothing)


def nll(label_smoothing: float, class_weights: str | Sequence[float] | None, counts: Tensor | None = None) -> nn.Module:
    """`NegativeLogLikelihood`; arguments as of `cross_entropy`, which it equals."""
    return NegativeLogLikelihood(label_smoothing, weights_of(class_weights, counts))


def is_log_loss(loss: object) -> bool:
    """Whether `loss` is the plain log-loss, with neither class weights nor label smoothing."""
    if not isinstance(loss, nn.CrossEntropyLoss | NegativeLogLikelihood):
        return False
    return loss.weight is None and not loss.label_smoothing


def weights_of(class_weights: str | Sequence[float] | None, counts: Tensor | None) -> Tensor | None:
    """Weight of each class, float32 (C,), or None for all alike.

    `balanced` is N / (C * count), so that every class has the same part in the loss, and 0 for a class that train has
    no sample of. Raises RequestError unless there is one number a class.
    """
    if class_weights is None or counts is None:
        return None
    if not isinstance(class_weights, str):
        if len(class_weights) != len(counts):
            raise RequestError(
                f"loss.class_weights: {plural(len(class_weights), 'value')} for {len(counts)} classes. Give one "
                "per class."
            )
        return torch.tensor(class_weights, dtype=torch.float32)
    absent = int((counts == 0).sum())
    if absent:
        log.warning(f"loss    classes without a training sample: {absent} of {len(counts)}; weight 0")
    share = counts.sum() / (len(counts) * counts.clamp(min=1).double())
    return torch.where(counts > 0, share, 0.0).float()


class CrossEntropy(nn.CrossEntropyLoss):
    """torch's cross-entropy of logits, but that its mean over soft targets is weighted as that over class numbers."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch; logits float (N, C), targets int64 (N,) or float (N, C)."""
        loss = super().forward(logits, targets)
        if self.weight is None or not targets.is_floating_point():
            return loss
        return loss * (len(targets) / (targets @ self.weight).sum())


class NegativeLogLikelihood(nn.Module):
    """Negative log-likelihood of logits: applies log-softmax itself, so that it equals `nn.CrossEntropyLoss`.

    Args:
        label_smoothing: how much of each target is spread evenly over all classes, 0 to 1.
        weight: weight of each class, shape (C,); None weighs all alike.
    """

    weight: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch; logits float (N, C), targets int64 (N,) or float (N, C)."""
        exact = torch.promote_types(logits.dtype, torch.float32)  # as autocast does for cross-entropy
        log_probabilities = functional.log_softmax(logits, dim=1, dtype=exact)
        if targets.is_floating_point():
            return self.soft(log_probabilities, targets)
        loss = functional.nll_loss(log_probabilities, targets, weight=self.weight)
        if not self.label_smoothing:
            return loss
        if self.weight is None:
            smooth = -log_probabilities.mean(dim=1).mean()
        else:
            smooth = -(log_probabilities * self.weight).mean(dim=1).sum() / self.weight[targets].sum()
        return torch.lerp(loss, smooth, self.label_smoothing)

    def soft(self, log_probabilities: Tensor, targets: Tensor) -> Tensor:
        """The same for targets that are probabilities, float (N, C)."""
        smoothed = targets + self.label_smoothing * (1 / targets.shape[1] - targets)
        if self.weight is None:
            return -(smoothed * log_probabilities).sum(dim=1).mean()
        return -(smoothed * log_probabilities * self.weight).sum() / (targets @ self.weight).sum()


class MeanOfValues(nn.Module):
    """The mean of a loss with `reduction: none`: its values over their number, or over the weights of their classes.

    Args:
        values: a module of logits (N, C) and targets to float (N,), already weighted by its `weight`, if it has one.
    """

    def __init__(self, values: nn.Module) -> None:
        super().__init__()
        self.values = values

    @property
    def weight(self) -> Tensor | None:
        """Weight of each class, shape (C,); None weighs all alike."""
        weight = getattr(self.values, "weight", None)
        return weight if isinstance(weight, Tensor) else None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch. Raises TypeError unless there is one value per sample."""
        values: Tensor = self.values(logits, targets)
        if values.shape != targets.shape[:1]:
            raise TypeError(f"reduction: none is for one value per sample, got shape {tuple(values.shape)}")
        return values.sum() / loss_mass(targets, self.weight)
