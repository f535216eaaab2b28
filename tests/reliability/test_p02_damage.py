"""P2: a checkpoint that was changed, cut or zeroed is never used; the one before it is, and both are named."""

import io
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import TRAIN, only_run, outcome

from mcls.errors import FolderError
from mcls.runs import checkpoint

Run = Callable[..., Any]
Count = Callable[[str], None]


@pytest.fixture(scope="module")
def finished(server: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("finished")
    assert server.run(*TRAIN, cwd=root, MCLS_DATA=str(digits)).status == 0
    folder = only_run(root)
    assert folder is not None
    return folder


def damages(whole: bytes, flips: int, cuts: int) -> Iterator[tuple[str, bytes]]:
    """Flipped bits, cuts, zeroed tails, and bytes that are too many."""
    draw = random.Random(0)
    for _ in range(flips):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        yield "flip", bytes(damaged)
    for length in [0, 1, 21, 22, 71, 72, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(cuts - 7))]:
        yield "cut", whole[:length]
    for _ in range(50):
        start = draw.randrange(len(whole) - 1)
        yield "zero", whole[:start] + bytes(len(whole) - start)
    yield "more", whole + b"\0"
    yield "more", b"\0" + whole


def accepted(content: bytes) -> bool:
    """Whether bare `torch.load` takes it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        return False
    return True


def test_all_damage_is_noticed(finished: Path, tmp_path: Path, count: Count) -> None:
    whole, path = (finished / "last.pt").read_bytes(), tmp_path / "last.pt"
    seen: dict[str, int] = {}
    naive = 0
    for kind, damaged in damages(whole, 600, 400):
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        with pytest.raises(FolderError, match="damaged"):
            checkpoint.load_checkpoint(path)
        seen[kind] = seen.get(kind, 0) + 1
        naive += kind == "flip" and accepted(damaged)
    assert seen["flip"] == 600 and seen["cut"] == 400 and seen["zero"] >= 45
    assert naive > 300, "the control: bare torch.load takes most flipped bits"
    count(
        f"{seen['flip']} flips, {seen['cut']} cuts and {seen['zero']} zeroed tails noticed, none used; "
        f"bare torch.load took {naive} of the flips"
    )


def stopped(finished: Path, mcls: Run, root: Path) -> Path:
    """A run that was killed in its last epoch, in `root`."""
    child = mcls(*TRAIN, cwd=root, setup=[["die_before", "mcls.training.trainer.Trainer.checkpoint", 20]])
    assert child.status == -9
    folder = only_run(root)
    assert folder is not None and (folder / "previous.pt").exists()
    return folder


def test_the_one_before_is_used_and_both_are_named(finished: Path, mcls: Run, tmp_path: Path, count: Count) -> None:
    original = stopped(finished, mcls, tmp_path)
    draw, done = random.Random(3), 0
    for number in range(4):
        folder = tmp_path / f"copy{number}"
        shutil.copytree(original, folder)
        damaged = bytearray((folder / "last.pt").read_bytes())
        damaged[draw.randrange(len(damaged))] ^= 16
        (folder / "last.pt").write_bytes(damaged if number else damaged[:1000])
        child = mcls("resume", str(folder))
        assert child.status == 0, child.stderr
        assert f"{folder}/last.pt: damaged" in child.stderr and f"Continuing from {folder}/previous.pt" in child.stderr
        assert outcome(folder) == outcome(finished)
        done += 1
    count(f"{done} runs resumed from the checkpoint before a damaged one, equal bit for bit")


def test_a_damaged_one_never_takes_the_good_ones_place(finished: Path, mcls: Run, tmp_path: Path) -> None:
    """Damage, a resume from the one before, and a kill in the middle of its first checkpoint: still resumable."""
    folder = stopped(finished, mcls, tmp_path)
    (folder / "last.pt").write_bytes(b"rubbish")
    child = mcls("resume", str(folder), setup=[["die_before", "mcls.runs.checkpoint.save", 1]])
    assert child.status == -9
    child = mcls("resume", str(folder))
    assert child.status == 0, child.stderr
    assert outcome(folder) == outcome(finished)


@pytest.mark.parametrize("name", ["best.pt", "metrics.jsonl"])
def test_a_resume_mends_what_can_be_made_again(name: str, finished: Path, mcls: Run, tmp_path: Path) -> None:
    folder = stopped(finished, mcls, tmp_path)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole + b"{torn" if name == "metrics.jsonl" else whole[: len(whole) // 2])
    child = mcls("resume", str(folder))
    assert child.status == 0 and "Traceback" not in child.stderr, child.stderr
    assert outcome(folder) == outcome(finished)


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "result.json"])
def test_what_can_not_is_named(name: str, finished: Path, mcls: Run, tmp_path: Path) -> None:
    folder = stopped(finished, mcls, tmp_path)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    child = mcls("resume", str(folder))
    assert child.status == 5
    assert child.stderr.startswith(f"mcls: {folder}/{name}: ") and child.stderr.count("\n") == 1


def test_none_left_is_said(finished: Path, mcls: Run, tmp_path: Path) -> None:
    folder = stopped(finished, mcls, tmp_path)
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    child = mcls("resume", str(folder))
    assert child.status == 5
    assert child.stderr.splitlines()[-1].startswith(f"mcls: {folder}/previous.pt: damaged")
