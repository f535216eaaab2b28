"""Checkpoints: one file of tensors and plain values with a digest, published whole, read as data and nothing else."""

import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from mcls.errors import FolderError
from mcls.runs.formats import check, check_data
from mcls.system.files import open_plain, publish

END = b"PK\x05\x06"  # signature of a zip archive's last record, 22 bytes without its comment
LABEL = b"sha256:"
ITEMS = 1_000_000  # values in a checkpoint, those in lists and dicts included
WEIGHTS_SHAPE = {"*": torch.Tensor}
BEST = {"model": WEIGHTS_SHAPE, "data": {}, "epoch": "count"}
LAST = {
    "model": WEIGHTS_SHAPE,
    "best": ("null", WEIGHTS_SHAPE),
    "average?": ("null", WEIGHTS_SHAPE),
    "optimizer": {"state": {"*": {"*": (torch.Tensor, "float|null")}}, "param_groups": [{"params": ["count"]}]},
    "scaler": {"*": "float"},
    "progress": {
        **dict.fromkeys(("epoch", "step", "batch"), "count"),
        **{f"{key}?": "count" for key in ("correct", "seen", "best_epoch", "waited", "pieces")},
        "pruned?": "bool",
        "window": ["float"],
        **{key: ["float"] for key in ("best?", "samples_and_seconds?")},
        "*": "float",
    },
    "rng": [{"cpu": torch.Tensor, "*": torch.Tensor}],
    "data": {},
}


def seal(archive: bytes) -> bytes:
    """`archive` (a zip) with its own sha256 as its comment, which zip readers, torch's too, ignore."""
    if archive[-22:-18] != END:
        raise ValueError("not a zip archive without a comment")
    body = archive[:-2] + struct.pack("<H", len(LABEL) + 64)
    return body + LABEL + hashlib.sha256(body).hexdigest().encode()


def unseal(content: bytes, path: Path) -> bytes:
    """`content` if its digest holds. Raises FolderError otherwise."""
    body, label, digest = content[: -len(LABEL) - 64], content[-len(LABEL) - 64 : -64], content[-64:]
    if label != LABEL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise FolderError(f"{path}: damaged, its contents do not match its checksum.")
    return content


def save(path: Path, state: dict[str, Any]) -> None:
    """Publish `state` (tensors, numbers, text, lists, dicts) at `path`, its tensors on the CPU."""
    buffer = io.BytesIO()
    torch.save(on_cpu(state), buffer)
    publish(path, seal(buffer.getvalue()))


def on_cpu(value: Any) -> Any:
    """`value` with every tensor in it, at any depth, on the CPU and in a storage of its own."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    return type(value)(map(on_cpu, value)) if isinstance(value, list | tuple) else value


def read(path: Path) -> bytes:
    """The bytes of file `path`, if it is a plain file that ends as a checkpoint does. Raises FolderError."""
    try:
        with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(LABEL) - 64))
            if file.read(len(LABEL)) != LABEL:
                raise FolderError(f"{path}: damaged, its contents do not match its checksum.")
            file.seek(0)
            return file.read()
    except (OSError, MemoryError) as error:
        raise FolderError(f"{path}: cannot be read ({getattr(error, 'strerror', 'too large')}).") from error


def check_archive(content: bytes) -> None:
    """Raise ValueError unless zip archive `content` unpacks to no more bytes than it has."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("compressed")
    if sum(entry.file_size for entry in entries) > len(content):
        raise ValueError("larger inside than outside")


def check_plain(state: Any) -> None:
    """Raise ValueError unless `state` consists of dense tensors, no larger than their storage, and plain values."""
    waiting, seen = [(state, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > ITEMS or depth > 20:
            raise ValueError("nested too deep or too much")
        if isinstance(value, torch.Tensor):
            plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
            if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor larger than its memory")
        elif isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) >= 1 << 64:
            raise ValueError("a number of more than 64 bits")
        elif value is not None and not isinstance(value, str | int | float):
            raise ValueError(type(value).__name__)


def load_as(shape: Any, path: Path) -> dict[str, Any]:
    """The state in file `path`, of `shape`, BEST or LAST, and with finite weights. Raises FolderError."""
    state = load_checkpoint(path)
    check(state, shape, path)
    check_data(state["data"], path)
    for weights in (state["model"], state.get("best"), state.get("average")):
        if weights and not all(tensor.isfinite().all() for tensor in weights.values()):
            raise FolderError(f"{path}: damaged, its weights are not finite.")
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in file `path`, on the CPU. Raises FolderError when it is missing, damaged or not plain data."""
    content = unseal(read(path), path)
    try:
        check_archive(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        check_plain(state)
    except Exception as error:
        raise FolderError(
            f"{path}: refused, it holds more than tensors and plain values ({type(error).__name__})."
        ) from error
    if not isinstance(state, dict):
        raise FolderError(f"{path}: refused, not a checkpoint of mcls.")
    return state


def weights_digest(weights: dict[str, torch.Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of `weights`: equal if and only if the weights are."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
