"""A sweep: one folder, sweep.json with every job and its frozen configuration, a run folder for each job, a table."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mcls.config.jobs import Base, Dimension, Job, Search
from mcls.config.schema import leaves, yaml_text
from mcls.errors import FolderError, RequestError, RunError, Stopped
from mcls.runs.folder import RunFolder, job_name, read_json, relative, shell_path
from mcls.runs.renamed import SCHEMA
from mcls.system import text
from mcls.system.files import publish, to_json

log = logging.getLogger("mcls")


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep.

    Args:
        path: the folder.
        command: what was typed.
        fixed: keys that have one value for all jobs.
        jobs: in the order of their numbers.
        bases: the configurations that they are based on; none in the plans of older versions.
        names: of the jobs' folders, where hydra.sweep.subdir gives them.
        search: how the jobs are chosen, where they are not all listed; `jobs` are then those that have been chosen.
    """

    path: Path
    command: str
    fixed: Sequence[str]
    jobs: Sequence[Job]
    bases: Sequence[Base] = ()
    names: Sequence[str] = ()
    search: Search | None = None

    @property
    def resume_command(self) -> str:
        """What to type to go on with what is missing."""
        words = shlex.split(self.command)
        own = [word for word in words if word.startswith(("trust=", "launcher"))]
        if self.search:  # whose next jobs are composed of the same files
            own += [word for word in words if word.startswith("--config-dir=")]
            for flag in ("--config-dir", "-cd"):
                own += ["--config-dir", words[words.index(flag) + 1]] if flag in words[:-1] else []
        return " ".join(["mcls resume", shell_path(relative(self.path)), *map(shlex.quote, own)])

    def write(self) -> None:
        """Publish sweep.json."""
        about: dict[str, Any] = {"command": self.command, "fixed": list(self.fixed)}
        about["jobs"] = [list(job.overrides) for job in self.jobs]
        about["bases"] = [{"choices": base.choices, "config": {**base.config, "schema": SCHEMA}} for base in self.bases]
        about["frozen"] = [{"base": job.base, "values": job.values} for job in self.jobs]
        about |= {"names": list(self.names)} if self.names else {}
        about |= {"search": asdict(self.search)} if self.search else {}
        publish(self.path / "sweep.json", (to_json(about) + "\n").encode())

    def folder(self, number: int) -> RunFolder:
        """The run folder of a job: its number and what it changes, or the name that was asked for."""
        if self.names:
            return RunFolder(self.path / self.names[number])
        return RunFolder(self.path / job_name(number, ",".join(sorted(self.changed(self.jobs[number].overrides)))))

    @property
    def complete(self) -> bool:
        """Whether every job is known and has come to an end, good or bad."""
        results = [self.folder(number).read_result() or {} for number in range(len(self.jobs))]
        return bool(results) and all(result.get("status") in ("finished", "failed") for result in results)

    def stopped(self, error: Stopped) -> Stopped:
        """`error`, which stopped a job, with the command that goes on with all of them."""
        return Stopped(f"{error}, or the whole sweep with: {self.resume_command}", error.signal_number)

    def refuse_other(self, stored: "Sweep") -> None:
        """Raise RequestError unless `stored`, the plan in the folder, trains the same; it may be an older version's."""
        from mcls.config.saved import RESUMABLE_KEYS  # with Hydra, which mcls runs does without

        fixed = ({key for key in plan.fixed if not key.startswith("hydra")} for plan in (self, stored))
        if self.sampled != stored.sampled or next(fixed) != next(fixed):
            raise RequestError(f"{self.path}: already holds another sweep. Name a new sweep.name.")
        for mine, planned in zip(self.jobs, stored.jobs, strict=not self.search):
            if planned.base is None:
                return
            before = dict(leaves(planned.config(stored.bases)))
            for key, value in leaves(mine.config(self.bases)):
                if key in before and before[key] != value and key not in RESUMABLE_KEYS:
                    was, now = yaml_text(before[key]), yaml_text(value)
                    raise RequestError(
                        f"{key}: {self.path} was planned with {was}, not {now}. Name a new sweep.name, or go on as "
                        f"planned with: {self.resume_command}"
                    )

    @property
    def sampled(self) -> str:
        """What makes a sweep the same as another, besides its fixed keys: its jobs, or what it samples and how."""
        if self.search is None:
            return to_json([job.overrides for job in self.jobs])
        return to_json({**asdict(self.search), "settings": {**self.search.settings, "trials": None}})

    def changed(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a job that are not the same for all."""
        return [line for line in overrides if line.split("=")[0].lstrip("+~") not in self.fixed]

    def write_table(self) -> tuple[list[str], list[list[Any]]]:
        """Publish the table of what has ended, best on val first: sweep.md and sweep.csv. Returns titles and rows."""
        folders = [RunFolder(path.parent) for path in self.path.rglob("result.json")]
        rows = sorted(map(self.row, folders), key=rank_key)
        header = [
            "job",
            "changed",
            "status",
            "val accuracy",
            "test accuracy",
            "95 % interval",
            "epochs",
            "seconds",
            "reason",
        ]
        shown = [[f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows]
        if not any(row[-1] for row in rows):
            header, shown = header[:-1], [row[:-1] for row in shown]
        titles = [f"{name} (selected on)" if name == "val accuracy" else name for name in header]
        publish(self.path / "sweep.md", (text.markdown(titles, shown) + "\n").encode())
        publish(self.path / "sweep.csv", text.comma_separated(header, shown).encode())
        return titles, shown

    def summarise(self) -> None:
        """Write and print the table. Raises RunError when a job failed."""
        titles, rows = self.write_table()
        place = relative(self.path)
        print(f"\n{text.plain_table(titles, rows)}\n")
        print(f"the table is in {place}/sweep.md and sweep.csv; curves: mcls board {shell_path(place)}")
        for status, said in (("failed", "failed"), ("stopped", "were stopped")):
            if jobs := [row[0] for row in rows if row[2] == status]:
                names = ", ".join(map(str, jobs))
                raise RunError(
                    f"{len(jobs)} of the sweep's jobs {said} ({names}), see the table. Again: {self.resume_command}"
                )

    def ranked(self) -> list[tuple[RunFolder, dict[str, Any]]]:
        """The finished jobs with their results, the best on val first."""
        folders = [RunFolder(path.parent) for path in self.path.rglob("result.json")]
        finished = [(folder, result) for folder in folders if (result := folder.finished()) is not None]
        return sorted(finished, key=lambda job: rank_key(self.row(job[0])))

    def row(self, folder: RunFolder) -> list[Any]:
        """Number, changes, status, val and test accuracy, its interval, epochs, seconds and reason of one job."""
        result, about = read_json(folder.result), read_json(folder.about)
        measured = [(result.get(split) or {}).get("accuracy") for split in ("val", "test")]
        interval = (result.get("test") or {}).get("interval")
        seconds = result.get("total_seconds")
        number = folder.path.name.split("_")[0]
        return [
            int(number) if number.isdecimal() else folder.path.name,
            " ".join(self.changed(about.get("overrides", []))),
            result["status"],
            *measured,
            f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else None,
            result.get("epochs"),
            None if seconds is None else f"{seconds:.1f}",
            result.get("reason"),
        ]


def rank_key(row: Sequence[Any]) -> tuple[bool, float, str]:
    """What the rows of the table are sorted by: the best on val first, the first job of equal ones."""
    return row[3] is None, -(row[3] or 0), f"{row[0]:>9}"


def read_sweep(path: Path) -> Sweep:
    """The sweep in folder `path`. Raises FolderError when its sweep.json is damaged."""
    about = read_json(path / "sweep.json")
    names, lines, frozen = about.get("names", []), about["jobs"], about.get("frozen", [])
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts and name for name in names)
    if not inside or len(names) not in (0, len(lines)):
        raise FolderError(f"{path / 'sweep.json'}: refused, its names are not those of folders in it.")
    bases = [Base(base["config"], base["choices"]) for base in about.get("bases", [])]
    if len(frozen) not in (0, len(lines)) or any(job["base"] >= len(bases) for job in frozen):
        raise FolderError(f"{path / 'sweep.json'}: damaged, its jobs and their configurations do not match.")
    jobs = [Job(each, job["base"], job["values"]) for each, job in zip(lines, frozen, strict=True)] if frozen else []
    search, given = None, about.get("search")
    if given is not None:
        search = Search(given["settings"], given["lines"], [Dimension(**each) for each in given["dimensions"]])
    return Sweep(path, about["command"], about["fixed"], jobs or [Job(each) for each in lines], bases, names, search)
