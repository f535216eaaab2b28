"""A finished run opened for use: its model with the selected weights, and what it takes to feed it. No data read."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcls.config.instantiate import build
from mcls.config.saved import saved_config, saved_model
from mcls.data import image_io
from mcls.data.loader import Normalise
from mcls.errors import DataError, FolderError
from mcls.runs import checkpoint
from mcls.runs.folder import RunFolder, find_run, read_json, read_yaml, shell_path
from mcls.system.device import resolve_device
from mcls.system.text import composed
from mcls.training.precision import check_tta, eval_logits, recorded_autocast, trained_precision
from mcls.training.restore import check_weights_fit

PLACES = {"root": "DIR", "path": "FILE", "test_path": "FILE"}  # keys of data sets that say where the data are


@dataclass(frozen=True)
class LoadedRun:
    """A model ready to use.

    Args:
        folder: the run's.
        config: as it was trained, checked.
        model: in eval mode, on `device`; inputs (N, *input_shape), normalised, to logits (N, C).
        classes: names in the order of the logits.
        input_shape: of one sample.
        mean, std: of each channel, in 0..1, for uint8 images; None for data that are floats.
        normalise: turns samples as they are stored into what the model is given.
        device: where the model is.
        precision: of the training, or fp32 where `device` does not compute in that.
        epoch: that the weights come from.
        encoder: what turns the rows of a table into samples, plain data; None for data that are no table.
        reading: how pictures become samples.
        tta: the test-time augmentation that its logits are computed with, of `evaluate.tta`.
        temperature: that the logits are divided by.
    """

    folder: RunFolder
    config: dict[str, Any]
    model: nn.Module
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    normalise: Normalise
    device: torch.device
    precision: str
    epoch: int
    encoder: dict[str, Any] | None
    reading: image_io.Reading
    tta: str | None
    temperature: float = 1.0

    @torch.inference_mode()
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits float32 (N, C), in the precision of the training, of `inputs` as the model is given them."""
        with recorded_autocast(self.precision, self.device):
            return eval_logits(self.model, inputs, self.tta).float() / self.temperature


def load_run(
    folder: RunFolder,
    which: str = "best",
    device: str = "auto",
    changes: Sequence[str] = (),
    model_only: bool = False,
    tta: str | None = None,
) -> LoadedRun:
    """Load the run in `folder`.

    Args:
        which: `best` or `last` checkpoint.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        changes: `key=value` that do not change what was trained, such as `dataset.root=DIR` or `trust=[my_package]`.
        model_only: look at nothing in the run's configuration but its model: what the data were is in the checkpoint.
        tta: `flip`, or `none`, in place of the run's `evaluate.tta`.

    Raises FolderError when the folder is no run, has no such checkpoint yet, or is damaged or refused.
    """
    find_run(folder.path)
    config = saved_model(folder, changes) if model_only else saved_config(folder, changes)
    path = folder.best if which == "best" else folder.last
    if not path.is_file():
        raise FolderError(f"{path}: no such checkpoint yet. Continue with: mcls resume {shell_path(folder.path)}")
    state = checkpoint.load_as(checkpoint.BEST if which == "best" else checkpoint.LAST, path)
    data, weights = state["data"], state.get("average") or state["model"]
    epoch = state["epoch"] if which == "best" else state["progress"]["epoch"]
    classes, shape = tuple(map(composed, data["classes"])), tuple(data["input_shape"])
    mean, std = ((tuple(map(float, data[key])) if key in data else None) for key in ("mean", "std"))
    try:
        reading = image_io.Reading.of(data)
    except ValueError as error:
        raise FolderError(f"{path}: damaged, {error}.") from error
    target = resolve_device(device)
    precision = trained_precision(read_json(folder.about).get("precision"), config["precision"], target)
    node = check_weights_fit(config, shape, len(classes), weights, path)
    model = build("model", node, config["trust"], input_shape=shape, num_classes=len(classes))
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise FolderError(f"{path}: refused, its weights do not fit the run's model.") from error
    model.to(target).eval()
    normalise = Normalise(mean, std, target)
    encoder = data.get("encoder")
    return LoadedRun(
        folder,
        config,
        model,
        classes,
        shape,
        mean,
        std,
        normalise,
        target,
        precision,
        epoch,
        encoder,
        reading,
        check_tta({"flip": "flip", "none": None, None: config["evaluate"]["tta"]}[tta], shape, "--tta"),
    )


@contextlib.contextmanager
def pointing(folder: RunFolder, node: dict[str, Any]) -> Iterator[None]:
    """Say how to name the data of a run, `node`, where an error inside comes of their not being where it says."""
    try:
        yield
    except DataError as error:
        lost = [key for key in PLACES if isinstance(node.get(key), str) and not Path(node[key]).exists()]
        if not lost:
            raise
        was = read_yaml(folder.config)["dataset"][lost[0]]
        told = f"The run was trained with dataset.{lost[0]}={was}; set dataset.{lost[0]}={PLACES[lost[0]]}."
        raise DataError(f"{error} {told}") from error


def with_delimiter(loaded: LoadedRun) -> Any:
    """The encoder of a run, and what stood between the cells of its table, for new files; None without an encoder."""
    delimiter = loaded.config["dataset"].get("delimiter", "auto")
    return {**loaded.encoder, "delimiter": delimiter} if isinstance(loaded.encoder, dict) else loaded.encoder
