"""The rows of CSV files: what a file is, seen from its first bytes, and its rows one after the other; without torch.

A row's number is that of the file, whose first line is row 1.
"""

import codecs
import contextlib
import csv
import gzip
import io
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from mcls.errors import DataError, RequestError
from mcls.system.text import composed, plural, quote_names, quoted

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("mcls")

Records = Iterator[tuple[int, list[str]]]

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MAX_TABLE_BYTES = 1e30  # its square is a float
DELIMITERS = ",;\t|"
DELIMITER_WORDS = {"tab": "\t", "\\t": "\t", "space": " "}  # delimiters that are awkward to type
HEAD = 1 << 16  # bytes that are looked at
SEEN = 100  # rows in them
MANY = 8  # numbers in a header that may be names if they only rise or fall, such as wavelengths
QUOTED = re.compile('"[^"]*"')
UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of bytes that are not UTF-8
GZIP = b"\x1f\x8b"
SAVE = "Save it as CSV."
PARQUET = b"PAR1"
BLANKS = (b" ", b"\t", b"\r", b"\v", b"\f")
UNUSUAL = (b"\0", b"\x1c", b"\x1d", b"\x1e", b"\x1f")  # refused, or blanks to Python alone
OTHER_FORMATS = {  # first bytes of what is no CSV file
    b"\xd0\xcf\x11\xe0": f"an old Excel workbook. {SAVE}",
    b"ARROW1": f"an Arrow file. {SAVE}",
    b"\x89HDF": f"an HDF5 file. {SAVE}",
    b"\x93NUMPY": f"a NumPy file. {SAVE}",
    b"SQLite format 3": f"a SQLite database. {SAVE}",
    b"%PDF": f"a PDF document. {SAVE}",
    b"BZh": "compressed with bzip2. Unpack it, or compress it with gzip.",
    b"\xfd7zXZ": "compressed with xz. Unpack it, or compress it with gzip.",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it, or compress it with gzip.",
    b"7z\xbc\xaf": "a 7z archive. Unpack it.",
}


@dataclass(frozen=True)
class Format:
    """How a CSV file is to be read.

    Args:
        path: the file.
        compressed: by gzip.
        encoding: UTF-8 or UTF-16, by its mark.
        separator: the one character between cells; a space means any number of them.
        skipped: lines before the header: comments, and Excel's `sep=;`.
        seen: the first rows.
    """

    path: Path
    compressed: bool
    encoding: str
    separator: str
    skipped: int
    seen: list[list[str]]


def parse_number(text: str) -> float | None:
    """The number that `text` is, or None: no nan, no inf, nothing above LARGEST."""
    if NUMBER.fullmatch(text) is None:
        return None
    value = float(text)
    return value if abs(value) <= MAX_TABLE_BYTES else None


def read_records(path: Path, delimiter: str = "auto", header: bool = True) -> Records:
    """Number and cells, without the blanks around them, of each row of CSV file `path`; empty rows are left out.

    Args:
        delimiter: as in configs/dataset/csv.yaml.
        header: whether the first row must be one; see `check_header`.

    Raises DataError, naming file and row, when the file is not there or is no such table.
    """
    if is_parquet(path):
        frame = read_parquet(path)
        yield from enumerate([frame.columns, *map(list, frame.iter_rows())], 1)
        return
    layout = detect(path, delimiter)
    if header:
        check_header(layout)
    yield from read_rows(layout)


def read_rows(layout: Format) -> Records:
    """The rows of a CSV file, as `read_records`."""
    path, row = layout.path, layout.skipped
    try:
        with decode_text(path, layout.compressed, layout.encoding) as file:
            for row, cells in enumerate(
                split_line(islice(file, layout.skipped, None), layout.separator), layout.skipped + 1
            ):
                text = "".join(cells)
                if wrong := UNDECODED.search(text):
                    byte = f"byte 0x{ord(wrong[0]) - 0xDC00:02x}"
                    raise DataError(f"{path}, row {row}: not UTF-8 ({byte}). Save it as UTF-8, Excel's 'CSV UTF-8'.")
                if "\0" in text:
                    raise DataError(f"{path}, row {row}: a NUL byte. Is this a text file?")
                if not text.isascii():
                    cells = list(map(composed, cells))
                if cells:
                    yield row, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(f"{path}, row {row + 1}: {error}. Is a quote not closed?") from error
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DataError(f"{path}, row {row + 1}: cannot be read ({error}).") from error


