"""Train an image classifier.

    python vision/train.py optimizer=adamw epochs=10
    python vision/train.py data=imagefolder data.root=PATH model=vit_small augment=strong amp=bf16

Without arguments it trains a small ViT on scikit-learn's digits, in half a minute on two CPU cores.
"""

import sys

from repro.train.command import command
from vision.config import VisionConfig

main = command("vision", VisionConfig, "vision.train", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor, nn

from repro.train.data import Sized
from repro.train.task import Task
from vision.data import Normalize, build_erasing, open_sets
from vision.models import build, build_random, check_size

IMAGENET_CLASSES = 1000


class Batch(NamedTuple):
    """Images and their classes.

    images: [batch, channels, size, size]; uint8 as collated, normalised float32 once moved.
    labels: class indices [batch], int64.
    """

    images: Tensor
    labels: Tensor


class Classification(Task[Batch]):
    """Image classification, measured by top-1 accuracy in percent."""

    name = "vision"
    schema = VisionConfig
    classes: int
    family = "other"

    def __init__(self, config: VisionConfig, synthetic: bool = False) -> None:
        self.config, self.synthetic = config, synthetic
        self.model_name = config.model.name
        self.classes = config.data.classes or IMAGENET_CLASSES
        if not synthetic:
            self.sets = open_sets(config.data, config.augment)
            self.classes = len(self.sets.classes)
            self.metric = f"{self.sets.measured}_accuracy"
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
        return self.sets.train

    def valid_data(self) -> Sized:
        """Return the test images, or with data.valid_share the held-out training images."""
        return self.sets.valid

    def test_data(self) -> Sized | None:
        """Return the test images with data.valid_share, None without."""
        return self.sets.test

    def build_model(self) -> nn.Module:
        """Return the model with its initial weights."""
        config = self.config.model
        if self.synthetic:
            model = build_random(config, self.config.data, self.classes)
        else:
            model = build(config, self.config.data, self.classes)
            check_size(model, config.name, config.kwargs, self.config.data)
        return model.to(memory_format=torch.channels_last) if self.config.channels_last else model

    def collate(self, samples: list[tuple[Tensor, int]]) -> Batch:
        """Return images as uint8, and labels."""
        return Batch(*super().collate(samples))

    def move(self, batch: Batch, device: torch.device) -> Batch:
        """Return the batch on the device, its images normalised and in the model's memory format."""
        images, labels = super().move(batch, device)
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return Batch(self.normalize(images, layout), labels)

    def synthetic_batch(self, n: int) -> Batch:
        """Return n normalised random images with random labels."""
        data = self.config.data
        return Batch(torch.randn(n, data.channels, data.size, data.size), torch.randint(self.classes, (n,)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross entropy (a scalar), over classes or per class, of erased and mixed images."""
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

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the class scores [batch, classes] of the unmixed images."""
        return model(batch.images)

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the sums of the cross entropy and of correct answers (in percent) over a batch.

        With more than five classes, also return the sum of labels among the five highest scores.
        """
        labels = batch.labels
        logits = model(batch.images).float()
        sums = {
            f"{self.sets.measured}_loss": F.cross_entropy(logits, labels, reduction="sum"),
            self.metric: 100 * (logits.argmax(1) == labels).sum(),
        }
        if self.classes > 5:
            sums[f"{self.sets.measured}_top5"] = 100 * (logits.topk(5).indices == labels[:, None]).sum()
        return sums, len(labels)


RECIPE = Classification  # see repro.ledger.recipes
