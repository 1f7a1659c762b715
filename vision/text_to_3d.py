"""Make a 3D object from text by score distillation.

    python vision/text_to_3d.py prompt="a red torus"
    python vision/text_to_3d.py -m prompt="a small blue cube" optimizer=adan,adamw

Without a text-to-image model, the prompt is an object of a small embedded world, "a [small] COLOUR SHAPE";
that takes a minute or two on two CPU cores. With prior.name=stable_diffusion it is any text. The run folder
gets the current rendering, and at the end a turntable, a mesh, and the curves of loss and measures. See
docs/text_to_3d.md.
"""

import sys

from repro.train.command import command
from vision.threed.config import TextTo3DConfig

main = command("text_to_3d", TextTo3DConfig, "vision.text_to_3d", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from repro.interop import read_weights
from repro.train.config import TrainConfig
from repro.train.data import Plan, Sized, in_order
from repro.train.seeding import Draws
from repro.train.task import Task
from vision.models import load
from vision.threed import products
from vision.threed.captions import CAPTIONS
from vision.threed.judge import build_judge, overlap
from vision.threed.prior import distil
from vision.threed.priors import build_prior
from vision.threed.render import Renderer, Rendering, entropy, roughness
from vision.threed.views import Batch, Ring, Views

if TYPE_CHECKING:
    from vision.threed.diffusion import Diffusion

OCCUPIED = 0.2  # share of the samples that are in occupied cells, for plans; it depends on the object


class TextTo3D(Task[Batch]):
    """A scene whose pictures a frozen model of images takes for those of a text.

    The best weights are those with the smallest distillation loss on held-out views; no truth has a part in
    that. Where it is known, the IoU of silhouettes and the PSNR of pictures are measured, and at the end the
    R-precision, see vision.threed.judge.
    """

    name = "text_to_3d"
    schema = TextTo3DConfig
    samples = "views"
    metric = "valid_loss"
    family = "other"
    # with Stable Diffusion: (2.27 + 1.61) / (1.13 + 1.61), as only the encoder has a backward pass; see
    # vision.threed.diffusion.paper_scale
    passes = 1.4
    products = products.FILES
    beside = ("prior",)

    def __init__(self, config: TextTo3DConfig, synthetic: bool = False) -> None:
        self.config, self.synthetic = config, synthetic
        self.model_name = f"{config.scene.name} scene, {config.prior.name} prior"
        self.folder: Path | None = None
        if not synthetic:
            products.check_packages()
            self.prior = build_prior(config)
            self.judge = build_judge(config, self.prior)
            self.known = config.prompt in CAPTIONS

    def train_data(self) -> Sized:
        """Return the random views of the run."""
        return Views(self.config)

    def valid_data(self) -> Sized:
        """Return views around the object."""
        return Ring(self.config, self.known, last=False)

    def test_data(self) -> Sized:
        """Return views between those."""
        return Ring(self.config, self.known, last=True)

    def plan(self, data: Sized, config: TrainConfig) -> Plan:
        """Return the views in their order: they are random already, and the epoch is the run."""
        return in_order(len(data), config.batch_size)

    def build_model(self) -> Renderer:
        """Return the scene with its renderer; a synthetic one with an untrained Stable Diffusion."""
        if not self.synthetic:
            return Renderer(self.config.scene)
        scene = self.config.scene
        left = OCCUPIED if scene.occupancy else 1.0
        model = Renderer(replace(scene, occupancy=0, samples=math.ceil(scene.samples * left)))
        if self.config.prior.name == "stable_diffusion":
            from vision.threed.diffusion import untrained

            model.prior = untrained().to(getattr(torch, self.config.prior.dtype))
        return model

    def initial(self) -> Renderer:
        """Return the scene with its renderer."""
        return Renderer(self.config.scene)

    def move(self, batch: Batch, device: torch.device) -> Batch:
        """Return the batch, and the prior, on the device."""
        if not (self.synthetic or self.config.prior.sequential_cpu_offload):
            self.prior.to(device)
        return super().move(batch, device)

    def synthetic_batch(self, n: int) -> Batch:
        """Return n random views."""
        numbers = np.arange(n)
        return Views(self.config).whole_batch(numbers, Draws("synthetic", numbers))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the distillation loss and the regularisers of a micro-batch, a scalar."""
        config, view = self.config, self.config.view
        early = not self.synthetic and int(batch.numbers[0]) < view.normals * len(Views(config))
        shaded = not early and (view.ambient[0] < 1 or view.textureless > 0)
        seen: Rendering = model(
            batch.cameras,
            view.size,
            light=batch.light if shaded else None,
            background=batch.background if view.random_background and not early else None,
            normals=early or config.orientation > 0,
        )
        loss = self._synthetic_loss(model, seen) if self.synthetic else self.distilled(seen, batch, early)
        if config.entropy:
            loss = loss + config.entropy * entropy(seen.opacity)
        if seen.orientation is not None:
            loss = loss + config.orientation * seen.orientation.mean()
        if config.smoothness:
            loss = loss + config.smoothness * roughness(model)
        return loss

    def distilled(self, seen: Rendering, batch: Batch, early: bool = False) -> Tensor:
        """Return the loss of score distillation, a scalar.

        Args:
            early: take normals and opacity for the latents of the prior, as stable-dreamfusion does in the
                first part of a run; this forms the shape before the prior's encoder is needed.
        """
        config = self.config.prior
        if early:
            assert seen.normals is not None
            latents = torch.cat([seen.normals, 2 * seen.opacity - 1], 1)
            samples = cast("Diffusion", self.prior).latents(latents)
        else:
            samples = self.prior.encode(seen.colour)
        cameras = batch.cameras if config.views else None
        return distil(self.prior, samples, self.config.prompt, cameras, config.guidance, config.times)

    def _synthetic_loss(self, model: nn.Module, seen: Rendering) -> Tensor:
        """Return the loss with the untrained prior, which has read no text, or without one."""
        if (prior := getattr(model, "prior", None)) is None:
            return seen.colour.square().mean()
        samples, config = prior.encode(seen.colour), self.config.prior
        prior.embedded = dict.fromkeys(("", "text"), samples.new_zeros(77, 1024, dtype=prior.unet.dtype))
        return distil(prior, samples, "text", None, config.guidance, config.times)

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the sums of the loss and, with a truth, IoU and PSNR; for the test R-precision."""
        n = len(batch.numbers)
        seen: Rendering = model(batch.cameras, self.config.view.size)
        seen = seen._replace(colour=seen.colour.clamp(0, 1))
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same noise in every evaluation
            sums = {"valid_loss": self.distilled(seen, batch) * n}
        if batch.truth.numel():
            iou, psnr = overlap(seen.colour, seen.opacity, batch.truth)
            sums |= {"valid_iou": iou.sum(), "valid_psnr": psnr.sum()}
        if bool(batch.last.any()):
            if self.judge is not None:
                sums["valid_r_precision"] = self.judge(seen.colour, batch.cameras).sum()
        elif self.folder is not None:
            shown, prompt = batch.cameras.azimuth, self.config.prompt
            products.draw_strip(seen.colour, shown, self.folder / products.NOW, prompt)
        return sums, n

    def begin(self, folder: Path) -> None:
        """Say where the current rendering is to be seen."""
        self.folder = folder
        print(f"the object so far, after each evaluation: {folder / products.NOW}")

    @torch.no_grad()
    def finish(self, folder: Path) -> None:
        """Write the turntable, the mesh and the curves."""
        model = self.build_model().eval()
        load(model, read_weights(folder)[0], str(folder))
        products.write(model, self.config, folder)


RECIPE = TextTo3D  # see repro.ledger.recipes
