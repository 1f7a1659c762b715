"""Configuration of vision/train.py."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from repro.config import TrainConfig, one_of
from repro.errors import UserError


@dataclass
class ModelConfig:
    """A timm model."""

    name: str = "vit_tiny_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
    drop_path: float = 0.0
    pretrained: bool = False  # timm's weights from the Hugging Face hub
    checkpoint: str | None = None  # initial weights: a run folder, a checkpoint folder or a .safetensors file


@dataclass
class DataConfig:
    """A data set and the shape its images are brought to."""

    name: str = "digits"  # digits | fashion_mnist | cifar10 | imagefolder | hfds
    root: str | None = None  # folder; for hfds also a name on the Hugging Face hub
    size: int = 8  # pixels, of a side
    channels: int = 1
    classes: int | None = None  # None: as many as the data set has
    mean: list[float] = field(default_factory=lambda: [0.5])  # per channel, of pixels in 0..1
    std: list[float] = field(default_factory=lambda: [0.5])
    crop_pct: float = 1.0  # of the side, kept by the central crop in evaluation
    interpolation: str = "bicubic"  # in evaluation
    train_split: str = "train"  # hfds only, like all below
    test_split: str = "test"
    image_column: str = "image"
    label_column: str = "label"


@dataclass
class AugmentConfig:
    """Random changes to training images and their labels, by timm."""

    crop: str = "resized"  # resized (random resized crop) | padded (pad, then random crop) | none
    padding: int = 0  # pixels, for crop=padded
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # of the area, for crop=resized
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    interpolation: str = "random"
    hflip: float = 0.5  # probability
    color_jitter: float = 0.4  # not used together with auto_augment, as in timm
    auto_augment: str | None = None  # e.g. rand-m7-mstd0.5-inc1
    erase: float = 0.0  # probability of random erasing
    erase_mode: str = "pixel"  # const | rand | pixel
    erase_count: int = 1
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"  # batch | pair | elem
    label_smoothing: float = 0.0


@dataclass
class VisionConfig(TrainConfig):
    """Everything vision/train.py can be told."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: str = "ce"  # ce | bce
    channels_last: bool = False

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        one_of("loss", self.loss, ("ce", "bce"))
        one_of("augment.crop", self.augment.crop, ("resized", "padded", "none"))
        one_of("augment.mixup_mode", self.augment.mixup_mode, ("batch", "pair", "elem"))
        if not 0 <= self.augment.label_smoothing < 1:
            raise UserError(f"augment.label_smoothing={self.augment.label_smoothing}: must lie in [0, 1)")
        for key in ("mean", "std"):
            values = getattr(self.data, key)
            if len(values) != self.data.channels:
                raise UserError(f"data.{key}={values}: must have data.channels={self.data.channels} numbers")
        if self.mixes and self.batch_size // self.accumulate % 2:
            raise UserError(f"batch_size={self.batch_size}: mixup and cutmix need an even micro-batch")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0


def patch_size(size: int, least: int) -> int:
    """Return the side of a patch in pixels: an eighth of an image's, or a fourth, a half, all of it.

    The least of them that has `least` pixels. In configurations: `${patch:${data.size},LEAST}`.

    Raises:
        UserError: the images are smaller than that.
    """
    sides = [size // patches for patches in (8, 4, 2, 1) if size // patches >= least]
    if not sides:
        raise UserError(f"data.size={size}: must be at least {least}")
    return sides[0]


def by_data(value: Any, exceptions: dict[str, Any], _root_: DictConfig) -> Any:
    """Return `value`, or the exception for data.name. In configurations: `${by_data:VALUE,{NAME: VALUE}}`."""
    return exceptions.get(_root_.data.name, value)


OmegaConf.register_new_resolver("patch", patch_size, replace=True)
OmegaConf.register_new_resolver("by_data", by_data, replace=True)
ConfigStore.instance().store(name="vision_schema", node=VisionConfig)
