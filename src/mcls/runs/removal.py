"""Deletion of runs: what is deleted and its size; a kill halfway leaves nothing that looks like a run."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcls.errors import FolderError, MachineError, MclsError
from mcls.runs.folder import DELETED, RunFolder, find_run, read_json, relative, run_files, shell_path, slug
from mcls.runs.lock import locked
from mcls.runs.table import RunRow, sort_key

BEST = "val/accuracy"


@dataclass(frozen=True)
class Doomed:
    """A folder to delete: a run's, or a sweep's with all its runs.

    Args:
        path: absolute, without links.
        runs: how many are in it.
        size: bytes of its files.
    """

    path: Path
    runs: int
    size: int


def is_sweep(path: Path) -> bool:
    """Whether `path` is the folder of a sweep."""
    return (path / "sweep.json").is_file()


def sweep_of(path: Path) -> Path | None:
    """The folder of the sweep that the run in `path` is a job of."""
    return next((parent for parent in path.parents if is_sweep(parent)), None)


def doomed(path: Path) -> Doomed:
    """The folder to delete for the run or sweep in `path`. Raises MclsError if it must not, or can't, be deleted."""
    if path.is_symlink():
        raise FolderError(f"{path}: a link. Name the folder that it leads to: {shell_path(relative(path.resolve()))}")
    swept = is_sweep(path)
    whole = (path if swept else find_run(path).path).resolve()
    if sweep := sweep_of(whole):
        name = shell_path(relative(sweep))
        raise FolderError(f"{path}: a job of a sweep, which is deleted as a whole with: mcls runs rm {name}")
    runs, sweeps = run_files(whole), [other for other in run_files(whole, "sweep.json") if other.parent != whole]
    others = sweeps if swept else [file for file in [*runs, *sweeps] if file.parent != whole]
    if others:
        raise FolderError(f"{path}: refused, it contains another one, {relative(others[0].parent)}. Move that first.")
    refuse_running(path, whole)
    size = 0
    for folder, _, files in os.walk(whole):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise MachineError(f"{relative(Path(folder))}: cannot be deleted (read-only). Fix its permissions.")
        size += sum(os.lstat(os.path.join(folder, name)).st_size for name in files)  # noqa: PTH118, a third of the time
    return Doomed(whole, len(runs), size)


def refuse_running(path: Path, now: Path) -> None:
    """Raise MachineError when a run in `path`, which is called `now`, is being trained."""
    if busy := next((file.parent for file in now.rglob("run.json") if locked(file.parent / "lock")), None):
        which = "" if busy == now else f", job {busy.name}"
        raise MachineError(f"{path}: in use, a process is training it{which}. Stop it first.")


def delete(folder: Doomed) -> None:
    """Delete a folder. Raises MachineError; whatever stops it, no part of it is taken for a run again."""
    path = folder.path
    hidden = path.with_name(f".{slug(path.name)}.{os.getpid()}{DELETED}")
    try:
        path.rename(hidden)
        try:
            refuse_running(path, hidden)  # nobody finds it by its name any more
        except MclsError:
            hidden.rename(path)
            raise
        shutil.rmtree(hidden)
    except OSError as error:
        raise MachineError(f"{relative(path)}: cannot be deleted ({error.strerror}). Fix its permissions.") from error


def sweep_up_deleted(folders: Iterable[Path]) -> None:
    """Delete in `folders` the rest of a deletion that was killed."""
    for rest in [rest for folder in folders for rest in folder.glob(f".*{DELETED}")]:
        shutil.rmtree(rest, ignore_errors=True)


def question(folder: RunFolder) -> str:
    """What runs must share for their val accuracies to be comparable: the data set and the samples of val."""
    val = ((folder.read_result() or {}).get("fingerprints") or {}).get("val")
    return f"{read_json(folder.about).get('choices', {}).get('dataset')} {val}"


def not_among_best(root: Path, everything: Sequence[RunRow], chosen: Sequence[RunRow], keep: int) -> list[Path]:
    """The folders below `root` of runs and whole sweeps, of which all have ended and none is among the best.

    Args:
        everything: a row for each run below `root` and for each job that was not started.
        chosen: those that may go. One that is not finished, or not measured on val, is kept.
        keep: how many runs of each question are the best.
    """
    measured = [row for row in chosen if row.status in ("finished", "pruned") and row.get(BEST) is not None]
    left: dict[str, int] = {}
    best: set[Path] = set()
    rest: set[Path] = set()
    for row in sorted(measured, key=sort_key(BEST)):
        about = question(RunFolder(row.folders[0]))
        left[about] = left.get(about, keep) - 1
        (best if left[about] >= 0 else rest).add(row.folders[0])
    units: dict[Path, list[RunRow]] = {}
    for row in everything:
        path = row.folders[0].resolve()
        units.setdefault(path if is_sweep(path) else sweep_of(path) or path, []).append(row)
    return [
        unit
        for unit, members in units.items()
        if unit.is_relative_to(root.resolve())
        and not best & (folders := {row.folders[0] for row in members})
        and rest & folders
        and all(row.folders[0] in rest or (row.status == "failed" and is_sweep(unit)) for row in members)
    ]
