"""The page of two finished runs: what differs, both results, both curves, both matrices. It reads no data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcls.config.saved import check_same_data, saved_config
from mcls.config.schema import differing_keys, leaves, yaml_text
from mcls.errors import RequestError
from mcls.inference.compare import mcnemar_lines, metric_rows
from mcls.report.html import checked_format, curve_charts, matrix, rendered, run_title
from mcls.runs.folder import RunFolder, own_command, parse_json, read_json, read_text, relative, shell_path, slug

COLOURS = ("var(--val)", "var(--other)")
COMPARED = dict.fromkeys(("samples", "only_first", "only_second"), "count")  # in a file that mcls compare leaves


def comparison_folder(first: Path, second: Path) -> Path:
    """Where `mcls compare` leaves what it found out about two runs."""
    return first / "compare" / slug(RunFolder(second.resolve()).name)


def two_runs_page(folders: Sequence[RunFolder], full: bool) -> str:
    """The page of two runs.

    Args:
        full: with whole paths.

    Raises FolderError when one is not finished or damaged, RequestError when they are the same or on different data.
    """
    first, second = folders
    if first.path.resolve() == second.path.resolve():
        raise RequestError(f"{first.path} and {second.path}: the same run. Name two.")
    results = [folder.read_finished() for folder in folders]
    configs = [dict(leaves(saved_config(folder))) for folder in folders]
    differ = differing_keys(*configs)
    check_same_data(differ, "test")
    drawn = [(folder, f"{letter} ", colour) for folder, letter, colour in zip(folders, "AB", COLOURS, strict=True)]
    with checked_format(first):
        charts, lines = curve_charts(drawn, {result["best_epoch"] for result in results})
        values = {
            "title": " and ".join(map(run_title, folders)),
            "names": [relative(folder.path) for folder in folders],
            "measures": [
                row
                for split in ("test", "val")
                if all(result[split] for result in results)
                for row in metric_rows(split, [result[split] for result in results])
            ],
            "tests": [*lines_of_test(first, second), *lines_of_val(results)],
            "again": f"mcls compare {shell_path(relative(first.path))} {shell_path(relative(second.path))}",
            "differ": [
                [key, *("" if value is None else yaml_text(value) for value in pair)] for key, pair in differ.items()
            ],
            "charts": charts,
            "lines": lines,
            "classes": [
                (letter, matrix(result["test"] or result["val"])) for letter, result in zip("AB", results, strict=True)
            ],
            "commands": [own_command(read_json(folder.about)) for folder in folders],
        }
    return rendered("two.html", values, full)


def lines_of_val(results: Sequence[dict[str, Any]]) -> list[str]:
    """McNemar's test on the same val samples, if they are the same."""
    prints = [(result.get("fingerprints") or {}).get("val") for result in results]
    if prints[0] is None or prints[0] != prints[1] or not all(result.get("val_correct") for result in results):
        return []
    right, other = (int(result["val_correct"], 16) for result in results)
    counts = (right & ~other).bit_count(), (other & ~right).bit_count(), prints[0]["samples"]
    return ["On val, on which both were selected: " + " ".join(mcnemar_lines(*counts))]


def lines_of_test(first: RunFolder, second: RunFolder) -> list[str]:
    """McNemar's test on the test set, if `mcls compare` made it."""
    path = comparison_folder(first.path, second.path) / "test.json"
    if not path.is_file():
        return []
    found = parse_json(read_text(path), path, COMPARED)
    return ["On test: " + " ".join(mcnemar_lines(found["only_first"], found["only_second"], found["samples"]))]
