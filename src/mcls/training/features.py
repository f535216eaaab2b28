"""What a frozen backbone makes of the pictures, computed once: the last layer then trains as fast as a linear model."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcls.data.loader import Loader
from mcls.data.types import Split
from mcls.models.finetuned import FineTuned
from mcls.runs.checkpoint import weights_digest
from mcls.system.console import progress_bar
from mcls.system.files import make_folder, replacing
from mcls.system.text import plural
from mcls.training.precision import autocast

log = logging.getLogger("mcls")


def constant_features(model: nn.Module, *changes: Any) -> FineTuned | None:
    """`model`, where it wants features once and nothing in front of its head ever changes; otherwise None.

    Args:
        changes: what changes a sample before the model sees it, None each where nothing does.
    """
    if not isinstance(model, FineTuned) or not model.features_once or any(change is not None for change in changes):
        return None
    return model if model.frozen == [model.backbone] and model.unfreeze_epoch is None else None


@torch.no_grad()
def with_features(split: Split, model: FineTuned, pictures: Loader, precision: str, cache: str | None) -> Split:
    """`split` with its features, float32 (N, F) on the loader's device, in place of its pictures.

    Args:
        model: whose backbone makes them.
        pictures: serves the split in its own order.
        precision: of the forward pass.
        cache: folder in which features are looked for and kept; None keeps none.
    """
    file = None if cache is None else Path(cache) / "features" / f"{features_key(split, model, pictures, precision)}.pt"
    if file is not None and (features := read_features(file, len(split), model.head.in_features)) is not None:
        return Split(features.to(pictures.device), split.targets, split.names)
    model.eval()
    started, made = time.monotonic(), []
    with progress_bar("features", len(pictures)) as bar:
        for inputs, _ in pictures.epoch():
            with autocast(pictures.device, precision):
                made.append(model.features(inputs).float())
            bar.update()
    features = torch.cat(made)
    log.info(
        f"model   features of {plural(len(split), 'picture')} computed once, in {time.monotonic() - started:.1f} s"
    )
    if file is not None:
        make_folder(file.parent)
        with replacing(file, "wb") as stream:
            torch.save(features.cpu(), stream)
    return Split(features, split.targets, split.names)


def read_features(file: Path, samples: int, width: int) -> Tensor | None:
    """The features in `file`; None where there are none, or others than wanted."""
    try:
        features = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # what torch raises for damaged files is of every kind; they are computed again
        return None
    fits = isinstance(features, Tensor) and features.shape == (samples, width) and features.dtype == torch.float32
    return features if fits else None


def features_key(split: Split, model: FineTuned, pictures: Loader, precision: str) -> str:
    """sha256 of all that the features depend on: weights, data, how they are prepared, arithmetic."""
    inputs = split.inputs
    data: Any = inputs.contiguous().numpy() if isinstance(inputs, Tensor) else "".join(split.digests).encode()
    reading = "" if isinstance(inputs, Tensor) else str(inputs.reading)  # files are prepared as they are read
    scale, shift = pictures.normalise.scale, pictures.normalise.shift
    made = [
        type(model.backbone).__qualname__,
        weights_digest(model.backbone.state_dict()),
        hashlib.sha256(data).hexdigest(),
        f"{tuple(inputs.shape)} {reading}",
        f"{None if scale is None else scale.tolist()} {None if shift is None else shift.tolist()}",
        f"{precision} {pictures.device.type} {pictures.batch_size} {pictures.memory_format} {torch.__version__}",
    ]
    return hashlib.sha256("\n".join(made).encode()).hexdigest()
