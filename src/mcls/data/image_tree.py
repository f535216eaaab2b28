"""The tree of an image data set: which folders are splits and classes, which files are images, what is left out."""

import itertools
import logging
import os
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mcls.data import image_io
from mcls.data.image_io import MARK
from mcls.errors import DataError, MachineError
from mcls.system.files import refuse_file
from mcls.system.text import assigned, clean, composed, did_you_mean, natural_order, plural, quote_names, quoted

if TYPE_CHECKING:
    from mcls.data.image_files import ImageTree

log = logging.getLogger("mcls")

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_NAME = re.compile(  # train, or with more around it: seg_train, training_set, train-images
    rf"((?:.*[^a-z])?)({'|'.join(sorted(itertools.chain(*SPLITS.values()), reverse=True))})((?:set|data|[^a-z].*)?)"
)
GRID_FILE = "grid.png"  # the picture of `mcls data check --output`
OWN_FIGURES = {GRID_FILE, "sweep.png", "tune-lr.png"}  # that may lie in a folder without a run
SEARCH_DEPTH = 4  # folders below one that are searched for runs
SYSTEM = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
FOLDER_LAYOUT = (
    "Expected: DIR/CLASS/image.png, or DIR/train/CLASS/image.png with DIR/val and DIR/test beside it if there are any."
)


@dataclass
class Skipped:
    """What was left out, to be told once."""

    hidden: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    dangling: set[str] = field(default_factory=set)
    loose: int = 0
    links: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)

    def tell(self) -> None:
        """Log what was left out."""
        for level, text, names in (
            (logging.INFO, "hidden and system folders are not looked into", self.hidden),
            (logging.INFO, "folders with runs or figures of mcls are not classes", self.outputs),
            (logging.WARNING, "links to nothing are not used", self.dangling),
            (logging.WARNING, "folders beside train are not used", self.others),
        ):
            if names:
                log.log(level, f"data    {text}: {quote_names(natural_order(names))}")
        if self.loose:
            log.warning(f"data    not used: {plural(self.loose, 'image')} outside the class folders")
        if self.links:
            log.warning(f"data    not followed: {plural(self.links, 'link')} to folders that were scanned already")
        if self.suffixes:
            log.warning(f"data    files that are not images are not used: {counted(self.suffixes)}")


def counted(suffixes: Counter[str]) -> str:
    """How many files of each suffix were passed over, and what would help."""
    counts = ", ".join(f"{count:,} {clean(suffix)}" for suffix, count in suffixes.most_common(10))
    return counts + (". To read HEIC files: pip install pillow-heif" if {".heic", ".heif"} & set(suffixes) else "")


def find_images(root: Path, level: int | None = None) -> "ImageTree":
    """The images below `root`. Raises DataError when there is no such tree of classes, RequestError for a file.

    Args:
        level: of folders below those of the classes, whose names are the groups of images; None is no groups.
    """
    if not root.is_dir():
        refuse_file("dataset.root", root)
        raise DataError(f"dataset.root: {clean(str(root))}: no such folder. {FOLDER_LAYOUT}")
    left = Skipped()
    places = split_folders(root, left)
    trees = split_trees(places, left)
    classes = natural_order(trees["train"])
    if not classes:
        loose = f"{plural(left.loose, 'image')} in it, but " if left.loose else ""
        raise DataError(f"dataset.root: {clean(str(places['train']))}: {loose}no folders of classes. {FOLDER_LAYOUT}")
    if places == {"train": root}:
        warn_unknown_splits(trees["train"])
        refuse_wrapper(root, trees["train"])
    from mcls.data.groups import group_name, number_groups  # with torch, which an exported file does without
    from mcls.data.image_files import ImageTree

    images, groups = ImageTree(tuple(classes), [], [], [], {}), list[str]()
    for part, tree in trees.items():
        for name in natural_order(tree):
            if name not in classes:
                raise DataError(
                    f"{clean(str(tree[name][0]))}: class {quoted(name)} is not in train. "
                    f"{did_you_mean(name, classes)}train has {quote_names(classes)}."
                )
        seen: set[str] = set()
        first, before = len(images.paths), Counter(left.suffixes)
        for label, name in enumerate(classes):
            known = Counter(left.suffixes)
            inside = [(path, folder) for folder in tree.get(name, []) for path in files_in(folder, seen, left)]
            paths = [path for path, _ in inside]
            groups += [group_name(path, folder, level) for path, folder in inside] if level else []
            if not paths and part == "train":
                what = f"no image in this folder of a class{passed_over(left.suffixes - known)}"
                raise DataError(f"{clean(str(tree[name][0]))}: {what}. {FOLDER_LAYOUT}")
            images.paths.extend(paths)
            images.targets.extend([label] * len(paths))
            images.names.extend(clean(os.path.relpath(path, root)) for path in paths)
        if len(images.paths) == first:
            what = f"no image in it{passed_over(left.suffixes - before)}"
            raise DataError(
                f"{clean(str(places[part]))}: {what}. Remove the folder, or add images to it. {FOLDER_LAYOUT}"
            )
        images.parts[part] = list(range(first, len(images.paths)))
    left.tell()
    return replace(images, groups=number_groups(groups, images.parts, images.names)) if level else images


