"""`launcher=stacked`: jobs that differ in few keys are trained as one, the others one after the other."""

import contextlib
import gc
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mcls.config.schema import leaves, yaml_text
from mcls.config.sweeps import check_selection
from mcls.data.loader import Loader
from mcls.errors import Stopped
from mcls.runs.folder import RunFolder
from mcls.runs.tracking import collect_warnings
from mcls.sweep.task import Outcome, Task, record_failure, run_task
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest, never
from mcls.system.text import plural
from mcls.training.restore import checkpoint_writer
from mcls.training.run import (
    begin,
    log_summary,
    make_trainer,
    open_recorder,
    train_and_record,
)
from mcls.training.setup import Components, build_components, with_expected_input
from mcls.training.stack import Member, fit_stacked, obstacle
from mcls.training.state import NullWriter

log = logging.getLogger("mcls")

# keys by which the runs of a stack may differ
FREE = ("seed", "optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "loss.label_smoothing")
# keys with the values that a stack can compute
ONLY: dict[str, tuple[Any, ...]] = {
    "trainer.devices": (1,),
    "trainer.accumulate": (1,),
    "trainer.oom": ("error",),
    "trainer.grad_clip_norm": (None,),
    "trainer.ema": (None,),
    "trainer.compile": (False,),
    "trainer.max_minutes": (None,),
    "trainer.overfit_batches": (None,),
    "trainer.evaluate_test_each_epoch": (False,),
    "evaluate.tta": (None,),
    "mix._target_": (None,),
    "precision": ("auto", "fp32", "fp32_medium", "bf16"),
}


class Stacked:
    """Trains jobs in this process, as many as go together at a time.

    Args:
        capacity: jobs of a stack, at most.
    """

    def __init__(self, capacity: int, stop: StopRequest) -> None:
        self.capacity = self.accepts = capacity
        self.stop = stop
        self.waiting: list[Task] = []
        self.single: list[Task] = []  # that are trained one by one

    def submit(self, task: Task) -> None:
        """Keep the job for `wait`, which trains all that are there."""
        (self.single if task.once_more else self.waiting).append(task)

    def running(self) -> int:
        """Jobs that were submitted and have not come out of `wait`."""
        return len(self.waiting) + len(self.single)

    def wait(self) -> list[Outcome]:
        """Train a stack of jobs, or the next one of those that can't be stacked. Raises Stopped."""
        if not self.single:
            shared = same_but_free(self.waiting[0])
            tasks = [task for task in self.waiting if same_but_free(task) == shared]
            self.waiting = [task for task in self.waiting if task not in tasks]
            reason = why_single(tasks)
            jobs, failed, reason = ([], [], reason) if reason else build_jobs(tasks, self.stop)
            if not reason:
                return [*failed, *(train_jobs(jobs, self.stop) if jobs else [])]
            self.single = [task for task in tasks if task.number not in dict(failed)]
            numbers = " ".join(str(task.number) for task in self.single)
            log.info(f"\njob{'s' * (len(self.single) > 1)} {numbers}: not stacked, {reason}")
            if failed:
                return failed
        task = self.single.pop(0)
        return [(task.number, run_task(task, self.stop))]

    def close(self) -> None:
        """Nothing runs."""


def same_but_free(task: Task) -> str:
    """What the jobs of a stack have in common."""
    if task.config is None or RunFolder(task.folder).begun:
        return "begun"
    return json.dumps([item for item in leaves(task.config) if item[0] not in FREE], default=str)


def why_single(tasks: Sequence[Task]) -> str:
    """Why jobs that have all but FREE in common are trained one by one, by their configuration; or nothing."""
    if (config := tasks[0].config) is None or RunFolder(tasks[0].folder).begun:
        return "what was begun goes on by itself"
    values = dict(leaves(config))
    for key, allowed in ONLY.items():
        if (value := values.get(key, allowed[0])) not in allowed:
            return f"{key}={value if isinstance(value, str) else yaml_text(value)}"
    return "no other job differs from it in the seed and the optimizer's numbers alone" if len(tasks) == 1 else ""


@dataclass
class StackedJob:
    """A job of a stack."""

    task: Task
    config: dict[str, Any]
    parts: Components
    warnings: list[str]
    member: Member


def build_jobs(tasks: Sequence[Task], stop: StopRequest) -> tuple[list[StackedJob], list[Outcome], str]:
    """Build the jobs of a stack, which read the data once.

    Returns them, by seed; those that fail to build; and why they can't be stacked, if so.
    """
    jobs: list[StackedJob] = []
    failed: list[Outcome] = []
    trains: dict[int, Loader] = {}
    for task in tasks:
        try:
            config = with_expected_input(task.config or {})
            with collect_warnings() as warnings:
                parts = build_components(config, dataset=jobs[0].parts.dataset if jobs else None)
            if task.origin(False).get("test_closed"):
                check_selection(config, parts.val is not None)
        except Exception as error:
            make_folder(task.folder)
            record_failure(RunFolder(task.folder), error, task.overrides)
            failed.append((task.number, str(error)))
            continue
        if reason := obstacle(parts):
            return [], failed, reason
        first = jobs[0].parts if jobs else parts
        train = trains.setdefault(config["seed"], parts.train)
        if isinstance(first.train.inputs, torch.Tensor):  # one copy on a GPU, which outlives the loader's
            train.inputs, train.targets = first.train.inputs[:], first.train.targets
        parts = replace(parts, train=train, val=first.val)
        folder = RunFolder(task.folder)
        trainer = make_trainer(parts, NullWriter(), checkpoint_writer(folder, parts), stop)
        trainer.prune = task.prune()
        jobs.append(StackedJob(task, config, parts, warnings, Member(trainer, train, folder)))
    return sorted(jobs, key=lambda job: int(job.config["seed"])), failed, ""


def train_jobs(jobs: Sequence[StackedJob], stop: StopRequest) -> list[Outcome]:
    """Train jobs as one, then bring each to its end as `mcls resume` would. Raises Stopped when all are saved."""
    started, runs = time.monotonic(), {}
    with stop.patient(), contextlib.ExitStack() as held:
        for job in jobs:
            member, trainer = job.member, job.member.trainer
            make_folder(member.folder.path)
            held.enter_context(member.folder.lock())
            with member.alone():
                run = begin(member.folder, job.parts, job.config, job.task.origin(False), job.warnings, stop)
                member.folder.write_json(member.folder.result, {"status": "running", "test_openings": 0})
                log_summary(job.parts, run.about, member.folder)
                trainer.recorder = recorder = open_recorder(run)
                held.callback(recorder.close)
                runs[job.task.number] = run
        log_stack(jobs)
        fit_stacked([job.member for job in jobs], jobs[0].parts.val)
        spent = time.monotonic() - started
        for job in jobs:
            if (member := job.member).error is None:
                with member.alone():
                    trainer, stop.prune = member.trainer, member.trainer.prune
                    state = {**trainer.state_dict(), "data": job.parts.data}
                    train_and_record(replace(runs[job.task.number], state=state), time.monotonic() - spent)
        stop.prune = never
    for job in jobs:
        if isinstance(error := job.member.error, Stopped):
            raise Stopped("stopped, everything is saved", error.signal_number)
    gc.collect()
    return sorted((job.task.number, str(job.member.error or "")) for job in jobs)


def log_stack(jobs: Sequence[StackedJob]) -> None:
    """Log what is trained as one."""
    parts, choices = jobs[0].parts, jobs[0].task.choices
    weights = sum(weight.numel() for weight in parts.model.parameters())
    log.info(f"\nstack   jobs {' '.join(map(str, sorted(job.task.number for job in jobs)))}: {len(jobs)} runs as one")
    log.info(f"data    {choices['dataset']}: {len(parts.dataset.train):,} train; read once")
    log.info(f"model   {choices['model']}: {len(jobs)} x {weights:,} weights; optimizer {choices['optimizer']}")
    log.info(f"device  {parts.device}, {parts.precision}; {plural(torch.get_num_threads(), 'thread')}")
