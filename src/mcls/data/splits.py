"""Cut data into train, val and test, and check labels."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcls.errors import DataError, RequestError
from mcls.system.text import plural, quote_names

if TYPE_CHECKING:
    from mcls.data.image_files import ImageFiles
from mcls.data.types import Split, select_inputs

log = logging.getLogger("mcls")


def stratified(targets: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Cut sample numbers in two, `fraction` of all and of each class in the second part, the same for the same seed.

    What rounding leaves over goes to the classes with the largest remainders. Returns two sorted int64 tensors. A class
    always keeps at least one sample in the first part.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    sizes = targets.bincount()
    sizes = sizes[sizes > 0]
    counts = (fraction * sizes).floor().long()
    missing = max(0, round(fraction * len(targets)) - int(counts.sum()))
    counts[(fraction * sizes - counts).argsort(descending=True, stable=True)[:missing]] += 1
    of_classes = targets.argsort(stable=True).split(sizes.tolist())
    for members, count in zip(of_classes, counts.minimum(sizes - 1).tolist(), strict=True):
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def stratified_groups(targets: Tensor, groups: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """As `stratified`, but samples of one number in `groups` stay together; a group counts as its commonest class."""
    kinds, of_sample = groups.unique(return_inverse=True)
    counts = torch.zeros(len(kinds), int(targets.max()) + 1, dtype=torch.int64)
    counts.index_put_((of_sample, targets), torch.tensor(1), accumulate=True)
    _, second = stratified(counts.argmax(dim=1), fraction, seed)
    chosen = torch.isin(of_sample, second)
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def split_train_val(
    whole: Split,
    val_fraction: float,
    val_seed: int,
    groups: Tensor | None = None,
    folds: int | None = None,
    fold: int | None = None,
) -> tuple[Split, Split | None]:
    """`whole` cut into train and val (`stratified`), no group of samples apart; val is None when its fraction is 0.

    With `folds`, val is number `fold` of so many instead (`fold_of`).
    """
    if folds is not None:
        first, second = fold_of(whole.targets, groups, folds, val_seed, fold or 0)
        return whole.rows(first), whole.rows(second)
    if val_fraction == 0:
        return whole, None
    return divide(whole, val_fraction, val_seed, "val_fraction", "to validate on", ", or set it to 0", groups)


def split_train_test(
    whole: Split, test_fraction: float, test_seed: int, groups: Tensor | None = None
) -> tuple[Split, Split]:
    """`whole` cut into train and test (`stratified`), no group apart, for data that come without a test split."""
    return divide(whole, test_fraction, test_seed, "test_fraction", "to test on", "", groups)


def fold_of(targets: Tensor, groups: Tensor | None, folds: int, seed: int, fold: int) -> tuple[Tensor, Tensor]:
    """Sample numbers outside and inside of number `fold` of so many stratified folds, no group apart; int64, sorted.

    The folds are scikit-learn's, shuffled with `seed`. Raises RequestError where a class is too small for them.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = targets if groups is None else torch.stack([targets, groups], dim=1).unique(dim=0)[:, 0]
    if (least := int(units.unique(return_counts=True)[1].min())) < folds:
        what = f"{'samples' if groups is None else 'groups of samples'} outside the test set"
        advice = f"Lower it to {least} at most" if least > 1 else "Set it to null"
        raise RequestError(f"dataset.folds: {folds}, but the smallest class has {least} {what}. {advice}, or add some.")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    cuts = kind(folds, shuffle=True, random_state=seed).split(targets, targets, groups)
    first, second = next(itertools.islice(cuts, fold, None))
    return torch.from_numpy(first), torch.from_numpy(second)


def divide(
    whole: Split, fraction: float, seed: int, key: str, purpose: str, otherwise: str, groups: Tensor | None
) -> tuple[Split, Split]:
    """The two parts of `stratified`. Raises RequestError, naming a fraction that does, when it leaves none for one."""

    def cut(fraction: float) -> tuple[Tensor, Tensor]:
        if groups is None:
            return stratified(whole.targets, fraction, seed)
        return stratified_groups(whole.targets, groups, fraction, seed)

    first, second = cut(fraction)
    if len(second):
        return whole.rows(first), whole.rows(second)
    enough = (part / 100 for part in range(1, 100) if len(cut(part / 100)[1]))
    advice = next((f"Set dataset.{key}={part:g}" for part in enough), "Add samples, two of a class at least")
    raise RequestError(
        f"dataset.{key}: {fraction} of {plural(len(whole), 'sample')} leaves none {purpose}. {advice}{otherwise}."
    )


def materialise(part: Split, inputs: "Tensor | ImageFiles") -> Split:
    """`part`, which has numbers of samples in place of inputs, with those of `inputs`."""
    return replace(part, inputs=select_inputs(inputs, torch.as_tensor(part.inputs)))


def warn_missing_classes(classes: Sequence[str], splits: Mapping[str, Split | None]) -> None:
    """Warn of classes that a split has no sample of."""
    for name, split in splits.items():
        if split is None:
            continue
        counts = torch.bincount(split.targets, minlength=len(classes)).tolist()
        absent = [label for label, count in zip(classes, counts, strict=True) if not count]
        if absent:
            effect = "they are never learnt" if name == "train" else "nothing is measured of them there"
            log.warning(f"data    {name} has no sample of {quote_names(absent)}: {effect}.")


def check_classes(classes: Sequence[str], source: str) -> None:
    """Raise DataError, naming `source`, unless there are two classes or more."""
    if len(classes) < 2:
        raise DataError(f"{source}: only one class, {quote_names(classes)}. A classifier needs at least two.")


def check_labels(targets: Tensor, num_classes: int, name: str) -> None:
    """Raise DataError, naming the first bad row, unless every label is in 0..num_classes-1."""
    bad = ((targets < 0) | (targets >= num_classes)).nonzero()[:, 0]
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{name}, row {row}: label {int(targets[row])} is not in 0..{num_classes - 1} "
            f"({plural(len(bad), 'such row')})."
        )