def passed_over(suffixes: Counter[str]) -> str:
    """The end of a message about a folder without images: the files that are in it."""
    return f", but other files: {counted(suffixes)}" if suffixes else ""


def split_folders(root: Path, left: Skipped) -> dict[str, Path]:
    """The folders of train and, where they are, of val and test; `root` itself is train when it holds classes.

    A folder called train is one of the splits if it has folders in it, or if there is nothing but splits beside it.
    Folders called seg_train, training_set and the like are, if there is another split of that kind beside them.
    """
    inside = {name: places[0] for name, places in subfolders(root, Skipped()).items()}
    kinds: dict[tuple[str, str], dict[str, str]] = {}
    for name in sorted(inside, key=lambda name: -len(name)):  # the short spelling of two comes last and wins
        if match := SPLIT_NAME.fullmatch(name.lower()):
            part = next(part for part, words in SPLITS.items() if match[2] in words)
            kinds.setdefault((match[1], match[3]), {})[part] = name
    for kind, names in sorted(kinds.items()):
        folders = {part: inside[names[part]] for part in SPLITS if part in names}
        others = set(inside) - set(names.values())
        plain = kind == ("", "")
        if "train" not in folders or not (plain or len(folders) > 1):
            continue
        if subfolders(folders["train"], Skipped()) or (plain and not others):
            left.others |= others
            subfolders(root, left)
            return {part: unwrapped(folder, part) for part, folder in folders.items()}
    return {"train": root}


def unwrapped(folder: Path, part: str) -> Path:
    """The folder of a split, or the one in it that is all it holds and is called like it: seg_train/seg_train."""
    left = Skipped()
    inside = subfolders(folder, left)
    if len(inside) != 1 or left.loose:
        return folder
    ((name, (inner, *_)),) = inside.items()
    match = SPLIT_NAME.fullmatch(name.lower())
    same = composed(folder.name) == name or (match is not None and match[2] in SPLITS[part])
    return unwrapped(inner, part) if same else folder


def split_trees(places: dict[str, Path], left: Skipped) -> dict[str, dict[str, list[Path]]]:
    """The folders of classes of each split; val and test that hold images outside folders of classes are left alone."""
    trees = {}
    for part, folder in places.items():
        loose = left.loose
        tree = subfolders(folder, left)
        if part == "train" or tree or left.loose == loose:
            trees[part] = tree
            continue
        log.warning(
            f"data    {clean(str(folder))}: {plural(left.loose - loose, 'image')} in no class folder, left out; "
            f"{part} is split off from train. To classify them: mcls predict RUN {shlex.quote(str(folder))}"
        )
        left.loose = loose
    return trees


def refuse_wrapper(root: Path, tree: dict[str, list[Path]]) -> None:
    """Raise DataError when all there is in `root` is one folder that holds the folders of classes or splits."""
    folder, inside = root, tree
    while len(inside) == 1:
        left, ((folder, *_),) = Skipped(), inside.values()
        inside = subfolders(folder, left)
        if left.loose:
            return
    if folder != root and inside:
        raise DataError(
            f"{clean(str(root))}: only one class, {quote_names(list(tree))}, which holds the folders "
            f"{quote_names(natural_order(inside))}. Set {assigned('dataset.root', str(folder))}."
        )


