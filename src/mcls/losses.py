"""Losses that torch does not have in our form. A loss takes logits (N x C) and targets (N) and returns a mean."""

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        """Mean over the batch; logits float (N, C), targets int64 (N,)."""
        log_probabilities = functional.log_softmax(logits, dim=1)
        loss = functional.nll_loss(log_probabilities, targets, weight=self.weight)
        if not self.label_smoothing:
            return loss
        if self.weight is None:
            smooth = -log_probabilities.mean(dim=1).mean()
        else:
            smooth = -(log_probabilities * self.weight).mean(dim=1).sum() / self.weight[targets].sum()
        return torch.lerp(loss, smooth, self.label_smoothing)
