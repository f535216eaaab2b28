"""mcls from Python: `mcls.load` and `mcls.train`, which return a Run."""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mcls.config.compose import NONE, checker
from mcls.config.overrides import as_path
from mcls.config.saved import shipped_constraints
from mcls.errors import DataError, RequestError
from mcls.inference.load import LoadedRun, load_run
from mcls.inference.objects import python_samples
from mcls.inference.predict import Classifier, classify, run_classifier
from mcls.runs.folder import RunFolder, read_yaml
from mcls.system.console import console
from mcls.system.signals import StopRequest
from mcls.system.torchrun import rank_and_size
from mcls.training.start import train_request


@dataclass(frozen=True, eq=False)
class PredictionResult:
    """What a run says of N samples.

    Args:
        names: the predicted class of each sample.
        probabilities: of every class, float32 (N, C), in the order of `Run.classes`; each row sums to 1.
        inputs: what each sample is: the path of an image, FILE:ROW of a table, or its index as text.
    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    inputs: tuple[str, ...] = field(repr=False)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of the predicted class, float32 (N,)."""
        confidence: NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidence


@dataclass(frozen=True, eq=False)
class Run:
    """A trained run, ready to use.

    Args:
        folder: the run folder.
        classes: the C class names, in the order of the probabilities and the logits.
        model: in eval mode, on the device that was asked for; float32 (N, *input_shape), as `preprocess` makes them,
            to logits (N, C).
        config: what is in its config.yaml.
        result: what is in its result.json; empty before its first epoch.
    """

    folder: Path
    classes: tuple[str, ...]
    model: nn.Module = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    result: dict[str, Any] = field(repr=False)
    _loaded: LoadedRun = field(repr=False)
    _classifier: Classifier = field(repr=False)

    def predict(self, inputs: Any, batch_size: int = 64) -> PredictionResult:
        """Classify `inputs`, with the preprocessing and the answers of `mcls predict`.

        Args:
            inputs: files, folders or patterns, one or a list of them, as on the command line; or, by what the run was
                trained on:

                - images: a PIL image, a uint8 array or tensor (H, W), (H, W, 3), (N, H, W), (N, H, W, 3) or
                  (N, C, H, W), or a list of these and of paths. They are rotated and resized as files are.
                - a table: a data frame (anything with `.columns` and `frame[name]`), a dictionary for one row, a list
                  of dictionaries, or rows of cells in the order of the columns. Rows count from 0.
                - numbers without a header: an array (N, *input_shape), or one sample, or a data frame.
            batch_size: samples that are computed at a time.

        Raises DataError for the first input that is wrong, RequestError for a path that is not there.
        """
        names: list[str] = []
        parts = [np.empty((0, len(self.classes)), dtype=np.float32)]
        for batch, probabilities in classify(self._classifier, python_samples(self._classifier, inputs), batch_size):
            names += [name or str(len(names) + index) for index, name in enumerate(batch)]
            parts.append(probabilities)
        whole = np.concatenate(parts)
        return PredictionResult(tuple(self.classes[index] for index in whole.argmax(axis=1)), whole, tuple(names))

    @property
    def preprocess(self) -> Callable[[Any], torch.Tensor]:
        """The function from one input, as `predict` takes it, to float32 (*input_shape) on the model's device.

        `run.model(run.preprocess(image)[None])` are the logits of one image, (1, C).
        """

        def to_tensor(one: Any) -> torch.Tensor:
            samples = [sample for _, sample in python_samples(self._classifier, one)]
            if len(samples) != 1:
                raise DataError(f"preprocess: must be one input, got {len(samples)}. Call it for each of them.")
            return self._loaded.normalise(torch.from_numpy(np.stack(samples)).to(self._loaded.device))[0]

        return to_tensor


def load(
    path: str | os.PathLike[str], device: str = "auto", checkpoint: str = "best", trust: Sequence[str] = ()
) -> Run:
    """Open the run in a folder. Its data are not needed, and no code in it is run.

    Args:
        path: the run folder, `outputs/...`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:N` or `mps`.
        checkpoint: `best`, the selected weights, or `last`, the newest ones.
        trust: your own packages that the run's model comes from.

    Raises FolderError for a folder that is damaged or no run, MachineError for a device that is not there.
    """
    if checkpoint not in ("best", "last"):
        raise RequestError(f"checkpoint: must be best or last, got {checkpoint!r}.")
    shipped_constraints({})["device"].check("device", device)
    if isinstance(trust, str):
        raise RequestError(f"trust: must be a list of packages, got {trust!r}.")
    folder = RunFolder(Path(path).expanduser())
    changes = [f"trust={json.dumps(list(trust))}"] if trust else []
    loaded = load_run(folder, checkpoint, device, changes, model_only=True)
    config, result = read_yaml(folder.config), folder.read_result() or {}
    return Run(folder.path, loaded.classes, loaded.model, config, result, loaded, run_classifier(loaded))


def train(overrides: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None) -> Run:
    """Train one run, as `mcls train` does with the same overrides, and open it.

    The log goes to stderr. Ctrl-C finishes the step, saves and raises Stopped; a second one raises KeyboardInterrupt.
    It may be called in any thread; signals are seen in the main one alone.

    Args:
        overrides: `key=value` as on the command line, `["dataset=mnist", "trainer.epochs=1"]`.
        config_dir: a folder of your own configuration files.

    Raises MclsError: RequestError for a wrong key or value, DataError, MachineError, RunError.
    """
    if isinstance(overrides, str):
        raise RequestError(f"overrides: must be a list, got {overrides!r}. Write [{overrides!r}].")
    if rank_and_size()[1] > 1:
        raise RequestError("mcls.train: not under torchrun. Set trainer.devices=N instead.")
    with console(), StopRequest(exits=False) as stop:
        with checker(None if config_dir is None else os.fspath(config_dir)) as check:
            request = check.check([as_path(line) for line in overrides if line != NONE], multirun=False)
        if request.sweep:
            raise RequestError("hydra.mode: mcls.train makes one run. For a sweep: mcls train -m")
        os.environ.update(request.env)
        folder, _ = train_request(request, shlex.join(["mcls", "train", *overrides]), stop)
    config = request.config
    return load(folder.path, config["device"], trust=config["trust"])
