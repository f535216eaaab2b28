"""The picture of a model's features, and what TensorBoard's projector is given."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor, nn

from mcls.config.compose import checker
from mcls.data.types import Split
from mcls.report.embedding import (
    SAMPLES,
    Embedding,
    draw_embedding,
    principal_components,
    representative,
    thumbnails,
)
from mcls.runs.folder import RunFolder
from mcls.runs.projector import contact_sheet
from mcls.training.embedding import WithFeatures, embed
from mcls.training.setup import Components, build_components

Main = Callable[..., int]
PROJECTOR = Path("plugins") / "org_tensorflow_tensorboard_projector"


@pytest.mark.parametrize("shape", [(200, 7), (30, 90), (50, 1)])
def test_components_are_scikit_learns(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 5
    count = min(*shape, 4)
    expected = PCA(count, svd_solver="full").fit(features.double().numpy())
    points, shares = principal_components(features, 4)
    np.testing.assert_allclose(shares[:count], expected.explained_variance_ratio_, atol=1e-9)
    theirs = expected.transform(features.double().numpy())
    np.testing.assert_allclose(points[:, :count].abs(), np.abs(theirs), atol=1e-6)
    assert points.shape[1] == max(count, 2) == len(shares)
    assert (points.gather(0, points.abs().argmax(0, keepdim=True)) >= 0).all()


def test_features_without_variance_have_no_components() -> None:
    points, shares = principal_components(torch.full((9, 3), 0.1), 4)
    assert shares[0] == 0 and float(points.abs().max()) < 1e-6


def test_as_many_samples_of_each_class_of_the_most_frequent_ones() -> None:
    targets = torch.cat([torch.arange(40).repeat(100), torch.full((500,), 39)])
    split = Split(torch.arange(len(targets)).float()[:, None], targets)
    chosen = representative(split, 40)
    counts = chosen.targets.bincount(minlength=40)
    assert len(chosen) == SAMPLES and counts[39] == 50 and (counts[:19] == 50).all() and counts[19:39].sum() == 0
    assert torch.equal(targets[chosen.inputs[:, 0].long()], chosen.targets)
    state = torch.random.get_rng_state()
    again = representative(split, 40)
    assert torch.equal(torch.as_tensor(again.inputs), torch.as_tensor(chosen.inputs)) and torch.equal(
        torch.random.get_rng_state(), state
    )


def test_few_samples_are_all_taken() -> None:
    split = Split(torch.randn(5, 3), torch.tensor([2, 0, 2, 2, 0]), ("a", "b", "c", "d", "e"))
    chosen = representative(split, 3)
    assert sorted(chosen.names) == ["a", "b", "c", "d", "e"]
    assert [split.names.index(name) for name in chosen.names[:2]] != [0, 1] or chosen.targets[:2].unique().numel() == 2


def test_large_pictures_are_fewer() -> None:
    split = Split(torch.zeros(600, 3, 224, 224, dtype=torch.uint8), torch.arange(600) % 3)
    assert len(representative(split, 3)) == (1 << 26) // (3 * 224 * 224)


class Two(nn.Module):
    """Two linear layers, the one that is called last registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 3), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs.flatten(1)).relu())
        return logits


def features(model: nn.Module, inputs: Tensor) -> tuple[Tensor, str]:
    heard = WithFeatures(model)
    with torch.no_grad(), heard.listening():
        heard(inputs)
    return heard.kept[0], heard.layer


def test_features_are_what_the_last_linear_layer_is_given() -> None:
    inputs = torch.randn(5, 2, 3)
    model = Two()
    found, layer = features(model, inputs)
    assert torch.equal(found, model.body(inputs.flatten(1)).relu()) and layer == "Features of the last hidden layer"
    found, layer = features(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), inputs)
    assert torch.equal(found, inputs.flatten(1)) and layer == "Inputs"
    without = nn.Sequential(nn.Flatten(), nn.Tanh())
    found, layer = features(without, inputs)
    assert torch.equal(found, without(inputs)) and layer == "Logits"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_of_tokens_are_their_mean() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.layer(inputs).mean(dim=1)
            return logits

    inputs = torch.randn(4, 7, 3)
    assert torch.allclose(features(Tokens(), inputs)[0], inputs.mean(dim=1))


