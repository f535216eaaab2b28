"""`mcls report`: one page of HTML about a run or a sweep, to send to somebody."""

import argparse
from pathlib import Path

from mcls.commands.options import Parser, path
from mcls.errors import FolderError, RequestError
from mcls.report.html import page
from mcls.runs.folder import RunFolder, find_run, relative, slug
from mcls.system.console import say
from mcls.system.files import publish


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls report",
        description="Write one self-contained HTML file with the result, curves, confusion matrix, per-class "
        "metrics, samples, configuration, environment and the command that reproduces it; of a sweep the table of its "
        "settings, its pictures and the best command; of two runs what differs. Its one script sorts tables; it "
        "loads nothing.",
    )
    command.add_argument("run", type=path, metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    command.add_argument("other", type=path, nargs="?", metavar="RUN", help="another run, to be compared with")
    command.add_argument("--full", action="store_true", help="with the name of the machine and whole paths")
    command.add_argument("--output", type=path, metavar="FILE", help="default: report.html in that folder")
    return command


def run(arguments: list[str]) -> int:
    """Write the page. Returns the exit status."""
    options = parser().parse_args(arguments)
    swept = (options.run / "sweep.json").is_file()
    folder = RunFolder(options.run) if swept else find_run(options.run)
    other = find_run(options.other) if options.other and not swept else None
    if options.other and swept:
        raise RequestError(f"{options.run}: a sweep, which has a page of its own. Name two runs, or the sweep alone.")
    target = options.output or folder.path / (f"report-{slug(other.path.name)}.html" if other else "report.html")
    if options.output is None and target.is_symlink():
        raise FolderError(f"{target}: refused, a link. Name another file with --output.")
    if other:
        html = two_page(folder, other, options.full)
    else:
        html = sweep_page(options.run, options.full) if swept else page(folder, options.full)
    publish(target, content := html.encode("utf-8", "backslashreplace"))
    say(f"{relative(target)}, {len(content) / 1e6:.1f} MB, self-contained")
    return 0


def sweep_page(path: Path, full: bool) -> str:
    """The page of a sweep."""
    from mcls.sweep.plan import read_sweep
    from mcls.sweep.summary import sweep_report

    return sweep_report(read_sweep(path), full)


def two_page(first: RunFolder, second: RunFolder, full: bool) -> str:
    """The page of two runs."""
    from mcls.inference.two_runs import two_runs_page

    return two_runs_page([first, second], full)
