"""One job of a sweep, as it is handed to the process that runs it."""

import contextlib
import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcls.config.saved import saved_config
from mcls.errors import MclsError, Stopped
from mcls.runs.folder import RunFolder
from mcls.sweep.study import pruner_of
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest, never
from mcls.training.run import resume
from mcls.training.start import run_or_resume

log = logging.getLogger("mcls")

Outcome = tuple[int, str]  # number of a job that ended, and why it failed


@dataclass(frozen=True)
class Task:
    """What it takes to bring a job to its end, in plain values.

    Args:
        number: of the job.
        folder: its run folder.
        overrides: its command line.
        command: what was typed for the sweep.
        again: the command that goes on with the sweep.
        config, choices: its configuration; None where what was begun goes on as its own folder says.
        changes: `key=value` for what was begun: where its data are, which packages to trust.
        pruner: `path` and `settings` of the search that may end it early; nothing where none does.
        once_more: whether it is resumed though it is finished, as its test set is open now.
        title: what it changes, for people.
        until: the epoch after which it ends for now, in a rung of search=halving; it has fewer so far.
    """

    number: int
    folder: Path
    overrides: Sequence[str]
    command: str
    again: str
    config: dict[str, Any] | None
    choices: dict[str, str]
    changes: Sequence[str]
    pruner: dict[str, Any] = field(default_factory=dict)
    until: int | None = None
    once_more: bool = False
    title: str = ""

    def origin(self, begun: bool) -> dict[str, Any]:
        """What run.json says of where the job comes from, unless it was `begun` before."""
        origin = {"command": self.command, "overrides": list(self.overrides), "choices": self.choices}
        closed = self.config is not None and self.config["sweep"]["test"] != "all"
        return origin if begun else {**origin, "test_closed": closed}

    def prune(self) -> Callable[[int, float], bool]:
        """From an epoch and its val accuracy: whether the run ends there."""
        if (until := self.until) is not None:
            return lambda epoch, accuracy: epoch >= until
        return pruner_of(Path(self.pruner["path"]), self.pruner["settings"], self.number) if self.pruner else never


def run_task(task: Task, stop: StopRequest) -> str:
    """Bring a job to its end, if it is not finished. Returns why it failed, which its folder says too.

    Raises Stopped.
    """
    folder, level = RunFolder(task.folder), log.level
    if task.once_more:
        log.setLevel(logging.WARNING)  # the rest was said when it was trained
    log.info(f"\njob {task.number}: {task.title}")
    try:
        if signal_number := stop():
            raise Stopped("stopped between two jobs", signal_number)
        make_folder(folder.path)
        stop.prune = task.prune()
        finished = folder.begun and folder.finished() is not None
        if task.config is not None and not (finished and task.until):
            run_or_resume(task.config, task.origin(folder.begun), folder, stop, "sweep.name")
        elif task.until or task.once_more or not finished:
            resume(folder, saved_config(folder, task.changes), stop)
        else:
            log.info("already finished")
    except Stopped as error:
        raise Stopped(f"{error}, or the whole sweep with: {task.again}", error.signal_number) from error
    except Exception as error:
        record_failure(folder, error, task.overrides)
        return str(error)  # without its traceback, which holds model and data
    finally:
        log.setLevel(level)
        stop.prune = never
        gc.collect()  # before the next job takes memory
    return ""


def record_failure(folder: RunFolder, error: Exception, overrides: Sequence[str]) -> None:
    """Say at once that a job failed, and leave it in its folder."""
    reason = str(error) if isinstance(error, MclsError) else f"{type(error).__name__}: {error}"
    log.error(f"failed: {reason}")
    with contextlib.suppress(MclsError), folder.lock():  # a job that another process is at is not this one's
        if not folder.about.exists():
            folder.write_json(folder.about, {"overrides": list(overrides)})
        if folder.finished() is None:
            loaded = {"test_openings": folder.openings()}
            folder.write_json(folder.result, {"status": "failed", "reason": reason, **loaded})
