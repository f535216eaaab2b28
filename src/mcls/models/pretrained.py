"""Networks of torchvision's and timm's registries with pretrained weights and a new last layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mcls.errors import MachineError, RequestError
from mcls.models.finetuned import FineTuned
from mcls.models.resnet import channels_of
from mcls.models.weights import fetch_weights, fill_backbone, read_state
from mcls.system.text import did_you_mean

DEFAULT = "DEFAULT"  # the weights that the registry has for a name


def resnet18_finetune(input_shape: Sequence[int], num_classes: int, weights: str | None, freeze: bool) -> nn.Module:
    """torchvision's ResNet-18 with pretrained weights, its stem kept, and a new last layer.

    Args:
        input_shape: (1 or 3, H, W) of one image.
        num_classes: number of logits.
        weights: name of torchvision's weights, a file with a state dict of torchvision's names, or None.
        freeze: train the last layer only.
    """
    check_channels(input_shape, "resnet18-finetune", ". Try model=resnet18")
    backbone, features = torchvision_backbone("resnet18", weights)
    return FineTuned(backbone, features, num_classes, "backbone" if freeze else "none")


def pretrained_network(
    input_shape: Sequence[int],
    num_classes: int,
    name: str,
    source: str,
    weights: str | None,
    freeze: str | int,
    unfreeze_epoch: int | None,
    layer_decay: float,
    features_once: bool,
) -> nn.Module:
    """A network of a registry and a new last layer; see configs/model/pretrained.yaml for the other arguments.

    Args:
        input_shape: (1 or 3, H, W) of one image.
        num_classes: number of logits.
    """
    check_channels(input_shape, "pretrained")
    backbone, features = BACKBONES[source](name, weights)
    return FineTuned(backbone, features, num_classes, freeze, unfreeze_epoch, layer_decay, features_once)


def check_channels(input_shape: Sequence[int], choice: str, advice: str = "") -> None:
    """Raise RequestError unless samples are grey or colour images."""
    if (channels := channels_of(input_shape, choice)) not in (1, 3):
        raise RequestError(f"model={choice} requires images with 1 or 3 channels, got {channels}{advice}.")


def torchvision_backbone(name: str, weights: str | None) -> tuple[nn.Module, int]:
    """torchvision's network `name` without its last linear layer, and how many features it makes."""
    from torchvision import models

    check_name(name, models.list_models(module=models), "torchvision")
    network: nn.Module = models.get_model(name)
    linear = [(path, part) for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise RequestError(f"model.name: {name} does not end in a linear layer. Choose another network.")
    head, last = linear[-1]
    network.set_submodule(head, nn.Identity())
    if weights is not None:
        path = weights_file(weights)
        if path is None:
            path = fetch_weights(torchvision_weights(name, weights).url, weights)
        fill_backbone(network, read_state(path, f"torchvision's {name}"), [head], weights, name)
    return network, last.in_features


def timm_backbone(name: str, weights: str | None) -> tuple[nn.Module, int]:
    """timm's network `name` without its classifier, and how many features it makes."""
    timm = import_timm(name)
    path = None if weights is None else weights_file(weights)
    if weights not in (None, DEFAULT) and path is None:
        raise RequestError(
            f"model.weights: no such file, got {weights!r}. Of timm, name the weights in model.name, such as "
            "resnet50.a1_in1k, or give a file."
        )
    held = {"pretrained_cfg_overlay": {"file": str(timm_weights(timm, name))}} if weights == DEFAULT else {}
    network: nn.Module = timm.create_model(name, pretrained=bool(held), **held)
    last = network.get_classifier()  # type: ignore[operator]
    if not isinstance(last, nn.Linear):
        raise RequestError(f"model.name: {name} does not end in a linear layer. Choose another network.")
    heads = [path for path, part in network.named_modules() if part is last]
    network.reset_classifier(0)  # type: ignore[operator]
    if path is not None:
        fill_backbone(network, read_state(path, f"timm's {name}"), heads, str(path), name)
    return network, last.in_features


BACKBONES = {"torchvision": torchvision_backbone, "timm": timm_backbone}


def import_timm(name: str) -> Any:
    """timm, which has a network `name`. Raises MachineError without it, RequestError for another name."""
    try:
        import timm
    except ImportError as error:
        raise MachineError("model.source=timm: timm is not installed. Install it: pip install 'mcls[timm]'") from error
    if not timm.is_model(name):  # nor a name for which timm would ask a hub
        check_name(name, timm.list_models(), "timm")
    return timm


def timm_weights(timm: Any, name: str) -> Path:
    """The file with timm's weights of network `name`, from the hub's or torch's cache folder or the network.

    Raises RequestError when timm has none, MachineError when they can't be had.
    """
    known = timm.models.get_pretrained_cfg(name)
    if known is None or not (known.hf_hub_id or known.url):
        raise RequestError(
            f"model.weights: timm has none for {name}. Set model.weights=FILE, or null for random weights."
        )
    if not known.hf_hub_id:
        return fetch_weights(known.url, name)
    from huggingface_hub import try_to_load_from_cache

    file = known.hf_hub_filename or "model.safetensors"
    if isinstance(held := try_to_load_from_cache(known.hf_hub_id, file), str):
        return Path(held)
    url = f"https://huggingface.co/{known.hf_hub_id}/resolve/main/{file}"
    return fetch_weights(url, name, f"{known.hf_hub_id.replace('/', '-')}{Path(file).suffix}")


def check_name(name: str, known: Sequence[str], source: str) -> None:
    """Raise RequestError, with a name that is like it, for a network that is not `known`."""
    if name not in known:
        like = did_you_mean(name, known) or "See torchvision.models.list_models() and timm.list_models(). "
        raise RequestError(f"model.name: {source} has no network {name!r}. {like}".rstrip())


def weights_file(weights: str) -> Path | None:
    """The file that `weights` names; None for a name of weights."""
    path = Path(weights)
    return path if path.suffix or path.exists() else None


def torchvision_weights(name: str, weights: str) -> Any:
    """torchvision's entry of the weights called so. Raises RequestError when it has none."""
    from torchvision.models import get_model_weights

    known = get_model_weights(name)
    if weights not in known.__members__:
        raise RequestError(
            f"model.weights: no such weights or file, got {weights!r}. Known: "
            f"{', '.join(member.name for member in known)}, or a file."
        )
    return known[weights]


def expected_input(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the makers of the weights of `node`, a model's, prepare pictures: keys of a data set; None where none are.

    Raises RequestError for a name that the registry does not have.
    """
    if node["_target_"] != "mcls.models.pretrained_network":
        return None
    name = node["name"]
    if node["source"] == "timm":
        timm = import_timm(name)
        known = timm.models.get_pretrained_cfg(name)
        made = timm.data.resolve_data_config(pretrained_cfg=known.to_dict() if known else {})
        size = made["input_size"][-1]
        resize = "crop" if made["crop_mode"] == "center" else "stretch"
        scaled, method = int(size / made["crop_pct"]), made["interpolation"]
    else:
        from torchvision import models

        check_name(name, models.list_models(module=models), "torchvision")
        weights = node["weights"]
        named = DEFAULT if weights is None or weights_file(weights) else weights
        preset = torchvision_weights(name, named).transforms()
        made = {"mean": preset.mean, "std": preset.std}
        size, scaled, method, resize = preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, "crop"
    return {
        "size": size,
        "resize": resize,
        "crop_fraction": size / scaled,
        "interpolation": method if method in ("bilinear", "bicubic") else "bilinear",
        "mean": list(made["mean"]),
        "std": list(made["std"]),
    }
