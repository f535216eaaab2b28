"""What of Hydra's own program is used: its help and its flags that show the configuration."""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mcls.config.validate import CONFIGS
from mcls.errors import MachineError, RequestError
from mcls.system.files import describe_os_error


def launch(arguments: list[str], task: Any) -> None:
    """Hand over to Hydra, as if its program were called `mcls train`."""
    sys.argv = ["mcls train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or what is raised in there is printed, and the process ended
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="train")(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise RequestError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.filename is None:  # standard output
            raise
        raise MachineError(describe_os_error(Path(error.filename), error, 0)) from error
