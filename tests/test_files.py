"""A file is put in its place whole or not at all, and a machine in the way is a sentence."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from mcls.errors import MachineError, MclsError, RequestError
from mcls.system.files import publish, to_json


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"one", b"", bytes(100_000)):
        publish(path, content)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["a.txt"]


BREAKS = [("fsync", os, "fsync"), ("rename", Path, "replace"), ("open", Path, "open")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize(("step", "place", "name"), BREAKS, ids=[step for step, _, _ in BREAKS])
def test_a_failed_write_leaves_the_old_file_and_no_rest(
    code: int, step: str, place: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    publish(path, b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(place, name, refuse)
        with pytest.raises(MachineError) as caught:
            publish(path, bytes(2_000_000))
    text = str(caught.value)
    if code in (errno.ENOSPC, errno.EDQUOT):
        assert text.startswith(f"{path}: {os.strerror(code)}, needs 2.0 MB, ")
        assert text.endswith(" MB free. Make room; what was saved before is intact.")
    else:
        assert text == (
            f"{path}: cannot be written ({os.strerror(code)}). Choose another folder or fix its permissions."
        )
    assert caught.value.status == 4
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.txt"]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    publish(path, b"old")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        publish(path, b"new")
    assert path.read_bytes() == b"old"


def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    publish(tmp_path / "a", b"x")
    assert calls == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("no/such/folder/a.txt", MachineError, "cannot be written"),
        ("file/a.txt", RequestError, "can't be a file"),
        ("x" * 300, RequestError, "can't be a file"),
    ],
)
def test_places_that_are_none(name: str, kind: type[MclsError], told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(kind, match=told):
        publish(tmp_path / name, b"x")
    assert names(tmp_path) == ["file"]


def test_a_file_system_that_refuses_the_clean_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only file system unlink fails as open does, with EROFS, whether the file is there or not."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(MachineError, match=r"cannot be written \(Read-only file system\)"):
        publish(tmp_path / "a.txt", b"x")


def test_json_is_strict() -> None:
    value = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, 2)], "c": {"d": None, "e": True}, "f": "ü"}

    def forbid(word: str) -> None:
        pytest.fail(word)

    expected = {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": None, "e": True}, "f": "ü"}
    assert json.loads(to_json(value), parse_constant=forbid) == expected
    assert "\n" not in to_json(value, indent=None)
    confusion = {"confusion": [[1, 2], [3, math.nan]], "name": "[\n1,\n2]", "empty": [], "words": ["a"]}
    assert to_json(confusion).splitlines()[1:5] == [' "confusion": [', "  [1, 2],", "  [3, null]", " ],"]
    assert json.loads(to_json(confusion)) == {**confusion, "confusion": [[1, 2], [3, None]]}
    assert math.isnan(value["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        to_json({"a": object()})
