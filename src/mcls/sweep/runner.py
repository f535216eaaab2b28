"""The jobs of a sweep, one after the other, and its end: the test set and the table."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

from mcls.config.saved import check_saved, saved_config
from mcls.errors import Stopped
from mcls.report.summary import percent
from mcls.runs.folder import relative
from mcls.sweep.plan import Sweep, record_failure
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest
from mcls.training.restore import read_metadata
from mcls.training.run import resume
from mcls.training.start import run_or_resume

log = logging.getLogger("mcls")

Configure = Callable[[int], tuple[dict[str, Any], dict[str, str]]]


def run_jobs(
    plan: Sweep, configure: Configure, changes: Sequence[str], stop: StopRequest, fresh: bool = False
) -> list[str]:
    """Bring every job of a sweep that is not finished to its end, one after the other. Returns why jobs failed.

    Args:
        configure: from the number of a job to its checked configuration and choices.
        changes: `key=value` for jobs that were begun: where their data are, which packages to trust.
        fresh: whether the sweep's own command was typed. Then a folder with another configuration is refused.

    Raises Stopped. A job that fails is recorded in its folder and stops no other.
    """
    failed = [run_job(plan, number, configure, changes, stop, fresh) for number in range(len(plan.jobs))]
    return [reason for reason in failed if reason]


def run_job(
    plan: Sweep, number: int, configure: Configure, changes: Sequence[str], stop: StopRequest, fresh: bool
) -> str:
    """Bring one job to its end, if it is not finished; the arguments are those of `run_jobs`. Returns why it failed."""
    job, folder = plan.jobs[number], plan.folder(number)
    log.info(f"\njob {number}: {' '.join(plan.changed(job.overrides))}")
    try:
        if signal_number := stop():
            raise Stopped("stopped between two jobs", signal_number)
        make_folder(folder.path)
        if folder.begun and not fresh:
            if folder.finished() is None:
                resume(folder, saved_config(folder, changes), stop)
            else:
                log.info("already finished")
            return ""
        values, choices = configure(number)
        origin: dict[str, Any] = {"command": plan.command, "overrides": list(job.overrides), "choices": choices}
        if not folder.begun:
            origin["test_closed"] = values["sweep"]["test"] != "all"
        run_or_resume(values, origin, folder, stop, "sweep.name")
    except Stopped as error:
        raise plan.stopped(error) from error
    except Exception as error:
        record_failure(folder, error, job.overrides)
        return str(error)  # without its traceback, which holds model and data
    finally:
        gc.collect()  # before the next job takes memory
    return ""


def frozen(plan: Sweep, changes: Sequence[str] | None = None) -> Configure:
    """What gives a job the configuration that was frozen in `plan`.

    Args:
        changes: None where the command line that made the plan was typed just now. Otherwise the plan may be a
            stranger's: it is checked like a run folder, and trusts no package but those named here.
    """

    def configure(number: int) -> tuple[dict[str, Any], dict[str, str]]:
        job = plan.jobs[number]
        config, choices = job.config(plan.bases), plan.bases[job.base or 0].choices
        return config if changes is None else check_saved(config, choices, changes, plan.path / "sweep.json"), choices

    return configure


def conclude(plan: Sweep, changes: Sequence[str], stop: StopRequest) -> None:
    """Open the test set for the jobs of a sweep that `sweep.test` names, then show the table.

    What a job lacks is done once more from its last checkpoint: its folder first says that the test set is open.
    """
    ranked = plan.ranked()
    closed = [folder for folder, result in ranked if not result.get("test")]
    which = saved_config(closed[0], changes)["sweep"]["test"] if closed else "none"
    if which == "best" and (closed[0] is not ranked[0][0] or not ranked[0][1].get("val")):
        which = "none"
    for folder in {"none": [], "best": closed[:1], "all": closed}[which]:
        about = read_metadata(folder)
        log.info(f"\n{relative(folder.path)}: the test set is opened{', best on val' if which == 'best' else ''}")
        try:
            with folder.lock():
                folder.write_json(folder.about, {**about, "test_closed": False})
            log.info(f"test  {percent(resume(folder, saved_config(folder, changes), stop)['test'])}")
        except Stopped as error:
            raise plan.stopped(error) from error
        except Exception as error:
            record_failure(folder, error, about["overrides"])
    plan.summarise()
