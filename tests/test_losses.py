"""mcls's own loss against torch's."""

import pytest
import torch
from torch import nn

from mcls.losses import CrossEntropy, MeanOfValues, NegativeLogLikelihood


def batch(count: int = 33, classes: int = 5, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64 and targets."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_nll_equals_cross_entropy_in_value_and_gradient(smoothing, weighted):
    logits, targets = batch()
    weight = torch.tensor([0.2, 1.0, 3.0, 0.0, 1.5], dtype=torch.float64) if weighted else None
    found: list[torch.Tensor | None] = []
    expected: list[torch.Tensor | None] = []
    for kind, kept in ((NegativeLogLikelihood, found), (nn.CrossEntropyLoss, expected)):
        given = logits.clone().requires_grad_()
        loss = kind(label_smoothing=smoothing, weight=weight)(given, targets)
        loss.backward()
        kept += [loss.detach(), given.grad]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nll_equals_cross_entropy_under_autocast(smoothing):
    logits, targets = (values.float().bfloat16() if values.is_floating_point() else values for values in batch())
    with torch.autocast("cpu", torch.bfloat16):
        found = NegativeLogLikelihood(label_smoothing=smoothing)(logits, targets)
        expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_nll_of_huge_logits_is_finite():
    logits, targets = batch(scale=1e6)
    loss = NegativeLogLikelihood(label_smoothing=0.1)(logits, targets)
    torch.testing.assert_close(loss, nn.CrossEntropyLoss(label_smoothing=0.1)(logits, targets))
    assert loss.isfinite()


def test_class_weights_go_where_the_loss_goes():
    loss = NegativeLogLikelihood(weight=torch.ones(3)).to(torch.float64)
    assert loss.weight is not None
    assert loss.weight.dtype == torch.float64


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_the_mean_of_the_values_is_the_mean(soft, weighted):
    """`reduction: none` trains as `reduction: mean` does."""
    logits, targets = batch()
    truth = (
        targets if not soft else nn.functional.one_hot(targets, 5).double().lerp(torch.full((33, 5), 0.2).double(), 0.3)
    )
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5, 1.5], dtype=torch.float64) if weighted else None
    gradients = []
    for loss in (MeanOfValues(nn.CrossEntropyLoss(weight, reduction="none")), CrossEntropy(weight)):
        given = logits.clone().requires_grad_()
        loss(given, truth).backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
