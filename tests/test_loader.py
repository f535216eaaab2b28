"""Batches: their order, their numbers, and that it does not matter how they are read."""

import pytest
import torch
from torch import Tensor

from mcls.augmentations import CropFlip
from mcls.data.loader import AUGMENT, ORDER, Loader, Normalise, generator
from mcls.data.types import Split

CPU = torch.device("cpu")
MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.25, 0.3)
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def split(count: int = 37) -> Split:
    """Pictures whose targets are their numbers."""
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (count, 3, 8, 8), generator=generator).to(torch.uint8), torch.arange(count))


def loader(batch_size: int = 8, **keys) -> Loader:
    """A loader of `split()`, in the order of seed 0 unless told otherwise."""
    return Loader(split(), batch_size, CPU, Normalise(MEAN, STD, CPU), **{"seed": 0, **keys})


def uniforms(loader: Loader, epoch: int = 0) -> Tensor:
    """The random numbers of its augmentation."""
    numbers = loader.uniforms(epoch)
    assert numbers is not None
    return numbers


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether two lists of batches are equal, bit for bit."""
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_order_is_a_permutation_of_all_samples():
    for epoch in range(3):
        assert loader().order(epoch).sort().values.tolist() == list(range(37))


def test_order_is_the_same_for_the_same_seed_and_epoch_alone():
    orders = {tuple(loader(seed=seed).order(epoch).tolist()) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9
    assert torch.equal(loader(seed=1).order(2), loader(seed=1).order(2))


@pytest.mark.parametrize("other", [1, 2048, 666 + 2048, 2**31, 2**32 - 1])
def test_seeds_far_apart_give_other_orders_and_other_random_numbers(other):
    """torch's CPU generator takes 32 bits of a seed, and a seed of mcls has as many."""
    one, two = (loader(seed=seed, augment=CropFlip(2, 0.5)) for seed in (other % 2048 if other > 1 else 0, other))
    assert not torch.equal(one.order(0), two.order(0))
    assert not torch.equal(uniforms(one), uniforms(two))


def test_random_numbers_of_augmentation_are_new_each_epoch_and_not_those_of_the_order():
    served = loader(augment=CropFlip(2, 0.5))
    assert torch.equal(uniforms(served, 1), uniforms(served, 1))
    assert not torch.equal(uniforms(served, 1), uniforms(served, 2))
    assert uniforms(served).shape == (37, 3)
    drawn = {purpose: torch.rand(37, 3, generator=generator(0, 0, purpose)) for purpose in (ORDER, AUGMENT)}
    assert torch.equal(uniforms(served), drawn[AUGMENT])
    assert not torch.equal(uniforms(served), drawn[ORDER])
    assert loader().uniforms(0) is None


def test_batches_are_slices_of_the_order_and_the_last_one_is_what_is_left():
    served = loader()
    batches = list(served.epoch(3))
    assert len(served) == len(batches) == 5
    assert served.samples == 37
    assert [len(targets) for _, targets in batches] == [8, 8, 8, 8, 5]
    assert torch.equal(torch.cat([targets for _, targets in batches]), served.order(3))
    expected = Normalise(MEAN, STD, CPU)(split().inputs[served.order(3)])
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), expected)


def test_a_batch_larger_than_the_split_is_the_split():
    batches = list(loader(1000).epoch())
    assert [len(targets) for _, targets in batches] == [37]


def test_without_a_seed_samples_come_in_their_own_order():
    assert torch.cat([targets for _, targets in loader(seed=None).epoch(5)]).tolist() == list(range(37))


def test_without_a_seed_nothing_is_augmented():
    assert same(list(loader(seed=None, augment=CropFlip(2, 0.5)).epoch()), list(loader(seed=None).epoch()))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_first_skips_exactly_that_many_batches(first, resident):
    served = loader(augment=CropFlip(2, 0.5), resident=resident)
    assert same(list(served.epoch(2, first=first)), list(served.epoch(2))[first:])


@forks
@pytest.mark.parametrize("augment", [None, CropFlip(2, 0.5)])
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_equals_resident(workers, augment):
    streamed = loader(resident=False, workers=workers, augment=augment)
    resident = loader(augment=augment)
    assert same(list(streamed.epoch(1)), list(resident.epoch(1)))


@pytest.mark.parametrize("resident", [True, False])
def test_reading_leaves_torchs_own_random_numbers_alone(resident):
    """Dropout draws from them: a draw for each pass over the data would make a resumed run another one."""
    before = torch.get_rng_state()
    list(loader(resident=resident, augment=CropFlip(2, 0.5)).epoch())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_is_augmented_the_same_whatever_the_batch_size():
    small, large = (loader(size, augment=CropFlip(2, 0.5)) for size in (3, 20))
    together = [torch.cat([inputs for inputs, _ in served.epoch(4)]) for served in (small, large)]
    assert torch.equal(*together)
    assert not torch.equal(together[0], torch.cat([inputs for inputs, _ in loader().epoch(4)]))


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    found = Normalise(MEAN, STD, CPU)(every)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), (every.double() / 255 - mean) / std, rtol=0, atol=1e-6)


def test_normalise_without_statistics_changes_nothing():
    points = torch.randn(5, 2)
    assert torch.equal(Normalise(None, None, CPU)(points), points)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", [None, CropFlip(2, 0.5)])
def test_images_come_in_the_memory_order_asked_for(augment, channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    served = loader(augment=augment, channels_last=channels_last)
    assert all(inputs.is_contiguous(memory_format=order) for inputs, _ in served.epoch())
    assert same(list(served.epoch()), list(loader(augment=augment).epoch()))


def test_stored_samples_are_left_as_they_are():
    """Two passes give the same, floats without statistics too, which are served as they are stored."""
    points = Split(torch.randn(10, 2), torch.arange(10))
    assert isinstance(points.inputs, Tensor)
    before = points.inputs.clone()
    for seed in (0, None):
        for inputs, _ in Loader(points, 4, CPU, Normalise(None, None, CPU), seed=seed).epoch():
            inputs.zero_()
        assert torch.equal(points.inputs, before)
