"""Everything that only a GPU can show, in less than eight minutes: python benchmarks/gpu_check.py [--device cpu]

Runs the tests marked `gpu`, each recipe for a short while, a stacked sweep beside its jobs one by one, the short form
of the benchmark, and two processes over NCCL where there are two GPUs. Prints a table of what passed, with seconds, and
exits with 1 when something failed. `--device cpu` rehearses it on a machine without a GPU.

On a machine without a network, with Python 3.12 and torch 2.11: beside torch, torchvision, tensorboard, scikit-learn,
matplotlib, tqdm, Pillow, setuptools and pytest it needs the wheels of hydra-core 1.3.8, omegaconf 2.3 and
antlr4-python3-runtime 4.9.3 (source only: `pip wheel antlr4-python3-runtime==4.9.3` makes one). Then:

    pip install --no-deps --no-build-isolation -e . && python benchmarks/gpu_check.py
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 460.0  # seconds in all
SHORT = {  # recipe: what makes it short
    "mnist-mlp": "trainer.epochs=2",
    "mnist-mlp-adam": "trainer.epochs=2",
    "fashion-softmax": "trainer.epochs=2",
    "blobs-mlp": "trainer.epochs=50",
    "cifar10-fast": "trainer.epochs=1",
    "cifar10-resnet18": "trainer.epochs=1",
    "cifar10-resnet18-finetune": "model.weights=null trainer.epochs=1",
}


class Check:
    """Runs steps within LIMIT and remembers how each ended.

    Args:
        folder: where runs and data go.
        device: `cuda` or `cpu`.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.began, self.rows = time.monotonic(), [("step", "outcome", "seconds")]
        self.environment = {**os.environ, "MCLS_DATA": str(folder / "data"), "MCLS_GPU_TESTS": device}

    def step(self, name: str, *command: str) -> None:
        """Run a command of Python's, with what is left of the time, and print what it said."""
        started = time.monotonic()
        left = LIMIT - (started - self.began)
        outcome, said = "no time left", b""
        if left > 5:
            try:
                done = subprocess.run(
                    [sys.executable, *command],
                    cwd=self.folder,
                    env=self.environment,
                    timeout=left,
                    check=False,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                outcome, said = "passed" if done.returncode == 0 else f"FAILED ({done.returncode})", done.stdout
            except subprocess.TimeoutExpired as error:
                said = error.stdout or b""
        print(f"== {name}: {' '.join(command)}\n{said.decode(errors='replace')}", flush=True)
        self.rows.append((name, outcome, f"{time.monotonic() - started:.1f}"))

    @property
    def passed(self) -> bool:
        """Whether no step failed or was cut short."""
        return all(outcome == "passed" for _, outcome, _ in self.rows[1:])


def make_data(folder: Path) -> None:
    """The real data sets if they are there, else small ones in the same formats, under `folder`."""
    sys.path.insert(0, str(ROOT / "tests"))
    import makers
    import real

    if real.available():
        real.unpack(folder)
        return
    makers.write_mnist(folder, train=6000, test=1000)
    makers.write_mnist(folder, "FashionMNIST", train=6000, test=1000, seed=3)
    makers.write_cifar10(folder, each=1000)


def main() -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check and time mcls on a GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    import torch

    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        print("gpu-check: torch sees no GPU here. --device cpu rehearses it.", file=sys.stderr)
        return 4
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(gpus)) or platform.processor()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {device}: {names}")
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), device)
        make_data(Path(folder) / "data")
        tests = [str(ROOT / "tests" / "test_gpu.py"), "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
        check.step("tests", "-m", "pytest", *tests)
        with ThreadPoolExecutor(4) as pool:  # most of a short run is its start
            for recipe, short in SHORT.items():
                keys = [f"device={device}", "trainer.figures=false", f"hydra.run.dir={recipe}", *short.split()]
                run = [str(ROOT / "tests" / "real.py"), "data", "train", f"experiment={recipe}"]
                pool.submit(check.step, recipe, *run, *keys)
        if gpus > 1 and device == "cuda":
            check.step("two GPUs", "-m", "mcls", "train", "experiment=mnist-mlp", "trainer.devices=2")
        check.step("stacked", str(ROOT / "benchmarks" / "stacked.py"), "--device", device, "--sweeps", "1")
        bench = ["--quick", "--repeats", "1", "--device", device, "--only", "training", "resnet", "mnist-mlp"]
        check.step("bench", str(ROOT / "benchmarks" / "bench.py"), *bench)
    print()
    for name, outcome, seconds in check.rows:
        print(f"{name:28} {outcome:16} {seconds:>8}")
    return 0 if check.passed else 1


if __name__ == "__main__":
    sys.exit(main())
