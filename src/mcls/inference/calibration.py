"""Temperature and abstention, by what `mcls evaluate` recorded of val."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from mcls.errors import RequestError
from mcls.inference.load import LoadedRun
from mcls.runs.folder import read_json, shell_path
from mcls.runs.formats import check
from mcls.system.text import plural

POINTS = 100  # of a rejection curve
CONFIDENCE = 0.95  # with which the error among what is not rejected is at most what was asked for
VAL = {
    "checkpoint": "text",
    "epoch": "count",
    "temperature": {"value": "float|null", "reason?": "text"},
    "rejection?": {"plain": [["float"]], "scaled": [["float"]]},
}


def rejection_curve(confidence: Tensor, right: Tensor) -> list[list[float]]:
    """Thresholds, and how many samples are at least as sure and how many of those are wrong; the most sure first.

    Args:
        confidence: (N,), probability of the predicted class.
        right: bool (N,).
    """
    order = confidence.argsort(descending=True)
    rows = []
    for point in range(1, POINTS + 1):
        threshold = float(confidence[order[math.ceil(len(order) * point / POINTS) - 1]])
        sure = confidence >= threshold
        rows.append([threshold, int(sure.sum()), int((sure & ~right).sum())])
    return rows


def error_bound(errors: int, count: int, delta: float) -> float:
    """What the error rate is at most, with probability 1 - `delta`, after `errors` of `count` (Clopper-Pearson)."""
    from scipy.special import betaincinv

    return 1.0 if errors >= count else float(betaincinv(errors + 1, count - errors, 1 - delta))


def rejection_threshold(rows: list[list[float]], risk: float) -> tuple[float, float]:
    """The probability below which samples are rejected, and what part of val is kept.

    The search for the largest part whose error is at most `risk` with probability CONFIDENCE is that of Geifman and
    El-Yaniv (2017, "Selective classification for deep neural networks", algorithm 1).

    Raises RequestError when there is no such part.
    """
    low, high = 0, len(rows)  # kept for certain: rows[low - 1]
    steps = math.ceil(math.log2(len(rows)))
    for _ in range(steps):
        middle = math.ceil((low + high) / 2)
        _, count, errors = rows[middle - 1]
        if error_bound(int(errors), int(count), (1 - CONFIDENCE) / steps) <= risk:
            low = middle
        else:
            high = middle
    if not low:
        raise RequestError(
            f"--reject-below: val, of {plural(int(rows[-1][1]), 'sample')}, does not show with "
            f"{CONFIDENCE:.0%} confidence that the error can be kept at {risk:g}. Allow more."
        )
    return rows[low - 1][0], rows[low - 1][1] / rows[-1][1]


def val_record(loaded: LoadedRun, which: str, flag: str) -> dict[str, Any]:
    """What `mcls evaluate` wrote of these weights on val: of any split, for the temperature. Raises RequestError."""
    path, result = loaded.folder.path / "evaluation.json", loaded.folder.read_result() or {}
    if result.get("val", result) is None:
        raise RequestError(f"{flag}: the run has no val, which it is measured on. Omit it.")
    told = f"Run first: mcls evaluate {shell_path(loaded.folder.path)} --split val --checkpoint {which}"
    told += f" --tta {loaded.tta}" if loaded.tta else ""
    kept = "rejection" if flag == "--reject-below" else "temperature"
    written: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    fitted = {name: record.get("temperature") for name, record in written.items()}
    on_val = [name for name, how in fitted.items() if isinstance(how, dict) and how.get("fitted_on") == "val"]
    records = [record for name, record in written.items() if kept in record and name in ("val", *on_val)]
    for record in records:
        check(record, VAL, path)
    wanted = which, loaded.epoch, loaded.tta
    same = [record for record in records if (record["checkpoint"], record["epoch"], record.get("tta")) == wanted]
    if not records:
        raise RequestError(f"{flag}: the run was not measured on val. {told}")
    if not same:
        raise RequestError(f"{flag}: what was measured on val are other weights or another --tta. {told}")
    found: dict[str, Any] = same[0]
    return found


def at_temperature(loaded: LoadedRun, which: str) -> LoadedRun:
    """The run with the temperature that was fitted on val. Raises RequestError when none was or can be."""
    fitted = val_record(loaded, which, "--temperature")["temperature"]
    value = fitted["value"]
    if not isinstance(value, float) or not 0.01 <= value <= 100:
        raise RequestError(f"--temperature: cannot be fitted on val: {fitted.get('reason', 'no value')}. Omit it.")
    return replace(loaded, temperature=value)


def rejecting(loaded: LoadedRun, which: str, risk: float) -> tuple[float, float]:
    """`rejection_threshold` for the probabilities of a run. Raises RequestError."""
    thresholds = val_record(loaded, which, "--reject-below")["rejection"]
    return rejection_threshold(thresholds["plain" if loaded.temperature == 1 else "scaled"], risk)


def rejection(confidence: Tensor, scaled: Tensor, right: Tensor) -> dict[str, Any]:
    """The curves for the probabilities as they are and at the temperature, for evaluation.json."""
    return {"plain": rejection_curve(confidence, right), "scaled": rejection_curve(scaled, right)}
