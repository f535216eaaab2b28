"""Parts that do not go together, seen when they are built: one line, and no run folder."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mcls.data.types import Dataset, Split
from mcls.errors import DataError, RequestError
from mcls.runs import checkpoint
from mcls.system.device import environment
from mcls.training.checks import check_loss, check_model
from mcls.training.setup import resolve_batch_size

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


class Sum(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__(reduction="sum")


class Few(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__(reduction="none")

    def forward(self, logits, targets):
        return super().forward(logits, targets).mean()


class Focal(nn.Module):
    def __init__(self, counts, reduction="mean", gamma=2.0):
        super().__init__()
        self.reduction, self.gamma = reduction, gamma
        self.register_buffer("weight", 1 / (1 + torch.arange(len(counts))))

    def forward(self, logits, targets):
        losses = nn.functional.cross_entropy(logits, targets, self.weight, reduction="none")
        focal = (1 - (-losses).exp()) ** self.gamma * losses
        return focal if self.reduction == "none" else getattr(focal, self.reduction)()


def focal(logits, targets, gamma):
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return ((1 - (-losses).exp()) ** gamma * losses).mean()


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
    ("loss", "torch.nn.NLLLoss", "torch.nn.NLLLoss expects log-probabilities, but models return logits. Set loss=nll."),
    (
        "loss",
        "torch.nn.MSELoss",
        "torch.nn.MSELoss does not take logits of shape (2, 4) and class numbers: RuntimeError: "
        "The size of tensor a (4) must match the size of tensor b (2) at non-singleton dimension 1.",
    ),
    ("loss", "mynet.Rows", "mynet.Rows must return one number with a gradient, got shape (2,)."),
    (
        "loss",
        "mynet.Few",
        "mynet.Few does not take logits of shape (2, 4) and class numbers: TypeError: reduction: none is for one value "
        "per sample, got shape ().",
    ),
    ("loss", "mynet.Constant", "mynet.Constant must return one number with a gradient, got tensor(1.)."),
    (
        "loss",
        "mynet.Sum",
        "mynet.Sum must return the mean over the samples of a batch: got 12.18 for a batch whose parts have 6.087 and "
        "6.098. Set reduction: mean, or none for one value per sample.",
    ),
    ("loss", "mynet.Word", "mynet.Word must return one number with a gradient, got small."),
    ("model", "mynet.Asserts", "mynet.Asserts does not accept samples of shape 2: AssertionError."),
    (
        "model",
        "mynet.Looks",
        "mynet.Looks does not accept samples of shape 2: AttributeError: 'Looks' object has no attribute 'nothing'.",
    ),
    (
        "model",
        "mynet.Unwritten",
        "mynet.Unwritten does not accept samples of shape 2: NotImplementedError: "
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
        "torch.optim.LBFGS evaluates the loss several times per step, which is not supported. Choose another.",
    ),
    (
        "optimizer",
        "torch.optim.SparseAdam",
        "torch.optim.SparseAdam requires sparse gradients, but models have dense ones. Choose another.",
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


@pytest.mark.parametrize("keys", [["optimizer.lr=1e300"], ["optimizer.lr=1e38", "optimizer.head_lr_factor=1e262"]])
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_a_rate_beyond_single_precision_is_refused(
    keys: list[str], optimizer: str, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", f"optimizer={optimizer}", *keys) == 2
    told = "optimizer.lr: 1e+300 is more than single precision holds, 3.4e38. Lower it."
    assert capsys.readouterr().err == f"mcls: {told}\n" and not Path("outputs").exists()


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


class SmoothedFocal(nn.Module):
    """Weighted, and divided by the number of samples or by the weights of their classes."""

    weight: torch.Tensor

    def __init__(self, weights: list[float], by_weight: bool) -> None:
        super().__init__()
        self.by_weight = by_weight
        self.register_buffer("weight", torch.tensor(weights))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(logits, targets, self.weight, reduction="none")
        return losses.sum() / (self.weight[targets].sum() if self.by_weight else len(targets))


TARGETS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 7, 7])


@pytest.mark.parametrize("weights", [[1.0] * 7 + [5.0], [9.0, *[1.0] * 7], [0.0, 1, 2, 3, 4, 5, 6, 7], [2.0] * 8])
def test_a_mean_is_known_with_its_weights(weights: list[float]) -> None:
    """Of two parts of a batch the law that was found makes the whole, whatever the classes in them."""
    for by_weight in (False, True):
        loss = SmoothedFocal(weights, by_weight)
        kept = check_loss(loss, "mine", TARGETS, 8, CPU)
        assert by_weight or kept is None or len(set(weights)) == 1
        mass = torch.ones(8) if kept is None else kept
        logits = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
        parts = [(loss(logits[part], TARGETS[part]), mass[TARGETS[part]].sum()) for part in (slice(3), slice(3, None))]
        joined = sum(value * share for value, share in parts) / sum(share for _, share in parts)
        torch.testing.assert_close(torch.as_tensor(joined), loss(logits, TARGETS))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(torch.arange(8.0), reduction="sum"),
        nn.MultiMarginLoss(reduction="sum"),
        lambda logits, targets: nn.functional.cross_entropy(logits - logits.mean(dim=0), targets),
        lambda logits, targets: nn.functional.cross_entropy(logits, targets) * len(targets) ** 0.5,
    ],
)
def test_what_is_no_mean_over_samples_is_refused(loss: Any) -> None:
    with pytest.raises(RequestError, match=r"^loss: mine must return the mean over the samples of a batch.* got "):
        check_loss(loss, "mine", TARGETS, 8, CPU)


def trained(mcls: Main, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What a run trained to, its last weights."""
    run = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
    line = ("trainer.epochs=2", "trainer.batch_size=31", "trainer.figures=false", "optimizer.lr=0.01", "device=cpu")
    assert mcls("train", *line, *arguments, f"hydra.run.dir={run}") == 0
    found: dict[str, Any] = checkpoint.load_checkpoint(run / "last.pt")["model"]
    return found