def embedding(count: int, samples: int = 60, spread: float = 1.0) -> Embedding:
    random = torch.Generator().manual_seed(count)
    targets = torch.arange(samples) % count
    points = torch.randn(samples, 2, generator=random, dtype=torch.float64) * spread
    predicted = torch.where(torch.arange(samples) % 7 == 0, (targets + 1) % count, targets)
    return Embedding("val", 900, Split(torch.zeros(samples, 5), targets), points, [0.5, 0.25], predicted, "Logits")


@pytest.mark.parametrize("count", [1, 2, 10, 11, 20])
def test_every_class_has_a_colour(count: int) -> None:
    names = ["鱼", "🐟", "x" * 85, *(f"class {number}" for number in range(1000))]
    for drawn in (embedding(count), embedding(count, spread=0)):
        picture = np.asarray(Image.open(io.BytesIO(draw_embedding(drawn, names, "run"))))
        assert picture.shape[1] == 1000 and len(np.unique(picture.reshape(-1, 4), axis=0)) > count


def test_thumbnails_and_their_sheet() -> None:
    pictures = torch.zeros(5, 3, 64, 128, dtype=torch.uint8)
    pictures[4] = 200
    small = thumbnails(pictures)
    assert small is not None and small.shape == (5, 3, 16, 32)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(small))))
    assert sheet.shape == (48, 96, 3) and sheet[24, 48].tolist() == [200] * 3 and sheet[:14].max() < 3
    grey = thumbnails(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8))
    assert grey is not None and Image.open(io.BytesIO(contact_sheet(grey))).mode == "L"
    assert thumbnails(torch.zeros(3, 5)) is None


def checker_components() -> Components:
    """Blobs of five numbers a sample and their model."""
    with checker() as check:
        return build_components(check.check(["dataset.n_features=5", "device=cpu"], False).config)


def weights_of(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["weights_sha256"])


def test_a_run_has_them_and_the_same_weights(mcls: Main, data_root: Path, tmp_path: Path) -> None:
    keys = ("train", "dataset=mnist", "trainer.epochs=1", "model.dropout=0.1", "device=cpu")
    assert mcls(*keys, "hydra.run.dir=with") == 0
    assert mcls(*keys, "hydra.run.dir=without", "trainer.figures=false") == 0
    assert weights_of(tmp_path / "with") == weights_of(tmp_path / "without")
    assert not (tmp_path / "without" / "plugins").exists()
    with Image.open(tmp_path / "with" / "figures" / "embedding.png") as picture:
        assert picture.width == 1000
    folder = tmp_path / "with" / PROJECTOR
    assert {path.name for path in folder.iterdir()} == {
        "projector_config.pbtxt",
        "tensors.tsv",
        "metadata.tsv",
        "sprite.jpg",
    }
    points = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    lines = (folder / "metadata.tsv").read_text().splitlines()
    assert lines[0] == "class\tpredicted\tright\tsample" and len(lines) == len(points) + 1
    with Image.open(folder / "sprite.jpg") as sheet:
        assert sheet.width == 28 * int(np.ceil(np.sqrt(len(points))))
    assert mcls("report", "with") == 0
    assert 'alt="embedding"' in next((tmp_path / "with").glob("*.html")).read_text()


def test_a_resumed_run_draws_them_anew_and_a_link_is_refused(
    mcls: Main, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("train", "dataset=mnist", "dataset.val_fraction=0", "model=linear-softmax", "trainer.epochs=1")
    assert mcls(*line, "hydra.run.dir=run") == 0
    path = tmp_path / "run" / PROJECTOR / "tensors.tsv"
    before = path.read_text()
    assert 'name: "train features"' in path.with_name("projector_config.pbtxt").read_text()
    assert mcls("resume", "run", "trainer.epochs=2") == 0
    assert path.read_text() == before  # it shows the inputs, which do not change
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert mcls("resume", "run", "trainer.epochs=3") == 5
    assert re.search(r"tensors\.tsv: refused, not a plain file\.", capsys.readouterr().err)
    assert RunFolder(tmp_path / "run").projector == path.parent


def test_two_numbers_a_sample_are_drawn_as_they_are(mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", "trainer.epochs=1", "hydra.run.dir=run") == 0
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} >= {"regions.png", "curves.png"}
    assert not (tmp_path / "run" / "figures" / "embedding.png").exists() and not (tmp_path / "run" / "plugins").exists()


def test_features_that_are_not_finite_are_left_out() -> None:
    checked = checker_components()
    assert (drawn := embed(checked)) is not None and len(drawn.points) == len(drawn.predicted) == len(drawn.samples)
    with torch.no_grad():
        next(checked.model.parameters()).fill_(torch.nan)
    assert embed(checked) is None
