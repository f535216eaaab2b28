"""What the commands on finished runs have in common on their command lines."""

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mcls.errors import RequestError
from mcls.system.text import listed

if TYPE_CHECKING:
    from mcls.inference.predict import Classifier


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are reported as all others: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Raise RequestError."""
        refuse_arguments(self, message)


def refuse_arguments(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Raise RequestError with what `parser` says is wrong with its arguments, in one line."""
    what, _, rest = message.partition(": ")
    known = [word for one in parser._actions for word in one.option_strings if one.help != argparse.SUPPRESS]
    if what == "unrecognized arguments":
        word = rest.split()[0]
        near = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.75)
        told = f"{word}: no such option." if word.startswith("-") else f"{word}: one argument too many."
        told += f" Did you mean {near[0]}?" if near else ""
        if word.startswith("--") and not near and parser.prog == "mcls train":
            from mcls.config.overrides import meaning

            name, _, value = word[2:].partition("=")
            key = meaning(name) or name.replace("-", "_")
            told += f" Use {key}." if " " in key else f" Keys have no dashes: {key}={value or 'VALUE'}."
    elif what == "the following arguments are required":
        optional = {one.metavar for one in parser._actions if one.nargs == "*"}
        told = f"{', '.join(word for word in rest.split(', ') if word not in optional)}: missing."
    elif choice := re.fullmatch(r"invalid choice: '(.*)' \(choose from (.*)\)", rest):
        choices = re.sub("'", "", choice[2]).split(", ")
        near = difflib.get_close_matches(choice[1], choices, n=1)
        told = f"{what.removeprefix('argument ')}: must be {listed(choices)}, got {choice[1]!r}."
        told += f" Did you mean {near[0]}?" if near else ""
    else:
        told = f"{message.removeprefix('argument ').rstrip('.')}."
    raise RequestError(f"{told} See {parser.prog} --help.")


def check_effective(changes: Sequence[str], keys: Sequence[str], prog: str) -> None:
    """Raise RequestError for a `key=value` that command `prog`, which takes `keys`, would not look at."""
    for line in changes:
        if "=" in line and line.partition("=")[0] not in keys:
            what = "takes no other key than" if len(keys) == 1 else "takes the keys"
            raise RequestError(f"{line}: {prog} {what} {listed(keys, 'and')}; everything else is as in the run.")


DATA_KEYS = ("dataset.root", "dataset.path", "dataset.test_path", "dataset.download", "cache", "trust")


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


def add_tta(parser: argparse.ArgumentParser) -> None:
    """The option that sets the test-time augmentation."""
    parser.add_argument(
        "--tta",
        choices=("flip", "none"),
        help="flip averages the logits of each image and its mirror image (default: evaluate.tta of the run)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option that names a device."""
    parser.add_argument(
        "--device",
        type=device,
        default="auto",
        help="auto (default), cpu, cuda, cuda:N or mps; auto uses a GPU if there is one",
    )


def share(text: str) -> float:
    """A number between 0 and 1. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return value


def add_temperature(parser: argparse.ArgumentParser) -> None:
    """The option that calibrates the probabilities."""
    told = "divide the logits by the temperature that mcls evaluate RUN fitted on val"
    parser.add_argument("--temperature", choices=("val",), help=told)


def open_classifier(
    path: Path,
    device: str,
    changes: list[str],
    tta: str | None = None,
    temperature: str | None = None,
    risk: float | None = None,
) -> "Classifier":
    """The model in a run folder or in an exported ONNX file, or those of a sweep; the arguments are the options'."""
    from mcls.inference.predict import from_onnx, from_run
    from mcls.runs.folder import RunFolder, find_run

    if path.suffix.lower() == ".onnx" and path.is_file():
        if tta:
            raise RequestError("--tta: an exported file has the run's own inside. Omit it.")
        if temperature:
            raise RequestError(
                "--temperature: takes a run folder. mcls export --temperature val puts that into the file."
            )
        if risk:
            raise RequestError("--reject-below: takes the folder of a run, an exported file has no val. Name the run.")
        return from_onnx(path, device)
    if (path / "sweep.json").is_file():
        from mcls.inference.ensemble import load_classifier
        from mcls.sweep.members import best_members

        if risk:
            raise RequestError("--reject-below: takes the folder of a run, not of a sweep. Omit it.")
        return load_classifier(best_members(path), RunFolder(path), device, changes, tta, temperature is not None)
    return from_run(find_run(path), device, changes, tta, temperature is not None, risk)