def test_a_plain_function_is_a_loss(own: Callable[..., None], mcls: Main, tmp_path: Path) -> None:
    expected = trained(mcls, tmp_path)
    own("loss", "_target_: torch.nn.functional.cross_entropy")
    found = trained(mcls, tmp_path, "--config-dir", "conf", "loss=mine")
    (tmp_path / "conf" / "loss" / "own.yaml").write_text("_target_: mynet.focal\ngamma: 0.0\n")
    also = trained(mcls, tmp_path, "--config-dir", "conf", "loss=own", "trust=[mynet]")
    for name, weights in expected.items():
        assert torch.equal(found[name], weights)
        torch.testing.assert_close(also[name], weights, rtol=1e-4, atol=1e-6)


def test_every_command_takes_trust_the_same_way(own: Callable[..., None], mcls: Main, tmp_path: Path) -> None:
    own("loss", "_target_: mynet.focal", "gamma: 0.0")
    (tmp_path / "t.csv").write_text("x,y\n" + "1,a\n2,b\n" * 20)
    (tmp_path / "new.csv").write_text("x\n1\n")
    table = ("dataset=csv", "dataset.path=t.csv", "dataset.target=y", "trainer.epochs=1", "trainer.figures=false")
    assert mcls("train", "--config-dir", "conf", "loss=mine", *table, "hydra.run.dir=run", "trust=[mynet]") == 0
    for words in (["predict", "run", "new.csv"], ["evaluate", "run"], ["export", "run", "--format", "safetensors"]):
        assert mcls(*words) == (5 if words[0] == "evaluate" else 0)  # the others need no loss
        assert mcls(*words, "trust=[mynet]") == 0
    assert mcls("predict", "run", "new.csv", "--trust", "mynet") == 0
    assert mcls("resume", "run", "trust=[mynet]", "trainer.epochs=2") == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_two_processes_share_a_weighted_loss(
    reduction: str, own: Callable[..., None], mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mean is divided by the samples, its values by their weights."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own("loss", "_target_: mynet.Focal", f"reduction: {reduction}")
    line = ("--config-dir", "conf", "loss=mine", "trust=[mynet]")
    one, two = (trained(mcls, tmp_path, *line, f"trainer.devices={count}") for count in (1, 2))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_sum_is_refused_whatever_the_processes(
    devices: int, own: Callable[..., None], mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    own("loss", "_target_: mynet.Focal", "reduction: sum")
    line = ("--config-dir", "conf", "loss=mine", "trust=[mynet]", "device=cpu", f"trainer.devices={devices}")
    assert mcls("train", *line) == 2
    out, err = capsys.readouterr()
    told = "mcls: loss: mynet.Focal must return the mean over the samples of a batch, weighted by its `weight` or not: "
    assert not out and err.startswith(told) and err.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("foreach", ""),
        ("fused", ""),
        ("capturable", "optimizer.capturable: true is for GPUs, but this run is on the CPU. Set it to false."),
        (
            "differentiable",
            "optimizer.differentiable: true is for differentiating through the optimizer. Set it to false.",
        ),
    ],
)
def test_optimizers_take_the_keys_of_their_own(
    key: str, message: str, own: Callable[..., None], mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    own("optimizer", "_target_: torch.optim.Adam", "lr: 0.01", f"{key}: true")
    status = mcls("train", "--config-dir", "conf", "optimizer=mine", "trainer.epochs=1", "trainer.figures=false")
    err = capsys.readouterr().err
    assert status == (2 if message else 0), err
    assert not message or err == f"mcls: {message}\n"


def test_keys_of_an_optimizer_that_exclude_each_other(
    own: Callable[..., None], mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    own("optimizer", "_target_: torch.optim.Adam", "foreach: true", "fused: true")
    assert mcls("train", "--config-dir", "conf", "optimizer=mine") == 2
    assert capsys.readouterr().err.startswith("mcls: optimizer: torch.optim.Adam refuses its arguments: ")


POINTS, LABELS = torch.rand(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
KINDS = "float32 (N, ...) or uint8 (N, C, H, W)"
IMAGES = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((POINTS.double(), LABELS), f"inputs must be {KINDS}, got float64 of shape (6, 2)"),
        ((POINTS.numpy(), LABELS), "inputs must be a tensor, got ndarray"),
        ((POINTS[:, 0], LABELS), f"inputs must be {KINDS}, got float32 of shape (6,)"),
        ((POINTS, LABELS.int()), "targets must be int64 of shape (N,), got int32 of shape (6,)"),
        ((POINTS, LABELS[:, None]), "targets must be int64 of shape (N,), got int64 of shape (6, 1)"),
        ((POINTS, LABELS.tolist()), "targets must be int64 of shape (N,), got list"),
        ((POINTS, LABELS + 1), "targets must be in 0..1, got 1..2"),
        ((POINTS, LABELS - 1), "targets must be in 0..1, got -1..0"),
        ((POINTS, LABELS[:5]), "has 6 samples and 5 targets"),
        ((POINTS[:0], LABELS[:0]), "has no sample"),
        ((POINTS.log() - torch.inf, LABELS), "inputs must be finite, sample 0 is not"),
        ((IMAGES, LABELS), "has uint8 images of 3 channels: mean and std must have as many numbers"),
    ],
)
def test_a_data_set_is_checked_when_it_is_made(split: Any, message: str) -> None:
    good = Split(POINTS, LABELS)
    with pytest.raises(DataError, match=f"^{re.escape(f'dataset: train {message}.')}$"):
        Dataset(("a", "b"), Split(*split), None, lambda: good)


def test_the_other_splits_go_with_train() -> None:
    good, other = Split(POINTS, LABELS), Split(torch.rand(6, 3), LABELS)
    with pytest.raises(DataError, match=r"^dataset: val has samples of shape \(3,\), train of \(2,\)\.$"):
        Dataset(("a", "b"), good, other, lambda: good)
    with pytest.raises(DataError, match=r"^dataset: test has samples of shape \(3,\), train of \(2,\)\.$"):
        Dataset(("a", "b"), good, None, lambda: other).open_test()
    with pytest.raises(DataError, match=r"^dataset: test must be a Split, got tuple\.$"):
        Dataset(("a", "b"), good, None, lambda: (POINTS, LABELS)).open_test()  # type: ignore[arg-type,return-value]
    with pytest.raises(DataError, match=r"^dataset: requires two or more classes"):
        Dataset(("a",), good, None, lambda: good)
    Dataset(("a", "b"), Split(IMAGES, LABELS), None, lambda: good, (0.5,) * 3, (0.5,) * 3)
