"""What a run of text to 3D leaves: pictures, a turntable, a mesh, and curves."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import save_image

from repro.errors import UserError
from repro.publish import replacing
from repro.runs import read
from vision.threed.cameras import ring
from vision.threed.config import TextTo3DConfig
from vision.threed.pretrained import EXTRA
from vision.threed.render import CHUNK, Renderer

NOW, STRIP, TURNTABLE, MESH, CURVES = "now.png", "turntable.png", "turntable.gif", "mesh.ply", "curves.png"
FILES = NOW, STRIP, TURNTABLE, MESH, CURVES

SHOWN, FRAMES, SECONDS = 8, 48, 4  # views in a strip; pictures of a turn and how long it takes
SIDE = 128  # of a picture in pixels, at least
CELLS = 96  # of the mesh along a side
SURFACE = 10 * math.log(2)  # the density that absorbs half of the light in a tenth of the unit of length

MEASURES = {
    "train_loss": "distillation loss, training",
    "valid_loss": "distillation loss, held-out views",
    "valid_iou": "IoU of silhouettes, held-out views",
    "valid_psnr": "PSNR, dB, held-out views",
}


@torch.no_grad()
def write(model: Renderer, config: TextTo3DConfig, folder: Path) -> None:
    """Write the files of a finished run into its folder."""
    cameras = ring(FRAMES, config.measure.elevation, *config.view.middle)
    turn = model(cameras, max(SIDE, config.view.size)).colour.clamp(0, 1)
    draw_strip(turn[:: FRAMES // SHOWN], folder / STRIP)
    write_turntable(turn, folder / TURNTABLE)
    if not write_mesh(model, folder / MESH):
        print(f"no {MESH}: nothing in the scene is dense enough for a surface")
    draw_curves(folder)


def draw_strip(views: Tensor, path: Path) -> None:
    """Write pictures [views, 3, side, side] in 0..1 next to each other, at most SHOWN of them."""
    views = views[:: -(-len(views) // SHOWN)]
    scale = max(SIDE // views.shape[-1], 1)  # whole pixels
    rows = views.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    with replacing(path) as temporary:
        save_image(rows, temporary, nrow=len(rows), padding=0, format="png")


def write_turntable(turn: Tensor, path: Path) -> None:
    """Write pictures [frames, 3, side, side] in 0..1 as an animation."""
    import imageio.v3 as imageio

    pixels = (turn * 255).round().byte().movedim(1, -1).cpu().numpy()
    with replacing(path) as temporary:
        imageio.imwrite(temporary, pixels, extension=".gif", duration=1000 * SECONDS / len(turn), loop=0)


@torch.no_grad()
def write_mesh(model: Renderer, path: Path) -> bool:
    """Write the surface with its colours, by marching cubes; return whether there is one."""
    import trimesh
    from skimage.measure import marching_cubes

    bound = model.config.bound
    axis = torch.linspace(-bound, bound, CELLS)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    device = next(model.parameters()).device
    density = torch.cat([model.scene.density(part.to(device)).cpu() for part in points.split(CHUNK)])
    density[points.norm(dim=-1) > bound] = 0  # rays do not go there
    volume = np.pad(density.view(CELLS, CELLS, CELLS).numpy(), 1)  # a surface at the border is closed
    if volume.max() <= SURFACE:
        return False
    spacing = 2 * bound / (CELLS - 1)
    vertices, faces, _, _ = marching_cubes(
        volume, SURFACE, spacing=[spacing] * 3, gradient_direction="ascent"
    )
    vertices = (vertices - bound - spacing).astype(np.float32)
    colours = [model.scene(part.to(device))[1].cpu() for part in torch.from_numpy(vertices).split(CHUNK)]
    shades = (torch.cat(colours) * 255).round().byte().numpy()
    with replacing(path) as temporary:
        trimesh.Trimesh(vertices, faces, vertex_colors=shades).export(temporary, file_type="ply")
    return True


def draw_curves(folder: Path) -> None:
    """Draw the measures of a run over its steps."""
    records = read(folder).records
    shown = {key: title for key, title in MEASURES.items() if any(key in record for record in records)}
    figure = Figure(figsize=(3.2 * len(shown), 2.8), layout="constrained")
    for axes, (key, title) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        points = [
            (record["step"], record[key])
            for record in records
            # the training loss of an evaluation is a mean since the run began
            if key in record and not (key == "train_loss" and "valid_loss" in record)
        ]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axes.set(title=title, xlabel="step")
    with replacing(folder / CURVES) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def check_packages() -> None:
    """Raise UserError if a package for the products is missing, which would be noticed only at the end."""
    try:
        import imageio  # noqa: F401
        import skimage  # noqa: F401
        import trimesh  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {EXTRA}") from None
