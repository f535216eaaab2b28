"""The picture of a sweep: val against each swept key, the keys together, and the learning curves of all jobs."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcls.report.figures import BLUE, GREY, SPLITS, new_figure, shortened
from mcls.system.text import natural_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST = SPLITS["test"]
MOST_KEYS = 12  # keys that are drawn
MOST_TICKS = 12  # values of a key that are written on its axis
STEP = 10.0  # between two values that are drawn as geometric


@dataclass(frozen=True)
class SweptSetting:
    """What is drawn of one setting.

    Args:
        values: the swept keys and their values, as typed.
        val: accuracy of each of its jobs.
        curves: epochs and val accuracies of each of its jobs.
    """

    values: Mapping[str, str]
    val: Sequence[float]
    curves: Sequence[tuple[Sequence[int], Sequence[float]]]

    @property
    def mean(self) -> float:
        """Its mean accuracy."""
        return statistics.fmean(self.val) if self.val else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy over its jobs, 0 of one."""
        return statistics.stdev(self.val) if len(self.val) > 1 else 0.0


@dataclass(frozen=True)
class KeyAxis:
    """Where the values of a key lie on an axis.

    Args:
        key: of the configuration.
        places: of the values, as typed: numbers as they are, words and lists counted from 0.
        kind: `linear`, `log`, or `words`.
    """

    key: str
    places: dict[str, float]
    kind: str

    @property
    def names(self) -> dict[float, str]:
        """What is written at each place."""
        words = self.kind == "words"
        return {position: shortened(value, 16) if words else f"{position:g}" for value, position in self.places.items()}

    def place(self, setting: SweptSetting) -> float:
        """Of a setting, NaN of one that does not have the key."""
        return self.places.get(setting.values.get(self.key, ""), math.nan)

    def share(self, setting: SweptSetting) -> float:
        """`place` between 0 and 1."""
        change = math.log if self.kind == "log" else float
        low, high = change(min(self.places.values())), change(max(self.places.values()))
        return (change(self.place(setting)) - low) / (high - low) if high > low else 0.5


def key_axis(key: str, settings: Sequence[SweptSetting]) -> KeyAxis:
    """The axis of a key: logarithmic where its values are more evenly spaced so."""
    typed = natural_order({setting.values[key] for setting in settings if key in setting.values})
    try:
        numbers = {value: float(value) for value in typed}
    except ValueError:
        numbers = {}
    if not numbers or not all(map(math.isfinite, numbers.values())):
        return KeyAxis(key, {value: float(position) for position, value in enumerate(typed)}, "words")
    return KeyAxis(key, numbers, "log" if geometric(sorted(set(numbers.values()))) else "linear")


def geometric(numbers: Sequence[float]) -> bool:
    """Whether rising numbers lie more evenly on a logarithmic axis than on a linear one."""
    if numbers[0] <= 0 or len(numbers) < 3:
        return numbers[0] > 0 and numbers[-1] / numbers[0] >= STEP
    return unevenness([math.log(value) for value in numbers]) < unevenness(numbers)


