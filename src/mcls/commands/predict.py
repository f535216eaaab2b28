"""`mcls predict`: classify files with a finished run or an exported model."""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from mcls.commands.options import (
    Parser,
    add_device,
    add_temperature,
    add_tta,
    expanded,
    open_classifier,
    path,
    positive,
    share,
)
from mcls.errors import DataError, RequestError
from mcls.system import text as system_text
from mcls.system.console import console, say_progress
from mcls.system.files import replacing
from mcls.system.text import composed

if TYPE_CHECKING:
    from mcls.inference.inputs import Sample
    from mcls.inference.predict import Classifier, NumpyArray

log = logging.getLogger("mcls")

Batches = Iterator[tuple[list[str], "NumpyArray"]]
Found = Iterable[tuple[list[str], "NumpyArray"]]


def run(arguments: list[str]) -> int:
    """Classify everything that is named. Returns the exit status."""
    options = parse_options(arguments)
    with console():
        say_progress("reading the run")
        model = open_classifier(
            options.run, options.device, options.changes, options.tta, options.temperature, options.reject_below
        )
        if options.top > len(model.classes):
            raise RequestError(f"--top {options.top}: there are {len(model.classes)} classes.")
        counter = Counter(options.strict)
        batches = classified(model, options, counter)
        path = options.output
        with contextlib.nullcontext(sys.stdout) if path is None else replacing(path, "x", "utf-8") as file:
            begun = list(islice(batches, 1))  # errors in all of the input are reported before anything is written
            if not begun:
                raise DataError(nothing(model, options, counter))
            predictions = chain(begun, batches)
            classes = ("", *model.classes) if model.least else model.classes
            say_progress()
            for text in WRITERS[options.format](predictions, classes, options.top, options.id or "file"):
                file.write(text)
                file.flush()
            if counter.skipped and not model.image:  # rows are put beside those of another table, by place
                told = f"wrong rows or files: {counter.skipped:,} of {counter.done + counter.skipped:,}, left out"
                raise DataError(told + (f"; {system_text.clean(str(path))} is not written." if path else "."))
        where = f", in {system_text.clean(str(path))}" if path else ""
        log.info(f"{counter.done:,} classified{where}")
        if model.least:
            log.info(f"no class for {counter.rejected:,} of them")
        if counter.skipped:
            raise DataError(f"invalid images: {counter.skipped:,} of {counter.done + counter.skipped:,}, left out.")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls predict",
        description="Classify images, or the rows of CSV files if the run was trained on a table. An invalid file "
        "or row is reported on stderr and skipped, and the exit status is 3. The model is the selected one of a run, "
        "or a file written by mcls export. Of a sweep, it is the mean of the probabilities of the best setting's runs.",
    )
    command.add_argument("run", type=path, metavar="RUN", help="folder of a run or a sweep, or an exported .onnx file")
    named = "files, folders, patterns; - reads a list from stdin; and trust=[my_package] for a model of yours"
    command.add_argument("inputs", nargs="+", type=expanded, metavar="INPUT", help=named)
    command.add_argument("--top", type=positive, default=1, metavar="K", help="how many classes to name (default 1)")
    wide = "what to write (default csv); wide is a CSV with a column for each class, in full precision"
    command.add_argument("--format", choices=tuple(WRITERS), default="csv", help=wide)
    named = "the column of the table that names the rows; what is written begins with it (pictures: their file's name)"
    command.add_argument("--id", metavar="COLUMN", help=named)
    unknown = (
        "a category that train does not have is wrong, or counts as none (default: dataset.handle_unknown of the run)"
    )
    command.add_argument("--handle-unknown", choices=("error", "ignore"), help=unknown)
    command.add_argument(
        "--output", type=path, metavar="FILE", help="write to this file, complete or not at all, instead of stdout"
    )
    command.add_argument("--strict", action="store_true", help="an invalid file or row is an error, exit status 3")
    add_device(command)
    add_tta(command)
    add_temperature(command)
    least = "name no class where the model is so unsure that the error among the rest would be more than this"
    command.add_argument("--reject-below", type=share, metavar="RISK", help=f"{least}, by what val shows (0 to 1)")
    command.add_argument("--batch-size", type=positive, default=64, metavar="N", help="samples per batch (default 64)")
    command.add_argument("--max-pixels", type=positive, metavar="N", help="refuse larger images (default 64 million)")
    command.add_argument("--trust", action="append", default=[], help=argparse.SUPPRESS)  # as it was once said
    return command


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The options on the command line."""
    command = parser()
    options = command.parse_intermixed_args(arguments)
    options.changes = [f"trust={json.dumps(options.trust)}"] if options.trust else []
    options.changes += [word for word in options.inputs if word.startswith("trust=")]
    options.inputs = [word for word in options.inputs if not word.startswith("trust=")]
    if options.reject_below and options.format == "wide":
        raise RequestError("--reject-below: not with --format wide, which names no class. Omit one.")
    if not options.inputs:
        command.error("the following arguments are required: INPUT")
    return options


class Counter:
    """Counts what was classified and what could not be read.

    Args:
        strict: raise what is wrong with a file or a row instead of counting it.
    """

    def __init__(self, strict: bool) -> None:
        self.strict, self.done, self.skipped, self.rejected = strict, 0, 0, 0

    def refuse(self, error: DataError) -> None:
        """Name a file or a row that is left out."""
        if self.strict:
            raise DataError(system_text.clean(str(error)))
        self.skipped += 1
        log.warning(f"skipped {system_text.clean(str(error))}")


def nothing(model: "Classifier", options: argparse.Namespace, counter: Counter) -> str:
    """Why nothing was classified."""
    others = len(options.inputs) - 1
    names = options.inputs[0] + (f" and {others} more" if others else "")
    if counter.skipped:
        return f"{names}: nothing was classified, all that was found is wrong."
    kind = "pictures" if model.image else "CSV files"
    return f"{names}: nothing to classify, this run takes {kind}. Name some, or a folder that holds some."


def classified(model: "Classifier", options: argparse.Namespace, counter: Counter) -> Batches:
    """Names and probabilities of everything that is named, a batch at a time."""
    from mcls.data import image_io
    from mcls.inference import predict
    from mcls.inference.inputs import read_files

    if model.image:
        channels, height, width = model.input_shape
        if channels not in image_io.MODES:
            raise RequestError(f"{options.run}: takes {channels} channels, which image files do not have.")
        colours = "grey" if channels == 1 else "RGB"
        log.info(f"images are rotated by EXIF and resized to {width} x {height} {colours}")
    elif model.encoder is None and options.id:
        raise RequestError("--id: this run takes unnamed numeric columns. Omit it.")
    elif model.encoder is not None and options.handle_unknown:
        model = replace(model, encoder={**model.encoder, "unseen": options.handle_unknown})
    listed = None if sys.stdin is None else sys.stdin.buffer  # it is None when it is closed
    most, column = options.max_pixels or image_io.MAX_PIXELS, options.id and composed(options.id)
    samples: Iterator[Sample] = read_files(model, options.inputs, counter.refuse, listed, most, column)
    if model.image and options.id:
        samples = ((Path(name).name, picture) for name, picture in samples)
    for names, probabilities in predict.classify(model, samples, options.batch_size):
        counter.done += len(names)
        if model.least:
            unsure = probabilities.max(axis=1) < model.least
            counter.rejected += int(unsure.sum())
            probabilities = with_none(probabilities, unsure)
        yield names, probabilities


def with_none(probabilities: "NumpyArray", unsure: "NumpyArray") -> "NumpyArray":
    """`probabilities` (n, C) after a column for no class: as probable as the best class of those that are `unsure`."""
    import numpy as np

    none = np.where(unsure, probabilities.max(axis=1), -1)
    return np.concatenate([none[:, None], probabilities], axis=1)


def best(probabilities: "NumpyArray", classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The `top` classes of one sample (probabilities (C,)) with their probabilities, the most probable first."""
    order = (-probabilities).argsort(kind="stable")[:top]
    return [(classes[index], float(probabilities[index])) for index in order.tolist()]


