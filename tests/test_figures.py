"""Figures: PNG files of a sane size that show something, and what stands where in them."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.patches import Rectangle
from PIL import Image

from mcls.report import figures
from mcls.report.matrix import near_diagonal


def picture_of(figure: Any) -> np.ndarray:
    """The figure's pixels, after looking at its file: a PNG, not tiny, not huge, not blank."""
    content = figures.png(figure)
    assert content.startswith(b"\x89PNG\r\n")
    image = Image.open(io.BytesIO(content))
    assert 200 <= image.width <= 1600 and 200 <= image.height <= 1600
    pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 5
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    return pixels


def names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


@pytest.mark.parametrize("count", [2, 10, 30, 40])
def test_confusion(count: int) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (count, count))
    counts[0] = 0  # a class without samples
    first = picture_of(figures.confusion(counts.tolist(), names(count), "title\nin two lines"))
    right = figures.confusion((np.eye(count, dtype=int) * 9).tolist(), names(count), "title\nin two lines")
    other = picture_of(right)
    assert first.shape == other.shape and (first != other).any()


def test_confusion_has_the_true_class_in_rows() -> None:
    (axes,) = figures.confusion([[3, 1, 0], [0, 0, 0], [5, 0, 5]], ["a", "b", "c"], "title").axes
    share = [[0.75, 0.25, 0], [0, 0, 0], [0.5, 0, 0.5]]
    assert np.asarray(axes.images[0].get_array()).tolist() == share and axes.images[0].origin == "upper"
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "3", (1, 0): "1", (0, 2): "5", (2, 2): "5"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize("count", [26, 100, 1000])
def test_many_classes_are_ordered_so_that_confusions_are_near_the_diagonal(count: int) -> None:
    """Groups of five classes that are confused with each other, in random order."""
    random = np.random.default_rng(0)
    label = random.permutation(count)
    cells = [(int(label[number]), int(label[number]), 30) for number in range(count)]
    for number in range(count):
        near = [other for other in range(number // 5 * 5, min(number // 5 * 5 + 5, count)) if other != number]
        cells += [(int(label[number]), int(label[other]), int(random.integers(3, 9))) for other in near]
    cells.append((int(label[7]), int(label[20]), 1))
    order = near_diagonal(cells, count)
    assert sorted(order) == list(range(count))
    place = {each: index for index, each in enumerate(order)}
    distances = [abs(place[truth] - place[guess]) for truth, guess, n in cells if n > 1]
    assert max(distances) <= 4
    sparse = dict(zip(("true", "predicted", "count"), map(list, zip(*cells, strict=True)), strict=True))
    figure = figures.confusion(sparse, names(count), "title\nrun")
    axes, below, _ = figure.axes
    grid = np.asarray(axes.images[0].get_array())
    assert grid.shape == (min(count, 250),) * 2 and (np.diag(grid) > 0).all()
    (text,) = below.texts
    top = max((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: cell[2])[2]
    assert text.get_text().splitlines()[1].startswith(f"{top} (") and len(text.get_text().splitlines()) == 11
    picture_of(figure)


def test_every_figure_is_a_thousand_pixels_wide() -> None:
    for figure in (figures.rates([], "x", "y", "title"), figures.confusion([[1, 2], [3, 4]], ["a", "b"], "title")):
        assert Image.open(io.BytesIO(figures.png(figure))).width == 1000


def test_confusion_with_long_and_strange_names() -> None:
    for name in ("a class with a rather long name", "$x_1", "<b>&", "^ _ {"):
        figures.png(figures.confusion([[3, 1], [0, 2]], [name, "b"], name))


@pytest.mark.parametrize("filled", [0, 1, 7, 15])
def test_reliability(filled: int) -> None:
    count = np.zeros(15)
    count[15 - filled :] = 10
    middle = (np.arange(15) + 0.5) / 15
    bins = [count.tolist(), (count * middle).tolist(), (count * middle**2).tolist()]
    picture_of(figures.reliability(bins, "title"))


def test_reliability_shows_accuracy_over_confidence() -> None:
    bins = [[0.0] * 15 for _ in range(3)]
    for place, (count, confidence, correct) in {4: (10, 3, 2), 14: (20, 19.6, 15)}.items():
        for row, value in zip(bins, (count, confidence, correct), strict=True):
            row[place] = value
    axes, below = figures.reliability(bins, "title\nrun").axes
    rectangles = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    bars = [(bar.get_x(), bar.get_height(), bar.get_width()) for bar in rectangles]
    np.testing.assert_allclose(bars, [(4 / 15, 0.2, 1 / 15), (14 / 15, 0.75, 1 / 15)])
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_xydata()), np.array([(0.3, 0.2), (0.98, 0.75)]))
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[0, 0], [1, 1]]
    counts = {index: bar.get_height() for index, bar in enumerate(below.patches) if isinstance(bar, Rectangle)}
    assert {index: count for index, count in counts.items() if count} == {4: 10, 14: 20}
    assert axes.get_title() == "title" and [text.get_text() for text in axes.texts] == ["run"]


def test_curves_show_what_was_measured_and_the_selected_epoch() -> None:
    def record(epoch: int, val: bool = True) -> dict[str, Any]:
        measured = {"loss": 1 / epoch, "accuracy": 1 - 1 / epoch}
        return {"epoch": epoch, "train": measured, "lr": 0.1 / epoch, **({"val": measured} if val else {})}

    figure = figures.curves([record(epoch) for epoch in (1, 2, 3, 4)], 3, "title\nrun")
    picture_of(figure)
    loss, accuracy, rate = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train", "val", "epoch 3, selected"]
    assert np.asarray(accuracy.lines[1].get_xydata()).tolist() == [[epoch, 1 - 1 / epoch] for epoch in (1, 2, 3, 4)]
    assert all(np.asarray(line.get_xdata()).tolist() == [3, 3] for line in (loss.lines[2], accuracy.lines[2]))
    assert np.asarray(rate.lines[1].get_ydata()).tolist() == [0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4]
    assert all(tick == int(tick) for tick in rate.get_xticks())
    picture_of(figures.curves([record(1, val=False)], 1, "one epoch without val"))


