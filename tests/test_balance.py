"""Uneven classes: weights of the training loss, and epochs that draw every class equally often."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.utils.class_weight import compute_class_weight

from mcls.augmentations import CropFlip
from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.data.loader import Loader, Normalise, draw_balanced
from mcls.data.types import Split
from mcls.errors import RequestError
from mcls.losses import weights_of
from mcls.training.setup import Components, build_components

LOSSES = Path(__file__).parents[1] / "configs" / "loss"
CPU = torch.device("cpu")
COUNTS = (90, 9, 1)
TARGETS = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))


def loss(name: str, counts: torch.Tensor | None = None, **keys: Any) -> torch.nn.Module:
    node = {**yaml.safe_load((LOSSES / f"{name}.yaml").read_text()), **keys}
    found: torch.nn.Module = build("loss", node, counts=counts)
    return found


def loader(**keys: Any) -> Loader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (100, 3, 8, 8), generator=generator).to(torch.uint8)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, CPU)
    return Loader(Split(pixels, TARGETS), 10, CPU, normalise, **{"seed": 0, "balanced": True, **keys})


def test_balanced_weights_are_scikit_learns() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=TARGETS.numpy())
    found = weights_of("balanced", torch.tensor(COUNTS))
    assert found is not None and found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert (found * torch.tensor(COUNTS)).tolist() == pytest.approx([100 / 3] * 3, rel=1e-6)


def test_an_absent_class_weighs_nothing_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    counts = torch.tensor([5, 0, 5])
    assert weights_of("balanced", counts).tolist() == pytest.approx([2 / 3, 0, 2 / 3])  # type: ignore[union-attr]
    assert "loss    classes without a training sample: 1 of 3; weight 0" in caplog.text
    found = loss("ce", counts, class_weights="balanced", label_smoothing=0.1)
    assert found(torch.randn(4, 3), torch.tensor([0, 2, 2, 0])).isfinite()


def test_numbers_are_taken_as_they_are_and_none_weighs_all_alike() -> None:
    assert weights_of([1, 2.5, 3], torch.tensor(COUNTS)).tolist() == [1, 2.5, 3]  # type: ignore[union-attr]
    assert weights_of(None, torch.tensor(COUNTS)) is None
    message = r"^loss\.class_weights: 2 values for 3 classes\. Give one per class\.$"
    with pytest.raises(RequestError, match=message):
        weights_of([1, 2], torch.tensor(COUNTS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, "balanced", [0.5, 1.0, 4.0]], ids=str)
def test_nll_equals_ce_with_weights_and_smoothing(weights: Any, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(64, 3, generator=generator)
    targets = torch.randint(3, (64,), generator=generator)
    found = []
    for name in ("nll", "ce"):
        given = logits.clone().requires_grad_()
        value = loss(name, torch.tensor(COUNTS), class_weights=weights, label_smoothing=smoothing)(given, targets)
        found.append([value.detach(), *torch.autograd.grad(value, given)])
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_balanced_weights_are_a_balanced_data_set() -> None:
    """The weighted loss of uneven classes is the plain one of the classes repeated until they are even."""
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weighted = loss("ce", torch.tensor(COUNTS), class_weights="balanced").double()(logits, TARGETS)
    repeats = torch.tensor([1, 10, 90])[TARGETS]
    even, plain = logits.repeat_interleave(repeats, dim=0), loss("ce", torch.tensor(COUNTS))
    torch.testing.assert_close(weighted, plain(even, TARGETS.repeat_interleave(repeats)), rtol=1e-6, atol=0)


def test_an_epoch_draws_every_class_equally_often() -> None:
    epochs = [loader().order(epoch) for epoch in range(200)]
    assert all(len(order) == 100 and order.min() >= 0 and order.max() < 100 for order in epochs)
    share = torch.bincount(TARGETS[torch.cat(epochs)]).double() / 20_000
    assert share.tolist() == pytest.approx([1 / 3] * 3, abs=0.015)
    drawn = torch.bincount(torch.cat(epochs), minlength=100)
    assert drawn[:90].min() > 0 and drawn[:90].max() < 3 * drawn[:90].double().mean()  # within a class all alike
    assert (drawn[90:99] / drawn[90:99].sum()).tolist() == pytest.approx([1 / 9] * 9, abs=0.02)


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    assert torch.equal(loader().order(3), loader(augment=CropFlip(1, 0.5)).order(3))
    orders = {tuple(loader(seed=seed).order(epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_classes_without_a_sample_are_not_drawn() -> None:
    targets = torch.tensor([4, 4, 4, 1])
    drawn = draw_balanced(targets.repeat(100), torch.Generator().manual_seed(0))
    assert torch.bincount(targets.repeat(100)[drawn]).tolist()[1] == pytest.approx(200, abs=40)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_balanced_batches_do_not_depend_on_how_they_are_read(workers: int) -> None:
    augment = CropFlip(2, 0.5)
    resident = list(loader(augment=augment).epoch(1))
    streamed = list(loader(augment=augment, resident=False, workers=workers).epoch(1))
    later = list(loader(augment=augment).epoch(1, first=4))
    for (inputs, targets), (same, as_well) in zip(resident + resident[4:], streamed + later, strict=True):
        assert torch.equal(inputs, same) and torch.equal(targets, as_well)


def test_a_sample_drawn_twice_is_augmented_twice() -> None:
    inputs, targets = (torch.cat(parts) for parts in zip(*loader(augment=CropFlip(2, 0.5)).epoch(), strict=True))
    rare = inputs[targets == 2]  # one sample, many times
    assert len(rare) > 20 and len(rare.flatten(1).unique(dim=0)) > 10


def config(*lines: str) -> dict[str, Any]:
    with checker() as check:
        return check.check(list(lines), False).config


def weight_of(parts: Components) -> Any:
    """The class weights of the loss."""
    assert isinstance(parts.loss, torch.nn.Module)
    return parts.loss.weight


def test_the_keys_reach_the_loss_and_the_loader(caplog: pytest.LogCaptureFixture) -> None:
    parts = build_components(config("loss.class_weights=balanced"))
    assert parts.class_weights is weight_of(parts) and not caplog.text
    parts = build_components(config("loss.class_weights=balanced", "trainer.class_balanced_sampling=true"))
    assert caplog.text.count("both correct the imbalance. Use one.") == 1
    assert parts.train.balanced and parts.val is not None and not parts.val.balanced
    counts = torch.bincount(parts.dataset.train.targets)
    assert weight_of(parts).tolist() == pytest.approx((counts.sum() / (4 * counts)).tolist())
    plain = build_components(config())
    assert weight_of(plain) is None and not plain.train.balanced
    with pytest.raises(RequestError, match=r"^loss\.class_weights: 2 values for 4 classes\. "):
        build_components(config("loss.class_weights=[1,2]"))
    for wrong in ("[1,0]", "even", "[-1]"):
        with pytest.raises(
            RequestError, match=r"^loss\.class_weights: must be list of float > 0, balanced or null, got"
        ):
            config(f"loss.class_weights={wrong}")


@pytest.mark.parametrize("choice", ["loss.class_weights=balanced", "trainer.class_balanced_sampling=true"])
def test_both_help_a_rare_class(tmp_path: Path, mcls: Callable[..., int], choice: str) -> None:
    """Two overlapping clouds, one with a tenth of the points: without help nearly all go to the other."""
    from mcls.runs.folder import find_runs

    generator = np.random.default_rng(0)
    points = [("common", *row) for row in generator.normal(0, 1, (900, 2))]
    points += [("rare", *row) for row in generator.normal(1, 1, (90, 2))]
    (tmp_path / "own.csv").write_text("\n".join(["kind,x,y", *(f"{k},{x},{y}" for k, x, y in points)]))
    line = "dataset=csv dataset.path=own.csv dataset.target=kind model=linear-softmax trainer.epochs=8"
    recall = []
    for name, extra in (("plain", []), ("helped", [choice])):
        assert mcls("train", line.split(), extra, f"outputs={name}", "trainer.figures=false") == 0
        (run,) = find_runs(tmp_path / name)
        recall.append((run.read_result() or {})["test"]["per_class"][1]["recall"])
    assert recall[0] < 0.35 < 0.55 < recall[1]
