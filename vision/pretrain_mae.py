"""Pre-train a masked autoencoder on images without labels.

    python vision/pretrain_mae.py optimizer=adamw model.mask_ratio=0.6
    python vision/pretrain_mae.py data=imagefolder data.root=PATH model=vit_base amp=bf16

Without arguments it trains a small one on scikit-learn's digits, in about a minute on two CPU cores. The run
folder gets a picture of reconstructed images, and vision/train.py can start from it (model.checkpoint).
"""

import sys

from repro.train.command import command
from vision.config import PretrainConfig

main = command("pretrain_mae", PretrainConfig, "vision.pretrain_mae", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from repro.interop import read_weights
from repro.train.data import Maker, Sized, maker
from repro.train.seeding import Draws
from repro.train.task import Task
from vision.data import Normalize, open_sets
from vision.data.sets import Pairs
from vision.mae import MaskedAutoencoder
from vision.models import check_size, create, load

PICTURE = "reconstructions.png"
SHOWN = 8  # images in the picture
ROWS = ("original", "masked", "reconstruction")


class Batch(NamedTuple):
    """Images and their numbers.

    images: [batch, channels, size, size]; uint8 as collated, normalised float32 once moved.
    indices: of the images in their set [batch], int64.
    """

    images: Tensor
    indices: Tensor


class Numbered(Dataset[tuple[Tensor, int]]):
    """Pairs of an image, uint8 [channels, size, size], and its index."""

    def __init__(self, images: Pairs) -> None:
        self.images = images
        self.whole_batch = _numbered(maker(images))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index][0], index


def _numbered(make: Maker | None) -> Maker | None:
    """Return the function that makes whole batches, if there is one, with indices as labels."""
    if make is None:
        return None

    def batch(indices: NDArray[np.int64], draws: Draws) -> tuple[Tensor, Tensor]:
        return make(indices, draws)[0], torch.from_numpy(indices)

    return batch


class Pretraining(Task[Batch]):
    """Reconstruction of images from some of their patches, measured on test images with fixed masks."""

    name = "pretrain_mae"
    schema = PretrainConfig
    products = (PICTURE,)

    def __init__(self, config: PretrainConfig, synthetic: bool = False) -> None:
        self.config, self.synthetic = config, synthetic
        self.model_name = f"MAE {config.model.name}"
        if not synthetic:
            self.sets = open_sets(config.data, config.augment)
            self.metric = f"{self.sets.measured}_loss"
        self.normalize = Normalize(config.data)

    def train_data(self) -> Sized:
        """Return the augmented training images, with their indices."""
        return Numbered(self.sets.train)

    def valid_data(self) -> Sized:
        """Return the test images, or with data.valid_share the held-out ones, with their indices."""
        return Numbered(self.sets.valid)

    def test_data(self) -> Sized | None:
        """Return the test images and their indices with data.valid_share, None without."""
        return None if self.sets.test is None else Numbered(self.sets.test)

    def build_model(self) -> MaskedAutoencoder:
        """Return the autoencoder with its initial weights."""
        config = self.config.model
        encoder = create(config.name, config.kwargs, num_classes=0, in_chans=self.config.data.channels)
        model = MaskedAutoencoder(
            encoder, **asdict(config.decoder), mask_ratio=config.mask_ratio, norm_pixels=config.norm_pixels
        )
        if not self.synthetic:
            check_size(model, config.name, config.kwargs, self.config.data)
            if config.checkpoint is not None:
                load(model, read_weights(Path(config.checkpoint).expanduser())[0], config.checkpoint)
        model.set_grad_checkpointing(config.grad_checkpointing)
        return model

    def collate(self, samples: list[tuple[Tensor, int]]) -> Batch:
        """Return images as uint8, and indices."""
        return Batch(*super().collate(samples))

    def move(self, batch: Batch, device: torch.device) -> Batch:
        """Return the batch on the device, its images normalised."""
        images, indices = super().move(batch, device)
        return Batch(self.normalize(images), indices)

    def synthetic_batch(self, n: int) -> Batch:
        """Return n normalised random images."""
        data = self.config.data
        return Batch(torch.randn(n, data.channels, data.size, data.size), torch.arange(n))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error (a scalar) over hidden patches; each call draws a new mask."""
        return model(batch.images).mean()

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the sum of the images' errors, each with the mask of its index."""
        patches = cast(MaskedAutoencoder, model).num_patches
        errors = model(batch.images, noise(batch.indices, patches))
        return {self.metric: errors.sum()}, len(errors)

    @torch.no_grad()
    def finish(self, folder: Path) -> None:
        """Save a picture in the run folder: test images, what was seen of them, and the reconstructions."""
        model = self.build_model().eval()
        load(model, read_weights(folder)[0], str(folder))
        data, config = self.valid_data(), self.config.data
        indices = torch.arange(min(SHOWN, len(data)))
        images = self.normalize(torch.stack([data[index][0] for index in indices.tolist()]))
        filled, masked = model.reconstruct(images, noise(indices, model.num_patches))
        rows = torch.stack([images, masked, filled])
        rows = rows * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None]
        draw(
            dict(zip(ROWS, rows.clamp(0, 1), strict=True)), 1 - self.config.model.mask_ratio, folder / PICTURE
        )


def draw(rows: Mapping[str, Tensor], seen: float, path: Path) -> None:
    """Write a picture of ROWS, each [images, channels, size, size] in 0..1.

    Args:
        seen: share of the patches that the autoencoder was shown.
    """
    from repro.plots import save_pictures  # matplotlib takes a second, and is not needed to train

    colours = {label: row.expand(-1, 3, -1, -1).movedim(1, -1) for label, row in rows.items()}
    save_pictures(colours, path, f"What does the autoencoder make of {100 * seen:.0f} % of the patches?")


def noise(indices: Tensor, size: int) -> Tensor:
    """Return noise [batch, size] that depends on the indices [batch] alone."""
    rows = [torch.rand(size, generator=torch.Generator().manual_seed(index)) for index in indices.tolist()]
    return torch.stack(rows).to(indices.device)


RECIPE = Pretraining  # see repro.ledger.recipes
