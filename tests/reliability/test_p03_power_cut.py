"""P3: after a power cut every published file is the old one or the new one, whole.

A power cut can't be had; its results can be worked out. The calls of a publish are recorded. Then, for a cut after each
of them, every state is made that a disk may be in: data that were not synced are there, in part or not at all; renames
that were not synced have happened or not, whatever their order.
"""

import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from steps import STEPS, TRAIN, only_run

from mcls.errors import MachineError
from mcls.system import files

Count = Callable[[str], None]
Trace = list[tuple[Any, ...]]


class Recorded(io.BytesIO):
    """A file whose content goes into the trace."""

    def __init__(self, trace: Trace, path: Path) -> None:
        super().__init__()
        self.trace, self.path = trace, path
        self.descriptor = os.open("/dev/null", os.O_WRONLY)
        trace.append(("create", str(path), self.descriptor))

    def write(self, content: Any) -> int:
        """Note it."""
        self.trace.append(("write", str(self.path), bytes(content)))
        return len(content)

    def fileno(self) -> int:
        """Something to sync."""
        return self.descriptor


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    """The calls that `files.publish` makes; the disk stays as it is."""
    calls: Trace = []
    names: dict[int, str] = {}

    def loaded(path: Path, *_: Any, **__: Any) -> Recorded:
        file = Recorded(calls, path)
        names[file.descriptor] = str(path)
        return file

    monkeypatch.setattr(Path, "open", loaded)
    monkeypatch.setattr(Path, "replace", lambda one, two: calls.append(("rename", str(one), str(two))))
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(("sync", names.get(number, "the folder"))))
    return calls


def states(trace: Trace, old: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Every state of the disk after a power cut somewhere in `trace`; `old` is what was there before."""
    for end in range(len(trace) + 1):
        yield from after(trace[:end], old)


def after(trace: Trace, old: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Every state of the disk when the power goes after `trace`."""
    data: dict[str, list[bytes]] = {}  # what may be in a file under its first name
    settled, waiting = dict.fromkeys(old, ""), []
    for call in trace:
        if call[0] == "create":
            data[call[1]] = [b""]
        elif call[0] == "write":
            data[call[1]] = [b"", call[2][: len(call[2]) // 2], bytes(len(call[2])), call[2]]
        elif call[0] == "rename":
            waiting.append(call[1:])
        elif call[1] == "the folder":
            settled.update({new: first for first, new in waiting})
            waiting = []
        else:
            data[call[1]] = data[call[1]][-1:]
    for number in range(len(waiting) + 1):
        for chosen in itertools.combinations(waiting, number):
            names = {**settled, **{new: first for first, new in chosen}}
            for contents in itertools.product(
                *(data[first] if first else [old[name]] for name, first in names.items())
            ):
                yield dict(zip(names, contents, strict=True))


def test_old_or_new_and_never_else(trace: Trace, count: Count) -> None:
    files.publish(Path("/run/last.pt"), b"new content")
    seen = list(states(trace, {"/run/last.pt": b"old content"}))
    assert {state["/run/last.pt"] for state in seen} == {b"old content", b"new content"}
    assert [state["/run/last.pt"] for state in after(trace, {"/run/last.pt": b"old content"})] == [b"new content"]
    count(f"{len(seen)} states of a publish, each old or new; new for certain once it returns")


@pytest.mark.parametrize("which", ["the file", "the folder"])
def test_control_without_a_sync(which: str, trace: Trace) -> None:
    """Leave one sync out and a state must be wrong: torn without the file's, forgotten without the folder's."""
    files.publish(Path("/run/last.pt"), b"new content")
    without = [
        call for call in trace if not (call[0] == "sync" and (call[1] == "the folder") == (which == "the folder"))
    ]
    assert len(without) == len(trace) - 1
    old = {"/run/last.pt": b"old content"}
    if which == "the file":
        assert b"" in {state["/run/last.pt"] for state in states(without, old)}
    else:
        assert {state["/run/last.pt"] for state in after(without, old)} == {b"old content", b"new content"}


def test_last_and_the_one_before_it(trace: Trace, count: Count) -> None:
    """The two steps of a checkpoint, last to previous and new to last: one of the two is whole, and not the older."""
    last, previous = Path("/run/last.pt"), Path("/run/previous.pt")
    last.replace(previous)
    files.publish(last, b"new")
    trace[0] = ("rename", "first", str(previous))
    seen = 0
    for end in range(len(trace) + 1):
        for state in after_moving(trace[:end]):
            newest = state.get(str(last)) or state.get(str(previous))
            assert newest in (b"old", b"new"), state
            seen += 1
    count(f"{seen} states of a checkpoint, each resumable")


def after_moving(trace: Trace) -> Iterator[dict[str, bytes]]:
    """States in which the first rename moves what was last; no file is lost by a rename that has not happened."""
    old = {"/run/last.pt": b"old", "/run/previous.pt": b"older"}
    if not trace:
        yield old
        return
    for state in after(trace[1:], {"/run/last.pt": b"old"}):
        yield {**state, "/run/previous.pt": b"older"}  # the move has not reached the disk
        moved = {**state, "/run/previous.pt": b"old"}
        if moved["/run/last.pt"] == b"old":
            del moved["/run/last.pt"]
        yield moved


def test_a_run_writes_by_this_way_alone(mcls: Callable[..., Any], tmp_path: Path) -> None:
    """Every file of a run folder is published; the log, the curves, the ledger of test and the lock only ever grow."""
    log = tmp_path / "writes"
    child = mcls(*TRAIN, "trainer.figures=true", setup=[["note_writes", str(log)]])
    assert child.status == 0, child.stderr
    folder = only_run(tmp_path)
    assert folder is not None
    mine = [Path(line) for line in log.read_text().splitlines() if f"/{folder.name}/" in line]
    others = {path.name for path in mine if not path.name.endswith(".part")}
    assert len([path for path in mine if path.name.startswith(".last.pt.")]) >= STEPS
    assert {name for name in others if "tfevents" not in name} <= {
        "train.log",
        "metrics.jsonl",
        "lock",
        "test_openings.jsonl",
    }


def test_a_failed_sync_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MachineError):
        files.publish(tmp_path / "a", b"x")
