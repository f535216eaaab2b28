"""Where numbers and pictures of a run go: metrics.jsonl and TensorBoard's event file, both in the run folder.

`add_hparams` would make a second run, `add_scalars` one run a curve, and `add_graph` uses a deprecated tracer: none is
called. The HPARAMS tab is written with TensorBoard's own messages into the same event file.
"""

import hashlib
import json
import logging
import time
from typing import Any

from mcls.files import to_json
from mcls.runs import RunFolder

log = logging.getLogger("mcls")

LAYOUT = {
    "train and val": {
        "loss": ["Multiline", ["^(train|val|test)/loss$"]],
        "accuracy": ["Multiline", ["^(train|val|test)/accuracy$"]],
    },
    "rate": {"learning rate": ["Multiline", ["^lr$"]], "images a second": ["Multiline", ["^time/images_per_second$"]]},
}


class Recorder:
    """Writes what a run reports. A write that fails is said once and never stops the training.

    Args:
        folder: the run's.
        epoch, step: how much of an earlier part of the run counts; what was written of later ones is dropped.
    """

    def __init__(self, folder: RunFolder, epoch: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.failed = False
        self.drop_after(epoch)
        self.writer = SummaryWriter(str(folder.path), purge_step=step + 1 if step else None)
        self.metrics = folder.metrics.open("a", encoding="utf-8")
        if not step:
            self.writer.add_custom_scalars(LAYOUT)

    def drop_after(self, epoch: int) -> None:
        """Keep the lines of metrics.jsonl up to `epoch`."""
        if not self.folder.metrics.exists():
            return
        lines = self.folder.metrics.read_text("utf-8").splitlines()[:epoch]
        self.folder.metrics.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def add(self, summary: Any, step: int | None = None) -> None:
        """One message to the event file."""
        events: Any = self.writer.file_writer
        self.guard(lambda: events.add_summary(summary, step))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """All `values` at `step` in one event."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(Summary(value=entries), step)

    def steps(self, step: int, scalars: dict[str, float]) -> None:
        """Values of the training steps up to `step` since the last report."""
        self.scalars(step, scalars)

    def epoch(self, record: dict[str, Any]) -> None:
        """One finished epoch: a line of metrics.jsonl, and its values at its last step."""
        self.guard(lambda: self.metrics.write(to_json(record, indent=None) + "\n"))
        splits = ((name, record[name]) for name in ("train", "val", "test") if name in record)
        values = {f"{split}/{name}": value for split, found in splits for name, value in found.items()}
        values["time/images_per_second"] = record["images_per_second"]
        values["epoch"] = record["epoch"]
        self.scalars(record["step"], values)

    def text(self, tag: str, markdown: str) -> None:
        """A text in the TEXT tab."""
        self.guard(lambda: self.writer.add_text(tag, markdown))

    def image(self, tag: str, png: bytes, step: int) -> None:
        """A picture, given as a PNG file, in the IMAGES tab."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
        picture = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
        self.add(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)

    def hyperparameters(self, values: dict[str, Any]) -> None:
        """Announce the run to the HPARAMS tab, which averages runs that differ in the seed alone: they share a trial.

        `values` are flat: dotted keys to numbers, truth values and text.
        """
        from tensorboard.plugins.hparams import summary_v2

        same = json.dumps({key: value for key, value in values.items() if key != "seed"}, sort_keys=True)
        trial = hashlib.sha256(same.encode()).hexdigest()[:16]
        self.add(summary_v2.hparams_pb(values, trial_id=trial))

    def end(self, succeeded: bool) -> None:
        """Say to the HPARAMS tab how the run ended."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
        self.add(Summary(value=[value]))

    def flush(self) -> None:
        """Bring everything to the disk, so that a kill loses nothing said before."""
        self.guard(self.metrics.flush)
        self.guard(self.writer.flush)

    def close(self) -> None:
        """Flush and let go of the files."""
        self.guard(self.metrics.close)
        self.guard(self.writer.close)

    def guard(self, write: Any) -> None:
        """Call `write`; say its first failure and swallow the others."""
        try:
            write()
        except (OSError, ValueError) as error:
            if not self.failed:
                log.warning(f"{self.folder.path}: curves are not recorded any more ({error}); training goes on.")
            self.failed = True
