"""`mcls runs`: the runs in a folder as a table, best first, seeds averaged."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcls.commands.options import Parser, expanded, positive
from mcls.errors import FolderError, RequestError
from mcls.runs.folder import REPEATS, find_run, find_runs, relative, run_files
from mcls.runs.removal import BEST, delete, doomed, is_sweep, not_among_best, sweep_up_deleted
from mcls.runs.table import (
    FILTER,
    TARGET,
    RunRow,
    average,
    differing_columns,
    full_key,
    overridden,
    parse_filter,
    read_row,
    sort_key,
)
from mcls.sweep.plan import read_sweep
from mcls.sweep.standing import STANDING, with_standing
from mcls.system import text as system_text
from mcls.system.console import BAD, GOOD, answer, line_width, say, say_aside, say_table
from mcls.system.files import to_json
from mcls.system.layout import SHORTEST, WHOLE, columns_that_fit, least_widths, plain_list, total

MEASURED = (BEST, "test/accuracy")
ACTIONS = {
    "rm": "mcls runs rm RUN ... [--yes]",
    "prune": "mcls runs prune [DIR] [FILTER ...] --keep-best N [--yes]",
    "note": "mcls runs note RUN 'TEXT'",
    "tag": "mcls runs tag RUN a,b",
}
JOB = re.compile(r"(\b\d+)_[^/]*?=[^/]*?( \+ \d+ more)?$")  # the end of a job's name
WIDTH = 60  # characters of a cell on the terminal
OTHERS = (*STANDING, "epochs", "seconds", "reason")  # columns that come behind the hyper-parameters
TROUBLED = ("failed", "killed", "damaged")


def run(arguments: list[str]) -> int:
    """Print the table, or do what the first word says. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    action, *words = options.words if options.words and options.words[0] in ACTIONS else ["", *options.words]
    if (action == "prune") != (options.keep_best is not None):
        raise RequestError(f"--keep-best: mcls runs prune needs it, and nothing else takes it. Use {ACTIONS['prune']}")
    if options.yes and action not in ("rm", "prune"):
        raise RequestError("--yes: only mcls runs rm and mcls runs prune take it. Omit it.")
    if action == "rm" and not words:
        raise RequestError(f"RUN: missing. Use {ACTIONS['rm']}")
    if action in ("note", "tag"):
        return remark(action, words)
    if action == "prune":
        return delete_runs(prunable(words, options.keep_best), options.yes)
    return delete_runs([Path(word) for word in words], options.yes) if action else print_runs(words, options)


def print_runs(words: Sequence[str], options: argparse.Namespace) -> int:
    """Print the table. Returns the exit status."""
    root, words = folder_and_filters(words)
    everything = all_rows(root)
    rows = with_standing(chosen(everything, words, options.all), not options.all)
    rows.sort(key=sort_key("run"))
    rows.sort(key=sort_key(full_key(options.sort, everything)))
    keys = [key for key in differing_columns(rows) if key not in REPEATS or options.all]
    left = 0
    if options.json:
        print(to_json([as_object(row) for row in rows]))
    elif options.csv:
        print(system_text.comma_separated(*exact(rows, keys)), end="")
    elif rows:
        left = print_table(relative(root), *readable_table(rows, keys), chosen_keys(rows, keys), options.md)
    count = sum(len(row.folders) for row in rows)
    more = f"; {system_text.plural(left, 'more column')}: --csv" if left else ""
    if not (options.json or options.csv) and any(row.get(MEASURED[0]) is not None for row in rows):
        more += f"; {MEASURED[0]}: selected on val, so too high on average"
    if not options.all and (repeats := len(everything) - sum(len(row.folders) for row in average(everything))):
        more += f"; {system_text.plural(repeats, 'older repeat')} of the same configuration and seed: --all"
    say_aside(f"{count} of {system_text.plural(len(everything), 'run')} in {relative(root)}{more}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls runs",
        description="List all runs and sweep jobs in a folder, best validation accuracy first. Columns are the "
        "hyper-parameters that differ, on a terminal those that fit. Finished runs that differ only in seed or fold "
        "are one row, as are pruned ones: mean ± sample standard deviation over n runs, with the name of the best run.",
        epilog="Filters compare with = != > < >= <=, for example: dataset=cifar10 'val/accuracy>0.9' status=finished. "
        "Filters on metrics and status apply to the means. To delete runs, of a sweep all or none, after a question: "
        f"{ACTIONS['rm']}, {ACTIONS['prune']}. To replace the note or the tags of a run: {ACTIONS['note']}, "
        f"{ACTIONS['tag']}.",
    )
    command.add_argument(
        "words", nargs="*", type=expanded, metavar="DIR or FILTER", help="the folder (default outputs)"
    )
    command.add_argument("--sort", default="val/accuracy", metavar="KEY", help="a column's key; default val/accuracy")
    command.add_argument("--all", action="store_true", help="one row per run, without averaging over seeds")
    command.add_argument(
        "--keep-best",
        type=positive,
        metavar="N",
        help="of prune: keep the N best of the runs on the same data set and val, and all unfinished but the pruned",
    )
    command.add_argument("--yes", action="store_true", help="of rm and prune: delete without asking")
    shape = command.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="print exact values as CSV")
    shape.add_argument("--json", action="store_true", help="print all values as a JSON list")
    shape.add_argument("--md", action="store_true", help="a Markdown table")
    return command


