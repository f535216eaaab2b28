"""A run as one page of HTML that needs nothing else: no script, no file from elsewhere, everything escaped."""

import base64
import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from mcls.errors import FolderError
from mcls.report.summary import most_confused
from mcls.report.svg import Curve, chart
from mcls.runs.folder import RunFolder, parse_json, read_json, read_text, unfinished
from mcls.runs.formats import EPOCH
from mcls.system.text import clean, decimals

CURVES = 64_000_000  # bytes of metrics.jsonl that are read
PICTURE = 8_000_000  # bytes of a figure that is embedded
PNG = b"\x89PNG\r\n\x1a\n"
LATIN = 0x52F  # up to here are Latin, Greek and Cyrillic, which matplotlib's own font has
CURVE_COLOURS = {"train": "#8a94a6", "val": "#2563eb"}
FIGURES = {
    "surest": "The best: right, and the model was most sure of them.",
    "mistakes": "The worst: mistakes that the model was most sure of.",
    "regions": "What the model says everywhere in the plane, and the test samples.",
    "reliability": "How often the model is right when it is that sure. On the line it is as sure as it should be.",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --rule: #e3e7ee; --accent: #2563eb; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); background: #f5f7fa;
  margin: 0 auto; max-width: 1040px; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 17px; margin: 0 0 12px; }
