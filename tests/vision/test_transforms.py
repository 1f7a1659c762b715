"""What workers and the device make of an image, against torchvision's and timm's own steps."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from made_images import encode, picture
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.functional import normalize, to_tensor

from repro.errors import UserError
from repro.train.data import TrainingSampler, dealt, keyed, make_loader, shuffled
from vision.config import AugmentConfig, DataConfig, VisionConfig
from vision.data import Images, Normalize, Split, build_erasing, train_transform
from vision.data import test_transform as evaluation_transform
from vision.train import Batch, Classification

RGB = DataConfig(
    name="imagefolder",
    size=32,
    channels=3,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
    crop_pct=0.9,
)
STRONG = AugmentConfig(auto_augment="rand-m7-mstd0.5-inc1")


def seeded(seed: int, make: Callable[[], Tensor]) -> Tensor:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (timm uses it)
    torch.manual_seed(seed)
    return make()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_evaluation_is_that_of_float_transforms_to_the_bit(
    channels: int, layout: torch.memory_format
) -> None:
    mean, std = RGB.mean[:channels], RGB.std[:channels]
    data = DataConfig(size=32, channels=channels, mean=mean, std=std, crop_pct=0.9)
    image = picture(mode="L" if channels == 1 else "RGB")
    pixels = evaluation_transform(data)(image)
    assert (pixels.dtype, pixels.shape, pixels.is_contiguous()) == (torch.uint8, (channels, 32, 32), True)
    ours = Normalize(data)(pixels[None], layout)
    assert ours.is_contiguous(memory_format=layout)
    theirs = create_transform((channels, 32, 32), interpolation="bicubic", mean=mean, std=std, crop_pct=0.9)(
        image
    )
    assert torch.equal(ours[0], theirs)


def test_every_pixel_value_is_normalised_as_torchvision_does() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    theirs = normalize(to_tensor(Image.fromarray(values)), RGB.mean, RGB.std)
    assert torch.equal(Normalize(RGB)(torch.from_numpy(values).permute(2, 0, 1)[None])[0], theirs)


@pytest.mark.parametrize("augment", [STRONG, AugmentConfig(color_jitter=0.4)])
def test_training_is_that_of_float_transforms_to_the_bit(augment: AugmentConfig) -> None:
    theirs = create_transform(
        (3, 32, 32), is_training=True, interpolation="random", mean=tuple(RGB.mean), std=tuple(RGB.std),
        color_jitter=augment.color_jitter, auto_augment=augment.auto_augment,
        scale=tuple(augment.scale), ratio=tuple(augment.ratio),
    )  # fmt: skip
    ours = train_transform(RGB, augment)
    for seed in range(20):
        image = picture(seed)
        expected = seeded(seed, lambda image=image: theirs(image))
        assert torch.equal(Normalize(RGB)(seeded(seed, lambda image=image: ours(image))[None])[0], expected)


def test_padded_crop_shifts() -> None:
    transform = train_transform(
        DataConfig(), AugmentConfig(crop="padded", padding=1, hflip=0, color_jitter=0)
    )
    image = Image.new("L", (8, 8))
    image.putpixel((4, 4), 255)
    spots = {int(transform(image).argmax()) for _ in range(200)}
    assert spots == {8 * y + x for x in (3, 4, 5) for y in (3, 4, 5)}


def test_what_timm_does_not_know_is_named() -> None:
    with pytest.raises(UserError, match=r"augment\.auto_augment=rand-q9"):
        train_transform(RGB, AugmentConfig(auto_augment="rand-q9"))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_is_timms_on_the_normalised_batch(mode: str) -> None:
    augment = AugmentConfig(erase=0.5, erase_mode=mode, erase_count=2)
    batch = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = RandomErasing(0.5, mode=mode, max_count=2, device="cpu")
    erasing = build_erasing(augment)
    assert erasing is not None
    erasing.device = "cpu"
    expected = seeded(3, lambda: theirs(batch.clone()))
    assert torch.equal(seeded(3, lambda: erasing(batch.clone())), expected)
    changed = [not torch.equal(a, b) for a, b in zip(expected, batch, strict=True)]
    assert 0 < sum(changed) < 8
    assert build_erasing(AugmentConfig()) is None


class Spy(torch.nn.Module):
    """Remembers the images it was shown."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images.clone()
        return torch.zeros(len(images), 10, requires_grad=True)


