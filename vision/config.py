"""Configuration of vision/train.py and vision/pretrain_mae.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.train.config import TrainConfig, one_of
from vision import resolvers  # noqa: F401 (registers them with OmegaConf)
from vision.threed import config, prior_config  # noqa: F401 (they register their schemas)

SCRATCH = "scratch"
SETS = ("digits", "fashion_mnist", "cifar10", "imagefolder", "webdataset", "hfds")


@dataclass
class ModelConfig:
    """A timm model."""

    name: str = "vit_tiny_patch16_224"  # any model of timm
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
    drop_path: float = 0.0  # probability of leaving out a residual block (stochastic depth)
    pretrained: bool = False  # start from timm's weights on the Hugging Face hub; the name needs its tag
    # initial weights: a run folder, or any file that repro.interop reads; scratch: random ones
    checkpoint: str | None = None
    head_std: float | None = None  # standard deviation of a new head, with zero bias; null: timm's own
    probe: bool = False  # train only a linear head, on normalised features of the frozen model
    grad_checkpointing: bool = False  # recompute activations in the backward pass, to save memory


@dataclass
class DataConfig:
    """A data set, and the shape of the images made from it."""

    name: str = "digits"  # digits | fashion_mnist | cifar10 | imagefolder | webdataset | hfds
    root: str | None = None  # folder; for hfds also a name on the Hugging Face hub
    # share of the training images held out for validation; the test images are then used once, at the end
    valid_share: float = 0.0
    size: int = 8  # side in pixels
    channels: int = 1  # 1 (grey) | 3 (colour)
    classes: int | None = None  # null: as many as the data set has
    mean: list[float] = field(default_factory=lambda: [0.5])  # per channel, of pixels in 0..1
    std: list[float] = field(default_factory=lambda: [0.5])  # the same: standard deviation
    crop_pct: float = 1.0  # share of the side that the central crop keeps in evaluation
    interpolation: str = "bicubic"  # in evaluation
    draft: bool = False  # decode large training JPEGs at a fraction of their size: faster, different pixels
    train_split: str = "train"  # hfds only, like all below: name of the training images
    test_split: str = "test"  # name of the test images
    image_column: str = "image"  # name of the column
    label_column: str = "label"  # name of the column


@dataclass
class AugmentConfig:
    """Random changes to training images and their labels, by timm."""

    crop: str = "resized"  # resized (random resized crop) | padded (pad, then random crop) | none
    padding: int = 0  # pixels, for crop=padded
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # share of the area, for crop=resized
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # of the sides, the same
    interpolation: str = "random"  # bilinear | bicubic | random (one of the two)
    hflip: float = 0.5  # probability of a horizontal flip
    # largest change of brightness, contrast and saturation; not used together with auto_augment, as in timm
    color_jitter: float = 0.4
    auto_augment: str | None = None  # e.g. rand-m7-mstd0.5-inc1
    erase: float = 0.0  # probability of random erasing
    erase_mode: str = "pixel"  # const | rand | pixel
    erase_count: int = 1  # rectangles erased in an image
    mixup: float = 0.0  # alpha; 0: none
    cutmix: float = 0.0  # alpha; 0: none
    mixup_prob: float = 1.0  # probability of mixup or cutmix
    mixup_switch_prob: float = 0.5  # probability of cutmix, if both are on
    mixup_mode: str = "batch"  # batch | pair | elem
    label_smoothing: float = 0.0  # share of the target that all classes share


@dataclass
class VisionConfig(TrainConfig):
    """All settings of vision/train.py."""

    options: ClassVar = {"model": ("convnext_*", "resnet*", "swin_*", "vit_*"), "data": SETS}
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: str = "ce"  # ce (cross entropy) | bce (binary cross entropy, per class)
    channels_last: bool = False  # memory format of images and weights; faster on GPUs

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        one_of("loss", self.loss, ("ce", "bce"))
        _check_images(self.data, self.augment)
        one_of("augment.mixup_mode", self.augment.mixup_mode, ("batch", "pair", "elem"))
        one_of("augment.erase_mode", self.augment.erase_mode, ("const", "rand", "pixel"))
        if not 0 <= self.augment.erase <= 1:
            raise UserError(f"augment.erase={self.augment.erase}: is a probability, so in [0, 1]")
        if not 0 <= self.augment.label_smoothing < 1:
            raise UserError(f"augment.label_smoothing={self.augment.label_smoothing}: must lie in [0, 1)")
        self._check_model()
        self.micro_batch(1)

    def micro_batch(self, processes: int) -> int:
        """Return the micro-batch size of one process; errors are those of TrainConfig, or mixing's."""
        size = super().micro_batch(processes)
        if self.mixes and size % 2:
            raise UserError(
                f"batch_size={self.batch_size}: mixup and cutmix need an even micro-batch, not {size}; "
                "lower gradient_accumulation_steps, or set augment.mixup=0 augment.cutmix=0"
            )
        return size

    def _check_model(self) -> None:
        """Check the source of the initial weights, before anything is built or read."""
        model, row = self.model, self.row
        if model.head_std is not None and not model.head_std > 0:
            raise UserError(f"model.head_std={model.head_std}: must be above 0, or null for timm's own")
        if model.probe and (model.drop_path or model.grad_checkpointing):
            raise UserError("model.probe=true: also set model.drop_path=0, model.grad_checkpointing=false")
        if model.pretrained and model.checkpoint is not None:
            raise UserError(f"model.checkpoint={model.checkpoint}: set model.pretrained=false as well")
        after = None if row is None else row.after
        cure = "name a file or a run's folder with weights"
        if row is not None and after is not None:
            scale = " --scale proxy" if row.scale == "proxy" else ""
            cure = (
                f"{row.name} starts from {after}, `python scripts/reproduce.py {after}{scale}`: "
                "name its run's folder, or a public checkpoint"
            )
        if model.checkpoint is None and not model.pretrained and (after is not None or model.probe):
            raise UserError(f"model.checkpoint is not set: {cure}; {SCRATCH} starts from none")
        if model.checkpoint not in (None, SCRATCH) and not Path(model.checkpoint).expanduser().exists():
            raise UserError(f"model.checkpoint={model.checkpoint}: no such file or folder; {cure}")

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0


