"""`mcls evaluate`: measure a finished run."""

import argparse
import logging
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcls.commands.options import (
    DATA_KEYS,
    Parser,
    add_checkpoint,
    add_device,
    add_tta,
    check_effective,
    override,
    path,
)
from mcls.errors import RequestError
from mcls.report.summary import percent
from mcls.runs.folder import RunFolder, find_run, read_json, relative, shell_path, unfinished
from mcls.system import text
from mcls.system.console import console, say, say_progress, say_table
from mcls.system.files import publish

if TYPE_CHECKING:
    from mcls.inference.evaluate import Evaluation
    from mcls.inference.load import LoadedRun

log = logging.getLogger("mcls")

DOUBTS_SHOWN = 10  # doubted samples on the terminal
FEW = 100  # samples, on which a temperature is a guess
MATRIX = 12  # classes up to which the confusion matrix is printed
MACRO = {"precision, macro": "precision_macro", "balanced accuracy": "balanced_accuracy", "F1, macro": "f1_macro"}
MACRO |= {"Matthews correlation": "mcc", "Cohen's kappa": "kappa"}
MACRO |= {"AUROC, one vs rest": "auroc", "average precision": "average_precision"}
CLASS_ROWS = 40  # classes up to which all are printed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls evaluate",
        description="Evaluate a run on a split of its data. The results are written to its folder: evaluation.json, "
        "figures/evaluation-*.png. Each evaluation on the test set is counted; --data is no such evaluation.",
    )
    command.add_argument("run", type=path, metavar="RUN", help="the run's folder; with --ensemble, a sweep's")
    command.add_argument("changes", nargs="*", type=override, metavar="key=value", help="for example dataset.root=DIR")
    command.add_argument("--split", choices=("train", "val", "test"), help="test (default), val or train")
    other = (
        "a folder that holds a folder of images for each class, a table with the column of the classes, or a folder "
    )
    other += "with a data set of Hugging Face's (its test split, or its only one)"
    command.add_argument("--data", type=path, metavar="DIR|FILE", help=f"other labelled data: {other}")
    add_checkpoint(command)
    add_device(command)
    add_tta(command)
    whole = "measure the mean of the probabilities of the runs of a sweep's best setting, its seeds or folds"
    command.add_argument("--ensemble", action="store_true", help=whole)
    command.add_argument("--mistakes", action="store_true", help="list the samples with the most doubtful labels")
    shown = "draw the most doubtful mistakes, and what of each picture the prediction rests on"
    command.add_argument("--explain", action="store_true", help=f"{shown} (image models)")
    return command


