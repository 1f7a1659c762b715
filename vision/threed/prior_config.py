"""Configuration of vision/train_prior.py."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.train.config import TrainConfig, at_least
from vision.threed.config import check_range

GROUPS = 8  # of the UNet's normalisation


@dataclass
class NetConfig:
    """A UNet on pixels, and the encoder of what it is told in words."""

    # of the UNet's levels, each of half the side of the one before; only the last attends to the text
    channels: list[int] = field(default_factory=lambda: [32, 64, 64])
    layers: int = 1  # residual blocks on the way down in each level; one more on the way up
    heads: int = 4  # of all attention
    text_width: int = 64  # of the encoder of words
    text_layers: int = 0  # 0: the words without their order, which is all that these captions need
    text_tokens: int = 16  # of a text at most, with one before and one after it


@dataclass
class PicturesConfig:
    """Pictures of every caption by random cameras, rendered before the first step."""

    size: int = 16  # side in pixels
    views: int = 32  # of each caption
    valid_views: int = 2  # others, to measure the model by
    elevation: list[float] = field(default_factory=lambda: [-10.0, 60.0])  # range in degrees
    radius: list[float] = field(default_factory=lambda: [3.0, 3.0])  # range of the distance from the origin
    fov: list[float] = field(default_factory=lambda: [40.0, 40.0])  # range of the angle of view, in degrees


@dataclass
class TrainPriorConfig(TrainConfig):
    """All settings of vision/train_prior.py."""

    model: NetConfig = field(default_factory=NetConfig)
    data: PicturesConfig = field(default_factory=PicturesConfig)
    caption_dropout: float = 0.1  # share of the pictures of which the model is told nothing, for guidance
    view_dropout: float = 0.1  # share of the pictures of which it is told the caption alone
    guidance: float = 2.0  # of the samples in the picture at the end
    sample_steps: int = 50  # of DDIM, for these

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        at_least(1, "model.", self.model, "layers", "heads")
        at_least(0, "model.", self.model, "text_layers")
        at_least(1, "data.", self.data, "views", "valid_views")
        at_least(1, "", self, "sample_steps")
        at_least(12, "model.", self.model, "text_tokens")  # captions with words of the view have up to 9
        channels, heads = self.model.channels, self.model.heads
        if len(channels) < 2 or any(width < 1 or width % GROUPS for width in channels):
            raise UserError(f"model.channels={channels}: must be two or more multiples of {GROUPS}")
        for key, width in (("channels", channels[-1]), ("text_width", self.model.text_width)):
            if width < 1 or width % heads:
                raise UserError(f"model.heads={heads}: must divide {width}, the width of model.{key}")
        if (size := self.data.size) < 1 or size % 2 ** (len(channels) - 1):
            halvings = len(channels) - 1
            raise UserError(f"data.size={size}: must be divisible by {2**halvings}, for {halvings} halvings")
        limits = {"elevation": (-90.0, 90.0), "radius": (1.5, float("inf")), "fov": (1.0, 120.0)}
        for key, (least, most) in limits.items():
            check_range(f"data.{key}", getattr(self.data, key), least, most)
        shares = self.caption_dropout, self.view_dropout
        if min(shares) < 0 or sum(shares) > 1:
            names = f"caption_dropout={shares[0]}, view_dropout={shares[1]}"
            raise UserError(f"{names}: are shares of the pictures, so at least 0, and at most 1 together")


ConfigStore.instance().store(name="train_prior_schema", node=TrainPriorConfig)
