"""The full text of what a wrong command line is answered with: one line, status 2, nothing made."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mcls.commands import COMMANDS
from message_snapshot import SNAPSHOT, snapshot

Main = Callable[..., int]
OPTIMIZERS = "There are adam, adamw, rmsprop, sgd."
KNOWN = ", ".join(COMMANDS)
RECIPES = ", ".join(sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "experiment").glob("*.yaml")))

MESSAGES = [
    ("optimizr=sgd", "optimizr: no such key. Did you mean optimizer?"),
    ("optimizer=sgdd", f"optimizer=sgdd: no such choice. Did you mean sgd? {OPTIMIZERS}"),
    ("optimizer=zzz", f"optimizer=zzz: no such choice. {OPTIMIZERS}"),
    ("optimizer=null", f"optimizer=null: no such choice. {OPTIMIZERS}"),
    ("~optimizer", "optimizer: must be one of the choices of its group, got null."),
    ("experiment=mnist", f"experiment=mnist: no such choice. Did you mean mnist-mlp? There are {RECIPES}."),
    ("optimizer.lrr=0.1", "optimizer.lrr: no such key. Did you mean optimizer.lr?"),
    ("lr=0.1", "lr: no such key. Did you mean optimizer.lr?"),
    ("epochs=3", "epochs: no such key. Did you mean trainer.epochs?"),
    ("sead=3", "sead: no such key. Did you mean seed?"),
    ("+typo=1", "typo: no such key. See mcls train --help."),
    ("++optimizer.wight_decay=1", "optimizer.wight_decay: no such key. Did you mean optimizer.weight_decay?"),
    ("~optimizer.lr", "~optimizer.lr: a key can't be taken away, only changed."),
    ("optimizer.lr=-1", "optimizer.lr: must be float > 0, got -1."),
    ("optimizer.lr=0", "optimizer.lr: must be float > 0, got 0."),
    ("optimizer.lr=nan", "optimizer.lr: must be float > 0, got nan."),
    ("optimizer.lr=inf", "optimizer.lr: must be float > 0, got inf."),
    ("optimizer.lr=fast", "optimizer.lr: must be float > 0, got 'fast'."),
    ("optimizer.lr=true", "optimizer.lr: must be float > 0, got true."),
    ("optimizer.nesterov=1", "optimizer.nesterov: must be bool, got 1."),
    ("trainer.batch_size=0", "trainer.batch_size: must be int > 0, auto or full, got 0."),
    ("trainer.batch_size=all", "trainer.batch_size: must be int > 0, auto or full, got 'all'."),
    ("trainer.epochs=2.5", "trainer.epochs: must be int > 0, got 2.5."),
    ("trainer.epochs=null", "trainer.epochs: must be int > 0, got null."),
    ("trainer.patience=0", "trainer.patience: must be int > 0 or null, got 0."),
    (
        "trainer.monitor=acc",
        "trainer.monitor: must be accuracy, loss, f1_macro, balanced_accuracy, mcc, kappa, auroc, average_precision or "
        "top_k, got 'acc'.",
    ),
    ("dataset.val_fraction=1.2", "dataset.val_fraction: must be float >= 0 < 1, got 1.2."),
    ("dataset.val_fraction=1", "dataset.val_fraction: must be float >= 0 < 1, got 1."),
    ("model.hidden_units=5", "model.hidden_units: must be list of int > 0, got 5."),
    ("model.hidden_units=[8,0]", "model.hidden_units: must be list of int > 0, got [8, 0]."),
    ("=5", "=5: the key is missing. Write key=value; see mcls train --help."),
    ("seed=${foo}", "seed: ${foo} refers to a key that does not exist."),
    ("--config-name foo", "--config-name: no file foo.yaml in mcls's configuration files or in --config-dir."),
    (
        "optimizer=adam optimizer.momentum=0.5",
        "optimizer.momentum: no such key of optimizer=adam. It is one of optimizer=rmsprop, sgd.",
    ),
    ("seed=-1", "seed: must be int >= 0 <= 4294967295, got -1."),
    ("seed=4294967296", "seed: must be int >= 0 <= 4294967295, got 4294967296."),
    ("device=gpu", "device: must be auto, cpu, cuda, cuda:N or mps, got 'gpu'."),
    ("precision=fp8", "precision: must be auto, fp32, fp32_medium, bf16 or fp16, got 'fp8'."),
    ("optimizer=adam optimizer.betas=[0.9]", "optimizer.betas: must be pair of float >= 0 < 1, got [0.9]."),
    ("trust=os", "trust: must be list of text, got 'os'."),
    ("foo", "foo: not an override of the form key=value. Write key=value; see mcls train --help."),
    (
        "outputs=[1",
        "outputs=[1: not an override of the form key=value. If it is a text, type \"outputs='[1'\"",
    ),
    (
        "seed=0,1",
        "seed=0,1: several values make a sweep. Use mcls train -m seed=0,1, or if it is a text \"seed='0,1'\".",
    ),
    ("-m seed=range(0,5,0)", "seed=range(0,5,0): the step of a range can't be 0."),
    ("-m seed=0,-1", "seed: must be int >= 0 <= 4294967295, got -1."),
    ("-m seed=range(-1,2)", "seed: must be int >= 0 <= 4294967295, got -1."),
    ("seed=0,1 -m optimizer.lr=0.1,0", "optimizer.lr: must be float > 0, got 0."),
    ("seed=0,-1 optimizer.lr=0.1 --multirun", "seed: must be int >= 0 <= 4294967295, got -1."),
    *(
        (
            f"-m optimizer.lr={interval}",
            f"optimizer.lr={interval}: needs a search, such as search=tpe. List the values, or use range(...).",
        )
        for interval in ("interval(0.01,0.1)", "tag(log,interval(0.01,0.1))")
    ),
    ("-m seed=range(0)", "seed=range(0): expands to no value. Give at least one."),
    ("--config-path conf", "--config-path: refused, it would hide mcls's own files. Use --config-dir."),
    ("-m optimizer=sgd,adm", f"optimizer=adm: no such choice. Did you mean adam? {OPTIMIZERS}"),
    (
        "optimizer._target_=os.system",
        "optimizer._target_: os.system is not allowed here; allowed are names in torch.optim.",
    ),
    (
        "--experimental-rerun x.pickle",
        "--experimental-rerun: refused, it would run a pickle. Use the command in the run's run.json.",
    ),
    ("--config-dir /no/such/folder", "--config-dir: no folder /no/such/folder."),
]
COMBINATIONS = [  # seen when the parts are built
    (
        "model=resnet18 trainer.epochs=1",
        "model=resnet18 requires images, but this data set has samples of shape 2. Try model=mlp.",
    ),
    (
        "model=resnet18-finetune model.weights=null",
        "model=resnet18-finetune requires images, but this data set has samples of shape 2. Try model=mlp.",
    ),
    ("augment=crop_flip", "augment: requires images, but this data set has samples of shape 2. Set augment=none."),
    ("precision=fp16 device=cpu", "precision: fp16 is for GPUs, got device cpu. Use bf16 or fp32."),
    (
        "optimizer.nesterov=true optimizer.momentum=0",
        "optimizer: torch.optim.SGD refuses its arguments: Nesterov momentum requires a momentum and zero dampening",
    ),
    (
        "dataset.n_samples=10 dataset.centers=9",
        "dataset.n_samples: 10 points leave one of 9 classes empty. Increase it.",
    ),
    (
        "dataset.n_samples=20 dataset.val_fraction=0.01",
        "dataset.val_fraction: 0.01 of 16 samples leaves none to validate on. Set dataset.val_fraction=0.04, or set "
        "it to 0.",
    ),
    (
        "trainer.patience=1 dataset.val_fraction=0",
        "trainer.patience: requires a validation split. Raise dataset.val_fraction, or set it to null.",
    ),
]


def test_the_lists_are_long_enough() -> None:
    assert len(MESSAGES) == len(dict(MESSAGES)) >= 45
    assert len(COMBINATIONS) == len(dict(COMBINATIONS)) >= 8


@pytest.mark.parametrize(("line", "message"), MESSAGES, ids=[line for line, _ in MESSAGES])
def test_one_line_status_two_nothing_made(
    line: str, message: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = mcls("train", line.split(" "))
    assert capsys.readouterr() == ("", f"mcls: {message}\n")
    assert status == 2
    assert list(tmp_path.iterdir()) == []


def left_in(folder: Path) -> list[Path]:
    """What a refused run left: nothing but the empty folder of all runs is fine."""
    return [path for path in folder.rglob("*") if path != folder / "outputs"]


@pytest.mark.parametrize(("line", "message"), COMBINATIONS, ids=[line for line, _ in COMBINATIONS])
def test_parts_that_do_not_go_together(
    line: str, message: str, mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = mcls("train", line.split(" "))
    assert capsys.readouterr() == ("", f"mcls: {message}\n")
    assert status == 2
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError], ids=lambda error: error.__name__)
def test_memory_that_is_not_there(
    error: type[Exception], mcls: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    monkeypatch.setattr("mcls.training.run.build_components", fail)
    assert mcls("train") == 4
    told = "CUDA out of memory. Tried to allocate 2.00 GiB. Use less data or a smaller batch."
    assert capsys.readouterr().err == f"mcls: not enough memory: {told}\n"


def test_memory_that_the_processor_does_not_have(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "model.hidden_units=[100000000,100000000]") == 4
    error = capsys.readouterr().err
    assert error.startswith("mcls: not enough memory: ") and error.count("\n") == 1


def test_printed_commands_can_be_copied(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("trainer.epochs=2", "trainer.figures=false", "threads=1")

    def printed() -> list[str]:
        lines = capsys.readouterr().out.splitlines()
        *others, last = (shlex.split(line.rpartition("mcls ")[2]) for line in lines if "mcls " in line)
        if not others:
            return last
        assert last[0] == "predict" and last[2] == "FILE" and (tmp_path / last[1] / "run.json").is_file()
        return others[-1]

    def refused() -> list[str]:
        return shlex.split(capsys.readouterr().err.rpartition("mcls ")[2].rstrip(".\n"))

    assert mcls("train", *quick) == 0
    assert printed() == ["board", "outputs"]
    assert mcls("train", *quick, "outputs='meine Läufe'") == 0
    assert printed() == ["board", "meine Läufe"]
    run = "ein Lauf"
    assert mcls("train", *quick, f"hydra.run.dir='{run}'") == 0
    assert printed() == ["board", run]
    assert mcls("resume", run) == 0
    assert printed() == ["resume", run, "trainer.epochs=4"]
    (tmp_path / run / "result.json").write_text('{"status": "stopped"}')
    assert mcls("compare", run, run) == 5
    assert refused() == ["resume", run]
    (tmp_path / run / "best.pt").unlink()
    assert mcls("predict", run, ".") == 5
    assert refused() == ["resume", run]
    assert mcls("train", "-m", *quick, "optimizer.lr=0.1,1e30", "hydra.sweep.dir='alle Läufe'") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("curves: mcls board 'alle Läufe'")
    assert err.splitlines()[-1].endswith("Again: mcls resume 'alle Läufe'")


def test_unknown_commands(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("trian", "seed=1") == 2
    assert capsys.readouterr() == ("", f"mcls: trian: no such command. Did you mean mcls train? There are {KNOWN}.\n")
    assert mcls("zzz") == 2
    assert capsys.readouterr() == ("", f"mcls: zzz: no such command. There are {KNOWN}.\n")


def test_unknown_flags_are_one_line_too(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "--flag") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mcls: ") and err.count("\n") == 1 and "--flag" in err


def test_a_gpu_that_is_not_there(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert mcls("train", "device=cuda") == 4
    message = "mcls: device: cuda requested, but there is no usable GPU here. device=auto would use cpu.\n"
    assert capsys.readouterr() == ("", message)
    assert left_in(tmp_path) == []


def test_data_that_are_not_there(mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "dataset=mnist", "dataset.root=nowhere", "dataset.download=false") == 4
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"mcls: dataset.root: MNIST is missing or damaged in {tmp_path}/nowhere/MNIST/raw and could ")
    assert "train-images-idx3-ubyte" in err and "MCLS_DATA" in err
    assert left_in(tmp_path) == []


def test_debug_shows_where(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    from mcls.errors import RequestError

    with pytest.raises(RequestError, match=r"^optimizer\.lr: "):
        mcls("train", "--debug", "optimizer.lr=-1")


def test_every_wrong_key_and_value_is_told_at_once(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "optimizer.lr=-1", "trainer.epochs=0", "seed=x") == 2
    assert capsys.readouterr().err.splitlines() == [
        "mcls: seed: must be int >= 0 <= 4294967295, got 'x'.",
        "mcls: optimizer.lr: must be float > 0, got -1.",
        "mcls: trainer.epochs: must be int > 0, got 0.",
    ]
    assert mcls("train", "modle=mlp", "optimizer.rl=1", "trainer.epochs") == 2
    names = [line.split(":")[1] for line in capsys.readouterr().err.splitlines()]
    assert names == [" trainer.epochs", " modle", " optimizer.rl"]  # what can't be parsed comes first
    assert mcls("train", "optimizer=sdg", "model=mpl", "optimizer.lr=1") == 2
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [" optimizer=sdg", " model=mpl"]
    assert mcls("train", "optimizer.rl=1", "trainer.epoch=1") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_messages_are_those_of_the_snapshot() -> None:
    changed = sorted(set(snapshot().splitlines()) ^ set(SNAPSHOT.read_text("utf-8").splitlines()))
    assert not changed, (
        "messages changed; run: python tests/message_snapshot.py --update, and review tests/messages.snap"
    )
