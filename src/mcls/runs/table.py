"""The table of runs: read from their folders, averaged over seeds, filtered and sorted. Only small files are read.

A folder may be somebody else's, or incomplete: whatever is wrong with it is the reason in its row.
"""

import difflib
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

from mcls.errors import FolderError, RequestError
from mcls.runs.folder import PRUNED, REPEATS, RunFolder, epochs_done, read_json, read_text, relative, status_of
from mcls.runs.formats import WHOLE
from mcls.runs.renamed import KEYS, target

TABLE_METRICS = ("accuracy", "loss", "f1_macro", "ece")
HIGH_FIRST = ("accuracy", "f1_macro", "started")  # keys, or their endings, that are sorted from high to low
TARGET = "._target_"
REMARKS = ("tags", "note")
BEGINS = re.compile(r"( {0,2})([\w-]+):")  # begins a line of config.yaml that is a group or a key
# keys that do not change what is trained; the precision that counts is the one in run.json
FREE = {
    *REPEATS,
    "schema",
    "name",
    *REMARKS,
    "outputs",
    "device",
    "precision",
    "threads",
    "trust",
    "dataset.download",
}
FREE |= {
    f"trainer.{key}" for key in ("log_every_steps", "checkpoint_every_seconds", "checkpoint_every_steps", "figures")
}
FREE |= {f"trainer.{key}" for key in ("workers", "data_on_device", "evaluate_test_each_epoch", "timeout_seconds")}
FILTER = re.compile(r"([^=<>!]+)(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": ne, ">": gt, "<": lt, ">=": ge, "<=": le}


@dataclass(frozen=True)
class RunRow:
    """One row: a run, or several that differ in the seed alone.

    Args:
        folders: of the runs, the one with the best `val/accuracy` first.
        status: one of runs.STATUSES.
        settings: the hyper-parameters, dotted keys to plain values.
        values: measures and `epochs`, `seconds`, `started`; means where there are several runs.
        deviation: sample standard deviation of those that are numbers, over the seeds.
        reason: why it failed, stopped or can't be read.
        method: what a run is but for its seed; empty where it is not known.
        typed: keys that its command line gave a value.
        results: of each run, what tells it from the others of its row, and what of result.json comparisons need.
    """

    folders: tuple[Path, ...]
    status: str
    settings: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    method: str = ""
    typed: frozenset[str] = frozenset()
    results: tuple[dict[str, Any], ...] = ()

    def get(self, key: str) -> Any:
        """The value of `key`, None where the row has none."""
        if key == "run":
            return relative(self.folders[0])
        known = {"status": self.status, "n": len(self.folders)}
        return known.get(key, self.values.get(key, self.settings.get(key)))


def read_row(folder: RunFolder) -> RunRow:
    """The row of one run. Never raises, whatever is in the folder."""
    try:
        about, result = read_json(folder.about), folder.read_result()
        overrides = [str(line) for line in about.get("overrides", [])]
        settings = about.get("hyperparameters", overridden(overrides))
        if not isinstance(settings, dict):
            raise FolderError(f"{folder.about}: damaged, its hyper-parameters are no object.")
        values = measures(result or {})
        values["started"] = str(about["started"]) if "started" in about else None
        status = status_of(folder, result)
        if (result or {}).get("ended_by") == PRUNED:
            status = "pruned"
        elif status != "finished":
            values["epochs"] = epochs_done(folder.metrics)
        method = ""
        if folder.config.is_file():
            method, targets = method_of(read_text(folder.config))
            folded = "dataset.fold" in settings  # whose val is its own
            seen = None if folded else ((result or {}).get("fingerprints") or {}).get("val")
            precision = about.get("precision", settings.get("precision"))
            settings, method = (
                {**settings, **targets, "precision": precision},
                f"{method}precision: {precision}\ndata: {seen}",
            )
        reason, typed = str((result or {}).get("reason") or ""), frozenset(overridden(overrides))
        kept = comparable(settings, result or {})
        return RunRow((folder.path,), status, settings, values, {}, reason, method, typed, (kept,))
    except (FolderError, OSError, ValueError, TypeError, AttributeError) as error:
        return RunRow((folder.path,), "damaged", reason=str(error))


