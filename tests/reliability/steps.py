"""What the reliability tests train, and what they compare."""

import gc
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcls.runs import checkpoint

QUICK = ("threads=1", "trainer.figures=false")
# dropout and augmentation draw random numbers, momentum has a state, the best epoch is not the last one by construction
TRAIN = (
    "train",
    "dataset=mnist",
    "dataset.val_fraction=0.2",
    "model=mlp",
    "model.dropout=0.2",
    "model.hidden_units=[16]",
    "augment=crop_flip",
    "schedule=cosine",
    "optimizer.lr=0.02",
    "trainer.epochs=3",
    "trainer.batch_size=32",
    "trainer.checkpoint_every_steps=1",
    "trainer.log_every_steps=1",
    *QUICK,
)
STEPS = 24


def only_run(root: Path) -> Path | None:
    """The run folder under `root`, if one was begun; there is never a second one."""
    found = list(root.glob("outputs/*/*/run.json"))
    assert len(found) <= 1
    return found[0].parent if found else None


def result(folder: Path) -> dict[str, Any]:
    """What result.json says; a number that is not finite is no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found: dict[str, Any] = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    return found


def plain(value: Any) -> Any:
    """A checkpoint's content in a form that `==` compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if "seconds" not in str(key)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def outcome(folder: Path, curves: bool = True) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how it was run; times left out, curves if asked."""
    last, best = checkpoint.load_checkpoint(folder / "last.pt"), checkpoint.load_checkpoint(folder / "best.pt")
    found = result(folder)
    measures = {key: found[key] for key in ("status", "epochs", "best_epoch", "steps", "val", "test", "weights_sha256")}
    found = {"last": plain(last), "best": plain(best), "result": measures}
    return {**found, "metrics": epochs(folder)} if curves else found


def epochs(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if "second" not in key} for line in lines]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard shows, by tag, as steps and values in its order; times left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TensorBoard leaves its files to the collector
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
        found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
        del events
        gc.collect()
    return found


def finite(folder: Path) -> bool:
    """Whether every checkpoint in `folder` holds finite weights alone."""

    def good(value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return not value.is_floating_point() or bool(value.isfinite().all())
        if isinstance(value, dict):
            return all(map(good, value.values()))
        if isinstance(value, list):
            return all(map(good, value))
        return not isinstance(value, float) or math.isfinite(value)

    return all(good(checkpoint.load_checkpoint(path)) for path in folder.glob("*.pt"))
