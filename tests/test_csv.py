"""Tables: what becomes of columns, that train alone teaches it, that new rows are encoded the same, and wrong files."""

import csv
import gzip
import io
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mcls.config.instantiate import build
from mcls.data.delimited import parse_number, read_at_once
from mcls.data.table_encoder import Table, as_numbers, encode_table, read_table
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, MclsError, RequestError
from mcls.runs import checkpoint
from mcls.training.restore import newest_checkpoint

CONFIG = Path(__file__).parents[1] / "configs" / "dataset" / "csv.yaml"
COLOURS = ("blue", "green", "red")
Rows = list[list[str]]


def rows(count: int = 60, seed: int = 0) -> Rows:
    """id, size, weight, colour, kind: two classes that the numbers tell apart."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        kind = number % 2
        found.append(
            [
                str(number),
                f"{generator.gauss(3 * kind, 1):.3f}",
                str(generator.randrange(1, 9) * 1000),
                COLOURS[number % 3],
                ("no", "yes")[kind],
            ]
        )
    return found


HEADER = ["id", "size", "weight", "colour", "kind"]


def write(path: Path, body: Rows, header: list[str] = HEADER, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *body])
    return path


def read(path: Path | None, target: str | None = "kind", **keys: Any) -> Dataset:
    """The table as mcls reads it, with the keys of the configuration file."""
    node = {**yaml.safe_load(CONFIG.read_text()), "path": path and str(path), "target": target, **keys}
    found: Dataset = build("dataset", node)
    return found


def splits(found: Dataset) -> list[Split]:
    return [split for split in (found.train, found.val, found.open_test()) if split is not None]


def inputs(split: Split) -> torch.Tensor:
    assert isinstance(split.inputs, torch.Tensor)
    return split.inputs


def test_numbers_are_standardised_and_texts_indicated_by_train_alone(tmp_path: Path) -> None:
    body = rows()
    found = read(write(tmp_path / "t.csv", body), drop_columns=["id"])
    assert found.classes == ("no", "yes") and found.input_shape == (5,)
    assert [len(split) for split in splits(found)] == [43, 5, 12]
    of = {name: [body[int(row.split()[1]) - 2] for row in split.names]
          for name, split in zip(("train", "val", "test"), splits(found), strict=True)}  # fmt: skip
    for column, place in ((0, 1), (1, 2)):
        train = np.array([float(row[place]) for row in of["train"]])
        for name, split in zip(of, splits(found), strict=True):
            values = np.array([float(row[place]) for row in of[name]])
            expected = (values - train.mean()) / train.std()
            assert np.allclose(inputs(split)[:, column].numpy(), expected, rtol=0, atol=1e-6)
    for name, split in zip(of, splits(found), strict=True):
        indicated = [[float(row[3] == colour) for colour in COLOURS] for row in of[name]]
        assert inputs(split)[:, 2:].tolist() == indicated
        assert [found.classes[target] for target in split.targets] == [row[4] for row in of[name]]
        assert (inputs(split).dtype, split.targets.dtype) == (torch.float32, torch.int64)


def test_texts_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    """Accented letters of one character and of two: in labels, categories and names of columns."""
    one, two = "\u00e9", "e\u0301"
    found = {}
    for name, forms in (("pure", (one, one)), ("mixed", (one, two))):
        body = [[*row[:3], f"r{forms[n // 3 % 2]}d", f"caf{forms[n // 5 % 2]}" * int(row[4] == "yes") or "bar"]
                for n, row in enumerate(rows())]  # fmt: skip
        header = ["id", "size", f"p{forms[1]}se", "colour", f"kl{forms[1]}m"]
        path = write(tmp_path / f"{name}.csv", body, header)
        found[name] = read(path, f"kl{two}m", drop_columns=["id"], categorical_columns=[f"p{two}se"])
    assert found["mixed"].classes == ("bar", f"caf{one}")
    assert found["mixed"].encoder == found["pure"].encoder
    for pure, mixed in zip(splits(found["pure"]), splits(found["mixed"]), strict=True):
        assert torch.equal(inputs(pure), inputs(mixed)) and torch.equal(pure.targets, mixed.targets)


def test_cuts_depend_on_their_own_seeds_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", rows())
    first, other = read(path), read(path, val_seed=1)
    assert first.open_test().names == other.open_test().names != read(path, test_seed=1).open_test().names
    assert read(path).train.names == first.train.names != other.train.names


def test_labels_are_text_in_natural_order(tmp_path: Path) -> None:
    labels = ["10", "2", "007", "NA", "null"]
    body = [[str(number), labels[number % 5]] for number in range(50)]
    found = read(write(tmp_path / "t.csv", body, ["x", "y"]), "y", missing_values=["?"])
    assert found.classes == ("2", "007", "10", "NA", "null")


def test_a_second_file_is_the_test(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", rows())
    body = [row[::-1] for row in rows(10, seed=5)]
    test = write(tmp_path / "test.csv", body, HEADER[::-1], ";")
    found = read(path, test_path=str(test), val_fraction=0.0)
    assert [len(split) for split in splits(found)] == [60, 10]
    assert found.encoder is not None
    dicts = [dict(zip(HEADER[::-1], row, strict=True)) for row in body]
    assert torch.equal(encode(dicts, found.encoder), inputs(found.open_test()))
    body[3][0] = "maybe"
    write(test, body, HEADER[::-1])
    with pytest.raises(
        DataError, match=r"test\.csv, row 5, column 'kind': class 'maybe' is not in train, which has 'no', 'y"
    ):
        read(path, test_path=str(test))
    write(test, [row[1:] for row in rows(10)], HEADER[1:])
    with pytest.raises(
        DataError, match=r"^dataset\.test_path: .*test\.csv has no column 'id'\. Did you mean 'kind'\? It "
    ):
        read(path, test_path=str(test))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiters_marks_and_line_ends_make_no_difference(
    tmp_path: Path, delimiter: str, mark: str, newline: str
) -> None:
    expected = read(write(tmp_path / "plain.csv", rows()))
    text = write(tmp_path / "t.csv", rows(), delimiter=delimiter).read_text().replace("\n", newline)
    (tmp_path / "t.csv").write_text(mark + text, newline="")
    for chosen in ("auto", {"\t": "tab"}.get(delimiter, delimiter)):
        found = read(tmp_path / "t.csv", delimiter=chosen)
        assert torch.equal(inputs(found.train), inputs(expected.train)) and found.encoder == expected.encoder


def spaced(text: str) -> str:
    return "\n".join("  ".join(f"{cell:>8}" for cell in line.split(",")) for line in text.splitlines())


FORMS: dict[str, Callable[[str], str | bytes]] = {
    "gzip": lambda text: gzip.compress(text.encode()),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16, big endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "Excel's Unicode text": lambda text: text.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
    "sep=": lambda text: "sep=;\r\n" + text.replace(",", ";"),
    "comments": lambda text: f"# made by a tool, in 2024\n#\n{text}",
    "blanks": spaced,
    "delimiters in quotes": lambda text: text.replace(",", ";").replace("size", '"size, in cm, or, more"'),
    "delimiters in names": lambda text: text.replace(",", ";").replace("size", "size, in cm, or, more, or, less"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_forms_of_a_table_make_no_difference(tmp_path: Path, form: str, name: str) -> None:
    """Nor does what the file is called."""
    expected = read(write(tmp_path / "plain.csv", rows()))
    content = FORMS[form]((tmp_path / "plain.csv").read_text())
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read(tmp_path / name)
    assert [torch.equal(inputs(a), inputs(b)) for a, b in zip(splits(found), splits(expected), strict=True)] == [
        True
    ] * 3
    assert found.open_test().targets.tolist() == expected.open_test().targets.tolist()


def test_a_header_may_begin_with_a_number_sign_or_hold_numbers(tmp_path: Path) -> None:
    assert read(write(tmp_path / "t.csv", rows(), ["#id", *HEADER[1:]])).input_shape == (6,)
    assert read(write(tmp_path / "t.csv", rows(), ["0", "1", "2", "3", "4"]), "4").input_shape == (6,)
    assert read(write(tmp_path / "t.csv", rows(), ["id", "2019", "weight", "colour", "kind"])).input_shape == (6,)
    waves = [[f"{random.random():.3f}" for _ in range(9)] + ["ab"[n % 2]] for n in range(40)]
    assert read(write(tmp_path / "t.csv", waves, [*(f"{400.5 + n}" for n in range(9)), "y"]), "y").input_shape == (9,)


def test_blanks_quotes_and_columns_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [f'{number}, {number % 7} ,"a, ""{number % 2}""",' for number in range(40)]
    path.write_text("\n".join([" , size ,kind,", *lines[:20], "", *lines[20:], ""]))
    found = read(path)
    assert found.classes == ('a, "0"', 'a, "1"') and found.input_shape == (1,)
    assert any(name == "row 42" for split in splits(found) for name in split.names)  # the empty line counts


