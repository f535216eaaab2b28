"""A small residual network for small images, made for training on a CPU in minutes."""

from collections.abc import Sequence

from torch import Tensor, nn

from mcls.models.resnet import channels_of


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions beside a way straight through.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(convolution(channels, channels), convolution(channels, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Of the shape of `inputs`, (N, C, H, W)."""
        outputs: Tensor = inputs + self.layers(inputs)
        return outputs


class SmallResNet(nn.Module):
    """A strided stem, then stages of convolution and pooling, the second and the last with a residual block.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        width: channels after the stem; they double twice.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__()
        channels = channels_of(input_shape, "small-resnet")
        self.features = nn.Sequential(
            convolution(channels, width, stride=2),
            convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            Residual(4 * width),
            nn.Flatten(2),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        logits: Tensor = self.head(self.features(inputs).max(dim=2).values)
        return logits
