"""What people read on the terminal: the log on stderr, results on stdout."""

import contextlib
import logging
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcls.system.text import clean

log = logging.getLogger("mcls")


def printable(text: str) -> str:
    """`text` with control characters, but for ends of lines, written out: no text from a file commands a terminal."""
    return "\n".join(map(clean, text.split("\n")))


class PrintableFormatter(logging.Formatter):
    """Formats a record, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return printable(super().format(record))


def columns() -> int:
    """Characters in a line of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns


@contextlib.contextmanager
def console() -> Iterator[None]:
    """The log on stderr, as it comes; of other packages nothing but the warnings of code that is the user's own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.root.addHandler(silence := logging.NullHandler())  # or Python prints the warnings of other packages' logs
    places = (str(Path(__file__).parent), *(sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib")))
    shown = warnings.showwarning

    def show_own(message: Any, category: Any, filename: str, *others: Any, **more: Any) -> None:
        if (
            not filename.startswith(places) and "-packages" not in filename
        ):  # those of installed packages are no business of the user's
            shown(message, category, filename, *others, **more)

    warnings.showwarning = show_own
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
        logging.root.removeHandler(silence)
        warnings.showwarning = shown