def warn_unknown_splits(tree: dict[str, list[Path]]) -> None:
    """Warn when the folders taken for classes hold no image themselves and all the same folders, as splits do."""
    left, first = Skipped(), None
    for folder, *_ in tree.values():
        inside = set(subfolders(folder, left))
        first = inside if first is None else first
        if left.loose or len(inside) < 2 or inside != first:
            return
    if first is not None and len(tree) > 1:
        log.warning(
            f"data    {quote_names(natural_order(tree))} are taken for classes, "
            f"but hold no image themselves and all the same "
            f"folders, {quote_names(natural_order(first))}. Are they splits? Call them train, val and test."
        )


def subfolders(folder: Path, left: Skipped) -> dict[str, list[Path]]:
    """Name, fit to be shown, and paths of the folders in `folder`, but not the hidden, the system's and mcls's own.

    Two paths have one name when their names look the same: letters with accents are one character or two.
    """
    by_name: dict[str, list[Path]] = {}
    for entry in entries(folder):
        if is_visible(entry, left):
            by_name.setdefault(clean(composed(entry.name)), []).append(Path(entry.path))
        elif not entry.is_dir():
            left.loose += suffix_of(entry.name) in image_io.suffixes()
    return by_name


def is_visible(entry: os.DirEntry[str], left: Skipped) -> bool:
    """Whether `entry` is a folder that is looked into; notes in `left` why not."""
    if not entry.is_dir():
        if entry.is_symlink() and not Path(entry.path).exists() and suffix_of(entry.name) not in image_io.suffixes():
            left.dangling.add(entry.name)
        return False
    if ignored(entry.name):
        left.hidden.add(entry.name)
    elif is_output(entry.path):
        left.outputs.add(entry.name)
    else:
        return True
    return False


def is_output(folder: str, depth: int = SEARCH_DEPTH) -> bool | None:
    """Whether there are runs, sweeps or figures of mcls in `folder` or some levels below, and no other image.

    None when there is neither.
    """
    files, folders = set(), []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif suffix_of(entry.name) in image_io.suffixes() and not is_own_figure(entry):
                    return False
                else:
                    files.add(entry.name)
    except OSError:
        return None  # whoever reads it says why
    if {"run.json", "config.yaml"} <= files or files & {"sweep.json", *OWN_FIGURES}:
        return True
    answers = set()
    for path in folders if depth else ():
        answers.add(is_output(path, depth - 1))
        if False in answers:
            return False
    return True if True in answers else None


def is_own_figure(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a figure that mcls drew."""
    if entry.name not in OWN_FIGURES:
        return False
    try:
        with Image.open(entry.path, formats=["PNG"]) as image:
            return image.info.items() >= MARK.items()
    except (OSError, SyntaxError, ValueError):
        return False


def files_in(folder: Path, seen: set[str], left: Skipped) -> list[Path]:
    """The images in `folder` and below, by name; `seen` holds the folders looked into."""
    real = os.path.realpath(folder)
    if real in seen:
        left.links += 1
        return []
    seen.add(real)
    paths = []
    for entry in entries(folder):
        if entry.is_dir():
            if is_visible(entry, left):
                paths += files_in(Path(entry.path), seen, left)
            continue
        is_visible(entry, left)
        suffix = suffix_of(entry.name)
        if suffix is not None and image_io.is_picture(Path(entry.path)):
            paths.append(Path(entry.path))
        elif suffix is not None:
            left.suffixes[suffix or "without a suffix"] += 1
    return paths


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in `folder`, by name. Raises MachineError when it may not be read."""
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise MachineError(f"{clean(str(folder))}: cannot be read ({error.strerror}). Fix its permissions.") from error


def suffix_of(name: str) -> str | None:
    """The end of a file's name, in lower case, with its dot; None for hidden files."""
    return None if name.startswith(".") else Path(name).suffix.lower()


def ignored(name: str) -> bool:
    """Whether a folder of this name is hidden or the system's."""
    return name.startswith(".") or name in SYSTEM
