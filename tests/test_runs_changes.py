"""`mcls runs rm`, `prune`, `note` and `tag`: what they change, what they refuse, and that a kill leaves no half run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mcls.errors import MachineError
from mcls.report.html import page
from mcls.runs import removal
from mcls.runs.folder import RunFolder, as_yaml, find_runs, read_yaml
from test_runs_command import make
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def listed(mcls: Main, capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    """The rows of `mcls runs --json`."""
    capsys.readouterr()
    assert mcls("runs", *arguments, "--json", "--all") == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def measured(folder: Path, val: float, data: str, **settings: Any) -> Path:
    """A finished run on the samples of val that `data` names."""
    make(folder, val=val, **settings)
    about, result = (json.loads((folder / name).read_text()) for name in ("run.json", "result.json"))
    (folder / "run.json").write_text(json.dumps({**about, "choices": {"dataset": "blobs"}}))
    seen = {"val": {"samples": 10, "classes": data, "inputs": data}}
    (folder / "result.json").write_text(json.dumps({**result, "fingerprints": seen}))
    return folder


def swept(folder: Path, vals: dict[str, float], data: str = "a") -> Path:
    """A sweep with a run for each job."""
    folder.mkdir(parents=True)
    about = {"command": "mcls train -m", "fixed": [], "jobs": [[f"seed={name}"] for name in vals]}
    (folder / "sweep.json").write_text(json.dumps(about))
    for number, (name, val) in enumerate(vals.items()):
        measured(folder / f"{number}_seed={name}", val, data, seed=int(name))
    return folder


def test_rm_says_what_goes_and_asks(
    mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = make(tmp_path / "outputs" / "a"), make(tmp_path / "outputs" / "b")
    (run / "last.pt").write_bytes(bytes(2_500_000))
    assert mcls("runs", "rm", str(run)) == 2
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [["folder", "runs", "MB"], ["outputs/a", "1", "2.5"]]
    assert err == "mcls: nothing was deleted of 1 run, 2.5 MB: there is no terminal to ask on. Add --yes to delete.\n"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, there in (("n", True), ("", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert mcls("runs", "rm", str(run), str(run)) == 0
        assert run.exists() == there
    assert list((tmp_path / "outputs").iterdir()) == [other]
    monkeypatch.setattr("builtins.input", Mock(side_effect=EOFError))  # Ctrl-D
    assert mcls("runs", "rm", str(other)) == 0
    assert other.exists() and capsys.readouterr().out.endswith("\nnothing was deleted\n")
    assert mcls("runs", "rm", "outputs/b/", "--yes") == 0
    assert not other.exists() and "deleted: 1 run" in capsys.readouterr().out


def test_prune_keeps_the_best_of_each_val(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "outputs"
    for data in ("a", "b"):
        for number in range(4):
            measured(root / f"{data}{number}", 0.5 + number / 10, data)
    make(root / "stopped", status="stopped")
    make(root / "no val", val=None)
    swept(root / "best in it", {"0": 0.1, "1": 0.95})
    swept(root / "none in it", {"0": 0.1, "1": 0.2})
    shutil.rmtree(swept(root / "a job to come", {"0": 0.1, "1": 0.2}) / "1_seed=1")
    searching = swept(root / "a search", {"0": 0.1, "1": 0.2}) / "sweep.json"
    settings = {"kind": "tpe", "trials": 3, "seed": 0}
    seeds = {"key": "seed", "log": False, "choices": [], "low": 0, "high": 9, "step": 1}
    search = {"settings": settings, "lines": [], "dimensions": [seeds]}
    searching.write_text(json.dumps({**json.loads(searching.read_text()), "search": search}))
    with RunFolder(swept(root / "at work", {"0": 0.1, "1": 0.2}) / "0_seed=0").lock():
        (root / "at work" / "0_seed=0" / "result.json").write_text('{"status": "running"}')
        assert mcls("runs", "prune", "--keep-best", "2", "--yes") == 0
    out = capsys.readouterr().out
    gone = [line.split("  ")[0].strip() for line in out.splitlines()[1:-1]]
    assert sorted(gone) == [f"outputs/{name}" for name in ("a0", "a1", "a2", "b0", "b1", "none in it")]
    assert out.splitlines()[-1].startswith("deleted: 7 runs, ")
    kept = ["a job to come", "a search", "a3", "at work", "b2", "b3", "best in it", "no val", "stopped"]
    assert sorted(path.name for path in root.iterdir()) == kept
    assert len(list((root / "best in it").glob("*/run.json"))) == 2
    assert mcls("runs", "prune", "--keep-best", "2", "--yes") == 0
    assert capsys.readouterr().out == "nothing to delete\n"
    assert mcls("runs", "prune", "val/accuracy<0.75", "--keep-best", "1", "--yes") == 0  # of those alone
    assert (root / "b2").exists()
    assert mcls("runs", "prune", "outputs/best in it/0_seed=0", "--keep-best", "1", "--yes") == 0
    assert len(list((root / "best in it").glob("*/run.json"))) == 2


def test_a_kill_in_the_middle_leaves_no_half_run(
    mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sweep = make(tmp_path / "outputs" / "a"), swept(tmp_path / "outputs" / "s", {"0": 0.1})
    with monkeypatch.context() as patch:

        def killed(path: Path, ignore_errors: bool = False) -> None:
            if not ignore_errors:
                raise KeyboardInterrupt

        patch.setattr(shutil, "rmtree", killed)
        for folder in (run, sweep):
            assert mcls("runs", "rm", str(folder), "--yes") == 130
            assert not folder.exists()
    rest = tmp_path / "outputs"
    assert len(list(rest.iterdir())) == 2 and len(list(rest.rglob("run.json"))) == 2
    assert listed(mcls, capsys) == [] and list(find_runs(rest)) == []
    make(rest / "b")
    assert mcls("runs", "rm", "outputs/b", "--yes") == 0
    assert list(rest.iterdir()) == []


def test_what_is_not_deleted(mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "outputs"
    run, sweep = make(root / "a"), swept(root / "s", {"0": 0.1, "1": 0.2})
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "plain").mkdir()
    make(make(root / "outer") / "inner")
    swept(sweep / "nested", {"0": 0.3})
    refused = {
        "link": "link: a link. Name the folder that it leads to: outputs/a",
        "plain": "plain: not a run folder, it has no run.json.",
        "none": "none: not a run folder, it has no run.json.",
        "outputs": "outputs: not a run folder, it has no run.json. List the runs in it: mcls runs outputs",
        "outputs/s/0_seed=0": "outputs/s/0_seed=0: a job of a sweep, which is deleted as a whole with: mcls runs rm "
        "outputs/s",
        "outputs/outer": "outputs/outer: refused, it contains another one, outputs/outer/inner. Move that first.",
        "outputs/s": "outputs/s: refused, it contains another one, outputs/s/nested. Move that first.",
    }
    before = sorted(tmp_path.rglob("*"))
    for path, message in refused.items():
        assert mcls("runs", "rm", path, "outputs/a", "--yes") == 5
        assert capsys.readouterr() == ("", f"mcls: {message}\n")
    shutil.rmtree(sweep / "nested")
    for path, which in (("outputs/a", ""), ("outputs/s", ", job 1_seed=1")):
        busy = root / "a" if not which else sweep / "1_seed=1"
        with RunFolder(busy).lock():
            assert mcls("runs", "rm", path, "--yes") == 4
        assert f"{path}: in use, a process is training it{which}. Stop it first." in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not str(path).endswith("1_seed=1"))
        assert mcls("runs", "rm", "outputs/s", "--yes") == 4
    assert capsys.readouterr().err.endswith("outputs/s/1_seed=1: cannot be deleted (read-only). Fix its permissions.\n")
    shutil.rmtree(root / "locks", ignore_errors=True)
    after = [path for path in sorted(tmp_path.rglob("*")) if path.name != "lock"]
    assert after == [path for path in before if "nested" not in path.parts]


def test_a_run_that_begins_meanwhile_is_put_back(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    run = make(tmp_path / "outputs" / "a")
    folder = removal.doomed(run)
    with (
        RunFolder(run).lock(),
        pytest.raises(MachineError, match=r"/a: in use, a process is training it\. Stop it first"),
    ):
        removal.delete(folder)
    assert (run / "run.json").is_file() and list((tmp_path / "outputs").iterdir()) == [run]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rm"], "RUN: missing. Use mcls runs rm RUN ... [--yes]"),
        (
            ["prune"],
            "--keep-best: mcls runs prune needs it, and nothing else takes it. Use mcls runs prune [DIR] [FILTER ...] "
            "--keep-best N [--yes]",
        ),
        (["prune", "--keep-best", "0"], "--keep-best: must be a whole number above 0, got '0'. See mcls runs --help."),
        (["--yes"], "--yes: only mcls runs rm and mcls runs prune take it. Omit it."),
        (["note", "made/a"], "mcls runs note: takes a run and a text, got 1 word. Use mcls runs note RUN 'TEXT'"),
        (["note", "made/a", "x" * 2001], "note: must be at most 2,000 characters of text, got 2,001 characters. Put it "
         "into a file."),
        (["tag", "made/a", "\udcff"], "tags: must be at most 2,000 characters of text, got bytes that are no text. Put "
         "it into a file."),
    ],
)  # fmt: skip
def test_wrong_requests(mcls: Main, tmp_path: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    make(tmp_path / "made" / "a")
    assert mcls("runs", *arguments) == 2
    assert capsys.readouterr().err == f"mcls: {message}\n"


def test_remarks_are_refused_where_nothing_can_be_kept(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    run = make(tmp_path / "outputs" / "a")
    (tmp_path / "link").symlink_to(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with RunFolder(run).lock():
        assert mcls("runs", "note", "outputs/a", "x") == 4
    assert "in use by process" in capsys.readouterr().err
    assert mcls("runs", "note", "link", "x") == mcls("runs", "tag", "outputs", "x") == 5
    (run / "lock").unlink()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (run / "config.yaml").write_text("- 1\n")
    assert mcls("runs", "note", "outputs/a", "x") == 5
    assert (run / "run.json").read_bytes() == before["run.json"]


def test_note_and_tags(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    """They stand in config.yaml, run.json, the table, TensorBoard and the page, change nothing else, and resume."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, other = tmp_path / "outputs" / "blobs" / "1", tmp_path / "outputs" / "blobs" / "0"
    train(run, data_root, "trainer.epochs=1", "seed=1", "note=old", "tags=[x]")
    config = read_yaml(run / "config.yaml")
    shutil.copytree(run, other)
    for name, text in (("config.yaml", "seed: {}\n"), ("run.json", '"seed": {},\n')):
        (other / name).write_text((other / name).read_text().replace(text.format(1), text.format(0)))
    long = "lr: " + "half of it, then\n  epochs: twice " * 9
    assert mcls("runs", "note", str(run), f" {long} ") == mcls("runs", "tag", "outputs/blobs/1", "b, a,,b") == 0
    assert read_yaml(run / "config.yaml") == {**config, "note": long.strip(), "tags": ["b", "a"]}
    capsys.readouterr()
    assert mcls("runs", "--all", "--md") == 0
    lines = capsys.readouterr().out.splitlines()
    assert " tags | note |" in lines[0] and sum("| lr: half of it" in line and "| b,a |" in line for line in lines) == 1
    assert [row["run"] for row in listed(mcls, capsys, "tags=a")] == ["outputs/blobs/1"]
    assert [row["run"] for row in listed(mcls, capsys, "tags=x")] == ["outputs/blobs/0"]
    assert mcls("runs", "--json") == 0 and json.loads(capsys.readouterr().out)[0]["n"] == 2  # still seeds of one run
    events = EventAccumulator(str(run), {"tensors": 0}).Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("note/text_summary")]
    assert texts == ["tags: x\n\nold", f"tags: b,a\n\n{long.strip()}"]
    assert len(list(run.glob("*.mcls.note"))) == 1
    one, two = page(RunFolder(run)), page(RunFolder(other))
    assert '">b</span> <span class="tag">a</span>' in one and ">lr: half of it" in one
    assert ">x</span>" in two and ">old</p>" in two
    assert mcls("resume", str(run), "trainer.epochs=2") == 0
    assert read_yaml(run / "config.yaml")["tags"] == ["b", "a"]
    assert mcls("runs", "tag", str(run), "") == mcls("runs", "note", str(run), "") == 0
    assert capsys.readouterr().out.endswith("outputs/blobs/1: no tags\noutputs/blobs/1: no note\n")
    assert {**read_yaml(run / "config.yaml"), "trainer": config["trainer"]} == {**config, "note": None, "tags": []}
    assert "note" not in listed(mcls, capsys)[0]["hyperparameters"]


def test_the_run_of_an_older_version_keeps_what_is_known_of_it(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    run = make(tmp_path / "outputs" / "a")
    (run / "run.json").write_text(json.dumps({"overrides": ["optimizer.lr=0.3"]}))
    (run / "config.yaml").write_text(as_yaml({"seed": 1, "trainer": {"balanced": True}}))
    assert mcls("runs", "tag", "outputs/a", "x") == 0
    [row] = listed(mcls, capsys, "tags=x")
    assert row["hyperparameters"]["optimizer.lr"] == "0.3"
    assert read_yaml(run / "config.yaml") == {"seed": 1, "trainer": {"balanced": True}, "tags": ["x"]}
