"""Read image files of any format that Pillow knows and resize them to the model's input. Files are not trusted."""

import contextlib
import functools
import importlib
import math
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from mcls.data.packed_image import PackedImage
from mcls.errors import DataError

MAX_PIXELS = 64_000_000  # of one picture, read from its header before anything is decoded
BITS = 16  # of a grey pixel of more than 8 bits, where nothing else is known
MARK = {"Software": "mcls"}  # in each PNG file that is written
UNSAFE = {"EPS"}  # Pillow would run Ghostscript
Result = TypeVar("Result")
MODES = {1: "L", 3: "RGB"}  # by number of channels

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is a warning up to twice its size; `read` has one that holds


@dataclass(frozen=True)
class Reading:
    """How pictures become arrays of one shape. A run keeps it, so that new pictures are read as those of its training.

    Args:
        bits: that grey pixels of more than 8 bits have.
        resize: `stretch` gives up the proportions, `crop` cuts off what is too long, `pad` adds black.
        crop_fraction: of the picture's shorter side, that a crop keeps.
        interpolation: Pillow's, in lower case; always antialiased.
        jpeg_draft: decode a JPEG at a half, quarter or eighth of its size where that is no smaller than what is wanted.
    """

    bits: int = BITS
    resize: str = "stretch"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    jpeg_draft: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for what no picture can be read with."""
        known = (*range(8, BITS + 1), "stretch", "crop", "pad", *(method.name.lower() for method in Image.Resampling))
        if unknown := [value for value in (self.bits, self.resize, self.interpolation) if value not in known]:
            raise ValueError(f"pictures are not read with {unknown[0]!r}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"a crop of {self.crop_fraction!r}")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Reading":
        """What `record`, of a checkpoint or an exported file, says of it. Raises ValueError."""
        return cls(**{key: record[key] for key in cls.__dataclass_fields__ if record.get(key) is not None})

    def record(self) -> dict[str, Any]:
        """What is not as it would be anyway, for `of`."""
        return {key: value for key, value in asdict(self).items() if value != getattr(Reading, key)}


PLAIN = Reading()


@functools.cache
def suffixes() -> set[str]:
    """Endings, in lower case and with their dot, of the files that are pictures."""
    known = formats()
    return {suffix for suffix, name in Image.registered_extensions().items() if name in known}


@functools.cache
def formats() -> list[str]:
    """The formats that are read: Pillow's, and HEIF where pillow-heif is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    known = [name for name in Image.ID if name not in UNSAFE]
    return sorted(known, key=lambda name: name not in ("JPEG", "PNG"))  # Pillow tries them in this order


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix or, if it has none, by its first bytes, where these may be read."""
    if path.suffix:
        return path.suffix.lower() in suffixes()
    marked = [name for name in formats() if Image.OPEN[name][1] is not None]  # others take any bytes for theirs
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with Image.open(path, formats=marked):
            return True
    except PermissionError:  # whoever reads it says so
        return True
    except Exception:  # what Pillow's readers raise on other files is of every kind
        return False


def read_image(
    path: Path | PackedImage, channels: int, max_pixels: int = MAX_PIXELS, bits: int = BITS, side: int | None = None
) -> Image.Image:
    """The picture in `path`, turned as its EXIF data say: grey for 1 channel, RGB for 3.

    Greys of more than 8 bits become 8 bits as in `eight_bits`; what is transparent is laid on white. With `side` a JPEG
    is decoded at a fraction of its size, no side of the picture shorter than that.
    Pillow's warnings are the caller's to silence: doing it here would not be safe in threads.

    Raises DataError, naming the file, when it is no plain file, no picture, truncated or of more than `max_pixels`.
    """
    if channels not in MODES:
        raise DataError(f"{path}: an image has 1 or 3 channels, {channels} are wanted.")

    def upright(image: Image.Image) -> Image.Image:
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies those that are upright
        return in_mode(image, MODES[channels], bits)

    return decode_image(path, max_pixels, upright, side)


def largest(path: Path | PackedImage, max_pixels: int) -> int:
    """The largest value of a pixel in the grey picture in `path`. Raises DataError as `read` does."""
    return decode_image(path, max_pixels, lambda image: int(np.asarray(image).max()))


def decode_image(
    path: Path | PackedImage, max_pixels: int, use: Callable[[Image.Image], Result], side: int | None = None
) -> Result:
    """What `use` makes of the picture in `path`; see `read_image`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a plain file.")
        if not status.st_size:
            raise DataError(f"{path}: empty.")
        with Image.open(path if isinstance(path, Path) else path.open(), formats=formats()) as image:
            if image.width * image.height > max_pixels:
                got = f"{image.width} x {image.height} pixels"
                raise DataError(f"{path}: refused, {got} exceed max_pixels, {max_pixels:,}.")
            if side is not None:
                image.draft(None, (side, side))
            image.load()
            return use(image)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # what Pillow's decoders raise on damaged files is of every kind
        what = f"{bands} bands, a picture has 1 to 4" if (bands := tiff_bands(path)) > 4 else reason(error)
        raise DataError(f"{path}: cannot be read ({what}).") from error


