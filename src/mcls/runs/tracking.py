"""Writes the metrics and figures of a run: metrics.jsonl and TensorBoard's event file, both in the run folder.

`add_hparams` would make a second run, `add_scalars` one run a curve, and `add_graph` uses a deprecated tracer: none is
called. The HPARAMS tab is written with TensorBoard's own messages into the same event file.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mcls.errors import FolderError, MclsError, Stopped
from mcls.runs.folder import REPEATS, STRICT, RunFolder, own_command, parse_json, relative, shell_path
from mcls.runs.formats import EPOCH
from mcls.system.files import open_plain, publish, to_json

log = logging.getLogger("mcls")

LAYOUT = {
    "train and val": {
        "loss": ["Multiline", ["^(train|val|test)/loss$"]],
        "accuracy": ["Multiline", ["^(train|val|test)/accuracy$"]],
    },
    "rate": {
        "learning rate": ["Multiline", ["^lr$"]],
        "samples per second of training": ["Multiline", ["^time/samples_per_second$"]],
    },
}


def remarks(settings: dict[str, Any]) -> str:
    """Tags and note among the hyperparameters of a run as one text; empty without either."""
    parts = (f"tags: {settings['tags']}" if settings.get("tags") else "", settings.get("note") or "")
    return "\n\n".join(map(str, filter(None, parts)))


def next_event(progress: dict[str, Any]) -> int:
    """The first step whose events are written again after a checkpoint with this `progress`; 0 for a new run.

    That is its own step if the losses up to it are not yet recorded, the next one if they are.
    """
    unrecorded = bool(progress["step"]) and progress["window"][2] > 0
    return int(progress["step"] + (progress["step"] > 0) - unrecorded)


class RunLogger:
    """Writes a run's metrics and figures. A failed write is logged once and never stops the training.

    TensorBoard's own writer has a thread that raises its failures wherever the next event is added, and hands its files
    to the children of the process; events are written here instead, one call each and at once, so that a kill loses
    nothing that was recorded before.

    Args:
        folder: the run's.
        epoch: how many epochs of an earlier part of the run count; the records of later ones are dropped.
        begin: the first step that is written anew, 0 for a new run: TensorBoard forgets what earlier files say of it
            and of later ones.
    """

    def __init__(self, folder: RunFolder, epoch: int = 0, begin: int = 0) -> None:
        self.folder = folder
        self.failed = False
        self.metrics: Any = None
        self.events: Any = None
        self.guard(lambda: self.open(epoch))
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self.event(file_version="brain.Event:2")
        self.event(begin, session_log=SessionLog(status=SessionLog.START))
        if not begin:
            from torch.utils.tensorboard.summary import custom_scalars

            self.add(custom_scalars(LAYOUT))

    def open(self, epoch: int) -> None:
        """Open metrics.jsonl, cut after `epoch`, and an event file of this process's own."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.drop_after(epoch)
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.metrics = os.fdopen(open_plain(self.folder.metrics, append), "a", 1, "utf-8")
        start = int(time.time())
        for attempt in itertools.count():
            path = self.folder.path / f"events.out.tfevents.{start:010d}.mcls.{os.getpid()}.{attempt}"
            if not path.exists():
                self.events = RecordWriter(path.open("xb", buffering=0))
                return

    def drop_after(self, epoch: int) -> None:
        """Keep the lines of metrics.jsonl up to `epoch`, the last one of each epoch."""
        path = self.folder.metrics
        if not path.exists():
            return
        lines: dict[int, str] = {}
        for line in path.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # a full disk cut it off
                if (number := STRICT.decode(line)["epoch"]) <= epoch:
                    lines[number] = line
        kept = []
        for line in lines.values():
            with contextlib.suppress(FolderError):
                parse_json(line, path, EPOCH)
                kept.append(f"{line}\n")
        publish(path, "".join(kept).encode())

    def event(self, step: int | None = None, **content: Any) -> None:
        """Write one event to the event file."""
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, **content)
        if self.events is not None:
            self.guard(lambda: self.events.write(event.SerializeToString()))

    def add(self, summary: Any, step: int | None = None) -> None:
        """Write one message to the event file."""
        self.event(step, summary=summary)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write all `values` at `step` as one event."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(Summary(value=entries), step)

    def steps(self, step: int, scalars: dict[str, float]) -> None:
        """Write the values of the training steps since the last call, up to `step`."""
        self.scalars(step, scalars)

    def epoch(self, record: dict[str, Any]) -> None:
        """Write a finished epoch: a line of metrics.jsonl, and its values at its last step."""
        if self.metrics is not None:
            self.guard(lambda: self.metrics.write(to_json(record, indent=None) + "\n"))
        splits = ((name, record[name]) for name in ("train", "val", "test") if name in record)
        values = {f"{split}/{name}": value for split, scalars in splits for name, value in scalars.items()}
        values["time/samples_per_second"] = record["samples_per_second"]
        self.scalars(record["step"], values)

    def text(self, tag: str, markdown: str) -> None:
        """Write a text to the TEXT tab."""
        from torch.utils.tensorboard.summary import text

        self.add(text(tag, markdown))

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Write an image, given as a PNG file, to the IMAGES tab."""
        self.add(image_summary(tag, png), step)

    def setting(self, about: dict[str, Any], config: str) -> None:
        """Write the run's command and configuration, a YAML text, to the TEXT tab and its setting to HPARAMS.

        Tags and note are a text of their own too.
        """
        from tensorboard.plugins.hparams import summary_v2

        self.text("command", f"    {own_command(about)}")
        self.text("config", textwrap.indent(config, "    "))
        self.add(summary_v2.hparams_pb(about["hyperparameters"], trial_id=trial_id(about)))
        if said := remarks(about["hyperparameters"]):
            self.text("note", said)

    def end(self, succeeded: bool) -> None:
        """Write to the HPARAMS tab how the run ended."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
        self.add(Summary(value=[value]))

    def close(self) -> None:
        """Close the files."""
        for file in (self.metrics, self.events):
            if file is not None:
                self.guard(file.close)
        self.metrics = self.events = None

    def guard(self, write: Callable[[], object]) -> None:
        """Call `write`; log its first failure and ignore later ones."""
        try:
            write()
        except (OSError, ValueError, MclsError) as error:
            if not self.failed:
                log.warning(f"{self.folder.path}: curves are no longer recorded ({error}); training goes on.")
            self.failed = True


