"""What a run of text to 3D leaves: pictures, a turntable, a mesh, and curves."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repro.errors import UserError
from repro.plots import COLOURS, STYLE, finish, panels, quantity, rc_context, save, save_pictures
from repro.publish import replacing
from repro.runs import read
from vision.threed.cameras import ring
from vision.threed.config import TextTo3DConfig
from vision.threed.pretrained import EXTRA
from vision.threed.render import CHUNK, Renderer

NOW, STRIP, TURNTABLE, MESH, CURVES = "now.png", "turntable.png", "turntable.gif", "mesh.ply", "curves.png"
FILES = NOW, STRIP, TURNTABLE, MESH, CURVES, "curves.svg"

SHOWN, FRAMES, SECONDS = 8, 48, 4  # views in a strip; pictures of a turn and how long it takes
SIDE = 128  # of a picture in pixels, at least
CELLS = 96  # of the mesh along a side
SURFACE = 10 * math.log(2)  # the density that absorbs half of the light in a tenth of the unit of length

MEASURES = {  # names and units
    "train_loss": ("distillation loss, training", ""),
    "valid_loss": ("distillation loss, held out", ""),
    "valid_iou": ("IoU of silhouettes, held out", ""),
    "valid_psnr": ("PSNR, held out", "dB"),
}


@torch.no_grad()
def write(model: Renderer, config: TextTo3DConfig, folder: Path) -> None:
    """Write the files of a finished run into its folder."""
    turn, azimuths = views(model, config, FRAMES)
    step = FRAMES // SHOWN
    draw_strip(turn[::step], azimuths[::step], folder / STRIP, config.prompt)
    write_turntable(turn, folder / TURNTABLE)
    if not write_mesh(model, folder / MESH):
        print(f"no {MESH}: nothing in the scene is dense enough for a surface")
    draw_curves(folder, config.prompt)


@torch.no_grad()
def views(model: Renderer, config: TextTo3DConfig, number: int) -> tuple[Tensor, Tensor]:
    """Return pictures from all around [number, 3, side, side] in 0..1, and their azimuths [number]."""
    cameras = ring(number, config.measure.elevation, *config.view.middle)
    return model(cameras, max(SIDE, config.view.size)).colour.clamp(0, 1), cameras.azimuth


def draw_strip(pictures: Tensor, azimuths: Tensor, path: Path, prompt: str) -> None:
    """Write pictures [number, 3, side, side] in 0..1 next to each other, at most SHOWN of them.

    Args:
        azimuths: of their cameras, in radians [number].
    """
    step = -(-len(pictures) // SHOWN)
    degrees = [f"{azimuth:.0f}°" for azimuth in azimuths[::step].rad2deg().tolist()]
    save_pictures({"": pictures[::step].movedim(1, -1).cpu()}, path, prompt, degrees)


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


@rc_context(STYLE)
def draw_curves(folder: Path, prompt: str) -> None:
    """Draw the measures of a run over its steps; each panel says where its measure ends."""
    records = read(folder).records
    points = {
        key: [
            (record["step"], record[key])
            for record in records
            # the training loss of an evaluation is a mean since the run began
            if key in record and not (key == "train_loss" and "valid_loss" in record)
        ]
        for key in MEASURES
    }
    points = {key: found for key, found in points.items() if found}
    figure, axes = panels(len(points))
    for panel, (key, found) in zip(axes, points.items(), strict=True):
        better = "higher is better" if key in ("valid_iou", "valid_psnr") else "lower is better"
        panel.plot(*zip(*found, strict=True), color=COLOURS[1], marker="." if len(found) < 30 else None)
        panel.set(title=f"{found[-1][1]:.3g} at the end", ylabel=quantity(*MEASURES[key], better))
        panel.set_xlabel("step")
    finish(figure, prompt, "Held out: on views around the object, which are not trained on.")
    save(figure, folder / CURVES)


def check_packages() -> None:
    """Raise UserError if a package for the products is missing, which would be noticed only at the end."""
    try:
        import imageio  # noqa: F401
        import skimage  # noqa: F401
        import trimesh  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {EXTRA}") from None
