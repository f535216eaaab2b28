"""torchvision's ResNet-18 from nothing, with a stem for small images."""

from collections.abc import Sequence

from torch import nn

from mcls.errors import RequestError

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
