"""A run as one page of HTML that needs nothing else: no file from elsewhere, no script but its own, all escaped."""

import base64
import contextlib
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from mcls.errors import FolderError
from mcls.report.matrix import (
    NAMED,
    class_sizes,
    confused_pairs,
    near_diagonal,
    nonzero_cells,
    share_grid,
    transparent_png,
)
from mcls.report.summary import epoch_records
from mcls.report.svg import Curve, chart
from mcls.runs.folder import RunFolder, own_command, read_json, read_text, read_yaml, unfinished
from mcls.runs.ledger import read_ledger
from mcls.system.text import clean, comma_separated, decimals, plural

PICTURE = 8_000_000  # bytes of a figure that is embedded
PNG = b"\x89PNG\r\n\x1a\n"
LATIN = 0x52F  # up to here are Latin, Greek and Cyrillic, which matplotlib's own font has
MORE_MEASURES = {"mcc": "Matthews correlation", "auroc": "AUROC", "average_precision": "average precision"}
HEATS = (0.02, 0.1, 0.3, 0.6, 0.9)  # shares of a true class between which its cells change their colour
PAIRS = 20  # of classes that are listed as confused
CLASS_ROWS = 1000  # classes in the table, at most
# an absolute path, or one in the home folder; its last name
PATH = re.compile(
    r"""(?<![\w.…</\\])(?:~?/|[A-Za-z]:[\\/]|\\\\)(?:[^\s'",:;=<>\[\]/\\]+[/\\])*([^\s'",:;=<>\[\]/\\]+)"""
)
FIGURES = {
    "surest": "The best: right, and the model was most sure of them.",
    "mistakes": "The worst: mistakes that the model was most sure of.",
    "embedding": "What the last layer is given, in two dimensions: classes that overlap are hard to tell apart there.",
    "regions": "What the model says everywhere in the plane, and the test samples.",
    "roc": "One class against the rest: how many of it are found, at how many false alarms; areas in the legend.",
    "precision-recall": "One class against the rest: how many of it are found, and how many of those found are it.",
    **{
        f"evaluation-{split}-explain": f"Mistakes ({split}); covering what is red makes the model less sure."
        for split in ("test", "val")
    },
    "reliability": "How often the model is right when it is that sure. On the line it is as sure as it should be.",
}


def page(folder: RunFolder, full: bool = False) -> str:
    """The page of a run. Raises FolderError when the folder holds none or is damaged.

    Args:
        full: with the name of the machine and whole paths.
    """
    about, result = read_json(folder.about), folder.finished() or folder.read_result() or {}
    with checked_format(folder):
        label = unfinished(folder, result or None)
        measured = {} if label else result["test"] or result["val"]
        best = result.get("best_epoch")
        charts, lines = curve_charts([(folder, "", "var(--val)")], [best] if best else [])
        remarks = about.get("hyperparameters", {})
        values = {
            "title": run_title(folder),
            "about": f"{about['choices']['dataset']} · {about['choices']['model']}",
            "started": readable_time(about["started"]),
            "unfinished": progress(folder, result, label) if label else None,
            "summary": None if label else summary(result),
            "tags": [*filter(None, str(remarks.get("tags", "")).split(","))],
            "note": remarks.get("note", ""),
            "charts": charts,
            "lines": lines,
            "best_epoch": best,
            "classes": matrix(measured) if measured else None,
            "per_class": per_class(measured) if measured else [],
            "figures": embed_images(folder),
            "legend": legend(folder, measured),
            "choices": list(about["choices"].items()),
            "config": read_text(folder.config).splitlines(),
            "warnings": about.get("warnings", []),
            "ledger": ledger(folder, result),
            "machine": machine(about, full),
            "command": own_command(about),
        }
    return rendered("page.html", values, full)


def run_title(folder: RunFolder) -> str:
    """The name that a run was given, or else that of its folder and the one around it."""
    with contextlib.suppress(FolderError):  # of a page that shows what is damaged
        if name := read_yaml(folder.config).get("name"):
            return str(name)
    return RunFolder(folder.path.resolve()).name


