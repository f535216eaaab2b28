"""`mcls compare`: what differs between two runs, and whether it matters."""

import argparse
from pathlib import Path

from mcls.commands.options import DATA_KEYS, Parser, add_device, check_effective, override, path
from mcls.config.saved import check_same_data, saved_config
from mcls.config.schema import differing_keys, leaves, yaml_text
from mcls.errors import FolderError, RequestError
from mcls.runs.folder import RunFolder, find_run, relative
from mcls.system.console import say, say_progress, say_table
from mcls.system.files import make_folder


def run(arguments: list[str]) -> int:
    """Compare two runs. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    folders = [find_run(options.a), find_run(options.b)]
    check_effective(options.changes, DATA_KEYS, "mcls compare")
    for folder in folders:
        folder.read_finished()
    if folders[0].path.resolve() == folders[1].path.resolve():
        raise RequestError(f"{options.a} and {options.b}: the same run. Name two.")
    configs = [dict(leaves(saved_config(folder, options.changes))) for folder in folders]
    differ = differing_keys(configs[0], configs[1])
    check_same_data(differ, options.split)
    for name, folder in zip("AB", folders, strict=True):
        say(f"{name}  {relative(folder.path)}")
    say()
    if differ:
        rows = [
            [key, *(yaml_text(value) if value is not None else "" for value in pair)] for key, pair in differ.items()
        ]
        say_table(["key", "A", "B"], rows, names=[1, 2])
    else:
        say("the same configuration")
    predict(folders, options)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls compare",
        description="Compare two finished runs: the keys that differ, the metrics with their intervals, McNemar's "
        "exact test on the same samples, and the samples whose prediction changed. The test is about these two "
        "sets of weights; about two recipes it says little: train several seeds of each and see mcls runs.",
    )
    command.add_argument("a", type=path, metavar="A", help="a run's folder")
    command.add_argument("b", type=path, metavar="B", help="another's")
    command.add_argument(
        "changes", nargs="*", type=override, metavar="key=value", help="for both runs, for example dataset.root=DIR"
    )
    command.add_argument("--split", choices=("test", "val"), default="test", help="default test")
    add_device(command)
    command.add_argument("--output", type=path, metavar="DIR", help="for the list and the figures; default A/compare/B")
    return command


def make_target(options: argparse.Namespace) -> Path:
    """The folder for what flipped, made. Raises MachineError, or FolderError for a link in a run's folder."""
    from mcls.inference.two_runs import comparison_folder

    target: Path = options.output or comparison_folder(options.a, options.b)
    if options.output is None and (target.is_symlink() or target.parent.is_symlink()):
        raise FolderError(f"{target}: refused, it is outside the run's folder. Name another with --output.")
    make_folder(target)
    return target


def predict(folders: list[RunFolder], options: argparse.Namespace) -> None:
    """Let both runs classify the split; say how they do, and leave what flipped in a folder."""
    say_progress("reading both runs")
    from mcls.inference.compare import mcnemar_lines, metric_rows, predictions_of, split_of, write_flips
    from mcls.inference.load import load_run

    first, second = (load_run(folder, device=options.device, changes=options.changes) for folder in folders)
    target = make_target(options)
    split, openings = split_of(first, second, options.split)
    mine, theirs = predictions_of(first, split), predictions_of(second, split)
    say()
    reports = [each.measures.report(first.classes) for each in (mine, theirs)]
    say_table(["measure", "A", "B", "B - A"], metric_rows(options.split, reports))
    say()
    only_first = int((mine.right & ~theirs.right).sum())
    only_second = int((theirs.right & ~mine.right).sum())
    for line in mcnemar_lines(only_first, only_second, len(split)):
        say(line)
    counts = {"samples": len(split), "only_first": only_first, "only_second": only_second}
    folders[0].write_json(target / f"{options.split}.json", counts)
    title = f"A {folders[0].name}   B {folders[1].name}"
    written = write_flips(target / f"{options.split}_flipped", split, mine, theirs, first.classes, title)
    say(f"which: {', '.join(relative(path) for path in written)}")
    if any(openings):
        say(f"Evaluations of the test set so far: {openings[0]} for A, {openings[1]} for B.")
