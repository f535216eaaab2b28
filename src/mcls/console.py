"""What people read on the terminal: the log on stderr, results on stdout."""

import contextlib
import logging
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcls.runs import RunFolder, relative, typed
from mcls.tables import clean

log = logging.getLogger("mcls")

STAMP = r"\d{4}-\d\d-\d\d_\d\d-"  # begins the name of a run that lies two levels below the folder of all runs


def plain(text: str) -> str:
    """`text` with control characters, but for ends of lines, written out: no text from a file commands a terminal."""
    return "\n".join(map(clean, text.split("\n")))


class Plain(logging.Formatter):
    """Formats a record, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return plain(super().format(record))


@contextlib.contextmanager
def console() -> Iterator[None]:
    """The log on stderr, as it comes; of other packages nothing but the warnings of code that is the user's own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain("%(message)s"))
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
        logging.root.removeHandler(silence)
        warnings.showwarning = shown


def percent(report: dict[str, Any]) -> str:
    """The accuracy of a report with its interval, `92.50 % [88.00, 95.40] of 200`, if it has one."""
    bounds = ", ".join(f"{bound * 100:.2f}" for bound in report.get("interval") or ())
    return f"{report['accuracy'] * 100:.2f} % {f'[{bounds}]' if bounds else '(selected on val)'} of {report['n']:,}"


def say_result(folder: RunFolder, result: dict[str, Any]) -> None:
    """What came of a run."""
    if result["val"]:
        val = {**result["val"], "interval": None}  # older versions wrote one
        print(f"val   {percent(val)}, best of epoch {result['best_epoch']}")
    if test := result["test"]:
        print(f"test  {percent(test)}, loss {test['loss']:.4f}, F1 {test['f1_macro']:.4f}")
    else:
        print("test  closed: its sweep opens it for the best job alone")
    print(f"done in {result['total_seconds']:.1f} s; everything is in {relative(folder.path)}")
    place = folder.path.parent.parent if re.match(STAMP, folder.path.name) else folder.path
    print(f"curves and figures: mcls board {typed(relative(place))}")
