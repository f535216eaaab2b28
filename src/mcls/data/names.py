"""Names of classes, columns and files: their order, and how messages show them."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from mcls.tables import clean

SHOWN = 10  # names in a message
LONG = 60  # characters of a value in a message


def composed(name: str) -> str:
    """`name` with each accented letter as one character (NFC): a Mac writes two, which look the same."""
    return unicodedata.normalize("NFC", name)


def natural(names: Iterable[str]) -> list[str]:
    """`names` in the order in which people count: 1, 2, 10."""

    def place(part: str) -> tuple[int, int, str]:
        digits = part.lstrip("0")
        return (0, len(digits), digits) if part[0] in "0123456789" else (1, 0, part)

    return sorted(names, key=lambda name: ([place(part) for part in re.findall(r"[0-9]+|[^0-9]+", name)], name))


def assigned(key: str, value: str) -> str:
    """`key=value` to be typed: in quotes for the shell and for Hydra where it has more than plain characters."""
    return f"{key}={value}" if re.fullmatch(r"[\w./-]+", value) else f"\"{key}='{value}'\""


def listed(names: Sequence[str]) -> str:
    """The first of `names`, quoted, and how many more there are."""
    shown = ", ".join(f"'{clean(name)}'" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`Did you mean 'x'? ` for a mistyped name, or nothing."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{clean(found[0])}'? " if found else ""


def quoted(value: str) -> str:
    """A value from a file as a message shows it: in quotes, in one line, not too long."""
    text = clean(value)
    return f"'{text}'" if len(text) <= LONG else f"'{text[:LONG]}...'"
