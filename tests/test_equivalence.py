"""Two ways to the same numbers: losses, loops, numpy, workers, and the same command twice."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from mcls.augmentations import CropFlip
from mcls.config.instantiate import build
from mcls.data import datasets
from mcls.data.loader import Loader, Normalise
from mcls.data.types import Dataset, Split
from mcls.losses import NegativeLogLikelihood
from mcls.metrics import EvalAccumulator
from mcls.models.mlp import MLP
from mcls.runs import checkpoint
from mcls.schedules import constant, cosine
from mcls.training.optim import LRScheduler
from mcls.training.state import Settings
from mcls.training.trainer import Trainer

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = sorted(CONFIGS.glob("model/*.yaml"))
STATISTICS: dict[str, Any] = {"mean": (0.4,), "std": (0.3,)}
SETTINGS = partial(
    Settings,
    patience=None,
    monitor="accuracy",
    ema=None,
    accumulate=1,
    oom="error",
    max_steps=None,
    max_minutes=None,
    tta=None,
    top_k=5,
    log_every_steps=3,
    checkpoint_every_seconds=0.0,
    checkpoint_every_steps=None,
)
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def node(group: str, name: str) -> dict[str, Any]:
    """One choice of a group, as it stands in its file."""
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())


def digits(root: Path, val_fraction: float = 0.0) -> Dataset:
    """The small MNIST."""
    return datasets.mnist(str(root), False, **STATISTICS, val_fraction=val_fraction, val_seed=0)


def network(dropout: float = 0.0) -> MLP:
    """A small network, the same each time."""
    torch.manual_seed(1)
    return MLP((1, 28, 28), 10, [32], dropout)


class Quiet:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def steps(self, step, scalars) -> None:
        """Forget it."""

    def epoch(self, record) -> None:
        """Keep it."""
        self.records.append(record)


def trained(
    dataset: Dataset, model: nn.Module, optimizer, schedule, *, epochs: int = 2, loss=None, clip=None, **keys
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights and records after a training with mcls's own trainer."""
    serve: dict[str, Any] = {"device": CPU, "normalise": Normalise(dataset.mean, dataset.std, CPU)}
    train = Loader(dataset.train, 64, **serve, **{"seed": 3, **keys})
    val = Loader(dataset.val, 1000, **serve) if dataset.val is not None else None
    recorder = Quiet()
    trainer = Trainer(
        model,
        loss or nn.CrossEntropyLoss(),
        optimizer,
        LRScheduler(optimizer, schedule, epochs * len(train)),
        SETTINGS(epochs=epochs, grad_clip_norm=clip),
        num_classes=10,
        device=CPU,
        precision="fp32",
        recorder=recorder,
        save=lambda state, best: None,
        stop=lambda: 0,
    )
    trainer.fit(train, val)
    assert trainer.progress.step == epochs * len(train)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, recorder.records


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def constant_rate(progress: float) -> float:
    """The constant schedule."""
    return constant(progress, warmup_fraction=0.0)


