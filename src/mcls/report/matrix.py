"""A confusion matrix to look at: the order of its classes, the pairs that are confused most, and its pixels."""

import struct
import zlib
from collections.abc import Sequence

Cell = tuple[int, int, int]  # true class, predicted class, samples
Confusion = Sequence[Sequence[int]] | dict[str, list[int]]
NAMED = 25  # classes up to which a matrix shows names and counts
SIDE = 250  # pixels of a matrix without names, at most
BLUE = (59, 130, 246)


def nonzero_cells(confusion: Confusion) -> list[Cell]:
    """The cells that are not 0.

    Args:
        confusion: as in result.json: C x C counts (row the true class), or the cells that are not 0.
    """
    if isinstance(confusion, dict):
        return list(zip(*(confusion[key] for key in ("true", "predicted", "count")), strict=True))
    return [(row, column, n) for row, line in enumerate(confusion) for column, n in enumerate(line) if n]


def class_sizes(cells: Sequence[Cell], count: int) -> list[int]:
    """Samples of each of `count` true classes."""
    sizes = [0] * count
    for truth, _, n in cells:
        sizes[truth] += n
    return sizes


def confused_pairs(cells: Sequence[Cell], count: int, most: int) -> list[tuple[int, int, int, float]]:
    """The `most` mistakes made most often: true class, predicted class, samples, and their share of the true class."""
    sizes = class_sizes(cells, count)
    mistakes = sorted((-n, truth, guess) for truth, guess, n in cells if truth != guess)[:most]
    return [(truth, guess, -n, -n / sizes[truth]) for n, truth, guess in mistakes]


def near_diagonal(cells: Sequence[Cell], count: int) -> list[int]:
    """The numbers of `count` classes in an order in which classes that are confused are near each other.

    The groups of two classes are joined, the most confused two first (single linkage), each turned so that the two are
    as close as they can be.
    """
    sizes, mutual = class_sizes(cells, count), dict[tuple[int, int], float]()
    for truth, guess, n in cells:
        if truth != guess:
            pair = min(truth, guess), max(truth, guess)
            mutual[pair] = mutual.get(pair, 0) + n / sizes[truth]
    group_of = {label: [label] for label in range(count)}
    for first, second in sorted(mutual, key=lambda pair: (-mutual[pair], pair)):
        left, right = group_of[first], group_of[second]
        if left is right:
            continue
        if len(left) < len(right):  # the smaller one is moved
            first, second, left, right = second, first, right, left
        if left.index(first) < len(left) / 2 - 0.5:
            left.reverse()
        if right.index(second) > len(right) / 2 - 0.5:
            right.reverse()
        left += right
        group_of.update(dict.fromkeys(right, left))
    groups = {id(group): group for group in group_of.values()}
    return [label for group in groups.values() for label in group]


def share_grid(cells: Sequence[Cell], order: Sequence[int]) -> list[list[float]]:
    """Rows of shares of the true class, the classes in `order`; of more than SIDE classes the largest of each block."""
    position, sizes = {label: place for place, label in enumerate(order)}, class_sizes(cells, len(order))
    step = -(-len(order) // SIDE)
    side = -(-len(order) // step)
    grid = [[0.0] * side for _ in range(side)]
    for truth, guess, n in cells:
        row, column = position[truth] // step, position[guess] // step
        grid[row][column] = max(grid[row][column], n / sizes[truth])
    return grid


def transparent_png(grid: Sequence[Sequence[float]]) -> bytes:
    """A PNG file, a pixel per value of `grid`, from transparent (0) to blue (1); roots are shown, so that 1 % is seen.

    It is readable on white and on black, and needs no library.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(round(255 * min(value, 1) ** 0.5) for value in row) for row in grid)
    header = struct.pack(">2I5B", len(grid[0]), len(grid), 8, 3, 0, 0, 0)  # 8 bits, of a palette
    parts = [(b"IHDR", header), (b"PLTE", bytes(BLUE) * 256), (b"tRNS", bytes(range(256)))]
    parts += [(b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