@pytest.mark.parametrize("word", ["", "NA", "?", "null"])
def test_missing_cells(tmp_path: Path, word: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mcls")
    body = rows()
    read(write(tmp_path / "t.csv", body), drop_columns=["id"])  # the healthy twin
    body[3][1] = body[8][3] = body[8][1] = word
    path = write(tmp_path / "t.csv", body)
    with pytest.raises(DataError) as caught:
        read(path, drop_columns=["id"])
    assert str(caught.value) == (
        f"{path}, row 5, column 'size': missing, got '{word}' (3 such cells). Set "
        "dataset.missing_values_strategy to drop or mean, or name the column in dataset.drop_columns."
    )
    dropped = read(path, drop_columns=["id"], missing_values_strategy="drop")
    assert sum(map(len, splits(dropped))) == 58
    assert f"data    {path}: 2 of 60 rows dropped, they have missing cells" in caplog.text
    kept = read(path, drop_columns=["id"], missing_values_strategy="mean")
    assert sum(map(len, splits(kept))) == 60
    for split in splits(kept):
        for name, values in zip(split.names, inputs(split), strict=True):
            if name == "row 5":
                assert values[0].abs() < 1e-6
            assert values[2:].sum() == (0 if name == "row 10" else 1)


@pytest.mark.parametrize(
    "word", ["", "NA", "N/A", "n/a", "NULL", "null", "None", "<NA>", "#N/A", "-nan", "1.#QNAN", "?"]
)
def test_missing_classes_are_no_class(tmp_path: Path, word: str, caplog: pytest.LogCaptureFixture) -> None:
    """pandas' words for missing, in targets as in features; with missing=drop their rows go, and are counted."""
    caplog.set_level("INFO", "mcls")
    body = rows()
    body[3][4] = body[8][4] = word
    body[9][1] = "NaN"
    path = write(tmp_path / "t.csv", body)
    with pytest.raises(DataError, match=r"row 5, column 'kind': no class.* \(2 such rows\)\. Fill it in, or set "):
        read(path, missing_values_strategy="mean")
    found = read(path, missing_values_strategy="drop")
    assert found.classes == ("no", "yes") and sum(map(len, splits(found))) == 57
    told = f"3 of 60 rows dropped (2 without a class), they have missing cells: 3 such cells: 2 '{word}', 1 'NaN'"
    assert f"data    {path}: {told}" in caplog.text
    assert word in read(path, missing_values_strategy="drop", missing_values=["NaN"]).classes or not word


def test_missing_cells_that_are_filled_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mcls")
    body = rows()
    body[3][1] = body[8][3] = "NULL"
    path = write(tmp_path / "t.csv", body)
    read(path, missing_values_strategy="mean")
    assert f"data    {path}: missing, 2 such cells; replaced by the mean, or no category" in caplog.text


def test_names_that_look_alike_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "mcls")
    body = [
        [*row[:3], ("red", "Red ", "blue")[n % 3], ("1", "1.0", "2", "cat", "Cat")[n % 5]]
        for n, row in enumerate(rows())
    ]
    path = write(tmp_path / "t.csv", body)
    assert len(read(path).classes) == 5
    end = "are different classes. If they are the same, use one spelling."
    assert [record.getMessage() for record in caplog.records] == [
        f"data    {path}, column 'kind': '1', '1.0' {end}",
        f"data    {path}, column 'kind': 'Cat', 'cat' {end}",
        f"data    {path}, column 'colour': 'Red', 'red' {end}",
    ]
    caplog.clear()
    read(write(path, rows()))
    assert not caplog.records


