"""The run folder: nobody shares one, and reading one back is reading data."""

import json
import multiprocessing
from pathlib import Path

import pytest
import yaml

from mcls.errors import FolderError, MachineError, RequestError
from mcls.runs.folder import (
    MAX_TEXT_BYTES,
    RunFolder,
    claim,
    find_run,
    find_runs,
    read_json,
    read_text,
    read_yaml,
    slug,
    timestamp,
)
from mcls.runs.formats import DATA, MAX_DEPTH, check
from mcls.runs.renamed import SCHEMA


def claim_when_told(parent: Path, barrier: object, queue: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    queue.put(str(claim(parent, "same").path))  # type: ignore[attr-defined]


def test_a_sweep_in_place_of_a_run_names_its_best_run(tmp_path: Path) -> None:
    for name, accuracy in (("0", 0.7), ("1", 0.9), ("2", None)):
        job = RunFolder(tmp_path / name)
        job.path.mkdir()
        job.about.write_text("{}")
        result = {"status": "failed"} if accuracy is None else {"status": "running", "val": {"accuracy": accuracy}}
        job.result.write_text(json.dumps(result))
    with pytest.raises(FolderError) as caught:
        find_run(tmp_path)
    assert str(caught.value).endswith(f"it has no run.json. List the runs in it: mcls runs {tmp_path}")
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(FolderError) as caught:
        find_run(tmp_path)
    told = f"{tmp_path}: a sweep, not a run. Name one of its runs; the best on val: 1"  # from where the test is
    assert str(caught.value) == told
    (tmp_path / "sweep.csv").write_text("jobs,optimizer.lr\n0 2,0.1\n1,0.2\n")  # whose best setting is that of 0 and 2
    with pytest.raises(FolderError) as caught:
        find_run(tmp_path)
    assert str(caught.value) == told.replace("val: 1", "val: 0")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.slow
def test_fifty_processes_get_fifty_folders(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(50), context.SimpleQueue()
    processes = [
        context.Process(target=claim_when_told, args=(tmp_path / "a" / "b", barrier, queue)) for _ in range(50)
    ]
    for process in processes:
        process.start()
    found = {queue.get() for _ in processes}
    for process in processes:
        process.join()
    assert found == {str(tmp_path / "a" / "b" / name) for name in ["same", *(f"same-{n}" for n in range(2, 51))]}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(RequestError, match=r"can't be a folder \(.+\)\. Name another one\."):
            claim(parent, "x")
    with pytest.raises(MachineError, match="cannot be written"):
        claim(tmp_path, "x" * 300)


def test_paths_and_names(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "blobs-mlp" / "2026-01-01_00-00-00")
    names = ["config.yaml", "run.json", "metrics.jsonl", "result.json", "last.pt", "previous.pt", "best.pt", "figures"]
    paths = [folder.config, folder.about, folder.metrics, folder.result, folder.last, folder.previous, folder.best]
    assert [path.name for path in [*paths, folder.figures]] == names
    assert {path.parent for path in paths} == {folder.path}
    assert folder.name == "blobs-mlp/2026-01-01_00-00-00"
    assert len(timestamp()) == 19 and slug(timestamp()) == timestamp()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a=1,b=2.5", "a=1,b=2.5"),
        ("../../etc/passwd", "etc_passwd"),
        ("a b\n\x1b[31m", "a_b_31m"),
        ("", "_"),
        ("..", "_"),
    ],
)
def test_slugs(text: str, name: str) -> None:
    assert slug(text) == name


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = claim(tmp_path, "run")
    config = {"seed": 0, "optimizer": {"lr": 1e-8, "betas": [0.9, 0.999]}, "name": "ü: #", "none": None, "yes": True}
    folder.write_config(config)
    assert read_yaml(folder.config) == {**config, "schema": SCHEMA}
    assert list(read_yaml(folder.config)) == [*config, "schema"]
    assert folder.read_result() is None
    folder.write_json(folder.result, {"status": "finished", "loss": float("nan")})
    assert folder.read_result() == {"status": "finished", "loss": None}


def test_finding_runs(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "a/1/x"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "run.json").write_text("{}")
    assert [str(folder.path.relative_to(tmp_path)) for folder in find_runs(tmp_path)] == ["a/1", "a/1/x", "b/2"]


BILLION_LAUGHS = "a: &a [x, x]\n" + "\n".join(
    f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BILLION_LAUGHS, "refused"),
        ("a: &a 1\nb: *a\n", "refused"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", "refused"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "refused"),
        ("a: " + "{a: " * 5000 + "1" + "}" * 5000, "refused"),
        ("a: " + "[" * 5000, "refused"),
        ("a: !!python/object/apply:os.system [ls]\n", ""),
        ("a: !!python/name:os.system\n", ""),
        ("!!python/object/new:tuple [[1]]\n", ""),
        ("a: !mine 1\n", ""),
        ("a: !!binary aGk=\n", ""),
        ("a: !!set {b, c}\n", ""),
        ("a: !!timestamp nonsense\n", ""),
        ("a: !!bool nonsense\n", ""),
        ("a: [1\n", "damaged"),
        ("a: 1\n---\nb: 2\n", "damaged"),
        ("a: 2024-13-45\n", "damaged"),
        ("a: " + "9" * 5000, "damaged"),
        ("a: \x07\n", "damaged"),
        ("{[1]: 2}\n", "damaged"),
        ("[1, 2]\n", "damaged, no mapping"),
        ("", "damaged, no mapping"),
        ("a: 1\n" * (MAX_TEXT_BYTES // 5 + 1), "refused, larger than"),
    ],
    ids=str,
)
def test_yaml_that_is_no_plain_mapping_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(FolderError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ") and why in str(caught.value) and "\n" not in str(caught.value)


def test_plain_yaml_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    deep: object = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    value = {"a": 1, "b": [1.5, None, True, "text", {"c": "!x *y &z"}], "deep": deep}
    path.write_text(yaml.safe_dump(value))
    assert read_yaml(path) == value


def test_links_and_folders_and_bytes_are_refused(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_text("a: 1\n")
    (tmp_path / "link.yaml").symlink_to(real)
    (tmp_path / "broken.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    for name in ("link", "broken", "folder", "missing"):
        with pytest.raises(FolderError, match="no such file, or a link"):
            read_text(tmp_path / f"{name}.yaml")
    with pytest.raises(FolderError, match="cannot be read"):
        read_text(tmp_path / "bytes.yaml")
    assert read_yaml(real) == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"a": 1} x', "\x00"], ids=range(7))
def test_json_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(FolderError, match="damaged"):
        read_json(path)
    path.write_text(json.dumps({"a": [1]}))
    assert read_json(path) == {"a": [1]}


def test_a_class_name_that_no_file_can_hold_is_refused() -> None:
    check({"classes": ["Café", "猫"], "input_shape": [2]}, DATA, Path("best.pt"))
    with pytest.raises(FolderError, match=r"best\.pt: damaged"):
        check({"classes": ["a", "\ud800"], "input_shape": [2]}, DATA, Path("best.pt"))
