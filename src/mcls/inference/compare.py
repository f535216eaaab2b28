"""Two runs on the same samples: where they disagree, and whether chance explains it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcls.data.types import Split
from mcls.errors import RequestError
from mcls.inference.evaluate import accumulate, logit_batches, open_split, rebuild_dataset
from mcls.inference.load import LoadedRun
from mcls.metrics import Metrics
from mcls.report import figures
from mcls.report.summary import percent
from mcls.significance import mcnemar
from mcls.system import text
from mcls.system.files import publish
from mcls.system.text import plural, quote_names

COMPARED_METRICS = ("loss", "f1_macro", "ece")
FLIPS_SHOWN = 10  # samples a way in the grid of pictures


@dataclass(frozen=True)
class Predictions:
    """What one run says of each sample of a split.

    Args:
        predicted: class numbers, int64 (N,), on the CPU.
        confidence: probability of that class, float32 (N,).
        right: bool (N,).
        measures: the sums.
    """

    predicted: Tensor
    confidence: Tensor
    right: Tensor
    measures: Metrics


def split_of(first: LoadedRun, second: LoadedRun, name: str) -> tuple[Split, tuple[int, int]]:
    """The split `name` that both runs see, and how often the test set of each has been opened, this time included.

    Raises RequestError when the samples are not the same.
    """
    data = rebuild_dataset(first, download=False)
    same_place = first.config["dataset"] == second.config["dataset"]
    other = data if same_place else rebuild_dataset(second, download=False)
    if first.classes != second.classes:
        raise RequestError(f"classes: {unequal(first.classes, second.classes)}. The runs can't be compared.")
    if first.encoder != second.encoder:
        raise RequestError("dataset: each run encodes the table by its own train split, so the runs can't be compared.")
    split, _, openings = open_split(first.folder, data, name, "mcls compare")
    if same_place and name == "test":
        other = replace(data, open_test=lambda: split)  # it has been read already
    theirs, _, other_openings = open_split(second.folder, other, name, "mcls compare")
    if not same_samples(split, theirs):
        raise RequestError(
            f"dataset: {first.folder.path} and {second.folder.path} have different {name} samples, "
            "so the runs can't be compared."
        )
    return split, (openings, other_openings)


def unequal(first: Sequence[str], second: Sequence[str]) -> str:
    """In what two lists of classes differ."""
    only = [[name for name in names if name not in set(others)] for names, others in ((first, second), (second, first))]
    told = [f"{label} alone has {quote_names(names)}" for label, names in zip("AB", only, strict=True) if names]
    return f"A has {len(first)}, B {len(second)}; {', '.join(told) or 'their order differs'}"


def same_samples(first: Split, second: Split) -> bool:
    """Whether two splits hold the same samples in the same order."""
    if first is second:
        return True
    if not torch.equal(first.targets, second.targets) or first.inputs.shape != second.inputs.shape:
        return False
    chunks = torch.arange(len(first)).split(1024)  # of which files are read at a time, where the inputs are files
    return all(torch.equal(first.inputs[rows], second.inputs[rows]) for rows in chunks)


def predictions_of(loaded: LoadedRun, split: Split) -> Predictions:
    """Let a run classify a split."""
    accumulator = accumulate(logit_batches(loaded, split), split.targets, len(loaded.classes))
    predicted, confidence = accumulator.predictions()
    return Predictions(predicted, confidence, predicted == split.targets, accumulator.measure())


def mcnemar_lines(only_first: int, only_second: int, samples: int) -> list[str]:
    """McNemar's test in words, of runs called A and B on `samples`."""
    p = mcnemar(only_first, only_second)
    told = f"significant at the 5 % level: {'A' if only_first > only_second else 'B'} is better on this data."
    if p >= 0.05:
        told = "not significant at the 5 % level: no evidence that either is better."
    counts = f"A alone is right on {plural(only_first, 'sample')}, B alone on {only_second:,}, of {samples:,}."
    return [counts, f"McNemar's exact test: p = {p:.2g}, {told}"]


def metric_rows(split: str, reports: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The measures of the two `reports`, and by how much the second is above the first."""
    gained = (reports[1]["accuracy"] - reports[0]["accuracy"]) * 100
    rows = [[f"{split}/accuracy", *map(percent, reports), f"{gained:+.2f} points"]]
    for name in COMPARED_METRICS:
        one, two = (report[name] for report in reports)
        rows.append([f"{split}/{name}", f"{one:.4f}", f"{two:.4f}", f"{two - one:+.4f}"])
    return rows


def write_flips(
    stem: Path, split: Split, first: Predictions, second: Predictions, classes: Sequence[str], title: str
) -> list[Path]:
    """stem.csv, every sample that one run alone has right, and for images stem.png. Returns what was written."""
    order = flipped(first, second)
    rows = [
        [
            index,
            classes[int(split.targets[index])],
            "A" if first.right[index] else "B",
            classes[int(first.predicted[index])],
            f"{first.confidence[index]:.4f}",
            classes[int(second.predicted[index])],
            f"{second.confidence[index]:.4f}",
            *split.names[index : index + 1],
        ]
        for index in order.sort().values.tolist()
    ]
    header = ["sample", "label", "right", "A", "A_confidence", "B", "B_confidence", *(["file"] if split.names else [])]
    written = {stem.with_suffix(".csv"): text.comma_separated(header, rows).encode()}
    if split.inputs.ndim == 4 and len(order):
        written[stem.with_suffix(".png")] = flip_grid(split, first, second, classes, order, title)
    for path, content in written.items():
        publish(path, content)
    return list(written)


def flipped(first: Predictions, second: Predictions) -> Tensor:
    """Numbers of the samples that one run alone has right, those first of which the other was most sure."""
    indices = (first.right != second.right).nonzero()[:, 0]
    mistaken = torch.where(first.right, second.confidence, first.confidence)[indices]
    return indices[mistaken.argsort(descending=True, stable=True)]


def flip_grid(
    split: Split, first: Predictions, second: Predictions, classes: Sequence[str], order: Tensor, title: str
) -> bytes:
    """A PNG of up to FLIPS_SHOWN samples that only B classifies correctly, and as many that only A does."""
    fixed, broken = order[second.right[order]][:FLIPS_SHOWN], order[first.right[order]][:FLIPS_SHOWN]
    chosen, classes = (
        torch.cat([fixed, broken]),
        [figures.shortened(name, 8) for name in figures.legible(tuple(classes))],
    )
    labels = [
        f"{classes[int(split.targets[index])]}\n{classes[int(first.predicted[index])]} > "
        f"{classes[int(second.predicted[index])]}"
        for index in chosen.tolist()
    ]
    right = second.right[chosen].tolist()
    figure = figures.image_grid(split.inputs[chosen].numpy(), labels, right, f"{title}\ntrue name, then A > B")
    return figures.png(figure)
