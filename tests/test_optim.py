"""Schedules against torch's own, step by step."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR

from mcls.schedules import constant, cosine, one_cycle, step_decay
from mcls.training.optim import LRScheduler, raw_step

BASE, STEPS = 0.4, 40


def sgd(*rates: float) -> SGD:
    """An optimizer with a parameter group for each rate."""
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=BASE)


def theirs(make, count: int = STEPS) -> list[float]:
    """The rate of torch's scheduler `make(optimizer)` at each of `count` steps."""
    optimizer = sgd(BASE)
    scheduler = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def ours(schedule, steps: int = STEPS) -> list[float]:
    """The rate of one of our schedules at each of its steps."""
    optimizer = sgd(BASE)
    rates = LRScheduler(optimizer, schedule, steps)
    found = [rates.set(step) for step in range(steps)]
    assert optimizer.param_groups[0]["lr"] == found[-1]
    return found


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_equals_torchs(final):
    expected = theirs(lambda optimizer: CosineAnnealingLR(optimizer, STEPS, eta_min=final * BASE))
    assert ours(functools.partial(cosine, end_factor=final, warmup_fraction=0.0)) == pytest.approx(expected, abs=1e-9)


def test_cosine_after_a_warm_up_equals_torchs_begun_later():
    found = ours(functools.partial(cosine, end_factor=0.0, warmup_fraction=0.25))
    expected = theirs(lambda optimizer: CosineAnnealingLR(optimizer, 30), 30)
    assert found[10:] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("milestones", [[0.5, 0.75], [0.3, 0.6, 0.9], [0.1]])
def test_step_decay_equals_torchs_at_every_step(milestones):
    places = [round(milestone * STEPS) for milestone in milestones]
    expected = theirs(lambda optimizer: MultiStepLR(optimizer, places, gamma=0.2))
    found = ours(functools.partial(step_decay, milestones=milestones, factor=0.2, warmup_fraction=0.0))
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "schedule",
    [
        functools.partial(constant, warmup_fraction=0.25),
        functools.partial(cosine, end_factor=0.0, warmup_fraction=0.25),
        functools.partial(step_decay, milestones=[0.5], factor=0.1, warmup_fraction=0.25),
    ],
)
def test_warm_up_is_torchs_straight_line(schedule):
    expected = theirs(lambda optimizer: LinearLR(optimizer, start_factor=1e-9, total_iters=10), 10)
    found = ours(schedule)
    assert found[:10] == pytest.approx(expected, abs=1e-6)
    assert found[10] == BASE


@pytest.mark.parametrize(("initial", "final"), [(0.04, 0.0), (0.1, 0.001)])
def test_one_cycle_equals_torchs(initial, final):
    """torch counts to the last step, mcls to the end of it: theirs over one step more, the peak at the same step."""
    peak = 0.3 * STEPS

    def make(optimizer):
        return OneCycleLR(
            optimizer,
            max_lr=BASE,
            total_steps=STEPS + 1,
            pct_start=(peak + 1) / (STEPS + 1),
            div_factor=1 / initial,
            final_div_factor=initial / final if final else float("inf"),
            cycle_momentum=False,
        )

    found = ours(functools.partial(one_cycle, warmup_fraction=0.3, start_factor=initial, end_factor=final))
    assert found == pytest.approx(theirs(make), abs=1e-9)
    assert max(found) == found[round(peak)] == pytest.approx(BASE)


def test_boundaries():
    """Where each schedule begins, turns and ends."""
    assert [constant(part, warmup_fraction=0.0) for part in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    assert [constant(part, warmup_fraction=0.5) for part in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert [cosine(part, end_factor=0.0, warmup_fraction=0.0) for part in (0.0, 1.0)] == pytest.approx([1.0, 0.0])
    assert [cosine(part, end_factor=0.1, warmup_fraction=0.2) for part in (0.0, 0.2, 1.0)] == pytest.approx(
        [0.0, 1.0, 0.1]
    )
    assert [
        one_cycle(part, warmup_fraction=0.3, start_factor=0.04, end_factor=0.0) for part in (0.0, 0.3, 1.0)
    ] == pytest.approx([0.04, 1, 0])
    decay = functools.partial(step_decay, milestones=[0.5, 0.75], factor=0.1, warmup_fraction=0.0)
    assert [decay(part) for part in (0.0, 0.4999, 0.5, 0.7499, 0.75, 1.0)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_every_parameter_group_keeps_its_own_base_rate():
    optimizer = sgd(1.0, 0.1, 0.0)
    rates = LRScheduler(optimizer, functools.partial(cosine, end_factor=0.0, warmup_fraction=0.0), 10)
    for step in (0, 3, 9, 3):
        factor = cosine(step / 10, end_factor=0.0, warmup_fraction=0.0)
        assert rates.set(step) == pytest.approx(factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor, 0.0])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_plain_step_is_the_step(kind: type[torch.optim.Optimizer]) -> None:
    def trained(plain: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.01)  # type: ignore[call-arg]
        step = raw_step(optimizer) if plain else optimizer.step
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(4, 5)).square().sum().backward()
            step()
        return model.weight.detach()

    assert torch.equal(trained(plain=True), trained(plain=False))


def test_the_step_of_a_users_optimizer_is_left_alone() -> None:
    class Mine(torch.optim.SGD):
        pass

    optimizer = Mine([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    assert raw_step(optimizer) == optimizer.step


def test_training_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    code = "import sys; from mcls.cli import main; sys.exit(main(sys.argv[1:]) or 'torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", code, "train", "trainer.epochs=2", "trainer.figures=false"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
