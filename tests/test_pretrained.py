"""`model=pretrained`: a registry's network, its weights, head and pictures; what is frozen, and how fast it trains."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.config.saved import saved_config
from mcls.data import image_io
from mcls.data.image_io import Reading
from mcls.errors import DataError, FolderError, MachineError, RequestError, Stopped
from mcls.inference.inputs import read_images
from mcls.inference.load import load_run
from mcls.inference.objects import fail
from mcls.inference.predict import run_classifier
from mcls.models import pretrained_network
from mcls.models.finetuned import FineTuned, stages
from mcls.models.pretrained import expected_input
from mcls.runs.folder import RunFolder
from mcls.training.optim import parameter_groups
from mcls.training.restore import check_weights_fit
from mcls.training.setup import build_components, with_expected_input
from mcls.training.trainer import Trainer
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
CHOICE: dict[str, Any] = {
    "weights": None,
    "freeze": "none",
    "unfreeze_epoch": None,
    "layer_decay": 1.0,
    "features_once": False,
}
TIMM = ["model=pretrained", "model.source=timm", "model.name=test_resnet", "model.weights=null"]
SIZE = 40
RESNET = [*TIMM, f"dataset.size={SIZE}", "trainer.batch_size=8", "trainer.epochs=2"]


def network(name: str = "test_resnet", source: str = "timm", size: int = SIZE, **keys: Any) -> FineTuned:
    found = pretrained_network((3, size, size), 3, name, source, **{**CHOICE, **keys})
    assert isinstance(found, FineTuned)
    return found


def write_pictures(root: Path, each: int = 12) -> Path:
    """Three classes of JPEGs of two sizes, a colour each."""
    random = np.random.default_rng(0)
    for number in range(3):
        for index in range(each):
            height, width = ((60, 90), (75, 50))[index % 2]
            small = random.integers(0, 90, (height // 5, width // 5, 3)) + 150 * np.eye(3, dtype=int)[number]
            image = Image.fromarray(small.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
            path = root / f"c{number}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def data(folder: Path) -> list[str]:
    return ["dataset=image_folder", f"dataset.root={folder}"]


def compose(*lines: str) -> dict[str, Any]:
    with checker() as check:
        return check.check(list(lines), False).config


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", pytest.param("vit_b_32", marks=pytest.mark.slow)]
)
def test_torchvisions_networks_lose_only_their_last_layer(name: str, tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(0)
    theirs = models.get_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    mine = network(name, "torchvision", 224, weights=str(tmp_path / "weights.pt")).eval()
    last: nn.Linear = [part for part in theirs.modules() if isinstance(part, nn.Linear)][-1]
    assert mine.head.weight.shape == (3, last.in_features)
    inputs = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(last(mine.backbone(inputs)), theirs(inputs))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_timms_networks_lose_only_their_classifier(name: str, suffix: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    theirs: Any = timm.create_model(name).eval()
    last = theirs.get_classifier()
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pt" else save_file)(theirs.state_dict(), path)
    mine = network(name, weights=str(path)).eval()
    inputs = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(last(mine.backbone(inputs)), theirs(inputs))


def test_resnet18_finetune_is_one_of_its_choices() -> None:
    from mcls.models import resnet18_finetune

    torch.manual_seed(3)
    old = resnet18_finetune((3, 64, 64), 3, None, True)
    torch.manual_seed(3)
    new = network("resnet18", "torchvision", freeze="backbone")
    for one, two in zip(old.state_dict().items(), new.state_dict().items(), strict=True):
        assert one[0] == two[0] and torch.equal(one[1], two[1])


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("torchvision", "resnet5", "model.name: torchvision has no network 'resnet5'. Did you mean 'resnet50'?"),
        ("timm", "test_resnt", "model.name: timm has no network 'test_resnt'. Did you mean 'test_resnet'?"),
        ("timm", "hf-hub:me/mine", "model.name: timm has no network 'hf-hub:me/mine'. See torchvision.models"),
        ("torchvision", "squeezenet1_0", "model.name: squeezenet1_0 does not end in a linear layer. Choose another"),
    ],
)
def test_an_unknown_network_is_refused(source: str, name: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        network(name, source)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("source", "name"), [("torchvision", "resnet18"), ("timm", "test_resnet")])
def test_without_a_network_the_file_and_its_place_are_named(
    source: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(MachineError) as caught:
        network(name, source, weights="DEFAULT")
    message = str(caught.value)
    assert f"is not in {tmp_path}" in message and "could not be downloaded (no route to host). Put https://" in message
    assert "\n" not in message


def test_timms_weights_come_from_torchs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = timm.create_model("test_resnet")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    save_file(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / "timm-test_resnet.r160_in1k.safetensors")
    mine = network(weights="DEFAULT").backbone
    assert torch.equal(mine.get_parameter("conv1.0.weight"), theirs.get_parameter("conv1.0.weight"))


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^model\.weights: no such file, got 'V1'\. Of timm, name the weights in"):
        network(weights="V1")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x\.pt does not fit test_resnet, first at 'conv1"):
        network(weights=str(tmp_path / "x.pt"))


# pictures


@pytest.mark.parametrize("size", [(500, 375), (90, 60), (333, 500), (64, 64), (30, 20)])
@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_t"])
def test_a_crop_is_torchvisions_own(name: str, size: tuple[int, int]) -> None:
    from torchvision.models import get_model_weights
    from torchvision.transforms.functional import center_crop, resize

    preset = get_model_weights(name)["DEFAULT"].transforms()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    wanted = expected_input(
        {"_target_": "mcls.models.pretrained_network", **CHOICE, "name": name, "source": "torchvision"}
    )
    assert wanted is not None
    found = image_io.resize_image(image, (wanted["size"], wanted["size"]), Reading.of(wanted))
    theirs = center_crop(resize(image, preset.resize_size, preset.interpolation), preset.crop_size)
    assert np.array_equal(found, np.asarray(theirs).transpose(2, 0, 1))


def test_padding_keeps_the_proportions_and_adds_black() -> None:
    image = Image.new("RGB", (80, 40), "white")
    found = image_io.resize_image(image, (20, 20), Reading(resize="pad"))
    assert found[:, 5:15].min() == 255 and found[:, :5].max() == 0 and found[:, 15:].max() == 0
    assert image_io.resize_image(image, (20, 20)).min() == 255


def test_pictures_are_read_as_the_weights_expect_unless_a_key_says_otherwise(
    data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mcls")
    taken = with_expected_input(compose(*data, *TIMM))["dataset"]
    assert (taken["size"], taken["resize"], taken["mean"], taken["channels"]) == (160, "crop", [0.5] * 3, 3)
    assert len([line for line in caplog.messages if "as the weights of test_resnet expect them" in line]) == 1
    keys = ["dataset.size=50", "dataset.resize=pad", "dataset.channels=1", "dataset.mean=[0.1]"]
    kept = with_expected_input(compose(*data, *TIMM, *keys))["dataset"]
    assert [kept[key] for key in ("size", "resize", "channels", "mean", "std")] == [50, "pad", 1, [0.1], [0.5]]
    plain = compose(*data, "model=resnet18")
    assert with_expected_input(plain) is plain


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    place = tmp_path_factory.mktemp("run") / "run"
    return train(place, data_root, "dataset=image_folder", f"dataset.root={folder}", *RESNET)


def test_a_run_predicts_pictures_as_its_training_saw_them(run: Path, folder: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["dataset"]["resize"], config["dataset"]["size"]) == ("crop", SIZE)
    split = build_components(config).dataset.train
    classifier = run_classifier(load_run(RunFolder(run), device="cpu"))
    assert classifier.reading == Reading(resize="crop", crop_fraction=160 / 168)
    paths = [str(folder / name) for name in split.names]
    read = read_images(paths, classifier.input_shape, 10**8, classifier.reading, fail)
    for (_, picture), seen in zip(read, torch.as_tensor(split.inputs), strict=True):
        assert np.array_equal(picture, seen.numpy())


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
@pytest.mark.parametrize("source", ["timm", pytest.param("torchvision", marks=pytest.mark.slow)])
def test_exported_files_say_how_pictures_are_read(
    mcls: Main, run: Path, folder: Path, form: str, source: str, tmp_path: Path, capsys: Capture
) -> None:
    if source == "torchvision":
        keys = ["model=pretrained", "model.name=mobilenet_v3_small", "model.weights=null", *RESNET[len(TIMM) :]]
        run = tmp_path / "run"
        assert mcls("train", "dataset=image_folder", f"dataset.root={folder}", *keys, f"hydra.run.dir={run}") == 0
    copied = tmp_path / f"model.{form}"
    assert mcls("export", str(run), "--format", form, "--output", str(copied)) == 0
    if form == "pt2":
        extra = {"mcls.json": ""}
        torch.export.load(copied, extra_files=extra)
        about = json.loads(extra["mcls.json"])
        assert json.loads(about["mcls.resize"]) == "crop" and json.loads(about["mcls.crop_fraction"]) < 1
        return
    capsys.readouterr()
    rows = []
    for model in (run, copied):
        assert mcls("predict", str(model), str(folder / "c1"), "--output", str(tmp_path / "rows.csv")) == 0
        rows.append((tmp_path / "rows.csv").read_text().splitlines())
        (tmp_path / "rows.csv").unlink()
    assert [line.split(",")[:2] for line in rows[0]] == [line.split(",")[:2] for line in rows[1]]


def test_evaluate_and_compare_open_a_run_without_its_weights_file(
    mcls: Main, data: list[str], tmp_path: Path, capsys: Capture
) -> None:
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pt")
    run, other = tmp_path / "run", tmp_path / "other"
    keys = [*data, *RESNET, f"model.weights={tmp_path / 'weights.pt'}", "trainer.figures=false"]
    assert mcls("train", *keys, f"hydra.run.dir={run}") == 0
    assert mcls("train", *keys, "model.freeze=2", f"hydra.run.dir={other}") == 0
    (tmp_path / "weights.pt").unlink()
    assert mcls("evaluate", str(run)) == 0
    assert mcls("compare", str(run), str(other)) == 0
    assert mcls("resume", str(run), "trainer.epochs=3") == 0


# what trains


def test_stages_are_frozen_from_the_input_on_with_their_batch_norm() -> None:
    model = network(freeze=2).train()
    first, second, third = stages(model.backbone)[:3]
    assert not any(weight.requires_grad for part in [*first, *second] for weight in part.parameters())
    assert all(weight.requires_grad for part in third for weight in part.parameters())
    training = {part.training for stage in (first, second) for whole in stage for part in whole.modules()}
    assert training == {False} and all(part.training for part in third)
    assert not network("test_vit", freeze=1).backbone.get_parameter("pos_embed").requires_grad
    with pytest.raises(RequestError, match=r"^model\.freeze: the network has 5 stages, got 6\. Lower it\."):
        network(freeze=6)
    with pytest.raises(RequestError, match=r"^model\.unfreeze_epoch: nothing is frozen\. Set model\.freeze=backbone\."):
        network(unfreeze_epoch=1)


def rates(model: nn.Module, *keys: Any) -> dict[str, tuple[float, bool]]:
    """Learning rate of each weight, and whether it decays."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, *keys), weight_decay=0.1)
    return {
        names[id(weight)]: (group["lr"], group["weight_decay"] > 0)
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def test_layer_decay_and_head_rate_and_decay_make_groups() -> None:
    found = rates(network(layer_decay=0.5), 0.1, 10, False)
    assert found["head.weight"] == (1.0, True) and found["head.bias"] == (1.0, False)
    assert found["backbone.layer4.0.conv1.weight"] == (0.05, True)
    assert found["backbone.layer3.0.bn1.weight"] == (0.025, False)
    assert found["backbone.conv1.0.weight"] == (0.1 / 2**5, True)
    assert len(found) == len(list(network().parameters()))
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    assert rates(plain, 0.1, 3, True)["2.weight"][0] == pytest.approx(0.3)
    assert rates(plain, 0.1, 3, True)["0.weight"] == (0.1, True)
    assert parameter_groups(plain, 0.1, 1, True) == list(plain.parameters())  # one group, as ever


def test_the_schedule_scales_every_group(data: list[str]) -> None:
    keys = ["schedule=cosine", "optimizer.head_lr_factor=4", "optimizer.lr=0.1"]
    parts = build_components(with_expected_input(compose(*data, *RESNET, *keys)))
    assert parts.rates.set(parts.rates.total_steps // 2) == parts.optimizer.param_groups[0]["lr"]
    body, head = (group["lr"] for group in parts.optimizer.param_groups)
    assert 0 < body < 0.1 and head == pytest.approx(4 * body)


def test_an_epoch_of_unfreezing_that_never_comes_is_reported(data: list[str], caplog: pytest.LogCaptureFixture) -> None:
    keys = [*data, *RESNET, "model.freeze=backbone", "model.unfreeze_epoch=3"]
    told = "model   unfreeze_epoch=3 is no epoch before the last, trainer.epochs=3: nothing is unfrozen"
    for epochs in (3, 4):
        caplog.clear()
        build_components(with_expected_input(compose(*keys, f"trainer.epochs={epochs}")))
        assert (told in caplog.messages) == (epochs == 3)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "last.pt", weights_only=True)["model"]
    return found


STAGES = ["model.layer_decay=0.8", "optimizer.head_lr_factor=2", "optimizer.decay_norm_and_bias=false"]


@pytest.fixture(params=[["optimizer=adamw", *STAGES], ["optimizer=sgd"]], ids=["adamw", "sgd"])
def gradual(data: list[str], request: pytest.FixtureRequest) -> Iterator[list[str]]:
    keys = ["model.freeze=backbone", "model.unfreeze_epoch=2", "trainer.figures=false"]
    yield [*data, *RESNET, *keys, *request.param]


def test_unfreezing_is_exact_under_resume(mcls: Main, gradual: list[str], tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert mcls("train", *gradual, "trainer.epochs=4", f"hydra.run.dir={whole}") == 0
    before: dict[str, torch.Tensor] = {}
    for epochs in (1, 2, 3, 4):
        command = ["train", *gradual, f"hydra.run.dir={run}"] if epochs == 1 else ["resume", str(run)]
        assert mcls(*command, f"trainer.epochs={epochs}") == 0
        now = weights_of(run)
        changed = {name for name in now if before and not torch.equal(now[name], before[name])}
        assert not before or (changed == {"head.weight", "head.bias"} if epochs == 2 else len(changed) > 20)
        before = now
    digests = [json.loads((place / "result.json").read_text())["weights_sha256"] for place in (whole, run)]
    assert weights_of(whole).keys() == before.keys() and digests[0] == digests[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(whole).items())


# features once


@pytest.fixture
def frozen(data: list[str]) -> list[str]:
    keys = ["model.freeze=backbone", "optimizer=adamw", "optimizer.lr=0.01", "trainer.figures=false"]
    return [*data, *RESNET, *keys, "trainer.checkpoint_every_steps=1", "trainer.checkpoint_every_seconds=1000"]


def test_features_computed_once_train_as_the_plain_way_does(mcls: Main, frozen: list[str], tmp_path: Path) -> None:
    results = []
    for once in ("true", "false"):
        run = tmp_path / once
        keys = [f"model.features_once={once}", "trainer.epochs=1", f"hydra.run.dir={run}"]
        assert mcls("train", *frozen, *keys) == 0
        results.append((weights_of(run), json.loads((run / "result.json").read_text())))
    (quick, quick_result), (plain, plain_result) = results
    assert all(torch.allclose(quick[name], plain[name], rtol=0, atol=1e-5) for name in plain)
    for part in ("val", "test"):
        assert quick_result[part]["loss"] == pytest.approx(plain_result[part]["loss"], abs=1e-5)


def test_the_backbone_sees_each_picture_once(frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = FineTuned.features
    monkeypatch.setattr(
        FineTuned, "features", lambda model, images: (seen.append(len(images)), plain(model, images))[1]
    )
    parts = build_components(with_expected_input(compose(*frozen)))
    seen.clear()  # of the checks
    parts.load(parts.dataset.train)
    assert sum(seen) == len(parts.dataset.train)
    for epoch in range(3):
        for inputs, _ in parts.train.epoch(epoch):
            assert inputs.shape[1:] == (parts.model.get_parameter("head.weight").shape[1],)
            parts.model(inputs)
    assert sum(seen) == len(parts.dataset.train)
    for key in ("augment=crop_flip", "evaluate.tta=flip", "mix=mixup", "model.unfreeze_epoch=1", "model.freeze=2"):
        parts = build_components(with_expected_input(compose(*frozen, key)))
        assert next(parts.train.epoch())[0].ndim == 4


def test_features_once_are_exact_under_resume_and_taken_from_the_cache(
    mcls: Main, frozen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mcls")
    whole, run = tmp_path / "whole", tmp_path / "run"
    cache = f"cache={tmp_path / 'cache'}"
    assert mcls("train", *frozen, cache, f"hydra.run.dir={whole}") == 0
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 3  # train, val, test
    pause = Trainer.pause

    def stop(trainer: Trainer) -> None:
        pause(trainer)
        if trainer.progress.step == 4:
            raise Stopped("stopped", 15)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "pause", stop)
        assert mcls("train", *frozen, f"hydra.run.dir={run}") == 143
    caplog.clear()
    assert mcls("resume", str(run), cache) == 0
    assert not [line for line in caplog.messages if "computed once" in line]
    digests = [json.loads((place / "result.json").read_text())["weights_sha256"] for place in (whole, run)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "change", ["model.name=test_resnet", "dataset.mean=[0.4,0.5,0.5]", "dataset.resize=pad", "seed=1"]
)
def test_features_of_other_weights_pictures_or_preparation_are_others(
    frozen: list[str], change: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for keys, files in (([], 2), ([change], 2 if change.startswith("model.name") else 4)):
        build_components(with_expected_input(compose(*frozen, f"cache={cache}", *keys)))
        assert len(list(cache.rglob("*.pt"))) == files
    for path in cache.rglob("*.pt"):
        path.write_bytes(b"damaged")
    build_components(with_expected_input(compose(*frozen, f"cache={cache}")))  # computed again


def test_a_run_folder_does_not_decide_where_a_cache_is(mcls: Main, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = ["trainer.epochs=1", "trainer.figures=false", f"cache={tmp_path / 'cache'}"]
    assert mcls("train", *keys, f"hydra.run.dir={run}") == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["cache"] == str(tmp_path / "cache")
    assert saved_config(RunFolder(run))["cache"] is None
    assert saved_config(RunFolder(run), [f"cache={tmp_path}"])["cache"] == str(tmp_path)


def test_weights_of_a_network_that_is_not_built_without_values_are_checked() -> None:
    """A RegNet computes its sizes with tensors. The check leaves the random numbers as they were."""
    with checker() as check:
        lines = ["dataset=cifar10", "model=pretrained", "model.name=regnet_x_400mf", "model.weights=null"]
        config = check.check(lines, False).config
    weights = build("model", config["model"], input_shape=(3, 32, 32), num_classes=10).state_dict()
    torch.manual_seed(5)
    expected, path = torch.rand(3), Path("best.pt")
    torch.manual_seed(5)
    assert check_weights_fit(config, (3, 32, 32), 10, weights, path)["name"] == "regnet_x_400mf"
    assert torch.equal(torch.rand(3), expected)
    first = next(iter(weights))
    for other in (weights[first].double(), weights[first][:1]):
        with pytest.raises(FolderError, match=r"^best\.pt: refused, its weights do not fit the run's model\.$"):
            check_weights_fit(config, (3, 32, 32), 10, {**weights, first: other}, path)
