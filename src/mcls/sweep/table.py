"""The table of a sweep: one row per setting, its seeds and folds averaged, and what val can't tell from the best."""

import contextlib
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mcls.errors import FolderError
from mcls.runs.folder import PRUNED, REPEATS, RunFolder, epochs_done, read_json, status_of
from mcls.significance import holm, mcnemar, paired_t, student, wilson
from mcls.sweep.plan import Sweep
from mcls.system import text
from mcls.system.files import publish

LEVEL = 0.05  # adjusted p from which on a setting counts as tied with the best
LEGEND = (
    "The best setting was selected on val, so its val accuracy is too high on average. tied: val can't tell it from "
    f"the best (Holm-adjusted p >= {LEVEL}; paired over seeds and folds, or McNemar's test for one)."
)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Repeat:
    """One job as the table sees it.

    Args:
        number: of the job.
        key: what tells it from the other jobs of its setting, such as the seed.
        folder, status, result: its run folder, one of runs.STATUSES or `pruned`, and what result.json says.
        reason: why it failed, stopped or can't be read.
    """

    number: int
    key: str
    folder: RunFolder
    status: str
    result: dict[str, Any]
    reason: str

    def accuracy(self, split: str) -> float | None:
        """Accuracy on `split`, None where the job is not finished or the split was not measured."""
        return (self.result.get(split) or {}).get("accuracy") if self.status in ("finished", "pruned") else None


@dataclass(frozen=True)
class Setting:
    """The jobs that differ in REPEATS alone.

    Args:
        values: the swept keys and their values, as typed.
        repeats: its jobs.
        overlap: samples of val per training sample where the jobs are folds; 0 where all have the same of both.
    """

    values: dict[str, str]
    repeats: Sequence[Repeat]
    overlap: float = 0.0

    @property
    def counted(self) -> Sequence[Repeat]:
        """The jobs whose accuracies are averaged: the finished ones, of which those that were pruned are no repeats."""
        return [repeat for repeat in self.repeats if repeat.status == "finished"] or self.repeats

    def measured(self, split: str) -> list[float]:
        """The accuracies of its jobs on `split`; one for each seed, which a search may have drawn twice."""
        jobs = {repeat.key: accuracy for repeat in self.counted if (accuracy := repeat.accuracy(split)) is not None}
        return list(jobs.values())

    def interval(self, split: str) -> Interval | None:
        """95 % interval of the mean accuracy: Student's t over the jobs, Wilson's where one was measured."""
        accuracies = self.measured(split)
        if len(accuracies) > 1:
            return student(accuracies, self.overlap)
        for repeat in self.counted:
            if (accuracy := repeat.accuracy(split)) is not None and (count := repeat.result[split].get("n")):
                return wilson(round(accuracy * count), count)
        return None

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """What settings are sorted by: all jobs finished, then the mean on val, then the number of the first job."""
        accuracies = self.measured("val")
        whole = all(repeat.status == "finished" for repeat in self.repeats)
        return not accuracies, not whole, -statistics.fmean(accuracies) if accuracies else 0.0, self.repeats[0].number


def read_settings(plan: Sweep) -> list[Setting]:
    """The settings of a sweep as far as it has come, the best on val first."""
    groups: dict[tuple[tuple[str, str], ...], list[Repeat]] = {}
    for number, job in enumerate(plan.jobs):
        pairs = [line.lstrip("+").partition("=") for line in plan.changed(job.overrides)]
        setting = tuple((key, value) for key, _, value in pairs if key not in REPEATS)
        key = " ".join(f"{key}={value}" for key, _, value in pairs if key in REPEATS)
        groups.setdefault(setting, []).append(read_repeat(number, key, plan.folder(number)))
    settings = [Setting(dict(values), jobs, overlap_of(plan, jobs[0])) for values, jobs in groups.items()]
    return sorted(settings, key=lambda setting: setting.rank)


def overlap_of(plan: Sweep, repeat: Repeat) -> float:
    """Samples of val per training sample of a job that is one of several folds, else 0."""
    folded = any(word.startswith("dataset.fold=") for word in repeat.key.split())
    dataset = plan.jobs[repeat.number].config(plan.bases)["dataset"] if folded and plan.bases else None
    folds = dataset.get("folds") if isinstance(dataset, dict) else None
    return 1 / (folds - 1) if isinstance(folds, int) and folds > 1 else 0.0


