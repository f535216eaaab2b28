"""Measures of how a classifier ranks samples: areas under curves of one class against the rest, ties counted right."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256  # samples that are compared with all at once
DRAWS, RANK_DRAWS = 1000, 200  # of the bootstrap
MOST_CLASSES, MOST_SAMPLES = 100, 20_000  # up to which it is done
AREAS = ("auroc", "average_precision")
KEPT_PROBABILITIES = 1 << 26  # up to which they are kept to measure a split at the end, 256 MiB


class RankCurve(NamedTuple):
    """One class against the rest: rates at each threshold, from the highest on, float64 (T + 1,)."""

    false_positive: Tensor
    recall: Tensor
    precision: Tensor

    @property
    def auroc(self) -> float:
        """The area under the ROC curve."""
        return torch.trapezoid(self.recall, self.false_positive).item()

    @property
    def average_precision(self) -> float:
        """Mean precision, weighted by the recall that each threshold adds."""
        return (self.recall.diff() * self.precision[1:]).sum().item()


def rank_curve(scores: Tensor, positive: Tensor) -> RankCurve | None:
    """The curve of `scores` (N,) for the samples that are `positive`, bool (N,); None if all of them are, or none."""
    count, total = len(positive), int(positive.sum())
    if total in (0, count):
        return None
    scores, order = scores.cpu().sort(descending=True)
    last = torch.cat([scores.diff() != 0, torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]  # of each group of ties
    hits = positive.cpu()[order].double().cumsum(0)[last]
    first = torch.zeros(1, dtype=torch.float64)
    false_positive, recall = (last + 1 - hits) / (count - total), hits / total
    return RankCurve(
        torch.cat([first, false_positive]), torch.cat([first, recall]), torch.cat([first + 1, hits / (last + 1)])
    )


def rank_curves(probabilities: Tensor, targets: Tensor) -> Iterator[RankCurve | None]:
    """The curve of each class, one after the other: all of 2,700 take a GB; probabilities (N, C), targets (N,)."""
    return (rank_curve(probabilities[:, label], targets == label) for label in range(probabilities.shape[1]))


def rank_measures(probabilities: Tensor, targets: Tensor, top_k: int) -> dict[str, float]:
    """`auroc` and `average_precision`, means over the classes that some samples are and some are not, and `top_K`.

    Samples of one class alone have no areas.

    Args:
        probabilities: float (N, C).
        targets: int64 (N,).
        top_k: K; left out unless there are more classes.
    """
    curves = (curve for curve in rank_curves(probabilities, targets) if curve is not None)
    areas = [(curve.auroc, curve.average_precision) for curve in curves]
    measures = {name: sum(values) / len(areas) for name, values in zip(AREAS, zip(*areas, strict=True), strict=False)}
    if top_k < probabilities.shape[1]:
        measures[f"top_{top_k}"] = top_hits(probabilities, targets, top_k) / max(len(targets), 1)
    return measures


def top_hits(scores: Tensor, targets: Tensor, k: int) -> int:
    """Samples whose class (targets, (N,)) is among the `k` largest of `scores`, logits or probabilities (N, C)."""
    return int((scores.topk(k, dim=1).indices == targets[:, None]).any(dim=1).sum())


def intervals(cells: Sequence[tuple[int, int, int]], scores: Tensor | None, targets: Tensor) -> dict[str, list[float]]:
    """95 % intervals of measures that have no formula for them, by the percentile bootstrap over samples.

    Args:
        cells: of the confusion matrix; of more than MOST_CLASSES classes no intervals are made of it.
        scores: probabilities float (N, C), if there are any; of more than MOST_SAMPLES no intervals are made.
        targets: int64 (N,).
    """
    random, measures = np.random.default_rng(0), {}
    matrix, levels = sparse_matrix(cells), torch.tensor([0.025, 0.975], dtype=torch.float64)
    if 0 < len(matrix) <= MOST_CLASSES:
        shares = (matrix / matrix.sum()).flatten().numpy()
        drawn = torch.from_numpy(random.multinomial(int(matrix.sum()), shares, DRAWS)).double()
        measured = [matrix_measures(counts.view_as(matrix)) for counts in drawn]
        measures = {name: torch.stack([each[name] for each in measured]) for name in measured[0]}
    if scores is not None and len(targets) <= MOST_SAMPLES and len(targets.unique()) > 1:
        alike = np.full(len(targets), 1 / len(targets))
        weights = torch.from_numpy(random.multinomial(len(targets), alike, RANK_DRAWS))
        measures |= dict(zip(AREAS, mean_areas(scores, targets, weights), strict=True))
    return {name: values.quantile(levels).tolist() for name, values in measures.items()}


def mean_areas(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Means over the classes of `targets` of what `weighted_areas` gives, float64 (2, D).

    Of more than MOST_CLASSES each sample is compared with all others for its own class: it takes the time of a product
    (D, N) x (N, N), however many classes there are; the curves of 2,700 take minutes.

    Args:
        scores: (N, C).
        targets: (N,).
        weights: (D, N), whole numbers.
    """
    labels = targets.unique()
    if len(labels) <= MOST_CLASSES:
        areas = [weighted_areas(scores[:, label], targets == label, weights) for label in labels]
        return torch.stack(areas).mean(dim=0)
    order = targets.argsort(stable=True)  # the samples of a class are next to each other
    scores, targets, counts = scores[order], targets[order], weights[:, order].float()
    own = scores.gather(1, targets[:, None])[:, 0]
    sums = torch.zeros(2, len(weights), scores.shape[1], dtype=torch.float64)
    for rows in torch.arange(len(order)).split(BLOCK):
        first, last = (torch.searchsorted(targets, targets[rows[end]], right=end < 0) for end in (0, -1))
        others, same = scores[:, targets[rows]], slice(int(first), int(last))
        mates = targets[same, None] == targets[rows]
        reached, passed = (others >= own[rows]).float(), (others > own[rows]).float()
        hits, ahead = counts[:, same] @ (reached[same] * mates), counts[:, same] @ (passed[same] * mates)
        seen = counts @ reached
        misses = (seen - hits + counts @ passed - ahead) / 2  # a tie counts half
        shares = torch.stack([misses.double(), hits.double() / seen.clamp(min=1)])
        sums.index_add_(2, targets[rows], shares * counts[:, rows])
    sizes = torch.zeros_like(sums[0]).index_add_(1, targets, counts.double())[:, labels]
    rest = sizes.sum(dim=1, keepdim=True) - sizes
    missed, precise = sums[:, :, labels]
    auroc = torch.where(sizes * rest > 0, 1 - missed / (sizes * rest).clamp(min=1), 0)
    return torch.stack([auroc.mean(dim=1), (precise / sizes.clamp(min=1)).mean(dim=1)])


