"""Labels in doubt: each training sample judged by the runs of a k-fold sweep that have not seen it, with cleanlab."""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcls.config.instantiate import build
from mcls.data.splits import fold_of
from mcls.data.types import Split
from mcls.errors import DataError, MachineError, RequestError
from mcls.inference.evaluate import logits_of, open_split, rebuild_dataset
from mcls.inference.load import LoadedRun, load_run
from mcls.report import figures
from mcls.runs.folder import RunFolder

GRID = 40  # pictures in the grid


@dataclass(frozen=True)
class CrossValidated:
    """What runs that have not seen it say of each sample.

    Args:
        classes: names.
        folds: the samples, a split for each fold.
        names: of all samples, in the order of `folds`: the files or rows, or what tells them apart.
        targets: their labels, int64 (N,).
        probabilities: of the classes, float64 (N, C), each the mean over the runs of one fold.
    """

    classes: tuple[str, ...]
    folds: list[Split]
    names: list[str]
    targets: Tensor
    probabilities: Tensor

    def pictures(self, order: Sequence[int]) -> Tensor:
        """The images with these numbers."""
        starts = np.cumsum([0, *map(len, self.folds)])
        places = [(int(np.searchsorted(starts, index, "right")) - 1, index) for index in order]
        return torch.stack([self.folds[fold].inputs[index - int(starts[fold])] for fold, index in places])


def cross_validated(folders: Sequence[RunFolder], changes: Sequence[str], device: str) -> CrossValidated:
    """The probabilities of all samples in the val splits of the runs, which are those of k folds.

    Raises RequestError when they are not, or not all, DataError when the data have changed since.
    """
    opened: dict[int, list[LoadedRun]] = {}
    for folder in folders:
        loaded = load_run(folder, changes=changes, device=device)
        opened.setdefault(loaded.config["dataset"].get("fold"), []).append(loaded)
    first = next(iter(opened.values()))[0]
    count = first.config["dataset"].get("folds")
    if not count:
        raise RequestError(
            f"{first.folder.path.parent}: its runs are no folds, so none judges all samples. Train them: "
            "mcls train -m ... dataset.folds=5 dataset.fold=0,1,2,3,4"
        )
    if missing := [fold for fold in range(count) if fold not in opened]:
        raise RequestError(f"{first.folder.path.parent}: has no run of fold {missing[0]} of {count}. Train it first.")
    folds, names, probabilities = [], [], []
    for fold, runs in sorted(opened.items()):
        dataset = rebuild_dataset(runs[0], download=False)
        split, called, _ = open_split(runs[0].folder, dataset, "val")
        if called != "val":
            raise DataError(
                f"dataset: fold {fold} holds not the samples of {runs[0].folder.path}. Train the folds again."
            )
        folds.append(split)
        names += list(split.names) or numbers_of(runs[0], split, fold)
        probabilities.append(torch.stack([logits_of(run, split).double().softmax(1) for run in runs]).mean(dim=0))
    return CrossValidated(
        first.classes, folds, names, torch.cat([split.targets for split in folds]), torch.cat(probabilities)
    )


def numbers_of(loaded: LoadedRun, split: Split, fold: int) -> list[str]:
    """What samples without names are called: their numbers in the whole of train, if that can be found out."""
    node = loaded.config["dataset"]
    whole = build("dataset", {**node, "folds": None, "fold": None, "val_fraction": 0}, loaded.config["trust"]).train
    inside = fold_of(whole.targets, None, node["folds"], node["val_seed"], fold)[1]
    if torch.equal(whole.targets[inside], split.targets):
        return [str(index) for index in inside.tolist()]
    return [f"fold {fold}, {index}" for index in range(len(split))]


def in_doubt(found: CrossValidated) -> list[int]:
    """Numbers of the samples whose label is likely wrong, the least probable label first.

    Confident learning (Northcutt, Jiang and Chuang, 2021): how many labels of each class are wrong is estimated from
    the probabilities, and so many are named.
    """
    from cleanlab.filter import find_label_issues

    targets, probabilities = found.targets.numpy(), found.probabilities.numpy()
    with warnings.catch_warnings(action="ignore"):  # of classes that are too small to judge
        order = find_label_issues(targets, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(index) for index in order]


def check_cleanlab() -> None:
    """Raise MachineError where cleanlab is not installed."""
    if importlib.util.find_spec("cleanlab") is None:
        raise MachineError("cleanlab is not installed. Install it: pip install 'mcls[labels]'")


def doubt_rows(found: CrossValidated, order: Sequence[int]) -> list[list[str]]:
    """A row for each sample in `order`: its name, label, the probability of that, the likeliest class, that of it."""
    rows = []
    for index in order:
        label, likely = int(found.targets[index]), int(found.probabilities[index].argmax())
        own, best = (f"{found.probabilities[index, kind]:.6f}" for kind in (label, likely))
        rows.append([found.names[index], found.classes[label], own, found.classes[likely], best])
    return rows


def draw_doubts(found: CrossValidated, order: Sequence[int], title: str) -> bytes | None:
    """A PNG of the first of the samples in `order`; None if they are no images."""
    chosen = order[:GRID]
    if not chosen or found.folds[0].inputs.ndim != 4:
        return None
    names = figures.legible(found.classes)
    likely = found.probabilities[list(chosen)].argmax(dim=1).tolist()
    labels = [f"{names[int(found.targets[i])]}\n{names[kind]}?" for i, kind in zip(chosen, likely, strict=True)]
    pixels = found.pictures(chosen).numpy()
    return figures.png(figures.image_grid(pixels, labels, [False] * len(labels), title, 8))
