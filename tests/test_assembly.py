"""Parts that do not go together, seen when they are built: one line, and no run folder."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from mcls.assembly import check_loss, check_model, resolve_batch_size
from mcls.errors import RequestError
from mcls.machine import environment

Main = Callable[..., int]
CPU = torch.device("cpu")
OWN = """
import torch
from torch import nn
from mcls.errors import DataError


class Asserts(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(2, num_classes)

    def forward(self, inputs):
        assert inputs.ndim == 4


class Looks(Asserts):
    def forward(self, inputs):
        return self.nothing(inputs)


class Unwritten(Asserts):
    forward = nn.Module.forward


class Pair(Asserts):
    def forward(self, inputs):
        logits = nn.Linear.forward(self, inputs)
        return (logits, logits) if self.training else logits


class Rows(nn.Module):
    def forward(self, logits, targets):
        return logits.sum(1)


class Constant(nn.Module):
    def forward(self, logits, targets):
        return torch.tensor(1.0)


class Word(nn.Module):
    def forward(self, logits, targets):
        return "small"


class Flip:
    def __call__(self, images, uniforms):
        return images


def spiral():
    return {}["x"]


def pair():
    return 1, 2


def missing():
    raise DataError("spiral.txt: not there.")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`own(group, target, ...)` writes a file `mine` of the user's; his package is `mynet`."""
    (tmp_path / "mynet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def write(group: str, *lines: str) -> None:
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text("".join(f"{line}\n" for line in lines))

    yield write
    sys.modules.pop("mynet", None)


CASES = [
    ("loss", "torch.nn.NLLLoss", "torch.nn.NLLLoss wants log-probabilities, and models return logits. Say loss=nll."),
    (
        "loss",
        "torch.nn.MSELoss",
        "torch.nn.MSELoss does not take logits of shape (2, 4) and class numbers: RuntimeError: "
        "The size of tensor a (4) must match the size of tensor b (2) at non-singleton dimension 1.",
    ),
    ("loss", "mynet.Rows", "mynet.Rows must return one number with a gradient, got shape (2,)."),
    ("loss", "mynet.Constant", "mynet.Constant must return one number with a gradient, got tensor(1.)."),
    ("loss", "mynet.Word", "mynet.Word must return one number with a gradient, got small."),
    ("model", "mynet.Asserts", "mynet.Asserts does not take samples of shape 2: AssertionError."),
    (
        "model",
        "mynet.Looks",
        "mynet.Looks does not take samples of shape 2: AttributeError: 'Looks' object has no attribute 'nothing'.",
    ),
    (
        "model",
        "mynet.Unwritten",
        "mynet.Unwritten does not take samples of shape 2: NotImplementedError: "
        'Module [Unwritten] is missing the required "forward" function.',
    ),
    (
        "model",
        "mynet.Pair",
        "mynet.Pair must return logits of shape (2, 4) for two samples, got tuple in training.",
    ),
    (
        "optimizer",
        "torch.optim.LBFGS",
        "torch.optim.LBFGS wants the loss several times a step, and gets it once. Choose another.",
    ),
    (
        "optimizer",
        "torch.optim.SparseAdam",
        "torch.optim.SparseAdam wants sparse gradients, and models have dense ones. Choose another.",
    ),
]


@pytest.mark.parametrize(("group", "target", "message"), CASES, ids=[target for _, target, _ in CASES])
def test_parts_that_do_not_fit_are_told_before_training(
    group: str,
    target: str,
    message: str,
    own: Callable[..., None],
    mcls: Main,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own(group, f"_target_: {target}")
    status = mcls("train", "--config-dir", "conf", f"{group}=mine", "trust=[mynet]")
    assert capsys.readouterr() == ("", f"mcls: {group}: {message}\n")
    assert status == 2
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spiral", "dataset._target_: mynet.spiral failed: KeyError: 'x'. See where: --debug."),
        ("pair", "dataset._target_: mynet.pair must return a Dataset, got tuple."),
        ("missing", "spiral.txt: not there."),
    ],
)
def test_a_data_set_of_the_users_own_that_fails(
    name: str, message: str, own: Callable[..., None], mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    own("dataset", f"_target_: mynet.{name}")
    assert mcls("train", "--config-dir", "conf", "dataset=mine", "trust=[mynet]") == 3
    assert capsys.readouterr() == ("", f"mcls: {message}\n")


def test_an_augmentation_without_draws(
    own: Callable[..., None], mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    own("augment", "_target_: mynet.Flip")
    assert mcls("train", "--config-dir", "conf", "augment=mine", "dataset=mnist", "trust=[mynet]") == 2
    message = "augment: mynet.Flip must be callable and have `draws`, its random numbers for each sample."
    assert capsys.readouterr() == ("", f"mcls: {message}\n")


def test_a_loss_of_two_classes_has_nothing_to_broadcast() -> None:
    with pytest.raises(RequestError, match=r"^loss: torch\.nn\.MSELoss does not take logits of shape \(3, 2\) and "):
        check_loss(nn.MSELoss(), "torch.nn.MSELoss", torch.tensor([0, 1, 1, 0]), 2, CPU)
    check_loss(nn.CrossEntropyLoss(), "ce", torch.tensor([0, 1, 1, 0]), 2, CPU)
    check_loss(nn.MultiMarginLoss(), "margin", torch.tensor([4, 1]), 5, CPU)
    absent = torch.tensor([0.0, 0.0, 0.0, 1.0])  # what loss.class_weights=balanced gives classes without a sample
    check_loss(nn.CrossEntropyLoss(absent), "ce", torch.tensor([3, 3, 3]), 4, CPU)


def test_looking_at_a_model_leaves_it_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 36, 5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_model(model, "mine", (3, 8, 8), 5, CPU)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training and not any(weight.is_inference() for weight in model.state_dict().values())


@pytest.mark.parametrize(
    ("samples", "normalised", "processes", "size"),
    [(1000, True, 1, 128), (108, True, 1, 108), (257, False, 1, 128), (257, True, 1, 129), (7, False, 3, 7)],
)
def test_the_default_batch_goes_with_any_data(samples: int, normalised: bool, processes: int, size: int) -> None:
    model = nn.BatchNorm1d(2) if normalised else nn.Linear(2, 2)
    assert resolve_batch_size("auto", samples, model, processes) == size
    assert resolve_batch_size(size, samples, model, processes) == size
    if size != 128:
        with pytest.raises(RequestError, match=r"^trainer\.batch_size: 128 "):
            resolve_batch_size(128, samples, model, processes)


def test_the_commit_and_whether_its_files_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (environment()["commit"], environment()["dirty"]) == (None, None)
    person = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    (tmp_path / "model.py").write_text("1")
    for words in (
        ("init", "-q"),
        ("add", "."),
        (*person, "commit", "-qm", "first"),
        (*person, "tag", "-am", "v", "v1"),
    ):
        subprocess.run(["git", *words], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "new").touch()
    assert (environment()["commit"], environment()["dirty"]) == (commit, False)
    (tmp_path / "model.py").write_text("2")
    assert (environment()["commit"], environment()["dirty"]) == (commit, True)
