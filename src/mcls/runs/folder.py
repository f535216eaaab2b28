"""The run folder: its name, its files, and how they are read. A run folder is data: nothing in it is executed."""

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mcls.errors import FolderError, MachineError, RequestError
from mcls.runs.formats import EPOCH, FILES, FINISHED, MAX_DEPTH, check, too_deep
from mcls.runs.lock import HELD, locked, next_free
from mcls.runs.renamed import SCHEMA, rename_about
from mcls.system.files import describe_os_error, make_folder, open_plain, publish, to_json
from mcls.system.text import clean

MAX_TEXT_BYTES = 40_000_000  # bytes of a file of text that is read back, ten times the measures of 10,000 classes
YAML_LIMIT = 100_000  # of YAML, which takes a second to read then
TAIL = 4096  # bytes at the end of metrics.jsonl that are looked at
REPEATS = ("seed", "dataset.fold")  # keys whose values are repeats of one method, over which its measures are averaged
DELETED = ".deleted"  # ends the name of a folder that is being deleted
PRUNED = "search.pruner"  # what result.json says has ended a job that its search gave up
STATUSES = ("running", "finished", "stopped", "failed", "killed", "never started", "damaged")


class RunFolder:
    """The paths of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # the resolved configuration
        self.about = path / "run.json"  # the command, the choices and the machine
        self.metrics = path / "metrics.jsonl"  # one object per epoch
        self.result = path / "result.json"  # status and measures
        self.last = path / "last.pt"  # the newest checkpoint
        self.previous = path / "previous.pt"  # the one before it
        self.best = path / "best.pt"  # the selected weights
        self.figures = path / "figures"  # PNG files
        self.projector = path / "plugins" / "org_tensorflow_tensorboard_projector"  # where TensorBoard looks for them
        self.log = path / "train.log"  # the log, with times
        self.ledger = path / "test_openings.jsonl"  # when the test set was opened, and by which command
        checkpoints = [self.last, self.previous, self.best]
        self.files = [
            *checkpoints,
            self.config,
            self.about,
            self.metrics,
            self.result,
            self.log,
            self.ledger,
            path / "lock",
        ]
        self.name = f"{path.parent.name}/{path.name}"  # as TensorBoard shows it

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process; the kernel releases the lock when the process ends, however it ends.

        Raises MachineError, naming the process, when another one holds it; FolderError when the folder leads elsewhere.
        """
        self.refuse_links()
        try:
            descriptor = open_plain(self.path / "lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise MachineError(describe_os_error(self.path / "lock", error, 0)) from error
        HELD.add(descriptor)
        try:
            next_free(descriptor, self.path)
            self.sweep_up()
            yield
        finally:
            HELD.discard(descriptor)
            os.close(descriptor)

    def sweep_up(self) -> None:
        """Delete temporary files of a process that was killed while writing."""
        for path in self.files:
            for rest in self.path.glob(f".{path.name}.*.part"):
                with contextlib.suppress(OSError):
                    rest.unlink()

    def refuse_links(self) -> None:
        """Raise FolderError if a file of the run is a link, a pipe or a device, so that writes would go elsewhere."""
        for folder in (self.figures, self.projector.parent, self.projector):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise FolderError(f"{folder}: refused, not a plain folder.")
        for path in [*self.files, *self.figures.glob("*"), *self.projector.glob("*")]:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise FolderError(f"{path}: refused, not a plain file.")

    def write_config(self, config: dict[str, Any]) -> None:
        """Publish the resolved configuration, with the number of its format."""
        publish(self.config, as_yaml({**config, "schema": SCHEMA}).encode())

    def write_json(self, path: Path, value: dict[str, Any]) -> None:
        """Publish one of the folder's JSON files."""
        publish(path, (to_json(value) + "\n").encode())

    def openings(self) -> int:
        """Number of evaluations of the test set so far, from result.json."""
        return int((self.read_result() or {}).get("test_openings", 0))

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return self.config.is_file() and self.about.is_file()

    def finished(self) -> dict[str, Any] | None:
        """The content of result.json if the run is finished, else None."""
        result = self.read_result() or {}
        if result.get("status") != "finished":
            return None
        check(result, FINISHED, self.result)
        return result

    def read_result(self) -> dict[str, Any] | None:
        """The content of result.json; None without one. Raises FolderError if it is damaged."""
        return read_json(self.result) if self.result.is_file() else None

    def read_finished(self) -> dict[str, Any]:
        """The content of result.json. Raises FolderError if it is damaged or the run is not finished."""
        if (result := self.finished()) is None:
            status = clean(str((self.read_result() or {}).get("status", "never started")))
            raise FolderError(
                f"{self.path}: not finished, {status}. Continue with: mcls resume {shell_path(self.path)}"
            )
        return result


def find_run(path: Path) -> RunFolder:
    """The run in `path`. Raises FolderError when there is none."""
    folder = RunFolder(path)
    if not folder.about.is_file():
        raise FolderError(f"{path}: {why_no_run(path)}")
    return folder


def why_no_run(path: Path) -> str:
    """What `path` is if it is not a run folder, and what to do, for a message."""
    if path.suffix in (".onnx", ".pt2", ".safetensors") and path.is_file():
        return "an exported model. This takes the folder of a run; only mcls predict also takes an .onnx file."
    runs, best = [*path.glob("*/run.json"), *path.glob("*/*/run.json")], []
    chosen = best_jobs(path)
    for file in runs if (path / "sweep.json").is_file() else []:
        with contextlib.suppress(FolderError, KeyError, TypeError):
            accuracy = float((RunFolder(file.parent).read_result() or {})["val"]["accuracy"])
            best.append((file.parent.name.partition("_")[0] in chosen, accuracy, relative(file.parent)))
    if best:
        return f"a sweep, not a run. Name one of its runs; the best on val: {max(best)[-1]}"
    return "not a run folder, it has no run.json." + (
        f" List the runs in it: mcls runs {shell_path(path)}" if runs else ""
    )


def best_jobs(path: Path) -> list[str]:
    """Numbers of the jobs in the first row of the table of the sweep in `path`; empty without a table."""
    with contextlib.suppress(FolderError, ValueError):
        header, first, *_ = read_text(path / "sweep.csv").splitlines()
        return first.partition(",")[0].split() if header.startswith("jobs,") else []
    return []


def as_yaml(config: dict[str, Any]) -> str:
    """`config` as the text of config.yaml."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def claim(parent: Path, name: str) -> RunFolder:
    """Make a new folder `name`, or `name-2`, `name-3`, ... in `parent`; no two processes ever get the same one."""
    attempt = 1
    try:
        make_folder(parent)
        while True:
            path = parent / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir()
                return RunFolder(path)
            except FileExistsError:
                attempt += 1
    except OSError as error:
        raise MachineError(describe_os_error(parent / name, error, 0)) from error


def timestamp() -> str:
    """The current time as part of a folder's name."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def relative(path: Path) -> str:
    """`path` relative to the working directory, if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def shell_path(path: Path | str) -> str:
    """`path` quoted for a shell, for commands that are printed to be copied."""
    return shlex.quote(str(path))


def own_command(about: dict[str, Any]) -> str:
    """The command for this run alone, from the content of run.json; the command of a sweep would repeat all jobs."""
    typed = str(about["command"])
    sweeping = {"-m", "--multirun"} & set(shlex.split(typed))
    return shlex.join(["mcls", "train", *map(str, about["overrides"])]) if sweeping else typed


def slug(text: str, limit: int = 100) -> str:
    """`text` as part of a file name: only letters, digits and ``. _ - = , +``, at most `limit` characters."""
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text).strip("._")[:limit] or "_"


def named_folder(parent: Path, key: str, name: str) -> Path:
    """The folder `name` in `parent`. Raises RequestError, which names `key`, for an invalid name."""
    if name != slug(name):
        raise RequestError(f"{key}: must be the name of a folder, got {name!r}. Use letters, digits and . _ - = +.")
    return parent / name


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The text in `path`. Raises FolderError unless it is a regular file of at most `limit` bytes, and not a link."""
    if path.is_symlink() or not path.is_file():
        raise FolderError(f"{path}: no such file, or a link. Is this a run folder of mcls?")
    if path.stat().st_size > limit:
        raise FolderError(f"{path}: refused, larger than {limit:,} bytes.")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"{path}: cannot be read ({error}).") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in JSON file `path`, checked whole. Raises FolderError."""
    value = parse_json(read_text(path), path, FILES[path.name])
    return rename_about(value) if path.name == "run.json" else value


def no_number(word: str) -> None:
    """Raise ValueError for NaN and Infinity, which are not JSON."""
    raise ValueError(word)


STRICT = json.JSONDecoder(parse_constant=no_number)  # made once: json.loads would make one for each text


def parse_json(text: str, path: Path, shape: Any) -> dict[str, Any]:
    """The object of `shape` in the JSON `text` read from `path`. Raises FolderError."""
    try:
        value = STRICT.decode(text)
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path}: damaged, not JSON ({type(error).__name__}).") from error
    if not isinstance(value, dict):
        raise FolderError(f"{path}: damaged, no object.")
    if too_deep(value):
        raise FolderError(f"{path}: damaged, nested deeper than {MAX_DEPTH}.")
    check(value, shape, path)
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in YAML file `path`: plain values only, no aliases, no tags. Raises FolderError."""
    text = read_text(path, YAML_LIMIT)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH or getattr(event, "tag", None) is not None:
                raise FolderError(f"{path}: refused, it has aliases or tags, or is nested deeper than {MAX_DEPTH}.")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FolderError(f"{path}: damaged, not plain YAML ({type(error).__name__}).") from error
    if not isinstance(value, dict):
        raise FolderError(f"{path}: damaged, no mapping.")
    return value


