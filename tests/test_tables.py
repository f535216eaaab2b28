"""Tables for the terminal, as Markdown and as CSV."""

import csv
import io

from mcls.system.text import clean, comma_separated, markdown, plain_table

HEADER = ["job", "changed", "reason"]
ROWS = [[0, "lr=0.1 | seed=1", None], [10, "a\nb\x1b[31m\t", "=1+1"]]


def test_plain() -> None:
    assert plain_table(HEADER, ROWS) == (
        "job  changed          reason\n0    lr=0.1 | seed=1\n10   a\\nb\\x1b[31m\\t   =1+1"
    )
    assert plain_table(HEADER, []) == "job  changed  reason"


def test_markdown() -> None:
    assert markdown(HEADER, ROWS).splitlines() == [
        "| job | changed | reason |",
        "| --- | --- | --- |",
        "| 0 | lr=0.1 \\| seed=1 |  |",
        "| 10 | a\\nb\\x1b[31m\\t | =1+1 |",
    ]


def test_csv_is_read_back_and_holds_no_formula() -> None:
    rows = [[1, 'say "a, b"', cell] for cell in ("=cmd()", "+1", "@x", "-0.5", "plain", "é")]
    text = comma_separated(HEADER, rows)
    found = list(csv.reader(io.StringIO(text)))
    assert found[0] == HEADER
    assert [line[1] for line in found[1:]] == ['say "a, b"'] * 6
    assert [line[2] for line in found[1:]] == ["'=cmd()", "'+1", "'@x", "-0.5", "plain", "é"]
    assert "\r" not in text and text.endswith("\n")
    exact = list(csv.reader(io.StringIO(comma_separated(HEADER, rows, safe=False))))
    assert [line[2] for line in exact[1:]] == ["=cmd()", "+1", "@x", "-0.5", "plain", "é"]


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    assert clean("a\x1b]0;title\x07b\r\n\u202e") == "a\\x1b]0;title\\x07b\\r\\n\\u202e"
    assert clean("grün, 日本 1.5 %") == "grün, 日本 1.5 %"
