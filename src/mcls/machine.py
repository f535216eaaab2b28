"""The machine: what `auto` means here, a clear error for what is not there, and what to write down of it."""

import functools
import logging
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mcls import __version__
from mcls.distributed import ALONE, Team
from mcls.errors import MachineError, RequestError
from mcls.torchrun import rank_and_size

log = logging.getLogger("mcls")

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


def resolve_device(name: str, team: Team = ALONE) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`; a process of a team gets a GPU of its own.

    Raises MachineError for a GPU that is not there.
    """
    if team.size > 1:
        return device_of(team, name)
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(name if ":" in name else f"{name}:0")
    if device.index >= count:
        there = f"this machine has {count}" if count else "there is no usable GPU here"
        raise MachineError(f"device: {name} asked for, but {there}. device=auto would take {resolve_device('auto')}.")
    return device


def device_of(team: Team, name: str) -> torch.device:
    """The device of a process of a team: the CPU, which they share, or a GPU of its own."""
    launched = rank_and_size()[1] > 1
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        cores = os.cpu_count() or 1
        if team.size > 4 * cores and not launched:
            raise MachineError(f"trainer.devices: {team.size} processes on {cores} cores. Lower it.")
        return torch.device("cpu")
    if ":" in name:
        raise RequestError(f"device: {name} is one GPU, trainer.devices={team.size} wants as many. Say device=cuda.")
    gpus = torch.cuda.device_count()
    if not launched and gpus < team.size:
        raise MachineError(
            f"trainer.devices: {team.size} GPUs asked for, this machine has {gpus}. Say device=cpu, or fewer."
        )
    return resolve_device(f"cuda:{os.environ['LOCAL_RANK'] if launched else team.rank}")


def resolve_precision(name: str, device: torch.device) -> str:
    """`fp32`, `fp32_medium`, `bf16` or `fp16`; `auto` is bf16 on GPUs that have it in hardware, fp32 elsewhere."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise RequestError("precision: fp16 is for GPUs, got device cpu. Use bf16 or fp32.")
    if name == "fp32_medium" and device.type != "cpu":
        raise RequestError(f"precision: fp32_medium is for CPUs, got device {device}. Use bf16 or fp32.")
    return name


def set_matrix_products(precision: str) -> None:
    """Have fp32 computed in fp32: on GPUs without TF32, on the CPU by torch's own choice or, `fp32_medium`, by oneDNN.

    Raises MachineError where oneDNN would round to bf16, as it may on CPUs with AMX: measured, not guessed.
    """
    torch.set_float32_matmul_precision("medium" if precision == "fp32_medium" else "highest")
    torch.backends.cudnn.allow_tf32 = False  # torch's default rounds the convolutions of fp32 to 10 bits
    if precision == "fp32_medium" and (error := product_error()) > 1e-5:
        raise MachineError(
            f"precision: fp32_medium is not fp32 on this CPU, its error is {error:.0e}. Use bf16 or fp32."
        )


@functools.cache
def product_error() -> float:
    """The relative error of a matrix product as torch computes it now."""
    left, right = torch.linspace(-1, 1, 256 * 256).view(256, 256), torch.linspace(1, -2, 256 * 256).view(256, 256)
    exact = left.double() @ right.double()
    return float((left @ right - exact).abs().max() / exact.abs().max())


def trained_precision(recorded: str | None, chosen: str, device: torch.device) -> str:
    """The precision to use a run in on `device`: the one it was trained in, or else fp32, which is said.

    Args:
        recorded: in its run.json; None in a folder without that.
        chosen: in its configuration.
    """
    wanted = recorded or chosen
    try:
        precision = resolve_precision(wanted, device)
        set_matrix_products(precision)
        return precision
    except (RequestError, MachineError):
        log.warning(f"precision: the run was trained in {wanted}, which {device} does not compute; here it is fp32.")
        set_matrix_products("fp32")
        return "fp32"


def memory_bytes(device: torch.device) -> int:
    """Memory of the device, or the machine's limit for this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def describe(device: torch.device) -> str:
    """The device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "cpu"


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
