"""What a message says of the words of a command line: what was probably meant, and how a text is to be typed."""

import difflib
import shlex
from collections.abc import Sequence


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
    key, _, value = line.partition("=")
    text = "{}='{}'".format(key, value.replace("'", r"\'"))
    return f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)
