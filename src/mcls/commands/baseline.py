"""`mcls baseline`: simple classifiers on the same splits, for a network to beat."""

import argparse
import shlex

from mcls.commands.options import Parser, override, path
from mcls.config.compose import checker
from mcls.errors import RequestError
from mcls.report.summary import percent
from mcls.runs.folder import relative, shell_path
from mcls.system.console import console, say, say_progress, say_table

METHODS = ("majority", "nearest-centroid", "logistic-regression", "gradient-boosting")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls baseline",
        description="Fit simple classifiers on the data set and splits that mcls train would use: the most frequent "
        "class, the nearest centroid, logistic regression and gradient-boosted trees of scikit-learn; images by their "
        "pixels. Each is recorded as a run: mcls runs, compare, report, evaluate, predict and export take it.",
    )
    command.add_argument(
        "overrides", nargs="*", type=override, metavar="key=value", help="of dataset, seed and outputs"
    )
    command.add_argument(
        "--only", choices=METHODS, action="append", metavar="METHOD", help=f"one of {', '.join(METHODS)}; repeatable"
    )
    command.add_argument("--config-dir", type=path, metavar="DIR", help="folder with configuration files of your own")
    return command


def run(arguments: list[str]) -> int:
    """Fit the baselines, then show a table of them. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    with console():
        with checker(options.config_dir) as check:
            request = check.check(options.overrides, False)
        if request.sweep:
            raise RequestError("hydra.mode: mcls baseline makes no sweep. Give each key one value.")
        say_progress(f"reading {request.choices['dataset']}")
        from mcls.training.baseline import fit_baselines

        command = shlex.join(["mcls", "baseline", *arguments])
        origin = {"command": command, "overrides": request.overrides, "choices": request.choices}
        rows = [
            [name, percent(result["val"]) if result["val"] else "", percent(result["test"]), relative(folder.path)]
            for name, folder, result in fit_baselines(request.config, origin, dict.fromkeys(options.only or METHODS))
        ]
    say_table(["baseline", "val accuracy", "test accuracy", "run"], rows, names=[3])
    say(f"beside your own runs: mcls runs {shell_path(request.config['outputs'])}")
    return 0
