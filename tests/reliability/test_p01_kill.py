"""P1: SIGKILL at any moment loses at most the work since the last checkpoint, and the resumed run is the whole one."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kills import command, kill_until_done
from steps import TRAIN, curves, only_run, outcome

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def whole(server: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any, float]:
    """The uninterrupted run: its outcome, its curves and how long it took."""
    root = tmp_path_factory.mktemp("whole")
    child = server.run(*TRAIN, cwd=root, MCLS_DATA=str(digits))
    assert child.status == 0, child.stderr
    folder = only_run(root)
    assert folder is not None
    return outcome(folder), curves(folder), child.seconds


def test_random_kills(
    start: Run, whole: Any, tmp_path: Path, size: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    draw, kills, runs = random.Random(0), 0, 0
    while kills < size(40, 200):
        root = tmp_path / str(runs)
        root.mkdir()
        kills += kill_until_done(start, root, draw, whole[2] / 4, {})
        runs += 1
        folder = only_run(root)
        assert folder is not None
        assert outcome(folder) == whole[0]
        assert curves(folder) == whole[1]
        assert not list(folder.glob(".*")), "something was left behind"
    count(f"{kills} random kills, {runs} of {runs} runs equal bit for bit")


def test_control_writing_in_place_loses_runs(start: Run, whole: Any, tmp_path: Path) -> None:
    """The same kills, checkpoints by `torch.save` to their place: a run must be lost."""
    draw = random.Random(1)
    for number in range(30):
        root = tmp_path / str(number)
        root.mkdir()
        try:
            kill_until_done(start, root, draw, whole[2] / 4, {"setup": [["write_in_place"]]})
        except AssertionError as error:
            assert "last.pt" in str(error)
            return
    pytest.fail("the naive way survived")


def test_every_byte_offset(
    start: Run, tmp_path: Path, size: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    number, length = size(100, 1000), 30_000
    path, seen = tmp_path / "file", {"old": 0, "new": 0}
    for step in range(number + 1):
        path.write_bytes(b"old")
        child = start("call", "plain_publish", str(path), str(length), str(step * length // number), "no", cwd=tmp_path)
        assert child.wait() in (0, 137)
        content = path.read_bytes()
        assert content in (b"old", b"new" * (length // 3))
        seen["old" if content == b"old" else "new"] += 1
    assert seen["new"] >= 1 and seen["old"] >= number - 1
    count(f"{number + 1} byte offsets: {seen['old']} old, {seen['new']} new, 0 torn")


def test_control_byte_offsets(start: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert start("call", "plain_publish", str(path), "3000", "1000", "yes", cwd=tmp_path).wait() == 137
    assert path.read_bytes() not in (b"old", b"new" * 1000)


def test_every_call_that_writes(
    mcls: Run, whole: Any, tmp_path: Path, size: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    """Killed before or after the n-th call that opens, syncs or renames; then resumed, or begun again."""
    draw, done = random.Random(2), 0
    places = draw.sample([(number, after) for number in range(1, 140) for after in (False, True)], size(10, 100))
    for number, after in places:
        root = tmp_path / f"{number}-{after}"
        root.mkdir()
        child = mcls(*TRAIN, cwd=root, setup=[["die_at_call", number, after]])
        assert child.status == -9, child.stderr
        again = mcls(*command(root), cwd=root)
        assert again.status == 0, again.stderr
        finished = [folder for folder in root.glob("outputs/*/*") if (folder / "result.json").exists()]
        assert outcome(finished[-1]) == whole[0]
        done += 1
    count(f"{done} kills at a call that writes")


def test_a_dead_owner_leaves_no_process(start: Run, tmp_path: Path) -> None:
    child = start(*TRAIN, cwd=tmp_path, setup=[["sleep_before", "mcls.training.trainer.Trainer.flush", 1, 30]])
    time.sleep(0.5)
    child.kill()
    assert child.wait() == -9
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
