"""Networks: their shapes, their sizes, and where pretrained weights may come from."""

import io
import itertools
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights
from torchvision.models import resnet18 as theirs

from mcls.errors import DataError, MachineError, RequestError
from mcls.models import resnet18, resnet18_finetune
from mcls.models.mlp import MLP

URL = ResNet18_Weights.IMAGENET1K_V1.url


def count(model: nn.Module) -> int:
    """Weights of a model."""
    return sum(weight.numel() for weight in model.parameters())


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    """A state dict of torchvision's resnet18."""
    torch.manual_seed(5)
    return theirs().state_dict()


@pytest.fixture
def weights_file(pretrained, tmp_path) -> Path:
    """The same in a file."""
    path = tmp_path / "resnet18.pt"
    torch.save(pretrained, path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """torch's cache folder of weights, empty; the network is not there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path / "torch" / "hub" / "checkpoints"


def holds(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether the backbone of `model` has the weights of `state`, the last layer aside."""
    found = model.get_submodule("backbone").state_dict()
    kept = {name for name in state if not name.startswith("fc.")}
    return set(found) == kept and all(torch.equal(found[name], state[name]) for name in kept)


def test_mlp_of_five_layers_has_the_weights_of_its_widths():
    model = MLP((1, 28, 28), 10, [512, 256, 128, 64])
    widths = [784, 512, 256, 128, 64, 10]
    linear = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(itertools.pairwise(widths))
    assert count(model) == sum(a * b + b for a, b in itertools.pairwise(widths)) == 575_050
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.ReLU] * 4 + [nn.Linear]


