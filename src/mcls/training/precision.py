"""The forward pass: its arithmetic, and measuring a split with it."""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mcls.data.loader import Loader, worker_errors
from mcls.errors import MachineError, RequestError, Stopped
from mcls.metrics import EvalAccumulator
from mcls.system.console import progress_bar
from mcls.system.distributed import SINGLE_PROCESS, World

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass in `precision`; the fp32 ones need none."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else contextlib.nullcontext()


def recorded_autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass of a run that was trained in `precision`; it may not be the run used before."""
    set_matrix_products(precision)
    return autocast(device, precision)


def eval_logits(model: nn.Module, inputs: Tensor, tta: str | None) -> Tensor:
    """Logits (N, C) of `inputs`; with `tta` `flip` their mean over the pictures and their mirror images."""
    logits: Tensor = model(inputs)
    return logits if tta is None else (logits + model(inputs.flip(-1))) / 2


def check_tta(tta: str | None, shape: tuple[int, ...], key: str) -> str | None:
    """`tta`, set by `key`. Raises RequestError where samples of `shape` have no mirror images."""
    if tta is not None and len(shape) != 3:
        got = " x ".join(map(str, shape))
        raise RequestError(f"{key}: {tta} requires images, but this data set has samples of shape {got}. Omit it.")
    return tta


@worker_errors()
@torch.inference_mode()
def evaluate_loader(
    model: nn.Module,
    loader: Loader,
    num_classes: int,
    precision: str,
    stop: Callable[[], int] = int,
    world: World = SINGLE_PROCESS,
    tta: str | None = None,
    top_k: int | None = None,
) -> EvalAccumulator:
    """Measure `model` on this process's share of what `loader` serves. Raises Stopped when `stop` tells of a signal."""
    model.eval()
    accumulator = EvalAccumulator(num_classes, loader.device, top_k)
    with progress_bar("measuring", len(loader), quiet=world.rank > 0) as bar:
        for inputs, targets in loader.epoch(world=world):
            with autocast(loader.device, precision):
                logits = eval_logits(model, inputs, tta)
            del inputs  # or the next batch takes memory that is not in the cache
            accumulator.add(logits, targets)
            bar.update()
            if signal_number := stop():
                raise Stopped("stopped while measuring", signal_number)
    return accumulator


log = logging.getLogger("mcls")


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
    """The precision to use a run in on `device`: the one it was trained in, or else fp32, with a warning.

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
        log.warning(f"precision: the run was trained in {wanted}, which {device} does not support; fp32 is used here.")
        set_matrix_products("fp32")
        return "fp32"
