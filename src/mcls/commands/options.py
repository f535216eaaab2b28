"""What the commands on finished runs have in common on their command lines."""

import argparse
import os
import re
from pathlib import Path


def device(text: str) -> str:
    """The name of a device, as it is. Raises ArgumentTypeError for what is none."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, got {text!r}")
    return text


def positive(text: str) -> int:
    """A whole number above 0. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def expanded(text: str) -> str:
    """`text` with `~` at its begin expanded, which no shell does in `--output=~/x`."""
    return os.path.expanduser(text)  # noqa: PTH111, one of no user stays


def path(text: str) -> Path:
    """The path that is named, `~` expanded."""
    return Path(expanded(text))


def override(text: str) -> str:
    """`key=value`, a path in it as Hydra's grammar takes it."""
    from mcls.config.overrides import as_path

    return as_path(text)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The option that names one of the run's two checkpoints."""
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="the selected weights (default) or the newest"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option that names a device."""
    parser.add_argument(
        "--device",
        type=device,
        default="auto",
        help="auto (default), cpu, cuda, cuda:N or mps; auto uses a GPU if there is one",
    )