def test_long_names_are_shortened_in_the_middle() -> None:
    name = "Abyssinian_ground_hornbill_(Bucorvus_abyssinicus), adult male"
    (short, plain) = figures.legible((name, "cat"))
    assert plain == "cat" and len(short) == 24 and short == "Abyssinian_g… adult male"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("count", "side"), [(1, 28), (5, 32), (20, 28), (7, 96)])
def test_pictures(channels: int, count: int, side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    labels = [f"truth\nguess {number}" for number in range(count)]
    picture_of(figures.image_grid(images, labels, [number % 2 == 0 for number in range(count)], "title"))


def test_each_picture_has_its_label_in_green_where_right_and_in_red_where_wrong() -> None:
    images = np.stack([np.full((1, 8, 8), 10 * number, dtype=np.uint8) for number in range(7)])
    right = [number != 5 for number in range(7)]
    (axes,) = figures.image_grid(images, [f"label {number}" for number in range(7)], right, "title").axes
    sheet = np.asarray(axes.images[0].get_array())
    assert [text.get_text() for text in axes.texts] == [f"label {number}" for number in range(7)]
    for number, text in enumerate(axes.texts):
        x, y = text.get_position()
        above = sheet[int(y) - 8 : int(y) - 4, int(x) - 2 : int(x) + 2]
        assert (above == 10 * number).all()
        red, green, _ = (int(str(text.get_color())[start : start + 2], 16) for start in (1, 3, 5))
        assert (green > red) is right[number]


@pytest.mark.parametrize("count", [2, 4, 10, 11, 40])
def test_regions(count: int) -> None:
    random = np.random.default_rng(0)
    targets = np.arange(200) % count
    points = (random.normal(size=(200, 2)) + targets[:, None]).astype(np.float32)

    def classify(grid: np.ndarray) -> np.ndarray:
        assert grid.shape == (40_000, 2) and grid.dtype == np.float32
        return np.clip(grid.mean(axis=1).astype(int), 0, count - 1)

    picture_of(figures.regions(points, targets, classify, names(count), "title"))


def test_regions_are_where_they_are_decided() -> None:
    """Class 1 is where x is positive, class 2 where y is above 2 besides."""
    points = np.array([[-1, -4], [1, 0], [1, 4]], dtype=np.float32)

    def classify(grid: np.ndarray) -> np.ndarray:
        return (grid[:, 0] > 0).astype(int) + ((grid[:, 0] > 0) & (grid[:, 1] > 2))

    (axes,) = figures.regions(points, np.arange(3), classify, ["a", "b", "c"], "title").axes
    shown, (left, right, bottom, top) = axes.images[0], axes.images[0].get_extent()
    assert shown.origin == "lower" and left < -1 < 1 < right and bottom < -4 < 4 < top
    array = np.asarray(shown.get_array())
    for number, (x, y) in enumerate(points):
        column, row = int((x - left) / (right - left) * 200), int((y - bottom) / (top - bottom) * 200)
        assert array[row, column] == number
        assert np.asarray(axes.collections[number].get_offsets()).tolist() == [[x, y]]
        assert same_color(
            np.asarray(axes.collections[number].get_facecolor())[0],
            shown.cmap(np.asarray(shown.norm(np.array([number]))))[0],
        )


def test_regions_of_a_single_class_seen_everywhere() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    picture_of(
        figures.regions(points, np.zeros(20, dtype=int), lambda grid: np.zeros(len(grid), int), names(3), "title")
    )


def test_a_class_may_be_called_like_a_formula() -> None:
    assert figures.png(figures.confusion([[1, 2], [3, 4]], ["$\\foo$", "$x$"], "$\\bar{"))


def test_names_that_no_font_has_are_numbers_with_one_line_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """No glyph is missing in the picture, which would be a warning, and here an error."""
    strange = chr(0x10FFF0)  # for private use: no font has it
    figures.legible.cache_clear()
    names = ("cat", f"{strange}dog", "Żółw")
    for _ in range(2):
        figure = figures.confusion([[3, 1, 0], [0, 2, 0], [0, 0, 1]], names, f"run {strange}")
        figures.png(figure)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "#1", "Żółw"]
    assert axes.get_title() == "run ?"
    assert [record.getMessage() for record in caplog.records] == [
        "figures no installed font has the characters of these class names, so they are shown as numbers: #1 "
        f"{strange}dog. "
        "A package with such a font is fonts-noto-core (Debian, Ubuntu)."
    ]


def test_names_are_drawn_in_an_installed_font_that_has_them(caplog: pytest.LogCaptureFixture) -> None:
    families, missing = figures.fonts_for(frozenset("鱼鸟猫"))
    if not missing:
        assert len(families) > 1 and figures.legible(("鱼", "鸟")) == ("鱼", "鸟")
    else:
        figures.legible.cache_clear()
        assert figures.legible(("鱼", "cat")) == ("#0", "cat") and "is fonts-noto-cjk (Debian" in caplog.text
    figures.png(figures.confusion([[3, 1], [0, 2]], ["鱼", "cat"], "鸟"))
