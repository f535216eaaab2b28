"""The jobs of a sweep, one after the other, and its end: the test set and the table."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

from mcls.config.saved import RESUMABLE_KEYS, check_saved, saved_config
from mcls.config.schema import leaves, yaml_text
from mcls.errors import RequestError, Stopped
from mcls.report.summary import percent
from mcls.runs.folder import RunFolder, read_yaml, relative
from mcls.runs.renamed import rename
from mcls.sweep.plan import Sweep, record_failure
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest
from mcls.training.restore import read_metadata
from mcls.training.run import resume, train_new

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
        origin = {"command": plan.command, "overrides": list(job.overrides), "choices": choices}
        run_or_resume(values, origin, folder, stop)
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


def run_or_resume(
    config: dict[str, Any], origin: dict[str, Any], folder: RunFolder, stop: StopRequest
) -> dict[str, Any]:
    """Bring a job of a sweep to its end: nothing is done if it is finished, what is missing if it was begun.

    Returns the content of result.json. Raises RequestError when the folder holds a run of another configuration.
    """
    if not folder.begun:
        origin = {**origin, "test_closed": config["sweep"]["test"] != "all"}
        return train_new(config, origin, lambda: folder, stop)[1]
    wanted = dict(leaves(config))
    saved = read_yaml(folder.config)
    rename(saved, wanted)
    for key, was in leaves(saved):
        if key not in RESUMABLE_KEYS and key in wanted and wanted[key] != was:
            place, asked = relative(folder.path), yaml_text(wanted[key])
            raise RequestError(f"{key}: {place} holds a run with {yaml_text(was)}, not {asked}. Name a new sweep.name.")
    if (result := folder.finished()) is not None:
        log.info("already finished")
        return result
    return resume(folder, config, stop)


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
