"""The figures of a run's test split, and the fingerprints of its data."""

import hashlib
import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mcls.data.types import Split
from mcls.metrics import EvalAccumulator, Metrics
from mcls.ranks import rank_curves
from mcls.report import figures
from mcls.report.summary import epoch_records
from mcls.runs.folder import RunFolder
from mcls.runs.tracking import RunLogger
from mcls.system.files import make_folder, publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = 10  # classes in a figure of ROC curves
NAME_IN_GRID = 14  # characters of a class below a picture
GRID_SAMPLES = 20  # samples in a grid of pictures
TENSORBOARD_METRICS = ("accuracy", "loss", "f1_macro", "ece")


def draw_run_figures(
    name: str,
    split: Split,
    accumulator: EvalAccumulator,
    measures: Metrics,
    classes: Sequence[str],
    classify: Callable[[figures.Array], figures.Array],
) -> dict[str, bytes]:
    """Figures of the test split, as PNG files by name.

    Args:
        name: of the run, for the titles.
        split, accumulator, measures: the samples, what the model said of each, and the sums.
        classify: numbers of the classes of points (N, 2) in the plane, for the decision regions.
    """
    names = figures.legible(tuple(classes))  # of all classes, for their numbers
    drawn = draw_measures(name, "test", measures, names) | draw_ranks(name, "test", accumulator, names)
    predicted, confidence = (answer.cpu() for answer in accumulator.predictions())
    if split.inputs.ndim == 4:
        surest = confidence.argsort(descending=True, stable=True)
        right = (predicted == split.targets)[surest]
        chosen = {
            "predictions": (torch.arange(len(split)), "Test samples"),
            "surest": (surest[right], "Most confident hits"),
            "mistakes": (surest[~right], "Most confident mistakes"),
        }
        for kind, (numbers, caption) in chosen.items():
            if len(numbers):
                title = f"{caption}: true name, then predicted\n{name}"
                drawn[kind] = prediction_grid(split, predicted, confidence, classes, numbers[:GRID_SAMPLES], title)
    elif split.inputs.shape[1:] == (2,):
        drawn["regions"] = figures.regions(
            split.inputs[:].numpy(), split.targets.numpy(), classify, classes, f"Decision regions, test\n{name}"
        )
    return {kind: figures.png(figure) for kind, figure in drawn.items()}


@torch.inference_mode()
def classify_points(model: torch.nn.Module, device: torch.device, points: figures.Array) -> figures.Array:
    """Predicted class indices of points (N, 2) in the plane."""
    return np.asarray(model(torch.from_numpy(points).to(device)).argmax(1).cpu())


def draw_measures(name: str, split: str, measures: Metrics, names: Sequence[str]) -> dict[str, "Figure"]:
    """Confusion matrix and reliability diagram of what was measured on `split`; `names` of the classes are legible."""
    accuracy = f"{split} accuracy {measures.accuracy * 100:.2f} %"
    error = f"{split} calibration error {measures.ece:.3f}"
    return {
        "confusion": figures.confusion(measures.confusion, names, f"Confusion matrix, {accuracy}\n{name}"),
        "reliability": figures.reliability(measures.bins, f"Reliability, {error}\n{name}"),
    }


def draw_ranks(name: str, split: str, accumulator: EvalAccumulator, names: Sequence[str]) -> dict[str, "Figure"]:
    """ROC and precision-recall curves of a few classes, one against the rest, if the probabilities were kept."""
    if accumulator.top_k is None:
        return {}
    curves_of = zip(names, rank_curves(*accumulator.scored()), strict=True)
    drawn = ((label, curve) for label, curve in curves_of if curve is not None)
    known = heapq.nsmallest(CURVES, drawn, key=lambda entry: entry[1].auroc)
    roc = [(f"{label} {curve.auroc:.3f}", curve.false_positive, curve.recall) for label, curve in known]
    precision = [(f"{label} {curve.average_precision:.3f}", curve.recall, curve.precision) for label, curve in known]
    note = f"{split}\n{name}" + (f", the {CURVES} classes with the lowest AUROC" if len(names) > CURVES else "")
    return {
        "roc": figures.rates(roc, "false positive rate", "recall", f"ROC, one class against the rest, {note}"),
        "precision-recall": figures.rates(precision, "recall", "precision", f"Precision and recall, {note}"),
    }


def save_curves(folder: RunFolder, best_epoch: int) -> None:
    """Draw what metrics.jsonl holds of the epochs, as figures/curves.png; TensorBoard has its own curves."""
    figure = figures.curves(epoch_records(folder), best_epoch, f"Training curves\n{folder.name}")
    make_folder(folder.figures)
    publish(folder.figures / "curves.png", figures.png(figure))


def save_run_figures(drawn: dict[str, bytes], folder: Path, recorder: RunLogger, step: int) -> None:
    """Put figures into `folder` and into TensorBoard at `step`."""
    make_folder(folder)
    for kind, picture in drawn.items():
        publish(folder / f"{kind}.png", picture)
        recorder.image(f"test/{kind}", picture, step)


def fingerprint(split: Split) -> dict[str, Any]:
    """What is equal for the same samples in the same order: their number, and sha256 of classes and of inputs.

    Images in files are identified by the bytes of the files, so that none is decoded.
    """
    files = b"".join(map(bytes.fromhex, split.digests))
    inputs: Any = files or torch.as_tensor(split.inputs[:]).contiguous().numpy()
    targets: Any = split.targets.contiguous().numpy()
    hashes = {"classes": hashlib.sha256(targets).hexdigest(), "inputs": hashlib.sha256(inputs).hexdigest()}
    return {"samples": len(split), **hashes}


def fingerprints(**splits: Split | None) -> dict[str, Any]:
    """Of the splits that there are, by their names."""
    return {name: fingerprint(split) for name, split in splits.items() if split is not None}


def fingerprint_difference(known: dict[str, Any], name: str, split: Split) -> str:
    """In what `split` differs from the one called `name`; nothing where it does not, or no fingerprint is known.

    Args:
        known: run.json for train, else result.json.
    """
    was = (known.get("fingerprints") or {}).get(name)
    if was is None:
        return ""
    here = fingerprint(split)
    if was["samples"] != here["samples"]:
        return f"{here['samples']:,} in place of {was['samples']:,}"
    if was["classes"] != here["classes"]:
        return "their classes or their order are others"
    return "what is in them differs" if was["inputs"] != here["inputs"] else ""


def prediction_grid(
    split: Split, predicted: Tensor, confidence: Tensor, classes: Sequence[str], chosen: Tensor, title: str
) -> "Figure":
    """Pictures of the chosen samples, each over its true and its predicted name."""
    labels, right, classes = [], [], figures.legible(tuple(classes))
    for index in chosen.tolist():
        truth, guess = (
            figures.shortened(classes[int(label[index])], NAME_IN_GRID) for label in (split.targets, predicted)
        )
        labels.append(f"{truth}\n{guess} {confidence[index]:.0%}")
        right.append(int(split.targets[index]) == int(predicted[index]))
    return figures.image_grid(split.inputs[chosen].numpy(), labels, right, title)


def final_scalars(result: dict[str, Any], test_followed: bool) -> dict[str, float]:
    """The selected weights' values for TensorBoard; `test/...` only where no epoch has written them."""
    scalars = {
        f"best/{split}_{key}": result[split][key]
        for split in ("val", "test")
        if result[split]
        for key in TENSORBOARD_METRICS[:2]
    }
    if result["test"] and not test_followed:
        scalars |= {f"test/{key}": result["test"][key] for key in TENSORBOARD_METRICS}
    return scalars
