"""The jobs of a sweep that make an ensemble: those of its best setting, which differ in the seed or the fold."""

import logging
from pathlib import Path

from mcls.errors import FolderError, RequestError
from mcls.runs.folder import RunFolder, relative, shell_path
from mcls.sweep.plan import read_sweep
from mcls.sweep.table import read_settings
from mcls.system.text import plural

log = logging.getLogger("mcls")


def best_members(path: Path, several: bool = False) -> list[RunFolder]:
    """The finished jobs of the setting with the best mean on val, in the order of their numbers.

    Raises FolderError where none is finished, RequestError where no setting can be selected, or it has one job alone
    and `several` are needed.
    """
    settings = read_settings(read_sweep(path))
    if not any(job.status == "finished" for setting in settings for job in setting.repeats):
        raise FolderError(f"{path}: none of its jobs is finished. Continue with: mcls resume {shell_path(path)}")
    if len(settings) > 1 and not settings[0].measured("val"):
        raise RequestError(f"{path}: its jobs have no validation split to select a setting on. Name one of its runs.")
    best = settings[0]
    jobs = {job.key: job for job in best.repeats if job.status == "finished"}
    left = len({job.key for job in best.repeats}) - len(jobs)
    if several and len(jobs) == 1:
        (only,) = (shell_path(relative(job.folder.path)) for job in jobs.values())
        raise RequestError(f"--ensemble: of the best setting one run is finished. Measure it: mcls evaluate {only}")
    values = " ".join(f"{key}={value}" for key, value in best.values.items())
    which = f" of the best setting on val, {values}" if len(settings) > 1 else ""
    log.info(f"the mean of {plural(len(jobs), 'run')}{which}, in {relative(path)}")
    if left:
        log.warning(f"{plural(left, 'more job')} of this setting: not finished, and left out")
    return [job.folder for job in jobs.values()]