def method_of(config: str) -> tuple[str, dict[str, str]]:
    """The lines of a config.yaml that decide what is trained, but for the seed, and the `_target_` of each group.

    Read as text, in the form in which mcls writes it: a thousand runs are listed in a second.
    """
    group, key, kept, targets = "", "", [], {}
    for line in config.splitlines(keepends=True):
        if start := BEGINS.match(line):
            group = group if start[1] else start[2]
            key = f"{group}.{start[2]}" if start[1] else group
            if new := KEYS.get(key):
                key, line = new, line.replace(start[2], new.split(".")[1], 1)
            if key.endswith(TARGET):
                targets[key] = target(line.partition(":")[2].strip())
                line = f"  _target_: {targets[key]}\n"
        if key not in FREE and group not in FREE:  # of a long note there are several lines
            kept.append(line)
    return "".join(kept), targets


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """The known hyper-parameters of a run that ended before it recorded them."""
    return {key.lstrip("+"): value for key, _, value in (line.partition("=") for line in overrides)}


def measures(result: dict[str, Any]) -> dict[str, Any]:
    """`val/accuracy` and the like from a result.json. Raises TypeError or AttributeError for unexpected content."""
    values = {
        f"{split}/{name}": finite_number(report.get(name))
        for split in ("val", "test")
        if (report := result.get(split)) is not None
        for name in TABLE_METRICS
    }
    return {
        **values,
        "epochs": finite_number(result.get("epochs")),
        "seconds": finite_number(result.get("total_seconds")),
    }


