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

END = ""  # in place of a job: no more will come


def run_worker(logs: Path) -> int:
    """Run jobs until a signal comes or standard input ends. Returns the exit status, 128 and the signal's number."""
    answer, sys.stdout = sys.stdout, sys.stderr
    lines: SimpleQueue[str] = SimpleQueue()
    with console(), StopRequest() as stop:
        Thread(target=read_jobs, args=(lines,), daemon=True).start()
        for line in iter(lines.get, END):
            values = json.loads(line)
            with (logs / f"{values['number']}.txt").open("ab") as file:
                os.dup2(file.fileno(), 2)
            try:
                failed = run_task(Task(**{**values, "folder": Path(values["folder"])}), stop)
            except Stopped as error:
                print(f"mcls: {error}", file=sys.stderr)
                return error.status
            answer.write(json.dumps(failed) + "\n")
            answer.flush()
    return 128 + signal.SIGTERM


def read_jobs(lines: "SimpleQueue[str]") -> None:
    """Pass on the lines of standard input; at its end ask this process to stop, as SIGTERM does.

    A job looks for the signal. One that this process waits for does not come: the signal alone would not wake it.
    """
    for line in sys.stdin:
        lines.put(line)
    _thread.interrupt_main(signal.SIGTERM)
    lines.put(END)


if __name__ == "__main__":
    sys.exit(run_worker(Path(sys.argv[1])))
