"""A run as one page of HTML that needs nothing else: no script, no file from elsewhere, everything escaped."""

import base64
import hashlib
import math
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from mcls.errors import FolderError
from mcls.report.summary import epoch_records, most_confused
from mcls.report.svg import Curve, chart
from mcls.runs.folder import RunFolder, own_command, read_json, read_text, unfinished
from mcls.runs.table import REMARKS
from mcls.system.text import clean, comma_separated, decimals

PICTURE = 8_000_000  # bytes of a figure that is embedded
PNG = b"\x89PNG\r\n\x1a\n"
LATIN = 0x52F  # up to here are Latin, Greek and Cyrillic, which matplotlib's own font has
MORE_MEASURES = {"mcc": "Matthews correlation", "auroc": "AUROC", "average_precision": "average precision"}
CURVE_COLOURS = {"train": "#8a94a6", "val": "#2563eb"}
FIGURES = {
    "surest": "The best: right, and the model was most sure of them.",
    "mistakes": "The worst: mistakes that the model was most sure of.",
    "regions": "What the model says everywhere in the plane, and the test samples.",
    "roc": "One class against the rest: how many of it are found, at how many false alarms; areas in the legend.",
    "precision-recall": "One class against the rest: how many of it are found, and how many of those found are it.",
    "reliability": "How often the model is right when it is that sure. On the line it is as sure as it should be.",
}


def page(folder: RunFolder) -> str:
    """The page of a run. Raises FolderError when the folder holds none or is damaged."""
    about, result = read_json(folder.about), folder.finished() or folder.read_result() or {}
    try:
        label = unfinished(folder, result or None)
        measured = {} if label else result["test"] or result["val"]
        values = {
            "title": f"{about['choices']['dataset']} · {about['choices']['model']}",
            "name": folder.name,
            "started": about["started"],
            "remarks": [str(said) for key in REMARKS if (said := about.get("hyperparameters", {}).get(key))],
            "unfinished": progress(folder, result, label) if label else None,
            "summary": None if label else summary(result),
            "charts": curve_charts(folder, result),
            "best_epoch": result.get("best_epoch"),
            "classes": classes(measured) if measured else None,
            "figures": embed_images(folder),
            "legend": legend(folder, measured),
            "choices": list(about["choices"].items()),
            "config": read_text(folder.config).splitlines(),
            "machine": machine(about),
            "command": own_command(about),
        }
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        reason = clean(f"{type(error).__name__}: {error}")
        raise FolderError(f"{folder.path}: damaged, its files do not have mcls's format ({reason}).") from error
    return rendered("page.html", values)


def template(name: str) -> str:
    """The text of a template of this package."""
    return files("mcls.report").joinpath(f"{name}.j2").read_text("utf-8")


def rendered(name: str, values: dict[str, Any]) -> str:
    """The page that a template makes of `values`, in the style of all pages."""
    environment = Environment(autoescape=True, finalize=printable_value, undefined=StrictUndefined)
    return environment.from_string(template(name)).render(values, style=Markup(template("style.css")))


def try_html(name: str, about: str, image: bool, example: list[list[str]]) -> str:
    """The page on which a served model is tried; its own script is the only one that a browser runs there.

    Args:
        about: what the model takes.
        image: whether that is a picture, else it is rows such as `example`.
    """
    script = files("mcls.report").joinpath("try.js").read_text("utf-8")
    values = {
        "title": name,
        "about": about,
        "image": image,
        "example": Markup(escape(comma_separated(example[0], example[1:], safe=False))) if example else "",
        "script": Markup(script),
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return rendered("try.html", values)


def printable_value(value: object) -> object:
    """What the template shows: markup as it is, anything else as text in one line, which it escapes."""
    return value if isinstance(value, Markup) else clean(str(value))


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
        "samples": f"{int(test['n']):,}",
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
        "openings": int(result.get("test_openings", 0)),
        "reason": result.get("reason", ""),
    }


def curve_charts(folder: RunFolder, result: dict[str, Any]) -> list[Markup]:
    """Charts of loss and accuracy from epoch to epoch; those that have points."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in epoch_records(folder):
        for split in CURVE_COLOURS:
            for name in ("loss", "accuracy"):
                value = (record.get(split) or {}).get(name)
                if value is not None and math.isfinite(value):
                    points.setdefault((name, split), []).append((int(record["epoch"]), float(value)))
    best = float(result.get("best_epoch", 0))
    charts = []
    for name in ("loss", "accuracy"):
        lines = [Curve(split, colour, points.get((name, split), [])) for split, colour in CURVE_COLOURS.items()]
        charts.append(Markup(chart(name, "epoch", lines, best or None)))  # which escapes its names
    return charts if any(charts) else []


def classes(test: dict[str, Any]) -> dict[str, Any]:
    """Confusion matrix and the measures of each class."""
    measured = test["per_class"]
    matrix, names, shown = most_confused(test["confusion"], [str(row["class"]) for row in measured])
    fewer = f"; the {len(shown)} of {len(measured):,} classes that are confused most"
    return {
        "names": names,
        "matrix": [
            (name, [cell(int(count), count / max(sum(counts), 1)) for count in counts])
            for name, counts in zip(names, matrix, strict=True)
        ],
        "rest": fewer if len(shown) < len(measured) else "",
        "rows": [
            [row["class"], *(decimals(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:,}"]
            for row in (measured[label] for label in shown)
        ],
    }


def cell(count: int, share: float) -> dict[str, Any]:
    """A cell of the confusion matrix, the bluer the larger its share of the row."""
    colour = "white" if share > 0.5 else "inherit" if count else "#c3cad5"
    return {"count": count, "share": f"{min(max(share, 0), 1):.3f}", "colour": colour}


def embed_images(folder: RunFolder) -> list[tuple[str, str, str]]:
    """Name, caption and base64 of each figure of samples that is a plain PNG file of a sane size."""
    embedded = []
    for name, words in FIGURES.items():
        path = folder.figures / f"{name}.png"
        if folder.figures.is_symlink() or path.is_symlink() or not path.is_file() or path.stat().st_size > PICTURE:
            continue
        content = path.read_bytes()
        if content.startswith(PNG):
            embedded.append((name, words, base64.b64encode(content).decode()))
    return embedded


def legend(folder: RunFolder, measured: dict[str, Any]) -> str:
    """What the numbers mean that figures show in place of names; figures may have been drawn where fonts were few."""
    rows = enumerate(str(row["class"]) for row in measured.get("per_class", []))
    named = [f"#{index} {name}" for index, name in rows if any(ord(letter) > LATIN for letter in name)]
    return ", ".join(named) if folder.figures.is_dir() else ""


def machine(about: dict[str, Any]) -> list[tuple[str, Any]]:
    """Device, environment and versions."""
    environment = about["environment"]
    keys = ("device", "device_name", "precision", "channels_last", "seed")
    values = {key: about.get(key) for key in keys} | {k: v for k, v in environment.items() if k != "packages"}
    return [(key, value) for key, value in (values | environment["packages"]).items() if value is not None]
