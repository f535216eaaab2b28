"""Tables for the terminal, as Markdown and as CSV."""

import csv
import io

import pytest

from mcls.system.layout import cell_width, cut_in_the_middle, plain_table, wrapped
from mcls.system.text import clean, comma_separated, markdown, plural

HEADER = ["job", "changed", "reason"]
ROWS = [[0, "lr=0.1 | seed=1", None], [10, "a\nb\x1b[31m\t", "=1+1"]]


def test_plain() -> None:
    assert plain_table(HEADER, ROWS) == (
        "job  changed          reason\n0    lr=0.1 | seed=1\n10   a\\nb\\x1b[31m\\t   =1+1"
    )
    assert plain_table(HEADER, []) == "job  changed  reason"


def test_cells_are_counted_not_characters() -> None:
    """Chinese letters and emoji take two, the accent of a decomposed letter none."""
    lines = plain_table(
        ["class", "n"], [["\u732b", 1], ["e\u0301", 2], ["\U0001f431", 3], ["long name", 4]]
    ).splitlines()
    assert [cell_width(line) for line in lines] == [12] * 5
    assert lines[1] == "\u732b         1"
    assert lines[2] == "e\u0301          2"


NAMES = ["outputs/sweeps/2026-11-27_09-34-40/0_optimizer.lr=0.1,seed=1", "\u732b" * 40, "a" * 85]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_table_fits_its_terminal(width: int) -> None:
    """What is too wide is shortened in the middle or goes on below; no value but a name is cut."""
    header = ["run", *(f"trainer.key_number_{index}" for index in range(12)), "val accuracy (selected on)"]
    rows = [[name, *range(100, 112), "0.8500 \u00b1 0.0177"] for name in NAMES]
    lines = plain_table(header, rows, width, names=[0]).splitlines()
    assert max(map(cell_width, lines)) <= width
    text = "\n".join(lines)
    assert all(text.count(str(number)) == 3 for number in range(100, 112))
    assert text.count("0.8500 \u00b1 0.0177") == 3
    start, _, end = next(line for line in lines if line.startswith("outp")).split()[0].partition("...")
    assert NAMES[0].startswith(start) and NAMES[0].endswith(end)
    assert plain_table(header, rows).splitlines()[0].split() == [*header[:-1], *header[-1].split()]


def test_a_name_that_goes_on_below_is_whole() -> None:
    """It is shortened to fit beside the other columns, not where it has a line beside the first one anyway."""
    header, run = ["baseline", "val accuracy", "test accuracy", "run"], "outputs/blobs-majority/2026-11-27_09-43-58"
    rows = [["gradient-boosting", "85.00 % [79.95, 89.71] of 80", "85.50 % [79.95, 89.71] of 200", run]]
    assert plain_table(header, rows, 80, names=[3]).splitlines()[-1] == f"gradient-boosting  {run}"
    assert "  outputs/blob...ority/2026" in plain_table(header, rows, 120, names=[3])
    assert run in plain_table(header, rows, 130, names=[3])


def test_names_lose_their_middle() -> None:
    assert cut_in_the_middle("a" * 20 + "b" * 20, 13) == "aaa...bbbbbbb"
    assert cut_in_the_middle("\u732b" * 20, 13) == "\u732b...\u732b\u732b\u732b\u732b"
    assert cut_in_the_middle("short", 5) == "short"


def test_lines_are_broken_between_words_and_commands_stay_whole() -> None:
    command = "mcls resume outputs/blobs-mlp/2026-11-27_09-32-40 trainer.epochs=100 'dataset.root=/my data'"
    assert wrapped(f"mcls: stopped; go on with: {command}", 60) == f"mcls: stopped; go on with:\n      {command}"
    assert wrapped(f"mcls: stopped; go on with: {command}, or not at all", 60).endswith(
        f"\n      {command}\n      or not at all"
    )
    assert wrapped("model   mlp: 8,900 weights; loss ce", 24) == "model   mlp: 8,900\n        weights; loss ce"
    assert wrapped("one\ntwo three", 5) == "one\ntwo\nthree"
    assert wrapped("  " + "\u732b\u732b " * 4, 14) == "  \u732b\u732b \u732b\u732b\n  \u732b\u732b \u732b\u732b"


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


def test_one_has_no_plural() -> None:
    assert [plural(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    assert [plural(number, "category") for number in (1, 1_000)] == ["1 category", "1,000 categories"]


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    assert clean("a\x1b]0;title\x07b\r\n\u202e") == "a\\x1b]0;title\\x07b\\r\\n\\u202e"
    assert clean("grün, 日本 1.5 %") == "grün, 日本 1.5 %"
