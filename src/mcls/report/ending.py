"""What a run says at its end: the result, what ended it, signs of trouble in its measures, what to type next."""

import contextlib
import math
import re
from typing import Any

from mcls.errors import FolderError
from mcls.report.summary import epoch_records, percent
from mcls.runs.folder import RunFolder, read_yaml, relative, shell_path
from mcls.significance import wilson
from mcls.system.console import BOLD, WARNING, say
from mcls.system.text import plural

GAP = 0.1  # by which train accuracy is above the 95 % interval of val accuracy where a run overfits
STAMP = r"\d{4}-\d\d-\d\d_\d\d-"  # begins the name of a run that lies two levels below the folder of all runs
CLOSE = 0.97  # of ln(C), above which a loss is that of guessing


def print_result(folder: RunFolder, result: dict[str, Any]) -> None:
    """Print the result of a run, what may be wrong with it, and what to type next."""
    test = result["test"]
    if told := early_end(folder, result):
        say(told)
    if result["val"]:
        val = {**result["val"], "interval": None}  # older versions wrote one
        say(f"val   {percent(val)}, best of epoch {result['best_epoch']}", colour="" if test else BOLD)
    if test:
        say(f"test  {percent(test)}, loss {test['loss']:.4f}, F1 {test['f1_macro']:.4f}", colour=BOLD)
    else:
        say("test  not evaluated by this job, see sweep.test")
    with contextlib.suppress(FolderError):  # of a run that was finished long ago, whose metrics.jsonl is damaged
        for sign in signs_of_trouble(folder, result):
            say(sign, colour=WARNING)
    say(f"done in {result['total_seconds']:.1f} s; everything is in {relative(folder.path)}")
    watched = folder.path.parent.parent if re.match(STAMP, folder.path.name) else folder.path
    say(f"curves and figures: mcls board {shell_path(relative(watched))}")
    say(f"classify with it: mcls predict {shell_path(relative(folder.path))} FILE")


def signs_of_trouble(folder: RunFolder, result: dict[str, Any]) -> list[str]:
    """A line for each thing that the measures of a finished run say is wrong with it."""
    config, val = read_yaml(folder.config), result["val"]
    node, signs = config["model"], []
    frozen = node.get("freeze") not in (None, False, "none") and node.get("unfreeze_epoch") is None
    if frozen and node.get("weights", "") is None:
        signs.append("model.freeze: the frozen layers have random weights. Set model.weights, or train all layers.")
    records = [record for record in epoch_records(folder) if "val" in record]
    if not records or not val:
        return signs
    accuracy, loss = (
        pick(record["val"][key] for record in records) for key, pick in (("accuracy", max), ("loss", min))
    )
    counts = [row["support"] for row in val["per_class"]]
    guess, share = math.log(len(counts)), max(counts) / sum(counts)
    if loss >= CLOSE * guess:
        signs.append(
            f"val loss: {loss:.4f} at best, no better than guessing one of {len(counts)} classes, {guess:.4f}. Look "
            "for a better learning rate with mcls tune lr."
        )
    elif accuracy <= share:
        signs.append(
            f"val accuracy: {accuracy:.2%} at best, and {share:.2%} of val is of one class. Look for a better learning "
            "rate with mcls tune lr, or weigh the classes with loss.class_weights=balanced."
        )
    trained, right = (records[-1][split]["accuracy"] for split in ("train", "val"))
    if trained - wilson(round(right * val["n"]), val["n"])[1] > GAP and not config["trainer"].get("overfit_batches"):
        signs.append(
            f"overfitting: {trained:.2%} of train and {right:.2%} of val are right in epoch {records[-1]['epoch']}. "
            "More data, augment, optimizer.weight_decay or a smaller model may help."
        )
    return signs


def early_end(folder: RunFolder, result: dict[str, Any]) -> str:
    """Which key of the trainer ended a run before its last epoch; nothing where none did."""
    settings, epochs = read_yaml(folder.config)["trainer"], result["epochs"]
    key = str(result.get("ended_by")).removeprefix("trainer.")
    if key == "patience":
        measure = f"val {settings.get('monitor', 'accuracy')}"
        return (
            f"stopped early after {epochs} of {plural(settings['epochs'], 'epoch')}: {measure} has not improved for "
            f"{plural(settings['patience'], 'epoch')} (trainer.patience)"
        )
    return f"ended in epoch {epochs} by trainer.{key}={settings[key]:g}" if key in ("max_steps", "max_minutes") else ""
