"""Every YAML file composes, builds and trains a step; a new file is found by itself."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from makers import pictures
from mcls.config.compose import checker
from mcls.runs.folder import RunFolder
from mcls.training.setup import build_components

CONFIGS = Path(__file__).parents[1] / "configs"
Main = Callable[..., int]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


COUNTS = {
    "augment": 6, "mix": 3, "dataset": 8, "experiment": 7, "loss": 2, "model": 6, "optimizer": 4, "schedule": 4,
    "trainer": 2,
}  # fmt: skip
SMALL = ["trainer.batch_size=8", "dataset.val_fraction=0.2"]
NO_WEIGHTS = "model.weights=null"
PRETRAINED = ("pretrained", "resnet18-finetune")
FLAT = ("mlp", "linear-softmax")  # models that take anything; the others want pictures


def compose(*lines: str) -> dict[str, Any]:
    with checker() as check:
        return check.check(list(lines), False).config


def train_a_step(config: dict[str, Any]) -> float:
    """Build everything, do one update and one validation batch; the loss before the update."""
    parts = build_components(config)
    inputs, targets = next(parts.train.epoch())
    before = [weight.detach().clone() for weight in parts.model.parameters()]
    parts.model.train()
    parts.rates.set(parts.rates.total_steps // 2)
    logits = parts.model(inputs)
    assert logits.shape == (len(targets), len(parts.dataset.classes))
    loss = parts.loss(logits, targets)
    loss.backward()
    parts.optimizer.step()
    after = list(parts.model.parameters())
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert parts.val is not None
    parts.model.eval()
    inputs, targets = next(parts.val.epoch())
    with torch.inference_mode():
        assert math.isfinite(parts.loss(parts.model(inputs[:8]), targets[:8]).item())
    return loss.item()


def given(dataset: str, folder: Path) -> list[str]:
    """What a data set without files of its own must be told; small files for it are made in `folder`."""
    if dataset == "csv":
        rows = [f"{number % 3},{number % 7},{number * 0.5},{'ab'[number % 2]}" for number in range(90)]
        (folder / "table.csv").write_text("\n".join(["label,one,two,three", *rows]) + "\n")
        return [f"dataset.path={folder}/table.csv", "dataset.target=label"]
    if dataset == "image_folder":
        images, labels = pictures(60, (16, 16, 3), seed=2)
        for number, (image, label) in enumerate(zip(images, labels % 3, strict=True)):
            path = folder / "pictures" / f"class_{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        return [f"dataset.root={folder}/pictures"]
    if dataset == "huggingface":
        import datasets

        images, labels = pictures(60, (16, 16, 3), seed=2)
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"]))
        cells = {"image": list(map(Image.fromarray, images)), "label": (labels % 3).tolist()}
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(cells, features=features).save_to_disk(folder / "saved")
        return [f"dataset.path={folder}/saved"]
    if dataset == "image_table":
        given("image_folder", folder)
        paths = sorted((folder / "pictures").rglob("*.png"))
        rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in paths]
        (folder / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        return [f"dataset.path={folder}/labels.csv"]
    return []


def test_the_files_are_found() -> None:
    others = {"search", "launcher"}  # which no run has
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name[0] != "_"} == {*COUNTS, *others}
    assert {group: len(choices(group)) for group in COUNTS} == COUNTS


CASES = [(group, choice) for group in COUNTS if group != "experiment" for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), CASES, ids=[f"{group}={choice}" for group, choice in CASES])
@pytest.mark.usefixtures("accept_cifar10")
def test_every_choice_trains_a_step(
    group: str, choice: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCLS_DATA", str(data_root))
    lines = [f"{group}={choice}", *SMALL, *given(choice, tmp_path)]
    if (group in ("augment", "mix") and choice != "none") or (group == "model" and choice not in FLAT):
        lines.append("dataset=cifar10")
    if choice in PRETRAINED:
        lines.append(NO_WEIGHTS)
    config = compose(*lines)
    assert math.isfinite(train_a_step(config))
    assert train_a_step(config) == train_a_step(config)


@pytest.mark.parametrize("dataset", choices("dataset"))
@pytest.mark.parametrize("model", FLAT)
@pytest.mark.usefixtures("accept_cifar10")
def test_every_data_set_with_every_small_model(
    dataset: str, model: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCLS_DATA", str(data_root))
    files = given(dataset, tmp_path)
    losses = {
        loss: train_a_step(compose(f"dataset={dataset}", f"model={model}", f"loss={loss}", *files, *SMALL))
        for loss in ("ce", "nll")
    }
    assert losses["ce"] == pytest.approx(losses["nll"], abs=1e-6)


@pytest.mark.parametrize("model", [name for name in choices("model") if name not in FLAT])
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_networks_for_pictures_take_grey_ones(
    model: str, dataset: str, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCLS_DATA", str(data_root))
    weights = [NO_WEIGHTS] if model in PRETRAINED else []
    train_a_step(compose(f"dataset={dataset}", f"model={model}", *weights, *SMALL))


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_recipe_trains_a_step(
    name: str, data_root: Path, monkeypatch: pytest.MonkeyPatch, accept_cifar10: None
) -> None:
    monkeypatch.setenv("MCLS_DATA", str(data_root))
    weights = [NO_WEIGHTS] if "finetune" in name else []
    config = compose(f"experiment={name}", "trainer.epochs=1", *weights, *SMALL)
    assert math.isfinite(train_a_step(config))


CHEAP = [name for name in choices("experiment") if "cifar10" not in name]
RECIPES = [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in choices("experiment")]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("accept_cifar10")
def test_every_recipe_runs_from_end_to_end(name: str, mcls: Main, tmp_path: Path) -> None:
    weights = [NO_WEIGHTS] if "finetune" in name else []
    assert mcls("train", f"experiment={name}", "trainer.epochs=1", "trainer.figures=false", *weights) == 0
    (path,) = tmp_path.glob("outputs/*/*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["epochs"]) == ("finished", 1)
    assert json.loads(RunFolder(path.parent).about.read_text())["choices"]["experiment"] == name
