"""The machine: resolve `auto`, report what is missing, describe the environment."""

import logging
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mcls.errors import MachineError, RequestError
from mcls.system.distributed import SINGLE_PROCESS, World
from mcls.system.text import plural
from mcls.system.torchrun import rank_and_size
from mcls.version import __version__

log = logging.getLogger("mcls")

WINDOWS_MEMORY = 8_000_000_000  # bytes that are taken to be there where the system is not asked
PACKAGES = (
    "torch",
    "torchvision",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scikit-learn",
    "tensorboard",
    "matplotlib",
    "Pillow",
)


def resolve_device(name: str, world: World = SINGLE_PROCESS) -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; each rank gets a GPU of its own.

    `auto` takes CUDA, else the GPU of a Mac (MPS), else the CPU.

    Raises MachineError for a GPU that is not there.
    """
    if world.size > 1:
        return device_of(world, name)
    if name == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda:0" if torch.cuda.is_available() else other)
    if name == "cpu" or (name == "mps" and torch.backends.mps.is_available()):
        return torch.device(name)
    if name == "mps":
        raise MachineError(f"device: mps requested, but there is none. device=auto would use {resolve_device('auto')}.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(name if ":" in name else f"{name}:0")
    if device.index >= count:
        there = f"this machine has {count}" if count else "there is no usable GPU here"
        raise MachineError(f"device: {name} requested, but {there}. device=auto would use {resolve_device('auto')}.")
    return device


def device_of(world: World, name: str) -> torch.device:
    """The device of a rank: the CPU, which the ranks share, or a GPU of its own."""
    launched = rank_and_size()[1] > 1
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        cores = os.cpu_count() or 1
        if world.size > 4 * cores and not launched:
            raise MachineError(f"trainer.devices: {world.size} processes on {plural(cores, 'core')}. Lower it.")
        return torch.device("cpu")
    if ":" in name or name == "mps":
        raise RequestError(
            f"device: {name} is one GPU, but trainer.devices={world.size} needs as many. Set device=cuda."
        )
    gpus = torch.cuda.device_count()
    if not launched and gpus < world.size:
        raise MachineError(
            f"trainer.devices: {world.size} GPUs requested, but this machine has {gpus}. Set device=cpu, or lower it."
        )
    return resolve_device(f"cuda:{os.environ['LOCAL_RANK'] if launched else world.rank}")


def memory_bytes(device: torch.device) -> int:
    """Memory of the device, or the machine's limit for this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    if not hasattr(os, "sysconf"):  # Windows
        return WINDOWS_MEMORY
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def device_name(device: torch.device) -> str:
    """The device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "cpu"


def rng_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random numbers on the CPU and on `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the `states` of `rng_states`; those of another kind of device are ignored."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def environment() -> dict[str, Any]:
    """Versions, commit and machine, for run.json."""
    asked = ["git", "--no-optional-locks", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        described = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        commit, _, dirty = described.partition("-")
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "mcls": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": None if commit is None else bool(dirty),  # files that git knows were changed
        "platform": platform.platform(),
        "host": platform.node(),
        "threads": torch.get_num_threads(),
    }
