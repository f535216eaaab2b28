"""`mcls train`: Hydra's whole grammar in front of a session."""

import contextlib
import gc
import logging
import math
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mcls import tables
from mcls.config.compose import CONFIGS, Request, checked, checker
from mcls.console import console, say_result
from mcls.errors import MclsError, RequestError, RunError, Stopped
from mcls.files import publish
from mcls.runs import RunFolder, claim, read_json, relative, timestamp

log = logging.getLogger("mcls")

SHOWS = ("help", "hydra_help", "info", "cfg", "shell_completion", "version")  # flags that show something, train nothing


def run(arguments: list[str]) -> int:
    """Check the command line, then let Hydra run it. Returns the exit status."""
    options, arguments = split(arguments)
    shows = any(getattr(options, flag, None) for flag in SHOWS)
    if shows and not options.cfg:
        launch(arguments, str)
        return 0
    with checker(options.config_dir, options.config_name or "train") as check:
        request = check.check(options.overrides, options.multirun)
    if shows:
        launch(arguments, str)
        return 0
    task = Task(shlex.join(["mcls", "train", *arguments]), request.folder is not None)
    with console():
        return sweep(request, arguments, task) if request.sweep else single(arguments, task)


def split(arguments: list[str]) -> tuple[Any, list[str]]:
    """Hydra's flags parsed, and the arguments with the flags before the overrides, which Hydra's parser insists on."""
    parser = get_args_parser()
    parser.prog = "mcls train"
    options = parser.parse_intermixed_args(arguments)
    if options.experimental_rerun is not None:
        raise RequestError(
            "--experimental-rerun: refused, it would run a pickle. Use the command in the run's run.json."
        )
    flags = list(arguments)
    for override in options.overrides:
        flags.remove(override)
    return options, [*flags, *options.overrides]


def launch(arguments: list[str], task: Any) -> None:
    """Hand over to Hydra, as if its program were called `mcls train`."""
    sys.argv = ["mcls train", *arguments]
    hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="train")(task)()


@dataclass
class Task:
    """What Hydra calls for each job. Failures are kept, so that one job's never stops another's.

    Args:
        command: what was typed.
        folder_given: whether the user said where the folder is to be.
    """

    command: str
    folder_given: bool
    failures: list[BaseException] = field(default_factory=list)
    done: list[tuple[RunFolder, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> float:
        """Train; returns the validation accuracy (the test's without one), or nan, for whoever optimises it."""
        from mcls import session
        from mcls.signals import StopRequest

        given: Any = HydraConfig.get()
        sweeping = given.mode == RunMode.MULTIRUN
        folder = RunFolder(Path(given.runtime.output_dir))
        try:
            values, choices = checked(config, given)
            origin = {"command": self.command, "overrides": list(given.overrides.task), "choices": choices}

            def make_folder() -> RunFolder:
                return folder if sweeping or self.folder_given else new_folder(values, choices)

            if sweeping:
                log.info(f"\njob {given.job.num}: {' '.join(origin['overrides'])}")
            elif self.folder_given and folder.about.exists():
                raise RequestError(f"hydra.run.dir: {folder.path} already holds a run. Name a new folder.")
            with StopRequest() as stop:
                done = session.train(values, origin, make_folder, stop)
        except Stopped as error:
            self.failures.append(error)
            raise KeyboardInterrupt from error
        except Exception as error:
            self.failures.append(error)
            if sweeping:
                record_failure(folder, error, list(given.overrides.task))
            return math.nan
        finally:
            gc.collect()
        self.done.append(done)
        return float((done[1]["val"] or done[1]["test"])["accuracy"])


def new_folder(values: dict[str, Any], choices: dict[str, str]) -> RunFolder:
    """A new run folder, `outputs/<dataset>-<model>/<date>_<time>`."""
    return claim(Path(values["outputs"]) / f"{choices['dataset']}-{choices['model']}", timestamp())


def record_failure(folder: RunFolder, error: Exception, overrides: list[str]) -> None:
    """Say at once that a job of a sweep failed, and leave it in its folder."""
    reason = str(error) if isinstance(error, MclsError) else f"{type(error).__name__}: {error}"
    log.error(f"failed: {reason}")
    with contextlib.suppress(MclsError):
        if not folder.about.exists():
            folder.write_json(folder.about, {"overrides": overrides})
        folder.write_json(folder.result, {"status": "failed", "reason": reason})


def single(arguments: list[str], task: Task) -> int:
    """One run: train, then say what came of it on stdout."""
    with contextlib.suppress(KeyboardInterrupt):
        launch(arguments, task)
    if task.failures:
        raise task.failures[0]
    say_result(*task.done[0])
    return 0


def sweep(request: Request, arguments: list[str], task: Task) -> int:
    """Many runs in one folder, then a table of them, best first. Exit status 1 when one failed."""
    root = (
        Path(request.folder) if request.folder else claim(Path(request.config["outputs"]) / "sweeps", timestamp()).path
    )
    extra = [] if request.folder else [f"hydra.sweep.dir='{root}'"]
    extra.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(request.fixed)}]")
    with contextlib.suppress(KeyboardInterrupt):
        launch([*arguments, *extra], task)
    failed = summarise(root, set(request.fixed))
    stopped = [failure for failure in task.failures if isinstance(failure, Stopped)]
    if stopped:
        raise stopped[0]
    if failed:
        raise RunError(f"{failed} of the sweep's jobs failed, see the table and {root}.")
    return 0


def summarise(root: Path, fixed: set[str]) -> int:
    """Print the table of a sweep and leave it in sweep.md and sweep.csv. Returns how many jobs failed.

    `fixed` are the keys that the table need not show, being the same for all.
    """
    jobs = [RunFolder(path.parent) for path in root.glob("*/result.json")]
    rows = sorted((job_row(job, fixed) for job in jobs), key=lambda row: (row[3] is None, -(row[3] or 0), row[0]))
    header = ["job", "changed", "status", "val accuracy", "test accuracy", "epochs", "seconds", "reason"]
    shown = [[cell if not isinstance(cell, float) else f"{cell:.4f}" for cell in row] for row in rows]
    if not any(row[-1] for row in rows):
        header, shown = header[:-1], [row[:-1] for row in shown]
    publish(root / "sweep.md", (tables.markdown(header, shown) + "\n").encode())
    publish(root / "sweep.csv", tables.comma_separated(header, shown).encode())
    print(f"\n{tables.plain(header, shown)}\n")
    print(f"the table is in {relative(root)}/sweep.md and sweep.csv; curves: tensorboard --logdir {relative(root)}")
    return sum(row[2] == "failed" for row in rows)


def job_row(folder: RunFolder, fixed: set[str]) -> list[Any]:
    """Number, changes, status, val and test accuracy, epochs, seconds and reason of one job."""
    result, about = read_json(folder.result), read_json(folder.about)
    number = int(folder.path.name.split("_")[0])
    measured = [(result.get(split) or {}).get("accuracy") for split in ("val", "test")]
    seconds = result.get("total_seconds")
    spent = None if seconds is None else f"{seconds:.1f}"
    changed = " ".join(line for line in about["overrides"] if line.split("=")[0].lstrip("+") not in fixed)
    return [number, changed, result["status"], *measured, result.get("epochs"), spent, result.get("reason")]
