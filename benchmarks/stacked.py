"""Sweeps one job after the other and as one network, from the shell: python benchmarks/stacked.py [--device cuda].

Each sweep runs in a process of its own, from its command to its table. `training` is what its jobs report of their
epochs, which the jobs of a stack share.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LR = "optimizer.lr=" + ",".join(f"{0.001 * (1 + job):.3f}" for job in range(8))
LINEAR = ("model=linear-softmax",)
# name, keys, target of the training part, from what was measured by hand
SWEEPS = (
    ("8 linear-softmax, batch 256", (*LINEAR, "trainer.batch_size=256", LR), 4.7),
    ("16 linear-softmax, batch 64", (*LINEAR, "trainer.batch_size=64", LR, "loss.label_smoothing=0,0.1"), 6.1),
    ("8 MLPs of 32 units, batch 64", ("model.hidden_units=[32]", "trainer.batch_size=64", LR), 2.0),
    ("8 linear-softmax, batch 256, 8 seeds", (*LINEAR, "trainer.batch_size=256", "seed=range(0,8)"), None),
)


def sweep_seconds(keys: tuple[str, ...], launcher: str, folder: Path) -> tuple[float, float]:
    """Seconds of a whole sweep, and of the epochs of its jobs."""
    line = ["train", "-m", "dataset=mnist", "trainer.epochs=3", "trainer.figures=false", *keys]
    command = [sys.executable, "-m", "mcls", *line, f"launcher={launcher}", f"sweep.name={launcher}"]
    begun = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    whole = time.perf_counter() - begun
    results = [json.loads(path.read_text()) for path in (folder / "outputs/sweeps" / launcher).glob("*/result.json")]
    seconds = [result["seconds"] for result in results]
    return whole, max(seconds) if launcher == "stacked" else sum(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sweeps", type=int, default=len(SWEEPS), help="how many of the sweeps")
    parser.add_argument("--data", default=os.environ.get("MCLS_DATA", "data"), help="where MNIST is")
    options = parser.parse_args()
    print("| sweep | one by one, s | of them training | stacked, s | of them training | whole | training | target |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, keys, target in SWEEPS[: options.sweeps]:
        with tempfile.TemporaryDirectory() as place:
            data = f"dataset.root={Path(options.data).resolve()}"
            every = (*keys, data, f"threads={options.threads}", f"device={options.device}")
            one, alone = sweep_seconds(every, "inline", Path(place))
            stack, together = sweep_seconds(every, "stacked", Path(place))
        wanted = "" if target is None else f">= {target:g} x: {'met' if alone >= target * together else 'MISSED'}"
        print(
            f"| {name} | {one:.1f} | {alone:.1f} | {stack:.1f} | {together:.1f} | {one / stack:.1f} x | "
            f"{alone / together:.1f} x | {wanted} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
