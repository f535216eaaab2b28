"""Fully connected networks, the linear one among them."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them and none at the end; with no hidden layer, softmax regression.

    Args:
        input_shape: shape of one sample; it is flattened.
        num_classes: number of logits.
        hidden_units: width of each hidden layer, first to last.
        dropout: probability of dropping each hidden unit while training.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, hidden_units: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden_units]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, num_classes) of inputs (N, *input_shape)."""
        logits: Tensor = self.layers(inputs.flatten(1))
        return logits
