"""Terminal output: the log on stderr, results on stdout."""

import contextlib
import functools
import logging
import os
import re
import shlex
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mcls.system.layout import WHOLE, cut_in_the_middle, plain_table, wrapped
from mcls.system.text import Row, clean

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger("mcls")

GOOD, BAD, WARNING, HINT, BOLD = "32", "31", "33", "36", "1"  # colours of a terminal


def printable(text: str) -> str:
    """`text` with control characters escaped, except line ends, so that text from a file can't control the terminal."""
    return "\n".join(map(clean, text.split("\n")))


def columns() -> int:
    """Width of the terminal in characters; 80 without a terminal."""
    return shutil.get_terminal_size().columns or 80


def line_width(stream: TextIO) -> int:
    """Cells per line of `stream`: those of its terminal, or COLUMNS; unlimited for files and pipes."""
    if os.environ.get("COLUMNS", "").isdigit():
        return columns()
    return (os.get_terminal_size(stream.fileno()).columns or 80) if stream.isatty() else WHOLE


def obeys_codes(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that supports colours and clearing a line."""
    able = os.environ.get("TERM", "dumb") != "dumb" or "WT_SESSION" in os.environ  # the latter is Windows's
    return stream.isatty() and able


@functools.cache
def called_as() -> str:
    """How printed commands call mcls: `mcls`, or as it was called if the shell does not find that."""
    typed = Path(sys.argv[0])
    if shutil.which("mcls"):
        return "mcls"
    return shlex.quote(sys.argv[0]) if typed.stem == "mcls" else "python -m mcls"


def style(colour: str, stream: TextIO) -> str:
    """The code that starts `colour`; empty if `stream` has no colours or NO_COLOR is set."""
    return f"\x1b[{colour}m" if obeys_codes(stream) and not os.environ.get("NO_COLOR") else ""


def for_stream(text: str, stream: TextIO, colour: str = "") -> str:
    """`text` as printed to `stream`: control characters escaped, lines wrapped at the terminal's width, in `colour`."""
    name, commands = called_as(), Path(__file__).parents[1] / "commands"
    if stream.isatty() and name != "mcls":  # a command that is printed can be copied
        words = "|".join(path.stem for path in commands.glob("*.py"))
        text = re.sub(rf"(?<![\w./-])mcls (?=(?:{words})\b)", lambda _: f"{name} ", text)
    # a Python with readline gives COLUMNS to all that it starts: what programs read is not broken by it
    text = wrapped(printable(text), line_width(stream) if stream.isatty() else WHOLE)
    code = style(colour, stream) if colour else ""
    text = f"{code}{text}\x1b[0m" if code else text
    if hint := style(HINT, stream):
        text = re.sub(r"Did you mean [^?]*\?", lambda match: f"{hint}{match[0]}\x1b[0m{code}", text)
    return f"\r\x1b[K{text}" if obeys_codes(stream) else text  # over what may be left of a line of progress


def say_progress(what: str = "") -> None:
    """Show on the terminal what is being done, in a line that the next output replaces; an empty text clears it."""
    if obeys_codes(sys.stderr):
        shown = cut_in_the_middle(f"{what} ..." * bool(what), line_width(sys.stderr) - 1)
        print(f"\r\x1b[K{shown}", end="", file=sys.stderr, flush=True)


def progress_bar(title: str, total: int, done: int = 0, quiet: bool = False) -> "tqdm[Any]":
    """A progress bar, on a terminal, for what takes longer than half a second; removed at the end.

    It leaves room for the ^C that the terminal echoes: that would wrap the line and leave the bar above it.
    """
    from tqdm import tqdm

    width = None if quiet or not sys.stderr.isatty() else max(20, line_width(sys.stderr) - 3)
    off = True if quiet else None  # None is without a terminal
    return tqdm(total=total, initial=done, desc=title, leave=False, delay=0.5, disable=off, ncols=width)


def say(text: str = "", colour: str = "") -> None:
    """Print a result on stdout."""
    if not sys.stdout.isatty():
        say_progress()  # its line is cleared, for a reader of both
    print(for_stream(text, sys.stdout, colour))


def say_aside(text: str) -> None:
    """Print what is not a result, on stderr."""
    print(for_stream(text, sys.stderr), file=sys.stderr)


def say_error(reason: str) -> None:
    """Print an error on stderr, each line beginning with `mcls: `."""
    text = for_stream("\n".join(f"mcls: {line}" for line in reason.split("\n")), sys.stderr)
    if code := style(BAD, sys.stderr):
        text = re.sub("mcls: ", f"{code}mcls: \x1b[0m", text, count=1)
    print(text, file=sys.stderr)


def answer(question: str) -> str:
    """What somebody types on a question, in small letters; nothing for Ctrl-D."""
    try:
        return input(question).strip().lower()
    except EOFError:
        print()
        return ""


def say_table(
    header: Sequence[str], rows: Sequence[Row], names: Sequence[int] = (), colours: Mapping[int, str] | None = None
) -> None:
    """Print a table (see `plain_table`); `colours` are those of rows, by number."""
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
    """Within the context, log to stderr; of other warnings, show only those of the user's own code."""
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
        say_progress()
