"""Decoded and resized images, kept in a folder: the next run on the same files decodes none of them."""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mcls.data.image_files import ImageFiles, ScanResult, scan_images
from mcls.errors import DataError
from mcls.system.files import make_folder, replacing

log = logging.getLogger("mcls")


def scan_kept(
    files: ImageFiles, digests: Sequence[str], keep: bool, cache: str | None
) -> tuple[ScanResult, ImageFiles]:
    """What `scan_images` finds, and the files, both from the folder `cache` where the same files were read before.

    Args:
        digests: sha256 of each file; empty for one that could not be opened.
        keep: whether the pixels are to be in memory; otherwise they are read from the cache, without decoding.
        cache: None decodes.
    """
    name = None if cache is None else cache_key(files, digests)
    if cache is None or name is None:
        return scan_images(files, keep), files
    pixels, arrays = (Path(cache) / "images" / f"{name}{suffix}" for suffix in (".npy", ".npz"))
    looked = read_cache(pixels, arrays, files)
    if looked is None:
        make_folder(pixels.parent)
        needed = int(np.prod(files.shape))
        if needed > shutil.disk_usage(pixels.parent).free * 0.9:  # a memory-mapped file must not find the disk full
            log.warning(f"cache: {needed / 1e9:.1f} GB of images do not fit in {cache}, nothing is kept")
            return scan_images(files, keep), files
        looked = write_cache(pixels, arrays, files)
    else:
        log.info(f"images  {len(files):,} of the cache in {cache}: none decoded")
    kept = torch.from_numpy(np.load(pixels)) if keep else None
    return ScanResult(kept, looked.sums, looked.errors), files.decoded_in(pixels)


def cache_key(files: ImageFiles, digests: Sequence[str]) -> str | None:
    """sha256 of the files, by path and content, and of how they are read; None where one could not be opened."""
    if not all(digests):
        return None
    digest = hashlib.sha256(f"{files.sample} {files.max_pixels} {files.reading}".encode())
    for path, sha256 in zip(files.paths, digests, strict=True):
        digest.update(os.fsencode(f"\n{path.absolute()} {sha256}"))
    return digest.hexdigest()


def read_cache(pixels: Path, facts: Path, files: ImageFiles) -> ScanResult | None:
    """What was found when the images were decoded; None where they were not, or what is there is damaged."""
    try:
        with facts.open("rb") as file, np.load(file) as arrays:
            sums, texts = torch.from_numpy(arrays["sums"]), arrays["errors"].tolist()
        fits = np.load(pixels, mmap_mode="r").shape == files.shape and sums.shape == (len(files), files.sample[0], 2)
    except Exception:  # what numpy raises on damaged files is of every kind; they are decoded again
        return None
    return ScanResult(None, sums, [DataError(text) if text else None for text in texts]) if fits else None


def write_cache(pixels: Path, facts: Path, files: ImageFiles) -> ScanResult:
    """Decode `files` into `pixels`, and what `scan_images` finds into `facts`, which is there only if all is."""
    with replacing(pixels, "wb") as file:
        mapped = np.lib.format.open_memmap(file.name, mode="w+", dtype=np.uint8, shape=files.shape)
        looked = scan_images(files, keep=False, into=mapped)
        mapped.flush()
    with replacing(facts, "wb") as file:
        np.savez(file, sums=looked.sums.numpy(), errors=[str(error or "") for error in looked.errors])
    return looked
