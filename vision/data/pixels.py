"""Images whose pixels lie in memory, shifted and mirrored in whole batches."""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from repro.train.seeding import Draws
from vision.config import AugmentConfig, DataConfig
from vision.data.images import Images, Split, Transform

TOP, LEFT, MIRRORED = range(3)  # columns of the draws


class Pixels(Images):
    """Grey images of the final size, in memory: Images that also come in whole batches.

    Args:
        split: its items are pixels, uint8 [images, size, size].
        transform: does the same to one image, with the global generators.
        padding: width of the black edge around an image, from which a random window of its size is taken.
        hflip: probability that it is mirrored.
    """

    def __init__(self, split: Split, transform: Transform, padding: int = 0, hflip: float = 0.0) -> None:
        super().__init__(split, 1, transform, random=padding > 0 or hflip > 0)
        self.padding, self.hflip, self.labels = padding, hflip, np.array(split.labels)
        edge, (side, _) = (padding, padding), np.shape(split.items)[1:]
        padded = np.pad(split.items, ((0, 0), edge, edge)) if padding else np.asarray(split.items)
        self.windows = sliding_window_view(padded, (side, side), (1, 2))  # [images, tops, lefts, size, size]

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the images at `indices` [batch], uint8 [batch, 1, size, size], and their classes [batch]."""
        top = left = np.zeros_like(indices)
        if self.padding:
            top, left = (draws([TOP, LEFT]) * (2 * self.padding + 1)).astype(np.int64).T
        images = self.windows[indices, top, left]
        if self.hflip:
            mirrored = draws([MIRRORED])[:, 0] < self.hflip
            images[mirrored] = images[mirrored, :, ::-1]
        return torch.from_numpy(images)[:, None], torch.from_numpy(self.labels[indices])


def in_memory(split: Split, data: DataConfig) -> bool:
    """Tell whether a split has the pixels of grey images of the final size."""
    return split.decoded and data.channels == 1 and np.shape(split.items)[1:] == (data.size, data.size)


def only_shifts(augment: AugmentConfig) -> bool:
    """Tell whether the augmentation shifts and mirrors images, and no more."""
    return augment.crop != "resized" and augment.color_jitter == 0 and augment.auto_augment is None
