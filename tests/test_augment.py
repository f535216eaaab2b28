"""Crop and flip against slicing one image at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mcls.augmentations import CropFlip, crop_flip


def images(channels: int, kind: torch.dtype, count: int = 16) -> Tensor:
    """Random pictures that are not square."""
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(1, 256, (count, channels, 9, 7), generator=generator).to(kind)


def one_by_one(batch: Tensor, rows: Tensor, columns: Tensor, flipped: Tensor, padding: int) -> Tensor:
    """The reference: pad, slice, flip."""
    height, width = batch.shape[2:]
    found = []
    for image, row, column, flip in zip(batch, rows.tolist(), columns.tolist(), flipped.tolist(), strict=True):
        crop = functional.pad(image, (padding,) * 4)[:, row : row + height, column : column + width]
        found.append(crop.flip(-1) if flip else crop)
    return torch.stack(found)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_equals_one_image_at_a_time(channels, kind, padding):
    batch = images(channels, kind)
    generator = torch.Generator().manual_seed(7)
    rows, columns = torch.randint(2 * padding + 1, (2, len(batch)), generator=generator)
    flipped = torch.rand(len(batch), generator=generator) < 0.5
    found = crop_flip(batch, rows, columns, flipped, padding)
    assert found.dtype == kind
    assert torch.equal(found, one_by_one(batch, rows, columns, flipped, padding))


def test_samples_get_crops_of_their_own():
    """The same picture, many times over, comes out at every place and both ways round."""
    batch = images(1, torch.uint8, 1).expand(2000, -1, -1, -1)
    found = CropFlip(padding=2, flip=0.5)(batch, torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)))
    assert len(found.flatten(1).unique(dim=0)) == 5 * 5 * 2


def test_without_padding_and_flip_nothing_changes():
    batch = images(3, torch.uint8)
    assert torch.equal(CropFlip(padding=0, flip=0.0)(batch, torch.rand(len(batch), 3)), batch)


def test_flip_of_one_turns_every_sample():
    batch = images(3, torch.uint8)
    assert torch.equal(CropFlip(padding=0, flip=1.0)(batch, torch.rand(len(batch), 3)), batch.flip(-1))


@pytest.mark.parametrize(("uniform", "corner"), [(0.0, 0), (0.5, 4), (1 - 2**-24, 8)])
def test_random_numbers_reach_both_ends_of_the_padding(uniform, corner):
    batch = images(1, torch.uint8, 1)
    found = CropFlip(padding=4, flip=0.0)(batch, torch.full((1, 3), uniform))
    place = torch.tensor([corner])
    assert torch.equal(found, one_by_one(batch, place, place, torch.tensor([False]), 4))


def test_a_sample_comes_out_the_same_in_any_batch():
    augment, batch = CropFlip(padding=3, flip=0.5), images(3, torch.uint8)
    uniforms = torch.rand(len(batch), augment.draws, generator=torch.Generator().manual_seed(3))
    whole = augment(batch, uniforms)
    chosen = torch.tensor([11, 2, 5])
    assert torch.equal(augment(batch[chosen], uniforms[chosen]), whole[chosen])
    for index in range(len(batch)):
        one = slice(index, index + 1)
        assert torch.equal(augment(batch[one], uniforms[one]), whole[one])


def test_the_images_given_are_left_alone():
    batch = images(1, torch.uint8)
    before = batch.clone()
    CropFlip(padding=2, flip=1.0)(batch, torch.rand(len(batch), 3))
    assert torch.equal(batch, before)