def unevenness(numbers: Sequence[float]) -> float:
    """Standard deviation of the gaps between rising numbers, over their mean."""
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def sweep_figure(settings: Sequence[SweptSetting], title: str) -> "Figure":
    """The picture of a sweep.

    Args:
        settings: the best one first; at least one was measured.
    """
    measured = [setting for setting in settings if setting.val]
    keys = list(dict.fromkeys(key for setting in measured for key in setting.values))[:MOST_KEYS]
    axes_of = [key_axis(key, measured) for key in keys]
    cells = len(keys) + (len(keys) == 2) + 1
    columns = min(2, cells)
    rows = -(-cells // columns) + (len(keys) > 2)
    figure = new_figure(4 * columns if columns > 1 else 6, 0.3 + 3.2 * rows)
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(rows, columns)
    for index, axis in enumerate(axes_of):
        draw_key(figure.add_subplot(grid[index // columns, index % columns]), axis, measured)
    if len(keys) == 2:
        draw_pair(figure.add_subplot(grid[1, 0]), axes_of[0], axes_of[1], measured)
    row, column = divmod(cells - 1, columns)
    draw_curves(figure.add_subplot(grid[row, column:]), settings)
    if len(keys) > 2:
        draw_parallel(figure.add_subplot(grid[rows - 1, :]), axes_of, measured)
    return figure


def draw_key(axes: "Axes", axis: KeyAxis, settings: Sequence[SweptSetting]) -> None:
    """Mean and standard deviation on val of each setting, against one key; a line through the means at its values."""
    drawn = [setting for setting in settings if axis.key in setting.values]
    at: dict[float, list[float]] = {}
    for setting in drawn:
        at.setdefault(axis.place(setting), []).append(setting.mean)
    if len(at) < len(drawn) or all(len(setting.values) == 1 for setting in drawn):
        axes.plot(sorted(at), [statistics.fmean(at[position]) for position in sorted(at)], color=GREY, linewidth=1)
    for setting in reversed(drawn):
        best = setting is settings[0]
        axes.errorbar(
            axis.place(setting),
            setting.mean,
            yerr=setting.spread or None,
            fmt="o",
            capsize=3,
            color=BEST if best else BLUE,
            markersize=7 if best else 5,
            zorder=3 if best else 2,
        )
    label_axis(axes, axis, "x")
    axes.set_ylabel("val accuracy")
    axes.grid(alpha=0.25)


def label_axis(axes: "Axes", axis: KeyAxis, side: str) -> None:
    """Scale, ticks and name of a key's axis, across (`x`) or up (`y`)."""
    (axes.set_xlabel if side == "x" else axes.set_ylabel)(axis.key)
    target = axes.xaxis if side == "x" else axes.yaxis
    if axis.kind == "log":
        (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    names = axis.names
    if axis.kind == "words" or len(names) <= MOST_TICKS // 2:
        target.set_ticks(list(names), list(names.values()), fontsize=8)
        target.set_ticks([], minor=True)
    elif axis.kind == "log":
        target.set_major_formatter("{x:g}")


def draw_pair(axes: "Axes", across: KeyAxis, up: KeyAxis, settings: Sequence[SweptSetting]) -> None:
    """Mean on val for both of two keys: a heat map where the settings are a grid, points where they are not."""
    drawn = [setting for setting in settings if {across.key, up.key} <= setting.values.keys()]
    columns, rows = (sorted({axis.place(setting) for setting in drawn}) for axis in (across, up))
    if len(columns) * len(rows) > 1.5 * len(drawn):
        x, y = [across.place(each) for each in drawn], [up.place(each) for each in drawn]
        shown = axes.scatter(x, y, c=[each.mean for each in drawn])
        axes.plot(x[0], y[0], "o", markersize=12, markeredgecolor=BEST, markerfacecolor="none", markeredgewidth=2)
        label_axis(axes, across, "x")
        label_axis(axes, up, "y")
        axes.figure.colorbar(shown, ax=axes, label="val accuracy")
    else:
        means = {(across.place(each), up.place(each)): each.mean for each in reversed(drawn)}
        table = [[means.get((column, row), math.nan) for column in columns] for row in rows]
        axes.imshow(table, origin="lower", aspect="auto", cmap="viridis")
        middle = (min(means.values()) + max(means.values())) / 2
        for (column, row), mean in means.items() if len(columns) <= MOST_TICKS else ():
            colour = "black" if mean > middle else "white"
            at = columns.index(column), rows.index(row)
            axes.text(*at, f"{mean:.3f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(columns)), [across.names[position] for position in columns], fontsize=8)
        axes.set_yticks(range(len(rows)), [up.names[position] for position in rows], fontsize=8)
        axes.set(xlabel=across.key, ylabel=up.key)


def draw_curves(axes: "Axes", settings: Sequence[SweptSetting]) -> None:
    """Val accuracy from epoch to epoch of every job, those of the best setting in colour."""
    from matplotlib.ticker import MaxNLocator

    for setting in reversed(settings):
        best = setting is settings[0]
        for index, (epochs, accuracies) in enumerate(setting.curves):
            marker = "o" if len(epochs) == 1 else None
            (line,) = axes.plot(epochs, accuracies, color=BEST if best else BLUE, marker=marker, markersize=4)
            line.set(linewidth=1.8 if best else 0.8, alpha=1 if best else 0.45)
            line.set_label("the best setting" if best and not index else "_")
    axes.set(xlabel="epoch", ylabel="val accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def note(axes: "Axes", words: str, x: float, y: float) -> None:
    """Small `words` to the right of a point, readable over lines."""
    text = axes.annotate(words, (x, y), (4, 0), textcoords="offset points", fontsize=7, va="center")
    text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})


def draw_parallel(axes: "Axes", keys: Sequence[KeyAxis], settings: Sequence[SweptSetting]) -> None:
    """Parallel coordinates: a line for each setting through its value of every key to its mean on val."""
    from matplotlib import colormaps

    means = [setting.mean for setting in settings]
    low, high = min(means), max(means)
    for setting in reversed(settings):
        share = (setting.mean - low) / (high - low) if high > low else 1.0
        best = setting is settings[0]
        colour = BEST if best else colormaps["viridis"](share)
        heights = [*(key.share(setting) for key in keys), share]
        axes.plot(range(len(heights)), heights, color=colour, linewidth=2.2 if best else 1, alpha=1 if best else 0.6)
    for index, key in enumerate(keys):
        axes.axvline(index, color=GREY, linewidth=1)
        ends = sorted(key.places.items(), key=lambda item: item[1])
        shown = ends if key.kind == "words" and len(ends) <= MOST_TICKS else [ends[0], ends[-1]]
        for value, position in shown:
            note(axes, key.names[position], index, key.share(SweptSetting({key.key: value}, [], [])))
    axes.axvline(len(keys), color=GREY, linewidth=1)
    for height, mean in {0.0: low, 1.0: high}.items():
        note(axes, f"{mean:.4f}", len(keys), height)
    names = [*(shortened(key.key) for key in keys), "val accuracy"]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set(yticks=[], xlim=(-0.1, len(keys) + 0.4))
    axes.spines[:].set_visible(False)
