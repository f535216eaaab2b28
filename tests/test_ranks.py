"""Measures of ranks and agreement against scikit-learn's, with ties and absent classes, and as what is monitored."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from mcls import ranks
from mcls.metrics import EvalAccumulator
from mcls.ranks import intervals, matrix_measures, mean_areas, rank_curve, rank_measures, sparse_matrix, weighted_areas

Main = Callable[..., int]


def sample(count: int = 200, classes: int = 4, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    scores = torch.rand(count, classes, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    scores[torch.arange(count), targets] += 0.3
    return ((scores * 5).round() if ties else scores), targets


@pytest.mark.parametrize("ties", [False, True])
def test_curves_and_areas_are_scikit_learns(ties: bool) -> None:
    scores, targets = sample(ties=ties)
    for label in range(4):
        positive = targets == label
        curve = rank_curve(scores[:, label], positive)
        assert curve is not None
        given = positive.numpy(), scores[:, label].numpy()
        auroc, precision = metrics.roc_auc_score(*given), metrics.average_precision_score(*given)
        assert curve.auroc == pytest.approx(auroc, abs=1e-12)
        assert curve.average_precision == pytest.approx(precision, abs=1e-12)
        false_positive, recall, _ = metrics.roc_curve(*given, drop_intermediate=False)
        np.testing.assert_allclose(curve.false_positive, false_positive, atol=1e-12)
        np.testing.assert_allclose(curve.recall, recall, atol=1e-12)
        drawn = torch.randint(len(targets), (3, len(targets)))
        weights = torch.stack([torch.bincount(row, minlength=len(targets)) for row in drawn])
        areas = weighted_areas(scores[:, label], positive, weights)
        for row, found in zip(drawn, areas.t().tolist(), strict=True):
            again = positive[row].numpy(), scores[row, label].numpy()
            expected = [metrics.roc_auc_score(*again), metrics.average_precision_score(*again)]
            assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_areas_of_many_classes_are_those_of_the_curves(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of which no sample is drawn, and one of all samples but a few, among them."""
    scores, targets = sample(700, 150, ties)
    targets[:350] = 7
    drawn = torch.randint(len(targets), (9, len(targets)), generator=torch.Generator().manual_seed(0))
    weights = torch.stack([torch.bincount(row, minlength=len(targets)) for row in [*drawn, torch.arange(350)]])
    found = mean_areas(scores, targets, weights)
    monkeypatch.setattr(ranks, "MOST_CLASSES", 150)
    assert torch.allclose(found, mean_areas(scores, targets, weights), atol=1e-12)


def test_a_class_that_all_or_none_are_is_left_out_of_the_mean() -> None:
    scores, targets = sample(classes=3)
    wider = torch.cat([scores, torch.rand(len(scores), 1)], dim=1)
    found, expected = rank_measures(wider, targets, 2), rank_measures(scores, targets, 2)
    assert found["auroc"] == expected["auroc"] and found["average_precision"] == expected["average_precision"]
    assert found["top_2"] == pytest.approx(metrics.top_k_accuracy_score(targets, wider, k=2, labels=range(4)))
    assert "top_3" not in rank_measures(scores, targets, 3)
    assert rank_measures(scores, torch.zeros(len(scores), dtype=torch.int64), 1).keys() == {"top_1"}


def test_agreement_is_scikit_learns_and_nothing_is_no_agreement() -> None:
    scores, targets = sample()
    truth, guess = targets.numpy(), scores.argmax(1).numpy()
    matrix = torch.from_numpy(metrics.confusion_matrix(truth, guess)).double()
    found = {name: value.item() for name, value in matrix_measures(matrix).items()}
    expected = {
        "f1_macro": metrics.f1_score(truth, guess, average="macro"),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
        "mcc": metrics.matthews_corrcoef(truth, guess),
        "kappa": metrics.cohen_kappa_score(truth, guess),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    one = matrix_measures(torch.tensor([[5.0]], dtype=torch.float64))
    assert one["mcc"] == one["kappa"] == 0
    assert torch.equal(sparse_matrix([(1, 7, 2), (7, 7, 3)]), torch.tensor([[0.0, 2], [0, 3]], dtype=torch.float64))


def test_intervals_cover_what_they_should() -> None:
    """The interval of the accuracy's bootstrap is near Wilson's; a larger sample has a narrower one."""
    widths = []
    for count in (200, 2000):
        scores, targets = sample(count)
        accumulator = EvalAccumulator(4, torch.device("cpu"), top_k=2)
        accumulator.add(scores.log(), targets)
        measured = accumulator.measure()
        found = intervals(measured.cells, accumulator.scored()[0], targets)
        assert set(found) == {"f1_macro", "balanced_accuracy", "mcc", "kappa", "auroc", "average_precision"}
        report = measured.report(["a", "b", "c", "d"])
        assert all(low < report[name] < high for name, (low, high) in found.items())
        widths.append({name: high - low for name, (low, high) in found.items()})
    assert all(2 < widths[0][name] / width < 5 for name, width in widths[1].items())  # the root of 10


MONITORS = ("loss", "f1_macro", "balanced_accuracy", "mcc", "kappa", "auroc", "average_precision", "top_k")


@pytest.mark.parametrize("monitor", MONITORS)
def test_any_measure_is_monitored(monitor: str, mcls: Main, tmp_path: Path) -> None:
    keys = (f"trainer.monitor={monitor}", "evaluate.top_k=2", "trainer.epochs=4", "trainer.figures=false")
    assert mcls("train", *keys, "hydra.run.dir=run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    lines = [json.loads(line)["val"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [-line["loss"] if monitor == "loss" else line[monitor] for line in lines]
    best = max(range(4), key=lambda epoch: (values[epoch], -lines[epoch]["loss"]))
    assert result["best_epoch"] == best + 1
    name = "top_2" if monitor == "top_k" else monitor
    assert result["val"][name] == pytest.approx(abs(values[best]), abs=1e-9)


def test_top_k_of_as_many_classes_is_nothing_to_monitor(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "trainer.monitor=top_k") == 2
    told = "mcls: evaluate.top_k: must be less than the 4 classes if trainer.monitor is top_k.\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.slow
def test_two_processes_monitor_as_one(mcls: Main, tmp_path: Path) -> None:
    for devices in (1, 2):
        keys = ("trainer.monitor=auroc", "trainer.epochs=3", "trainer.figures=false", f"trainer.devices={devices}")
        assert mcls("train", *keys, f"hydra.run.dir={devices}") == 0
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in "12")
    assert one["best_epoch"] == two["best_epoch"]
    assert one["val"]["auroc"] == pytest.approx(two["val"]["auroc"], abs=1e-3)
