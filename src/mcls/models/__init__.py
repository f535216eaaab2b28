"""The models that a configuration may name: from normalised inputs to logits (N, classes)."""

from mcls.models.baselines import LinearBaseline, TreeBaseline
from mcls.models.mlp import MLP
from mcls.models.pretrained import pretrained_network, resnet18_finetune
from mcls.models.resnet import resnet18
from mcls.models.small import SmallResNet

__all__ = [
    "MLP",
    "LinearBaseline",
    "SmallResNet",
    "TreeBaseline",
    "pretrained_network",
    "resnet18",
    "resnet18_finetune",
]
