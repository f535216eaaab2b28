"""mcls beside the loop written by hand and its peers: one command, one run, one table; a whole run writes RESULTS.md.

    python benchmarks/bench.py [--device cpu|cuda] [--quick] [--repeats N] [--threads N] [--only NAME ...]

Everything is interleaved and repeated (A B C A B C ...). A ratio is the median of the ratios to the bare loop of the
same round, so that a slow minute of the machine falls on both. `--clock cpu` counts the processor's seconds instead of
the wall's, for a machine that others use too (with `--threads 1`: waiting threads spin); start-up times and
sweeps are always the wall's.
"""

import argparse
import importlib.metadata
import logging
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch

import shell
import work
from mcls.data.loader import Loader
from mcls.data.types import Split
from mcls.errors import MachineError
from mcls.system.device import device_name
from mcls.system.layout import plain_table
from mcls.system.text import markdown
from mcls.training.precision import set_matrix_products
from work import Work

RESULTS = Path(__file__).with_name("RESULTS.md")
SECTIONS = (
    "training",
    "resnet",
    "whole",
    "evaluation",
    "linearity",
    "start",
    "stages",
    "memory",
    "jobs",
    "fast",
    "to94",
)
TARGETS = {  # work, contestant: largest ratio to the bare loop
    ("mnist-mlp", "mcls trainer"): 1.05,
    ("fashion-softmax", "mcls trainer"): 1.15,
    ("cifar10-resnet18", "mcls trainer"): 1.05,
}
TIMES_FASTER = {  # work, slower contestant: how many times mcls is to be faster
    ("mnist-mlp", "documents' way"): 3.0,
    ("fashion-softmax", "documents' way"): 8.0,
    ("template's default", "Lightning"): 6.0,
}
Table = tuple[str, list[str], list[list[object]]]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of the same round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


