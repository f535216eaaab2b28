"""P9: a disk that is full or refuses, at any point, ends with exit 4 and keeps what was saved; logs stop nothing."""

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steps import TRAIN, only_run, outcome, result

from mcls.errors import FolderError
from mcls.runs import checkpoint

pytestmark = pytest.mark.full
Run = Callable[..., Any]
Size = Callable[[int, int], int]
Count = Callable[[str], None]
CODES = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO")
CALLS = ("pathlib.Path.open", "os.replace", "os.fsync", "os.mkdir", "os.open")
WRITER = "tensorboard.summary.writer.record_writer.RecordWriter.write"


@pytest.fixture(scope="module")
def whole(server: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    assert server.run(*TRAIN, cwd=root, MCLS_DATA=str(digits)).status == 0
    folder = only_run(root)
    assert folder is not None
    return folder


def same_training(one: Path, other: Path) -> bool:
    """Whether two runs came to the same; curves may lack what could not be written."""
    return outcome(one, curves=False) == outcome(other, curves=False)


def finish(root: Path, whole: Path, mcls: Run) -> None:
    """With room again, the run goes on, or begins, and comes to the same."""
    begun = [path.parent for path in root.glob("outputs/*/*/run.json") if (path.parent / "config.yaml").exists()]
    child = mcls("resume", str(begun[0]), cwd=root) if begun else mcls(*TRAIN, cwd=root)
    assert child.status == 0, child.stderr
    done = [path.parent for path in root.glob("outputs/*/*/last.pt")]
    assert same_training(done[-1], whole)


def check_refusal(child: Any, codes: tuple[int, ...] = (0, 4), where: str = "") -> None:
    """A line, and no more than a line."""
    assert child.status in codes, where + child.stderr
    assert "Traceback" not in child.stderr and "bug in mcls" not in child.stderr, where + child.stderr
    if child.status == 4:
        told = child.stderr.splitlines()[-1]
        assert told.startswith("mcls: ")
        if "needs" in told:
            assert " MB free" in told or "free space unknown" in told


def test_files_may_not_grow(whole: Path, mcls: Run, tmp_path: Path, size: Size, count: Count) -> None:
    number, full = size(8, 50), 0
    largest = (whole / "last.pt").stat().st_size
    for step in range(number):
        root = tmp_path / str(step)
        root.mkdir()
        child = mcls(*TRAIN, cwd=root, setup=[["limit_file_size", 3000 + step * largest * 11 // (10 * number)]])
        check_refusal(child)
        full += child.status == 4
        for path in root.glob("outputs/*/*/*.pt"):
            assert checkpoint.load_checkpoint(path)
        assert not list(root.glob("outputs/*/*/.*.part"))
        finish(root, whole, mcls)
    assert full >= number // 2
    count(f"{number} limits of a file's size, {full} of them exceeded")


def test_full_in_the_middle_keeps_what_was_saved(whole: Path, mcls: Run, tmp_path: Path, count: Count) -> None:
    ask = [["signal_before", "mcls.training.optim.LRScheduler.set", 12, signal.SIGTERM]]
    assert mcls(*TRAIN, setup=ask).status == 143
    original = only_run(tmp_path)
    assert original is not None
    state = checkpoint.load_checkpoint(original / "last.pt")["progress"]["step"]
    for number, name in enumerate(("last.pt", "best.pt")):
        root = tmp_path / name / "outputs" / "a"
        root.mkdir(parents=True)
        folder = Path(shutil.copytree(original, root / "run"))
        limit = (folder / "last.pt").stat().st_size - 1000 if number == 0 else 20_000
        child = mcls("resume", str(folder), setup=[["limit_file_size", limit]])
        check_refusal(child, (4,))
        assert re.search(r"File too large, needs 0\.\d MB, [\d.]+ MB free\.", child.stderr)
        kept = [path for path in (folder / "last.pt", folder / "previous.pt") if path.exists()]
        assert max(checkpoint.load_checkpoint(path)["progress"]["step"] for path in kept) == state
        assert mcls("resume", str(folder)).status == 0
        assert same_training(folder, whole)
    count("2 disks that fill up in a resumed run: the step before is kept")


@pytest.mark.parametrize("code", CODES)
def test_every_call_that_may_be_refused(
    code: str, whole: Path, mcls: Run, tmp_path: Path, size: Size, count: Count
) -> None:
    tried = 0
    for name in CALLS:
        for first in [1, 2, 3, 5, 8, 13, 21, 34][: size(2, 8)]:
            root = tmp_path / f"{name}-{first}"
            root.mkdir()
            child = mcls(*TRAIN, cwd=root, setup=[["refuse_in_run", name, first, code]])
            check_refusal(child, (0, 4), f"{name} {first}")
            finish(root, whole, mcls)
            tried += 1
    count(f"{tried} refusals with {code}")


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("first", [1, 2, 5, 30])
def test_curves_that_can_not_be_written_stop_nothing(
    code: str, first: int, whole: Path, mcls: Run, tmp_path: Path, count: Count
) -> None:
    child = mcls(*TRAIN, setup=[["refuse_at_call", WRITER, first, code, 1_000_000]])
    assert child.status == 0, child.stderr
    assert child.stderr.count("curves are no longer recorded") == 1
    assert "Traceback" not in child.stderr and "Logging error" not in child.stderr
    folder = only_run(tmp_path)
    assert folder is not None and same_training(folder, whole)
    count(f"curves refused from event {first} on with {code}: trained to the end")


def test_logs_on_a_full_device(whole: Path, mcls: Run, tmp_path: Path) -> None:
    """Everything that only tells is larger than it may be; checkpoints are not."""
    child = mcls(*TRAIN, setup=[["full_logs"]])
    assert child.status == 0, child.stderr
    assert child.stderr.count("curves are no longer recorded") == 1
    assert "Traceback" not in child.stderr and "Logging error" not in child.stderr
    folder = only_run(tmp_path)
    assert folder is not None and same_training(folder, whole)
    assert result(folder)["status"] == "finished"


def test_control_the_usual_way(mcls: Run, tmp_path: Path) -> None:
    """`torch.save` to its place on a full disk: the run ends with torch's own words and leaves a part of a file."""
    child = mcls(*TRAIN, setup=[["write_in_place"], ["limit_file_size", 30_000]])
    assert child.status == 1 and "bug in mcls" in child.stderr
    folder = only_run(tmp_path)
    assert folder is not None
    with pytest.raises(FolderError):
        checkpoint.load_checkpoint(folder / "last.pt")