def read_repeat(number: int, key: str, folder: RunFolder) -> Repeat:
    """One job. Never raises for what is in its folder."""
    try:
        result = folder.read_result()
        status = status_of(folder, result)
        if status == "finished":
            status = "pruned" if (folder.finished() or {}).get("ended_by") == PRUNED else status
        else:
            result = {**(result or {}), "epochs": epochs_done(folder.metrics)}
        return Repeat(number, key, folder, status, result or {}, str((result or {}).get("reason") or ""))
    except (FolderError, OSError) as error:
        return Repeat(number, key, folder, "damaged", {}, str(error))


def against_best(settings: Sequence[Setting]) -> list[str]:
    """For each setting, whether its val accuracy can be told from that of the first, the best one.

    p of a paired t-test over the seeds and folds that both have, of McNemar's test on the same val samples where it is
    one; Holm's (1979) correction over all settings.
    """
    if not settings or not settings[0].measured("val"):
        return [""] * len(settings)
    tests = {index: paired(settings[0], other) for index, other in enumerate(settings) if index}
    adjusted = holm({index: p for index, p in tests.items() if p is not None})
    words = ["best"]
    for index, other in enumerate(settings[1:], start=1):
        p = adjusted.get(index)
        unknown = "not compared" if other.measured("val") else ""
        words.append(unknown if p is None else f"{'tied' if p >= LEVEL else 'worse'} (p = {p:.2g})")
    return words


def paired(best: Setting, other: Setting) -> float | None:
    """Two-sided p of the paired comparison of two settings on val; None where they have nothing to pair."""
    first, second = (
        {job.key: job for job in each.repeats if job.status == "finished" and job.accuracy("val") is not None}
        for each in (best, other)
    )
    pairs = [(first[key], second[key]) for key in first if key in second]
    if len(pairs) > 1:
        return paired_t(
            [(one.accuracy("val") or 0.0) - (two.accuracy("val") or 0.0) for one, two in pairs], best.overlap
        )
    for one, two in pairs:
        a, b = (correct_bits(job.result) for job in (one, two))
        seen = [(job.result.get("fingerprints") or {}).get("val") for job in (one, two)]
        if a is not None and b is not None and seen[0] == seen[1]:
            return mcnemar((a & ~b).bit_count(), (b & ~a).bit_count())
    return None


def correct_bits(result: dict[str, Any]) -> int | None:
    """Which val samples a run had right, a bit each; None of a run that did not record it."""
    try:
        return int(result["val_correct"], 16)
    except (KeyError, ValueError):
        return None


def write_table(plan: Sweep) -> list[Setting]:
    """Leave the table of a sweep, as far as it has come, in sweep.md and sweep.csv. Returns its settings."""
    settings = read_settings(plan)
    header, rows = table_of(settings)
    publish(plan.path / "sweep.csv", text.comma_separated(header, rows).encode())
    publish(plan.path / "sweep.md", f"{text.markdown(*filled(header, rows))}\n{notes(plan, settings)}".encode())
    return settings


