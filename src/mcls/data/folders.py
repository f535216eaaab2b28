"""The tree of an image data set: which folders are splits and classes, which files are images, what is left out."""

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mcls import images
from mcls.data.names import did_you_mean, listed, natural, quoted
from mcls.errors import DataError, MachineError
from mcls.tables import clean

log = logging.getLogger("mcls")

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SYSTEM = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
LAYOUT = (
    "Expected: DIR/CLASS/image.png, or DIR/train/CLASS/image.png with DIR/val and DIR/test beside it if there are any."
)


@dataclass(frozen=True)
class Found:
    """The images of a tree.

    Args:
        classes: names, in natural order.
        paths: of all images.
        targets: class number of each.
        names: of each, below the root, without characters that a terminal would obey.
        parts: numbers of the images of each split that has a folder; `train` always.
    """

    classes: tuple[str, ...]
    paths: list[Path]
    targets: list[int]
    names: list[str]
    parts: dict[str, list[int]]


@dataclass
class Left:
    """What was left out, to be told once."""

    hidden: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    loose: int = 0
    links: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)

    def tell(self) -> None:
        """Say it."""
        if self.hidden:
            log.info(f"data    hidden and system folders are not looked into: {listed(natural(self.hidden))}")
        if self.others:
            log.warning(f"data    folders beside train are not used: {listed(natural(self.others))}")
        if self.loose:
            log.warning(f"data    {self.loose:,} images outside the folders of classes are not used")
        if self.links:
            log.warning(f"data    {self.links:,} links to folders that were looked into already are not followed")
        if self.suffixes:
            counts = ", ".join(f"{count:,} {clean(suffix)}" for suffix, count in self.suffixes.most_common(10))
            log.warning(f"data    files that are no images by their names are not used: {counts}")


def find(root: Path) -> Found:
    """The images below `root`. Raises DataError when there is no such tree of classes."""
    if not root.is_dir():
        what = "a file, no folder" if root.exists() else "no such folder"
        raise DataError(f"dataset.root: {clean(str(root))}: {what}. {LAYOUT}")
    left = Left()
    places = split_folders(root, left)
    trees = {part: subfolders(place, left) for part, place in places.items()}
    classes = natural(trees["train"])
    if not classes:
        raise DataError(f"dataset.root: {clean(str(places['train']))}: no folders of classes in it. {LAYOUT}")
    if places == {"train": root}:
        tell_unknown_splits(trees["train"])
    found = Found(tuple(classes), [], [], [], {})
    for part, tree in trees.items():
        for name in natural(tree):
            if name not in classes:
                raise DataError(
                    f"{clean(str(tree[name]))}: class {quoted(name)} is not in train. "
                    f"{did_you_mean(name, classes)}train has {listed(classes)}."
                )
        seen: set[str] = set()
        first = len(found.paths)
        for number, name in enumerate(classes):
            paths = files_in(tree[name], seen, left) if name in tree else []
            if not paths and part == "train":
                raise DataError(f"{clean(str(tree[name]))}: no image in this folder of a class. {LAYOUT}")
            found.paths.extend(paths)
            found.targets.extend([number] * len(paths))
            found.names.extend(clean(os.path.relpath(path, root)) for path in paths)
        if len(found.paths) == first:
            raise DataError(f"{clean(str(places[part]))}: no image in it. Remove the folder, or fill it. {LAYOUT}")
        found.parts[part] = list(range(first, len(found.paths)))
    left.tell()
    return found


def split_folders(root: Path, left: Left) -> dict[str, Path]:
    """The folders of train and, where they are, of val and test; `root` itself is train when it holds classes.

    A folder called train is one of the splits if it has folders in it, or if there is nothing but splits beside it.
    """
    inside = subfolders(root, Left())
    by_name = {name.lower(): place for name, place in inside.items()}
    found = {part: by_name[name] for part, names in SPLITS.items() for name in names[::-1] if name in by_name}
    others = {name for name, place in inside.items() if place not in found.values()}
    if "train" not in found or (others and not subfolders(found["train"], Left())):
        return {"train": root}
    left.others |= others
    subfolders(root, left)
    return found


def tell_unknown_splits(tree: dict[str, Path]) -> None:
    """Warn when the folders taken for classes hold no image themselves and all the same folders, as splits do."""
    left, first = Left(), None
    for place in tree.values():
        inside = set(subfolders(place, left))
        first = inside if first is None else first
        if left.loose or len(inside) < 2 or inside != first:
            return
    if first is not None and len(tree) > 1:
        log.warning(
            f"data    {listed(natural(tree))} are taken for classes, but hold no image themselves and all the same "
            f"folders, {listed(natural(first))}. Are they splits? Call them train, val and test."
        )


def subfolders(folder: Path, left: Left) -> dict[str, Path]:
    """Name, fit to be shown, and path of each folder in `folder` but the hidden and the system's."""
    known, found = images.suffixes(), {}
    for entry in entries(folder):
        if not entry.is_dir():
            left.loose += suffix_of(entry.name) in known
        elif ignored(entry.name):
            left.hidden.add(entry.name)
        else:
            found[clean(entry.name)] = Path(entry.path)
    return found


def files_in(folder: Path, seen: set[str], left: Left) -> list[Path]:
    """The files with an image's suffix in `folder` and below, by name; `seen` holds the folders looked into."""
    real = os.path.realpath(folder)
    if real in seen:
        left.links += 1
        return []
    seen.add(real)
    known, found = images.suffixes(), []
    for entry in entries(folder):
        if entry.is_dir():
            if ignored(entry.name):
                left.hidden.add(entry.name)
            else:
                found += files_in(Path(entry.path), seen, left)
            continue
        suffix = suffix_of(entry.name)
        if suffix in known:
            found.append(Path(entry.path))
        elif suffix is not None:
            left.suffixes[suffix or "without a suffix"] += 1
    return found


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in `folder`, by name. Raises MachineError when it may not be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise MachineError(f"{clean(str(folder))}: cannot be read ({error.strerror}). Mend its permissions.") from error


def suffix_of(name: str) -> str | None:
    """The end of a file's name, in lower case, with its dot; None for hidden files."""
    return None if name.startswith(".") else Path(name).suffix.lower()


def ignored(name: str) -> bool:
    """Whether a folder of this name is hidden or the system's."""
    return name.startswith(".") or name in SYSTEM
