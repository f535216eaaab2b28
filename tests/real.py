"""The real data sets, for tests and benchmarks that ask for them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("MCLS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data")).absolute()


def available() -> bool:
    """Whether the real data are here."""
    return (SHARED / "unpack.py").is_file()


def unpack(folder: Path) -> Path:
    """Lay the real data out under `folder` as torchvision wants them; costs nothing the second time."""
    subprocess.run([sys.executable, str(SHARED / "unpack.py"), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder


def accept_cifar10(folder: Path, patch: Any = setattr) -> None:
    """Let torchvision's reader accept the CIFAR-10 batches under `folder`, whose images are in another order than the
    published ones. `patch(object, name, value)` sets an attribute; pytest's `monkeypatch.setattr` undoes it again."""
    from torchvision.datasets import CIFAR10

    sums = json.loads((folder / CIFAR10.base_folder / "md5.json").read_text())
    for name in ("train_list", "test_list"):
        patch(CIFAR10, name, [[file, sums[file]] for file, _ in getattr(CIFAR10, name)])
    patch(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})


if __name__ == "__main__":  # python tests/real.py FOLDER train ...: mcls on the real data, or what lies in FOLDER
    from mcls.cli import main

    root = unpack(Path(sys.argv[1])) if available() else Path(sys.argv[1])
    os.environ["MCLS_DATA"] = str(root)
    accept_cifar10(root)
    sys.exit(main(sys.argv[2:]))
