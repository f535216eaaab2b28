"""Index of image files: what is known of each without decoding it; an entry holds until its file changes."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from PIL import ExifTags, Image

from mcls.data import image_io
from mcls.data.image_files import threaded
from mcls.data.packed_image import PackedImage
from mcls.errors import DataError
from mcls.system.files import make_folder, publish


class IndexEntry(NamedTuple):
    """What is known of an image file.

    Args:
        size: in bytes.
        modified: time of the last change, in ns.
        sha256: of the bytes.
        height, width: as shown.
        mode: Pillow's; empty where the file is no image, or can't be read.
        largest: value of a grey pixel of more than 8 bits; 0 for other images.
    """

    size: int
    modified: int
    sha256: str
    height: int = 0
    width: int = 0
    mode: str = ""
    largest: int = 0


UNREADABLE_ENTRY = IndexEntry(0, 0, "")


def index_images(
    paths: Sequence[Path | PackedImage], source: Path, max_pixels: int, cache: str | None
) -> list[IndexEntry]:
    """The entry of each file; only files that changed since they were entered in the index in `cache` are opened.

    Args:
        source: folder or table that the files are of: each has its own index.
        cache: None keeps no index.
    """
    name = hashlib.sha256(os.fsencode(source.absolute())).hexdigest()
    file = None if cache is None else Path(cache) / "images" / f"index-{name[:16]}.json"
    known = {} if file is None else read_index(file)

    def look(path: Path | PackedImage) -> IndexEntry:
        entry = known.get(str(path.absolute()), UNREADABLE_ENTRY)
        with contextlib.suppress(OSError):  # reading the file later says what is wrong
            status = path.stat()
            same = (status.st_size, status.st_mtime_ns) == entry[:2]
            return entry if same and entry.mode else look_at(path, status, max_pixels)
        return UNREADABLE_ENTRY

    entries: list[IndexEntry] = threaded(look, paths, "looking at")
    here = {str(path.absolute()): entry for path, entry in zip(paths, entries, strict=True)}
    if file is not None and (kept := {**known, **here}) != known:
        make_folder(file.parent)
        lines = ",\n".join(f"{json.dumps(path)}: {json.dumps(entry)}" for path, entry in kept.items())
        publish(file, f"{{\n{lines}\n}}\n".encode())
    return entries


def read_index(file: Path) -> Mapping[str, IndexEntry]:
    """The entries in `file` by their paths; none where there is no such file, or it is damaged."""
    try:
        return {path: IndexEntry(*entry) for path, entry in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # every file is looked at again
        return {}


def look_at(path: Path | PackedImage, status: os.stat_result, max_pixels: int) -> IndexEntry:
    """The entry of one file. Raises OSError."""
    if not stat.S_ISREG(status.st_mode):
        return UNREADABLE_ENTRY
    with path.open("rb") as file:
        entry = IndexEntry(status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
        file.seek(0)
        header = header_of(file)
    if header is None:
        return entry
    largest = 0
    if header[2].startswith("I"):
        with contextlib.suppress(DataError):  # reading the file later says what is wrong
            largest = image_io.largest(path, max_pixels)
    return IndexEntry(*entry[:3], *header, largest)


def header_of(file: IO[bytes] | Path) -> tuple[int, int, str] | None:
    """Height and width as shown, and Pillow's mode, from a file's first bytes; None for what can't be read."""
    try:
        with Image.open(file, formats=image_io.formats()) as image:
            exif = Image.Image.getexif(image)  # PNG's own reads the whole picture
            turned = image.format != "TIFF" and exif.get(ExifTags.Base.Orientation, 1) >= 5  # TIFF's size is turned
            height, width = (image.width, image.height) if turned else (image.height, image.width)
            return height, width, image.mode
    except Exception:  # what Pillow's readers raise is of every kind; reading the file later says what is wrong
        return None
