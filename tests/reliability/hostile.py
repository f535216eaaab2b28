"""Run folders that somebody made to do harm: functions that turn a copy of a healthy one into one of them."""

import copy
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from mcls.runs import checkpoint

Harm = Callable[[Path, Path], object]  # the run folder, a folder outside of it


class Call:
    """Pickled, it calls `function` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def payloads(outside: Path) -> dict[str, Call]:
    """What pickles in the wild do, harmless here: each would leave a trace in `outside` or in the audit."""
    import builtins
    import ctypes
    import importlib
    import runpy
    import shutil
    import socket
    import subprocess
    import webbrowser

    import numpy as np

    ran = str(outside / "ran")
    return {
        "os.system": Call(os.system, f"touch {ran}"),
        "os.popen": Call(os.popen, f"touch {ran}"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", ran]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", ran]),
        "builtins.exec": Call(builtins.exec, f"open({ran!r}, 'w')"),
        "builtins.eval": Call(builtins.eval, f"open({ran!r}, 'w')"),
        "builtins.open": Call(builtins.open, ran, "w"),
        "builtins.__import__": Call(builtins.__import__, "antigravity"),
        "os.mkdir": Call(os.mkdir, ran),
        "os.remove": Call(os.remove, str(outside / "secret")),
        "os.symlink": Call(os.symlink, "/etc", ran),
        "shutil.rmtree": Call(shutil.rmtree, str(outside)),
        "socket.create_connection": Call(socket.create_connection, ("127.0.0.1", 9)),
        "importlib.import_module": Call(importlib.import_module, "antigravity"),
        "runpy.run_path": Call(runpy.run_path, str(outside / "code.py")),
        "ctypes.CDLL": Call(ctypes.CDLL, str(outside / "secret")),
        "webbrowser.open": Call(webbrowser.open, "http://127.0.0.1:9"),
        "Path.write_text": Call(Path.write_text, Path(ran), "x"),
        "numpy.load": Call(np.load, str(outside / "secret"), None, True),
        "torch.load": Call(torch.load, str(outside / "evil.pt"), None, None),
    }


TARGETS = (
    *("os.system", "subprocess.Popen", "builtins.exec", "builtins.eval", "torch.load", "torch.serialization.load"),
    *("torch.hub.load", "numpy.load", "joblib.load", "pandas.read_pickle", "pathlib.Path.write_text", "pickle.loads"),
    *("torch._inductor.codecache.PyCodeCache.load", "sympy.sympify", "setuptools._distutils.spawn.spawn"),
    *("torch.utils.collect_env.run", "torch.nn.modules.module.torch.load", "torch.optim.optimizer.torch.load"),
    *("torchvision.models.resnet.load_state_dict_from_url", "torch.nn.utils.rnn.os.system", "mcls.cli.main"),
    *("mcls.models.mlp.torch.load", "mcls.datasets.mnist.__globals__", "mcls.losses.torch.hub.load", "os.execv"),
    *("torch.jit.load", "torch.package.PackageImporter", "shutil.rmtree", "socket.create_connection"),
)


def save(path: Path, state: Any) -> None:
    """A checkpoint with a good digest."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(checkpoint.seal(buffer.getvalue()))


def everywhere(write: Callable[[Path], object]) -> Harm:
    """All checkpoints of a folder."""
    return lambda folder, _: [write(folder / name) for name in ("last.pt", "best.pt", "previous.pt")]


def poisoned(name: str, sealed: bool) -> Harm:
    """Pickles that call something, as torch saves them or bare."""

    def harm(folder: Path, outside: Path) -> None:
        call = payloads(outside)[name]
        for file in ("last.pt", "best.pt", "previous.pt"):
            if sealed:
                save(folder / file, {"model": call, "data": call})
            else:
                (folder / file).write_bytes(pickle.dumps(call))

    return harm


def state_with(change: Callable[[dict[str, Any]], object]) -> Harm:
    """Healthy checkpoints with something changed, and a good digest."""

    def harm(folder: Path, _: Path) -> None:
        for name in ("last.pt", "best.pt"):
            state = checkpoint.load_checkpoint(folder / name)
            change(state)
            save(folder / name, state)

    return harm


def text_with(name: str, change: Callable[[dict[str, Any], Path], object]) -> Harm:
    """config.yaml, run.json or result.json with something changed."""

    def harm(folder: Path, outside: Path) -> None:
        path = folder / name
        value = yaml.safe_load(path.read_text())
        change(value, outside)
        path.write_text(json.dumps(value) if name.endswith("json") else yaml.safe_dump(value, sort_keys=False))

    return harm


