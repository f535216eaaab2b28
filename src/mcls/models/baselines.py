"""What baselines are once they are fitted: models like any other, so that a run with one is read as any other run."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LinearBaseline(nn.Module):
    """One linear layer, fitted at once by `method`: `majority`, `nearest-centroid` or `logistic-regression`."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, method: str) -> None:
        super().__init__()
        self.method = method
        self.linear = nn.Linear(math.prod(input_shape), num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, num_classes) of inputs (N, *input_shape)."""
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


class TreeBaseline(nn.Module):
    """Gradient-boosted trees: the logits are sums of the leaves that a sample comes to.

    Args:
        input_shape: shape of one sample; it is flattened.
        num_classes: number of logits.
        trees: how many.
        nodes: of all trees together; a leaf leads to itself.
        depth: most steps from a root to a leaf.
    """

    root: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    classes: Tensor
    base: Tensor

    def __init__(self, input_shape: Sequence[int], num_classes: int, trees: int, nodes: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.register_buffer("root", torch.zeros(trees, dtype=torch.int64))
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(nodes, dtype=torch.int64))
        for name in ("threshold", "value"):
            self.register_buffer(name, torch.zeros(nodes))
        self.register_buffer("classes", torch.zeros(trees, num_classes))  # 1 where a tree adds to a class
        self.register_buffer("base", torch.zeros(num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, num_classes) of inputs (N, *input_shape)."""
        samples = inputs.flatten(1)
        node = self.root.expand(samples.shape[0], -1)
        for _ in range(self.depth):
            below = samples.gather(1, self.feature[node]) <= self.threshold[node]
            node = torch.where(below, self.left[node], self.right[node])
        logits: Tensor = self.base + self.value[node] @ self.classes
        return logits
