"""Runs trained in this process, for tests of what comes after training."""

import sys
from pathlib import Path

import pytest

from mcls.cli import main

TINY = ["trainer.figures=false", "threads=1"]


def train(folder: Path, data_root: Path, *arguments: str) -> Path:
    """Train in `folder` with `mcls train ARGUMENT ...`. Returns the run folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCLS_DATA", str(data_root))
        patch.setattr(sys, "argv", sys.argv)
        assert main(["train", *arguments, *TINY, f"hydra.run.dir={folder}"]) == 0
    return folder
