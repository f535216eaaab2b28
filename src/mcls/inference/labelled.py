"""Labelled samples that are not a run's own data: a folder of classes, a table, or a data set of Hugging Face's."""

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mcls.data import hub, huggingface
from mcls.data.image_files import ImageFiles, scan_images
from mcls.data.image_folder import fits_here
from mcls.data.image_io import MAX_PIXELS
from mcls.data.image_tree import SPLITS, Skipped, files_in, subfolders
from mcls.data.packed_image import PackedImage
from mcls.data.splits import materialise
from mcls.data.table_encoder import Table, read_table
from mcls.data.types import Split
from mcls.errors import DataError, RequestError
from mcls.inference.inputs import encode_inputs
from mcls.inference.load import LoadedRun, with_delimiter
from mcls.system.text import clean, plural, quote_names, quoted

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
        paths, names = packed_pictures(loaded, path) if hub.holds_splits(path) else class_folders(path)
        split, labels = labelled_images(loaded, paths, names, wrong)
    elif loaded.encoder is not None:
        if path.is_dir() and not hub.holds_splits(path):
            raise RequestError(
                f"--data: {path}: must be a table, or a folder with a data set of Hugging Face's; the run took a table."
            )
        table = hub_table(path) if path.is_dir() else read_table(path, with_delimiter(loaded)["delimiter"])
        split, labels = labelled_rows(loaded, table, wrong)
    else:
        raise RequestError("--data: this run was trained neither on images nor on a table with a header.")
    for error in wrong:
        log.warning(f"skipped {clean(str(error))}")
    unknown = {label: count for label, count in labels.items() if label not in loaded.classes}
    absent = [name for name in loaded.classes if not labels[name]]
    if "" in unknown:
        log.warning(f"data    {plural(unknown[''], 'sample')} left out, without a label")
    if names := [label for label in unknown if label]:
        samples = plural(sum(unknown[label] for label in names), "sample")
        log.warning(f"data    {samples} left out, the run has no class {quote_names(names)}")
    if absent and len(split):
        log.warning(f"data    no sample of {quote_names(absent)}; means over classes are over the others")
    if not len(split):
        raise DataError(f"{path}: no sample of a class of the run, which has {quote_names(loaded.classes)}.")
    name = "data-" + re.sub(r"[^\w.-]", "_", path.resolve().name)
    return (
        split,
        name,
        {"data": str(path.resolve()), "unknown_classes": unknown, "absent": absent, "wrong": len(wrong)},
    )


def class_folders(root: Path) -> tuple[list[Path], list[str]]:
    """The images below the folders of `root`, and the class of each: the name of its folder."""
    left, seen = Skipped(), set[str]()
    found = [
        (path, name)
        for name, folders in (subfolders(root, left) if root.is_dir() else {}).items()
        for folder in folders
        for path in files_in(folder, seen, left)
    ]
    left.tell()
    if not found:
        raise RequestError(f"--data: {root}: must be a folder that holds a folder of images for each class.")
    return [path for path, _ in found], [name for _, name in found]


def open_labelled(folder: Path) -> hub.HubSplit:
    """The test split of a data set of Hugging Face's, or its only one. Raises RequestError without either."""
    found = hub.open_folder(str(folder), None, "--data", "--data")
    tests = [word for word in SPLITS["test"] if word in found] or list(found)
    if len(found) > 1 and tests == list(found):
        raise RequestError(f"--data: {folder} has the splits {quote_names(tests)}, no test. Name a folder with one.")
    if len(found) > 1:
        log.info(f"data    {clean(str(folder))}: its split {quoted(tests[0])} is measured")
    return hub.HubSplit(tests[0], f"{folder}, {tests[0]}", found[tests[0]])


def packed_pictures(loaded: LoadedRun, folder: Path) -> tuple[list[Path | PackedImage], list[str]]:
    """The pictures of a data set of Hugging Face's, and the class of each, from the columns that the run took."""
    split, node = open_labelled(folder), loaded.config["dataset"]
    own = node if node["_target_"] == "mcls.datasets.huggingface" else {}
    target = huggingface.choose_target(split, own.get("target", "auto"), own.get("drop_columns", ()))
    column = huggingface.choose_images(split, own.get("image_column", "auto"), own.get("drop_columns", ()))
    if column is None:
        raise RequestError(f"--data: {split.source} has no column of pictures, which this run takes.")
    return huggingface.picture_paths(split, column), huggingface.text_cells(split, target).to_list()


def hub_table(folder: Path) -> Table:
    """The columns of a data set of Hugging Face's that have one value per row, as text."""
    split = open_labelled(folder)
    return huggingface.split_table(split, huggingface.flat_columns(split))


def labelled_images(
    loaded: LoadedRun, paths: Sequence[Path | PackedImage], labels: Sequence[str], wrong: list[DataError]
) -> tuple[Split, Counter[str]]:
    """The images whose label is a class of the run, and how many there are of each label.

    `wrong` gets what cannot be read.
    """
    numbers = {name: index for index, name in enumerate(loaded.classes)}
    labelled = [(path, numbers[name]) for path, name in zip(paths, labels, strict=True) if name in numbers]
    channels, height, width = loaded.input_shape
    files = ImageFiles([path for path, _ in labelled], (channels, height, width), MAX_PIXELS, loaded.reading)
    looked = scan_images(files, fits_here(len(files) * math.prod(loaded.input_shape)))
    good = [index for index, error in enumerate(looked.errors) if error is None]
    wrong += [error for error in looked.errors if error is not None]
    names = tuple(str(labelled[index][0]) for index in good)
    targets = torch.tensor([labelled[index][1] for index in good], dtype=torch.int64)
    samples = Split(torch.tensor(good, dtype=torch.int64), targets, names)
    split = materialise(samples, files if looked.pixels is None else looked.pixels)
    return split, Counter(labels)


def labelled_rows(loaded: LoadedRun, table: Table, wrong: list[DataError]) -> tuple[Split, Counter[str]]:
    """The rows of a table, and how many there are of each class. `wrong` gets those that cannot be encoded."""
    encoder = with_delimiter(loaded)
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
