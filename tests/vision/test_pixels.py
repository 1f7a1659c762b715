"""Whole batches of pixels in memory, against torchvision's and timm's steps for one image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import crop, hflip, pad

from repro.train.data import TrainingSampler, WholeLoader, keyed, make_loader, maker, shuffled
from repro.train.seeding import Draws
from vision.config import AugmentConfig, DataConfig
from vision.data import Images, Pixels, Split, open_sets, train_transform
from vision.data.transforms import to_uint8

SIDE = 6


def grey(images: int, side: int = SIDE) -> Split:
    """Random pixels in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side), dtype=np.uint8)
    return Split(pixels, list(range(images)), Image.fromarray)


def one(image: Image.Image, drawn: list[float], padding: int, chance: float) -> Tensor:
    """An image shifted by torchvision as RandomCrop does, and mirrored as RandomHorizontalFlip does."""
    top, left = (int(x * (2 * padding + 1)) for x in drawn[:2])
    image = crop(pad(image, padding), top, left, SIDE, SIDE)
    return to_uint8(hflip(image) if drawn[2] < chance else image)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 4), st.sampled_from([0.0, 0.3, 1.0]), st.data())
def test_a_batch_is_what_each_image_becomes(
    seed: int, padding: int, chance: float, data: st.DataObject
) -> None:
    split = grey(9)
    indices = np.array(data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=7)))
    pixels = Pixels(split, to_uint8, padding, chance)
    draws = Draws(f"samples {seed}", indices)
    images, labels = pixels.whole_batch(indices, draws)
    assert (images.dtype, images.shape) == (torch.uint8, (len(indices), 1, SIDE, SIDE))
    assert labels.tolist() == indices.tolist()
    for image, index, drawn in zip(images, indices.tolist(), draws(range(3)).tolist(), strict=True):
        assert torch.equal(image, one(split.open(split.items[index]), drawn, padding, chance))


@pytest.mark.parametrize("name", ["padded", "none"])
@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_batches_have_the_images_that_the_transform_makes(name: str, flip: float) -> None:
    """Over many draws both make the same set of images; the transform is that of Images."""
    augment = AugmentConfig(crop=name, padding=1, hflip=flip, color_jitter=0)
    config = DataConfig(size=SIDE)
    made = open_sets(DataConfig(), augment).train
    assert isinstance(made, Pixels)
    assert (made.padding, made.hflip) == (1 if name == "padded" else 0, flip)
    pixels = Pixels(grey(1), train_transform(config, augment), made.padding, flip)
    places = np.arange(400)
    batch, _ = pixels.whole_batch(np.zeros(400, np.int64), Draws("x", places))
    torch.manual_seed(0)
    singles = torch.stack([pixels[0][0] for _ in places])
    whole, alone = ({image.numpy().tobytes() for image in images} for images in (batch, singles))
    assert whole == alone
    assert len(whole) == (9 if name == "padded" else 1) * (2 if flip else 1)


def test_evaluation_shows_the_pixels() -> None:
    sets = open_sets(DataConfig(valid_share=0.25), AugmentConfig(crop="padded", padding=1, color_jitter=0))
    for data in (sets.valid, sets.test):
        assert data is not None
        ((images, labels),) = list(make_loader(data, keyed([range(len(data))]), None, 0))
        singles = [data[index] for index in range(len(data))]
        assert torch.equal(images, torch.stack([image for image, _ in singles]))
        assert labels.tolist() == [label for _, label in singles]


@pytest.mark.parametrize(
    ("data", "augment"),
    [
        (DataConfig(size=16), AugmentConfig(crop="none", hflip=0, color_jitter=0)),
        (DataConfig(channels=3, mean=[0.5] * 3, std=[0.5] * 3), AugmentConfig(crop="none", color_jitter=0)),
        (DataConfig(crop_pct=0.9), AugmentConfig(color_jitter=0)),
        (DataConfig(crop_pct=0.9), AugmentConfig(crop="padded", padding=1, color_jitter=0.4)),
        (DataConfig(crop_pct=0.9), AugmentConfig(crop="none", color_jitter=0, auto_augment="rand-m7")),
    ],
)
def test_what_takes_more_than_a_shift_is_made_one_by_one(data: DataConfig, augment: AugmentConfig) -> None:
    sets = open_sets(data, augment)
    assert type(sets.train) is type(sets.valid) is Images
    assert maker(sets.train) is None


def test_batches_of_digits_are_resumed_to_the_bit() -> None:
    train = open_sets(DataConfig(), AugmentConfig(crop="padded", padding=1, color_jitter=0)).train
    sampler = TrainingSampler(shuffled(len(train), 64, seed=2))
    loader = make_loader(train, sampler, 2, workers=2)
    assert isinstance(loader, WholeLoader)  # without workers
    sampler.start_at(1)
    whole = [images for images, _ in loader]
    sampler.start_at(1, 9)
    rest = [images for images, _ in loader]
    assert all(map(torch.equal, whole[9:], rest))
    assert len(whole) - 9 == len(rest) > 0
    sampler.start_at(2)
    assert not torch.equal(next(iter(loader))[0], whole[0])
