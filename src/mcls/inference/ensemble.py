"""Several runs as one model: the mean of their class probabilities, measured beside the single runs."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mcls.data.loader import Normalise
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, FolderError, RequestError
from mcls.inference.calibration import at_temperature
from mcls.inference.evaluate import accumulate, check_trained_on, logit_batches, open_split, rebuild_dataset
from mcls.inference.load import LoadedRun, load_run
from mcls.inference.predict import Classifier, run_classifier
from mcls.runs.folder import RunFolder, relative
from mcls.system.files import to_json

FITTED = ("means", "stds", "categories")  # of an encoder, learnt from the training rows


class MeanProbabilities(nn.Module):
    """The logarithm of the mean of the members' class probabilities, float32 (N, C), of samples as they are stored.

    Args:
        members: the runs, each with its preprocessing.
        widths: columns of a sample that each member takes, side by side; none where all take the same.
    """

    def __init__(self, members: Sequence[LoadedRun], widths: Sequence[int]) -> None:
        super().__init__()
        self.members, self.widths = members, list(widths)

    def forward(self, samples: Tensor) -> Tensor:
        """From (N, ...)."""
        parts = samples.split(self.widths, dim=1) if self.widths else [samples] * len(self.members)
        pairs = zip(self.members, parts, strict=True)
        logs = [member.logits(member.normalise(part)).log_softmax(dim=1) for member, part in pairs]
        return torch.stack(logs).logsumexp(dim=0) - math.log(len(logs))


def mean_run(members: Sequence[LoadedRun], folder: RunFolder) -> LoadedRun:
    """The members as one run, that of `folder`, whose logits are those of MeanProbabilities.

    Where the members were trained on other rows of a table, and so encode it differently, its samples are theirs side
    by side. One member is that run.

    Raises FolderError for members whose probabilities have no mean.
    """
    first = members[0]
    if len(members) == 1:
        return replace(first, folder=folder)
    for other in members[1:]:
        if what := difference(first, other):
            raise FolderError(
                f"{relative(other.folder.path)}: {what} differ from those of {relative(first.folder.path)}, so they "
                "make no ensemble. Use one of these runs."
            )
    same = all(member.encoder == first.encoder for member in members)
    widths = [] if same else [member.input_shape[0] for member in members]
    encoder = first.encoder if same else {**(first.encoder or {}), "members": [member.encoder for member in members]}
    return replace(
        first,
        folder=folder,
        model=MeanProbabilities(members, widths).eval(),
        input_shape=(sum(widths),) if widths else first.input_shape,
        normalise=Normalise(None, None, first.device),
        encoder=encoder,
        tta=None,
        temperature=1.0,
    )


def difference(first: LoadedRun, other: LoadedRun) -> str:
    """Why two runs don't answer the same question about the same samples; nothing where they do."""
    rest = [{key: (run.encoder or {}).get(key) for key in {*(run.encoder or {})} - {*FITTED}} for run in (first, other)]
    if first.classes != other.classes:
        return "its classes"
    if rest[0] != rest[1]:
        return "the columns that it takes"
    if first.encoder is None and first.input_shape != other.input_shape:
        return "the samples that it takes"
    return (
        "the images that it takes" if (first.reading, first.mean is None) != (other.reading, other.mean is None) else ""
    )


def load_classifier(
    folders: Sequence[RunFolder], folder: RunFolder, device: str, changes: Sequence[str], tta: str | None, scaled: bool
) -> Classifier:
    """The runs in `folders`, of the sweep in `folder`, as one Classifier; the arguments are those of `from_run`."""
    members = [load_run(each, "best", device, changes, model_only=True, tta=tta) for each in folders]
    if scaled:
        members = [at_temperature(member, "best") for member in members]
    return run_classifier(mean_run(members, folder))


def open_common(
    members: Sequence[LoadedRun], whole: LoadedRun, name: str, download: bool
) -> tuple[Split, str, int, Split | None]:
    """Split `name` as `whole` takes it, what it is to be called, how often test was opened, and a val that all share.

    Opening the test set is counted for each member.

    Raises RequestError where the members do not have the same split, DataError as `rebuild_dataset` does.
    """
    keys = [to_json(member.config["dataset"]) for member in members]
    if name != "test" and len(set(keys)) > 1:
        raise RequestError(f"--split {name}: the members are folds, and each has another. Use --split test.")
    datasets: dict[str, Dataset] = {}
    opened = []
    for key, member in zip(keys, members, strict=True):
        if key not in datasets:
            dataset = rebuild_dataset(member, download)
            datasets[key] = replace(dataset, open_test=cache(dataset.open_test))
        check_trained_on(member, datasets[key])
        opened.append(open_split(member.folder, datasets[key], name, "mcls evaluate --ensemble"))
    splits = [split for split, _, _ in opened]
    for member, split in zip(members, splits, strict=True):
        if split.names != splits[0].names or not torch.equal(split.targets, splits[0].targets):
            raise DataError(
                f"{member.folder.path}: its {name} has other samples than that of {members[0].folder.path}."
            )
    called = next((called for _, called, _ in opened if called != name), name)
    split = splits[0]
    if whole.input_shape != members[0].input_shape:
        split = replace(split, inputs=torch.cat([torch.as_tensor(each.inputs[:]) for each in splits], dim=1))
    val = datasets[keys[0]].val if len(datasets) == 1 else None
    return split, called, max(count for _, _, count in opened), val


def measure_members(members: Sequence[LoadedRun], split: Split, selected: bool) -> list[dict[str, Any]]:
    """What each member says of `split`, for evaluation.json.

    Args:
        split: as the ensemble takes it.
        selected: whether the weights were selected on these samples.
    """
    widths = [member.input_shape[0] for member in members]
    own = split.inputs.shape[1:] != members[0].input_shape
    parts = torch.as_tensor(split.inputs[:]).split(widths, dim=1) if own else [split.inputs] * len(members)
    found = []
    for member, inputs in zip(members, parts, strict=True):
        logits = logit_batches(member, replace(split, inputs=inputs))
        report = accumulate(logits, split.targets, len(member.classes)).measure().report(member.classes, selected)
        kept: dict[str, Any] = {key: report[key] for key in ("accuracy", "interval", "loss", "ece") if key in report}
        found.append({"run": member.folder.path.name, "epoch": member.epoch, **kept})
    return found
