"""torchvision's ResNet-18, from nothing for small images and pretrained for fine-tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcls.errors import DataError, MachineError, RequestError

SMALL = 64  # pixels; up to here the ImageNet stem, which divides each side by 4, throws away too much


def channels_of(input_shape: Sequence[int], name: str) -> int:
    """Channels of an image shape (C, H, W). Raises RequestError for anything that is no image."""
    if len(input_shape) != 3:
        shape = " x ".join(map(str, input_shape))
        raise RequestError(
            f"model={name} requires images, but this data set has samples of shape {shape}. Try model=mlp."
        )
    return input_shape[0]


def resnet18(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """ResNet-18 (He et al., 2015) with random weights; images up to 64 pixels get a 3 x 3 stem without max-pooling.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
    """
    from torchvision.models import resnet

    channels = channels_of(input_shape, "resnet18")
    network = resnet.resnet18(num_classes=num_classes)
    small = max(input_shape[1:]) <= SMALL
    if small:
        network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if small or channels != 3:
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    assert isinstance(network, nn.Module)
    return network


class FineTuned(nn.Module):
    """A pretrained backbone and a new linear head.

    Args:
        backbone: network that turns colour images into features (N, features).
        features: how many.
        num_classes: number of logits.
        freeze: train the head only; the backbone then stays in eval mode, so that batch norm keeps its statistics.
    """

    def __init__(self, backbone: nn.Module, features: int, num_classes: int, freeze: bool) -> None:
        super().__init__()
        self.backbone, self.freeze = backbone, freeze
        self.head = nn.Linear(features, num_classes)
        backbone.requires_grad_(not freeze)

    def train(self, mode: bool = True) -> "FineTuned":
        """As `nn.Module.train`, but a frozen backbone never leaves eval mode."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 1 or 3, H, W); a grey image is shown to all three channels."""
        if inputs.shape[1] == 1:
            inputs = inputs.expand(-1, 3, -1, -1)
        logits: Tensor = self.head(self.backbone(inputs))
        return logits


def resnet18_finetune(input_shape: Sequence[int], num_classes: int, weights: str | None, freeze: bool) -> nn.Module:
    """torchvision's ResNet-18 with pretrained weights, its stem kept, and a new last layer.

    Args:
        input_shape: (1 or 3, H, W) of one image.
        num_classes: number of logits.
        weights: name of torchvision's weights, a file with a state dict of torchvision's names, or None.
        freeze: train the last layer only.
    """
    from torchvision.models import resnet

    channels = channels_of(input_shape, "resnet18-finetune")
    if channels not in (1, 3):
        raise RequestError(
            f"model=resnet18-finetune requires images with 1 or 3 channels, got {channels}. Try model=resnet18."
        )
    network = resnet.resnet18()
    network.fc = nn.Identity()
    if weights is not None:
        load_weights(network, weights)
    return FineTuned(network, 512, num_classes, freeze)


def load_weights(network: nn.Module, weights: str) -> None:
    """Fill `network`, without a last layer, from a file or torchvision's weights of that name, downloaded once.

    Raises RequestError for a name that torchvision does not know, MachineError when the weights can't be had and
    DataError when the file does not fit.
    """
    path = Path(weights)
    if path.suffix or path.exists():
        source, state = str(path), read_state(path)
    else:
        source, state = weights, fetch_state(weights)
    wanted = network.state_dict()
    given = {name: tensor for name, tensor in state.items() if name not in ("fc.weight", "fc.bias")}
    wrong = [name for name in wanted if name not in given]
    wrong += [name for name, tensor in given.items() if name not in wanted or tensor.shape != wanted[name].shape]
    if wrong:
        raise DataError(f"model.weights: {source} does not fit ResNet-18, first at {wrong[0]!r} ({len(wrong)} in all).")
    network.load_state_dict(given)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in file `path`, read as tensors and nothing else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MachineError(f"model.weights: no file {path}. Give a state dict of torchvision's resnet18.") from None
    except Exception as error:
        kind = type(error).__name__
        raise DataError(
            f"model.weights: {path} is not a state dict that holds only tensors ({kind}). Save one with torch.save."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"model.weights: {path} holds no state dict, got {type(state).__name__}.")
    return state


def fetch_state(name: str) -> dict[str, Tensor]:
    """torchvision's weights `name` of ResNet-18, from torch's own cache folder or the network."""
    from torchvision.models import ResNet18_Weights

    known = {member.name: member for member in ResNet18_Weights}
    if name not in known and name != "DEFAULT":
        raise RequestError(
            f"model.weights: no such weights or file, got {name!r}. Known: {', '.join(known)}, or a file."
        )
    entry: Any = known.get(name, ResNet18_Weights.DEFAULT)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if cached.exists():
        return read_state(cached)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(cached), hash_prefix=cached.stem.split("-")[-1], progress=False)
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise MachineError(
            f"model.weights: {name} is not in {cached} and could not be downloaded ({reason}). Put {entry.url} "
            f"there, or set model.weights=FILE, or model.weights=null for random weights."
        ) from error
    return read_state(cached)