class Bench:
    """The choices of the command line, and how they time things."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.quick, self.repeats = options.device, options.quick, options.repeats
        self.works = [item.name for item in work.WORKS if item.name in options.only] or [
            item.name for item in work.WORKS
        ]
        self.clock = time.process_time if options.clock == "cpu" else time.perf_counter

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def race(self, contestants: dict[str, Callable[[], object]], calls: int = 1) -> dict[str, list[float]]:
        """Seconds a call, one list a contestant, in rounds; the first round warms up and does not count."""
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(self.repeats + 1):
            for name, contestant in contestants.items():
                self.wait()
                started = self.clock()
                for _ in range(calls):
                    contestant()
                self.wait()
                if number:
                    seconds[name].append((self.clock() - started) / calls)
        return seconds

    def epochs(self, works: Sequence[Work], title: str) -> Table:
        """Seconds an epoch of every contestant in every work."""
        rows: list[list[object]] = []
        for item in works:
            try:
                names = ["bare", "mcls trainer"] if self.quick else list(work.CONTESTANTS)
                made = {name: work.CONTESTANTS[name](item, self.device) for name in names}
            except MachineError as error:
                rows.append([item.name, f"skipped: {error}", "", "", "", "", "", ""])
                continue
            built = {name: call and self.with_products(item, name, call) for name, call in made.items()}
            seconds = self.race({name: run for name, run in built.items() if run is not None})
            parts, config = work.assembled(item, self.device)
            samples = len(parts.train.targets) * (config["trainer"]["epochs"] if item.whole else 1)
            for name in built:
                if name in seconds:
                    peak = "" if self.quick else f"{shell.peak_of(item, name, self.device):.0f}"
                    rows.append([item.name, name, *self.row(item, name, seconds, samples, peak)])
                elif item.documents is not None:
                    rows.append([item.name, name, "skipped: not installed", "", "", "", "", ""])
            say(rows[-len(seconds) :])
        header = ["work", "who", "seconds an epoch", "samples/s", "peak MiB", "ratio to bare", "target", ""]
        return title, header, rows

    def with_products(self, item: Work, name: str, call: Callable[[], object]) -> Callable[[], object]:
        """`call` under the fp32 matrix products of the work's precision, or under torch's own."""
        precision = "fp32" if name in item.stock else work.compose(item.overrides, self.device)["precision"]

        def run() -> None:
            set_matrix_products(precision)
            call()

        return run

    def row(self, item: Work, name: str, seconds: dict[str, list[float]], samples: int, peak: str) -> list[object]:
        """Seconds, samples a second, peak memory, ratio to bare, target and verdict of one contestant."""
        mine, family = seconds[name], item.name.split(",")[0]
        against = ratios(mine, seconds["bare"])
        target, judged = "", ""
        if most := TARGETS.get((family, name)):
            target, judged = f"<= {most}", verdict(statistics.median(against) <= most)
        if least := TIMES_FASTER.get((family, name)):
            faster = statistics.median(ratios(mine, seconds["mcls trainer"]))
            target, judged = f"mcls >= {least:g} x faster: {faster:.1f} x", verdict(faster >= least)
        if item.whole and name == "mcls trainer":
            target, judged = "<= 1 s in all", verdict(statistics.median(mine) <= 1)
        return [spread(mine), f"{samples / statistics.median(mine):,.0f}", peak, spread(against, 2), target, judged]

    def training(self) -> Table:
        return self.epochs([item for item in work.WORKS if item.name in self.works], "Training epochs")

    def resnet(self) -> Table:
        steps = work.resnet_steps(self.device)
        if self.quick:
            steps = {32: 4, 128: 1}
        title, header, rows = self.epochs(work.resnet_works(steps, ("fp32", "bf16")), "cifar10-resnet18, some steps")
        header[2] = "seconds"
        bare = {str(row[0]): float(str(row[3]).replace(",", "")) for row in rows if row[1] == "bare"}
        for row in rows:
            stock = str(row[0]).replace("bf16 channels-last", "fp32")
            if stock != row[0] and row[1] == "mcls trainer":
                faster = float(str(row[3]).replace(",", "")) / bare[stock]
                row[6] = f"{row[6]}; >= 1.8 x stock fp32: {faster:.1f} x"
                row[7] = verdict(row[7] == "met" and faster >= 1.8)
        return title, header, rows

    def whole(self) -> Table:
        """Whole runs from the shell to the prompt, wall time: what of it was training and measuring `val`."""
        rows: list[list[object]] = []
        for recipe in ("mnist-mlp", "fashion-softmax", "blobs-mlp"):
            seconds, result = shell.whole_run(f"experiment={recipe}", self.device)
            epochs, trained = result["epochs"], result["seconds"]
            accuracy = f"{result['test']['accuracy']:.2%}"
            rows.append([recipe, epochs, f"{seconds:.1f}", f"{trained:.1f}", f"{trained / epochs:.3f}", accuracy])
        header = ["recipe", "epochs", "seconds in all", "of them the epochs", "an epoch", "test accuracy"]
        return "Whole `mcls train experiment=...`, one run each", header, rows

    def evaluation(self) -> Table:
        """A measured pass over the test split, judged against one written by hand that sums loss and hits.

        A bare forward pass does less work; it shows what measuring costs at least.
        """
        rows: list[list[object]] = []
        for item in (item for item in work.WORKS if item.name in ("mnist-mlp", "fashion-softmax")):
            passes = {
                "bare forward": work.bare_pass(item, self.device, measured=False),
                "bare, loss and accuracy": work.bare_pass(item, self.device, measured=True),
                "mcls evaluate": work.mcls_pass(item, self.device),
            }
            seconds = self.race(passes, calls=3)
            beside = [ratios(seconds["mcls evaluate"], seconds[name]) for name in list(passes)[:2]]
            judged = verdict(statistics.median(beside[1]) <= 1.05)
            shown = [*(spread(seconds[name], 4) for name in passes), *(spread(ratio, 2) for ratio in beside)]
            rows.append([item.name, *shown, "<= 1.05 of the measured one", judged])
        header = ["work", *(f"{name}, s" for name in passes), "of the forward pass", "of the measured one"]
        return "Measuring the test split", [*header, "target", ""], rows

    def linearity(self) -> Table:
        """Seconds an epoch of mcls's trainer against the number of samples."""
        rows: list[list[object]] = []
        counts = [1_000, 10_000, 100_000] + ([] if self.quick else [1_000_000])
        keys = ("dataset.n_features=20", "dataset.val_fraction=0", "trainer.batch_size=128")
        base = Work("synthetic", (*keys, f"dataset.n_samples={round(max(counts) / 0.8) + 5}"))
        parts, _ = work.assembled(base, self.device)
        whole = parts.dataset.train
        for count in counts:
            parts, _ = work.assembled(Work("synthetic", keys), self.device)
            cut = Split(whole.inputs[:count], whole.targets[:count])
            loader = Loader(cut, 128, parts.device, parts.train.normalise, seed=0)
            epoch = work.trainer_epoch(parts, loader)
            seconds = self.race({"mcls trainer": epoch})["mcls trainer"]
            rows.append([f"{count:,}", spread(seconds, 4), f"{1e6 * statistics.median(seconds) / count:.2f}"])
        return "Cost against work (20 numbers a sample, mlp, batch 128)", ["samples", "s an epoch", "us a sample"], rows

    def start(self) -> Table:
        """Whole processes, wall time."""
        commands = shell.starts(self.device)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(self.repeats):
            for name, (command, status, _) in commands.items():
                seconds[name].append(shell.process(command, status)[0])
        rows: list[list[object]] = []
        torch_seconds = seconds["python -c 'import torch'"]
        for name, (_, _, target) in commands.items():
            judged = ""
            if target.endswith("+ 3 s"):
                extra = [a - b for a, b in zip(seconds[name], torch_seconds, strict=True)]
                target, judged = f"{target}: + {statistics.median(extra):.2f} s", verdict(statistics.median(extra) <= 3)
            elif target:
                judged = verdict(statistics.median(seconds[name]) <= float(target.split()[1]))
            rows.append([name, spread(seconds[name], 2), target, judged])
        return "From the shell to the prompt", ["command", "seconds", "target", ""], rows

    def stages(self) -> Table:
        """Where each second of `mcls train` on blobs goes, wall time."""
        found = [shell.stages(self.device) for _ in range(self.repeats)]
        rows: list[list[object]] = [[name, spread([each[name] for each in found], 2)] for name in found[0]]
        rows.append(["in all", spread([sum(each.values()) for each in found], 2)])
        return "Where the seconds of mcls train on blobs go", ["stage", "seconds"], rows

    def memory(self) -> Table:
        """Peak memory of mnist-mlp."""
        base, peak = shell.memory(self.device, min(self.repeats, 3))
        raw = 70_000 * 785 / 2**20
        most = statistics.median(base) + 3 * raw
        row: list[object] = [
            spread(base, 0),
            spread(peak, 0),
            f"<= {most:.0f}",
            verdict(statistics.median(peak) <= most),
        ]
        header = ["import torch, torchvision, MiB", "mnist-mlp, MiB", f"target: + 3 x {raw:.0f} MiB of raw data", ""]
        return "Peak memory of mcls train experiment=mnist-mlp", header, [row]

    def jobs(self) -> Table:
        """One sweep on blobs; the medians of five jobs around the 5th and at the end."""
        found = shell.jobs(20 if self.quick else 50, self.device)
        early, late = found[2:7], found[-5:]
        first, last = (statistics.median(seconds for seconds, _ in part) for part in (early, late))
        before, after = (statistics.median(mib for _, mib in part) for part in (early, late))
        slower, growth = last / first - 1, after / before - 1
        rows: list[list[object]] = [
            ["seconds a job", f"{first:.2f}", f"{last:.2f}", f"{slower:+.1%}", "+- 10 %", verdict(abs(slower) <= 0.1)],
            ["memory, MiB", f"{before:.0f}", f"{after:.0f}", f"{growth:+.1%}", "+- 5 %", verdict(abs(growth) <= 0.05)],
            ["a later job", "", f"{last:.2f}", "", "<= bare training + 1 s", verdict(last <= 1)],
        ]
        return f"{len(found)} jobs of mcls train -m on blobs", ["", "5th", "last", "change", "target", ""], rows

    def fast(self) -> Table:
        """The recipe cifar10-fast, everything included."""
        seconds, result = shell.whole_run("experiment=cifar10-fast", self.device)
        accuracy = result["test"]["accuracy"]
        judged = verdict(seconds <= 120 and accuracy >= 0.8)
        row: list[object] = [f"{seconds:.0f}", f"{accuracy:.2%}", ">= 80 % after 120 s", judged]
        return "mcls train experiment=cifar10-fast, from the shell", ["seconds", "test accuracy", "target", ""], [row]

    def to94(self) -> Table:
        """Training seconds to 94 % on CIFAR-10's test set; on a GPU alone."""
        rows: list[list[object]] = []
        for seed in range(self.repeats if self.device == "cuda" else 0):
            reached = shell.seconds_to(0.94, ["experiment=cifar10-resnet18", "device=cuda", f"seed={seed}"])
            rows.append([seed, "not reached" if reached is None else f"{reached:.1f}"])
        return "cifar10-resnet18 to 94 % on the test set", ["seed", "seconds of training"], rows


