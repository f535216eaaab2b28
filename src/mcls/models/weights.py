"""Pretrained weights, from a file or downloaded once: tensors and nothing else, and all of them where they belong."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mcls.errors import DataError, MachineError


def fill_backbone(network: nn.Module, state: dict[str, Tensor], heads: Sequence[str], source: str, name: str) -> None:
    """Give `network`, called `name`, which has no last layer, the weights in `state` but for those of `heads`.

    Raises DataError, naming `source`, unless they are just the weights that the network has.
    """
    ends = tuple(f"{head}." for head in heads)
    wanted = network.state_dict()
    given = {key: tensor for key, tensor in state.items() if not key.startswith(ends)}
    wrong = [key for key in wanted if key not in given]
    wrong += [key for key, tensor in given.items() if key not in wanted or tensor.shape != wanted[key].shape]
    if wrong:
        raise DataError(f"model.weights: {source} does not fit {name}, first at {wrong[0]!r} ({len(wrong)} in all).")
    network.load_state_dict(given)


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict of a network called `name` in file `path`, read as tensors and nothing else."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MachineError(f"model.weights: no file {path}. Give a state dict of {name}.") from None
    except ImportError as error:
        raise MachineError("model.weights: safetensors is not installed. pip install 'mcls[timm]'") from error
    except Exception as error:
        kind = type(error).__name__
        raise DataError(
            f"model.weights: {path} is not a state dict that holds only tensors ({kind}). Save one with torch.save."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"model.weights: {path} holds no state dict, got {type(state).__name__}.")
    return state


def fetch_weights(url: str, weights: str, file: str = "") -> Path:
    """The `file`, or what `url` calls it, with `weights` in torch's own cache folder, downloaded if it is not there.

    Raises MachineError when it can't be had.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / (file or Path(url).name)
    if cached.exists():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})$", cached.stem)  # where the name has a part of it
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=digest and digest[1], progress=False)
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise MachineError(
            f"model.weights: {weights} is not in {cached} and could not be downloaded ({reason}). Put {url} "
            f"there, or set model.weights=FILE, or model.weights=null for random weights."
        ) from error
    return cached