@pytest.mark.parametrize("shuffled", [False, True])
def test_numbers_of_rows_that_give_the_classes_away_are_told(
    tmp_path: Path, shuffled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "mcls")
    body = sorted(rows(), key=lambda row: row[4])
    body = [[str(number), *row[1:]] for number, row in enumerate(body)]
    body = random.Random(0).sample(body, 60) if shuffled else body
    path = write(tmp_path / "t.csv", body, ["Unnamed: 0", *HEADER[1:]])
    read(path)
    message = (
        f"data    {path}: column 'Unnamed: 0' numbers the rows, and the classes are in its order: "
        "a leak. Name it in dataset.drop_columns."
    )
    assert [record.getMessage() for record in caplog.records] == [message]
    caplog.clear()
    read(path, drop_columns=["Unnamed: 0"])
    caplog.set_level("INFO", "mcls")
    read(write(path, rows()))  # numbers of rows that say nothing of the classes
    told = f"data    {path}: column 'id' numbers the rows; if it is no input, name it in dataset.drop_columns"
    assert next((record.levelname, record.getMessage()) for record in caplog.records) == ("INFO", told)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_missing_values_are_what_the_user_says(tmp_path: Path) -> None:
    body = rows()
    body[3][1] = "-99"
    path = write(tmp_path / "t.csv", body)
    assert sum(map(len, splits(read(path, missing_values_strategy="drop")))) == 60
    assert sum(map(len, splits(read(path, missing_values_strategy="drop", missing_values=["-99"])))) == 59


