"""Pictures of a result: each function takes numbers and returns a matplotlib figure; `png` makes a file of one.

matplotlib is imported where it is used, and without pyplot: it costs half a second and no window is ever opened.
"""

import contextlib
import functools
import io
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcls.data.image_io import MARK
from mcls.report.matrix import NAMED, Cell, Confusion, confused_pairs, near_diagonal, nonzero_cells, share_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("mcls")

Array = NDArray[Any]
PIXELS = 1000  # width of every figure: its inches only say how large type is
FONT = "DejaVu Sans"  # matplotlib's own
RIGHT, WRONG, BLUE, GREY, RING = "#1a7f37", "#c62828", "#2f6fb0", "#888888", "#000000"
SOFT = "#566070"  # of small type
SPLITS = {"train": "#8a94a6", "val": BLUE, "test": "#d9822b"}
PAIRS = 10  # of classes that are listed as confused
IN_LEGEND = 20  # classes in a legend


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches that are scaled to PIXELS."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.parse_math"] = False  # a class may be called $x
    return Figure(figsize=(width, height), dpi=PIXELS / width, layout="constrained")


@functools.cache
def glyphs(path: str) -> frozenset[str]:
    """The characters that a font has; none of a file that matplotlib can't read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of installed fonts that have `characters`, and those characters that none has."""
    from matplotlib import font_manager

    manager, families = font_manager.fontManager, [FONT]
    missing = characters - glyphs(font_manager.findfont(FONT))
    if missing:
        for path in set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                manager.addfont(path)  # installed after matplotlib made its list
    for font in sorted(manager.ttflist, key=lambda font: font.name) if missing else ():
        plain = font.style == "normal" and font.weight == 400 and not font.name.startswith("Last Resort")
        if plain and missing & glyphs(font.fname):
            families.append(font.name)
            missing -= glyphs(font.fname)
    return tuple(families), missing