def weighted_areas(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """AUROC and average precision, float64 (2, D), where samples count as often as a row of `weights` (D, N) says."""
    scores, order = scores.sort(descending=True)
    last = torch.cat([scores.diff() != 0, torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    counts = weights[:, order].double()
    hits, seen = (counts * positive[order]).cumsum(1)[:, last], counts.cumsum(1)[:, last]
    recall = functional.pad(hits / hits[:, -1:].clamp(min=1), (1, 0))
    misses = functional.pad((seen - hits) / (seen - hits)[:, -1:].clamp(min=1), (1, 0))
    precision = hits / seen.clamp(min=1)
    return torch.stack([torch.trapezoid(recall, misses), (recall.diff() * precision).sum(dim=1)])


def matrix_measures(matrix: Tensor) -> dict[str, Tensor]:
    """Measures of a confusion matrix, float64 (C, C) of counts, row the true class.

    `f1_macro` and `balanced_accuracy` are means over the classes that occur, `mcc` is Matthews' correlation
    coefficient for many classes (Gorodkin, 2004), `kappa` Cohen's.
    """
    true, predicted, right, total = matrix.sum(1), matrix.sum(0), matrix.diagonal(), matrix.sum()
    occurs, present = true + predicted > 0, true > 0
    f1, recall = 2 * right / (true + predicted).clamp(min=1), right / true.clamp(min=1)
    by_chance = (true * predicted).sum()
    spread = ((total**2 - (predicted**2).sum()) * (total**2 - (true**2).sum())).sqrt()
    above, most = total * right.sum() - by_chance, total**2 - by_chance
    return {
        "f1_macro": f1[occurs].sum() / occurs.sum().clamp(min=1),
        "balanced_accuracy": recall[present].sum() / present.sum().clamp(min=1),
        "mcc": torch.where(spread > 0, above / spread, 0.0),
        "kappa": torch.where(most > 0, above / most, 0.0),
    }


def sparse_matrix(cells: Sequence[tuple[int, int, int]]) -> Tensor:
    """The confusion matrix of the classes that occur in `cells`: true class, predicted class, samples."""
    labels = sorted({label for truth, guess, _ in cells for label in (truth, guess)})
    rows = {label: index for index, label in enumerate(labels)}
    matrix = torch.zeros(len(labels), len(labels), dtype=torch.float64)
    for truth, guess, count in cells:
        matrix[rows[truth], rows[guess]] += count
    return matrix
