"""What is measured, and who runs it. A contestant is built once; each call of what comes back runs one epoch."""

import contextlib
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcls.config.compose import checker
from mcls.data.loader import Loader
from mcls.runs.folder import RunFolder
from mcls.runs.tracking import RunLogger
from mcls.training import restore, run, setup
from mcls.training.precision import evaluate_loader
from mcls.training.state import Progress
from mcls.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real

Epoch = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """One training that the contestants race in.

    Args:
        name: in the table.
        overrides: of the `mcls train` command line.
        samples: of the training split that are used; None takes them all.
        documents: torchvision's reader, and the mean and deviation of its transforms, for the documents' way.
        whole: a call of a contestant is the whole training, not one epoch.
        stock: contestants that keep torch's own fp32 matrix products where the others take the work's precision.
    """

    name: str
    overrides: tuple[str, ...]
    samples: int | None = None
    documents: tuple[str, float | None, float | None] | None = None
    whole: bool = False
    stock: tuple[str, ...] = ()


TEMPLATE = (
    "dataset=mnist",
    "dataset.val_fraction=0.08333333333",
    "model._target_=work.DenseNet",
    "trust=[work]",
    "model.hidden_units=[64,128,64]",
    "optimizer=adam",
    "trainer.batch_size=128",
)
WORKS = [
    Work("mnist-mlp", ("experiment=mnist-mlp",), documents=("MNIST", 0.1307, 0.3081)),
    Work(
        "mnist-mlp, fp32_medium",
        ("experiment=mnist-mlp", "precision=fp32_medium"),
        documents=("MNIST", 0.1307, 0.3081),
        stock=("documents' way", "Lightning"),
    ),
    Work("fashion-softmax", ("experiment=fashion-softmax",), documents=("FashionMNIST", None, None)),
    Work("blobs-mlp, 500 epochs", ("experiment=blobs-mlp",), whole=True),
    Work("template's default", TEMPLATE, documents=("MNIST", 0.1307, 0.3081)),
]


def resnet_works(steps: dict[int, int], precisions: tuple[str, ...]) -> list[Work]:
    """cifar10-resnet18 for `steps` steps at each batch size: fp32 as stock, other precisions channels-last."""
    return [
        Work(
            f"cifar10-resnet18, batch {batch}, {precision}{'' if precision == 'fp32' else ' channels-last'}",
            (
                "experiment=cifar10-resnet18",
                f"trainer.batch_size={batch}",
                f"precision={precision}",
                f"trainer.channels_last={'false' if precision == 'fp32' else 'true'}",
            ),
            samples=batch * count,
        )
        for batch, count in steps.items()
        for precision in precisions
    ]


def resnet_steps(device: str) -> dict[int, int]:
    """Batch size: how many steps are timed."""
    return {32: 40, 128: 40, 512: 20} if device == "cuda" else {32: 4, 128: 2, 512: 1}


def named(name: str, device: str) -> Work:
    """The work that has this name in a table."""
    works = [*WORKS, *resnet_works(resnet_steps(device), ("fp32", "bf16"))]
    return next(item for item in works if item.name == name)


