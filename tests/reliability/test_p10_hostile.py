"""P10: a stranger's run folder runs nothing, opens no socket, reads and writes nothing elsewhere, and ends soon."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import HARMS, payloads, save
from steps import QUICK

from mcls.commands import COMMANDS

Run = Callable[..., Any]
Count = Callable[[str], None]
LIMIT = 10.0  # seconds
MEMORY = 1 << 30  # bytes
# what each command that takes a run folder is given: the folder, a healthy one, and where output may go
TABLE: dict[str, Callable[[str, str, str], list[str]]] = {
    "resume": lambda run, healthy, out: ["resume", run],
    "evaluate": lambda run, healthy, out: ["evaluate", run],
    "predict": lambda run, healthy, out: ["predict", run, f"{out}/rows.csv", "--output", f"{out}/predicted.csv"],
    "export": lambda run, healthy, out: ["export", run, "--format", "safetensors", "--output", f"{out}/m.safetensors"],
    "compare": lambda run, healthy, out: ["compare", run, healthy],
    "runs": lambda run, healthy, out: ["runs", run],
    "report": lambda run, healthy, out: ["report", run],
    "board": lambda run, healthy, out: ["board", run],
}
NO_RUN_FOLDER = {"train", "baseline", "tune", "data", "completion", "help"}  # commands that take none
AS_PREDICT = {"serve"}  # reads the folder by the code of predict, and opens a socket because it is asked to
HERE = [name for name in TABLE if name in COMMANDS and importlib.util.find_spec(f"mcls.commands.{name}")]


def test_every_command_is_in_the_table() -> None:
    assert set(COMMANDS) - NO_RUN_FOLDER - AS_PREDICT <= set(TABLE)
    assert len(HARMS) >= 60


@pytest.fixture(scope="module")
def healthy(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("healthy")
    keys = ("dataset.n_samples=100", "trainer.epochs=2", "trainer.batch_size=full", "model.hidden_units=[8]", *QUICK)
    child = server.run("train", *keys, cwd=root)
    assert child.status == 0, child.stderr
    return next(iter(root.glob("outputs/*/*")))


def outside_of(root: Path) -> Path:
    """A folder that nobody may touch."""
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret: 1\n")
    (outside / "code.py").write_text(f"open({str(outside / 'ran')!r}, 'w')\n")
    save(outside / "evil.pt", {"model": payloads(outside)["os.mkdir"]})
    return outside


def digest(folder: Path) -> str:
    """Of every name and byte below `folder`."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"/"))
    return found.hexdigest()


def prepare(name: str, healthy: Path, root: Path) -> tuple[Path, Path, Path]:
    """The hostile folder, the folder outside, and the one for output."""
    outside = outside_of(root)
    out = root / "out"
    out.mkdir()
    (out / "rows.csv").write_text("x0,x1\n0.5,1.5\n2,3\n")
    folder = root / "run" / "blobs-mlp" / "1"
    shutil.copytree(healthy, folder)
    (folder / "figures").mkdir(exist_ok=True)
    # a run that is to be resumed has something left to do
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("  epochs: 2", "  epochs: 3"))
    (folder / "result.json").write_text(json.dumps({"status": "stopped", "test_openings": 0}))
    if name != "none":
        HARMS[name](folder, outside)
    return folder, outside, out


def offences(
    command: str, folder: Path, outside: Path, out: Path, healthy: Path, mcls: Run, more: Any = ()
) -> list[str]:
    """What a command did that it must not do."""
    if command != "resume" and (folder / "result.json").is_file() and not (folder / "result.json").is_symlink():
        text = (folder / "result.json").read_text("utf-8", "replace")
        if text.startswith('{"status": "stopped"'):  # the others want a finished run
            (folder / "result.json").write_text((healthy / "result.json").read_text())
    before, log = digest(outside), out.parent / f"{command}.log"
    place = folder if command not in ("runs", "board") else out.parent / "run"
    roots = [str(place), str(out), str(healthy)]
    setup = [["limit_memory", MEMORY], *more, ["watch", str(log), roots, command == "board"]]
    if command == "board":
        setup.insert(0, ["stop_after", 2])
    words = TABLE[command](
        str(folder if command not in ("runs", "board") else out.parent / "run"), str(healthy), str(out)
    )
    child = mcls(*words, cwd=out, limit=40, setup=setup)
    found = log.read_text().splitlines() if log.exists() else []
    if digest(outside) != before:
        found.append("something outside was changed")
    if child.seconds > LIMIT:
        found.append(f"took {child.seconds:.1f} s")
    if child.status not in (0, 1, 2, 3, 4, 5, 130):
        found.append(f"ended with {child.status}: {child.stderr[-300:]}")
    said = child.stdout + child.stderr
    found += [f"said {word!r}: {said[-300:]}" for word in ("Traceback", "bug in mcls", "\x1b", "\x9b") if word in said]
    if "secret" in said.replace(str(outside), "").replace("/secret", ""):
        found.append("told a secret")
    return found


@pytest.mark.parametrize("command", HERE)
def test_control_a_healthy_folder(command: str, healthy: Path, mcls: Run, tmp_path: Path) -> None:
    """Every command does its work on it, under the same watch."""
    folder, outside, out = prepare("none", healthy, tmp_path)
    assert offences(command, folder, outside, out, healthy, mcls) == []