def trial_id(about: dict[str, Any]) -> str:
    """The name of a setting in the HPARAMS tab, by the content of run.json: one for all runs that differ in REPEATS.

    The tab averages what has one name. The data set, the model and what was typed come first, so that people can read
    it; a digest of all settings ends it, as YAML files may differ too.
    """
    settings = {k: value for k, value in about["hyperparameters"].items() if k not in (*REPEATS, "tags", "note")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    typed = [line for line in about["overrides"] if line.partition("=")[0] in settings.keys() - {"dataset", "model"}]
    return f"{' '.join(['{dataset}-{model}'.format(**about['choices']), *typed])[:100]} ({digest})"


def image_summary(tag: str, png: bytes) -> Any:
    """TensorBoard's message for an image, given as a PNG file."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
    picture = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary(value=[Summary.Value(tag=tag, image=picture)])


def publish_image(folder: Path, tag: str, png: bytes) -> None:
    """Write an image to the IMAGES tab for a folder that is not a run; replaces an earlier one."""
    publish_summary(folder / "events.out.tfevents.0.mcls.sweep", image_summary(tag, png))


def publish_text(folder: Path, tag: str, markdown: str) -> None:
    """Write a text to the TEXT tab for a run that is not being trained; replaces an earlier one."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    path = folder / f"events.out.tfevents.{int(time.time()):010d}.mcls.note"
    publish_summary(path, text_pb(f"{tag}/text_summary", markdown))  # the name that torch gives it
    for earlier in set(folder.glob("events.out.tfevents.*.mcls.note")) - {path}:
        with contextlib.suppress(OSError):
            earlier.unlink()


def publish_summary(path: Path, summary: Any) -> None:
    """Publish an event file with one message."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer, now = io.BytesIO(), time.time()
    writer = RecordWriter(buffer)
    for event in (Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, summary=summary)):
        writer.write(event.SerializeToString())
    publish(path, buffer.getvalue())


class LogFile(logging.Handler):
    """The run's log as a file, with times. If the file can't be written, no log is kept and no error is raised."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.path = folder.log

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        try:
            descriptor = open_plain(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:
            return
        with contextlib.suppress(OSError), os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(self.format(record) + "\n")


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """The warnings that are logged within the context, each in one line."""
    lines: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            lines.append(" ".join(record.getMessage().split()))
        return True

    log.addFilter(collect)
    try:
        yield lines
    finally:
        log.removeFilter(collect)


@contextlib.contextmanager
def log_to_folder(folder: RunFolder) -> Iterator[None]:
    """Write the log to a file in `folder` too; if the body fails, record that in result.json."""
    handler = LogFile(folder)
    log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        if isinstance(error, Stopped):
            error.args = (f"{error}, everything is saved; go on with: mcls resume {shell_path(relative(folder.path))}",)
        status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        reason = str(error) if isinstance(error, MclsError) else f"{type(error).__name__}: {error}"
        handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, reason, (), None))
        with contextlib.suppress(MclsError):
            if (folder.read_result() or {}).get("status", "running") == "running":  # or nothing was changed yet
                loaded = {"test_openings": folder.openings()}
                folder.write_json(folder.result, {"status": status, "reason": reason, **loaded})
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