@dataclass
class DecoderConfig:
    """The decoder of a masked autoencoder."""

    embed_dim: int = 512  # width
    depth: int = 8  # number of blocks
    num_heads: int = 16  # of attention


@dataclass
class AutoencoderConfig:
    """A masked autoencoder around a timm model."""

    name: str = "vit_tiny_patch16_224"  # of the encoder
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    mask_ratio: float = 0.75  # share of the patches that are hidden
    norm_pixels: bool = True  # predict pixels normalised by the mean and standard deviation of their patch
    grad_checkpointing: bool = False  # recompute activations in the backward pass, to save memory
    checkpoint: str | None = None  # initial weights of the whole autoencoder, as for vision/train.py


@dataclass
class PretrainConfig(TrainConfig):
    """All settings of vision/pretrain_mae.py. It has no labels, so `label_smoothing` has no effect."""

    options: ClassVar = {"model": ("vit_*",), "data": SETS}
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        _check_images(self.data, self.augment)
        for key in ("mixup", "cutmix", "erase"):
            if getattr(self.augment, key) > 0:
                value = getattr(self.augment, key)
                raise UserError(f"augment.{key}={value}: must be 0; masked autoencoders do not mix or erase")


def _check_images(data: DataConfig, augment: AugmentConfig) -> None:
    if not 0 <= data.valid_share < 1:
        raise UserError(f"data.valid_share={data.valid_share}: is a share of the training images, in [0, 1)")
    one_of("augment.crop", augment.crop, ("resized", "padded", "none"))
    for key in ("mean", "std"):
        values = getattr(data, key)
        if len(values) != data.channels:
            raise UserError(f"data.{key}={values}: must have data.channels={data.channels} numbers")


ConfigStore.instance().store(name="vision_schema", node=VisionConfig)
ConfigStore.instance().store(name="pretrain_mae_schema", node=PretrainConfig)