def is_parquet(path: Path) -> bool:
    """Whether `path` begins as Parquet files do."""
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(len(PARQUET)) == PARQUET
    except OSError:
        return False


def read_parquet(path: Path) -> "pl.DataFrame":
    """A Parquet file as text, as a CSV file would hold it; what is missing is empty. Raises DataError."""
    import polars as pl

    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: damaged, it cannot be read as Parquet.") from error
    nested = [name for name, kind in frame.schema.items() if kind.is_nested() or kind == pl.Binary]
    if nested:
        raise DataError(f"{path}: column {quoted(nested[0])} holds {frame.schema[nested[0]]}, not one value per row.")
    return plain_text(frame.cast(pl.String).rename(lambda name: composed(name.strip())))


def plain_text(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Cells of text without the blanks around them, accented letters as one character; empty where missing."""
    import polars as pl

    return frame.with_columns(pl.all().fill_null("").str.normalize("NFC").str.strip_chars())


def read_at_once(layout: Format, header_row: int, width: int) -> "pl.DataFrame | None":
    """What follows the header of a CSV file, as text, in `width` columns; None if it has to be read row by row.

    polars is lenient: rows that are too short, blank lines and stray quotes are no errors. So this takes only files
    where, quoted cells aside, every line has as many separators as the header; then it is what `read_rows` gives.
    """
    import polars as pl

    separator = layout.separator.encode()
    if layout.separator == " " or len(separator) != 1:
        return None
    try:
        content = gzip.decompress(layout.path.read_bytes()) if layout.compressed else layout.path.read_bytes()
        if layout.encoding == "utf-16":
            content = content.decode("utf-16").encode()
    except (OSError, EOFError, zlib.error, UnicodeError):
        return None
    start = 0
    for _ in range(header_row):
        start = content.find(b"\n", start) + 1
    if content[:start].count(b'"') % 2 or any(code in content for code in UNUSUAL):
        return None
    content = content[start:].rstrip(b"\r\n") if start else b""
    quoted_cell = rb'(?:(?<=[\n@])|^)"[^"]*(?:""[^"]*)*"(?=[\r\n@]|$)'.replace(b"@", re.escape(separator))
    bare = re.sub(quoted_cell, b"", content) if b'"' in content else content
    lines = bare.count(b"\n") + 1
    blank = bare.startswith((b"\n", b"\r")) or b"\n\n" in bare or b"\n\r" in bare
    if not content or blank or b'"' in bare or bare.count(b"\r") != bare.count(b"\r\n"):
        return None
    if np.count_nonzero(np.frombuffer(bare, np.uint8) == separator[0]) != lines * (width - 1):  # count() takes longer
        return None
    schema = {str(column): pl.String() for column in range(width)}
    try:
        frame = pl.read_csv(
            content, has_header=False, separator=layout.separator, schema=schema, empty_string_is_null=False
        )
    except pl.exceptions.PolarsError:
        return None
    widest = max(frame.select(pl.all().str.len_bytes().max()).row(0), default=0)
    if frame.height != lines or widest > csv.field_size_limit():
        return None
    return frame if content.isascii() and not any(map(content.__contains__, BLANKS)) else plain_text(frame)


def decode_text(path: Path, compressed: bool, encoding: str) -> IO[str]:
    """File `path` as text; bytes that are not UTF-8 become UNDECODED."""
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    if compressed:
        return gzip.open(path, "rt", encoding=encoding, errors=errors, newline="")
    return path.open(encoding=encoding, errors=errors, newline="")


def split_line(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """The cells of `lines`."""
    if separator == " ":
        lines = (line.strip() + "\n" for line in lines)
    return csv.reader(lines, delimiter=separator, skipinitialspace=separator == " ", strict=True)


def detect(path: Path, delimiter: str) -> Format:
    """What `path` is. Raises DataError when there is no such file, or one of another kind."""
    if not path.is_file():
        raise DataError(f"{path}: {'not a plain file' if path.exists() else 'no such file'}.")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        compressed = head.startswith(GZIP)
        if compressed:
            with gzip.open(path) as file:
                head = file.read(HEAD)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    kinds = [kind for magic, kind in OTHER_FORMATS.items() if head.startswith(magic)]
    if head.startswith(b"PK\x03\x04"):
        kinds = [
            f"an Excel workbook. {SAVE}" if b"xl/" in head or path.suffix == ".xlsx" else "a zip archive. Unpack it."
        ]
    if kinds:
        raise DataError(f"{path}: no CSV file but {kinds[0]}")
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    lines = list(io.StringIO(head.decode(encoding, "replace"), newline=""))
    lines = lines[:-1] if len(head) == HEAD and len(lines) > 1 else lines  # the last one is cut off
    named = re.fullmatch("sep=(.)", lines[0].strip(" \r\n"), re.IGNORECASE) if lines else None
    body = lines[bool(named) :]
    separator = (
        (named[1] if named else guess(body)) if delimiter == "auto" else DELIMITER_WORDS.get(delimiter, delimiter)
    )
    if len(separator) != 1 or separator in '"\r\n':
        raise RequestError(f"dataset.delimiter: must be auto, tab, space or one character, got {delimiter!r}.")
    comments = leading_comments(body, separator)
    if comments:
        log.info(f"data    {path}: {plural(comments, 'comment line')} before the header skipped")
    return Format(
        path, compressed, encoding, separator, bool(named) + comments, sample(body[comments:], separator, SEEN)
    )


def sample(lines: Sequence[str], separator: str, count: int) -> list[list[str]]:
    """The first `count` rows of `lines` that are not empty, up to one that is wrong."""
    sampled: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        sampled.extend(
            [cell.strip() for cell in cells] for cells in islice(filter(None, split_line(lines, separator)), count)
        )
    return sampled


def leading_comments(lines: Sequence[str], separator: str) -> int:
    """How many of the first `lines` begin with #; a last one with as many cells as what follows is the header."""
    count = next((index for index, line in enumerate(lines) if not line.startswith("#")), 0)
    widths = [len(row) for row in sample(lines[max(count - 1, 0) : count + 1], separator, 2)]
    return count - 1 if count and len(widths) == 2 and widths[0] == widths[1] > 1 else count


def guess(lines: Sequence[str]) -> str:
    """The separator of `lines`: one that cuts the first rows alike, the one that cuts the header most, or blanks.

    What is in quotes or in comments does not count.
    """
    lines = [line for line in lines[: 2 * SEEN] if line.strip() and not line.startswith("#")]
    header = QUOTED.sub("", "".join(lines)).partition("\n")[0]

    def alike(separator: str) -> bool:
        return len({len(row) for row in sample(lines, separator, 5)}) == 1

    best = max(
        DELIMITERS, key=lambda separator: (bool(header.count(separator)) and alike(separator), header.count(separator))
    )
    if best in header:
        return best
    first, *others = [len(row) for row in sample(lines, " ", 5)] or [0]
    return " " if first > 1 and others and set(others) in ({first}, {first + 1}) else best


def check_header(layout: Format) -> None:
    """Raise DataError when the first row looks like data, or has not as many cells as those that follow."""
    if not layout.seen:
        return
    header, *rows = layout.seen
    location, widths = f"{layout.path}, row {layout.skipped + 1}", {len(row) for row in rows}
    sign = "blank" if layout.separator == " " else quoted(layout.separator)
    if widths == {len(header) - 1} and not header[-1]:
        raise DataError(f"{location}: the header ends with an extra {sign}, the rows do not. Remove it.")
    if widths == {len(header) + 1} and len(rows) > 1:
        if not any(row[-1] for row in rows):
            raise DataError(f"{location}: the rows end with an extra {sign}, the header does not. Add one there.")
        raise DataError(
            f"{location}: the header has {plural(len(header), 'name')}, the rows have {len(header) + 1} cells. R "
            "writes names of rows so: set row.names=FALSE there, or put a name before the first."
        )
    if looks_like_data(header, rows):
        raise DataError(
            f"{location}: data without a header ({quote_names(header)}). Put a row of column names before it; "
            "if these are names, put a letter before their numbers."
        )


def looks_like_data(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first row holds numbers, or texts that its columns hold too; 0, 1, 2 may well be names."""
    values = [value for value in map(parse_number, header) if value is not None]
    steps = [after - before for before, after in pairwise(values)]
    counted = len(set(steps)) == 1 and steps[0] > 0 and (values[0] == 0 or len(values) > 2)
    rising = len(values) >= MANY and (all(step > 0 for step in steps) or all(step < 0 for step in steps))
    numbers = 0 if counted or rising else len(values)
    texts = sum(
        bool(cell) and parse_number(cell) is None and any(row[column] == cell for row in rows if len(row) > column)
        for column, cell in enumerate(header)
    )
    return 2 * (numbers + texts) > len([cell for cell in header if cell]) or bool(numbers and texts)
