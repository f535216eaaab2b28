"""Samples from what a command line names: files, folders, patterns and lists, one at a time, however many there are."""

import glob
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mcls.data import image_io
from mcls.data.delimited import Records, parse_number, read_records
from mcls.data.image_tree import ignored, suffix_of
from mcls.data.table_encoder import INPUTS, UNSEEN, Table, check_names, count_unseen, encode_table
from mcls.errors import DataError, RequestError
from mcls.inference.predict import Classifier
from mcls.system.text import clean, did_you_mean, plural, quote_names, quoted

log = logging.getLogger("mcls")

ENCODED = 256  # rows of a table that are encoded at a time
Sample = tuple[str, NDArray[Any]]
Refuse = Callable[[DataError], None]  # told what is wrong with a file or a row that is left out


def paths(arguments: Iterable[str], suffixes: set[str], listed: IO[bytes] | None) -> Iterator[str]:
    """The files that `arguments` expand to, sorted; those of one folder or pattern are held at a time.

    Args:
        arguments: files, folders (searched for `suffixes`, links to folders not followed), patterns, or `-`.
        listed: holds one path a line, read for `-`; None where standard input is closed.

    Raises RequestError for an argument that is not there.
    """
    for argument in arguments:
        if argument == "-":
            if listed is None:
                raise RequestError("-: standard input is closed. Pipe a list of files, one per line.")
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in listed if line.strip())
            continue
        matches = [argument]
        if not os.path.lexists(argument):
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207, Path's takes no absolute pattern
        for path in matches:
            yield from walk(path, suffixes) if Path(path).is_dir() else [path]
        if not matches:
            raise RequestError(f"{clean(argument)}: no such file or folder, and nothing matches it.")


def read_files(
    model: Classifier,
    arguments: Iterable[str],
    refuse: Refuse,
    listed: IO[bytes] | None = None,
    max_pixels: int = image_io.MAX_PIXELS,
    id_column: str | None = None,
) -> Iterator[Sample]:
    """Name and array of each sample in the files that `arguments` name (see `paths`), as `model` takes them."""
    files = paths(arguments, {*image_io.suffixes(), ""} if model.image else {".csv", ".tsv", ".parquet"}, listed)
    if model.image:
        return read_images(files, model.input_shape, max_pixels, model.reading, refuse)
    if model.encoder is not None:
        return rows(files, model.encoder, refuse, id_column)
    return vectors(files, model.input_shape, refuse)


def walk(folder: str, suffixes: set[str]) -> Iterator[str]:
    """The files below `folder` with one of `suffixes`, by name; as in training, not what is hidden or the system's.

    The suffix "" means images without one.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not ignored(name))
        for name in sorted(files):
            suffix, path = suffix_of(name), Path(parent, name)
            if suffix in suffixes and (suffix or image_io.is_picture(path)):
                yield str(path)


def read_images(
    paths: Iterable[str], shape: Sequence[int], max_pixels: int, reading: image_io.Reading, refuse: Refuse
) -> Iterator[Sample]:
    """Path and uint8 (C, H, W) of each picture, in `shape`; `refuse` is called with what is wrong with the others."""
    for path in paths:
        try:
            with warnings.catch_warnings(action="ignore"):  # Pillow's, of files that can be read all the same
                picture = image_io.read_resized(Path(path), shape, max_pixels, reading)
        except DataError as error:
            refuse(error)
        else:
            yield path, picture


def readable_inputs(lines: Records, refuse: Refuse) -> Records:
    """`lines` up to what cannot be read; `refuse` is called with that."""
    try:
        yield from lines
    except DataError as error:
        refuse(DataError(f"{error} The rest is not read."))


def vectors(paths: Iterable[str], shape: Sequence[int], refuse: Refuse) -> Iterator[Sample]:
    """FILE:ROW and float32 of `shape` for each row of CSV files whose columns are the inputs; a header is passed over.

    `refuse` is called with what is wrong with a file, or with a row that has not as many numbers as a sample.
    """
    count = math.prod(shape)
    for path in paths:
        for index, (row, cells) in enumerate(readable_inputs(read_records(Path(path), header=False), refuse)):
            values = list(map(parse_number, cells))
            if not index and len(cells) == count and not any(value is not None for value in values):
                continue
            if len(cells) != count:
                found = plural(len(cells), "cell")
                refuse(DataError(f"{path}, row {row}: {found}, the model takes {plural(count, 'number')}."))
            elif None in values:
                refuse(DataError(f"{path}, row {row}: {quoted(cells[values.index(None)])} is not a number."))
            else:
                yield f"{path}:{row}", np.array(values, dtype=np.float32).reshape(shape)


def loaded(path: str, encoder: dict[str, Any]) -> tuple[list[str], Records]:
    """The header and the `records` of CSV file `path`, cut as the run's table was, or else as the header suggests.

    Raises DataError when it cannot be read, lacks a column or has one twice.
    """
    for delimiter in (encoder.get("delimiter", "auto"), "auto"):
        lines = read_records(Path(path), delimiter)
        try:
            _, header = next(lines, (1, []))
        except DataError:
            if delimiter == "auto":
                raise
            continue
        if set(encoder["columns"]) <= set(header):
            break
    if not header:
        raise DataError(f"{path}: empty.")
    check_names(header, path)
    for name in encoder["columns"]:
        Table.of(path, {column: [] for column in header}, []).column(name, INPUTS)
    return header, lines


def rows(
    paths: Iterable[str], encoder: dict[str, Any], refuse: Refuse, id_column: str | None = None
) -> Iterator[Sample]:
    """Name and float32 (F,) for each row of CSV files with a header, as `encoder` makes them.

    The name is the cell of `id_column`, without one FILE:ROW. `refuse` is called with what is wrong with a file, or
    with a row: too short or too long, or not for the encoder.
    """
    for path in paths:
        unseen = 0
        try:
            header, lines = loaded(path, encoder)
        except DataError as error:
            refuse(error)
            continue
        if id_column is not None and id_column not in header:
            near = did_you_mean(id_column, header)
            raise RequestError(f"--id: {path} has no column {quoted(id_column)}. {near}It has {quote_names(header)}.")
        lines = readable_inputs(lines, refuse)
        while batch := list(islice(lines, ENCODED)):
            whole = []
            for row, cells in batch:
                if len(cells) == len(header):
                    whole.append((row, cells))
                else:
                    refuse(DataError(f"{path}, row {row}: {plural(len(cells), 'cell')}, the header has {len(header)}."))
            columns = {name: [cells[column] for _, cells in whole] for column, name in enumerate(header)}
            table = Table.of(path, columns, [row for row, _ in whole])
            unseen += count_unseen(table, encoder) if encoder["unseen"] == "ignore" else 0
            yield from encode_inputs(table, encoder, refuse, id_column)
        if unseen:
            log.warning(f"{clean(path)}: {plural(unseen, 'cell')} {UNSEEN}")


def encode_inputs(table: Table, encoder: dict[str, Any], refuse: Refuse, id_column: str | None) -> Iterator[Sample]:
    """Name and float32 (F,) for each row of `table`: all at once, or in halves where a row is wrong."""
    try:
        inputs = encode_table(table, encoder)
    except DataError as error:
        if len(table.rows) == 1:
            refuse(error)
        else:
            middle = len(table.rows) // 2
            for half in (range(middle), range(middle, len(table.rows))):
                yield from encode_inputs(table.take(half), encoder, refuse, id_column)
    else:
        names = table.columns[id_column].to_list() if id_column else [f"{table.source}:{row}" for row in table.rows]
        yield from zip(names, inputs, strict=True)
