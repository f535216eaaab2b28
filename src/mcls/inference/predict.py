"""Class probabilities of stored samples, from a run's model or, without torch, from an exported ONNX file."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcls.data import image_io
from mcls.data.table_encoder import all_numbers
from mcls.errors import FolderError, MachineError
from mcls.runs.folder import RunFolder
from mcls.runs.formats import check_encoder

if TYPE_CHECKING:
    from mcls.inference.load import LoadedRun

log = logging.getLogger("mcls")

NumpyArray = NDArray[Any]


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to predict, run by torch or by onnxruntime.

    Args:
        classes: names in the order of the probabilities.
        input_shape: of one sample.
        image: samples are uint8 images (C, H, W), otherwise float32 of `input_shape`.
        encoder: what turns the rows of a table into samples, plain data; None where columns are the inputs.
        probabilities: samples (N, *input_shape) to float32 (N, C).
        reading: how pictures become samples.
        least: probability below which no class is named.
        temperature: that the logits are divided by.
    """

    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    image: bool
    encoder: dict[str, Any] | None
    probabilities: Callable[[NumpyArray], NumpyArray]
    reading: image_io.Reading = image_io.PLAIN
    least: float = 0.0
    temperature: float = 1.0


def classify(
    model: Classifier, samples: Iterable[tuple[str, NumpyArray]], batch_size: int
) -> Iterator[tuple[list[str], NumpyArray]]:
    """Yield names and probabilities (n, C) of `samples` (name, array), holding `batch_size` in memory at a time."""
    waiting = iter(samples)
    while batch := list(islice(waiting, batch_size)):
        yield [name for name, _ in batch], model.probabilities(np.stack([sample for _, sample in batch]))


def warm_up(model: Classifier) -> None:
    """Predict a sample of zeros: the first one is the slowest, and shows whether the model works here."""
    model.probabilities(np.zeros((1, *model.input_shape), dtype=np.uint8 if model.image else np.float32))


def from_run(
    folder: RunFolder,
    device: str,
    changes: Sequence[str],
    tta: str | None = None,
    scaled: bool = False,
    risk: float | None = None,
) -> Classifier:
    """The selected model of the run in `folder`.

    Args:
        device, changes, tta: as `load_run` takes them.
        scaled: whether its temperature is applied.
        risk: no class is named where the error among the others would be more than this; see `rejection_threshold`.

    Raises MclsError as `load_run` does.
    """
    from mcls.inference.calibration import at_temperature, rejecting
    from mcls.inference.load import load_run

    loaded = load_run(folder, "best", device, changes, model_only=True, tta=tta)
    if scaled:
        loaded = at_temperature(loaded, "best")
        log.info(f"temperature {loaded.temperature:.3f}, fitted on val")
    if risk is None:
        return run_classifier(loaded)
    least, kept = rejecting(loaded, "best", risk)
    log.info(f"no class below the probability {least:.4f}; on val {kept:.1%} are at least as sure")
    return replace(run_classifier(loaded), least=least)


def run_classifier(loaded: "LoadedRun") -> Classifier:
    """The model of a loaded run as a Classifier."""
    import torch

    from mcls.inference.load import with_delimiter

    def probabilities(samples: NumpyArray) -> NumpyArray:
        inputs = loaded.normalise(torch.from_numpy(samples).to(loaded.device))
        probabilities: NumpyArray = loaded.logits(inputs).softmax(dim=1).cpu().numpy()
        return probabilities

    encoder = with_delimiter(loaded)
    image, temperature = loaded.mean is not None, loaded.temperature
    return Classifier(
        loaded.classes, loaded.input_shape, image, encoder, probabilities, loaded.reading, temperature=temperature
    )


def from_onnx(path: Path, device: str) -> Classifier:
    """The model in `path`, a file of `mcls export --format onnx`, run by onnxruntime; torch is not imported.

    Raises MachineError without onnxruntime or the device, FolderError for a file that is damaged or not mcls's.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError("onnxruntime is not installed. Install it with: pip install 'mcls[onnx]'") from error
    onnxruntime.set_default_logger_severity(4)
    wanted = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise MachineError(f"--device {device}: this onnxruntime has no {wanted}. Use --device cpu.")
    index = device.partition(":")[2]
    try:
        session = onnxruntime.InferenceSession(path, providers=[(wanted, {"device_id": index} if index else {})])
        about = session.get_modelmeta().custom_metadata_map
        metadata = {key: json.loads(value) for key, value in about.items() if key.startswith("mcls.")}
        classes, shape = tuple(map(str, metadata["mcls.classes"])), tuple(map(int, metadata["mcls.input_shape"]))
        reading = image_io.Reading.of({key.removeprefix("mcls."): value for key, value in metadata.items()})
        temperature = float(metadata.get("mcls.temperature", 1))  # which is inside
        image, name = metadata["mcls.input_type"] == "uint8", session.get_inputs()[0].name
    except (KeyError, ValueError, TypeError) as error:
        raise FolderError(f"{path}: refused, its metadata lack classes and inputs. Was it exported by mcls?") from error
    except Exception as error:  # onnxruntime's own have no common class
        raise FolderError(f"{path}: refused, onnxruntime cannot load it ({type(error).__name__}).") from error

    encoder = metadata.get("mcls.encoder")
    check_encoder(encoder, shape, path)
    inside = metadata["mcls.input_type"] == "float64" and encoder is not None and all_numbers(encoder)

    def probabilities(samples: NumpyArray) -> NumpyArray:
        if inside and encoder is not None:  # the file standardises, so it is given what was in the table
            samples = samples * np.array(encoder["stds"]) + np.array(encoder["means"])
        return np.asarray(session.run(None, {name: samples})[0])

    return Classifier(classes, shape, image, encoder, probabilities, reading, temperature=temperature)
