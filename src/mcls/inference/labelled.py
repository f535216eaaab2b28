"""Labelled samples that are not a run's own data: a folder of classes, or a table with the column of the classes."""

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mcls.data.image_files import ImageFiles, scan_images
from mcls.data.image_folder import fits_here
from mcls.data.image_io import MAX_PIXELS
from mcls.data.image_tree import Skipped, files_in, subfolders
from mcls.data.splits import materialise
from mcls.data.table_encoder import read_table
from mcls.data.types import Split
from mcls.errors import DataError, RequestError
from mcls.inference.inputs import encode_inputs
from mcls.inference.load import LoadedRun, with_delimiter
from mcls.system.text import clean, plural, quote_names

log = logging.getLogger("mcls")


def labelled_split(loaded: LoadedRun, path: Path) -> tuple[Split, str, dict[str, Any]]:
    """The samples in `path` whose class is one of the run's, what to call them, and what was left out of them.

    Raises RequestError for a place that is not there or a run that takes neither images nor a table with a header,
    DataError when nothing is left.
    """
    if not path.exists():
        raise RequestError(f"--data: {path}: no such file or folder.")
    wrong: list[DataError] = []
    if loaded.mean is not None and len(loaded.input_shape) == 3:
        split, labels = labelled_images(loaded, path, wrong)
    elif loaded.encoder is not None:
        split, labels = labelled_rows(loaded, path, wrong)
    else:
        raise RequestError("--data: this run was trained neither on images nor on a table with a header.")
    for error in wrong:
        log.warning(f"skipped {clean(str(error))}")
    unknown = {label: count for label, count in labels.items() if label not in loaded.classes}
    absent = [name for name in loaded.classes if not labels[name]]
    if unknown:
        samples = sum(unknown.values())
        log.warning(f"data    {plural(samples, 'sample')} left out, the run has no class {quote_names(list(unknown))}")
    if absent:
        log.warning(f"data    no sample of {quote_names(absent)}; means over classes are over the others")
    if not len(split):
        raise DataError(f"{path}: no sample of a class of the run, which has {quote_names(loaded.classes)}.")
    name = "data-" + re.sub(r"[^\w.-]", "_", path.resolve().name)
    return (
        split,
        name,
        {"data": str(path.resolve()), "unknown_classes": unknown, "absent": absent, "wrong": len(wrong)},
    )


def labelled_images(loaded: LoadedRun, root: Path, wrong: list[DataError]) -> tuple[Split, Counter[str]]:
    """The images below the folders of `root`, which are classes, and how many there are of each.

    `wrong` gets what cannot be read.
    """
    if not root.is_dir():
        raise RequestError(f"--data: {root}: must be a folder that holds a folder of images for each class.")
    left, seen = Skipped(), set[str]()
    tree = {
        name: [path for folder in folders for path in files_in(folder, seen, left)]
        for name, folders in subfolders(root, left).items()
    }
    numbers = {name: index for index, name in enumerate(loaded.classes)}
    labelled = [(path, numbers[name]) for name in tree if name in numbers for path in tree[name]]
    left.tell()
    channels, height, width = loaded.input_shape
    files = ImageFiles([path for path, _ in labelled], (channels, height, width), MAX_PIXELS, loaded.reading)
    looked = scan_images(files, fits_here(len(files) * math.prod(loaded.input_shape)))
    good = [index for index, error in enumerate(looked.errors) if error is None]
    wrong += [error for error in looked.errors if error is not None]
    names = tuple(str(labelled[index][0]) for index in good)
    targets = torch.tensor([labelled[index][1] for index in good], dtype=torch.int64)
    samples = Split(torch.tensor(good, dtype=torch.int64), targets, names)
    split = materialise(samples, files if looked.pixels is None else looked.pixels)
    return split, Counter({name: len(paths) for name, paths in tree.items()})


def labelled_rows(loaded: LoadedRun, path: Path, wrong: list[DataError]) -> tuple[Split, Counter[str]]:
    """The rows of a table, and how many there are of each class. `wrong` gets those that cannot be encoded."""
    encoder = with_delimiter(loaded)
    table = read_table(path, encoder["delimiter"])
    labels: Sequence[str] = table.column(encoder["target"], "--data").to_list()
    for name in encoder["columns"]:
        table.column(name, "--data")
    numbers = {name: index for index, name in enumerate(loaded.classes)}
    table = table.take([index for index, label in enumerate(labels) if label in numbers])
    classes = dict(zip(table.rows, table.columns[encoder["target"]].to_list(), strict=True))
    samples = list(encode_inputs(table, encoder, wrong.append, None))
    inputs = torch.tensor([]) if not samples else torch.stack([torch.from_numpy(values) for _, values in samples])
    rows = [int(name.rpartition(":")[2]) for name, _ in samples]
    targets = torch.tensor([numbers[classes[row]] for row in rows], dtype=torch.int64)
    return Split(inputs, targets, tuple(f"row {row}" for row in rows)), Counter(labels)
