"""Measures of a classifier: sums and counts on the device, divided once at the end."""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mcls.ranks import KEPT_PROBABILITIES, matrix_measures, rank_measures, sparse_matrix
from mcls.significance import wilson
from mcls.system.distributed import SINGLE_PROCESS, World

BINS = 15  # of the expected calibration error
KEPT = 1 << 20  # logits, 4 MiB of them
COUNTED = 1 << 20  # cells of a confusion matrix up to which all are counted; of a larger one those that occur
DENSE = 100  # classes up to which result.json has the whole confusion matrix


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type of sums on `device`: float64, except on Apple GPUs, which lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


class RunningLoss:
    """Losses and correct predictions of training steps, kept on the device until `flush` reads them at once.

    Logits wait until there are KEPT numbers of them: counted at every step they would cost more.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.sizes: list[int] = []
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.numbers = 0
        self.hits = torch.tensor(0)  # on the CPU; added to a GPU's number it gives a GPU's

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor, size: int) -> None:
        """Remember one step: its mean loss, logits (N x C) and targets, and how many samples its batch has.

        Of soft targets (N x C) the class of the largest counts, so that with mixing half or more has to be recognised.

        Each rank passes its share of the loss and of the samples. Does not wait for the device.
        """
        self.sizes.append(size)
        self.losses.append(loss.detach())
        self.waiting.append((logits.detach(), targets))
        self.numbers += logits.numel()
        if self.numbers >= KEPT:
            self.count()

    def extend(self, losses: Iterable[Tensor], sizes: Iterable[int], hits: Tensor) -> None:
        """Remember several steps whose correct predictions, `hits`, are counted already."""
        self.losses += losses
        self.sizes += sizes
        self.hits = self.hits + hits

    def count(self) -> None:
        """Reduce the pending logits to the number of correct predictions."""
        logits, targets = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        truth = targets.argmax(1) if targets.ndim == 2 else targets
        self.hits = self.hits + (logits.argmax(1) == truth).sum()
        self.waiting, self.numbers = [], 0

    def flush(self, world: World = SINGLE_PROCESS) -> tuple[list[float], list[int], int]:
        """Loss and size of each step since the last flush, and the total number of correct predictions."""
        if not self.losses:
            return [], [], 0
        if self.waiting:
            self.count()
        dtype = sum_dtype(self.losses[0].device)
        sums = torch.cat([torch.stack(self.losses).to(dtype), self.hits.to(dtype)[None]])
        *losses, correct = world.sum(sums).tolist()
        sizes = self.sizes
        self.losses, self.sizes, self.hits = [], [], torch.tensor(0)
        return losses, sizes, round(correct)


class EvalAccumulator:
    """Accumulates the loss and the predictions over a split; the measures are computed at the end.

    Small operations between two batches cost more than they count: logits wait until there are KEPT numbers of them.

    Args:
        num_classes: C.
        device: where the sums are kept.
        top_k: of the top-k accuracy; None leaves out all measures that take the probabilities of all samples.
    """

    def __init__(self, num_classes: int, device: torch.device, top_k: int | None = None) -> None:
        self.num_classes, self.device, self.top_k = num_classes, device, top_k
        self.probabilities: list[Tensor] = []
        self.loss = torch.zeros((), dtype=sum_dtype(device), device=device)
        self.waiting: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.confidence: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits float (N, C), targets int64 (N,)."""
        self.waiting.append(logits)
        self.targets.append(targets)
        if sum(logits.numel() for logits in self.waiting) >= KEPT:
            self.count()

    @torch.inference_mode()
    def count(self) -> None:
        """Reduce the pending logits to a loss, and to a class and its probability for each sample."""
        if not self.waiting:
            return
        logits, targets = torch.cat(self.waiting).float(), torch.cat(self.targets[-len(self.waiting) :])
        log_probabilities = functional.log_softmax(logits.t().contiguous(), dim=0)  # 3 x faster down columns
        best, predicted = log_probabilities.max(dim=0)
        self.loss -= log_probabilities.gather(0, targets[None]).sum(dtype=self.loss.dtype)
        self.predicted.append(predicted)
        self.confidence.append(best.exp())
        if self.top_k is not None:
            self.probabilities.append(log_probabilities.exp().t())
        self.waiting.clear()

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Predicted class, int64 (N,), and its probability, float (N,), of the samples so far."""
        self.count()
        empty = torch.zeros(0, dtype=torch.int64, device=self.device)
        return torch.cat([empty, *self.predicted]), torch.cat([empty.float(), *self.confidence])

    def correct_bits(self) -> bytes:
        """One bit per sample so far, 1 if predicted correctly; the first is the highest bit of the first byte."""
        predicted, _ = self.predictions()
        right = predicted == torch.cat([predicted[:0], *self.targets])
        return np.packbits(right.cpu().numpy()).tobytes()

    @torch.inference_mode()
    def measure(self, world: World = SINGLE_PROCESS) -> "Metrics":
        """Reduce over all processes and return plain numbers; the only place that waits for the device."""
        predicted, confidence = self.predictions()
        targets = torch.cat([predicted[:0], *self.targets])
        cells, counts = self.pairs(targets * self.num_classes + predicted, world)
        bin_index = (confidence.nan_to_num() * BINS).long().clamp(max=BINS - 1)
        rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == targets).to(confidence)]).to(
            self.loss
        )
        bins = torch.zeros(3, BINS, dtype=rows.dtype, device=self.device).index_add_(1, bin_index, rows)
        truth, guess = (cells // self.num_classes).tolist(), (cells % self.num_classes).tolist()
        cells_of = list(zip(truth, guess, counts.tolist(), strict=True))
        loss = world.sum(self.loss.clone()).item() / max(int(counts.sum()), 1)
        ranks = {} if self.top_k is None else rank_measures(*self.scored(world), self.top_k)
        return Metrics(self.num_classes, cells_of, loss, world.sum(bins).tolist(), ranks)

    def scored(self, world: World = SINGLE_PROCESS) -> tuple[Tensor, Tensor]:
        """Probabilities float (N, C) and targets (N,) of the samples of all processes, on the CPU."""
        self.count()
        empty = torch.zeros(0, self.num_classes), torch.zeros(0, dtype=torch.int64)
        mine = [torch.cat(parts).cpu() for parts in (self.probabilities or [empty[0]], self.targets or [empty[1]])]
        scores, targets = zip(*world.all_gather(mine), strict=True)
        return torch.cat(scores), torch.cat(targets)

    def pairs(self, codes: Tensor, world: World) -> tuple[Tensor, Tensor]:
        """The nonzero cells of the confusion matrix, numbered row by row, and their counts.

        Args:
            codes: the cell of each sample of this process.
        """
        if self.num_classes**2 > COUNTED:
            codes = torch.cat(world.all_gather(codes.cpu()))
            cells, counts = codes.unique(return_counts=True)
            return cells, counts
        whole = world.sum(torch.bincount(codes, minlength=self.num_classes**2))
        cells = whole.nonzero()[:, 0]
        return cells, whole[cells]


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 where there is nothing to divide by (as scikit-learn's zero_division=0)."""
    return part / whole if whole else 0.0


