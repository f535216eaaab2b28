"""A process that runs jobs of a sweep: python -m mcls.sweep.worker LOGS, with each job as a line on standard input.

To each it answers with a line on standard output: why it failed, "" if it did not, as JSON. What a job says goes to a
file in the folder LOGS. When standard input ends, because the sweep says so or its process is gone, the job is saved
and the process ends.
"""

import _thread
import json
import os
import signal
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from mcls.errors import Stopped
from mcls.sweep.task import Task, run_task
from mcls.system.console import console
from mcls.system.signals import StopRequest


def run_worker(logs: Path) -> int:
    """Run jobs until a signal comes or standard input ends. Returns the exit status, 128 and the signal's number."""
    answer, sys.stdout = sys.stdout, sys.stderr
    lines: SimpleQueue[str] = SimpleQueue()
    with console(), StopRequest() as stop:
        Thread(target=read_jobs, args=(lines,), daemon=True).start()
        while True:
            values = json.loads(lines.get())
            with (logs / f"{values['number']}.txt").open("ab") as file:
                os.dup2(file.fileno(), 2)
            try:
                failed = run_task(Task(**{**values, "folder": Path(values["folder"])}), stop)
            except Stopped as error:
                print(f"mcls: {error}", file=sys.stderr)
                return error.status
            answer.write(json.dumps(failed) + "\n")
            answer.flush()


def read_jobs(lines: "SimpleQueue[str]") -> None:
    """Pass on the lines of standard input; at its end ask this process to stop, as SIGTERM does."""
    for line in sys.stdin:
        lines.put(line)
    _thread.interrupt_main(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run_worker(Path(sys.argv[1])))