def tiff_bands(path: Path | PackedImage) -> int:
    """Samples a pixel that a TIFF names in its first directory; 0 for any other file."""
    try:
        with path.open("rb") as file:
            directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            return int(directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 0))
    except Exception:  # what Pillow raises on other files is of every kind
        return 0


def reason(error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def in_mode(image: Image.Image, mode: str, bits: int) -> Image.Image:
    """`image` as 8-bit `mode`, L or RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(eight_bits(np.asarray(image), bits))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def eight_bits(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pixels of more than 8 bits as uint8, by no other pixel, so that all pictures of a data set get one scale.

    Whole numbers, of 16 or 32 bits, are taken to have `bits` bits, of which the upper 8 are kept; floats are taken as
    0..1. What is a little outside is clipped. Raises ValueError for values of more than twice that.
    """
    floats = pixels.dtype.kind == "f"
    values = np.nan_to_num(pixels) * 255.0 if floats else pixels // 2 ** (bits - 8)
    if values.max() > 2 * 255:
        raise ValueError(f"values up to {pixels.max():g}, expected {'0 to 1' if floats else f'0 to {2**bits - 1}'}")
    scaled: NDArray[np.uint8] = values.clip(0, 255).astype(np.uint8)
    return scaled


def resize_image(image: Image.Image, size: Sequence[int], reading: Reading = PLAIN) -> NDArray[np.uint8]:
    """`image` as uint8 (C, H, W), resized as `reading` says where `size` asks for it.

    Args:
        size: height and width.
    """
    height, width = size
    method = Image.Resampling[reading.interpolation.upper()]
    if reading.resize == "crop":
        image = crop_image(image, height, width, reading.crop_fraction, method)
    elif image.size != (width, height) and reading.resize == "pad":
        image = ImageOps.pad(image, (width, height), method)
    elif image.size != (width, height):
        image = image.resize((width, height), method)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def crop_image(image: Image.Image, height: int, width: int, fraction: float, method: Image.Resampling) -> Image.Image:
    """The middle of `image`, `fraction` of its shorter side, as torchvision's Resize and CenterCrop cut it."""
    down, across = round(height / fraction), round(width / fraction)
    if down * image.width >= across * image.height:  # what is too long is the width
        across = down * image.width // image.height
    else:
        down = across * image.height // image.width
    if image.size != (across, down):
        image = image.resize((across, down), method)
    top, left = round((down - height) / 2), round((across - width) / 2)
    return image.crop((left, top, left + width, top + height))


def read_resized(
    path: Path | PackedImage, shape: Sequence[int], max_pixels: int, reading: Reading
) -> NDArray[np.uint8]:
    """The picture in `path` as uint8 of `shape` (C, H, W). Raises DataError as `read_image` does."""
    channels, *size = shape
    side = math.ceil(max(size) / reading.crop_fraction) if reading.jpeg_draft else None
    return resize_image(read_image(path, channels, max_pixels, reading.bits, side), size, reading)