def file_with(name: str, content: bytes) -> Harm:
    """A file with this content."""

    def harm(folder: Path, _: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return harm


def link(name: str, target: str) -> Harm:
    """A link in the place of a file or folder; `target` is a name in the folder outside, or absolute."""

    def harm(folder: Path, outside: Path) -> None:
        path = folder / name
        if path.is_dir():
            path.rename(folder / "moved")
        path.unlink(missing_ok=True)
        path.symlink_to(outside / target)

    return harm


def pipe(name: str) -> Harm:
    """A pipe in the place of a file: it would be waited for, for ever."""

    def harm(folder: Path, _: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return harm


def zip_bomb(path: Path) -> None:
    """A checkpoint whose one tensor is 400 MB of zeros, deflated."""
    buffer, small = io.BytesIO(), io.BytesIO()
    torch.save({"model": {"a": torch.zeros(1)}, "data": {}}, small)
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, bytes(400_000_000) if "data/0" in entry.filename else content)
    path.write_bytes(checkpoint.seal(buffer.getvalue()))


def overlapping(path: Path) -> None:
    """A zip whose entries all claim the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data/0", bytes(1_000_000))
        first = archive.infolist()[0]
        for number in range(1, 2000):
            entry = zipfile.ZipInfo(f"a/data/{number}")
            entry.header_offset, entry.CRC = first.header_offset, first.CRC
            entry.file_size = entry.compress_size = first.file_size
            archive.filelist.append(entry)
    path.write_bytes(checkpoint.seal(buffer.getvalue()))


def sparse(path: Path) -> None:
    """A file of 50 GB that takes no room."""
    with path.open("wb") as file:
        file.truncate(50 << 30)


def laughs() -> Any:
    """A list of little memory and 2 ** 40 items."""
    value: Any = ["ha"]
    for _ in range(40):
        value = [value, value]
    return value


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def classes(names: Any) -> Harm:
    """Other class names."""
    return state_with(lambda state: state["data"].update(classes=names))


def target(group: str, name: str, **keys: Any) -> Harm:
    """Another `_target_`, with arguments."""

    def change(config: dict[str, Any], outside: Path) -> None:
        config[group] = {"_target_": name, **{key: str(value).format(outside=outside) for key, value in keys.items()}}

    return text_with("config.yaml", change)


def foreign(group: str, choice: str, node: dict[str, Any]) -> Harm:
    """A choice that mcls does not ship, with whatever keys."""

    def harm(folder: Path, outside: Path) -> None:
        text_with("run.json", lambda about, _: about["choices"].update({group: choice}))(folder, outside)
        filled = {
            key: str(value).format(outside=outside) if isinstance(value, str) else value for key, value in node.items()
        }
        text_with("config.yaml", lambda config, _: config.update({group: filled}))(folder, outside)

    return harm


def key(place: str, value: Any) -> Harm:
    """Another value of a key of config.yaml."""

    def change(config: dict[str, Any], outside: Path) -> None:
        *parents, last = place.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = str(value).format(outside=outside) if isinstance(value, str) else value

    return text_with("config.yaml", change)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
)
ESCAPES = "\x1b]0;owned\x07\x1b[2J<script>alert(1)</script>\r\x9b31m"
FILES = ("config.yaml", "run.json", "result.json", "metrics.jsonl", "last.pt", "best.pt", "train.log", "lock")
REST = {"mean": [0.1], "std": [0.3], "val_fraction": 0.1, "val_seed": 0}
GROUPS = ("dataset", "loss", "optimizer", "schedule")
VISION = "torchvision.models"
FINETUNE = {"_target_": "mcls.models.resnet18_finetune", "weights": "{outside}/evil.pt", "freeze": False}
MNIST = {"_target_": "mcls.datasets.mnist", "root": "{outside}/data", "download": True}


def trusting(folder: Path, outside: Path) -> None:
    """A configuration that trusts what it names."""
    key("trust", ["os"])(folder, outside)
    target("model", "os.system", command="touch {outside}/ran")(folder, outside)


def wrong_kinds(about: dict[str, Any], _: Path) -> None:
    """run.json with lists where there are names."""
    about.update(environment=[], choices={"model": ["x"]})


HARMS: dict[str, Harm] = {
    **{f"pickle {name}": poisoned(name, True) for name in payloads(Path("/x"))},
    **{f"bare pickle {name}": poisoned(name, False) for name in ("os.system", "builtins.exec", "Path.write_text")},
    **{f"model {name}": target("model", name, command="touch {outside}/ran") for name in TARGETS},
    **{
        f"{group} os.system": target(group, "os.system", command="x")
        for group in ("dataset", "loss", "optimizer", "schedule")
    },
    **{f"augment {name}": target("augment", name, path="{outside}/secret") for name in ("torch.load", "numpy.load")},
    **{f"link {name}": link(name, "secret") for name in FILES},
    **{f"pipe {name}": pipe(name) for name in FILES},
    **{f"link figures/{name}": link(f"figures/{name}.png", "secret") for name in ("confusion", "reliability")},
    "link figures": link("figures", "."),
    "link to /dev/zero": everywhere(lambda path: (path.unlink(missing_ok=True), path.symlink_to("/dev/zero"))),
    "link an event file": link("events.out.tfevents.9999999999.x", "secret"),
    "folder for last.pt": lambda folder, _: ((folder / "last.pt").unlink(), (folder / "last.pt").mkdir()),
    "folder for config.yaml": lambda folder, _: ((folder / "config.yaml").unlink(), (folder / "config.yaml").mkdir()),
    "hydra.yaml": file_with(".hydra/hydra.yaml", b"hydra: {callbacks: {x: {_target_: os.system, command: touch ran}}}"),
    "config.pickle": lambda f, o: (f / "config.pickle").write_bytes(pickle.dumps(payloads(o)["os.system"])),
    "yaml laughs": file_with("config.yaml", LAUGHS.encode()),
    "yaml tag": file_with("config.yaml", b"a: !!python/object/apply:os.system [touch ran]\n"),
    "yaml deep": file_with("config.yaml", b"a: " + b"[" * 50_000),
    "yaml huge": file_with("config.yaml", b"a: 1\n" * 10_000_000),
    "yaml one long line": file_with("config.yaml", b"a: " + b"x" * 20_000_000),
    "yaml long but allowed": file_with("config.yaml", b"".join(b"k%d: [1, 2, 3]\n" % n for n in range(5000))),
    "yaml endless number": file_with("config.yaml", b"seed: " + b"9" * 90_000),
    "yaml escapes": file_with("config.yaml", b'"\\e[31mkey": "\\e]0;x\\a"\n'),
    "json huge": file_with("run.json", b'{"a": [' + b"1, " * 20_000_000 + b"1]}"),
    "json deep": file_with("run.json", b'{"a": ' * 100_000),
    "json of wrong kinds": text_with(
        "run.json", lambda about, _: about.update(environment=[], choices={"model": ["x"]})
    ),
    "json lacks everything": file_with("run.json", b"{}"),
    "json escapes": text_with("run.json", lambda about, _: about.update(command=ESCAPES, device_name=ESCAPES)),
    "json choices lead away": text_with("run.json", lambda a, _: a["choices"].update(model="../../../../etc/x")),
    "json choices escape": text_with("run.json", lambda a, _: a["choices"].update(augment=ESCAPES)),
    "json many threads": text_with("run.json", lambda about, _: about["environment"].update(threads=10**9)),
    "result of wrong kinds": file_with("result.json", b'{"status": ["x"], "test": 3, "val": "x", "epochs": {}}'),
    "result escapes": text_with("result.json", lambda r, _: r.update(status=ESCAPES, reason=ESCAPES)),
    "metrics rubbish": file_with("metrics.jsonl", b'{"epoch": "x"}\n[1]\nnull\n{"epoch": 1e999}\n\xff\xfe\n'),
    "metrics huge": file_with("metrics.jsonl", b'{"epoch": 1}\n' * 3_000_000),
    "events rubbish": file_with("events.out.tfevents.1.x", struct.pack("<Q", 2**62) + bytes(64)),
    "projector": file_with("projector_config.pbtxt", b'embeddings { tensor_path: "/etc/passwd" }'),
    "zip bomb": everywhere(zip_bomb),
    "zip overlapping": everywhere(overlapping),
    "sparse file": everywhere(sparse),
    "empty zip": everywhere(lambda path: path.write_bytes(checkpoint.seal(b"PK\x05\x06" + bytes(18)))),
    "tensor larger than its memory": state_with(
        lambda state: state["model"].update({"layers.0.weight": torch.zeros(1).expand(1 << 40)})
    ),
    "tensor of too many numbers": state_with(lambda state: state["model"].update(extra=torch.zeros(1).expand(1 << 40))),
    "laughs in a checkpoint": classes(laughs()),
    "deep checkpoint": classes(deep(150)),
    "endless number in a checkpoint": state_with(lambda state: state.update(epoch=10**5000)),
    "class names escape": classes([ESCAPES, "b", "c", "=cmd|' /C calc'!A0"]),
    "class names of a megabyte": classes(["x" * 1_000_000] * 4),
    "class names that are no text": classes([1, None, {"a": 1}, 2.5]),
    "a billion classes": state_with(lambda state: state["data"].update(classes=10**9)),
    "input shape": state_with(lambda state: state["data"].update(input_shape=[10**6, 10**6])),
    "negative input shape": state_with(lambda state: state["data"].update(input_shape=[-1])),
    "no keys": state_with(lambda state: state.clear()),
    "progress of wrong kinds": state_with(lambda state: state.update(progress={"epoch": "x", "step": [1]})),
    "progress far ahead": state_with(lambda state: state.update(progress={**state.get("progress", {}), "step": 2**62})),
    "optimizer of wrong kinds": state_with(lambda state: state.update(optimizer={"state": [], "param_groups": "x"})),
    "random state": state_with(lambda state: state.update(rng={"cpu": torch.zeros(3)})),
    "layers of terabytes": key("model.hidden_units", [1_000_000, 1_000_000]),
    "twenty thousand layers": key("model.hidden_units", [1] * 20_000),
    "many points": key("dataset.n_samples", 10**9),
    "trust of its own": lambda f, o: (
        key("trust", ["os"])(f, o),
        target("model", "os.system", command="touch {outside}/ran")(f, o),
    ),
    "outputs elsewhere": key("outputs", "{outside}/made"),
    "weights of the network": foreign("model", "mine", {"_target_": f"{VISION}.resnet18", "weights": "DEFAULT"}),
    "pretrained of the network": foreign("model", "mine", {"_target_": f"{VISION}.resnet18", "pretrained": True}),
    "backbone of the network": foreign("model", "mine", {"_target_": f"{VISION}.segmentation.fcn_resnet50"}),
    "weights from a file": foreign("model", "resnet18-finetune", FINETUNE),
    "data of the network": foreign(
        "dataset", "mnist", {**MNIST, "mean": [0.1], "std": [0.3], "val_fraction": 0.1, "val_seed": 0}
    ),
    "unknown dataset": foreign(
        "dataset", "mine", {"_target_": "mcls.datasets.mnist.__globals__.urllib", "url": "http://127.0.0.1:9"}
    ),
    "trainer of its own": foreign("trainer", "mine", {"epochs": "x", "batch_size": -1}),
    "device": key("device", "meta"),
}

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 10**15, 10**400, 0.5, -1e300, 1e308, "", "x", "\ud800", "../x", [], {}, [1, 2], [[]]),
    *({"x": 1}, [None] * 3, {"a": {"b": []}}, deep(100), deep(15), float("nan"), float("inf"), (True, False)),
)
TENSORS = (torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(float("nan")), torch.zeros(0))


def slots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container in `value` with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        slots(value[key], found)
    return found


def mutate(value: Any, draw: random.Random, odd: tuple[Any, ...]) -> Any:
    """`value`, of dictionaries and lists, with one thing in it of another type, gone, moved, or doubled."""
    places = slots(value, [])
    if not places or draw.random() < 0.02:
        return draw.choice(odd)
    inside, key = draw.choice(places)
    kind = draw.choice(("other", "other", "other", "gone", "swap", "number", "list"))
    if kind == "gone":
        del inside[key]
    elif kind == "swap":
        theirs, other = draw.choice(places)
        inside[key] = copy.deepcopy(theirs[other])
    elif kind == "list":
        inside[key] = [inside[key], copy.deepcopy(inside[key])]
    elif kind == "number" and type(inside[key]) in (int, float):
        inside[key] = draw.choice((inside[key] + 1, -inside[key], inside[key] * 1000, float(inside[key]), 3))
    elif kind == "number" and isinstance(inside[key], torch.Tensor):
        inside[key] = draw.choice((inside[key][:1] if inside[key].ndim else inside[key], inside[key].double() * 0))
    else:
        inside[key] = draw.choice(odd)
    return value


def mutated(path: Path, draw: random.Random) -> None:
    """One mutation of the file at `path`, which stays a good file of its kind: digest, JSON and YAML are whole."""
    if path.suffix == ".pt":
        save(path, mutate(listed(checkpoint.load_checkpoint(path)), draw, ODD + TENSORS))
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(mutate(yaml.safe_load(path.read_text()), draw, ODD[:-1]), sort_keys=False))
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = mutate(lines, draw, ODD[:-1])
        rows = lines if isinstance(lines, list) else [lines]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(mutate(json.loads(path.read_text()), draw, ODD[:-1])))


def listed(value: Any) -> Any:
    """`value` with lists in place of tuples, plain dictionaries in place of ordered ones."""
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list) else value