def test_every_model_is_found():
    assert len(MODELS) == 6


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_nll_equals_ce_for_every_model_in_value_and_gradient(path):
    keys = {**node("model", path.stem)}
    if "weights" in keys:
        keys["weights"] = None  # the pretrained ones are on the network
    torch.manual_seed(0)
    model = build("model", keys, input_shape=(3, 16, 16), num_classes=10)
    with torch.no_grad():
        logits = model(torch.randn(8, 3, 16, 16)).requires_grad_()
    for smoothing in (0.0, 0.1):
        found = []
        for name in ("nll", "ce"):
            loss = build("loss", {**node("loss", name), "label_smoothing": smoothing})(logits, torch.arange(8))
            found.append([loss, *torch.autograd.grad(loss, logits)])
        torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_training_with_nll_equals_training_with_ce(data_root):
    found = []
    for loss in (NegativeLogLikelihood(), nn.CrossEntropyLoss()):
        model = network()
        found.append(
            trained(digits(data_root), model, torch.optim.SGD(model.parameters(), 0.1), constant_rate, loss=loss)
        )
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", ["sgd", "adam", "cosine", "clipped"])
def test_training_equals_a_plain_loop(data_root, recipe):
    """The loop that anybody would write, over the same order."""
    dataset, epochs, batch = digits(data_root), 3, 64
    make = {
        "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.5),
        "adam": lambda weights: torch.optim.Adam(weights, lr=0.001),
        "cosine": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        "clipped": lambda weights: torch.optim.SGD(weights, lr=0.5),
    }[recipe]
    clip = 0.1 if recipe == "clipped" else None
    mean, std = torch.tensor(STATISTICS["mean"]).view(1, 1, 1, 1), torch.tensor(STATISTICS["std"]).view(1, 1, 1, 1)
    assert isinstance(dataset.train.inputs, Tensor)
    images, labels = (dataset.train.inputs / 255 - mean) / std, dataset.train.targets

    model = network()
    optimizer = make(model.parameters())
    steps = epochs * -(-len(images) // batch)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if recipe == "cosine" else None
    orders = Loader(dataset.train, batch, CPU, Normalise(None, None, CPU), seed=3)
    losses = []
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in orders.order(epoch).split(batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total += loss.item() * len(chosen)
        losses.append(total / len(images))

    ours = network()
    schedule = (
        (lambda progress: cosine(progress, end_factor=0.0, warmup_fraction=0.0))
        if recipe == "cosine"
        else constant_rate
    )
    weights, records = trained(dataset, ours, make(ours.parameters()), schedule, epochs=epochs, clip=clip)
    atol = 2e-5 if recipe == "adam" else 1e-6  # Adam's division turns a rounding of a tiny gradient into a step
    torch.testing.assert_close(weights, dict(model.state_dict()), rtol=1e-5, atol=atol)
    assert [record["train"]["loss"] for record in records] == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0]


def test_softmax_and_cross_entropy_equal_numpys():
    """Minus the maximum before exp, as every document says, for logits so large that exp alone is infinite."""
    random = np.random.default_rng(0)
    for scale in (1.0, 1000.0):
        logits = (random.normal(size=(50, 10)) * scale).astype(np.float32)
        targets = random.integers(0, 10, 50)
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        exponents = np.exp(shifted)
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        logs = shifted - np.log(exponents.sum(axis=1, keepdims=True))
        expected = -logs[np.arange(50), targets].mean()

        given = torch.from_numpy(logits), torch.from_numpy(targets)
        accumulator = EvalAccumulator(10, CPU)
        accumulator.add(*given)
        assert float(NegativeLogLikelihood()(*given)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert accumulator.measure().loss == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert torch.cat(accumulator.confidence).numpy() == pytest.approx(probabilities.max(axis=1), abs=1e-6)


def test_the_same_training_twice_gives_the_same_weights(data_root):
    def once() -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        model = network(dropout=0.3)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        return trained(digits(data_root, 0.2), model, optimizer, constant_rate, augment=CropFlip(2, 0.5))

    (one, records), (other, again) = once(), once()
    assert equal(one, other)
    assert [record["val"] for record in records] == [record["val"] for record in again]


@forks
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resident_data_and_any_number_of_workers_give_the_same_weights(data_root, dropout):
    found = []
    for keys in ({}, {"resident": False, "workers": 0}, {"resident": False, "workers": 2}):
        model = network(dropout)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        found.append(trained(digits(data_root), model, optimizer, constant_rate, augment=CropFlip(2, 0.5), **keys)[0])
    assert equal(found[1], found[2])
    assert equal(found[0], found[1])


@forks
def test_batches_come_in_the_same_order_however_they_are_read(data_root):
    split = digits(data_root).train
    numbered = Split(split.inputs, torch.arange(len(split)))
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"resident": False},
        {"resident": False, "workers": 2},
        {"channels_last": True},
    )
    loaders = [Loader(numbered, 32, CPU, Normalise(None, None, CPU), seed=9, **keys) for keys in ways]
    for epoch in (0, 1):
        orders = [torch.cat([numbers for _, numbers in loader.epoch(epoch)]) for loader in loaders]
        assert len(orders) == 4
        assert all(torch.equal(order, orders[0]) for order in orders)


def test_the_same_command_twice_gives_the_same_weights(mcls, tmp_path):
    command = ["train", "dataset=mnist", "trainer.epochs=2", "trainer.figures=false", "model.dropout=0.2"]
    found = []
    for folder, seed in (("one", 4), ("two", 4), ("three", 5)):
        assert mcls(command, f"seed={seed}", f"hydra.run.dir={folder}") == 0
        found.append(checkpoint.load_checkpoint(tmp_path / folder / "best.pt")["model"])
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])
