"""What `_target_` may name, and what comes of it."""

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from mcls.augmentations import CropFlip
from mcls.config.instantiate import OWN, THIRD_PARTY, build, check_target, resolve
from mcls.errors import RequestError
from mcls.losses import NegativeLogLikelihood
from mcls.models.mlp import MLP

GROUPS = sorted(OWN)
OUTSIDE = [  # refused by name, before anything is imported
    "os.system",
    "os.execv",
    "posix.system",
    "subprocess.Popen",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "builtins.__import__",
    "importlib.import_module",
    "runpy.run_path",
    "pickle.loads",
    "shutil.rmtree",
    "pathlib.Path.write_text",
    "torch.load",
    "torch.hub.load",
    "torch.serialization.load",
    "torch.package.PackageImporter",
    "torch._inductor.codecache.PyCodeCache.load",
    "torch.utils.collect_env.run",
    "torch.utils.cpp_extension.load_inline",
    "torch.jit.load",
    "numpy.load",
    "joblib.load",
    "pandas.read_pickle",
    "sympy.sympify",
    "hydra.utils.instantiate",
    "logging.config.dictConfig",
    "mcls.system.files.publish",
    "mcls.cli.main",
    "mcls.runs.checkpoint.load",
    "torchvision.datasets.utils.download_and_extract_archive",
    "torchvision.io.write_file",
]
INSIDE = [  # begin like something allowed, and are refused when looked at
    "torch.nn.init.kaiming_normal_",
    "torch.nn.functional.torch.load",
    "torch.nn.Module.load_state_dict",
    "torch.nn.parameter.sys.exit",
    "torch.nn.Parameter",
    "torch.optim.lr_scheduler.sys.exit",
    "torch.optim.lr_scheduler.StepLR",
    "torch.optim.optimizer.torch.load",
    "torch.optim.Optimizer.load_state_dict",
    "torchvision.models.get_model",
    "torchvision.models.list_models",
    "torchvision.models.resnet.torch.load",
    "torchvision.models._api.load_state_dict_from_url",
    "torchvision.models.ResNet",
    "mcls.data.datasets.torch.load",
    "mcls.data.datasets.Path",
    "mcls.data.datasets.contextlib.suppress",
    "mcls.augmentations.dataclass",
    "mcls.losses.nn",
    "mcls.losses.torch.load",
    "mcls.models.resnet.Path",
    "mcls.models.resnet.torch.hub.load",
    "mcls.training.optim.Callable",
    "mcls.schedules.math.sqrt",
]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("target", OUTSIDE)
def test_dangerous_names_are_refused_unseen(group: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(RequestError, match=rf"^{group}\._target_: {target} is not allowed here; allowed are names in "):
        build(group, {"_target_": target, "f": "/tmp/x"})


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("target", INSIDE)
def test_dangerous_names_below_allowed_packages_are_refused_uncalled(group: str, target: str) -> None:
    with pytest.raises(RequestError, match=rf"^{group}\._target_: "):
        resolve(group, target, [])


@pytest.mark.parametrize("target", [None, 3, "", "os", "torch.nn.", ".x", "torch.nn.a-b", "torch.nn.Linear()", ["a.b"]])
def test_what_is_no_dotted_name_is_refused(target: Any) -> None:
    with pytest.raises(RequestError, match=r"^loss\._target_: "):
        check_target("loss", target, [])


ALLOWED = {
    "dataset": ["mcls.datasets.blobs", "mcls.datasets.mnist", "mcls.datasets.cifar10"],
    "model": [
        "mcls.models.MLP",
        "torchvision.models.resnet34",
        "torchvision.models.resnet.resnet34",
        "torch.nn.RNN",
    ],
    "loss": ["mcls.losses.NegativeLogLikelihood", "torch.nn.CrossEntropyLoss", "torch.nn.MultiMarginLoss"],
    "optimizer": ["torch.optim.SGD", "torch.optim.adamw.AdamW", "torch.optim.NAdam"],
    "schedule": ["mcls.schedules.constant", "mcls.schedules.one_cycle"],
    "augment": ["mcls.augmentations.CropFlip"],
    "mix": ["mcls.mixing.Mixup"],
}


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_takes_its_own_kind_alone(group: str) -> None:
    assert set(ALLOWED) == set(OWN) and set(THIRD_PARTY) < set(OWN)
    for target in ALLOWED[group]:
        assert callable(resolve(group, target, []))
    foreign = [target for other, targets in ALLOWED.items() for target in targets if other != group]
    refused = 0
    for target in foreign:
        if target.startswith("torch.nn.") and group in ("model", "loss"):
            continue  # both are modules
        with pytest.raises(RequestError, match=rf"^{group}\._target_: "):
            resolve(group, target, [])
        refused += 1
    assert refused >= 10


def test_null_is_nothing() -> None:
    assert build("augment", {"_target_": None}) is None


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(RequestError, match=r"^optimizer\._target_: no torch\.optim\.Sgd \(.+\)\.$"):
        build("optimizer", {"_target_": "torch.optim.Sgd"})
    with pytest.raises(RequestError, match=r"^model\._target_: no torchvision\.models\.nothing \(.+\)\.$"):
        build("model", {"_target_": "torchvision.models.nothing"})


def test_a_package_that_is_not_there_or_does_not_import(own_package: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        build("model", {"_target_": "no_such_net.Net"}, ["no_such_net"])
    assert str(caught.value) == (
        "model._target_: no no_such_net.Net (No module named 'no_such_net'). "
        "It is not on the Python path: PYTHONPATH=. mcls ..."
    )
    (tmp_path / own_package / "broken.py").write_text("1 / 0\n")
    with pytest.raises(RequestError) as caught:
        build("model", {"_target_": f"{own_package}.broken.Net"}, [own_package])
    assert str(caught.value) == f"model._target_: no {own_package}.broken.Net (division by zero)."


def test_nobody_is_told_to_trust_torch() -> None:
    with pytest.raises(RequestError) as caught:
        check_target("schedule", "torch.optim.lr_scheduler.StepLR", [])
    assert str(caught.value) == (
        "schedule._target_: torch.optim.lr_scheduler.StepLR is not allowed here; allowed are names in mcls.schedules."
    )


def test_what_is_built() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = build("optimizer", {"_target_": "torch.optim.SGD", "lr": 0.5}, params=[weight])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["lr"] == 0.5
    model = build("model", {"_target_": "mcls.models.MLP", "hidden_units": [5]}, input_shape=(2, 3), num_classes=4)
    assert isinstance(model, MLP) and model(torch.zeros(7, 2, 3)).shape == (7, 4)
    loss = build("loss", {"_target_": "mcls.losses.NegativeLogLikelihood", "label_smoothing": 0.1})
    assert isinstance(loss, NegativeLogLikelihood) and loss.label_smoothing == 0.1
    assert build("augment", {"_target_": "mcls.augmentations.CropFlip", "padding": 2, "flip": 0.5}) == CropFlip(2, 0.5)
    schedule = build("schedule", {"_target_": "mcls.schedules.cosine", "end_factor": 0.0, "warmup_fraction": 0.0})
    assert isinstance(schedule, functools.partial) and schedule(0.0) == 1.0 and schedule(0.5) == pytest.approx(0.5)


def test_a_model_of_torchvision_by_yaml_alone() -> None:
    node = {"_target_": "torchvision.models.squeezenet1_1", "weights": None}
    model = build("model", node, input_shape=(3, 64, 64), num_classes=7)
    assert isinstance(model, torchvision.models.SqueezeNet)
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("group", "node", "message"),
    [
        (
            "optimizer",
            {"_target_": "torch.optim.SGD", "learning_rate": 1},
            r"^optimizer\.learning_rate: torch\.optim\.SGD has no such argument\. It has params, lr, momentum, ",
        ),
        (
            "model",
            {"_target_": "mcls.models.MLP", "hidden": [3]},
            r"^model\.hidden: mcls\.models\.MLP has no such argument\. "
            r"It has input_shape, num_classes, hidden_units, dropout\.$",
        ),
        (
            "model",
            {"_target_": "mcls.models.MLP"},
            r"^model\.hidden_units: mcls\.models\.MLP requires it, but the configuration does not have it\.$",
        ),
        (
            "schedule",
            {"_target_": "mcls.schedules.constant", "warm": 0},
            r"^schedule\.warm: mcls\.schedules\.constant has no such argument\. It has progress, warmup_fr",
        ),
        (
            "schedule",
            {"_target_": "mcls.schedules.constant"},
            r"^schedule\.warmup_fraction: mcls\.schedules\.constant requires it, but the configuration does not have",
        ),
        (
            "optimizer",
            {"_target_": "torch.optim.SGD", "nesterov": True},
            r"^optimizer: torch\.optim\.SGD refuses its arguments: Nesterov momentum requires a momentum and zero ",
        ),
        (
            "model",
            {"_target_": "torchvision.models.squeezenet1_1", "nonsense": 1},
            r"^model: torchvision\.models\.squeezenet1_1 refuses its arguments: .*'nonsense'",
        ),
    ],
)
def test_arguments_that_do_not_fit_name_their_key(group: str, node: dict[str, Any], message: str) -> None:
    runtime: dict[str, Any] = {"params": [nn.Parameter(torch.zeros(1))], "input_shape": (2,), "num_classes": 2}
    with pytest.raises(RequestError, match=message):
        build(group, node, **runtime)


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of the user's, importable under its name."""
    name = "users_own_package"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "nets.py").write_text(
        "from torch import nn\n"
        "SIZE = 3\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes, width):\n"
        "        super().__init__(width, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield name
    for loaded in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[loaded]


def test_a_package_of_the_users_own_is_taken_when_trusted_and_only_then(own_package: str) -> None:
    node = {"_target_": f"{own_package}.nets.Net", "width": 5}
    for trust in ([], ["other"], [own_package[:-1]], [f"{own_package}.other"], [""]):
        with pytest.raises(RequestError, match=rf"set trust=\[{own_package}\] on the command line\.$"):
            build("model", node, trust, num_classes=2)
    assert own_package not in sys.modules
    model = build("model", node, [own_package], num_classes=2, input_shape=(5,))
    assert model(torch.zeros(1, 5)).shape == (1, 2)
    with pytest.raises(RequestError, match=rf"^model\._target_: {own_package}\.nets\.SIZE is not a model\.$"):
        build("model", {"_target_": f"{own_package}.nets.SIZE"}, [own_package])
    with pytest.raises(RequestError, match="is not allowed here"):
        build("model", {"_target_": "os.system"}, [own_package])
