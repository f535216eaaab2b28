"""Data sets of Hugging Face's library `datasets`, opened: their splits, and which of them are train, val and test."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcls.data.image_tree import SPLITS
from mcls.errors import DataError, MachineError, RequestError
from mcls.system.files import refuse_file
from mcls.system.text import quote_names, quoted

log = logging.getLogger("mcls")

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class HubSplit:
    """A split.

    Args:
        name: as the data set has it.
        source: what messages call it.
        rows: a `datasets.Dataset`; its table is memory-mapped.
    """

    name: str
    source: str
    rows: Any

    def at(self, row: int, column: str) -> str:
        """Where a cell is, for messages."""
        return f"{self.source}[{row}], column {quoted(column)}"


def import_datasets(asked: str) -> Any:
    """The library, silent. Raises MachineError without it, naming what `asked` for it."""
    try:
        import datasets
    except ImportError as error:
        raise MachineError(f"{asked}: datasets is not installed. Install it: pip install 'mcls[hf]'") from error
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # which tells each try of a network that is not there
    return datasets


@contextlib.contextmanager
def offline(datasets: Any) -> Iterator[None]:
    """Keep `datasets` from the network: it takes what is in its cache."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def open_splits(path: str, name: str | None, download: bool) -> dict[str, Any]:
    """The splits in folder `path`, or of the data set of that name, by their names."""
    if Path(path).is_dir():
        return open_folder(path, name, "dataset.path", "dataset=huggingface")
    datasets = import_datasets("dataset=huggingface")
    refuse_file("dataset.path", Path(path))
    return by_name(load_named(datasets, path, name, download))


def open_folder(path: str, name: str | None, key: str, asked: str) -> dict[str, Any]:
    """The splits in folder `path`, by their names.

    Raises DataError, naming `key`, and MachineError, naming what `asked` for it.
    """
    datasets = import_datasets(asked)
    try:
        found = by_name(datasets.load_from_disk(path) if is_saved(Path(path)) else datasets.load_dataset(path, name))
    except Exception as error:  # what its readers raise on damaged files and odd folders is of every kind
        raise DataError(f"{key}: {path}: cannot be read ({reason_of(error)}).") from error
    if not found:
        raise DataError(f"{key}: {path}: a data set without a split. Save it again with one, such as train.")
    return found


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote `folder`."""
    return any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))


def holds_splits(folder: Path) -> bool:
    """Whether `save_to_disk` wrote `folder`, or there are Parquet or Arrow files in it or in the folders in it."""
    kinds = [f"{depth}*.{suffix}" for depth in ("", "*/") for suffix in ("parquet", "arrow")]
    return is_saved(folder) or any(next(folder.glob(kind), None) for kind in kinds)


def by_name(found: Any) -> dict[str, Any]:
    """The splits of a `DatasetDict`; a `Dataset` is the split train."""
    return dict(found) if isinstance(found, dict) else {"train": found}


def load_named(datasets: Any, path: str, name: str | None, download: bool) -> Any:
    """The data set called `path` from the cache, else, with `download`, from the network."""
    if not HUB_NAME.fullmatch(path):
        raise DataError(f"dataset.path: {path}: no such folder, and no name of a data set, such as user/data.")
    try:
        with offline(datasets):
            return datasets.load_dataset(path, name)
    except ConnectionError:  # not in the cache
        reason = "dataset.download=false"
    except Exception as error:  # of every kind
        raise RequestError(f"dataset.name: {path}: {reason_of(error)}.") from error
    if download:
        log.info(f"data    {path} is not in {datasets.config.HF_DATASETS_CACHE}; looking for it on the network")
        try:
            return datasets.load_dataset(path, name)
        except Exception as error:  # of every kind
            reason = reason_of(error)
    raise MachineError(
        f"dataset.path: {path} is neither a folder nor in {datasets.config.HF_DATASETS_CACHE} ({reason}). Where there "
        f"is a network: hf download {path} --repo-type dataset --local-dir DIR. Bring DIR, and set dataset.path=DIR."
    )


def reason_of(error: Exception) -> str:
    """What an error of the library says, in one line."""
    if isinstance(error, IndexError) or "corresponds to no data" in str(error):
        return "a split has no row; remove it from the data set"
    return " ".join((str(error) or type(error).__name__).split()).rstrip(".")


def choose_splits(found: dict[str, Any], wanted: dict[str, str | None], path: str) -> dict[str, HubSplit]:
    """The splits that are train, val and test. Raises RequestError for a name that is not there."""
    parts: dict[str, HubSplit] = {}
    for part, asked in wanted.items():
        if asked != "auto":
            name = asked
        elif part == "train" and len(found) == 1:
            name = next(iter(found))
        else:
            name = next((word for word in SPLITS[part] if word in found), "train" if part == "train" else None)
        used = [split.name for split in parts.values()]
        if name is None or (asked == "auto" and name in used):  # the only one, which is train
            continue
        if name not in found:
            raise RequestError(
                f"dataset.{part}_split: {path} has no split {quoted(name)}. It has {quote_names(list(found))}."
            )
        if name in used:
            raise RequestError(f"dataset.{part}_split: {quoted(name)} is another split too. Name each once, or null.")
        parts[part] = HubSplit(name, f"{path}, {name}", found[name])
    if unused := [name for name in found if name not in [split.name for split in parts.values()]]:
        log.info(f"data    {path}: split {quote_names(unused)} not used")
    return parts
