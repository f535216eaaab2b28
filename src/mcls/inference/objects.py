"""Samples from Python objects: images, arrays, tables, and the files that `mcls predict` reads, prepared as it does."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageOps

from mcls.data import image_io
from mcls.data.delimited import MAX_TABLE_BYTES
from mcls.data.table_encoder import UNSEEN, Table, check_names, count_unseen, encode_table
from mcls.errors import DataError
from mcls.inference.inputs import Sample, read_files
from mcls.inference.predict import Classifier, NumpyArray
from mcls.system.text import composed, plural, quote_names

log = logging.getLogger("mcls")

TABLE = "the table"  # what messages call a table that is no file
ROWS = "a data frame, a list of dictionaries, rows of cells, or paths"
IMAGES = "PIL images, uint8 arrays (H, W), (H, W, 3), (N, H, W) or (N, H, W, 3), or paths"
NO_VALUE = {"None", "nan", "NaN", "NaT", "<NA>"}  # what the missing values of Python, numpy and pandas are as text


def fail(error: DataError) -> NoReturn:
    """Raise what is wrong with a file or a row: from Python nothing is left out."""
    raise error


def python_samples(model: Classifier, given: Any) -> Iterator[Sample]:
    """Name and array of each sample in `given`, as `model` takes them; see `Run.predict`. Raises DataError.

    The name is the file, or FILE:ROW, and "" for what is no file.
    """
    listed = [given] if isinstance(given, str | os.PathLike) else given
    if isinstance(listed, list | tuple) and listed and all(isinstance(item, str | os.PathLike) for item in listed):
        return read_files(model, map(os.fspath, listed), fail)
    if model.image:
        return (("", sample) for sample in image_samples(model, given))
    rows = table_rows(model.encoder, given) if model.encoder is not None else vector_rows(model.input_shape, given)
    return (("", row) for row in rows)


def image_samples(model: Classifier, given: Any) -> Iterator[NumpyArray]:
    """uint8 (C, H, W) of each image in `given`."""
    channels, *size = model.input_shape
    if isinstance(given, Image.Image):
        try:
            image = image_io.in_mode(ImageOps.exif_transpose(given), image_io.MODES[channels], model.reading.bits)
        except Exception as error:  # what Pillow's decoders raise on damaged files is of every kind
            raise DataError(f"inputs: an image cannot be read ({image_io.reason(error)}).") from error
        yield image_io.resize_image(image, size, model.reading)
    elif isinstance(given, str | os.PathLike):
        yield from (sample for _, sample in read_files(model, [os.fspath(given)], fail))
    elif hasattr(given, "__array__"):
        array = as_array(given)
        if array.dtype != np.uint8:
            raise DataError(f"inputs: images are uint8, 0 to 255, got {array.dtype}. Convert them, or pass PIL images.")
        if array.shape[-3:] == model.input_shape and array.ndim in (3, 4):
            yield from array.reshape(-1, *model.input_shape)
        elif array.ndim == 3 and model.input_shape == (1, *array.shape[1:]):
            yield from array[:, None]
        else:
            for pixels in pixel_arrays(array, channels):
                yield from image_samples(model, Image.fromarray(pixels))
    elif isinstance(given, Iterable) and not isinstance(given, Mapping | bytes):
        for item in given:
            yield from image_samples(model, item)
    else:
        raise DataError(f"inputs: got {type(given).__name__}. This run takes {IMAGES}.")


def pixel_arrays(array: NumpyArray, channels: int) -> Iterable[NumpyArray]:
    """Each image (H, W) or (H, W, C) in an array, for a model of `channels`. Raises DataError for another shape."""
    if array.ndim in (3, 4) and array.shape[-1] not in (1, 3, 4) and array.shape[-3] == channels == 3:
        array = np.moveaxis(array, -3, -1)  # channels first
    last = array.shape[-1:] if array.ndim > 2 else ()
    if array.ndim not in (2, 3, 4) or 0 in array.shape[-2:] or (array.ndim == 4 and last[0] not in (1, 3, 4)):
        raise DataError(f"inputs: an array of shape {array.shape}. This run takes {IMAGES}.")
    if last == (1,):
        array, last = array[..., 0], ()
    one = 2 + (last in ((3,), (4,)))
    return [array] if array.ndim == one else array


def vector_rows(shape: Sequence[int], given: Any) -> Iterator[NumpyArray]:
    """float32 of `shape` for each sample of numbers in `given`."""
    if is_table(given):
        columns = [list(given[name]) for name in given.columns]
        given = list(zip(*columns, strict=True))
    array = as_array(given)
    if array.dtype.kind not in "buif":
        raise DataError(f"inputs: must be numbers, got {array.dtype}.")
    if array.shape != tuple(shape) and array.shape[1:] != tuple(shape) and array.size:
        wanted = ", ".join(map(str, shape))
        raise DataError(f"inputs: must be of shape ({wanted},) or (N, {wanted}), got {array.shape}.")
    values = array.astype(np.float64).reshape(-1, *shape)
    for index, row in enumerate(values):
        if not (np.abs(row) <= MAX_TABLE_BYTES).all():
            raise DataError(f"inputs, row {index}: {row[~(np.abs(row) <= MAX_TABLE_BYTES)][0]} is not a finite number.")
    return iter(values.astype(np.float32))


def as_array(given: Any) -> NumpyArray:
    """`given` as a numpy array: of tensors, whatever their device, too. Raises DataError for what has no shape."""
    try:
        return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    except (ValueError, TypeError) as error:
        raise DataError(f"inputs: cannot be made an array ({image_io.reason(error)}).") from error


def is_table(given: Any) -> bool:
    """Whether `given` has columns by name, as the data frames of pandas and polars do."""
    return hasattr(given, "columns") and hasattr(given, "__getitem__")


def table_rows(encoder: dict[str, Any], given: Any) -> Iterator[NumpyArray]:
    """float32 (F,) for each row of the table in `given`."""
    categories = dict(zip(encoder["columns"], encoder["categories"], strict=True))
    columns = {composed(str(name).strip()): cells for name, cells in named_columns(encoder["columns"], given).items()}
    texts = {name: [cell_text(cell, categories.get(name, ())) for cell in cells] for name, cells in columns.items()}
    table = Table.of(TABLE, texts, list(range(len(next(iter(texts.values()), [])))))
    inputs = encode_table(table, encoder)
    if encoder["unseen"] == "ignore" and (unseen := count_unseen(table, encoder)):
        log.warning(f"{TABLE}: {plural(unseen, 'cell')} {UNSEEN}")
    return iter(inputs)


def named_columns(names: Sequence[str], given: Any) -> dict[str, list[Any]]:
    """The cells of each column of a data frame, of dictionaries, or of rows of cells in the order of `names`."""
    if is_table(given):
        check_names(list(map(str, given.columns)), TABLE)
        return {name: list(given[name]) for name in given.columns}
    rows = [given] if isinstance(given, Mapping) else given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(rows, list | tuple):
        raise DataError(f"inputs: got {type(given).__name__}. This run takes {ROWS}.")
    if rows and all(isinstance(row, Mapping) for row in rows):
        return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    rows = rows if not rows or isinstance(rows[0], list | tuple) else [rows]
    for index, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != len(names):
            wrong = plural(len(row), "cell") if isinstance(row, list | tuple) else type(row).__name__
            raise DataError(
                f"inputs, row {index}: got {wrong}. This run has {plural(len(names), 'column')}: {quote_names(names)}."
            )
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def cell_text(value: Any, categories: Sequence[str]) -> str:
    """`value` as it would stand in a CSV file: missing is empty, 5.0 and True are the categories 5 and true."""
    if isinstance(value, str):
        return composed(value.strip())
    value = value.item() if hasattr(value, "item") else value
    texts = [str(value), str(value).lower()]
    if isinstance(value, float) and value.is_integer():
        texts.append(str(int(value)))
    if texts[0] in NO_VALUE:
        return ""
    return next((text for text in texts if text in categories), texts[0])
