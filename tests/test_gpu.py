"""What only a GPU can show. Skipped by name without one; `make gpu-check` runs it.

Every other test hides the GPUs (conftest.py), so the suite says the same on every machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import makers

DEVICE = os.environ.get("MCLS_GPU_TESTS", "cuda")  # cpu: rehearse this file on a machine without a GPU
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="means the GPU itself")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    makers.write_mnist(folder / "data")
    makers.write_cifar10(folder / "data")
    return folder


def mcls(root: Path, *arguments: str, status: int = 0, device: str | None = DEVICE) -> str:
    """Run a command in a process of its own, where the GPUs are seen. Returns what it printed."""
    hidden = {} if device is not None else {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mcls", *arguments],
        cwd=root,
        env={**os.environ, "MCLS_DATA": str(root / "data"), **hidden},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def train(root: Path, name: str, *keys: str) -> dict[str, Any]:
    """Train into root/NAME on the GPU. Returns its result."""
    mcls(root, "train", f"device={DEVICE}", "trainer.figures=false", f"hydra.run.dir={name}", *keys)
    found: dict[str, Any] = json.loads((root / name / "result.json").read_text())
    return found


def about(root: Path, name: str) -> dict[str, Any]:
    """The run.json of root/NAME."""
    found: dict[str, Any] = json.loads((root / name / "run.json").read_text())
    return found


@needs_cuda
def test_auto_takes_the_gpu(root: Path) -> None:
    train(root, "auto", "device=auto")
    assert about(root, "auto")["device"].startswith("cuda")


def test_a_resumed_run_equals_one_that_was_not_stopped(root: Path) -> None:
    keys = ["dataset=mnist", "precision=fp32", "deterministic=true", "augment=none"]
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    whole = train(root, "whole", *keys, "trainer.epochs=4")
    train(root, "begun", *keys, "trainer.epochs=2")
    mcls(root, "resume", "begun", "trainer.epochs=4")
    resumed = json.loads((root / "begun" / "result.json").read_text())
    assert resumed["weights_sha256"] == whole["weights_sha256"]


@needs_cuda
@pytest.mark.parametrize(
    "keys",
    [
        ["model=mlp", "model.dropout=0.2", "optimizer.momentum=0.9", "schedule=one_cycle", "trainer.grad_clip_norm=1"],
        ["model=mlp", "optimizer=adam", "loss.class_weights=balanced", "trainer.accumulate=2", "trainer.ema=0.9"],
        ["model=small-resnet", "optimizer=adamw", "mix=mixup", "trainer.drop_last=true"],
    ],
    ids=["mlp-sgd", "mlp-adam", "resnet-adamw"],
)
def test_a_recorded_step_computes_what_a_plain_one_does(root: Path, keys: list[str]) -> None:
    name = keys[0] + keys[1]
    common = ["dataset=mnist", "precision=fp32", "deterministic=true", "trainer.epochs=2", "trainer.batch_size=48"]
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    losses = []
    for choice in ("true", "false"):
        train(root, f"{name}-{choice}", *common, *keys, f"trainer.cuda_graph={choice}")
        lines = (root / f"{name}-{choice}" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train"]["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=needs_cuda)])
@pytest.mark.parametrize("layout", ["true", "false"])
def test_half_precision_and_channels_last_train_as_well_as_fp32(root: Path, precision: str, layout: str) -> None:
    name = f"small-{precision}-{layout}"
    keys = ["dataset=mnist", "model=small-resnet", f"precision={precision}", f"trainer.channels_last={layout}"]
    result = train(root, name, *keys, "trainer.epochs=6", "trainer.batch_size=32", "optimizer=adam")
    assert about(root, name)["precision"] == precision
    assert result["test"]["accuracy"] >= 0.9


def test_images_from_files_are_served_as_resident_ones(root: Path) -> None:
    keys = ["dataset=mnist", "precision=fp32", "trainer.epochs=2"]
    found = [
        train(root, f"served-{resident}", *keys, f"trainer.data_on_device={resident}", "trainer.workers=2")["test"][
            "loss"
        ]
        for resident in ("true", "false")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_fp32_is_fp32(root: Path) -> None:
    """No TF32: a convolutional network's probabilities on the GPU are those of the CPU."""
    train(root, "exact", "dataset=mnist", "model=small-resnet", "precision=fp32", "trainer.epochs=1")
    image = root / "digit.png"
    from PIL import Image

    Image.fromarray(makers.pictures(1, (28, 28), 7)[0][0]).save(image)
    rows = []
    for device in (DEVICE, "cpu"):
        mcls(
            root,
            "predict",
            "exact",
            str(image),
            "--device",
            device,
            "--top",
            "10",
            "--format",
            "jsonl",
            "--output",
            f"{device}.jsonl",
        )
        rows.append(json.loads((root / f"{device}.jsonl").read_text().splitlines()[0])["top"])
    here, there = ({entry["class"]: entry["probability"] for entry in row} for row in rows)
    assert here == pytest.approx(there, abs=1e-5)


def test_a_run_made_on_a_gpu_is_used_without_one(root: Path) -> None:
    if not (root / "exact").exists():
        train(root, "exact", "dataset=mnist", "model=small-resnet", "precision=fp32", "trainer.epochs=1")
    state = torch.load(root / "exact" / "best.pt", weights_only=True)
    assert {tensor.device.type for tensor in state["model"].values()} == {"cpu"}
    for command in (["evaluate", "exact"], ["export", "exact", "--format", "pt2"], ["report", "exact"]):
        mcls(root, *command, device=None)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_equal_one(root: Path) -> None:
    keys = ["dataset=mnist", "precision=fp32", "trainer.epochs=2", "trainer.batch_size=32"]
    losses = [train(root, f"devices-{count}", *keys, f"trainer.devices={count}")["test"]["loss"] for count in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@needs_cuda
def test_one_process_over_nccl(root: Path) -> None:
    """The group is made, a tensor is summed, and the group ends."""
    code = (
        "import torch, torch.distributed as dist\n"
        f"dist.init_process_group('nccl', init_method='file://{root / 'meeting'}', rank=0, world_size=1)\n"
        "value = torch.ones(3, device='cuda'); dist.all_reduce(value); assert value.tolist() == [1, 1, 1]\n"
        "dist.destroy_process_group()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_stack_of_runs_learns_what_they_learn_one_by_one(root: Path) -> None:
    keys = [
        "dataset=mnist",
        "optimizer.lr=0.01,0.03,0.1",
        "precision=fp32",
        "trainer.epochs=3",
        "trainer.figures=false",
    ]
    losses = {}
    for launcher in ("inline", "stacked"):
        mcls(root, "train", "-m", f"device={DEVICE}", f"launcher={launcher}", f"sweep.name={launcher}", *keys)
        lines = [(root / "outputs/sweeps" / launcher / str(job) / "metrics.jsonl").read_text() for job in range(3)]
        losses[launcher] = [json.loads(text.splitlines()[-1])["val"]["loss"] for text in lines]
    assert losses["stacked"] == pytest.approx(losses["inline"], rel=1e-4)
