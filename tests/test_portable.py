"""What mcls needs of the system: no module of POSIX alone, no signal or call that Windows lacks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcls.errors import MachineError, RequestError
from mcls.metrics import sum_dtype
from mcls.system.device import device_of, resolve_device
from mcls.system.distributed import World

SOURCE = Path(__file__).parents[1] / "src" / "mcls"
POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "crypt"}
# what a process sees that runs on another system: the modules can't be imported, the names are not there
STRIPPED = f"""
import os, signal, subprocess, sys, tempfile, filelock._unix, tqdm, torch
for name in {sorted(POSIX - {"posix"})}:
    sys.modules[name] = None
for name in ("register_at_fork", "sysconf", "pread", "pwrite", "statvfs", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "pthread_sigmask"):
    delattr(signal, name)
from mcls.cli import main
sys.exit(main(sys.argv[1:]))
"""


def stripped(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STRIPPED, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_no_module_is_of_posix_alone() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 60
    for path in files:
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX & {name.split(".")[0] for name in names}, path


def test_a_run_without_what_windows_lacks(tmp_path: Path) -> None:
    keys = ("trainer.epochs=2", "trainer.figures=false", "device=cpu", "hydra.run.dir=run")
    for command in (("train", *keys), ("resume", "run", "trainer.epochs=3"), ("runs", "."), ("evaluate", "run")):
        done = stripped(tmp_path, *command)
        assert done.returncode == 0, done.stderr
    (tmp_path / "points.csv").write_text("x,y\n1,2\n3,4\n5,6\n")
    done = stripped(tmp_path, "predict", "run", "points.csv")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 4, done.stderr
    done = stripped(tmp_path, "train", "trainer.devices=2", "device=cpu")
    assert done.returncode == 4
    assert done.stderr.endswith("trainer.devices: 2 processes, which mcls can't start on Windows. Set it to 1.\n")


def test_the_gpu_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="device: mps requested, but there is none"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == resolve_device("auto") == torch.device("mps")
    with pytest.raises(RequestError, match="mps is one GPU"):
        device_of(World(0, 2), "mps")
    assert (sum_dtype(torch.device("mps")), sum_dtype(torch.device("cpu"))) == (torch.float32, torch.float64)
