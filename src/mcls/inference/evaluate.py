"""Evaluate a finished run on a split of its data: the content of evaluation.json, the doubted labels, the figures."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mcls.config.instantiate import build
from mcls.data.loader import Loader, forward_batch
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, RequestError
from mcls.inference.calibration import rejection
from mcls.inference.load import LoadedRun, pointing
from mcls.inference.temperature import fit_temperature
from mcls.metrics import EvalAccumulator, Metrics, brier, ranks_kept
from mcls.ranks import intervals
from mcls.report import figures
from mcls.report.run_figures import NAME_IN_GRID, draw_measures, draw_ranks, fingerprint_difference
from mcls.runs.folder import RunFolder, read_json, shell_path
from mcls.runs.ledger import record_opening
from mcls.system.files import make_folder, publish
from mcls.training.restore import as_trained_on

log = logging.getLogger("mcls")

EACH = 5  # pictures of a class in the grid of doubted labels
ROWS = 12  # classes in it


@dataclass(frozen=True)
class Evaluation:
    """What a run says of a split.

    Args:
        split: the samples.
        label, surest: probability of each sample's label, and of the class that is predicted, float64 (N,).
        accumulator, measures: the sums.
        report: everything, for evaluation.json.
    """

    split: Split
    label: Tensor
    surest: Tensor
    accumulator: EvalAccumulator
    measures: Metrics
    report: dict[str, Any]


def rebuild_dataset(loaded: LoadedRun, download: bool) -> Dataset:
    """The run's data set. Raises DataError when it is not the one that the run was trained on."""
    node = as_trained_on(loaded.config["dataset"], loaded.reading.bits)
    if "download" in node and not download:  # a folder must not make this machine fetch or write anything
        node = {**node, "download": False}
    with pointing(loaded.folder, node):
        dataset: Dataset = build("dataset", node, loaded.config["trust"], cache=loaded.config["cache"])
    check_trained_on(loaded, dataset)
    return dataset


def check_trained_on(loaded: LoadedRun, dataset: Dataset) -> None:
    """Raise DataError when `dataset` is not the one that the run was trained on."""
    rebuilt = (dataset.classes, dataset.input_shape, dataset.mean, dataset.std, dataset.encoder)
    if rebuilt != (loaded.classes, loaded.input_shape, loaded.mean, loaded.std, loaded.encoder):
        raise DataError(f"dataset: its classes, shape or statistics differ from those of {loaded.folder.path}.")


def open_split(folder: RunFolder, dataset: Dataset, name: str, by: str = "mcls evaluate") -> tuple[Split, str, int]:
    """Split `name`, what it is to be called, and how often the test set has been opened, this time included.

    The ledger of the run says that it was opened `by` a command.

    Where the data are elsewhere now and not the samples that the run was measured on, it is called `other-NAME`, and no
    opening is counted.

    Raises RequestError without a val, and for the test set of a run that was never started.
    """
    if name == "val" and dataset.val is None:
        raise RequestError("--split val: the run has no validation split. Use --split test.")
    split = dataset.train if name == "train" else dataset.val if name == "val" else None
    split = dataset.open_test() if split is None else split
    writable = os.access(folder.path, os.W_OK)
    with folder.lock() if name == "test" and writable else contextlib.nullcontext():
        result = folder.read_result() or {}
        if name == "test" and not result:
            raise RequestError(f"{folder.path}: never started. Continue with: mcls resume {shell_path(folder.path)}")
        known = read_json(folder.about) if name == "train" else result
        if other := fingerprint_difference(known, name, split):
            log.warning(f"{name}    not the samples of {folder.path}: {other}; another set, measured as other-{name}")
            return split, f"other-{name}", 0
        openings = int(result.get("test_openings", 0)) + 1
        if name == "test" and writable:
            folder.write_json(folder.result, {**result, "test_openings": openings})
            record_opening(folder, by)
    return split, name, openings if name == "test" and writable else 0


def logit_batches(loaded: LoadedRun, split: Split) -> Iterator[Tensor]:
    """Logits float32 (n, C) of the samples of `split`, in order, on the CPU, in the precision of the training."""
    size = forward_batch(loaded.input_shape, len(loaded.classes))
    loader = Loader(split, size, loaded.device, loaded.normalise, resident=False)
    for inputs, _ in loader.epoch():
        yield loaded.logits(inputs).cpu()


def logits_of(loaded: LoadedRun, split: Split) -> Tensor:
    """Logits float32 (N, C) of every sample of `split`."""
    logits, start = torch.empty(len(split), len(loaded.classes)), 0
    for batch in logit_batches(loaded, split):
        logits[start : start + len(batch)] = batch
        start += len(batch)
    return logits