def folder_and_filters(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder among `words`, wherever it stands, and the filters. Raises RequestError without one, and for two."""
    folders = [word for word in words if Path(word).is_dir()]
    if len(folders) > 1:
        raise RequestError(
            f"{folders[1]}: a second folder beside {folders[0]}. Name only one, the one that contains both."
        )
    named = folders or [word for word in words if not FILTER.fullmatch(word)][:1] or ["outputs"]
    if not folders and not Path(named[0]).is_dir():
        raise RequestError(f"{named[0]}: no such folder. Start with mcls train, or name the folder: mcls runs DIR.")
    return Path(named[0]), [word for word in words if word not in folders]


def all_rows(root: Path) -> list[RunRow]:
    """A row for each run under `root` and for each job that has none yet."""
    return [*(read_row(folder) for folder in find_runs(root)), *unstarted(root)]


def unstarted(root: Path) -> list[RunRow]:
    """A row for each job of a sweep that has no run yet."""
    rows = []
    for path in run_files(root, "sweep.json"):
        try:
            sweep = read_sweep(path.parent)
        except (FolderError, OSError) as error:
            rows.append(RunRow((path.parent,), "damaged", reason=str(error)))
            continue
        for index, job in enumerate(sweep.jobs):
            folder = sweep.folder(index)
            if not folder.about.exists():
                rows.append(RunRow((folder.path,), "never started", overridden(job.overrides)))
    return rows


def chosen(everything: Sequence[RunRow], words: Sequence[str], each: bool) -> list[RunRow]:
    """The rows that meet all filters; those on hyper-parameters apply to runs, the others to the means of seeds.

    A filter on a measure that picked runs before they are averaged would pick lucky seeds.
    """
    filters = [parse_filter(word, everything) for word in words]
    settings = {key for row in everything for key in row.settings}
    rows = [row for row in everything if all(keep(row) for keep in filters if keep.key in settings)]
    rows = rows if each else average(rows)
    return [row for row in rows if all(keep(row) for keep in filters if keep.key not in settings)]


def print_table(
    root: str, header: Sequence[str], cells: Sequence[Sequence[Any]], keys: Sequence[str], markdown: bool
) -> int:
    """Print a table, on a terminal the columns that fit beside the results and `keys`. Returns how many are left out.

    In narrow lines the runs lose `root`, the folder that they are all in, and the jobs of sweeps what follows their
    number: the keys stand beside it. Where even these don't fit, the table is a list. Of the other hyper-parameters,
    which stand behind the status, those come first in which the most rows differ from the most frequent value.
    """
    if markdown:
        print(system_text.markdown(header, cells))
        return 0
    always = (*header[: header.index("status") + 1], *keys)
    ranked = [index for index, name in enumerate(header) if name not in always]
    alike = {index: Counter(str(line[index]) for line in cells).most_common(1)[0][1] for index in ranked}
    ranked.sort(key=lambda index: (header[index] in OTHERS, 0 if header[index] in OTHERS else alike[index]))
    width = line_width(sys.stdout)
    kept = columns_that_fit(header, cells, width, ranked)
    shown = [[str(line[index]) for index in kept] for line in [header, *cells]]
    if width != WHOLE and total(least_widths(shown[0], shown[1:])) > width:
        for line in shown:
            line[0] = JOB.sub(r"\1\2", line[0].removeprefix(f"{root}/"))
        shown[0][0] = f"run in {root}"
        if total([SHORTEST, *least_widths(shown[0], shown[1:])[1:]]) > width:
            print(plain_list(shown[0], shown[1:], width))
            return len(header) - len(kept)
    status = kept.index(header.index("status"))
    colours = {number: BAD for number, line in enumerate(shown[1:]) if line[status] in TROUBLED}
    first = [] if 0 in colours or not shown[1][1] else [0]  # best first
    say_table(shown[0], shown[1:], names=[0], colours=colours | dict.fromkeys(first, GOOD))
    return len(header) - len(kept)


def chosen_keys(rows: Sequence[RunRow], keys: Sequence[str]) -> list[str]:
    """Those of `keys` that a command line gave a value, as the columns of `readable_table` are called."""
    return [short(key) for key in keys if any(key in row.typed for row in rows)]


def readable_table(rows: Sequence[RunRow], keys: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Header and cells for people."""
    seeds = any(len(row.folders) > 1 for row in rows)
    reasons = any(row.reason for row in rows)
    standing = [key for key in STANDING if any(row.get(key) for row in rows)]
    header = ["run", *MEASURED, *(["n"] if seeds else []), "status", *keys, *standing, "epochs", "seconds"]
    columns, cells = [column_of(rows, key) for key in keys], []
    for index, row in enumerate(rows):
        count = len(row.folders)
        line: list[Any] = [f"{row.get('run')}{f' + {count - 1} more' if count > 1 else ''}"]
        line += [measured(row, key, 4) for key in MEASURED]
        line += [count] if seeds else []
        line += [row.status, *(short(column[index]) for column in columns)]
        line += [short(row.get(key)) for key in (*standing, "epochs")] + [
            short(row.get("seconds") and round(row.get("seconds"), 1))
        ]
        cells.append(line + ([short(row.reason)] if reasons else []))
    return [short(name) for name in header + (["reason"] if reasons else [])], cells


def column_of(rows: Sequence[RunRow], key: str) -> list[Any]:
    """A hyper-parameter of each row; of a `_target_` its last part, where that tells one from another."""
    values = [row.settings.get(key) for row in rows]
    if not key.endswith(TARGET):
        return values
    ends = [str(value or "").rpartition(".")[2] for value in values]
    return ends if len(set(ends)) == len(set(map(str, values))) else values


def measured(row: RunRow, key: str, digits: int) -> str:
    """A measure, with its standard deviation where there are several seeds."""
    value = row.get(key)
    if value is None:
        return ""
    return f"{value:.{digits}f}" + (f" ± {row.deviation[key]:.{digits}f}" if key in row.deviation else "")


def short(value: Any) -> str:
    """A value as text in one line of at most WIDTH characters."""
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else system_text.clean(str(value))
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def exact(rows: Sequence[RunRow], keys: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Header and cells for other programs."""
    header = ["run", "status", "n", *(part for key in MEASURED for part in (key, f"{key}_std"))]
    header += [*STANDING, "epochs", "seconds", "started", *map(system_text.clean, keys), "reason"]
    cells = []
    for row in rows:
        line = [row.get("run"), row.status, len(row.folders)]
        line += [part for key in MEASURED for part in (row.get(key), row.deviation.get(key))]
        line += [row.get(key) for key in (*STANDING, "epochs", "seconds", "started")]
        cells.append([*line, *(row.settings.get(key) for key in keys), row.reason])
    return header, cells


def as_object(row: RunRow) -> dict[str, Any]:
    """A row with everything that is known."""
    return {
        "run": row.get("run"),
        "folders": [relative(folder) for folder in row.folders],
        "status": row.status,
        "n": len(row.folders),
        "values": row.values,
        "std": row.deviation,
        "hyperparameters": row.settings,
        "reason": row.reason,
    }


def prunable(words: Sequence[str], keep: int) -> list[Path]:
    """The runs and sweeps, among those that are chosen as for the table, that are not among the `keep` best."""
    root, filters = folder_and_filters(words)
    everything = all_rows(root)
    rest = not_among_best(root, everything, chosen(everything, filters, True), keep)
    return [path for path in rest if not (is_sweep(path) and jobs_to_come(path))]


def jobs_to_come(path: Path) -> int:
    """How many jobs the search of a sweep has not yet asked for."""
    plan = read_sweep(path)
    return plan.search.settings["trials"] - len(plan.jobs) if plan.search and plan.samples else 0


def delete_runs(paths: Sequence[Path], yes: bool) -> int:
    """Say what goes, ask, and delete it. Returns the exit status."""
    folders = list({folder.path: folder for folder in map(doomed, paths)}.values())
    if not folders:
        say("nothing to delete")
        return 0
    rows = [[relative(one.path), one.runs, f"{one.size / 1e6:.1f}"] for one in folders]
    say_table(["folder", "runs", "MB"], rows, names=[0])
    count, size = sum(one.runs for one in folders), sum(one.size for one in folders) / 1e6
    what = f"{system_text.plural(count, 'run')}, {size:.1f} MB"
    if not yes:
        if not sys.stdin.isatty():
            raise RequestError(f"nothing was deleted of {what}: there is no terminal to ask on. Add --yes to delete.")
        if answer(f"Delete {what}? [y/N] ") not in ("y", "yes"):
            say("nothing was deleted")
            return 0
    sweep_up_deleted({one.path.parent for one in folders})
    for one in folders:
        delete(one)
    say(f"deleted: {what}")
    return 0


def remark(action: str, words: Sequence[str]) -> int:
    """Write a run's note or tags anew. Returns the exit status."""
    from mcls.runs.remarks import set_remark, tag_list

    if len(words) != 2:
        raise RequestError(
            f"mcls runs {action}: takes a run and a text, got {system_text.plural(len(words), 'word')}. "
            f"Use {ACTIONS[action]}"
        )
    path, text = Path(words[0]), words[1]
    if path.is_symlink():
        raise FolderError(f"{path}: refused, a link. Name the folder that it leads to.")
    key, text = ("tags", ",".join(tag_list(text))) if action == "tag" else ("note", text.strip())
    set_remark(find_run(path), key, text)
    say(f"{relative(path)}: {f'{key} {text}' if text else f'no {key}'}")
    return 0