def run_files(root: Path, name: str = "run.json") -> list[Path]:
    """The files called `name` in the folders of runs and sweeps under `root`, in the order of their paths."""
    return sorted(path for path in root.rglob(name) if f"{DELETED}{os.sep}" not in str(path))


def find_runs(root: Path) -> Iterator[RunFolder]:
    """Every run folder under `root`, in the order of their paths; a run folder is one that has a run.json."""
    for path in run_files(root):
        yield RunFolder(path.parent)


def status_of(folder: RunFolder, result: dict[str, Any] | None) -> str:
    """One of STATUSES; a run that says `running` and whose lock nobody holds was killed."""
    said = "never started" if result is None else str(result.get("status"))
    if said not in STATUSES:
        raise FolderError(f"{folder.result}: damaged, its status is {said!r:.40}.")
    if said not in ("running", "never started"):
        return said
    return "running" if locked(folder.path / "lock") else "killed" if said == "running" else said


def epochs_done(path: Path) -> int | None:
    """The epoch in the last complete line of a metrics.jsonl; None without one."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read(TAIL).splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"}\n")]
    if not whole or not whole[-1].startswith(b"{"):
        return None
    return int(parse_json(whole[-1].decode("utf-8", "replace"), path, EPOCH)["epoch"])


def unfinished(folder: RunFolder, result: dict[str, Any] | None) -> str:
    """`stopped after 9 of 60 epochs`; empty for a finished run. Raises FolderError if a file is damaged."""
    status = status_of(folder, result)
    if status in ("finished", "never started"):
        return "" if status == "finished" else status
    settings = read_yaml(folder.config).get("trainer")
    planned = settings.get("epochs") if isinstance(settings, dict) else None
    return f"{status} after {epochs_done(folder.metrics) or 0} of {planned} epoch{'s' * (planned != 1)}"


def job_name(number: str | int, changed: str) -> str:
    """Folder name of a job: its number and the changed keys, `3_optimizer.lr=0.1,seed=2`."""
    return slug(f"{number}_{changed}" if changed else str(number))
