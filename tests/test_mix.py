"""Augmentations of whole pictures, mixing of samples, and losses with soft targets."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from mcls.augmentations import (
    Cutout,
    PerSample,
    Standard,
    box,
    jitter,
    rand_augment,
    resample,
    trivial_augment,
    turn_hue,
)
from mcls.data.loader import Loader, Normalise
from mcls.data.types import Split
from mcls.losses import CrossEntropy, NegativeLogLikelihood
from mcls.metrics import RunningLoss
from mcls.mixing import CutMix, Mixup
from mcls.system.distributed import World

Main = Callable[..., int]
CPU = torch.device("cpu")
OFF = Standard((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
ALL = Standard((0.3, 1.0), (0.75, 1.33), 0.5, 30.0, 0.4, 0.4, 0.4, 0.5, 0.1)


def images(channels: int = 3, count: int = 16) -> Tensor:
    """Random pictures that are not square."""
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(1, 256, (count, channels, 12, 9), generator=generator).to(torch.uint8)


def uniforms(count: int = 16, draws: int = 14) -> Tensor:
    return torch.rand(count, draws, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("augment", [ALL, Cutout(2, 0.5, 0.4), trivial_augment(0.5), rand_augment(2, 9, 0.5)], ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_comes_out_the_same_in_any_batch(augment: Standard | Cutout | PerSample, channels: int) -> None:
    batch, drawn = images(channels), uniforms(draws=augment.draws)
    before, state = batch.clone(), torch.get_rng_state()
    whole = augment(batch, drawn)
    assert whole.shape == batch.shape and whole.dtype == torch.uint8 and not torch.equal(whole, batch)
    chosen = torch.tensor([11, 2, 5])
    assert torch.equal(augment(batch[chosen], drawn[chosen]), whole[chosen])
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)  # which dropout uses


def test_standard_with_everything_off_changes_nothing_and_a_sure_flip_flips() -> None:
    batch = images()
    assert torch.equal(OFF(batch, uniforms()), batch)
    flipped = Standard((1.0, 1.0), (1.0, 1.0), 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert torch.equal(flipped(batch, uniforms()), batch.flip(-1))


def test_a_crop_is_the_resized_part() -> None:
    """The left upper quarter, magnified twice, as torchvision resizes it; but for its border, whose outside is seen."""
    batch = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(1)).float()
    half, corner = torch.full((4,), 0.5), torch.full((4,), -0.5)
    found = resample(batch, (half, half), (corner, corner), torch.zeros(4))
    expected = v2.functional.resize(batch[:, :, :8, :8], [16, 16], antialias=False)
    torch.testing.assert_close(found[:, :, 1:15, 1:15], expected[:, :, 1:15, 1:15], rtol=0, atol=1e-3)


def test_a_quarter_turn_is_that_of_the_pixels() -> None:
    batch = torch.rand(2, 3, 8, 8)
    one, zero = torch.ones(2), torch.zeros(2)
    found = resample(batch, (one, one), (zero, zero), torch.full((2,), torch.pi / 2))
    torch.testing.assert_close(found, batch.rot90(-1, (2, 3)).rot90(2, (2, 3)), rtol=0, atol=1e-4)


def test_jitter_is_torchvisions() -> None:
    batch, one = images().float(), torch.ones(16)
    pairs = (
        (v2.functional.adjust_brightness, (1.3, 1, 1)),
        (v2.functional.adjust_contrast, (1, 0.6, 1)),
        (v2.functional.adjust_saturation, (1, 1, 1.4)),
    )
    for function, factors in pairs:
        expected = function(batch / 255, max(factors, key=lambda factor: abs(factor - 1))) * 255
        found = jitter(batch, *(one * factor for factor in factors))
        torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_the_box_has_the_area_that_is_asked_for() -> None:
    picture = torch.zeros(1, 1, 20, 20)
    inside = box(picture, *(torch.tensor([value]) for value in (0.5, 0.25, 0.5, 0.5)))
    assert inside.sum() == 10 * 5
    assert Cutout(0, 0.0, 0.5)(images(), torch.full((16, 5), 0.5)).float().mean().isfinite()


def served(
    mix: Mixup | CutMix, world: World | None = None, size: int = 8, epoch: int = 1
) -> list[tuple[Tensor, Tensor]]:
    split = Split(images(count=37).float(), torch.arange(37) % 5)
    loader = Loader(split, size, CPU, Normalise(None, None, CPU), seed=3, mix=mix, num_classes=5)
    return list(loader.epoch(epoch, world=world or World()))


@pytest.mark.parametrize("mix", [Mixup(0.4), CutMix(1.0)], ids=repr)
def test_mixed_samples_are_those_of_a_sample_and_the_next_one(mix: Mixup | CutMix) -> None:
    """By hand; also: the same in two passes, other in the next epoch."""
    split = Split(images(count=37).float(), torch.arange(37) % 5)
    loader = Loader(split, 8, CPU, Normalise(None, None, CPU), seed=3, mix=mix, num_classes=5)
    drawn = loader.mix_numbers(1)
    assert drawn is not None
    for (inputs, targets), numbers in zip(served(mix), loader.order(1).split(8), strict=True):
        for place, number in enumerate(numbers):
            partner = numbers[(place + 1) % len(numbers)]
            own, other = split.inputs[number][None], split.inputs[partner][None]
            mixed, share = mix(own, other, drawn[number][None])
            torch.testing.assert_close(inputs[place], mixed[0])
            expected = torch.zeros(5)
            expected[split.targets[number]] += share[0]
            expected[split.targets[partner]] += 1 - share[0]
            torch.testing.assert_close(targets[place], expected)
            if isinstance(mix, CutMix):
                kept = (mixed == own).all(dim=1).float().mean() - (own == other).all(dim=1).float().mean()
                assert number == partner or kept == pytest.approx(share.item(), abs=0.1)
    assert not torch.equal(served(mix)[0][0], served(mix, epoch=2)[0][0])


@pytest.mark.parametrize("size", [2, 3])
def test_processes_mix_as_one_does(size: int) -> None:
    shares = [served(CutMix(1.0), World(rank, size)) for rank in range(size)]
    for (inputs, targets), *parts in zip(served(CutMix(1.0)), *shares, strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), inputs)
        assert torch.equal(torch.cat([part for _, part in parts]), targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_hot_targets_cost_what_class_numbers_cost_and_both_losses_are_equal(
    smoothing: float, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(20, 4, generator=generator), torch.arange(20) % 4
    weight = torch.tensor([0.3, 1.0, 2.0, 0.5]) if weighted else None
    soft = torch.rand(20, 4, generator=generator).softmax(1)
    losses = CrossEntropy(weight, label_smoothing=smoothing), NegativeLogLikelihood(smoothing, weight)
    for loss in losses:
        hot = nn.functional.one_hot(targets, 4).float()
        torch.testing.assert_close(loss(logits, hot), loss(logits, targets), rtol=0, atol=1e-6)
    torch.testing.assert_close(losses[0](logits, soft), losses[1](logits, soft), rtol=0, atol=1e-6)


def test_hits_of_soft_targets_are_those_of_the_larger_class() -> None:
    running = RunningLoss()
    targets = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    running.add(torch.tensor(1.0), torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]]), targets, 3)
    assert running.flush()[2] == 2


MIXED = ("dataset=mnist", "mix=cutmix", "trainer.figures=false", "trainer.epochs=2", "loss.class_weights=balanced")


def test_mixed_training_is_exact_and_accumulates(mcls: Main, tmp_path: Path) -> None:
    for run, more in (("one", "model.dropout=0"), ("two", "model.dropout=0"), ("large", "trainer.batch_size=96")):
        size = "trainer.batch_size=96" if run == "large" else "trainer.batch_size=32"
        keys = () if run == "large" else ("trainer.accumulate=3",)
        assert mcls("train", *MIXED, size, *keys, more, f"hydra.run.dir={run}") == 0
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", "two", "large")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["val"]["loss"] == pytest.approx(results[2]["val"]["loss"], rel=1e-4)
    assert json.loads((tmp_path / "one" / "run.json").read_text())["hyperparameters"]["mix"] == "cutmix"


def test_cutmix_is_for_images(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "mix=cutmix") == 2
    told = "mcls: mix: mcls.mixing.CutMix requires images, but samples have shape 2. Set mix=mixup or mix=none.\n"
    assert capsys.readouterr().err.endswith(told)
    assert mcls("train", "mix=mixup", "trainer.epochs=1", "trainer.figures=false") == 0


def test_a_loss_without_soft_targets_is_refused(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "margin.yaml").write_text("_target_: torch.nn.MultiMarginLoss\n")
    (tmp_path / "conf" / "loss" / "torchs.yaml").write_text("_target_: torch.nn.CrossEntropyLoss\n")
    assert mcls("train", "--config-dir", "conf", "loss=margin", "mix=mixup") == 2
    told = "mcls: mix: the loss torch.nn.MultiMarginLoss does not take probabilities of the classes as it takes class"
    assert told in capsys.readouterr().err
    assert mcls("train", "--config-dir", "conf", "loss=torchs", "mix=mixup", "trainer.epochs=1") == 0


def test_data_check_draws_augmented_samples(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("data", "check", "dataset=mnist", "--output", "seen", "--augment")
    assert mcls(*keys, "augment=standard", "augment.rotation=20") in (0, 3)
    assert "augmented   seen/augmented.png" in capsys.readouterr().out
    assert (tmp_path / "seen" / "augmented.png").read_bytes().startswith(b"\x89PNG")
    assert mcls(*keys) == 2
    told = "mcls: --augment: augment=none changes nothing. Choose one, such as augment=standard.\n"
    assert capsys.readouterr().err.endswith(told)
    assert mcls(*keys[:3], "--augment") == 2


def test_turned_colours_keep_their_luma_and_greys() -> None:
    """A whole turn is none, opposite turns undo each other; the numbers of the other keys stay."""
    random = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(5, 3, 6, 7, generator=random)
    turn = torch.linspace(-3, 3, 5)
    turned = turn_hue(images, turn)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((turned * luma).sum(1), (images * luma).sum(1), rtol=1e-3, atol=0.05)
    assert (turned - images).abs().amax() > 20
    torch.testing.assert_close(turn_hue(turned, -turn), images, rtol=1e-3, atol=0.05)
    torch.testing.assert_close(turn_hue(images, torch.full((5,), 2 * math.pi)), images, rtol=1e-3, atol=0.05)
    greys = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(turn_hue(greys, turn), greys, rtol=1e-2, atol=0.1)
    assert torch.equal(turn_hue(images[:, :1], turn), images[:, :1])
    keys: dict[str, Any] = {"scale": (0.4, 1), "ratio": (0.75, 1.3), "flip": 0.5, "rotation": 9, "brightness": 0.2}
    plain, hued = (Standard(**keys, contrast=0.2, saturation=0.2, hue=hue, erase=0.5) for hue in (0.0, 1e-9))
    assert (plain.draws, hued.draws) == (14, 15)
    uniforms = torch.rand(5, 15, generator=random)
    difference = plain(images.byte(), uniforms[:, :14]).int() - hued(images.byte(), uniforms).int()
    assert difference.abs().max() <= 1
