"""From a checked command line to a finished run: what `mcls train` and `mcls.train` share."""

from functools import partial
from pathlib import Path
from typing import Any

from mcls.config.compose import Request
from mcls.errors import RequestError
from mcls.runs.folder import RunFolder, claim, timestamp
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest
from mcls.training.run import train_new


def train_request(request: Request, command: str, stop: StopRequest) -> tuple[RunFolder, dict[str, Any]]:
    """Train the one run that was asked for. Returns its folder and the content of its result.json.

    Args:
        command: what was typed, for run.json.

    Raises MclsError, as `train_new`; RequestError when the folder that was given holds a run.
    """
    given = None
    if request.folder is not None:
        given = RunFolder(Path(request.folder))
        make_folder(given.path)
        if given.about.exists():
            raise RequestError(f"hydra.run.dir: {given.path} already holds a run. Name a new folder.")
    own = [line for line in request.overrides if not line.lstrip("+~").startswith("hydra")]
    origin = {"command": command, "overrides": own, "choices": request.choices}
    return train_new(request.config, origin, partial(new_folder, request, given), stop)


def new_folder(request: Request, given: RunFolder | None) -> RunFolder:
    """The folder that was given, or a new one, `outputs/<dataset>-<model>/<date>_<time>`."""
    group = f"{request.choices['dataset']}-{request.choices['model']}"
    return given or claim(Path(request.config["outputs"]) / group, timestamp())