def test_columns_of_numbers_can_be_text(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t.csv", rows()), drop_columns=["id"], categorical_columns=["weight"])
    assert found.encoder is not None
    assert found.encoder["categories"][1] == [str(1000 * number) for number in range(1, 9)]


@pytest.mark.parametrize(
    "cells", [["0,5", "1,25"], ["26,391.52", "1,950"], ["26.391,52", "1.200.000"], ["54%", "3.5 %"], ["$3", "€ 1,000"]]
)
def test_numbers_that_are_written_otherwise_are_no_categories(tmp_path: Path, cells: list[str]) -> None:
    body = [[*row[:2], cells[int(row[0]) % 2], *row[3:]] for row in rows()]
    path = write(tmp_path / "t.csv", body)
    with pytest.raises(DataError) as caught:
        read(path)
    message = f"column 'weight': '{cells[0]}' looks like a number but is not one ("
    assert message in str(caught.value) and str(caught.value).endswith(
        "or name the column in dataset.categorical_columns."
    )
    found = read(path, categorical_columns=["weight"])
    assert found.encoder is not None and set(found.encoder["categories"][2]) == set(cells)


@pytest.mark.parametrize(
    "cell", ["2024-01-05", "05.01.2024", "1/5/2024", "12:30", "A12", "1.2.3", "10-20", "5 kg", "3rd"]
)
def test_dates_codes_and_ranges_are_categories(tmp_path: Path, cell: str) -> None:
    body = [[*row[:2], (cell, "x")[int(row[0]) % 3 == 0], *row[3:]] for row in rows()]
    found = read(write(tmp_path / "t.csv", body))
    assert found.encoder is not None and set(found.encoder["categories"][2]) == {cell, "x"}


def test_unseen_categories_of_splits_cut_here_count_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = rows()
    name = read(write(tmp_path / "t.csv", body)).open_test().names[0]
    body[int(name.split()[1]) - 2][3] = "mauve"
    found = read(write(tmp_path / "t.csv", body))
    assert inputs(found.open_test())[0, 3:].tolist() == [0, 0, 0]
    assert "1 cell with a category that train does not have, which counts as none" in caplog.text


def test_a_column_with_one_value_is_harmless(tmp_path: Path) -> None:
    body = [[*row[:2], "0.1", *row[3:]] for row in rows()]
    found = read(write(tmp_path / "t.csv", body), drop_columns=["id"])
    assert all(inputs(split)[:, 1].abs().max() < 1e-6 for split in splits(found))


# what is done to a healthy file, and what is said of it
ELSE = "If cells are separated by something else, set dataset.delimiter."
QUOTE = f"Is a quote or a delimiter too many or too few? {ELSE}"
CELLS = (
    "cells). Fix it, or train with the column in dataset.categorical_columns, or the word in dataset.missing_values."
)
COLUMNS = "It has 'id', 'size', 'weight', 'colour', 'kind'."
FAULTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "empty": (lambda text: "", "FILE: empty. The first row must be a header of column names."),
    "a mark alone": (lambda text: "\ufeff", "FILE: empty. The first row must be a header of column names."),
    "no rows": (lambda text: text.split("\n")[0] + "\n", "FILE: a header without rows."),
    "short row": (
        lambda text: text.replace("\n7,", "\n", 1),
        f"FILE, row 9: 4 cells, the header has 5. {QUOTE}",
    ),
    "long row": (
        lambda text: text.replace("\n7,", "\n7,8,", 1),
        f"FILE, row 9: 6 cells, the header has 5. {QUOTE}",
    ),
    "unclosed quote": (
        lambda text: text.replace("\n7,", '\n"7,', 1),
        "FILE, row 9: unexpected end of data. Is a quote not closed?",
    ),
    "text after a quote": (
        lambda text: text.replace("\n7,", '\n"7"x,', 1),
        "FILE, row 9: ',' expected after '\"'. Is a quote not closed?",
    ),
    "NUL": (lambda text: text.replace("\n7,", "\n7\0,", 1), "FILE, row 9: a NUL byte. Is this a text file?"),
    "huge field": (
        lambda text: text.replace("\n7,", "\n" + "7" * 200_000 + ",", 1),
        "FILE, row 9: field larger than field limit (131072). Is a quote not closed?",
    ),
    "latin-1": (
        lambda text: text.replace("blue", "bl\xfcu").encode("latin-1"),
        "FILE, row 2: not UTF-8 (byte 0xfc). Save it as UTF-8, Excel's 'CSV UTF-8'.",
    ),
    "utf-16": (lambda text: text.encode("utf-16-le"), "FILE, row 1: a NUL byte. Is this a text file?"),
    "workbook": (lambda text: zipped("xl/workbook.xml"), "FILE: no CSV file but an Excel workbook. Save it as CSV."),
    "zip": (lambda text: zipped("t.csv"), "FILE: no CSV file but a zip archive. Unpack it."),
    "parquet": (lambda text: b"PAR1\0\0PAR1", "FILE: damaged, it cannot be read as Parquet."),
    "half a gzip": (
        lambda text: gzip.compress(text.encode())[:200],
        "FILE: cannot be read (Compressed file ended before the end-of-stream marker was reached).",
    ),
    "no header": (
        lambda text: text.split("\n", 1)[1],
        "FILE, row 1: data without a header ('0', '0.942', '7000', 'blue', 'no'). Put a row of column names before it; "
        "if these are names, put a letter before their numbers.",
    ),
    "no header, of texts": (
        lambda text: "\n".join(line.split(",", 3)[3] for line in text.splitlines()[1:]),
        "FILE, row 1: data without a header ('blue', 'no'). Put a row of column names before it; "
        "if these are names, put a letter before their numbers.",
    ),
    "R's header": (
        lambda text: text.removeprefix("id,"),
        "FILE, row 1: the header has 4 names, the rows have 5 cells. R writes names of rows so: set row.names=FALSE "
        "there, or put a name before the first.",
    ),
    "R's table": (
        lambda text: text.removeprefix("id,").replace(",", " "),
        "FILE, row 1: the header has 4 names, the rows have 5 cells. R writes names of rows so: set row.names=FALSE "
        "there, or put a name before the first.",
    ),
    "delimiter after the header": (
        lambda text: text.replace("kind", "kind,", 1),
        "FILE, row 1: the header ends with an extra ',', the rows do not. Remove it.",
    ),
    "delimiter after the rows": (
        lambda text: text.replace("no\n", "no,\n").replace("yes\n", "yes,\n"),
        "FILE, row 1: the rows end with an extra ',', the header does not. Add one there.",
    ),
    "duplicate header": (
        lambda text: text.replace("weight", "size", 1),
        "FILE, row 1: two columns are called 'size'. Rename one.",
    ),
    "missing target": (
        lambda text: text.replace("kind", "kindd", 1),
        f"dataset.target: FILE has no column 'kind'. Did you mean 'kindd'? {COLUMNS[:-2]}d'.",
    ),
    "empty label": (
        lambda text: text.replace("no\n", " \n", 2),
        "FILE, row 2, column 'kind': no class (2 such rows). Fill it in, or set dataset.missing_values_strategy=drop.",
    ),
    "missing label": (
        lambda text: text.replace("no\n", "NA\n", 2),
        "FILE, row 2, column 'kind': no class, got 'NA' (2 such rows). Fill it in, or set "
        "dataset.missing_values_strategy=drop. If 'NA' is a class, leave it out of dataset.missing_values.",
    ),
    "no number": (
        lambda text: text.replace("\n7,", "\nseven,", 1).replace("\n9,", "\nnine,", 1),
        f"FILE, row 9, column 'id': 'seven' is not a number (2 of 60 {CELLS}",
    ),
    "infinite": (
        lambda text: text.replace("\n7,", "\n1e999,", 1),
        f"FILE, row 9, column 'id': '1e999' is not a number (1 of 60 {CELLS}",
    ),
    "one class": (
        lambda text: text.replace("yes", "no"),
        "FILE, column 'kind': only one class, 'no'. A classifier needs at least two.",
    ),
    "HTML": (
        lambda text: "<!DOCTYPE html>\n<html>404</html>\n",
        "dataset.target: FILE has no column 'kind'. It has '<!DOCTYPE html>'. "
        "Is it cut by something else? Set dataset.delimiter.",
    ),
}


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x" * 99)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FAULTS)
def test_wrong_files(tmp_path: Path, kind: str) -> None:
    spoil, message = FAULTS[kind]
    path = write(tmp_path / "t.csv", rows())
    text = path.read_text()
    assert len(read(path, test_seed=3).classes) == 2  # the healthy twin
    spoilt = spoil(text)
    path.write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
    with pytest.raises(DataError) as caught:
        read(path, test_seed=3)
    assert str(caught.value) == message.replace("FILE", str(path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"target": "id"},
            "FILE: column 'id' has 60 different values in 60 rows; too many for classes. "
            "Name another column in dataset.target.",
        ),
        (
            {"drop_columns": ["weigth"]},
            f"dataset.drop_columns: FILE has no column 'weigth'. Did you mean 'weight'? {COLUMNS}",
        ),
        (
            {"drop_columns": HEADER[:4]},
            "FILE: no columns besides 'kind', 'id', 'size', 'weight', 'colour', so there is nothing to learn.",
        ),
        (
            {"categorical_columns": ["id"], "max_categories": 40},
            "FILE: column 'id' has 43 different values in train, more than dataset.max_categories=40. "
            "Name it in dataset.drop_columns, or raise the limit.",
        ),
        (
            {"missing_values": list(COLOURS), "missing_values_strategy": "mean"},
            "FILE: column 'colour' has no value in train. Name it in dataset.drop_columns.",
        ),
        (
            {"missing_values": list(COLOURS), "missing_values_strategy": "drop"},
            "FILE: column 'colour' has no value. Name it in dataset.drop_columns.",
        ),
    ],
)
def test_keys_that_the_file_does_not_bear_out(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "t.csv", rows())
    with pytest.raises(DataError) as caught:
        read(path, **{"target": "kind", **keys})
    assert str(caught.value) == message.replace("FILE", str(path))


