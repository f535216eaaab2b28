"""What a message says of the words of a command line: what was probably meant, and how a text is to be typed."""

import difflib
import re
import shlex
from collections.abc import Sequence

DASHES = "\u2212\u2013\u2014"  # minus, en dash, em dash
QUOTES = "\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"


def nearest(word: str, known: Sequence[str]) -> str | None:
    """What `word` was probably meant to be, out of `known`."""
    endings = [key for key in known if key.split(".")[-1] == word.split(".")[-1]]
    if "." not in word and len(endings) == 1:
        return endings[0]
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found and (
        last := difflib.get_close_matches(word.split(".")[-1], {key.split(".")[-1] for key in known}, n=1)
    ):
        found = [key for key in known if key.split(".")[-1] == last[0]]
    return found[0] if found else endings[0] if endings else None


def suggestion(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown `word`."""
    found = nearest(word, known)
    return f"Did you mean {found}?" if found else "See mcls train --help."


def quoted(line: str) -> str:
    """`key=value`, where the value is a text that Hydra's grammar takes for something else, as it is to be typed."""
    return shell(as_text(line))


def as_text(line: str) -> str:
    """`key=value` with the value quoted for Hydra's grammar."""
    key, _, value = line.partition("=")
    return "{}='{}'".format(key, value.replace("'", r"\'"))


def as_list(line: str) -> str | None:
    """`key=[a,b]` with each element quoted for Hydra's grammar, or None if the value is in no brackets."""
    key, _, value = line.partition("=")
    if not (value.startswith("[") and value.endswith("]")):
        return None
    parts = ("'{}'".format(part.strip().strip("'\"").replace("'", r"\'")) for part in value[1:-1].split(","))
    return f"{key}=[{','.join(parts)}]"


def typeset(line: str) -> str | None:
    """`line` with the minus signs and quotation marks of the keyboard, if it has those of a word processor."""
    key, equals, value = line.partition("=")
    if not equals and line[:1] in DASHES:  # a flag
        return f"{'-' if len(line) == 2 else '--'}{line[1:]}"
    quotes = len(value) > 1 and value[0] in QUOTES and value[-1] in QUOTES
    plain = re.sub(f"[{DASHES}](?=[\\d.])", "-", f"'{value[1:-1]}'" if quotes else value)
    return None if plain == value else f"{key}={plain}"


def shell(text: str) -> str:
    """`text` as a shell takes it, in double quotes where that reads better."""
    return f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)