@contextlib.contextmanager
def checked_format(folder: RunFolder) -> Iterator[None]:
    """Raise FolderError, naming `folder`, for what the body can't make of the content of its files."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        reason = clean(f"{type(error).__name__}: {error}")
        raise FolderError(f"{folder.path}: damaged, its files do not have mcls's format ({reason}).") from error


def ledger(folder: RunFolder, result: dict[str, Any]) -> list[tuple[str, str, int]]:
    """When the test set was opened, by what, and how often."""
    rows = [(readable_time(line["at"]), line["by"], line["times"]) for line in read_ledger(folder)]
    rest = int(result.get("test_openings", 0)) - sum(times for *_, times in rows)
    return [*rows, *([("", "not recorded", rest)] if rest > 0 else [])]


def readable_time(iso: str) -> str:
    """A time of a run's files as people write it: `2026-11-27 19:24:30 UTC`."""
    return iso.replace("T", " ").replace("+00:00", " UTC")


def template(name: str) -> str:
    """The text of a template of this package."""
    return files("mcls.report").joinpath(f"{name}.j2").read_text("utf-8")


def rendered(name: str, values: dict[str, Any], full: bool = True) -> str:
    """The page that a template makes of `values`, in the style of all pages.

    Args:
        full: with whole paths, of which otherwise the last name is shown.
    """
    environment = Environment(
        autoescape=True,
        finalize=partial(printable_value, full=full),
        undefined=StrictUndefined,
        loader=FunctionLoader(template),
    )
    fixed = {"style": Markup(template("style.css")), **own_script("page.js"), "full": full}
    return environment.get_template(name).render({**fixed, **values})


def own_script(name: str) -> dict[str, str]:
    """A script of this package, and its digest, by which a browser knows it."""
    script = files("mcls.report").joinpath(name).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "digest": digest}


def try_html(name: str, about: str, image: bool, example: list[list[str]]) -> str:
    """The page on which a served model is tried; its own script is the only one that a browser runs there.

    Args:
        about: what the model takes.
        image: whether that is a picture, else it is rows such as `example`.
    """
    values = {
        "title": name,
        "about": about,
        "image": image,
        "example": Markup(escape(comma_separated(example[0], example[1:], safe=False))) if example else "",
        **own_script("try.js"),
    }
    return rendered("try.html", values)


def printable_value(value: object, full: bool) -> object:
    """What the template shows: markup as it is, anything else as text in one line, which it escapes."""
    if isinstance(value, Markup):
        return value
    return clean(str(value)) if full else PATH.sub(r"…/\1", clean(str(value)))


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """The test accuracy, that on val where test was left closed; the other measures as cards."""
    val = result["val"]
    split, test = ("test", result["test"]) if result["test"] else ("val", val)
    interval = "selected on val"
    if split == "test":
        interval = "95 % interval {:.2f} to {:.2f} %".format(*(float(bound) * 100 for bound in test["interval"]))
    openings = int(result["test_openings"])
    times = {0: "not yet", 1: "once, after the last choice"}
    return {
        "split": split,
        "accuracy": f"{test['accuracy'] * 100:.2f} %",
        "samples": plural(int(test["n"]), "sample"),
        "interval": interval,
        "opened": times.get(openings, f"{openings} times; repeated evaluations make it less reliable"),
        "cards": {
            "validation accuracy (selected on val)": f"{val['accuracy'] * 100:.2f} %" if val else "no validation set",
            f"{split} loss": f"{test['loss']:.4f}",
            f"{split} F1, macro": f"{test['f1_macro']:.4f}",
            **{f"{split} {name}": f"{test[key]:.4f}" for key, name in MORE_MEASURES.items() if key in test},
            "calibration error": f"{test['ece']:.4f}",
            "best epoch": f"{result['best_epoch']:,} of {result['epochs']:,}",
            "time": f"{result['total_seconds']:,.0f} s",
        },
    }


def progress(folder: RunFolder, result: dict[str, Any], label: str) -> dict[str, Any]:
    """How far a run that is not finished has come."""
    vals = [record["val"]["accuracy"] for record in epoch_records(folder) if record.get("val")]
    return {
        "label": label,
        "best": f"{max(vals) * 100:.2f} %" if vals else None,
        "openings": plural(int(result.get("test_openings", 0)), "time"),
        "reason": result.get("reason", ""),
    }