.soft, caption, figcaption { color: var(--soft); } .soft { margin: 2px 0 18px; overflow-wrap: anywhere; }
section { background: white; border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px; margin: 16px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 14px 20px; }
.cards div span { display: block; color: var(--soft); font-size: 13px; } .cards div b { font-size: 19px; }
.main { display: grid; grid-template-columns: minmax(260px, 5fr) 7fr; gap: 24px; align-items: center; }
.number { font-size: 46px; font-weight: 700; line-height: 1.1; color: var(--accent); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(390px, 100%), 1fr)); gap: 20px;
  align-items: start; } .two > * { min-width: 0; overflow-x: auto; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); } svg .title { fill: var(--ink);
  font-weight: 600; } svg .grid { stroke: var(--rule); } svg .mark { stroke: #d97706; stroke-dasharray: 4 3; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 9px; text-align: right; border-bottom: 1px solid var(--rule); }
.two td, .two th { overflow-wrap: anywhere; } th:first-child, .text td { text-align: left; } th { font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: 20px 40px; align-items: end; }
.wide { overflow-x: auto; min-width: 0; max-width: 100%; } .confusion td { border: 1px solid white; }
.confusion td, .confusion th + th { text-align: center; min-width: 44px; } .numbers td + td { text-align: right; }
figure { margin: 0; } caption { text-align: left; }
img { max-width: 100%; box-sizing: border-box; border: 1px solid var(--rule); border-radius: 6px; }
pre { background: #f5f7fa; padding: 12px; border-radius: 6px; overflow-x: auto; font-size: 13px; margin: 8px 0 0; }
@media print { body { background: white; } section { break-inside: avoid; } }
@media (max-width: 640px) { .main { grid-template-columns: 1fr; } td, th { padding: 3px 5px; } }
"""


def page(folder: RunFolder) -> str:
    """The page of a run. Raises FolderError when the folder holds none or is damaged."""
    about, result = read_json(folder.about), folder.finished() or folder.read_result() or {}
    try:
        label = unfinished(folder, result or None)
        title = f"{about['choices']['dataset']} · {about['choices']['model']}"
        measured = {} if label else result["test"] or result["val"]
        body = [
            f'<h1>{text(title)}</h1><p class="soft">{text(folder.name)} · {text(about["started"])}</p>',
            section("Result", part(folder, result, label) if label else summary(result)),
            section("Curves", curves(folder, result)),
            section("Class by class", classes(measured) if measured else ""),
            section("Samples", embed_images(folder) + legend(folder, measured)),
            section("How it was trained", settings(folder, about)),
            section("To repeat it", f"<pre>{escape(clean(command(about)))}</pre>"),
        ]
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        reason = clean(f"{type(error).__name__}: {error}")
        raise FolderError(f"{folder.path}: damaged, its files are not as mcls writes them ({reason}).") from error
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{text(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{chr(10).join(body)}</body></html>\n'


def text(value: object) -> str:
    """Anything as harmless HTML in one line."""
    return escape(clean(str(value)))


def section(title: str, content: str) -> str:
    """A box with a heading, or nothing where there is no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = (), kind: str = "text") -> str:
    """An HTML table."""
    top = f"<tr>{''.join(f'<th>{text(cell)}</th>' for cell in header)}</tr>" if header else ""
    lines = ("".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows)
    return f'<div class="wide"><table class="{kind}">{top}{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def summary(result: dict[str, Any]) -> str:
    """The test accuracy in large, that on val where test was left closed; the rest in small."""
    val = result["val"]
    split, test = ("test", result["test"]) if result["test"] else ("val", val)
    interval = "selected on val"
    if split == "test":
        interval = "95 % interval {:.2f} to {:.2f} %".format(*(float(bound) * 100 for bound in test["interval"]))
    openings = int(result["test_openings"])
    said = {0: "not yet", 1: "once, after the last choice"}
    loaded = said.get(openings, f"{openings} times: the more often, the less it says")
    cards = {
        "validation accuracy (selected on val)": f"{val['accuracy'] * 100:.2f} %" if val else "no validation set",
        f"{split} loss": f"{test['loss']:.4f}",
        f"{split} F1, macro": f"{test['f1_macro']:.4f}",
        "calibration error": f"{test['ece']:.4f}",
        "best epoch": f"{result['best_epoch']:,} of {result['epochs']:,}",
        "time": f"{result['total_seconds']:,.0f} s",
    }
    small = "".join(f"<div><span>{text(name)}</span><b>{text(value)}</b></div>" for name, value in cards.items())
    return (
        f'<div class="main"><div><div class="number">{test["accuracy"] * 100:.2f} %</div>'
        f"{split} accuracy on {int(test['n']):,} samples<br>{interval}<br>"
        f'<span style="color:var(--soft)">test set opened {loaded}</span></div><div class="cards">{small}</div></div>'
    )


def part(folder: RunFolder, result: dict[str, Any], label: str) -> str:
    """How far a run that is not finished has come."""
    vals = [record["val"]["accuracy"] for record in epoch_records(folder) if record.get("val")]
    best = (
        f"best validation accuracy so far: {max(vals) * 100:.2f} %, selected on val"
        if vals
        else "no validation accuracy yet"
    )
    loaded = int(result.get("test_openings", 0))
    return (
        f'<div class="number">{text(label)}</div>{best}<br>'
        f'<span class="soft">test set opened {loaded} times {text(result.get("reason", ""))}</span>'
    )


def epoch_records(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, but for one that a kill cut off."""
    content = read_text(folder.metrics, CURVES) if folder.metrics.exists() else ""
    return [
        parse_json(line, folder.metrics, EPOCH) for line in content.splitlines(keepends=True) if line.endswith("\n")
    ]


def curves(folder: RunFolder, result: dict[str, Any]) -> str:
    """Loss and accuracy from epoch to epoch."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in epoch_records(folder):
        for split in CURVE_COLOURS:
            for name in ("loss", "accuracy"):
                value = (record.get(split) or {}).get(name)
                if value is not None and math.isfinite(value):
                    found.setdefault((name, split), []).append((int(record["epoch"]), float(value)))
    best = float(result.get("best_epoch", 0))
    charts = []
    for name in ("loss", "accuracy"):
        lines = [Curve(split, colour, found.get((name, split), [])) for split, colour in CURVE_COLOURS.items()]
        charts.append(chart(name, "epoch", lines, best or None))
    dashed = '<p class="soft">The dashed line is the epoch whose weights were selected.</p>'
    return f'<div class="two">{"".join(charts)}</div>{dashed if best else ""}' if any(charts) else ""


def classes(test: dict[str, Any]) -> str:
    """Confusion matrix and the measures of each class."""
    measured, keys = test["per_class"], ("precision", "recall", "f1")
    matrix, names, shown = most_confused(test["confusion"], [str(row["class"]) for row in measured])
    rows = [
        [row["class"], *(decimals(row[key]) for key in keys), f"{row['support']:,}"]
        for row in (measured[label] for label in shown)
    ]
    listed = table(rows, ["class", *keys, "samples"], "text numbers")
    rest = (
        f"; the {len(shown)} of {len(measured):,} classes that are confused most" if len(shown) < len(measured) else ""
    )
    lines = []
    for name, counts in zip(names, matrix, strict=True):
        whole = max(sum(counts), 1)
        cells = "".join(cell(int(count), count / whole) for count in counts)
        lines.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    caption = f"<caption>rows: true class, columns: predicted{rest}</caption>"
    drawn = f'<table class="confusion">{caption}<tr><th></th>{head}</tr>{"".join(lines)}</table>'
    return f'<div class="row"><div class="wide">{drawn}</div>{listed}</div>'


def cell(count: int, share: float) -> str:
    """A cell of the confusion matrix, the bluer the larger its share of the row."""
    colour = "white" if share > 0.5 else "inherit" if count else "#c3cad5"
    return f'<td style="background:rgba(37,99,235,{min(max(share, 0), 1):.3f});color:{colour}">{count}</td>'


def picture(folder: RunFolder, name: str, words: str) -> str:
    """A figure of the folder inside the page, nothing where there is none that is a PNG of a sane size."""
    path = folder.figures / f"{name}.png"
    if folder.figures.is_symlink() or path.is_symlink() or not path.is_file() or path.stat().st_size > PICTURE:
        return ""
    content = path.read_bytes()
    if not content.startswith(PNG):
        return ""
    data = base64.b64encode(content).decode()
    return (
        f'<figure><figcaption>{text(words)}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'
    )


def embed_images(folder: RunFolder) -> str:
    """The figures of samples, two beside each other."""
    found = "".join(picture(folder, name, words) for name, words in FIGURES.items())
    return f'<div class="two">{found}</div>' if found else ""


def legend(folder: RunFolder, measured: dict[str, Any]) -> str:
    """What the numbers mean that figures show in place of names; figures may have been drawn where fonts were few."""
    rows = enumerate(str(row["class"]) for row in measured.get("per_class", []))
    named = [f"#{number} {name}" for number, name in rows if any(ord(letter) > LATIN for letter in name)]
    told = "In figures a class whose name no installed font had is shown by its number: "
    return f'<p class="soft">{told}{text(", ".join(named))}</p>' if named and folder.figures.is_dir() else ""


def settings(folder: RunFolder, about: dict[str, Any]) -> str:
    """Choices, configuration and environment."""
    environment = about["environment"]
    machine = {key: about.get(key) for key in ("device", "device_name", "precision", "channels_last", "seed")}
    machine |= {key: value for key, value in environment.items() if key != "packages"}
    machine |= environment["packages"]
    config = escape("\n".join(map(clean, read_text(folder.config).splitlines())))
    chosen = f"{table(about['choices'].items())}<pre>{config}</pre>"
    return f'<div class="two"><div>{chosen}</div>{table(machine.items())}</div>'


def command(about: dict[str, Any]) -> str:
    """What to type for this run alone; a sweep's own command would repeat all of it."""
    typed = str(about["command"])
    sweeping = {"-m", "--multirun"} & set(shlex.split(typed))
    return shlex.join(["mcls", "train", *map(str, about["overrides"])]) if sweeping else typed