def as_csv(predictions: Found, classes: Sequence[str], top: int, first: str) -> Iterator[str]:
    """A header that begins with `first`, then one line per sample; names are as they are, for programs to read."""
    header = [first, "class", "probability"]
    for rank in range(2, top + 1):
        header += [f"class_{rank}", f"probability_{rank}"]
    yield system_text.comma_separated(header, [], safe=False)
    for names, batch in predictions:
        rows = [
            [name, *(cell for label, part in best(row, classes, top) for cell in (label, f"{part:.6g}"))]
            for name, row in zip(names, batch, strict=True)
        ]
        yield system_text.comma_separated(header, rows, safe=False).partition("\n")[2]


def as_wide(predictions: Found, classes: Sequence[str], top: int, first: str) -> Iterator[str]:
    """A header, then one line per sample with the probability of each class: in full, none is 0, and they sum to 1."""
    import numpy as np

    yield system_text.comma_separated([first, *classes], [], safe=False)
    for names, batch in predictions:
        parts = np.maximum(batch.astype(np.float64), np.finfo(np.float32).tiny)
        parts /= parts.sum(axis=1, keepdims=True)
        rows = [[name, *map(repr, row)] for name, row in zip(names, parts.tolist(), strict=True)]
        yield system_text.comma_separated(["", ""], rows, safe=False).partition("\n")[2]


def as_jsonl(predictions: Found, classes: Sequence[str], top: int, first: str) -> Iterator[str]:
    """One JSON object a sample: `first`, class, probability, and `top`, a list, for more than one class."""
    for names, batch in predictions:
        for name, row in zip(names, batch, strict=True):
            chosen = [{"class": label, "probability": float(f"{part:.6g}")} for label, part in best(row, classes, top)]
            yield json.dumps({first: name, **chosen[0], **({"top": chosen} if top > 1 else {})}) + "\n"


def as_table(predictions: Found, classes: Sequence[str], top: int, first: str) -> Iterator[str]:
    """Aligned columns, `first` the last, so that no line waits for another."""
    names = [system_text.clean(name) for name in classes]
    width = max(len("class"), *map(len, names))
    yield "".join(f"{'class':<{width}}  {'probability':<11}  " for _ in range(top)) + f"{system_text.clean(first)}\n"
    for files, batch in predictions:
        for file, row in zip(files, batch, strict=True):
            cells = (f"{label:<{width}}  {part:<11.4f}  " for label, part in best(row, names, top))
            yield "".join(cells) + system_text.clean(file) + "\n"


WRITERS = {"csv": as_csv, "wide": as_wide, "jsonl": as_jsonl, "table": as_table}