def evaluate(loaded: LoadedRun, split: Split, name: str, fitted: Split | None) -> Evaluation:
    """Measure `loaded` on `split`, called `name`, and fit the temperature on `fitted`: val, `split` itself, or none."""
    count, temperature, start = len(loaded.classes), None, 0
    if fitted is not None:
        scores = logits_of(loaded, fitted)  # no others are kept: of many classes they take most of the memory
        temperature = fit_temperature(scores, fitted.targets)
    top_k = loaded.config["evaluate"]["top_k"] if ranks_kept(split, loaded.classes) else None
    accumulator, scaled = (EvalAccumulator(count, torch.device("cpu"), kept) for kept in (top_k, None))
    label, surest, sure_scaled = torch.empty(3, len(split), dtype=torch.float64)
    distances = 0.0
    for logits in scores.split(forward_batch((1,), count)) if fitted is split else logit_batches(loaded, split):
        rows = slice(start, start := start + len(logits))
        targets, probabilities = split.targets[rows], logits.double().softmax(dim=1)
        accumulator.add(logits, targets)
        scaled.add(logits / (temperature or 1), targets)
        sure_scaled[rows] = (logits / (temperature or 1)).double().softmax(dim=1).amax(dim=1)
        label[rows] = probabilities.gather(1, targets[:, None])[:, 0]
        surest[rows] = probabilities.amax(dim=1)
        distances += brier(probabilities, targets) * len(targets)
    measures, calibrated = accumulator.measure(), scaled.measure()
    ranked = accumulator.scored()[0] if top_k else None
    told: dict[str, Any] = {"value": temperature, "fitted_on": name if fitted is split else "val"}
    if fitted is None:
        told = {"value": None, "reason": "no val"}
    elif temperature is None:
        right = bool((scores.argmax(1) == fitted.targets).all())
        told["reason"] = "no misclassified sample" if right else "the best value is outside 0.01 to 100"
    else:
        told |= {"samples": len(fitted), "ece": calibrated.ece, "loss": calibrated.loss}
    report = {
        "split": name,
        "epoch": loaded.epoch,
        **({"tta": loaded.tta} if loaded.tta else {}),
        **measures.report(loaded.classes, selected=name == "val"),
        **({} if name == "val" else {"intervals": intervals(measures.cells, ranked, split.targets)}),
        "brier": distances / len(split),
        "temperature": told,
    }
    if name == "val":
        report["rejection"] = rejection(surest, sure_scaled, accumulator.predictions()[0] == split.targets)
    return Evaluation(split, label, surest, accumulator, measures, report)


def accumulate(batches: Iterable[Tensor], targets: Tensor, num_classes: int) -> EvalAccumulator:
    """The sums over all samples, in batches: a sum of many float32 in one go is not exact enough."""
    accumulator, start = EvalAccumulator(num_classes, torch.device("cpu")), 0
    for logits in batches:
        accumulator.add(logits, targets[start : start + len(logits)])
        start += len(logits)
    return accumulator


def doubted(evaluation: Evaluation) -> Tensor:
    """Numbers of the samples that are predicted to be something else, the least probable label first."""
    wrong = (evaluation.accumulator.predictions()[0] != evaluation.split.targets).nonzero()[:, 0]
    return wrong[evaluation.label[wrong].argsort(stable=True)]


def doubts(evaluation: Evaluation, order: Tensor, classes: Sequence[str]) -> list[list[object]]:
    """A row for each sample in `order`: its file or number, label, probability of that, predicted class, of that."""
    predicted = evaluation.accumulator.predictions()[0]
    rows: list[list[object]] = []
    for index in order.tolist():
        label, guess = classes[int(evaluation.split.targets[index])], classes[int(predicted[index])]
        sample = evaluation.split.names[index] if evaluation.split.names else index
        rows.append([sample, label, f"{evaluation.label[index]:.6f}", guess, f"{evaluation.surest[index]:.6f}"])
    return rows


def draw_evaluation(evaluation: Evaluation, folder: RunFolder, classes: Sequence[str], order: Tensor | None) -> None:
    """Figures as PNG files in the run's figures, evaluation-SPLIT-KIND.png.

    Args:
        order: of the doubted samples, for a grid of them; None leaves it out.
    """
    name, names = evaluation.report["split"], figures.legible(tuple(classes))  # of all classes, for their numbers
    drawn = draw_measures(folder.name, name, evaluation.measures, names)
    drawn |= draw_ranks(folder.name, name, evaluation.accumulator, names)
    if order is not None and evaluation.split.inputs.ndim == 4 and len(order):
        chosen, labels = by_class(evaluation, order, [figures.shortened(each, NAME_IN_GRID) for each in names])
        pictures = torch.full((len(chosen), *evaluation.split.inputs.shape[1:]), 255, dtype=torch.uint8)
        filled = chosen >= 0
        pictures[filled] = evaluation.split.inputs[chosen[filled]]
        shown = f"Labels the model doubts ({name}): label, its probability, predicted\n{folder.name}"
        drawn["mistakes"] = figures.image_grid(pictures.numpy(), labels, [False] * len(labels), shown, EACH)
    make_folder(folder.figures)
    for kind, figure in drawn.items():
        publish(folder.figures / f"evaluation-{name}-{kind}.png", figures.png(figure))


def by_class(evaluation: Evaluation, order: Tensor, classes: Sequence[str]) -> tuple[Tensor, list[str]]:
    """The most doubted samples of each class, a row of EACH a class, filled up with -1, and what to write below them.

    Of more than ROWS classes those with the most doubted samples.
    """
    targets = evaluation.split.targets[order]
    counts = torch.bincount(targets, minlength=len(classes))
    fullest = counts.argsort(descending=True, stable=True)[: min(ROWS, len(targets.unique()))].sort().values
    rows = [order[targets == label][:EACH] for label in fullest]
    chosen = torch.cat([functional.pad(row, (0, EACH - len(row)), value=-1) for row in rows])
    captions = iter(doubts(evaluation, chosen[chosen >= 0], classes))
    labels = (f"{label} {float(str(part)):.0%}\n{guess}" for _, label, part, guess, _ in captions)
    return chosen, [next(labels) if index >= 0 else "" for index in chosen.tolist()]
