"""Figures: PNG files of a sane size that show something."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcls import figures


def picture_of(figure: Any) -> np.ndarray:
    """The figure's pixels, after looking at its file: a PNG, not tiny, not huge, not blank."""
    content = figures.png(figure)
    assert content.startswith(b"\x89PNG\r\n")
    image = Image.open(io.BytesIO(content))
    assert 200 <= image.width <= 1300 and 200 <= image.height <= 1300
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


def test_confusion_with_long_and_strange_names() -> None:
    for name in ("a class with a rather long name", "$x_1", "<b>&", "^ _ {"):
        figures.png(figures.confusion([[3, 1], [0, 2]], [name, "b"], name))


@pytest.mark.parametrize("filled", [0, 1, 7, 15])
def test_reliability(filled: int) -> None:
    count = np.zeros(15)
    count[15 - filled :] = 10
    middle = (np.arange(15) + 0.5) / 15
    bins = [count.tolist(), (count * middle).tolist(), (count * middle**2).tolist()]
    picture_of(figures.reliability(bins, 0.123, "title"))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("count", "side"), [(1, 28), (5, 32), (20, 28), (7, 96)])
def test_pictures(channels: int, count: int, side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    labels = [f"truth\nguess {number}" for number in range(count)]
    picture_of(figures.pictures(images, labels, [number % 2 == 0 for number in range(count)], "title"))


def test_right_and_wrong_are_told_apart() -> None:
    images = np.full((2, 1, 28, 28), 128, dtype=np.uint8)
    drawn = [picture_of(figures.pictures(images, ["a", "b"], right, "t")) for right in ([True, True], [True, False])]
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize("count", [2, 4, 10, 11, 40])
def test_regions(count: int) -> None:
    random = np.random.default_rng(0)
    targets = np.arange(200) % count
    points = (random.normal(size=(200, 2)) + targets[:, None]).astype(np.float32)

    def classify(grid: np.ndarray) -> np.ndarray:
        assert grid.shape == (40_000, 2) and grid.dtype == np.float32
        return np.clip(grid.mean(axis=1).astype(int), 0, count - 1)

    picture_of(figures.regions(points, targets, classify, names(count), "title"))


def test_regions_of_a_single_class_seen_everywhere() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    picture_of(
        figures.regions(points, np.zeros(20, dtype=int), lambda grid: np.zeros(len(grid), int), names(3), "title")
    )


def test_a_class_may_be_called_like_a_formula() -> None:
    assert figures.png(figures.confusion([[1, 2], [3, 4]], ["$\\foo$", "$x$"], "$\\bar{"))
