"""Image transforms: cropping and augmentation in the workers, the rest on the device.

Workers return uint8, a quarter of the bytes of float32. The device converts a batch to float, normalises it
and, in training, erases, in the order of timm's prefetcher in the published runs.
"""

from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize

from repro.errors import UserError
from vision.config import AugmentConfig, DataConfig
from vision.data.images import Transform


def train_transform(data: DataConfig, augment: AugmentConfig) -> Transform:
    """Return timm's training transform to uint8, after a padded crop if set, which timm lacks.

    Raises:
        UserError: timm knows no such augmentation.
    """
    whole = augment.crop != "resized"
    create: Any = create_transform  # its annotations are too narrow
    try:
        timm_transform = create(
            (data.channels, data.size, data.size),
            is_training=True,
            scale=(1.0, 1.0) if whole else tuple(augment.scale),
            ratio=(1.0, 1.0) if whole else tuple(augment.ratio),
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            mean=tuple(data.mean),  # RandAugment's fill colour
            normalize=False,
        )
    except (AssertionError, KeyError, ValueError) as error:
        chosen = f"auto_augment={augment.auto_augment}, augment.interpolation={augment.interpolation}"
        raise UserError(f"augment.{chosen}: timm cannot make it: {error or 'see timm.data'}") from error
    steps = timm_transform.transforms[:-1]  # `to_uint8` is a faster last step
    if augment.crop == "padded":
        side = (data.size, data.size)
        steps = [Resize(side, InterpolationMode.BICUBIC), RandomCrop(side, padding=augment.padding), *steps]
    return Compose([*steps, to_uint8])


def is_random(augment: AugmentConfig) -> bool:
    """Tell whether train_transform returns a random transform."""
    drawn = augment.crop != "none" or augment.interpolation == "random" or augment.auto_augment is not None
    return drawn or augment.hflip > 0 or augment.color_jitter > 0


def test_transform(data: DataConfig) -> Transform:
    """Return timm's evaluation transform to uint8: resize and central crop."""
    timm_transform = create_transform(
        (data.channels, data.size, data.size),
        interpolation=data.interpolation,
        crop_pct=data.crop_pct,
        normalize=False,
    )
    return Compose([*timm_transform.transforms[:-1], to_uint8])


def to_uint8(image: Image.Image) -> Tensor:
    """Return the pixels as a contiguous uint8 tensor [channels, height, width].

    Copying band by band takes a third of the time of torchvision's pil_to_tensor and of stacking its result.
    """
    bands = b"".join(image.tobytes("raw", band) for band in image.getbands())
    width, height = image.size
    return torch.frombuffer(bytearray(bands), dtype=torch.uint8).view(-1, height, width)


class Normalize:
    """Normalises uint8 images to float32 by the mean and standard deviation of each channel.

    The result is bit-identical to that of torchvision's ToTensor and Normalize.
    """

    def __init__(self, data: DataConfig) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))

    def __call__(
        self, images: Tensor, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Tensor:
        """Return uint8 images [batch, channels, height, width] normalised, on their device."""
        if self.mean.device != images.device:  # only once, as all batches are on one device
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        floats = images.to(torch.float32, memory_format=memory_format)
        return floats.div_(255).sub_(self.mean).div_(self.std)


def build_erasing(augment: AugmentConfig) -> RandomErasing | None:
    """Return timm's random erasing of a normalised batch (in place, image by image), or None if it is off.

    It draws from Python's generator and torch's generator of its `device`: set that to the batch's device.
    """
    if augment.erase == 0:
        return None
    return RandomErasing(augment.erase, mode=augment.erase_mode, max_count=augment.erase_count)