def test_what_is_no_file_and_what_is_not_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file\.$"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r": not a plain file\.$"):
        read(tmp_path)
    with pytest.raises(RequestError, match=r"^dataset\.path: must be set to the CSV file, dataset\.path=FILE\.$"):
        read(None)
    path = write(tmp_path / "t.csv", rows())
    with pytest.raises(
        RequestError, match=r"^dataset\.target: must be set to the column of the classes, dataset\.target=COLUMN\.$"
    ):
        read(path, None)
    with pytest.raises(
        RequestError, match=r"^dataset\.delimiter: must be auto, tab, space or one character, got '::'\.$"
    ):
        read(path, delimiter="::")


def test_mutated_files_are_one_line(tmp_path: Path) -> None:
    generator = random.Random(1)
    healthy = write(tmp_path / "t.csv", rows()).read_bytes()
    pieces = [b'"', b",", b";", b"\n", b"\r", b"\0", b"\xff", b"NA", b"1e400", b"", b"\xef\xbb\xbf", b"a" * 70]
    refused = 0
    for _ in range(300):
        content = bytearray(healthy)
        for _ in range(generator.randrange(1, 4)):
            place = generator.randrange(len(content))
            content[place : place + generator.randrange(3)] = generator.choice(pieces)
        (tmp_path / "t.csv").write_bytes(content)
        try:
            read(tmp_path / "t.csv")
        except MclsError as error:
            assert isinstance(error, DataError) and "\n" not in str(error) and len(str(error)) < 500, str(error)
            refused += 1
    assert 50 < refused < 300