@pytest.mark.parametrize("name", HARMS)
def test_a_hostile_folder(name: str, healthy: Path, mcls: Run, tmp_path: Path, size: Any, count: Count) -> None:
    place = list(HARMS).index(name)
    quick = [command for command in HERE if command != "board"]
    asked = HERE if size(0, 1) else [quick[place % len(quick)]]
    wrong = []
    for number, command in enumerate(dict.fromkeys(asked)):
        root = tmp_path / str(number)
        root.mkdir()
        folder, outside, out = prepare(name, healthy, root)
        wrong += [f"{command}: {offence}" for offence in offences(command, folder, outside, out, healthy, mcls)]
    assert not wrong, "\n".join(wrong)
    count(f"{name}")


@pytest.mark.parametrize(
    ("naive", "name", "event"),
    [("load_pickles", "pickle os.system", "os.system"), ("load_pickles", "pickle os.mkdir", "os.mkdir")]
    + [("follow_links", "link lock", "open"), ("follow_links", "link train.log", "open")],
)
def test_control_the_watch_sees(naive: str, name: str, event: str, healthy: Path, mcls: Run, tmp_path: Path) -> None:
    """With the protection taken away the same folder must be seen to do harm."""
    folder, outside, out = prepare(name, healthy, tmp_path)
    found = offences("resume", folder, outside, out, healthy, mcls, [[naive], ["open_logs_naively"]])
    assert any(offence.startswith(event) for offence in found), found


@pytest.mark.parametrize(
    "harm", ["hydra/launcher=x", "trust=[os]", "dataset.root=${oc.env:HOME}", "hydra.run.dir=/x", "dataset=mnist"]
)
def test_a_hostile_sweep(harm: str, digits: Path, mcls: Run, tmp_path: Path, count: Count) -> None:
    outside = outside_of(tmp_path)
    sweep, out = tmp_path / "sweep", tmp_path / "out"
    sweep.mkdir()
    out.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"command": "x", "fixed": [], "jobs": [[harm], ["seed=1"]]}))
    (sweep / "1_seed=1").symlink_to(outside)
    before, log = digest(outside), tmp_path / "log"
    child = mcls(
        "resume", str(sweep), cwd=out, limit=60, setup=[["watch", str(log), [str(sweep), str(out), str(digits)]]]
    )
    assert child.status in (1, 3, 4, 5), child.stderr
    assert digest(outside) == before
    assert "bug in mcls" not in child.stderr and "Traceback" not in child.stderr
    assert not log.exists() or log.read_text() == ""
    count(f"sweep with {harm}")


FUZZED = {
    "config.yaml": "resume evaluate predict export compare report",
    "run.json": "resume evaluate predict runs report compare",
    "result.json": "resume evaluate compare runs report",
    "metrics.jsonl": "resume runs report",
    "evaluation.json": "evaluate",
    "best.pt": "evaluate predict export compare",
    "last.pt": "resume",
}


@pytest.mark.parametrize("kind", ["points", "table"])
@pytest.mark.parametrize("name", FUZZED)
def test_mutations(name: str, kind: str, healthy: Path, mcls: Run, tmp_path: Path, size: Any, count: Count) -> None:
    """Good digests, good JSON, and something of another type inside: each is refused or used, in one line."""
    whole = tmp_path / "whole"
    (tmp_path / "t.csv").write_text("x,y,class\n" + "0.5,red,a\n-0.5,blue,b\n2,red,c\n" * 40)
    data = ("dataset=csv", f"dataset.path={tmp_path}/t.csv", "dataset.target=class", "dataset.test_fraction=0.2")
    keys = ("trainer.epochs=1", "model.hidden_units=[8]", "trainer.batch_size=50", f"hydra.run.dir={whole}", *QUICK)
    assert mcls("train", *(data if kind == "table" else ("dataset.n_samples=200",)), *keys).status == 0
    assert mcls("evaluate", str(whole)).status == 0
    shutil.copytree(whole, tmp_path / "other")
    table = "x,y\n1,red\n" if kind == "table" else "x,y\n1,2\n"
    (tmp_path / "rows.csv").write_text(table)
    words = {command: TABLE[command]("copy", str(tmp_path / "other"), str(tmp_path)) for command in TABLE}
    words["resume"].append("trainer.epochs=2")
    words["evaluate"].append("--split=val")
    commands = [words[command] for command in FUZZED[name].split()]
    child = mcls("call", "fuzz", str(whole), name, "0", str(size(6, 150)), json.dumps(commands), limit=1500)
    assert child.status == 0, child.stderr
    *wrong, last = child.stdout.splitlines()
    assert not wrong, "\n".join(wrong)
    assert int(last.split()[0]) > 0 or name == "evaluation.json"
    count(f"mutations of {name}, {size(6, 150)} for each command: {last}")


def test_mutations_of_a_sweep(mcls: Run, tmp_path: Path, size: Any, count: Count) -> None:
    """As of a run, in sweep.json; whatever it says, no harm and one line."""
    keys = ("dataset.n_samples=100", "trainer.epochs=1", "model.hidden_units=[4]", "trainer.batch_size=50", *QUICK)
    assert mcls("train", "-m", *keys, "seed=1,2", f"hydra.sweep.dir={tmp_path}/whole").status == 0
    commands = json.dumps([["resume", "copy"]])
    child = mcls("call", "fuzz", str(tmp_path / "whole"), "sweep.json", "0", str(size(30, 300)), commands, limit=1500)
    assert child.status == 0, child.stderr
    *wrong, last = child.stdout.splitlines()
    assert not wrong, "\n".join(wrong)
    assert int(last.split()[0]) > 0
    count(f"mutations of sweep.json, {size(30, 300)}: {last}")


def test_experimental_rerun_is_refused(mcls: Run, tmp_path: Path) -> None:
    import pickle

    outside = outside_of(tmp_path)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(payloads(outside)["os.mkdir"]))
    child = mcls("train", "--experimental-rerun", "config.pickle")
    assert child.status == 2 and not (outside / "ran").exists()