def test_only_training_erases() -> None:
    task = Classification(VisionConfig(augment=AugmentConfig(erase=1.0, erase_mode="const")))
    pixels = torch.randint(1, 256, (6, 1, 8, 8), dtype=torch.uint8)
    model, cpu, labels = Spy(), torch.device("cpu"), torch.arange(6)
    batch = Batch(pixels, labels)
    normalised = task.move(batch, cpu).images
    assert torch.equal(normalised, Normalize(task.config.data)(pixels))
    for show in (task.evaluate, task.logits):
        show(model, task.move(batch, cpu))
        assert torch.equal(model.seen, normalised)
    task.loss(model, task.move(batch, cpu)).backward()
    erased = model.seen != normalised
    assert erased.flatten(1).any(1).all()
    assert (model.seen[erased] == 0).all()  # the mean: erased after the images were normalised


def test_loss_on_meta_tensors() -> None:
    augment = AugmentConfig(erase=1.0, mixup=0.2, cutmix=1.0)
    task = Classification(VisionConfig(augment=augment))
    batch = Batch(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    meta = torch.device("meta")
    loss = task.loss(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).to(meta), task.move(batch, meta)
    )
    assert loss.device == meta


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_move_gives_the_layout_of_the_model(layout: str) -> None:
    task = Classification(VisionConfig(channels_last=layout == "channels_last", data=DataConfig(channels=1)))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    images = task.move(Batch(pixels, torch.zeros(2)), torch.device("cpu")).images
    assert images.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    assert images.is_contiguous() == (layout == "contiguous")


def encoded_split(sizes: list[tuple[int, int]]) -> Split:
    files = [encode(picture(seed, size)) for seed, size in enumerate(sizes)]
    return Split(range(len(files)), [0] * len(files), files.__getitem__, "file {}".format)


def test_draft_decodes_large_images_at_a_fraction() -> None:
    split = encoded_split([(128, 96), (50, 40)])
    assert [split.open(i).size for i in (0, 1)] == [(128, 96), (50, 40)]
    # half of 128 x 96: a quarter would be 32 x 24, with a side below 32
    assert [split.open(i, (32, 32)).size for i in (0, 1)] == [(64, 48), (50, 40)]
    config = VisionConfig(data=DataConfig(draft=True))
    assert Classification(config).train_data().draft == (8, 8)
    assert Classification(config).valid_data().draft is None  # measuring stays exact
    assert Classification(VisionConfig()).train_data().draft is None


def test_batches_do_not_depend_on_workers() -> None:
    data = Images(encoded_split([(60 + i, 50) for i in range(12)]), 3, train_transform(RGB, STRONG))
    batches = []
    for workers in (0, 1, 2):
        sampler = TrainingSampler(shuffled(len(data), 4, seed=5))
        sampler.start_at(1)
        batches.append([images for images, _ in make_loader(data, sampler, 5, workers)])
    assert all(images.dtype == torch.uint8 for images in batches[0])
    for others in batches[1:]:
        assert all(map(torch.equal, batches[0], others))


def test_grey_and_palette_images_are_converted() -> None:
    split = Split([picture(mode=mode) for mode in ("L", "RGBA", "P", "CMYK")], [0] * 4, lambda image: image)
    loader = make_loader(Images(split, 3, evaluation_transform(RGB)), keyed(dealt(4, 4)), None, 0)
    ((images, _),) = list(loader)
    assert (images.shape, images.dtype) == ((4, 3, 32, 32), torch.uint8)
