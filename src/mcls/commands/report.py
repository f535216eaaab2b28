"""`mcls report`: one page of HTML about a run or a sweep, to send to somebody."""

import argparse
from pathlib import Path

from mcls.commands.options import Parser, path
from mcls.errors import FolderError
from mcls.report.html import page
from mcls.runs.folder import RunFolder, find_run, relative
from mcls.system.console import say
from mcls.system.files import publish


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls report",
        description="Write one self-contained HTML file with the result, curves, confusion matrix, per-class "
        "metrics, samples, configuration, environment and the command that reproduces it; of a sweep the table of its "
        "settings, its pictures and the best command. Its one script sorts tables; it loads nothing.",
    )
    command.add_argument("run", type=path, metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    command.add_argument("--full", action="store_true", help="with the name of the machine and whole paths")
    command.add_argument("--output", type=path, metavar="FILE", help="default: report.html in that folder")
    return command


def run(arguments: list[str]) -> int:
    """Write the page. Returns the exit status."""
    options = parser().parse_args(arguments)
    swept = (options.run / "sweep.json").is_file()
    folder = RunFolder(options.run) if swept else find_run(options.run)
    target = options.output or folder.path / "report.html"
    if options.output is None and target.is_symlink():
        raise FolderError(f"{target}: refused, a link. Name another file with --output.")
    content = (sweep_page(options.run, options.full) if swept else page(folder, options.full)).encode(
        "utf-8", "backslashreplace"
    )
    publish(target, content)
    say(f"{relative(target)}, {len(content) / 1e6:.1f} MB, self-contained")
    return 0


def sweep_page(path: Path, full: bool) -> str:
    """The page of a sweep."""
    from mcls.sweep.plan import read_sweep
    from mcls.sweep.summary import sweep_report

    return sweep_report(read_sweep(path), full)
