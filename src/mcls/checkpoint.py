"""Checkpoints: one file of tensors and plain values with a digest, published whole, read as data and nothing else."""

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import torch

from mcls.errors import FolderError
from mcls.files import publish

END = b"PK\x05\x06"  # signature of a zip archive's last record, 22 bytes without its comment
LABEL = b"sha256:"


def seal(archive: bytes) -> bytes:
    """`archive` (a zip) with the sha256 of itself as its comment, where zip readers, torch's too, look past it."""
    if archive[-22:-18] != END:
        raise ValueError("not a zip archive without a comment")
    body = archive[:-2] + struct.pack("<H", len(LABEL) + 64)
    return body + LABEL + hashlib.sha256(body).hexdigest().encode()


def unseal(content: bytes, path: Path) -> bytes:
    """`content` if its digest holds. Raises FolderError otherwise."""
    body, label, digest = content[: -len(LABEL) - 64], content[-len(LABEL) - 64 : -64], content[-64:]
    if label != LABEL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise FolderError(f"{path}: damaged, its contents do not match its digest.")
    return content


def save(path: Path, state: dict[str, Any]) -> None:
    """Publish `state` (tensors, numbers, text, lists, dicts) at `path`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    publish(path, seal(buffer.getvalue()))


def load(path: Path) -> dict[str, Any]:
    """The state in file `path`, on the CPU. Raises FolderError when it is missing, damaged or not plain data."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FolderError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        state = torch.load(io.BytesIO(unseal(content, path)), map_location="cpu", weights_only=True)
    except FolderError:
        raise
    except Exception as error:
        raise FolderError(
            f"{path}: refused, it holds more than tensors and plain values ({type(error).__name__})."
        ) from error
    if not isinstance(state, dict):
        raise FolderError(f"{path}: refused, it is no checkpoint of mcls.")
    return state


def weights_digest(weights: dict[str, torch.Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of `weights`: equal if and only if the weights are."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
