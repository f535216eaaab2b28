"""A sweep: one folder, sweep.json with every job and its frozen configuration, a run folder for each job, a table."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mcls.config.jobs import Base, Dimension, Job, Search
from mcls.config.schema import leaves, yaml_text
from mcls.errors import FolderError, RequestError
from mcls.runs.folder import RunFolder, job_name, read_json, relative, shell_path
from mcls.runs.renamed import SCHEMA
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
        search: what their results decide; where it samples, `jobs` are those that have been chosen.
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
        own = [word for word in shlex.split(self.command) if word.startswith(("trust=", "launcher"))]
        own += self.config_dirs if self.samples else []  # its next jobs are composed of the same files
        return " ".join(["mcls resume", shell_path(relative(self.path)), *map(shlex.quote, own)])

    @property
    def config_dirs(self) -> list[str]:
        """What was typed of folders of configuration files."""
        words = shlex.split(self.command)
        own = [word for word in words if word.startswith("--config-dir=")]
        for flag in ("--config-dir", "-cd"):
            own += ["--config-dir", words[words.index(flag) + 1]] if flag in words[:-1] else []
        return own

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

    def title(self, number: int) -> str:
        """What a job changes."""
        return " ".join(self.changed(self.jobs[number].overrides))

    def refuse_other(self, stored: "Sweep") -> None:
        """Raise RequestError unless `stored`, the plan in the folder, trains the same; it may be an older version's."""
        from mcls.config.saved import RESUMABLE_KEYS  # with Hydra, which mcls runs does without

        fixed = ({key for key in plan.fixed if not key.startswith("hydra")} for plan in (self, stored))
        if self.sampled != stored.sampled or next(fixed) != next(fixed):
            raise RequestError(f"{self.path}: already holds another sweep. Name a new sweep.name.")
        for mine, planned in zip(self.jobs, stored.jobs, strict=not self.samples):
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
    def samples(self) -> bool:
        """Whether a search makes the jobs, which are not all known at the beginning."""
        return self.search is not None and bool(self.search.dimensions)

    @property
    def sampled(self) -> str:
        """What makes a sweep the same as another, besides its fixed keys: its jobs, or what it samples and how."""
        listed = [] if self.samples else [job.overrides for job in self.jobs]
        if self.search is None:
            return to_json(listed)
        return to_json([listed, {**asdict(self.search), "settings": {**self.search.settings, "trials": None}}])

    def changed(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a job that are not the same for all."""
        return [line for line in overrides if line.split("=")[0].lstrip("+~") not in self.fixed]


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
        check_search_settings(search, path / "sweep.json")
    return Sweep(path, about["command"], about["fixed"], jobs or [Job(each) for each in lines], bases, names, search)


def check_search_settings(search: Search, path: Path) -> None:
    """Raise FolderError for settings, read from `path`, that no command line can have."""
    settings = search.settings
    if not search.dimensions and not (2 <= settings.get("rungs", 0) <= 10 and 0 < settings["keep"] < 1):
        raise FolderError(f"{path}: damaged, search.rungs or search.keep is out of range.")
    if search.dimensions:
        settings.setdefault("pruner", "none")  # which older versions do not have
