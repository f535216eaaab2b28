"""What TensorBoard's projector reads of a run: points, what they are, and thumbnails of them."""

import io
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mcls.runs.folder import RunFolder
from mcls.system.files import make_folder, publish
from mcls.system.text import cells

CONFIG = """embeddings {{
  tensor_name: "{name}"
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
{sprite}}}
"""
SPRITE = '  sprite {{ image_path: "sprite.jpg" single_image_dim: {width} single_image_dim: {height} }}\n'


def write_projector(
    folder: RunFolder,
    name: str,
    points: Tensor,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    pictures: Tensor | None,
) -> None:
    """Publish the files of the projector, in place of earlier ones; the configuration last, for it names the others.

    Args:
        folder: the run's.
        name: of the points.
        points: (N, D).
        header, rows: the columns of the samples, two or more.
        pictures: of the samples, uint8 (N, 1 or 3, H, W), if there are any.
    """
    make_folder(folder.projector)
    publish(folder.projector / "tensors.tsv", tab_separated([[f"{x:.4g}" for x in row] for row in points.tolist()]))
    publish(folder.projector / "metadata.tsv", tab_separated([header, *rows]))
    sprite = ""
    if pictures is not None:
        publish(folder.projector / "sprite.jpg", contact_sheet(pictures))
        sprite = SPRITE.format(width=pictures.shape[3], height=pictures.shape[2])
    publish(folder.projector / "projector_config.pbtxt", CONFIG.format(name=name, sprite=sprite).encode())


def tab_separated(rows: Sequence[Sequence[object]]) -> bytes:
    """Lines of cells; a tab or the end of a line in one is made visible."""
    return "".join("\t".join(row) + "\n" for row in cells(rows)).encode()


def contact_sheet(pictures: Tensor) -> bytes:
    """Pictures (N x C x H x W, uint8) row by row in a square grid, as a JPEG file."""
    from PIL import Image

    count, channels, height, width = pictures.shape
    side = math.isqrt(count - 1) + 1
    sheet = torch.zeros(side * side, channels, height, width, dtype=torch.uint8)
    sheet[:count] = pictures
    grid = (
        sheet.view(side, side, channels, height, width)
        .permute(0, 3, 1, 4, 2)
        .reshape(side * height, side * width, channels)
    )
    buffer = io.BytesIO()
    Image.fromarray(grid.squeeze(2).numpy()).save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
