"""What several test files share."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import makers
import real

# The tensors of tests are small: threads would spend their time waiting for one another. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test says the same on every machine: only those marked `gpu` see one. Read when torch is imported.
if "MCLS_GPU_TESTS" not in os.environ and not any("test_gpu" in word or word == "gpu" for word in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's `&` leaves it: mcls would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as `nohup` leaves it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that lies in the checkout or in the user's home is seen by a test, nor by what it starts."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        for name in ("COLUMNS", "MCLS_DATA", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCH_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_DATASETS_CACHE", str(home / "hub"))
        if "datasets" in sys.modules:  # which reads that when it is imported
            patch.setattr("datasets.config.HF_DATASETS_CACHE", home / "hub")
        patch.chdir(home)
        yield


@pytest.fixture(autouse=True)
def own_folder(elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test begins in an empty folder of its own, and leaves the log as it found it."""
    monkeypatch.chdir(tmp_path)
    handlers = logging.getLogger("mcls").handlers.copy()
    yield
    assert logging.getLogger("mcls").handlers == handlers


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small MNIST, Fashion-MNIST and CIFAR-10 in the real formats. Not to be written to."""
    root = tmp_path_factory.mktemp("data")
    makers.write_mnist(root)
    makers.write_mnist(root, "FashionMNIST", seed=3)
    makers.write_cifar10(root)
    return root


@pytest.fixture
def accept_cifar10(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read the CIFAR-10 of `data_root`, whose md5 sums are not the published ones."""
    real.accept_cifar10(data_root, monkeypatch.setattr)


@pytest.fixture(scope="session")
def real_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the real data sets; skips the test where they are not there."""
    if not real.available():
        pytest.skip(f"the real data are not in {real.SHARED}; name their folder in MCLS_REAL_DATA")
    return real.unpack(tmp_path_factory.mktemp("real"))


@pytest.fixture
def mcls(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`mcls("train", "seed=1")` runs that command in this process, in `tmp_path`, and returns its exit status."""
    from mcls.cli import main

    monkeypatch.setenv("MCLS_DATA", str(data_root))
    monkeypatch.setattr(sys, "argv", sys.argv)

    def run(*arguments: str | list[str]) -> int:
        return main([word for part in arguments for word in ([part] if isinstance(part, str) else part)])

    return run
