"""Measures against scikit-learn, numpy and published values."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch import Tensor
from torch.nn import functional

from mcls.metrics import BINS, EvalAccumulator, Metrics, RunningLoss, ratio
from mcls.report.matrix import confused_pairs, nonzero_cells
from mcls.significance import wilson
from mcls.system.distributed import World
from mcls.system.files import to_json

CPU = torch.device("cpu")
CLASSES = 7


def sample(count: int = 403, absent: tuple[int, ...] = (), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits that are right more often than not, and targets, none of them in `absent`."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor([label for label in range(CLASSES) if label not in absent])
    targets = present[torch.randint(len(present), (count,), generator=generator)]
    logits = torch.randn(count, CLASSES, generator=generator) * 2
    return logits + 2 * functional.one_hot(targets, CLASSES), targets


def measure(logits: Tensor, targets: Tensor, batch: int = 1000) -> Metrics:
    """The measures of what is counted in batches of `batch`."""
    accumulator = EvalAccumulator(logits.shape[1], CPU)
    for some, theirs in zip(logits.split(batch), targets.split(batch), strict=True):
        accumulator.add(some, theirs)
    return accumulator.measure()


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("absent", [(), (0,), (2, 6)])
def test_measures_equal_scikit_learn(absent):
    logits, targets = sample(absent=absent)
    if absent:
        logits[:, absent[-1]] = -100  # neither there nor predicted: every denominator of that class is 0
    found = measure(logits, targets)
    truth, guess, labels = targets.numpy(), logits.argmax(1).numpy(), range(CLASSES)
    scores = metrics.precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0)
    nothing = [label for label in absent if label not in guess]
    probabilities = logits.double().softmax(1).numpy()
    report = found.report([str(label) for label in labels])

    assert found.confusion == metrics.confusion_matrix(truth, guess, labels=labels).tolist()
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, guess), abs=1e-6)
    assert found.loss == pytest.approx(metrics.log_loss(truth, probabilities, labels=labels), abs=1e-6)
    assert len(nothing) == bool(absent)
    for key, theirs in zip(("precision", "recall", "f1", "support"), scores, strict=True):
        unknown = {"recall": absent, "support": ()}.get(key, nothing)
        expected = [None if label in unknown else pytest.approx(theirs[label], abs=1e-6) for label in labels]
        assert [row[key] for row in found.per_class()] == expected
        assert [row[key] for row in report["per_class"]] == expected
    assert report["precision_macro"] == pytest.approx(metrics.precision_score(truth, guess, average="macro"), abs=1e-6)
    assert report["recall_macro"] == pytest.approx(metrics.balanced_accuracy_score(truth, guess), abs=1e-6)
    assert report["f1_macro"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"), abs=1e-6)
    assert found.f1_macro == report["f1_macro"]


def test_a_perfect_model_is_perfect_where_classes_are_absent():
    targets = torch.arange(0, 300, 2)
    report = measure(functional.one_hot(targets, 300) * 100.0, targets).report([str(label) for label in range(300)])
    assert [report[f"{key}_macro"] for key in ("precision", "recall", "f1")] == [1.0, 1.0, 1.0]
    assert report["per_class"][1] == {"class": "1", "precision": None, "recall": None, "f1": None, "support": 0}


@pytest.mark.parametrize("batch", [1, 64, 400])
def test_ragged_batches_equal_one_batch(batch):
    logits, targets = sample()
    whole, parts = measure(logits, targets), measure(logits, targets, batch)
    assert parts.confusion == whole.confusion
    assert parts.scalars() == pytest.approx(whole.scalars(), abs=1e-6)
    assert np.allclose(parts.bins, whole.bins, atol=1e-5)


def test_calibration_error_equals_a_plain_reference():
    logits, targets = sample(2000)
    probabilities = logits.double().softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets.numpy()
    place = np.digitize(confidence, np.linspace(0, 1, BINS + 1)) - 1
    expected = 0.0
    for index in range(BINS):
        inside = place == index
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert expected > 0.01
    assert measure(logits, targets).ece == pytest.approx(expected, abs=1e-6)


def test_confidence_of_one_falls_into_the_last_bin():
    found = measure(torch.eye(4) * 1000, torch.arange(4))
    assert found.bins[0] == [0.0] * (BINS - 1) + [4.0]
    assert (found.ece, found.accuracy, found.loss) == (0.0, 1.0, 0.0)


def test_nothing_counted_gives_numbers():
    found = EvalAccumulator(3, CPU).measure()
    assert found.count == 0
    assert found.scalars() == {"accuracy": 0.0, "loss": 0.0, "f1_macro": 0.0, "ece": 0.0}
    assert found.report(["a", "b", "c"])["interval"] == [0.0, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_a_loss_that_is_not_finite(value):
    logits, targets = sample(20)
    logits[3] = value
    assert not math.isfinite(measure(logits, targets).loss)


def test_half_precision_logits_are_measured_in_float32():
    logits, targets = sample()
    halved = logits.bfloat16()
    assert measure(halved, targets).loss == pytest.approx(measure(halved.float(), targets).loss, abs=1e-9)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (185, 200, 0.8800, 0.9540),
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_interval_of_known_proportions(correct, count, low, high):
    assert wilson(correct, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_wilson_interval_equals_scipys_and_holds_the_share(count):
    for correct in range(0, count + 1, -(-count // 50)):
        low, high = wilson(correct, count)
        expected = stats.binomtest(correct, count).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert 0 <= low <= correct / count + 1e-12 <= high + 2e-12 <= 1 + 2e-12


def test_ratio_of_nothing_is_zero():
    assert (ratio(3, 0), ratio(0, 0), ratio(1, 4)) == (0.0, 0.0, 0.25)


@pytest.mark.parametrize("kept", [1, 100, 1 << 20])
def test_running_loss_returns_every_step_and_counts_the_right_ones(kept, monkeypatch):
    monkeypatch.setattr("mcls.metrics.KEPT", kept)
    logits, targets = sample(50)
    running, expected, right = RunningLoss(), [], 0
    for some, theirs in zip(logits.split(16), targets.split(16), strict=True):
        loss = functional.cross_entropy(some.requires_grad_(), theirs)
        running.add(loss, some, theirs, len(theirs))
        expected.append(loss.item())
        right += int((some.argmax(1) == theirs).sum())
    assert running.flush() == (expected, [16, 16, 16, 2], right)
    assert running.flush() == ([], [], 0)


class Two(World):
    """A process of two, the other of which has `other` samples: their cells."""

    other: Tensor

    def sum(self, values: Tensor) -> Tensor:
        if values.ndim == 1 and len(values) == CLASSES**2:
            return values + torch.bincount(self.other, minlength=CLASSES**2)
        return values

    def all_gather(self, value: Tensor) -> list[Tensor]:
        return [value, self.other]


@pytest.mark.parametrize("processes", [1, 2])
def test_cells_that_occur_are_counted_as_the_whole_matrix_is(monkeypatch, processes):
    """Of many classes only the cells that are not 0 are ever held."""
    logits, targets = sample(60)
    accumulator = EvalAccumulator(CLASSES, CPU)
    accumulator.add(logits, targets)
    world = Two(0, processes)
    object.__setattr__(world, "other", torch.tensor([0, 5, 5, CLASSES**2 - 1] * (processes - 1), dtype=torch.int64))
    whole = accumulator.measure(world)
    monkeypatch.setattr("mcls.metrics.COUNTED", 1)
    assert accumulator.measure(world).cells == whole.cells
    assert whole.count == 60 + 4 * (processes - 1)
    dense = whole.confusion
    monkeypatch.setattr("mcls.metrics.DENSE", 1)
    sparse = whole.confusion
    assert isinstance(sparse, dict)
    assert list(zip(*sparse.values(), strict=True)) == whole.cells
    assert nonzero_cells(sparse) == nonzero_cells(dense) == whole.cells


def test_ten_thousand_classes_are_a_small_file():
    """The whole matrix would be 600 MB of JSON, and 800 MB of counts on the device after every epoch."""
    classes = 10_000
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (2_000,), generator=generator)
    accumulator = EvalAccumulator(classes, CPU)
    for truth in targets.split(100):
        logits = torch.zeros(100, classes)
        logits[torch.arange(100), truth // 2] = 9.0
        accumulator.add(logits, truth)
    names = [f"class {label}" for label in range(classes)]
    report = accumulator.measure().report(names)
    assert len(to_json(report)) < 2_000_000
    assert report["accuracy"] == float((targets == targets // 2).double().mean())
    expected = Counter(zip(targets.tolist(), (targets // 2).tolist(), strict=True))
    (truth, guess, count, share), *_ = confused_pairs(nonzero_cells(report["confusion"]), classes, 20)
    assert expected[truth, guess] == count == max(expected.values()) and share == 1.0


def test_no_interval_where_the_weights_were_selected():
    logits, targets = sample()
    names = [str(label) for label in range(CLASSES)]
    found = measure(logits, targets)
    selected, other = found.report(names, selected=True), found.report(names)
    assert selected.pop("selected_on_val") is True and len(other.pop("interval")) == 2
    assert selected == other
