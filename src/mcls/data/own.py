"""What folders of images and tables have in common: data that somebody else made, without a published cut."""

import logging
from collections.abc import Mapping, Sequence

import torch

from mcls.data.datasets import Split, stratified
from mcls.data.names import listed
from mcls.errors import DataError, RequestError

log = logging.getLogger("mcls")


def cut_test(whole: Split, test_fraction: float, test_seed: int) -> tuple[Split, Split]:
    """`whole` cut into train and test (`stratified`), for data that come without a test split."""
    first, second = stratified(whole.targets, test_fraction, test_seed)
    if not len(second):
        raise RequestError(
            f"dataset.test_fraction: {test_fraction} of {len(whole)} samples leaves none to test on. Raise it."
        )
    return whole.rows(first), whole.rows(second)


def tell_absent(classes: Sequence[str], splits: Mapping[str, Split | None]) -> None:
    """Warn of classes that a split has no sample of."""
    for name, split in splits.items():
        if split is None:
            continue
        counts = torch.bincount(split.targets, minlength=len(classes)).tolist()
        absent = [label for label, count in zip(classes, counts, strict=True) if not count]
        if absent:
            effect = "they are never learnt" if name == "train" else "nothing is measured of them there"
            log.warning(f"data    {name} has no sample of {listed(absent)}: {effect}.")


def check_classes(classes: Sequence[str], place: str) -> None:
    """Raise DataError, naming `place`, unless there are two classes or more."""
    if len(classes) < 2:
        raise DataError(f"{place}: only one class, {listed(classes)}. A classifier needs two.")
