"""What the samples and classes of a data set must be like, a user's own too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcls.system.text import plural


def wrong_split(
    split: Any, train: Any, num_classes: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> str | None:
    """What is wrong with a split, for a message; None if it goes with the classes, the statistics and train."""
    if wrong := wrong_targets(split.targets, num_classes) or wrong_inputs(split.inputs):
        return wrong
    if len(split.inputs) != len(split.targets):
        return f"has {plural(len(split.inputs), 'sample')} and {plural(len(split.targets), 'target')}"
    shape, wanted = tuple(split.inputs.shape[1:]), tuple(train.inputs.shape[1:])
    if shape != wanted:
        return f"has samples of shape {shape}, train of {wanted}"
    if split.inputs.dtype == torch.uint8 and any(
        given is None or len(given) not in (1, shape[0]) for given in (mean, std)
    ):
        return f"has uint8 images of {plural(shape[0], 'channel')}: mean and std must have as many numbers"
    return None


def wrong_targets(targets: Any, num_classes: int) -> str | None:
    """What is wrong with the targets of a split of a user's own."""
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.ndim != 1:
        return f"targets must be int64 of shape (N,), got {kind(targets)}"
    if not len(targets):
        return "has no sample"
    least, most = (int(bound) for bound in targets.aminmax())
    return (
        None if least >= 0 and most < num_classes else f"targets must be in 0..{num_classes - 1}, got {least}..{most}"
    )


def wrong_inputs(inputs: Any) -> str | None:
    """What is wrong with the inputs of a split of a user's own."""
    if not isinstance(inputs, Tensor):
        return None if hasattr(inputs, "select") else f"inputs must be a tensor, got {type(inputs).__name__}"
    images = inputs.dtype == torch.uint8 and inputs.ndim == 4
    if not images and (inputs.dtype != torch.float32 or inputs.ndim < 2):
        return f"inputs must be float32 (N, ...) or uint8 (N, C, H, W), got {kind(inputs)}"
    if not images and not inputs.sum().isfinite() and not inputs.isfinite().all():
        row = int((~inputs.isfinite()).flatten(1).any(dim=1).nonzero()[0])
        return f"inputs must be finite, sample {row} is not"
    return None


def kind(value: Any) -> str:
    """Type and shape of a value, for messages."""
    return (
        f"{str(value.dtype)[6:]} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    )