def table_of(settings: Sequence[Setting]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table, every column."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    header = ["jobs", *keys, repeats_header(settings), "val accuracy", "val sd", "val interval", "against the best"]
    header += ["test accuracy", "test sd", "test interval", "epochs", "seconds", "status", "reason"]
    rows = []
    for setting, word in zip(settings, against_best(settings), strict=True):
        values, repeats = setting.values, setting.repeats
        count = max(len(setting.measured("val")), len(setting.measured("test")))
        line: list[Any] = [" ".join(str(repeat.number) for repeat in repeats), *(values.get(key) for key in keys)]
        rows.append([*line, count or None, *cells_of(setting, "val"), word, *cells_of(setting, "test")])
        rows[-1] += [mean_cell(repeats, "epochs", 1), mean_cell(repeats, "total_seconds", 2), *ends(repeats)]
    return header, rows


def repeats_header(settings: Sequence[Setting]) -> str:
    """What to call the number of jobs that a row averages, by the keys in which they differ."""
    keys = {word.partition("=")[0] for setting in settings for repeat in setting.repeats for word in repeat.key.split()}
    if "dataset.fold" not in keys:
        return "n"
    return "n (folds x seeds)" if "seed" in keys else "n (folds)"


def cells_of(setting: Setting, split: str) -> list[str]:
    """Mean, standard deviation and interval of the accuracy on a split."""
    accuracies, bounds = setting.measured(split), setting.interval(split)
    mean, deviation = (
        accuracies and statistics.fmean(accuracies),
        statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    )
    interval = f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
    return [f"{mean:.4f}" if accuracies else "", text.decimals(deviation), interval]


def mean_cell(repeats: Sequence[Repeat], key: str, digits: int) -> str:
    """The mean of what the results say of `key`."""
    values = [value for repeat in repeats if (value := repeat.result.get(key)) is not None]
    return f"{round(statistics.fmean(values), digits):g}" if values else ""


def ends(repeats: Sequence[Repeat]) -> list[str]:
    """How the jobs of a setting ended, and why those that did not finish."""
    kinds = {status: len(list(jobs)) for status, jobs in groupby(sorted(repeat.status for repeat in repeats))}
    said = ", ".join(f"{count} {status}" if len(kinds) > 1 else status for status, count in kinds.items())
    jobs = [repeat for repeat in repeats if repeat.reason]
    reason = "" if not jobs else jobs[0].reason if len(repeats) == 1 else f"job {jobs[0].number}: {jobs[0].reason}"
    return [said, f"{reason} (and {len(jobs) - 1} more)" if len(jobs) > 1 else reason]


def filled(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[list[Any]]]:
    """The columns that say something, for people."""
    kept = [column for column in range(len(header)) if any(row[column] not in (None, "") for row in rows)]
    names = [
        f"{header[column]} (selected on)" if header[column] == "val accuracy" else header[column] for column in kept
    ]
    return names, [[row[column] for column in kept] for row in rows]


def notes(plan: Sweep, settings: Sequence[Setting]) -> str:
    """What the table's words mean, ensembles that were measured, and the command of the best setting."""
    if not settings or not settings[0].measured("val"):
        return ""
    said = f"\n{LEGEND}\n" if len(settings) > 1 else ""
    for split, jobs, mean, accuracy, interval in ensembles(plan.path):
        bounds = f" ({interval})" if interval else ""
        said += f"\nThe ensemble of jobs {jobs}: {split} accuracy {accuracy}{bounds}; the mean of its jobs is {mean}.\n"
    return f"{said}\nThe best setting again:\n\n    {command_of(plan, settings[0])}\n"


def ensembles(path: Path) -> list[list[str]]:
    """What `mcls evaluate SWEEP --ensemble` measured: split, jobs, the mean of their accuracies, its own, interval."""
    rows = []
    with contextlib.suppress(FolderError, LookupError):  # nothing of what is damaged
        for split, report in read_json(path / "evaluation.json").items():
            jobs = " ".join(member["run"].partition("_")[0] for member in report["members"])
            mean = statistics.fmean(member["accuracy"] for member in report["members"])
            interval = "{:.4f} to {:.4f}".format(*report["interval"]) if report.get("interval") else ""
            cells = [split, jobs, f"{mean:.4f}", f"{report['accuracy']:.4f}", interval]
            rows.append([text.clean(cell) for cell in cells])
    return rows


def command_of(plan: Sweep, setting: Setting) -> str:
    """What to type to train a setting anew, with all its seeds."""
    lines = [
        line
        for line in plan.jobs[setting.repeats[0].number].overrides
        if not line.startswith(("sweep.", "hydra.", "launcher"))
    ]
    jobs = [plan.jobs[repeat.number].overrides for repeat in setting.repeats]
    for index, line in enumerate(lines):
        key = line.partition("=")[0]
        values = [each.partition("=")[2] for job in jobs for each in job if each.partition("=")[0] == key]
        if key in REPEATS and len(jobs) > 1:
            lines[index] = f"{key}={','.join(dict.fromkeys(values))}"
    return shlex.join(["mcls", "train", *(["-m"] if len(jobs) > 1 else []), *plan.config_dirs, *lines])
