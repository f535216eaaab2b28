"""Intervals of measured accuracies, and tests of whether two differ. Numbers alone, without torch."""

import math
import statistics
from collections.abc import Sequence


def wilson(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion; z = 1.96 makes it the 95 % one."""
    if count == 0:
        return 0.0, 1.0
    share = correct / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def student(values: Sequence[float], overlap: float) -> tuple[float, float]:
    """95 % interval, by Student's t, of the mean of two or more accuracies; `overlap` as in `paired_t`."""
    from scipy.special import stdtrit

    spread = statistics.stdev(values) * math.sqrt(1 / len(values) + overlap)
    half = float(stdtrit(len(values) - 1, 0.975)) * spread
    return max(0.0, statistics.fmean(values) - half), min(1.0, statistics.fmean(values) + half)


def paired_t(differences: Sequence[float], overlap: float) -> float:
    """Two-sided p of Student's t-test that the mean of two or more differences is 0.

    Folds share most of their training samples, so their spread says too little: 1/n is raised by `overlap`, as in
    Nadeau and Bengio (2003), "Inference for the generalization error".
    """
    count, mean, deviation = len(differences), statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:  # which says nothing about the spread of more: the sign test
        return 2 * 0.5**count if mean else 1.0
    from scipy.special import stdtr

    return 2 * float(stdtr(count - 1, -abs(mean) / deviation / math.sqrt(1 / count + overlap)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test (1947): a fair coin thrown once for each sample that one run alone has right.

    Args:
        only_first, only_second: how many samples the first run alone, and the second alone, has right.
    """
    count = only_first + only_second
    term = total = 1
    for index in range(min(only_first, only_second)):
        term = term * (count - index) // (index + 1)
        total += term
    return min(1.0, 2 * total / (1 << count))


def holm(tests: dict[int, float]) -> dict[int, float]:
    """p-values adjusted by Holm's method for how many there are."""
    adjusted, largest = {}, 0.0
    for smaller, (index, p) in enumerate(sorted(tests.items(), key=lambda test: test[1])):
        largest = max(largest, min(1.0, (len(tests) - smaller) * p))
        adjusted[index] = largest
    return adjusted