def run(arguments: list[str]) -> int:
    """Evaluate one run. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    sweep = (options.run / "sweep.json").is_file()
    if options.ensemble and not sweep:
        raise RequestError(f"--ensemble: takes the folder of a sweep, {options.run} is none. Omit it.")
    if sweep and not options.ensemble:
        runs = f"mcls runs {shell_path(options.run)}"
        raise RequestError(f"{options.run}: a sweep. Add --ensemble, or name one of its runs: {runs}")
    folder = RunFolder(options.run) if sweep else find_run(options.run)
    if options.data and options.split:
        raise RequestError("--data: not with --split, which names data of the run. Omit one.")
    if options.explain and options.ensemble:
        raise RequestError("--explain: not with --ensemble. Name one of the runs of the sweep.")
    check_effective(options.changes, ("trust",) if options.data else DATA_KEYS, "mcls evaluate")
    with console():
        (measure_ensemble if options.ensemble else measure)(folder, options)
    return 0


def measure(folder: RunFolder, options: argparse.Namespace) -> None:
    """Open the run and its data, measure, print and write."""
    say_progress(f"reading {folder.path}")
    from mcls.inference import evaluate, explain
    from mcls.inference.labelled import labelled_split
    from mcls.inference.load import load_run

    label = unfinished(folder, folder.read_result())
    if label and not folder.best.is_file():  # without val it is written at the end
        options.checkpoint = "last"
    only, tta = options.data is not None, options.tta
    loaded = load_run(folder, options.checkpoint, options.device, options.changes, model_only=only, tta=tta)
    classes = loaded.classes
    if options.explain:
        explain.check_explainable(loaded)
    folder.refuse_links()
    if options.data:
        split, name, other = labelled_split(loaded, options.data)
        val, openings = None, 0
    else:
        dataset = evaluate.rebuild_dataset(loaded, download=downloads(options))
        split, name, openings = evaluate.open_split(folder, dataset, options.split or "test", "mcls evaluate")
        val, other = dataset.val, {}
    evaluation = evaluate.evaluate(loaded, split, name, split if options.data else val)
    report = {
        "checkpoint": options.checkpoint,
        **({"unfinished": label} if label else {}),
        **evaluation.report,
        **other,
    }
    print_evaluation(report, openings, classes)
    keep(folder, evaluation, report, options.mistakes, classes)
    if options.explain and os.access(folder.path, os.W_OK) and not explain.draw_explanations(loaded, evaluation):
        say("no mistake to explain")


def downloads(options: argparse.Namespace) -> bool:
    """Whether the command line says if the data are downloaded; otherwise they are not."""
    return any(change.startswith("dataset.download=") for change in options.changes)


def measure_ensemble(folder: RunFolder, options: argparse.Namespace) -> None:
    """Measure the runs of a sweep's best setting, and the mean of their probabilities; print and write."""
    say_progress(f"reading {folder.path}")
    from mcls.inference import ensemble, evaluate
    from mcls.inference.labelled import labelled_split
    from mcls.inference.load import load_run
    from mcls.sweep.members import best_members
    from mcls.sweep.plan import read_sweep
    from mcls.sweep.table import write_table

    only, tta = options.data is not None, options.tta
    members: list[LoadedRun] = [
        load_run(each, options.checkpoint, options.device, options.changes, model_only=only, tta=tta)
        for each in best_members(options.run, several=True)
    ]
    whole = ensemble.mean_run(members, folder)
    folder.refuse_links()
    if options.data:
        split, name, other = labelled_split(whole, options.data)
        val, openings = None, 0
    else:
        wanted = options.split or "test"
        split, name, openings, val = ensemble.open_common(members, whole, wanted, downloads(options))
        other = {}
    measured = ensemble.measure_members(members, split, selected=name == "val")
    evaluation = evaluate.evaluate(whole, split, name, split if options.data else val)
    used = {"tta": members[0].tta} if members[0].tta else {}
    report = {"checkpoint": options.checkpoint, **evaluation.report, **used, "members": measured, **other}
    del report["epoch"]
    print_members(report)
    print_evaluation(report, openings, whole.classes)
    keep(folder, evaluation, report, options.mistakes, whole.classes)
    if os.access(folder.path, os.W_OK):
        write_table(read_sweep(options.run))  # sweep.md says what was measured


def print_members(report: dict[str, Any]) -> None:
    """A row for each member, for their mean, and for the ensemble."""
    keys = ("accuracy", "loss", "ece")
    lines: list[dict[str, Any]] = [*report["members"]]
    lines.append({"run": "mean", **{key: statistics.fmean(each[key] for each in report["members"]) for key in keys}})
    lines.append({"run": "ensemble", **{key: report[key] for key in (*keys, "interval") if key in report}})
    bounds = ["{:.4f} to {:.4f}".format(*line["interval"]) if "interval" in line else "" for line in lines]
    rows = [
        [text.clean(line["run"]), f"{line['accuracy']:.4f}", bound, *(f"{line[key]:.4f}" for key in keys[1:])]
        for line, bound in zip(lines, bounds, strict=True)
    ]
    say_table(["run", f"{report['split']} accuracy", "interval", "log-loss", "ECE"], rows, names=[0])
    say()


