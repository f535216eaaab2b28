"""Atomic writes: a file that mcls publishes is complete or not there at all, whatever happens meanwhile."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mcls.errors import MachineError, MclsError, RequestError
from mcls.system.signals import UNFINISHED

NUMBERS = re.compile(r'\[\n[^][{}"]*\]')  # a list without texts, lists and objects
IMPOSSIBLE = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
# flags of os.open, those that the system has
PLAIN = sum(getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "CLOEXEC", "BINARY"))
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def publish(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a crash or a power cut leaves the old file or the new one, never a part.

    Raises MachineError when the file system refuses; the old file is then still there.
    """
    with replacing(path, "xb", needed=len(content)) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path, mode: str, encoding: str | None = None, needed: int = 0) -> Iterator[IO[Any]]:
    """Context of a new file that is put at `path` at its end, as by `publish`; `needed` bytes, if known."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    UNFINISHED.add(str(temporary))
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open(mode, encoding=encoding) as file:  # x: never through a link that somebody left there
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refused(path, error, needed) from error
        raise
    finally:
        UNFINISHED.discard(str(temporary))


def make_folder(path: Path) -> None:
    """Create folder `path` and its parents, if they are missing.

    Raises RequestError if the name can't be that of a folder, MachineError if the file system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error, 0, "folder") from error


def refused(path: Path, error: OSError, needed: int, what: str = "file") -> MclsError:
    """The error for a failed write at `path`: a RequestError if `path` can't be that of a `what`."""
    if error.errno in IMPOSSIBLE:
        return RequestError(f"{path}: can't be a {what} ({error.strerror}). Name another one.")
    return MachineError(describe_os_error(path, error, needed))


def refuse_file(key: str, path: Path) -> None:
    """Raise RequestError if `path`, which `key` gives as a folder, is a file or lies below one."""
    if file := next((candidate for candidate in (path, *path.parents) if candidate.is_file()), None):
        raise RequestError(f"{key}: {file} is a file. Name a folder.")


def move(path: Path, target: Path) -> None:
    """Rename `path` to `target`. Raises MachineError when the file system refuses."""
    try:
        path.replace(target)
    except OSError as error:
        raise MachineError(describe_os_error(target, error, 0)) from error


def open_plain(path: Path, flags: int) -> int:
    """A descriptor of `path`, opened with `os.open`'s `flags`. Raises OSError unless it is a plain file and no link."""
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise OSError(errno.ELOOP, "a link")
    descriptor = os.open(path, flags | PLAIN, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return descriptor


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk, where a folder can be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(path: Path, error: OSError, needed: int) -> str:
    """One line for a failed write of `needed` bytes at `path`."""
    if error.errno not in FULL:
        return f"{path}: cannot be written ({error.strerror or error}). Choose another folder or fix its permissions."
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free"
    except OSError:
        free = "free space unknown"
    return f"{path}: {error.strerror}, needs {needed / 1e6:.1f} MB, {free}. Make room; what was saved before is intact."


def to_json(value: Any, indent: int | None = 1) -> str:
    """Strict JSON, lists of numbers in one line; a number that is not finite becomes null."""
    text = json.dumps(finite(value), indent=indent, allow_nan=False)
    return NUMBERS.sub(lambda match: f"[{' '.join(match[0][1:-1].split())}]", text)


def finite(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
