"""The features that a trained model's last layer is given, of a few samples."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mcls.data.loader import Loader, Normalise, forward_batch
from mcls.report.embedding import COMPONENTS, Embedding, principal_components, representative
from mcls.training.precision import evaluate_loader
from mcls.training.setup import Components

FEATURES = 1 << 24  # numbers that are kept, 64 MiB


class WithFeatures(nn.Module):
    """A model that keeps the features of what it is given: the input of the linear layer that it calls last.

    It is the model's own forward pass, for what torch.compile has made of it calls no hooks.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.kept: list[Tensor] = []
        self.given: list[Tensor] = []  # to the linear layer called last
        self.layer = ""

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, C) of inputs (N, ...)."""
        self.given.clear()
        logits: Tensor = self.model.forward(inputs)
        features = self.given[0] if self.given and len(self.given[0]) == len(inputs) else logits
        features = features.flatten(1, -2).mean(dim=1) if features.ndim > 2 else features
        if sum(kept.numel() for kept in self.kept) < FEATURES:
            self.kept.append(features.float().cpu())
        if not self.layer:
            same = features.numel() == inputs.numel() and bool((features.flatten() == inputs.flatten()).all())
            self.layer = "Logits" if features is logits else "Inputs" if same else "Features of the last hidden layer"
        return logits

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While entered, it hears what its linear layers are given."""

        def hear(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.given[:] = given[:1]

        layers = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        handles = [layer.register_forward_pre_hook(hear) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def embed(parts: Components) -> Embedding | None:
    """What the model of `parts` makes of samples of val, without one of train.

    None where samples have no more than two numbers, which are drawn as they are, and where features are not finite.
    """
    data, count = parts.dataset, len(parts.dataset.classes)
    if math.prod(data.input_shape) <= 2:
        return None
    split = data.train if data.val is None else data.val
    samples = representative(split, count)
    normalise, size = Normalise(data.mean, data.std, parts.device), forward_batch(data.input_shape, count)
    loader = Loader(samples, size, parts.device, normalise, channels_last=parts.channels_last)
    model = WithFeatures(parts.model)
    with model.listening():
        predicted = evaluate_loader(model, loader, count, parts.precision).predictions()[0].cpu()
    features = torch.cat(model.kept)
    usable = features.isfinite().all(dim=1).nonzero()[:, 0]
    if len(usable) < 2:
        return None
    points, shares = principal_components(features[usable], COMPONENTS)
    name = "train" if data.val is None else "val"
    return Embedding(name, len(split), samples.rows(usable), points, shares, predicted[usable], model.layer)