class DenseNet(nn.Module):
    """The lightning-hydra-template's network: linear, batch norm, ReLU, for each of `hidden_units`."""

    def __init__(self, input_shape: Any, num_classes: int, hidden_units: list[int], dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = int(np.prod(input_shape))
        for units in hidden_units:
            layers += [nn.Linear(width, units), nn.BatchNorm1d(units), nn.ReLU()]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def compose(overrides: tuple[str, ...], device: str) -> dict[str, Any]:
    """The configuration of `mcls train OVERRIDES`."""
    with checker() as check:
        return check.check([*overrides, f"device={device}"], False).config


def assembled(work: Work, device: str) -> tuple[setup.Components, dict[str, Any]]:
    """What mcls builds for `work`, cut to its samples, and the configuration."""
    config = compose(work.overrides, device)
    parts = setup.build_components(config)
    if work.samples is not None:
        parts.train.inputs, parts.train.targets = (
            parts.train.inputs[: work.samples],
            parts.train.targets[: work.samples],
        )
        assert len(parts.train.targets) == work.samples
    return parts, config


def autocast(parts: setup.Components) -> Any:
    """The bare loop's context of a forward pass."""
    if parts.precision.startswith("fp32"):
        return contextlib.nullcontext()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[parts.precision]
    return torch.autocast(parts.device.type, kind)


def tensor(inputs: Any) -> Tensor:
    """The inputs of a split, which is in memory here."""
    assert isinstance(inputs, Tensor)
    return inputs


def stock_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of the configuration, with torch's own choice of implementation."""
    ours = ("_target_", "fused", "foreach", "head_lr_factor", "decay_norm_and_bias")
    keys = {key: value for key, value in config["optimizer"].items() if key not in ours}
    return getattr(torch.optim, config["optimizer"]["_target_"].split(".")[-1])(model.parameters(), **keys)


def bare(work: Work, device: str) -> Epoch:
    """The loop that one writes by hand: float tensors on the device, one permutation an epoch. It augments nothing."""
    parts, config = assembled(work, device)
    inputs, targets = parts.train.normalise(tensor(parts.train.inputs)), parts.train.targets
    if parts.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    model, criterion, batch = parts.model, parts.loss, parts.train.batch_size
    optimizer = stock_optimizer(model, config)
    epochs = config["trainer"]["epochs"] if work.whole else 1

    def epoch() -> None:
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(targets), device=targets.device).split(batch):
                with autocast(parts):
                    loss = criterion(model(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return epoch


def make_trainer(parts: setup.Components) -> Trainer:
    """mcls's trainer with its real recorder and checkpoints, in a folder of its own."""
    folder = RunFolder(Path(tempfile.mkdtemp()))
    recorder = RunLogger(folder)
    return run.make_trainer(parts, recorder, restore.checkpoint_writer(folder, parts), stop=int)


def mcls_trainer(work: Work, device: str) -> Epoch:
    """mcls: the trainer of `mcls train`, curves and log lines written, no evaluation; the whole `fit` where asked."""

    logging.getLogger("mcls").setLevel(logging.INFO)
    parts, config = assembled(work, device)
    trainer = make_trainer(parts)
    if work.whole:
        followed = parts.load(parts.dataset.open_test()) if config["trainer"]["evaluate_test_each_epoch"] else None

        def fit() -> None:
            trainer.progress = Progress()
            trainer.fit(parts.train, parts.val, followed)

        return fit
    return trainer_epoch(parts, parts.train, trainer)


def trainer_epoch(parts: setup.Components, loader: Loader, trainer: Trainer | None = None) -> Epoch:
    """One epoch of mcls's trainer over `loader`, and its report."""
    trainer = trainer or make_trainer(parts)
    progress = trainer.progress

    def epoch() -> None:
        trainer.train_epoch(loader)
        progress.epoch += 1
        trainer.report({})
        progress.batch = progress.correct = progress.seen = 0
        progress.loss_sum = progress.train_seconds = 0.0

    return epoch


def torchvision_set(work: Work, config: dict[str, Any]) -> Any:
    """The training data with the documents' transforms of each sample."""
    from torchvision import datasets, transforms

    assert work.documents is not None
    name, mean, deviation = work.documents
    steps = [transforms.ToTensor()]
    if mean is not None:
        steps.append(transforms.Normalize((mean,), (deviation,)))
    found = getattr(datasets, name)(config["dataset"]["root"], train=True, transform=transforms.Compose(steps))
    fraction = config["dataset"]["val_fraction"]
    return torch.utils.data.Subset(found, range(round(len(found) * (1 - fraction)))) if fraction else found


def documents_way(work: Work, device: str) -> Epoch | None:
    """As the documents do it: transforms a sample, a DataLoader without workers, the loss read at every step."""
    if work.documents is None:
        return None
    parts, config = assembled(work, device)
    data = torch.utils.data.DataLoader(torchvision_set(work, config), parts.train.batch_size, shuffle=True)
    model, criterion, optimizer = parts.model, parts.loss, stock_optimizer(parts.model, config)

    def epoch() -> None:
        model.train()
        total, correct = 0.0, 0
        for inputs, targets in data:
            inputs, targets = inputs.to(parts.device), targets.to(parts.device)
            logits = model(inputs)
            loss = criterion(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += (logits.argmax(1) == targets).sum().item()

    return epoch


def lightning_way(work: Work, device: str) -> Epoch | None:
    """Lightning's Trainer over the documents' data, logging to files every 50 steps as it does by itself."""
    if work.documents is None or importlib.util.find_spec("lightning") is None:
        return None
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parts, config = assembled(work, device)
    data = torch.utils.data.DataLoader(torchvision_set(work, config), parts.train.batch_size, shuffle=True)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = parts.model, parts.loss

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = self.criterion(self.model(batch[0]), batch[1])
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return stock_optimizer(self.model, config)

    module = Module()

    def epoch() -> None:
        folder = tempfile.mkdtemp()
        lightning.Trainer(
            max_epochs=1,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            logger=CSVLogger(folder),
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)

    return epoch


CONTESTANTS: dict[str, Callable[[Work, str], Epoch | None]] = {
    "bare": bare,
    "mcls trainer": mcls_trainer,
    "documents' way": documents_way,
    "Lightning": lightning_way,
}


def bare_pass(work: Work, device: str, measured: bool) -> Epoch:
    """One forward pass over the test split as floats, 1,024 at a time; loss and accuracy too if `measured`."""
    parts, _ = assembled(work, device)
    split = parts.dataset.open_test()
    inputs, targets = parts.train.normalise(tensor(split.inputs).to(parts.device)), split.targets.to(parts.device)

    def once() -> None:
        parts.model.eval()
        loss, correct = torch.zeros((), device=parts.device), torch.zeros((), dtype=torch.int64, device=parts.device)
        with torch.inference_mode(), autocast(parts):
            for batch, truth in zip(inputs.split(1024), targets.split(1024), strict=True):
                logits = parts.model(batch)
                if measured:
                    loss += nn.functional.cross_entropy(logits, truth, reduction="sum")
                    correct += (logits.argmax(1) == truth).sum()
        if measured:
            loss.item(), correct.item()

    return once


def mcls_pass(work: Work, device: str) -> Epoch:
    """mcls: the same split, measured."""
    parts, _ = assembled(work, device)
    loader = parts.load(parts.dataset.open_test())
    return lambda: evaluate_loader(parts.model, loader, len(parts.dataset.classes), parts.precision).measure()


def prepare_data() -> str:
    """Point mcls at the real data, or at random ones of the same shape; says which."""
    folder = Path(tempfile.gettempdir()) / f"mcls-bench-data-{'real' if real.available() else 'synthetic'}"
    if real.available():
        folder.mkdir(exist_ok=True)
        real.unpack(folder)
    elif not folder.exists():
        write_synthetic(folder)
    os.environ["MCLS_DATA"] = str(folder)
    real.accept_cifar10(folder)
    return "real" if real.available() else "synthetic, of the same shape"


def write_synthetic(folder: Path) -> None:
    """Random images in the files that torchvision reads."""
    import hashlib
    import json

    random = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        raw = folder / name / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 60_000), ("t10k", 10_000)):
            images, labels = random.integers(0, 256, (count, 28, 28), "uint8"), random.integers(0, 10, count, "uint8")
            head = b"".join(number.to_bytes(4) for number in (2051, count, 28, 28))
            (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(head[:3] + b"\1" + head[4:8] + labels.tobytes())
    base, sums = folder / "cifar-10-batches-py", {}
    base.mkdir()
    files: dict[str, Any] = {"batches.meta": {"label_names": [str(label) for label in range(10)]}}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        images = random.integers(0, 256, (10_000, 3072), "uint8")
        files[name] = {"data": images, "labels": random.integers(0, 10, 10_000).tolist()}
    for name, content in files.items():
        packed = pickle.dumps(content)
        (base / name).write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()
    (base / "md5.json").write_text(json.dumps(sums))


def commit() -> str:
    """The commit that is measured."""
    try:
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
