"""The lock of a run folder: who holds it; child processes do not inherit it."""

import contextlib
import os
import platform
import time
from pathlib import Path

from mcls.errors import MachineError
from mcls.system.files import open_plain


def next_free(descriptor: int, folder: Path) -> None:
    """Lock the open lock file of `folder` and say in it who holds it. Raises MachineError when another process does."""
    from filelock import lock_descriptor  # takes 20 ms, which a wrong command line need not wait for

    try:
        free = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        raise MachineError(f"{folder}: cannot be locked ({error.strerror}). Choose another folder.") from error
    if not free:
        holder = b""
        with contextlib.suppress(OSError):  # Windows lets nobody read what is locked
            for _ in range(20):
                if holder := os.read(descriptor, 200):
                    break
                time.sleep(0.01)  # whoever has just locked it is about to write
        name = holder.decode("utf-8", "replace").strip() or "another process"
        raise MachineError(f"{folder}: in use by {name}. Stop it first.")
    with contextlib.suppress(OSError):  # a full disk is found out by what matters
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())


def let_go() -> None:
    """In a child process: close the inherited lock files, which it would hold beyond the end of its parent."""
    while HELD:
        os.close(HELD.pop())


HELD: set[int] = set()  # descriptors of lock files
if hasattr(os, "register_at_fork"):  # a system without has no fork
    os.register_at_fork(after_in_child=let_go)


def locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`."""
    try:
        descriptor = open_plain(path, os.O_RDONLY)
    except OSError:
        return False
    from filelock import lock_descriptor

    try:
        for _ in range(3):  # another process may be asking the same at this moment
            if lock_descriptor(descriptor, blocking=False):
                return False
            time.sleep(0.002)
        return True
    finally:
        os.close(descriptor)