def outcome(path: Path) -> tuple[Any, ...]:
    """The table in a file, or the error."""
    try:
        table = read_table(path)
    except DataError as error:
        return (str(error),)
    return list(table.rows), {name: cells.to_list() for name, cells in table.columns.items()}


def test_reading_at_once_gives_what_reading_row_by_row_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of files that polars would take and that are wrong."""
    generator = random.Random(2)
    body = [
        [*row[:3], generator.choice(["a b", 'say "x"', "p,q", "one\ntwo", " \u00a0caf\u00e9 ", ""]), row[4]]
        for row in rows()
    ]
    path = write(tmp_path / "t.csv", body)
    contents = [path.read_bytes(), path.read_bytes().replace(b"\r\n", b"\n"), write(path, rows()).read_bytes()]
    pieces = [
        b'"',
        b'""',
        b',"',
        b'",',
        b",",
        b"\n",
        b"\n\n",
        b"\r",
        b"\r\n",
        b" ",
        b"\x1c",
        b"\0",
        b"\xff",
        b"e\xcc\x81",
        b'"a\n,b"',
    ]
    frames: list[Any] = []
    for number in range(600):
        content = bytearray(contents[number % 3])
        for _ in range(number // 3 % 4):
            place = generator.randrange(len(content))
            content[place : place + generator.randrange(3)] = generator.choice(pieces)
        path.write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr("mcls.data.table_encoder.read_at_once", lambda *given: frames.append(read_at_once(*given)))
            expected = outcome(path)  # nothing comes back of what is appended
        assert outcome(path) == expected, content
    assert sum(frame is not None for frame in frames) > 150


def test_numbers_of_a_column_are_those_of_its_cells() -> None:
    generator = random.Random(0)
    texts = [
        "".join(generator.choice("0123456789+-.eE_ inf\u0663d") for _ in range(generator.randrange(9)))
        for _ in range(20_000)
    ]
    texts += [repr(generator.uniform(-1, 1) * 10.0 ** generator.randrange(-320, 300)) for _ in range(20_000)]
    texts += ["", "nan", "Infinity", "1e30", "1.0000000000000002e30", "0.1" + "0" * 40 + "1", "9" * 40]
    assert as_numbers(Table.of("x", {"a": texts}, []).columns["a"]).to_list() == list(map(parse_number, texts))


def test_parquet_is_read_as_the_same_table_in_csv(tmp_path: Path, mcls: Callable[..., int]) -> None:
    import polars as pl

    expected = read(write(tmp_path / "t.csv", rows()), missing_values_strategy="mean")
    frame = pl.read_csv(tmp_path / "t.csv")
    assert [str(kind) for kind in frame.dtypes] == ["Int64", "Float64", "Int64", "String", "String"]
    frame.write_parquet(tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet", missing_values_strategy="mean")
    assert found.encoder == expected.encoder and found.classes == expected.classes
    assert torch.equal(inputs(found.train), inputs(expected.train))
    line = "dataset=csv dataset.path=t.parquet dataset.target=kind trainer.epochs=1 trainer.batch_size=8 outputs=out"
    assert mcls("train", *line.split(), "trainer.figures=false") == 0
    (run,) = (tmp_path / "out" / "t-mlp").iterdir()
    for name in ("t.csv", "t.parquet"):
        assert mcls("predict", str(run), name, "--id", "id", "--output", f"{name}.out") == 0
    assert (tmp_path / "t.csv.out").read_text() == (tmp_path / "t.parquet.out").read_text()
    frame.with_columns(pl.concat_list("id").alias("list")).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: column 'list' holds List\(Int64\), not one value per row\.$"):
        read(tmp_path / "t.parquet")


def encode(rows: list[dict[str, str]], encoder: dict[str, Any], first: int = 2) -> torch.Tensor:
    """The inputs that rows of a table called x become, the first of them row `first`."""
    there = [name for name in encoder["columns"] if all(name in row for row in rows)]
    columns = {name: [row[name].strip() for row in rows] for name in there}
    return torch.from_numpy(encode_table(Table.of("x", columns, list(range(first, first + len(rows)))), encoder))


def encoder(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    found = read(write(tmp_path / "t.csv", rows()), drop_columns=["id"], **keys).encoder
    assert found is not None
    return found


def test_new_rows_are_encoded_as_the_training_rows_were(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t.csv", rows()), drop_columns=["id"])
    assert found.encoder is not None
    body = [dict(zip(HEADER, rows()[int(name.split()[1]) - 2], strict=True)) for name in found.train.names]
    assert torch.equal(encode(body, found.encoder), inputs(found.train))
    assert encode([], found.encoder).shape == (0, 5)


def test_an_encoder_is_plain_data_that_a_checkpoint_holds(tmp_path: Path) -> None:
    found = encoder(tmp_path)

    def plain(value: Any) -> bool:
        return isinstance(value, str | float) or (isinstance(value, list) and all(map(plain, value)))

    assert all(isinstance(key, str) and plain(value) for key, value in found.items())
    checkpoint.save(tmp_path / "x.pt", {"data": {"encoder": found}})
    assert checkpoint.load_checkpoint(tmp_path / "x.pt")["data"]["encoder"] == found


ROW = {"size": "1.5", "weight": "2000", "colour": "red"}


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        ({"size": "big"}, {}, f"column 'size': 'big' is not a number (1 of 2 {CELLS}"),
        ({"size": "nan "}, {}, "column 'size': missing, got 'nan'. The model was trained without missing values."),
        (
            {"colour": ""},
            {"missing_values_strategy": "drop"},
            "column 'colour': missing, got ''. The model was trained without missing values.",
        ),
        (
            {"colour": "mauve\n"},
            {},
            "column 'colour': 'mauve' is a category that does not occur in train, which has 'blue', 'green', 'red'. "
            "Fix it, or encode it as none: dataset.handle_unknown=ignore, or for predict --handle-unknown ignore.",
        ),
    ],
)
def test_new_rows_that_do_not_fit(tmp_path: Path, change: dict[str, str], keys: dict[str, Any], message: str) -> None:
    found = encoder(tmp_path, **keys)
    assert encode([ROW, ROW], found).shape == (2, 5)  # the healthy twin
    with pytest.raises(DataError) as caught:
        encode([ROW, {**ROW, **change}], found)
    assert str(caught.value) == f"x, row 3, {message}"
    with pytest.raises(DataError, match=r"^x, row 70, "):
        encode([{**ROW, **change}], found, first=70)


def test_new_rows_without_a_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^inputs: x has no column 'colour'\. It has 'size', 'weight'\.$"):
        encode([{"size": "1", "weight": "2"}], encoder(tmp_path))


def test_new_rows_that_were_allowed_for(tmp_path: Path) -> None:
    found = encoder(tmp_path, handle_unknown="ignore", missing_values_strategy="mean")
    assert encode([{**ROW, "colour": "mauve"}], found)[0, 2:].tolist() == [0, 0, 0]
    assert encode([{"size": "?", "weight": "", "colour": "NA"}], found).tolist() == [[0, 0, 0, 0, 0]]


def test_encoding_needs_no_torch() -> None:
    line = "import sys; import mcls.data.table_encoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line]).returncode == 0


@pytest.mark.parametrize(("name", "least"), [("wine", 0.9), ("iris", 0.85), ("digits", 0.93)])
def test_scikit_learns_tables_train(
    tmp_path: Path, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str, least: float
) -> None:
    from sklearn import datasets

    from mcls.runs.folder import find_runs

    table = getattr(datasets, f"load_{name}")()
    body = [[*map(str, values), str(table.target_names[target])]
            for values, target in zip(table.data.tolist(), table.target, strict=True)]  # fmt: skip
    write(tmp_path / "own.csv", body, [*table.feature_names, "class"])
    line = "dataset=csv dataset.path=own.csv dataset.target=class trainer.epochs=10 trainer.batch_size=16 outputs=out"
    assert mcls("train", line.split(), "trainer.figures=false") == 0
    (run,) = find_runs(tmp_path / "out")
    assert (run.read_result() or {})["test"]["accuracy"] >= least
    data = checkpoint.load_checkpoint(run.best)["data"]
    assert data["encoder"]["target"] == "class" and len(data["encoder"]["columns"]) == table.data.shape[1]
    assert list(data["classes"]) == list(map(str, table.target_names))
    capsys.readouterr()
    (tmp_path / "own.csv").write_text(io.StringIO((tmp_path / "own.csv").read_text()).read().replace("\n", "\nx,", 1))
    assert mcls("train", line.split()) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mcls: own.csv, row 2: ")
    assert len(list(find_runs(tmp_path / "out"))) == 1


def test_a_run_on_a_table_resumes(tmp_path: Path, mcls: Callable[..., int]) -> None:
    from mcls.runs.folder import find_runs

    write(tmp_path / "own.csv", rows())
    line = "dataset=csv dataset.path=own.csv dataset.target=kind trainer.batch_size=8 trainer.figures=false outputs=out"
    assert mcls("train", line.split(), "trainer.epochs=2") == 0
    (run,) = find_runs(tmp_path / "out")
    assert mcls("resume", str(run.path), "trainer.epochs=3") == 0
    assert (run.read_result() or {})["epochs"] == 3
    assert newest_checkpoint(run) is not None


def test_the_default_batch_takes_what_a_small_table_has(
    tmp_path: Path, mcls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is recorded, so that a run resumes with it; a number that is asked for stays an error."""
    from mcls.runs.folder import find_runs, read_json

    write(tmp_path / "own.csv", rows(150))
    line = "dataset=csv dataset.path=own.csv dataset.target=kind trainer.figures=false outputs=out model.dropout=0.1"
    assert mcls("train", line.split(), "trainer.epochs=2") == 0
    assert "batch   108 samples, not 128: train has 108\n" in capsys.readouterr().err
    (run,) = find_runs(tmp_path / "out")
    about = read_json(run.about)
    assert about["batch_size"] == about["hyperparameters"]["trainer.batch_size"] == 108
    run.write_json(run.about, {**about, "batch_size": 54})
    assert (
        mcls("resume", str(run.path), "trainer.epochs=3") == 5
    )  # the record counts: two steps are no two epochs of 54
    assert "its steps are not those of its epochs" in capsys.readouterr().err
    run.write_json(run.about, about)
    assert mcls("resume", str(run.path), "trainer.epochs=3") == 0
    assert checkpoint.load_checkpoint(run.last)["progress"]["step"] == 3
    assert mcls("train", line.split(), "trainer.batch_size=128") == 2
    assert (
        "batch_size: 128 is more than the 108 training samples. Lower it, or set it to full." in capsys.readouterr().err
    )
