"""What came of a run: the measures of the selected weights, and their figures."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mcls import figures
from mcls.data.datasets import Split
from mcls.data.loader import Loader
from mcls.data.pictures import digests
from mcls.files import make_folder, publish
from mcls.metrics import Measures, Tally
from mcls.tables import most_confused
from mcls.tracking import Recorder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 20  # samples in a grid of pictures
FOLLOWED = ("accuracy", "loss", "f1_macro", "ece")


def draw(
    folder: Path,
    name: str,
    split: Split,
    tally: Tally,
    measures: Measures,
    classes: Sequence[str],
    model: nn.Module,
    loader: Loader,
    recorder: Recorder,
    step: int,
) -> None:
    """Figures of the test split as PNG files in `folder` and in TensorBoard at `step`.

    Args:
        name: of the run, for the titles.
        split, tally, measures: the samples, what the model said of each, and the sums.
        model, loader: asked for the decision regions of data in the plane.
    """
    names = figures.legible(tuple(classes))  # of all classes, for their numbers
    title = f"{name}\ntest accuracy {measures.accuracy * 100:.2f} %"
    drawn = {
        "confusion": figures.confusion(*most_confused(measures.confusion, names)[:2], title),
        "reliability": figures.reliability(measures.bins, measures.ece, title),
    }
    predicted, confidence = (answer.cpu() for answer in tally.answers())
    if split.inputs.ndim == 4:
        surest = confidence.argsort(descending=True, stable=True)
        right = (predicted == split.targets)[surest]
        chosen = {
            "predictions": (torch.arange(len(split)), "test samples"),
            "surest": (surest[right], "the most confident hits"),
            "mistakes": (surest[~right], "the most confident mistakes"),
        }
        for kind, (numbers, caption) in chosen.items():
            if len(numbers):
                drawn[kind] = grid(split, predicted, confidence, classes, numbers[:SHOWN], caption)
    elif split.inputs.shape[1:] == (2,):

        def classify(points: figures.Array) -> figures.Array:
            with torch.inference_mode():
                return np.asarray(model(torch.from_numpy(points).to(loader.device)).argmax(1).cpu())

        drawn["regions"] = figures.regions(split.inputs[:].numpy(), split.targets.numpy(), classify, classes, title)
    make_folder(folder)
    for kind, figure in drawn.items():
        picture = figures.png(figure)
        publish(folder / f"{kind}.png", picture)
        recorder.image(f"test/{kind}", picture, step)


def fingerprint(split: Split) -> dict[str, Any]:
    """What is equal for the same samples in the same order: their number, and sha256 of classes and of inputs.

    Images in files are known by what stands in the files, so that none is decoded, kept in memory or not.
    """
    inputs: Any = digests(split.files) if split.files else torch.as_tensor(split.inputs[:]).contiguous().numpy()
    targets: Any = split.targets.contiguous().numpy()
    hashes = {"classes": hashlib.sha256(targets).hexdigest(), "inputs": hashlib.sha256(inputs).hexdigest()}
    return {"samples": len(split), **hashes}


def fingerprints(val: Split | None, test: Split | None) -> dict[str, Any]:
    """Of what a run is measured on, by the splits' names."""
    return {name: fingerprint(split) for name, split in {"val": val, "test": test}.items() if split is not None}


def grid(
    split: Split, predicted: Tensor, confidence: Tensor, classes: Sequence[str], chosen: Tensor, title: str
) -> "Figure":
    """Pictures of the chosen samples, each over its true and its predicted name."""
    labels, right, classes = [], [], figures.legible(tuple(classes))
    for index in chosen.tolist():
        truth, guess = classes[int(split.targets[index])], classes[int(predicted[index])]
        labels.append(f"{truth}\n{guess} {confidence[index]:.0%}")
        right.append(truth == guess)
    return figures.pictures(split.inputs[chosen].numpy(), labels, right, f"{title}: true name, then predicted")


def final_scalars(result: dict[str, Any], test_followed: bool) -> dict[str, float]:
    """The selected weights' values for TensorBoard; `test/...` only where no epoch has written them."""
    found = {
        f"best/{split}_{key}": result[split][key] for split in ("val", "test") if result[split] for key in FOLLOWED[:2]
    }
    if result["test"] and not test_followed:
        found |= {f"test/{key}": result["test"][key] for key in FOLLOWED}
    return found