def comparable(settings: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """What runs are compared by: their repeat, accuracies, numbers of samples, and which samples were right."""
    kept: dict[str, Any] = {"repeat": str([settings.get(key) for key in REPEATS])}
    kept |= {key: result[key] for key in ("val_correct", "fingerprints") if key in result}
    for split in ("val", "test"):
        report = result.get(split) or {}
        accuracy, count = report.get("accuracy"), report.get("n")
        if accuracy is not None and 0 <= accuracy <= 1 and type(count) is int and 0 < count < WHOLE:
            kept[split] = {"accuracy": accuracy, "n": count}
    return kept


def finite_number(value: Any) -> float | None:
    """A finite number, or None. Raises TypeError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"result.json: damaged, {value!r:.40} is no number.")
    return value


def average(rows: Iterable[RunRow]) -> list[RunRow]:
    """Finished runs whose whole configuration differs in REPEATS alone, seed and fold, as one row, and pruned ones.

    Of runs with the same of these too, the newest counts.
    """
    groups: dict[str, dict[str, RunRow]] = {}
    for number_, row in enumerate(rows):
        key = str(number_)
        if row.status in ("finished", "pruned") and "seed" in row.settings and row.method:
            key = f"{row.status}\n{row.method}"
        seed = str([row.settings.get(name) for name in REPEATS])
        before = groups.setdefault(key, {}).get(seed)
        if before is None or str(before.get("started")) <= str(row.get("started")):
            groups[key][seed] = row
    return [merge(list(group.values())) for group in groups.values()]


def merge(rows: list[RunRow]) -> RunRow:
    """Several runs as one row: means and standard deviations."""
    if len(rows) == 1:
        return rows[0]
    rows = sorted(rows, key=sort_key("val/accuracy"))
    values: dict[str, Any] = {"started": max(str(row.get("started")) for row in rows)}
    deviation = {}
    for key in rows[0].values.keys() - {"started"}:
        values_of = [row.values[key] for row in rows if row.values.get(key) is not None]
        if len(values_of) == len(rows):
            values[key], deviation[key] = statistics.fmean(values_of), statistics.stdev(values_of)
    settings = {key: value for key, value in rows[0].settings.items() if key not in REPEATS}
    folders, results = (tuple(getattr(row, name)[0] for row in rows) for name in ("folders", "results"))
    return replace(rows[0], folders=folders, settings=settings, values=values, deviation=deviation, results=results)


def differing_columns(rows: Iterable[RunRow]) -> list[str]:
    """The hyper-parameters that have more than one value among the runs that have them, in the order of their files.

    Tags and notes, if any run has them, are among them. A `_target_` is one where it says more than the name of the
    choice beside it.
    """
    seen: dict[str, set[str]] = {}
    chosen: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        for key, value in row.settings.items():
            text = value if isinstance(value, str) else json.dumps(value)
            seen.setdefault(key, set()).add(text)
            if key.endswith(TARGET):
                chosen.setdefault(key, set()).add((str(row.settings.get(key.removesuffix(TARGET))), text))
    said = {key for key, pairs in chosen.items() if len({choice for choice, _ in pairs}) == len(pairs)}
    return [key for key, values in seen.items() if (len(values) > 1 or key in REMARKS) and key not in said]


def sort_key(key: str) -> Callable[[RunRow], tuple[bool, bool, Any]]:
    """A sort key for rows: the best value of `key` first, rows without one last."""
    sign = -1 if key.endswith(HIGH_FIRST) else 1

    def order(row: RunRow) -> tuple[bool, bool, Any]:
        value = row.get(key)
        if isinstance(value, int | float):
            return False, False, sign * value
        return value is None, True, tuple(sign * ord(character) for character in str(value))

    return order


def full_key(word: str, rows: Sequence[RunRow]) -> str:
    """The full key for `word`: itself, or the only key that ends in it. Raises RequestError."""
    known = dict.fromkeys(["status", "run", "n", *(f"val/{name}" for name in TABLE_METRICS)])
    for row in rows:
        known |= dict.fromkeys([*row.values, *row.settings])
    if word in known or not rows:
        return word
    if KEYS.get(word) in known:
        return KEYS[word]
    endings = [key for key in known if key.endswith((f".{word}", f"/{word}"))]
    if len(endings) == 1:
        return endings[0]
    close = endings or difflib.get_close_matches(word, known, n=1)
    raise RequestError(f"{word}: no run has this key." + (f" Did you mean {' or '.join(close)}?" if close else ""))


@dataclass(frozen=True)
class Filter:
    """One condition on rows, `KEY=VALUE` or with ``!= > < >= <=``."""

    key: str
    sign: str
    value: str

    def __call__(self, row: RunRow) -> bool:
        """Whether `row` meets it. Numbers are compared as numbers, anything else as text, a mean as itself."""
        value = row.get(self.key)
        if value is None:
            return self.sign == "!="
        mine = value if isinstance(value, str) else json.dumps(value)
        if self.key == "tags" and self.sign in ("=", "!="):
            return (self.value in mine.split(",")) == (self.sign == "=")
        if numeric(mine) and numeric(self.value):
            return COMPARISONS[self.sign](float(mine), float(self.value))
        return COMPARISONS[self.sign](mine, self.value)


def numeric(value: Any) -> bool:
    """Whether `value` is a number, or the text of one."""
    try:
        float(value if isinstance(value, str) else json.dumps(value))
        return True
    except ValueError:
        return False


def parse_filter(text: str, rows: Sequence[RunRow]) -> Filter:
    """The condition in `text`. Raises RequestError if it is not one, or if no run could ever meet it."""
    parts = FILTER.fullmatch(text)
    if not parts:
        raise RequestError(f"{text}: neither a folder nor a filter such as dataset=cifar10 or 'val/accuracy>0.9'.")
    key, sign, value = full_key(parts[1].strip(), rows), parts[2], parts[3].strip()
    if value.startswith(("=", "<", ">")):
        raise RequestError(f"{text}: no such comparison operator. Available: {' '.join(COMPARISONS)}.")
    known = [value_of for row in rows if (value_of := row.get(key)) is not None]
    if sign not in ("=", "!=") and not numeric(value) and known and all(map(numeric, known)):
        raise RequestError(f"{text}: {key} is a number, got {value!r}. Use for example '{key}{sign}0.5'.")
    return Filter(key, sign, value)