@functools.cache
def legible(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names` of classes as figures show them: the number of a class in place of a name that no installed font has."""
    missing = fonts_for(frozenset("".join(names)))[1]
    numbers = [index for index, name in enumerate(names) if missing & set(name)]
    if numbers:
        cjk = any(re.match("CJK|HIRAGANA|KATAKANA|HANGUL", unicodedata.name(letter, "")) for letter in missing)
        legend = ", ".join(f"#{index} {names[index]}" for index in numbers[:10])
        more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
        log.warning(
            "figures no installed font has the characters of these class names, so they are shown as numbers: "
            f"{legend}{more}. "
            f"A package with such a font is fonts-noto-{'cjk' if cjk else 'core'} (Debian, Ubuntu)."
        )
    return tuple(f"#{index}" if index in numbers else shortened(name) for index, name in enumerate(names))


def shortened(name: str, length: int = 24) -> str:
    """`name` in at most `length` characters: its middle is left out."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-(length // 2 - 1) :]}"


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file, in fonts that have its characters; a character that none has becomes a ?."""
    from matplotlib.text import Text

    buffer = io.BytesIO()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        families, missing = fonts_for(frozenset(text.get_text()) - set("\n"))
        text.set_text("".join("?" if letter in missing else letter for letter in text.get_text()))
        if len(families) > 1:
            text.set_fontfamily(list(families))
    figure.savefig(buffer, format="png", metadata=MARK)
    return buffer.getvalue()


def add_title(axes: "Axes", title: str) -> None:
    """The first line of `title` above the axes, what follows it small and grey beneath."""
    first, *rest = title.split("\n")
    axes.set_title(first, fontsize=10, pad=20 if rest else 6)
    if rest:
        text = axes.annotate(" ".join(rest), (0.5, 1), (0, 7), xycoords="axes fraction", textcoords="offset points")
        text.set(ha="center", fontsize=8, color=SOFT)


def curves(epochs: Sequence[dict[str, Any]], best_epoch: int, title: str) -> "Figure":
    """Loss, accuracy and learning rate from epoch to epoch, the selected epoch marked.

    Args:
        epochs: the lines of metrics.jsonl.
        best_epoch: the one whose weights were selected.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.25, 6)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
    numbers = [record["epoch"] for record in epochs]
    marker = "o" if len(epochs) == 1 else None
    for axes, key in zip(panels, ("loss", "accuracy", "lr"), strict=True):
        for split, colour in SPLITS.items():
            values = [(record.get(split) or {}).get(key) for record in epochs]
            if any(value is not None for value in values):
                shown = [math.nan if value is None else value for value in values]
                axes.plot(numbers, shown, color=colour, linewidth=1.4, marker=marker, label=split)
        axes.set_ylabel("learning rate" if key == "lr" else key)
        axes.grid(alpha=0.25)
        axes.axvline(best_epoch, color=GREY, linestyle="--", linewidth=1, label=f"epoch {best_epoch}, selected")
    panels[2].plot(numbers, [record["lr"] for record in epochs], color=GREY, linewidth=1.4, marker=marker)
    panels[2].set_xlabel("epoch")
    panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(fontsize=8, loc="best")
    add_title(panels[0], title)
    return figure


def rate_curve(rates: Sequence[float], losses: Sequence[float], suggested: float, title: str) -> "Figure":
    """The loss at each learning rate of a range test, the suggested rate marked."""
    figure = new_figure(6, 3.6)
    axes = figure.subplots()
    axes.plot(rates, losses, color=BLUE)
    axes.axvline(suggested, color=GREY, linestyle="--", linewidth=1, label=f"suggested, {suggested:g}")
    low, first = min(losses), losses[0]
    axes.set(
        xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(low - 0.1 * (first - low), first * 1.3)
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=8)
    add_title(axes, title)
    return figure


def confusion(counts: Confusion, classes: Sequence[str], title: str) -> "Figure":
    """Confusion matrix, coloured by the part of each true class: up to NAMED classes its counts with names, of more
    in an order in which classes that are confused are near each other, and the pairs that are confused most.

    Args:
        counts: C x C (row the true class), or the cells that are not 0, as in result.json.
    """
    classes, cells = legible(tuple(classes)), nonzero_cells(counts)
    if len(classes) > NAMED:
        return large_confusion(cells, classes, title)
    figure = new_figure(6.25, 6.25)
    axes = figure.add_subplot()
    share = np.asarray(share_grid(cells, range(len(classes))))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks, size = range(len(classes)), min(10.0, 150 / len(classes))
    axes.set_xticks(ticks, classes, fontsize=9)
    if max(map(len, classes)) * len(classes) > 60:  # they do not fit beside each other
        axes.tick_params("x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes, fontsize=9)
    for row, column, count in cells:
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    add_title(axes, title)
    return figure


def large_confusion(cells: Sequence[Cell], classes: Sequence[str], title: str) -> "Figure":
    """Confusion matrix of many classes, the root of the shares in colour, with the most confused pairs below it."""
    figure = new_figure(6.25, 8)
    axes, below = figure.subplots(2, 1, height_ratios=(6, 2))
    grid = np.sqrt(share_grid(cells, near_diagonal(cells, len(classes))))
    image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.1, 0.3, 0.5**0.5, 1], shrink=0.8)
    bar.ax.set_yticklabels(["0", "1 %", "9 %", "50 %", "100 %"], fontsize=8)
    bar.set_label("of the true class", fontsize=9)
    axes.set(xticks=[], yticks=[], ylabel="true")
    axes.set_xlabel(f"predicted; {len(classes):,} classes, confused ones near each other")
    lines = [
        f"{n:,} ({share:.0%}) {classes[truth]} as {classes[guess]}"
        for truth, guess, n, share in confused_pairs(cells, len(classes), PAIRS)
    ]
    below.set_axis_off()
    told = "\n".join(["Confused most: samples (of the true class), true as predicted", *lines])
    below.text(0, 1, told, va="top", fontsize=8.5, linespacing=1.3)
    add_title(axes, title)
    return figure


def reliability(bins: Sequence[Sequence[float]], title: str) -> "Figure":
    """Reliability diagram of the calibration bins (3 x B: count, sum of confidence, number right) and their counts."""
    count, confidence, correct = (np.asarray(row, dtype=float) for row in bins)
    filled = count > 0
    edges = np.linspace(0, 1, len(count) + 1)
    figure = new_figure(5, 5.8)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    heights = correct[filled] / count[filled]
    axes.bar(edges[:-1][filled], heights, width=1 / len(count), align="edge", color=BLUE, edgecolor="white", alpha=0.85)
    axes.plot(confidence[filled] / count[filled], heights, "o", color="black", markersize=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    below.bar(edges[:-1], count, width=1 / len(count), align="edge", color=GREY, edgecolor="white")
    below.set(xlabel="confidence", ylabel="samples", yscale="log" if filled.any() else "linear")
    below.set_ylim(0.5, max(count.max(), 1) * 8)
    below.yaxis.set_major_formatter("{x:,.0f}")
    for edge, samples in zip(edges[:-1][filled], count[filled], strict=True):
        below.text(edge + 0.5 / len(count), samples * 1.2, compact(samples), ha="center", va="bottom", fontsize=7)
    add_title(axes, title)
    return figure


def compact(count: float) -> str:
    """A number of samples in at most four characters, as `870`, `1.2k` and `15k`."""
    return f"{count:.0f}" if count < 1000 else f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"


def rates(lines: Sequence[tuple[str, Any, Any]], across: str, up: str, title: str) -> "Figure":
    """Curves of two rates, each from 0 to 1.

    Args:
        lines: name, x and y of each.
        across, up: what the axes are.
    """
    figure = new_figure(5, 5)
    axes = figure.add_subplot()
    for name, x, y in lines:
        axes.plot(x, y, linewidth=1.2, label=name)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=across, ylabel=up)
    if lines:
        axes.legend(fontsize=8, loc="lower center" if up == "precision" else "lower right")
    add_title(axes, title)
    return figure


def image_grid(images: Array, labels: Sequence[str], right: Sequence[bool], title: str, columns: int = 5) -> "Figure":
    """A grid of images (N x C x H x W, uint8), each with its label below it, green where right and red where not."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    gap = max(height // 3, 6)
    sheet = np.full((rows * (height + gap), columns * (width + 2), 3), 255, dtype=np.uint8)
    figure = new_figure(6.25, 0.5 + 6.25 / columns * rows * (height + gap) / (width + 2))
    axes = figure.add_subplot()
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + 2)
        sheet[top : top + height, left : left + width] = image[:3].transpose(1, 2, 0)
        colour = RIGHT if right[index] else WRONG
        position = (left + width / 2, top + height + gap * 0.42)
        axes.text(*position, labels[index], ha="center", va="center", fontsize=8, color=colour, linespacing=1.0)
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    add_title(axes, title)
    return figure


def class_colours(count: int) -> list[tuple[float, float, float, float]]:
    """The colours of `count` classes: up to 20 those that are easy to tell apart."""
    from matplotlib import colormaps

    few = next((most for most in (10, 20) if count <= most), None)
    return [colormaps[f"tab{few}"](index) if few else colormaps["turbo"](index / count) for index in range(count)]


def regions(
    points: Array, targets: Array, classify: Callable[[Array], Array], classes: Sequence[str], title: str
) -> "Figure":
    """Points of the plane (N x 2) in their classes' colours over the regions that `classify` (M x 2 to M) sees."""
    from matplotlib.colors import ListedColormap

    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.08 * (high - low)
    across, down = (np.linspace(low[axis] - margin[axis], high[axis] + margin[axis], 200) for axis in (0, 1))
    grid = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2).astype(np.float32)
    decided = classify(grid).reshape(200, 200)
    palette = class_colours(len(classes))
    colours = ListedColormap(palette)
    figure = new_figure(5, 4.6)
    axes = figure.add_subplot()
    extent = (across[0], across[-1], down[0], down[-1])
    top = len(classes) - 1
    axes.imshow(decided, origin="lower", extent=extent, cmap=colours, alpha=0.25, aspect="auto", vmin=0, vmax=top)
    for label, name in enumerate(legible(tuple(classes))):
        chosen = points[targets == label]
        axes.scatter(
            chosen[:, 0], chosen[:, 1], s=10, color=[palette[label]], label=name, edgecolors="white", linewidths=0.3
        )
    handles, labels = axes.get_legend_handles_labels()
    more = f"{IN_LEGEND} of {len(labels)} classes" if len(labels) > IN_LEGEND else None
    figure.legend(handles[:IN_LEGEND], labels[:IN_LEGEND], title=more, fontsize=8, loc="outside right upper")
    add_title(axes, title)
    return figure
