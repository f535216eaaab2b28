"""The searches on one task with one budget of epochs, from the shell: python benchmarks/search.py [--data DIR].

Fashion-MNIST, an MLP, SGD, one thread: learning rate and momentum are searched. `random`, `tpe` and `gp` train 24 jobs
for three epochs, with a pruner they may end a job early; `halving` trains 44 jobs for one epoch and the best third for
three: 72 to 74 epochs each. Each search runs once for each seed, which is that of the sampler and of the training.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TASK = (
    "dataset=fashion_mnist",
    "model=mlp",
    "model.hidden_units=[64]",
    "optimizer=sgd",
    "trainer.batch_size=256",
    "trainer.epochs=3",
    "trainer.figures=false",
    "threads=1",
)
SAMPLED = ("optimizer.lr=tag(log, interval(0.0001, 1))", "optimizer.momentum=interval(0, 0.99)", "search.trials=24")
RATES = ",".join(f"{10 ** (-4 + 0.4 * step):.3g}" for step in range(11))
LISTED = (f"optimizer.lr={RATES}", "optimizer.momentum=0,0.5,0.9,0.98", "search.rungs=2")
SEARCHES = {
    "random": ("search=random", *SAMPLED),
    "tpe": ("search=tpe", *SAMPLED),
    "gp": ("search=gp", *SAMPLED),
    "tpe, pruner=median": ("search=tpe", "search.pruner=median", *SAMPLED),
    "halving": ("search=halving", *LISTED),
}


def search_once(keys: tuple[str, ...], seed: int, data: Path, folder: Path) -> tuple[float, float, int, int]:
    """Best validation accuracy, processor seconds of the whole sweep, its jobs, and the epochs that they trained."""
    sampler = () if keys[0] == "search=halving" else (f"search.seed={seed}",)
    common = (f"dataset.root={data}", f"seed={seed}", "sweep.name=search", "sweep.test=none")
    line = [sys.executable, "-m", "mcls", "train", "-m", *TASK, *common, *keys, *sampler]
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, cwd=folder, check=True, capture_output=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    runs = sorted((folder / "outputs/sweeps/search").glob("*/metrics.jsonl"))
    curves = [[json.loads(text) for text in path.read_text().splitlines()] for path in runs]
    accuracies = [[entry["val"]["accuracy"] for entry in curve if "val" in entry] for curve in curves]
    return max(max(values) for values in accuracies if values), spent, len(runs), sum(map(len, accuracies))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=os.environ.get("MCLS_DATA", "data"), help="where Fashion-MNIST is")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| search | best val, mean (each seed) | jobs | epochs | processor seconds |")
    print("| --- | --- | --- | --- | --- |")
    for name, keys in SEARCHES.items():
        found = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as place:
                found.append(search_once(keys, seed, Path(options.data).resolve(), Path(place)))
        best, seconds, jobs, epochs = zip(*found, strict=True)
        each = ", ".join(f"{100 * value:.2f}" for value in best)
        print(
            f"| {name} | {100 * statistics.mean(best):.2f}% ({each}) | {jobs[0]} | "
            f"{min(epochs)} to {max(epochs)} | {statistics.mean(seconds):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