def keep(
    folder: RunFolder, evaluation: "Evaluation", report: dict[str, Any], mistakes: bool, classes: Sequence[str]
) -> None:
    """Write what was measured, and say where."""
    from mcls.inference import evaluate

    order, name = evaluate.doubted(evaluation) if mistakes else None, report["split"]
    if not os.access(folder.path, os.W_OK):
        log.warning(f"{relative(folder.path)}: not writable; the results are neither saved nor counted.")
        return
    say_progress("drawing the figures")
    evaluate.draw_evaluation(evaluation, folder, classes, order)
    path = folder.path / "evaluation.json"
    folder.write_json(path, {**(read_json(path) if path.exists() else {}), name: report})
    if order is not None:
        print_doubts(evaluation, evaluate.doubts(evaluation, order, classes), folder)
    say(f"\neverything is in {relative(path)}, pictures in {relative(folder.figures)}/evaluation-{name}-*.png")


def print_evaluation(report: dict[str, Any], openings: int, classes: tuple[str, ...]) -> None:
    """The measures as tables on the terminal."""
    count = len(report.get("members", []))
    which = f"mean of the probabilities of {text.plural(count, 'run')}" if count else f"of epoch {report['epoch']}"
    say(f"{report['split']:<5} {percent(report)}; {report['checkpoint']} checkpoint, {which}")
    if "tta" in report:
        say(f"test-time augmentation: {report['tta']}")
    if "unfinished" in report:
        say(f"the run is not finished: {report['unfinished']}")
    if openings:
        say(f"test set evaluated for the {ordinal(openings)} time")
    scaled = report["temperature"]
    top = next((key for key in report if key.startswith("top_")), "")
    names = ({f"{top.replace('_', '-')} accuracy": top} if top else {}) | MACRO
    bounds = {key: " [{:.4f}, {:.4f}]".format(*bounds_of) for key, bounds_of in report.get("intervals", {}).items()}
    rows = [(name, f"{report[key]:.4f}{bounds.get(key, '')}") for name, key in names.items() if key in report]
    rows += [("log-loss", f"{report['loss']:.4f}"), ("Brier score", f"{report['brier']:.4f}")]
    rows += [("ECE", f"{report['ece']:.4f}")]
    if "fitted_on" not in scaled:
        rows += [("temperature", f"not fitted: {scaled['reason']}")]
    elif scaled["value"] is None:
        rows += [("temperature", f"cannot be fitted on {scaled['fitted_on']}: {scaled['reason']}")]
    else:
        few = f", which has only {text.plural(scaled['samples'], 'sample')}" if scaled["samples"] < FEW else ""
        rows += [("temperature", f"{scaled['value']:.3f}, fitted on {scaled['fitted_on']}{few}")]
        rows += [("log-loss at it", f"{scaled['loss']:.4f}"), ("ECE at it", f"{scaled['ece']:.4f}")]
    say()
    say_table(["measure", "value"], rows)
    print_class_metrics(report, classes)


def print_class_metrics(report: dict[str, Any], classes: tuple[str, ...]) -> None:
    """The measures of each class and, for a few classes, the confusion matrix."""
    rows = report["per_class"]
    if len(rows) > CLASS_ROWS:
        say(f"\nthe {CLASS_ROWS} classes of {len(rows)} with the lowest F1:")
        rows = sorted(rows, key=lambda row: 2 if row["f1"] is None else row["f1"])[:CLASS_ROWS]
    keys = ("precision", "recall", "f1")
    cells = [[row["class"], *(text.decimals(row[key]) for key in keys), row["support"]] for row in rows]
    say()
    say_table(["class", *keys, "samples"], cells, names=[0])
    if len(classes) <= MATRIX:
        lines = [[name, *row] for name, row in zip(classes, report["confusion"], strict=True)]
        say()
        say_table(["true \\ predicted", *map(text.clean, classes)], lines, names=[0])


def print_doubts(evaluation: "Evaluation", rows: list[list[object]], folder: RunFolder) -> None:
    """The most doubted labels on the terminal, all of them in mistakes.csv."""
    split = evaluation.report["split"]
    header = ["sample", "label", "probability", "predicted", "its probability"]
    path = folder.path / f"mistakes-{split}.csv"
    publish(path, text.comma_separated(header, rows).encode())
    say(
        f"\ndoubtful labels: {len(rows):,} of {len(evaluation.split):,}, the most doubtful first; all are in "
        f"{relative(path)}"
    )
    if rows:
        say_table(header, rows[:DOUBTS_SHOWN], names=[0, 1, 3])


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, ..., 11th."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"
