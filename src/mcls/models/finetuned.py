"""A pretrained backbone and a new last layer: which of its stages train, from when on, and how fast."""

from torch import Tensor, nn

from mcls.errors import RequestError

CHAINS = ("features", "encoder", "layers", "blocks", "stages", "trunk_output")  # modules whose parts are the stages


def stages(network: nn.Module) -> list[list[nn.Module]]:
    """The modules with weights of `network`, in order, cut into stages: the stem, then each layer or block.

    A stage begins with every module that has parts; single layers before the first are the stem, later ones go with
    the stage before them.
    """
    stages_so_far: list[list[nn.Module]] = [[]]
    for name, part in network.named_children():
        if next(part.parameters(), None) is None:
            continue
        if name in CHAINS:
            stages_so_far += stages(part)
        elif next(part.children(), None) is None:
            stages_so_far[-1].append(part)
        else:
            stages_so_far.append([part])
    return [stage for stage in stages_so_far if stage]


class FineTuned(nn.Module):
    """A pretrained backbone and a new linear head.

    Args:
        backbone: network that turns colour images into features (N, features).
        features: how many.
        num_classes: number of logits.
        freeze: `none`, `backbone`, or how many of its first stages are not trained; they stay in eval mode, so that
            batch norm keeps its statistics.
        unfreeze_epoch: finished epochs after which everything trains; None is never.
        layer_decay: each stage's learning rate is the next one's times this.
        features_once: of a backbone that never trains, features may be computed once and given in place of images.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        num_classes: int,
        freeze: str | int = "none",
        unfreeze_epoch: int | None = None,
        layer_decay: float = 1.0,
        features_once: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.unfreeze_epoch, self.layer_decay = backbone, unfreeze_epoch, layer_decay
        self.features_once = features_once
        self.head = nn.Linear(features, num_classes)
        self.frozen = self.first_stages(freeze)
        for part in self.frozen:
            part.requires_grad_(False)
        if self.frozen:
            for weight in backbone.parameters(recurse=False):  # such as a class token, in front of all stages
                weight.requires_grad_(False)
        elif unfreeze_epoch is not None:
            raise RequestError("model.unfreeze_epoch: nothing is frozen. Set model.freeze=backbone.")

    def first_stages(self, freeze: str | int) -> list[nn.Module]:
        """The modules that `freeze` freezes. Raises RequestError for more stages than there are."""
        if isinstance(freeze, str):
            return [self.backbone] if freeze == "backbone" else []
        parts = stages(self.backbone)
        if freeze > len(parts):
            raise RequestError(f"model.freeze: the network has {len(parts)} stages, got {freeze}. Lower it.")
        return [part for stage in parts[:freeze] for part in stage]

    def unfreeze(self, epoch: int) -> None:
        """Train everything once `epoch` epochs are finished and that is what `unfreeze_epoch` asks for."""
        if self.unfreeze_epoch is not None and epoch >= self.unfreeze_epoch:
            self.frozen = []
            self.requires_grad_(True)

    def rate_factors(self) -> dict[str, float]:
        """By name of each weight, the part of the learning rate that `layer_decay` leaves it: the head has all."""
        parts = stages(self.backbone)
        depth = {
            id(weight): stage_index
            for stage_index, stage in enumerate(parts)
            for part in stage
            for weight in part.parameters()
        }
        depth |= {id(weight): len(parts) for weight in self.head.parameters()}
        return {
            name: self.layer_decay ** (len(parts) - depth.get(id(weight), 0))
            for name, weight in self.named_parameters()
        }

    def train(self, mode: bool = True) -> "FineTuned":
        """As `nn.Module.train`, but what is frozen never leaves eval mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 1 or 3, H, W), or of their features (N, F)."""
        logits: Tensor = self.head(inputs if inputs.ndim == 2 else self.features(inputs))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the backbone makes of images (N, 1 or 3, H, W); a grey image is shown to all three channels."""
        features: Tensor = self.backbone(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)
        return features
