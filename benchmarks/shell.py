"""What is measured from the shell: whole processes, their start, their memory, and jobs of a sweep."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from work import Work

PYTHON = sys.executable
MCLS = [PYTHON, "-m", "mcls"]
RECIPE = "experiment=mnist-mlp"

PEAK = """
import resource, sys
from pathlib import Path
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
print("peak", found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
TRAIN = "import sys; from mcls.cli import main; assert main(sys.argv[1:]) == 0"
CIFAR10 = (
    f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "tests")!r})
import real
from pathlib import Path
if real.available():
    real.accept_cifar10(Path(os.environ["MCLS_DATA"]))
"""
    + TRAIN
)
JOBS = """
import json, sys, time
from pathlib import Path
from mcls import cli
from mcls.training import run
marks, train = [], run.train_new

def marked(*arguments):
    lines = Path("/proc/self/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    marks.append([time.perf_counter(), memory])
    return train(*arguments)

run.train_new = marked
assert cli.main(sys.argv[1:]) == 0
print("\\n" + json.dumps(marks))
"""


PEAK_OF = (
    f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import work
work.prepare_data()
name, who, device, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
work.CONTESTANTS[who](work.named(name, device), device)()
"""
    + PEAK
    + """
if device == "cuda":
    print("peak", torch.cuda.max_memory_reserved() // 1024)
"""
)
STAGES = """
import json, sys, time
from mcls import cli
marks = []

def mark(owner, name, before, after):
    call = getattr(owner, name)
    def marked(*arguments, **keys):
        marks.append([before, time.time()])
        try:
            return call(*arguments, **keys)
        finally:
            marks.append([after, time.time()])
    setattr(owner, name, marked)

from mcls.commands import train
single = train.single
def called(*arguments):
    marks.append(["Python, Hydra, the configuration composed and checked", time.time()])
    import torch
    marks.append(["import torch", time.time()])
    from mcls.report import run_figures
    from mcls.training import run, trainer
    mark(run, "build_components", "import mcls's own modules", "data, model and optimizer built")
    mark(trainer.Trainer, "fit", "run folder and TensorBoard opened", "the epochs, checkpoints and curves")
    mark(run_figures, "draw_run_figures", "the test set measured", "figures")
    return single(*arguments)
train.single = called
assert cli.main(sys.argv[1:]) == 0
print("\\n" + json.dumps([*marks, ["result written", time.time()]]))
"""


def process(command: Sequence[str], status: int = 0) -> tuple[float, str]:
    """Wall seconds of a whole process in a folder of its own, and its output. It must end with `status`."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    if done.returncode != status:
        raise RuntimeError(f"{' '.join(command[:6])}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def starts(device: str) -> dict[str, tuple[list[str], int, str]]:
    """Name: command, its exit status, its target."""
    train = [*MCLS, "train", f"device={device}"]
    return {
        "python -c pass": ([PYTHON, "-c", "pass"], 0, ""),
        "python -c 'import torch'": ([PYTHON, "-c", "import torch"], 0, ""),
        "mcls": (MCLS, 0, "<= 0.15 s"),
        "mcls --version": ([*MCLS, "--version"], 0, "<= 0.15 s"),
        "mcls trian (no such command)": ([*MCLS, "trian"], 2, "<= 0.15 s"),
        "mcls train optimizer.lr=-1 (a config error)": ([*train, "optimizer.lr=-1"], 2, "<= 0.6 s"),
        "mcls train --cfg job": ([*train, "--cfg", "job"], 0, "<= 0.6 s"),
        "mcls train (blobs, everything)": (train, 0, "<= import torch + 3 s"),
        "mcls train trainer.figures=false": ([*train, "trainer.figures=false"], 0, ""),
    }


def peak_mib(code: str, arguments: Sequence[str] = ()) -> float:
    """Peak resident memory of a fresh process that runs `code`, in MiB."""
    _, output = process([PYTHON, "-c", code + PEAK, *arguments])
    line = next(line for line in reversed(output.splitlines()) if line.startswith("peak "))
    return int(line.split()[1]) / 1024


def peak_of(item: Work, who: str, device: str) -> float:
    """Peak memory in MiB of a fresh process in which contestant `who` runs one epoch; on a GPU, the GPU's."""
    return peak_mib(PEAK_OF, [item.name, who, device, str(torch.get_num_threads())])


def memory(device: str, repeats: int) -> tuple[list[float], list[float]]:
    """Peaks in MiB: after `import torch, torchvision`, and of one epoch of mnist-mlp with everything."""
    arguments = ["train", RECIPE, "trainer.epochs=1", f"device={device}"]
    pairs = [(peak_mib("import torch, torchvision"), peak_mib(TRAIN, arguments)) for _ in range(repeats)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def jobs(count: int, device: str) -> list[tuple[float, float]]:
    """Seconds from the start of each job of a sweep on blobs to that of the next, and MiB of memory at its start."""
    seeds = ",".join(map(str, range(count + 1)))
    _, output = process([PYTHON, "-c", JOBS, "train", "-m", f"seed={seeds}", f"device={device}"])
    marks = json.loads(output.splitlines()[-1])
    return [(after[0] - before[0], before[1] / 1024) for before, after in itertools.pairwise(marks)]


def stages(device: str) -> dict[str, float]:
    """Wall seconds of each stage of `mcls train` on blobs, from the shell to the prompt, in order."""
    started = time.time()
    _, output = process([PYTHON, "-c", STAGES, "train", f"device={device}"])
    marks = [*json.loads(output.splitlines()[-1]), ["the interpreter's end", time.time()]]
    times = [started, *(at for _, at in marks)]
    return {name: after - before for (name, _), (before, after) in zip(marks, itertools.pairwise(times), strict=True)}


def whole_run(recipe: str, device: str) -> tuple[float, dict[str, Any]]:
    """Wall seconds from the shell and the result of one run of `recipe` on the data under MCLS_DATA."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run"
        seconds, _ = process([PYTHON, "-c", CIFAR10, "train", recipe, f"device={device}", f"hydra.run.dir={target}"])
        return seconds, json.loads((target / "result.json").read_text())


def seconds_to(accuracy: float, overrides: Sequence[str]) -> float | None:
    """Training seconds until a run's test accuracy first reaches `accuracy`, or None; one process, one run."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run"
        asked = [*overrides, "trainer.evaluate_test_each_epoch=true", f"hydra.run.dir={target}"]
        subprocess.run([*MCLS, "train", *asked], check=True, capture_output=True, env=os.environ)
        for line in (target / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["test"]["accuracy"] >= accuracy:
                return record["seconds"]
    return None
