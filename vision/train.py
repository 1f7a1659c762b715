"""Train an image classifier: `python vision/train.py optimizer=adan [data=... model=... key=value ...]`.

Without further words it trains a small ViT on scikit-learn's digits in about a minute on two CPU cores.
"""

import difflib
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

from repro import checkpoint
from repro.cli import entry_point
from repro.data import Sized
from repro.errors import UserError
from repro.loop import train
from repro.run import run_name
from repro.task import Task
from vision.config import VisionConfig
from vision.data import Images, Normalize, build_erasing, read, test_transform, train_transform


class Classification(Task):
    """Images to classes, measured by top-1 accuracy in percent."""

    name = "vision"
    samples = "images"
    metric = "test_accuracy"

    def __init__(self, config: VisionConfig) -> None:
        self.config = config
        self.model_name = config.model.name
        self.train_split, self.test_split, classes = read(config.data)
        self.classes = len(classes)
        augment = config.augment
        self.normalize, self.erasing = Normalize(config.data), build_erasing(augment)
        self.mixup: Mixup | None = None
        if config.mixes:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mixup_prob,
                switch_prob=augment.mixup_switch_prob,
                mode=augment.mixup_mode,
                label_smoothing=augment.label_smoothing,
                num_classes=self.classes,
            )

    def train_data(self) -> Sized:
        """Return the augmented training images."""
        data = self.config.data
        transform = train_transform(data, self.config.augment)
        return Images(self.train_split, data.channels, transform, data.size if data.draft else None)

    def test_data(self) -> Sized:
        """Return the test images."""
        return Images(self.test_split, self.config.data.channels, test_transform(self.config.data))

    def build_model(self) -> nn.Module:
        """Return the timm model with its initial weights."""
        config, data = self.config.model, self.config.data
        if not timm.is_model(config.name):
            close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() shows all"
            raise UserError(f"model.name={config.name}: timm has no such model; {hint}")
        try:
            model: nn.Module = timm.create_model(
                config.name,
                pretrained=config.pretrained,
                num_classes=self.classes,
                in_chans=data.channels,
                drop_path_rate=config.drop_path,
                **config.kwargs,
            )
        except (TypeError, ValueError, AssertionError) as error:  # timm says no in all three ways
            raise UserError(f"model.name={config.name}, model.kwargs={config.kwargs}: {error}") from error
        if config.checkpoint is not None:
            checkpoint.load_weights(model, config.name, config.checkpoint)
        return model.to(memory_format=torch.channels_last) if self.config.channels_last else model

    def move(self, batch: Any, device: torch.device) -> Any:
        """Return normalised images, in the model's memory format, and labels, on the device."""
        images, labels = super().move(batch, device)
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return self.normalize(images, layout), labels

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross entropy, over classes or per class, of erased and mixed images."""
        images, labels = batch
        if self.erasing is not None:
            self.erasing.device = images.device
            images = self.erasing(images)
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        else:
            targets = mixup_target(labels, self.classes, smoothing=self.config.augment.label_smoothing)
        logits = model(images).float()
        if self.config.loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, targets)
        return F.cross_entropy(logits, targets)

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the class scores of the images as they are, not mixed."""
        images, _ = batch
        scores: Tensor = model(images)
        return scores

    def measure(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], int]:
        """Return the sums of the cross entropy and of correct answers (in percent) over a batch."""
        images, labels = batch
        logits = model(images).float()
        correct = (logits.argmax(1) == labels).sum()
        return {
            "test_loss": F.cross_entropy(logits, labels, reduction="sum"),
            self.metric: 100 * correct,
        }, len(labels)


@entry_point("vision", VisionConfig)
def main(config: VisionConfig, overrides: list[str]) -> None:
    """Train as the command line says."""
    config.check()
    train(Classification(config), config, config.run.name or run_name(overrides))


if __name__ == "__main__":
    sys.exit(main())
