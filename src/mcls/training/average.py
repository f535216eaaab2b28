"""An exponential moving average of a model's weights, which is what is measured, selected and exported."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's floating-point tensors over its steps, batch norm's statistics among them.

    What is no float, such as a count of batches, is the model's own. The decay of the first steps is smaller,
    (1 + step) / (10 + step), so that a short run does not average the weights that it began with.

    Args:
        model: on its device, as it is trained; the average begins at its weights.
        decay: what is kept of the average at each step, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.current: dict[str, Tensor] = dict(model.state_dict())  # the model's own tensors, not copies
        self.weights = {name: tensor.clone() for name, tensor in self.current.items()}
        floats = [name for name, tensor in self.current.items() if tensor.is_floating_point()]
        self.pairs = [self.weights[name] for name in floats], [self.current[name] for name in floats]
        self.others = self.current.keys() - set(floats)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` updates and one more."""
        torch._foreach_lerp_(*self.pairs, 1 - min(self.decay, (1 + step) / (10 + step)))
        for name in self.others:
            self.weights[name].copy_(self.current[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While entered, the model has the averaged weights."""
        kept = {name: tensor.clone() for name, tensor in self.current.items()}
        self.copy(self.weights, self.current)
        try:
            yield
        finally:
            self.copy(kept, self.current)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        self.copy(weights, self.weights)

    @staticmethod
    @torch.no_grad()
    def copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        """The values of `source` into `target`."""
        for name, tensor in target.items():
            tensor.copy_(source[name])
