"""A checkpoint: what goes in comes out, torch alone can read it, damage is noticed, code is not run."""

import io
import os
import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mcls.errors import FolderError
from mcls.runs import checkpoint
from mcls.runs.checkpoint import load_checkpoint, save, seal, weights_digest


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {"epoch": 3, "best": [0.5, -1.25], "name": "ü", "none": None, "yes": True, "big": 2**60},
        "rng": {"cpu": torch.get_rng_state()},
        "kinds": [
            torch.arange(3),
            torch.tensor(1.5, dtype=torch.bfloat16),
            torch.tensor([True, False]),
            torch.zeros(0, 3, dtype=torch.uint8),
        ],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pt"


def test_what_goes_in_comes_out(path: Path) -> None:
    whole = state()
    save(path, whole)
    assert same(load_checkpoint(path), whole)
    save(path, {"other": 1})
    assert load_checkpoint(path) == {"other": 1}
    assert list(path.parent.iterdir()) == [path]


def test_an_optimizer_goes_on_from_it(path: Path) -> None:
    def train(optimizer: torch.optim.Optimizer, weight: nn.Parameter, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    weights = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizers = [torch.optim.Adam([weight], lr=0.1) for weight in weights]
    train(optimizers[0], weights[0], 6)
    half = nn.Parameter(torch.ones(4))
    first = torch.optim.Adam([half], lr=0.1)
    train(first, half, 3)
    save(path, {"weight": half.detach(), "optimizer": first.state_dict()})
    found = load_checkpoint(path)
    weights[1].data.copy_(found["weight"])
    optimizers[1].load_state_dict(found["optimizer"])
    train(optimizers[1], weights[1], 3)
    assert torch.equal(weights[0], weights[1])


def test_torch_alone_reads_it(path: Path) -> None:
    save(path, {"model": {"weight": torch.arange(3.0)}, "epoch": 2})
    code = (
        "import sys, torch; s = torch.load(sys.argv[1], weights_only=True); "
        "assert s['model']['weight'].tolist() == [0, 1, 2] and s['epoch'] == 2; "
        "assert not any(name.startswith('mcls') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", code, str(path)], check=True)


def test_every_flipped_bit_is_noticed_and_bare_torch_misses_most(path: Path) -> None:
    save(path, {"weight": torch.randn(2000), "epoch": 3})
    whole = path.read_bytes()
    draw = random.Random(0)
    missed = accepted = 0
    for _ in range(300):
        place = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            missed += 1
        except FolderError as error:
            assert str(error).startswith(f"{path}: ")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.load(io.BytesIO(damaged), weights_only=True)
            accepted += 1
        except Exception:
            continue
    assert missed == 0
    assert accepted > 150


def test_every_cut_is_noticed(path: Path) -> None:
    save(path, {"weight": torch.randn(500)})
    whole = path.read_bytes()
    draw = random.Random(1)
    lengths = [0, 1, 70, 71, 72, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(94))]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(FolderError, match="damaged, its contents do not match its checksum"):
            load_checkpoint(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(FolderError):
        load_checkpoint(path)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    buffer = io.BytesIO()
    torch.save({"model": Evil(target)}, buffer)
    path.write_bytes(seal(buffer.getvalue()))
    with pytest.raises(FolderError, match="refused, it holds more than tensors and plain values"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(FolderError, match="damaged"):
        load_checkpoint(path)
    assert not target.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)  # the control: it would have
    assert target.exists()


def test_what_is_no_checkpoint(path: Path) -> None:
    with pytest.raises(FolderError, match=rf"^{path}: cannot be read \(No such file or directory\)\.$"):
        load_checkpoint(path)
    with pytest.raises(FolderError, match="cannot be read"):
        load_checkpoint(path.parent)
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    path.write_bytes(seal(buffer.getvalue()))
    with pytest.raises(FolderError, match="refused, not a checkpoint of mcls"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="not a zip archive"):
        checkpoint.seal(b"x" * 100)


def test_the_digest_of_weights_says_whether_they_are_equal() -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1), "c": torch.zeros(2, dtype=torch.bfloat16)}
    digest = weights_digest(weights)
    assert len(digest) == 64
    assert weights_digest(dict(reversed(weights.items()))) == digest
    assert weights_digest({**weights, "a": weights["a"].t().contiguous().t()}) == digest
    changed = [
        {**weights, "a": weights["a"].view(3, 2)},
        {**weights, "a": weights["a"].double()},
        {**weights, "a": weights["a"].nextafter(torch.tensor(9.0))},
        {**weights, "c": -weights["c"]},
        {"a": weights["a"], "b": weights["b"], "d": weights["c"]},
        {"a": weights["a"]},
    ]
    assert digest not in {weights_digest(other) for other in changed}