@pytest.mark.parametrize("shape", [(2,), (1, 28, 28), (3, 8, 6)])
def test_mlp_gives_logits_for_any_shape_of_samples(shape):
    logits = MLP(shape, 7, [16])(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    assert (logits < 0).any()  # no ReLU, no softmax at the end


def test_mlp_without_hidden_layers_is_one_linear_layer():
    model = MLP((1, 28, 28), 10, [])
    inputs = torch.randn(3, 1, 28, 28)
    (layer,) = model.layers
    assert isinstance(layer, nn.Linear)
    assert count(model) == 7850
    torch.testing.assert_close(model(inputs), inputs.flatten(1) @ layer.weight.T + layer.bias, rtol=1e-5, atol=1e-5)


def test_dropout_follows_each_hidden_layer_and_sleeps_in_eval():
    model = MLP((5,), 3, [8, 8], dropout=0.5)
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    inputs = torch.randn(4, 5)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize(("size", "stem", "pool"), [(32, 3, nn.Identity), (64, 3, nn.Identity), (65, 7, nn.MaxPool2d)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resnet18_has_the_stem_for_its_images(channels, size, stem, pool):
    model = resnet18((channels, size, size), 10)
    assert model.get_parameter("conv1.weight").shape == (64, channels, stem, stem)
    assert model.conv1.stride == ((1, 1) if stem == 3 else (2, 2))
    assert isinstance(model.maxpool, pool)
    assert count(model) == count(theirs(num_classes=10)) - 64 * 3 * 49 + 64 * channels * stem**2
    with torch.inference_mode():
        assert model.eval()(torch.randn(1, channels, size, size)).shape == (1, 10)


def test_the_longer_side_decides_about_the_stem():
    assert resnet18((3, 20, 65), 10).get_submodule("conv1").kernel_size == (7, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_small_stem_is_initialised_as_torchvisions_own(channels):
    """Normal, of variance 2 / (outputs x pixels of the kernel)."""
    weight = resnet18((channels, 32, 32), 10).get_parameter("conv1.weight").detach()
    assert float(weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.15)


@pytest.mark.parametrize("name", ["resnet18", "resnet18-finetune"])
def test_samples_that_are_no_images_are_refused(name):
    build = {
        "resnet18": resnet18,
        "resnet18-finetune": lambda shape, classes: resnet18_finetune(shape, classes, None, False),
    }[name]
    with pytest.raises(RequestError) as caught:
        build((2,), 4)
    assert (
        str(caught.value) == f"model={name} requires images, but this data set has samples of shape 2. Try model=mlp."
    )


def test_two_channels_are_refused_for_fine_tuning():
    with pytest.raises(RequestError, match=r"^model=resnet18-finetune requires images with 1 or 3 channels, got 2\."):
        resnet18_finetune((2, 32, 32), 10, None, False)


def test_fine_tuning_begins_with_the_weights_of_a_file(weights_file, pretrained):
    model = resnet18_finetune((3, 32, 32), 10, str(weights_file), False)
    assert holds(model, pretrained)
    assert model.get_parameter("head.weight").shape == (10, 512)
    network = theirs()
    network.load_state_dict(pretrained)
    network.fc = nn.Identity()
    inputs = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.eval()(inputs), model.get_submodule("head")(network.eval()(inputs)))


def test_a_file_without_the_last_layer_or_with_another_one_fits(weights_file, pretrained):
    other = {**pretrained, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    without = {name: tensor for name, tensor in pretrained.items() if not name.startswith("fc.")}
    for state in (other, without):
        torch.save(state, weights_file)
        assert holds(resnet18_finetune((3, 32, 32), 10, str(weights_file), False), pretrained)


def test_grey_images_are_shown_to_all_three_channels(weights_file):
    model = resnet18_finetune((1, 32, 32), 10, str(weights_file), False).eval()
    grey = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_weights_by_name_come_from_torchs_cache(cache, pretrained, name):
    cache.mkdir(parents=True)
    torch.save(pretrained, cache / URL.rsplit("/", 1)[1])
    assert holds(resnet18_finetune((3, 32, 32), 10, name, False), pretrained)


def test_weights_by_name_without_a_network_fail_in_one_line(cache):
    with pytest.raises(MachineError) as caught:
        resnet18_finetune((3, 32, 32), 10, "IMAGENET1K_V1", False)
    message = str(caught.value)
    assert message.startswith(
        f"model.weights: IMAGENET1K_V1 is not in {cache / URL.rsplit('/', 1)[1]} and could not be"
    )
    assert f"Put {URL} there, or set model.weights=FILE, or model.weights=null" in message
    assert "\n" not in message


def test_a_download_that_is_something_else_is_the_machines_fault(cache, monkeypatch):
    """What a captive portal answers: torch finds that the digest is not the one in the file's name."""
    import torch.hub

    class Answer(io.BytesIO):
        headers = SimpleNamespace(get_all=lambda _: None)

        def info(self):
            return self.headers

    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Answer(b"<html>please log in</html>"))
    with pytest.raises(MachineError, match=r"^model\.weights: IMAGENET1K_V1 .*could not be downloaded"):
        resnet18_finetune((3, 32, 32), 10, "IMAGENET1K_V1", False)


def test_no_weights_begin_from_nothing():
    torch.manual_seed(3)
    one = resnet18_finetune((3, 32, 32), 10, None, False)
    torch.manual_seed(3)
    assert holds(one, theirs().state_dict())


def test_an_unknown_name_of_weights_is_a_wrong_request():
    with pytest.raises(RequestError) as caught:
        resnet18_finetune((3, 32, 32), 10, "IMAGENET2K", False)
    expected = "model.weights: no such weights or file, got 'IMAGENET2K'. Known: IMAGENET1K_V1, or a file."
    assert str(caught.value) == expected


def test_a_missing_file_of_weights_is_named(tmp_path):
    path = tmp_path / "none.pt"
    with pytest.raises(MachineError) as caught:
        resnet18_finetune((3, 32, 32), 10, str(path), False)
    assert str(caught.value) == f"model.weights: no file {path}. Give a state dict of torchvision's resnet18."


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_a_file_of_weights_with_code_in_it_is_refused_and_not_run(tmp_path, pretrained, write):
    path, mark = tmp_path / "weights.pt", tmp_path / "ran"
    write({**pretrained, "bn1.weight": Code(mark)}, path)
    with pytest.raises(DataError) as caught:
        resnet18_finetune((3, 32, 32), 10, str(path), False)
    message = str(caught.value)
    assert message.startswith(f"model.weights: {path} is not a state dict that holds only tensors (")
    assert "\n" not in message
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not a state dict that holds only tensors"):
        resnet18_finetune((3, 32, 32), 10, str(path), False)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.zeros(1)}}, torch.zeros(2)])
def test_a_file_with_other_data_is_refused(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(DataError, match=r"weights\.pt holds no state dict, got (list|dict|Tensor)\.$"):
        resnet18_finetune((3, 32, 32), 10, str(path), False)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "layer1.0.conv1.weight"),
        ({"conv1.weight": None}, "conv1.weight"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, pretrained, change, first):
    path = tmp_path / "weights.pt"
    torch.save({name: tensor for name, tensor in {**pretrained, **change}.items() if tensor is not None}, path)
    with pytest.raises(DataError) as caught:
        resnet18_finetune((3, 32, 32), 10, str(path), False)
    expected = f"model.weights: {path} does not fit resnet18, first at {first!r} (1 in all)."
    assert str(caught.value) == expected


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_backbone_keeps_weights_and_statistics_and_only_the_head_trains(weights_file, freeze):
    model = resnet18_finetune((3, 32, 32), 10, str(weights_file), freeze)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert (trained == ["head.weight", "head.bias"]) == freeze
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    model.eval()
    model.train()
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert len(statistics) == 60
    if freeze:
        assert changed == {"head.weight", "head.bias"}
    else:
        assert statistics <= changed
        assert {"backbone.conv1.weight", "head.weight"} <= changed
