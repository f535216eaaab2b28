"""For the table of runs what that of a sweep says: intervals, and which of them val can't tell from the best."""

from collections.abc import Sequence
from dataclasses import replace

from mcls.runs.folder import RunFolder
from mcls.runs.table import RunRow
from mcls.sweep.table import Repeat, Setting, against_best

STANDING = ("val/interval", "against_best", "test/interval")


def with_standing(rows: Sequence[RunRow], averaged: bool) -> list[RunRow]:
    """`rows` with the values STANDING as far as they are known.

    Rows are compared with the best of those on the same samples of val, or of folds that are cut in the same way.

    Args:
        averaged: whether a row has all seeds; single ones of the same method are not compared.
    """
    settings = [setting_of(number, row) for number, row in enumerate(rows)]
    words = [""] * len(rows)
    groups: dict[str, list[int]] = {}
    for number, (row, setting) in enumerate(zip(rows, settings, strict=True)):
        if averaged and setting.measured("val") and (asked := question_of(row)):
            groups.setdefault(asked, []).append(number)
    for members in groups.values():
        members.sort(key=lambda number: settings[number].rank)
        said = against_best([settings[number] for number in members]) if len(members) > 1 else [""]
        for number, word in zip(members, said, strict=True):
            words[number] = word
    found = []
    for row, setting, word in zip(rows, settings, words, strict=True):
        bounds = (setting.interval("val"), setting.interval("test"))
        shown = [f"{each[0]:.4f} to {each[1]:.4f}" if each else None for each in bounds]
        values = dict(zip(STANDING, (shown[0], word or None, shown[1]), strict=True))
        found.append(replace(row, values=row.values | values))
    return found


def setting_of(number: int, row: RunRow) -> Setting:
    """A row as a setting of a sweep."""
    repeats = [
        Repeat(number, result["repeat"], RunFolder(path), row.status, result, row.reason)
        for path, result in zip(row.folders, row.results, strict=False)
    ]
    folds = row.settings.get("dataset.folds")
    return Setting({}, repeats, 1 / (folds - 1) if isinstance(folds, int) and folds > 1 else 0.0)


def question_of(row: RunRow) -> str:
    """What rows have in common whose accuracies on val can be compared; empty where it is not known."""
    dataset = {key: value for key, value in row.settings.items() if key.startswith("dataset")}
    if dataset.pop("dataset.fold", None) is not None or dataset.get("dataset.folds"):
        return str(sorted(dataset.items()))
    seen = (row.results[0].get("fingerprints") or {}).get("val")
    return str(seen) if seen else ""