def say(rows: list[list[object]]) -> None:
    print(plain_table([""] * len(rows[0]), rows), file=sys.stderr, flush=True)


def machine(options: argparse.Namespace, data: str) -> str:
    """What the figures were measured on and with."""
    names = ("torch", "torchvision", "numpy", "hydra-core", "tensorboard", "lightning")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    device = device_name(torch.device(options.device))
    return "\n".join(
        [
            "# Results of `make bench`",
            "",
            f"- command: `{shlex.join(['python', 'benchmarks/bench.py', *sys.argv[1:]])}`",
            f"- machine: {device}; {os.cpu_count()} cores, {torch.get_num_threads()} threads; load at the start "
            f"{os.getloadavg()[0]:.1f}",
            f"- date {date.today()}, commit {work.commit()}, Python {platform.python_version()}, {', '.join(versions)}",
            f"- data: {data}; {options.repeats} rounds; clock of the training tables: {options.clock}",
            "",
            "Medians and ranges. The bare loop indexes float tensors that lie on the device by one permutation an",
            "epoch, in the same precision and memory order; it logs, measures and augments nothing. Peak memory is",
            "that of a fresh process that builds one contestant and runs it once. Why: see [NOTES.md](NOTES.md).",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="2 rounds beside the bare loop alone, 20 jobs, no million of samples, few steps",
    )
    parser.add_argument("--repeats", type=int, help="rounds that count (default 5, with --quick 2)")
    parser.add_argument("--threads", type=int, help="CPU threads (default torch's own choice)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    names = [item.name for item in work.WORKS]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*SECTIONS, *names],
        default=SECTIONS,
        help="tables or work; RESULTS.md is left alone",
    )
    options = parser.parse_args()
    sections = [name for name in SECTIONS if name in options.only] or ["training"]
    options.repeats = options.repeats or (2 if options.quick else 5)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that are started from here
        torch.set_num_threads(options.threads)
    logging.getLogger("mcls").addHandler(logging.NullHandler())
    logging.getLogger("mcls").propagate = False
    head = machine(options, work.prepare_data())
    bench, texts = Bench(options), [head]
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        for name in sections:
            title, header, rows = getattr(bench, name)()
            if rows:
                print(f"\n{title}\n{plain_table(header, rows)}", flush=True)
                texts.append(f"## {title}\n\n{markdown(header, rows)}")
                if options.only == SECTIONS:  # a part is on the terminal, and no replacement for all of it
                    RESULTS.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