def curve_charts(
    runs: Sequence[tuple[RunFolder, str, str]], marks: Iterable[int]
) -> tuple[list[Markup], list[tuple[str, str, bool]]]:
    """Charts of loss and accuracy from epoch to epoch, if there are any, and their legend: name, colour, dashed.

    Args:
        runs: folder, what is before the names of its curves, colour of val; where several are drawn, train is dashed.
        marks: epochs where a dashed line is drawn.
    """
    curves: dict[str, list[Curve]] = {"loss": [], "accuracy": []}
    for folder, before, colour in runs:
        records = epoch_records(folder)
        for split, shown in (("train", colour if before else "var(--train)"), ("val", colour)):
            for measure, drawn in curves.items():
                pairs = [(record["epoch"], (record.get(split) or {}).get(measure)) for record in records]
                points = [(int(x), float(y)) for x, y in pairs if y is not None and math.isfinite(y)]
                drawn.append(Curve(f"{before}{split}", shown, points, bool(before) and split == "train"))
    charts = [
        Markup(chart(measure, "epoch", drawn, [*marks])) for measure, drawn in curves.items()
    ]  # names are escaped
    legend = [(curve.name, curve.colour, curve.dashed) for curve in curves["loss"]]
    return (charts if any(charts) else []), legend


def matrix(measured: dict[str, Any]) -> dict[str, Any]:
    """The confusion matrix: up to NAMED classes its counts, of more a picture and the pairs that are confused most."""
    names = [str(row["class"]) for row in measured["per_class"]]
    cells, count = nonzero_cells(measured["confusion"]), len(names)
    rest = f"the {CLASS_ROWS:,} of {count:,} classes with the lowest F1" if count > CLASS_ROWS else ""
    if count > NAMED:
        pairs = confused_pairs(cells, count, PAIRS)
        png = transparent_png(share_grid(cells, near_diagonal(cells, count)))
        return {
            "rows": [],
            "count": f"{count:,}",
            "png": embedded(png),
            "pairs": [(names[truth], names[guess], f"{n:,}", f"{share:.1%}") for truth, guess, n, share in pairs],
            "rest": rest,
        }
    sizes, counts = class_sizes(cells, count), {(truth, guess): n for truth, guess, n in cells}
    rows = [
        (name, [(n := counts.get((truth, guess), 0), heat(n / max(sizes[truth], 1))) for guess in range(count)])
        for truth, name in enumerate(names)
    ]
    return {"names": names, "rows": rows, "rest": rest}


def heat(share: float) -> int:
    """The number of a cell's colour: 0 of none, the larger the larger its share of the true class."""
    return 1 + sum(share > bound for bound in HEATS) if share else 0


def per_class(measured: dict[str, Any]) -> list[list[str]]:
    """The measures of each class; of more than CLASS_ROWS those with the lowest F1."""
    rows = measured["per_class"]
    if len(rows) > CLASS_ROWS:
        rows = sorted(rows, key=lambda row: 2 if row["f1"] is None else row["f1"])[:CLASS_ROWS]
    keys = ("precision", "recall", "f1")
    return [[row["class"], *(decimals(row[key]) for key in keys), f"{row['support']:,}"] for row in rows]


def embedded(content: bytes) -> Markup:
    """A file in base64, for a data URL."""
    return Markup(base64.b64encode(content).decode())


def embed_images(folder: RunFolder) -> list[tuple[str, str, Markup]]:
    """Name, caption and base64 of each figure of samples that is a plain PNG file of a sane size."""
    images = []
    for name, words in FIGURES.items():
        path = folder.figures / f"{name}.png"
        if folder.figures.is_symlink() or path.is_symlink() or not path.is_file() or path.stat().st_size > PICTURE:
            continue
        content = path.read_bytes()
        if content.startswith(PNG):
            images.append((name, words, embedded(content)))
    return images


def legend(folder: RunFolder, measured: dict[str, Any]) -> str:
    """What the numbers mean that figures show in place of names; figures may have been drawn where fonts were few."""
    rows = enumerate(str(row["class"]) for row in measured.get("per_class", []))
    named = [f"#{index} {name}" for index, name in rows if any(ord(letter) > LATIN for letter in name)]
    return ", ".join(named) if folder.figures.is_dir() else ""


def machine(about: dict[str, Any], full: bool) -> list[tuple[str, Any]]:
    """Device, environment and versions; the name of the machine only where `full`."""
    hidden = {"packages"} if full else {"packages", "host"}
    keys = ("device", "device_name", "precision", "channels_last", "seed")
    own = {key: about.get(key) for key in keys}
    values = own | {key: value for key, value in about["environment"].items() if key not in hidden}
    return [(key, value) for key, value in (values | about["environment"]["packages"]).items() if value is not None]
