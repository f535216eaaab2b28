"""What a sweep leaves for people: its table on the terminal, its picture, and its page."""

import statistics
import sys
from collections.abc import Sequence
from typing import Any

from mcls.errors import FolderError, RunError
from mcls.report.figures import png
from mcls.report.html import embedded, rendered
from mcls.report.summary import epoch_records
from mcls.report.sweep_figures import SweptSetting, sweep_figure
from mcls.runs.folder import relative, shell_path
from mcls.runs.tracking import publish_image
from mcls.sweep.plan import Sweep
from mcls.sweep.table import LEGEND, Repeat, Setting, command_of, ensembles, filled, notes, table_of, write_table
from mcls.system.console import BAD, GOOD, line_width, say, say_table
from mcls.system.files import publish
from mcls.system.layout import columns_that_fit
from mcls.system.text import plural

PICTURE = "sweep.png"
# columns that a narrow terminal does without, the first ones last; sweep.md has them all
OPTIONAL = ("val sd", "test sd", "epochs", "seconds", "val interval", "test interval")


def summarise(plan: Sweep) -> None:
    """Write and print the table of a sweep, and draw its picture where its jobs draw figures.

    Raises RunError when a job failed or was stopped.
    """
    settings = write_table(plan)
    drawn = bool(plan.bases) and plan.bases[0].config["trainer"]["figures"] and draw_sweep(plan, settings)
    folder = relative(plan.path)
    header, rows = filled(*table_of(settings))
    say()
    optional = [header.index(name) for name in OPTIONAL if name in header]
    kept = columns_that_fit(header, rows, line_width(sys.stdout), optional)
    header, rows = [header[column] for column in kept], [[row[column] for column in kept] for row in rows]
    troubled = {number: BAD for number, row in enumerate(rows) if "failed" in row[header.index("status")]}
    say_table(header, rows, [len(header) - 1], {0: GOOD} | troubled)
    say(notes(plan, settings))
    picture = f", its picture in {PICTURE}" if drawn else ""
    say(f"the table is in {folder}/sweep.md and sweep.csv{picture}; curves: mcls board {shell_path(folder)}")
    jobs = sorted((repeat for setting in settings for repeat in setting.repeats), key=lambda repeat: repeat.number)
    for status, said in (("failed", "failed"), ("stopped", "were stopped")):
        if numbers := [str(repeat.number) for repeat in jobs if repeat.status == status]:
            raise RunError(
                f"{len(numbers)} of the sweep's jobs {said} ({', '.join(numbers)}), see the table. "
                f"Again: {plan.resume_command}"
            )


def draw_sweep(plan: Sweep, settings: Sequence[Setting]) -> bool:
    """Leave the picture of a sweep in its folder and in TensorBoard. Returns whether there was anything to draw."""
    if not any(setting.measured("val") for setting in settings):
        return False
    drawn = [
        SweptSetting(setting.values, setting.measured("val"), [*filter(None, map(curve_of, setting.repeats))])
        for setting in settings
    ]
    jobs = sum(len(setting.repeats) for setting in settings)
    counts = f"{plural(len(settings), 'setting')}, {plural(jobs, 'job')}"
    title = f"{plan.path.name}: {counts}; orange: the best setting; bars: ± sd over jobs"
    picture = png(sweep_figure(drawn, title))
    publish(plan.path / PICTURE, picture)
    publish_image(plan.path, "sweep", picture)
    return True


def curve_of(repeat: Repeat) -> tuple[list[int], list[float]] | None:
    """The val accuracy of a job from epoch to epoch; None of one without, or whose record is damaged."""
    try:
        records = [record for record in epoch_records(repeat.folder) if "val" in record]
        accuracies = {record["epoch"]: record["val"]["accuracy"] for record in records}
    except (FolderError, OSError, KeyError):
        return None
    return ([*accuracies], [*accuracies.values()]) if accuracies else None


def sweep_report(plan: Sweep, full: bool = False) -> str:
    """The page of a sweep, with whole paths if it is to be `full`."""
    settings = write_table(plan)
    drawn = draw_sweep(plan, settings)
    columns, cells = table_of(settings)
    header, rows = filled(columns[:-1], [row[:-1] for row in cells])  # the reasons are those of `others`
    jobs = sorted((repeat for setting in settings for repeat in setting.repeats), key=lambda repeat: repeat.number)
    values = {
        "title": plan.path.name,
        "counts": f"{plural(len(settings), 'setting')}, {plural(len(jobs), 'job')}",
        "best": best_card(plan, settings[0]) if drawn else None,
        "header": header,
        "rows": [["" if cell is None else cell for cell in row] for row in rows],
        "legend": LEGEND,
        "ensembles": ensembles(plan.path),
        "picture": embedded((plan.path / PICTURE).read_bytes()) if drawn else None,
        "others": [
            [job.number, plan.title(job.number), job.status, job.result.get("epochs") or 0, job.reason]
            for job in jobs
            if job.status != "finished"
        ],
        "command": plan.command,
    }
    return rendered("sweep.html", values, full)


def best_card(plan: Sweep, best: Setting) -> dict[str, Any]:
    """What the page says of the best setting: its test accuracy, that on val where the test set is closed."""
    split = "test" if best.measured("test") else "val"
    accuracies, bounds = best.measured(split), best.interval(split)
    interval = "95 % interval {:.2f} to {:.2f} %".format(*(100 * bound for bound in bounds)) if bounds else ""
    return {
        "split": split,
        "accuracy": f"{100 * statistics.fmean(accuracies):.2f} %",
        "n": plural(len(accuracies), "job"),
        "interval": interval,
        "cards": {**best.values, "val accuracy (selected on)": f"{100 * statistics.fmean(best.measured('val')):.2f} %"},
        "command": command_of(plan, best),
    }
