"""The views that text to 3D trains and is measured on."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from repro.train.seeding import Draws
from vision.threed.cameras import Cameras, drawn, ring
from vision.threed.config import TextTo3DConfig
from vision.threed.render import Light
from vision.threed.shapes import render

TEST_TURN = 0.5  # of the steps between validation views: the test views are between them


class Batch(NamedTuple):
    """Views of the scene.

    numbers: of the samples, in the order of training [views], int64.
    cameras: of each.
    light: of each.
    background: colours [views, 3]; NaN: the scene's own.
    truth: what there is to see, see shapes.render [views, 4, size, size]; [views, 0] if that is unknown.
    last: whether it is a view of the test, [views], bool.
    """

    numbers: Tensor
    cameras: Cameras
    light: Light
    background: Tensor
    truth: Tensor
    last: Tensor


class Views(Dataset[Batch]):
    """The random views of a whole run, in the order of training."""

    def __init__(self, config: TextTo3DConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        assert self.config.steps is not None
        return self.config.steps * self.config.batch_size

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws) -> Batch:
        """Return the views with these numbers."""
        view, n = self.config.view, len(indices)
        cameras = drawn(draws, view.elevation, view.radius, view.fov)
        random = torch.from_numpy(draws(range(4, 13))).float()
        low, high = view.ambient
        near = cameras.position + torch.special.ndtri(random[:, :3].clamp(1e-6, 1 - 1e-6))  # of the camera
        light = Light(
            F.normalize(near, dim=-1),
            low + (high - low) * random[:, 3],
            random[:, 4] < view.textureless,
        )
        own = random[:, 5:6] >= view.random_background
        background = random[:, 6:9].masked_fill(own, torch.nan)
        numbers = torch.from_numpy(indices)
        return Batch(numbers, cameras, light, background, torch.empty(n, 0), torch.zeros(n, dtype=torch.bool))


class Ring(Dataset[Batch]):
    """Views at equal steps around the object, which training does not use."""

    def __init__(self, config: TextTo3DConfig, known: bool, last: bool) -> None:
        self.config, self.last = config, last
        measure, view = config.measure, config.view
        self.cameras = ring(measure.views, measure.elevation, *view.middle)
        if last:
            step = 2 * torch.pi / measure.views
            self.cameras = self.cameras._replace(azimuth=self.cameras.azimuth + TEST_TURN * step)
        self.truth = torch.empty(measure.views, 0)
        if known:
            self.truth = render([config.prompt] * measure.views, self.cameras, view.size)

    def __len__(self) -> int:
        return self.config.measure.views

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws) -> Batch:
        """Return the views with these numbers, without shading."""
        numbers = torch.from_numpy(indices)
        cameras = Cameras(*(field[numbers] for field in self.cameras))
        ones = torch.ones(len(numbers))
        light = Light(cameras.position, ones, ones < 0)
        background = torch.full((len(numbers), 3), torch.nan)
        return Batch(numbers, cameras, light, background, self.truth[numbers], (ones > 0) & self.last)