def mean(values: Iterable[float | None]) -> float:
    """Mean of the values that are not None; 0 if there are none."""
    known = [value for value in values if value is not None]
    return ratio(sum(known), len(known))


@dataclass(frozen=True)
class Metrics:
    """What was measured over a split.

    Args:
        num_classes: C.
        cells: of the confusion matrix, those that are not 0: true class, predicted class, samples; in that order.
        loss: mean negative log-likelihood, in nats, with no label smoothing and no class weights.
        bins: count, sum of confidence and number right in each of the calibration bins.
        ranks: see `rank_measures`; empty where no probabilities were kept.
    """

    num_classes: int
    cells: list[tuple[int, int, int]]
    loss: float
    bins: list[list[float]]
    ranks: dict[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Samples."""
        return sum(count for _, _, count in self.cells)

    @property
    def correct(self) -> int:
        """Samples whose true class got the largest logit."""
        return sum(count for truth, guess, count in self.cells if truth == guess)

    @property
    def confusion(self) -> list[list[int]] | dict[str, list[int]]:
        """C x C counts, rows true, columns predicted; only the nonzero cells for more than DENSE classes."""
        if self.num_classes > DENSE:
            columns = zip(*self.cells, strict=True) if self.cells else ((), (), ())
            return dict(zip(("true", "predicted", "count"), map(list, columns), strict=True))
        counts = [[0] * self.num_classes for _ in range(self.num_classes)]
        for truth, guess, count in self.cells:
            counts[truth][guess] = count
        return counts

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions."""
        return ratio(self.correct, self.count)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of confidence from accuracy over the bins (Guo et al., 2017)."""
        _, confidence, correct = self.bins
        return ratio(sum(abs(a - b) for a, b in zip(confidence, correct, strict=True)), self.count)

    def per_class(self) -> list[dict[str, float | None]]:
        """Precision, recall, F1 and support of each class.

        None where there is nothing to measure: recall of a class without samples, all three of one that is not
        predicted either. So a mean over the classes is that of those that occur, as scikit-learn's "macro" is.
        """
        true, predicted, right = ([0] * self.num_classes for _ in range(3))
        for truth, guess, count in self.cells:
            true[truth] += count
            predicted[guess] += count
            right[truth] += count * (truth == guess)
        rows: list[dict[str, float | None]] = []
        for hits, support, chosen in zip(right, true, predicted, strict=True):
            occurs = support + chosen > 0
            precision, recall = ratio(hits, chosen) if occurs else None, hits / support if support else None
            f1 = 2 * hits / (support + chosen) if occurs else None
            rows.append({"precision": precision, "recall": recall, "f1": f1, "support": support})
        return rows

    @property
    def f1_macro(self) -> float:
        """Mean F1 of the classes that occur among the targets or the predictions."""
        return mean(row["f1"] for row in self.per_class())

    def value(self, name: str) -> float:
        """One measure by its name as `trainer.monitor`."""
        if name in ("mcc", "kappa", "balanced_accuracy"):
            return self.agreement()[name]
        top = next((share for key, share in self.ranks.items() if key.startswith("top_")), 0.0)
        known = {**self.scalars(), **self.ranks, "top_k": top}
        return known.get(name, 0.0)

    def agreement(self) -> dict[str, float]:
        """Matthews' correlation coefficient, Cohen's kappa and the balanced accuracy."""
        measures = matrix_measures(sparse_matrix(self.cells))
        return {name: measures[name].item() for name in ("mcc", "kappa", "balanced_accuracy")}

    def scalars(self) -> dict[str, float]:
        """The measures that are logged after each epoch."""
        return {"accuracy": self.accuracy, "loss": self.loss, "f1_macro": self.f1_macro, "ece": self.ece}

    def report(self, classes: Sequence[str], selected: bool = False) -> dict[str, Any]:
        """All measures, in the format of result.json.

        Args:
            classes: the names in the order of their numbers.
            selected: the weights were selected on these samples; no interval holds then.
        """
        rows = self.per_class()
        macro = {f"{key}_macro": mean(row[key] for row in rows) for key in ("precision", "recall", "f1")}
        named = [{"class": name, **row} for name, row in zip(classes, rows, strict=True)]
        return {
            "accuracy": self.accuracy,
            **({"selected_on_val": True} if selected else {"interval": list(wilson(self.correct, self.count))}),
            "loss": self.loss,
            "balanced_accuracy": macro["recall_macro"],
            **macro,
            **{name: value for name, value in self.agreement().items() if name != "balanced_accuracy"},
            **self.ranks,
            "ece": self.ece,
            "n": self.count,
            "per_class": named,
            "confusion": self.confusion,
        }


def ranks_kept(split: Sized, classes: Sequence[str]) -> bool:
    """Whether the probabilities of all samples of a split are kept to measure it at the end of a run."""
    return len(split) * len(classes) <= KEPT_PROBABILITIES


def brier(probabilities: Tensor, targets: Tensor) -> float:
    """Brier score: mean squared distance of `probabilities` (N, C) from the truth, summed over the classes, 0 to 2."""
    of_truth = probabilities.gather(1, targets[:, None]).sum()
    return ratio((probabilities.square().sum() - 2 * of_truth).item() + len(targets), len(targets))
