"""What people read on the terminal: the log on stderr, results on stdout."""

import contextlib
import logging
import os
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mcls.system.layout import WHOLE, plain_table, wrapped
from mcls.system.text import Row, clean

log = logging.getLogger("mcls")

GOOD, BAD, WARNING, HINT, BOLD = "32", "31", "33", "36", "1"  # colours of a terminal


def printable(text: str) -> str:
    """`text` with control characters, but for ends of lines, written out: no text from a file commands a terminal."""
    return "\n".join(map(clean, text.split("\n")))


def columns() -> int:
    """Characters in a line of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns or 80


def line_width(stream: TextIO) -> int:
    """Cells in a line of `stream`: of its terminal, or as COLUMNS says; the lines of files and pipes never end."""
    if os.environ.get("COLUMNS", "").isdigit():
        return columns()
    return (os.get_terminal_size(stream.fileno()).columns or 80) if stream.isatty() else WHOLE


def obeys_codes(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that colours text and clears a line when told to."""
    able = os.environ.get("TERM", "dumb") != "dumb" or "WT_SESSION" in os.environ  # the latter is Windows's
    return stream.isatty() and able


def style(colour: str, stream: TextIO) -> str:
    """The code that begins `colour`, nothing where `stream` has none or NO_COLOR is set."""
    return f"\x1b[{colour}m" if obeys_codes(stream) and not os.environ.get("NO_COLOR") else ""


def for_stream(text: str, stream: TextIO, colour: str = "") -> str:
    """`text` for `stream`: without control characters, its lines broken where the terminal ends, in `colour`."""
    text = wrapped(printable(text), line_width(stream))
    code = style(colour, stream) if colour else ""
    text = f"{code}{text}\x1b[0m" if code else text
    if hint := style(HINT, stream):
        text = re.sub(r"Did you mean [^?]*\?", lambda match: f"{hint}{match[0]}\x1b[0m{code}", text)
    return f"\r\x1b[K{text}" if obeys_codes(stream) else text  # over what may be left of a line of progress


def say(text: str = "", colour: str = "") -> None:
    """Print a result."""
    print(for_stream(text, sys.stdout, colour))


def say_aside(text: str) -> None:
    """Print what is no result, on stderr."""
    print(for_stream(text, sys.stderr), file=sys.stderr)


def say_error(reason: str) -> None:
    """Say on stderr what is wrong, in lines that say whose they are."""
    text = for_stream("\n".join(f"mcls: {line}" for line in reason.split("\n")), sys.stderr)
    if code := style(BAD, sys.stderr):
        text = re.sub(r"\bmcls: ", f"{code}mcls: \x1b[0m", text, count=1)
    print(text, file=sys.stderr)


def say_table(
    header: Sequence[str], rows: Sequence[Row], names: Sequence[int] = (), colours: Mapping[int, str] | None = None
) -> None:
    """Print a table, see `plain_table`; `colours` of rows by their number."""
    colours = (colours or {}) if style(BOLD, sys.stdout) else {}
    styles = {index: style(colour, sys.stdout) for index, colour in colours.items()}
    print(plain_table(header, rows, line_width(sys.stdout), names, styles))


class ConsoleFormatter(logging.Formatter):
    """Formats a record for the terminal: warnings and errors in colour, others in their own `colour`, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        own = {logging.WARNING: WARNING, logging.ERROR: BAD}.get(record.levelno, getattr(record, "colour", ""))
        return for_stream(super().format(record), sys.stderr, own)


@contextlib.contextmanager
def console() -> Iterator[None]:
    """The log on stderr, as it comes; of other packages nothing but the warnings of code that is the user's own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ConsoleFormatter("%(message)s"))
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
