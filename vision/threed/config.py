"""Configuration of vision/text_to_3d.py."""

from dataclasses import dataclass, field
from operator import attrgetter

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.train.config import TrainConfig, at_least, one_of
from vision.threed.captions import parse


@dataclass
class SceneConfig:
    """What is trained, and how rays pass through it."""

    name: str = "grid"  # grid (voxels) | hashgrid (Instant-NGP) | mlp (NeRF)
    bound: float = 1.0  # the scene is in the ball of this radius; `hashgrid` refines its grid with it
    samples: int = 40  # of a ray
    activation: str = "exp"  # exp | softplus: makes the density positive
    blob_density: float = 3.0  # added to the density before the activation, at the origin
    # exp: of a Gaussian, its standard deviation; softplus: of a cone, where it is 0
    blob_radius: float = 0.3
    background: str = "white"  # white | learned: an MLP of the direction
    normal_step: float = 0.01  # of the differences that give the normals
    occupancy: int = 0  # cells along a side of the grid by which empty space is left out; 0: nothing is
    occupancy_every: int = 16  # renderings between two looks at which cells are occupied
    resolution: int = 24  # grid: voxels along a side
    levels: int = 16  # hashgrid: resolutions, with two features each
    entries: int = 19  # hashgrid: of each level's table at most, as a power of two
    finest: int = 2048  # hashgrid: cells along a side of the finest level
    frequencies: int = 6  # mlp: of the sinusoids
    width: int = 128  # mlp: of its residual blocks
    depth: int = 5  # mlp: number of its blocks


@dataclass
class ViewConfig:
    """Random cameras, and the pictures that they take. Ranges are from the first to the second number."""

    size: int = 32  # side of the pictures in pixels
    elevation: list[float] = field(default_factory=lambda: [-10.0, 60.0])  # degrees
    radius: list[float] = field(default_factory=lambda: [3.0, 3.0])  # distance from the origin
    fov: list[float] = field(default_factory=lambda: [40.0, 40.0])  # angle of view, in degrees
    ambient: list[float] = field(default_factory=lambda: [1.0, 1.0])  # light from everywhere; 1: no shading
    textureless: float = 0.0  # share of the pictures with white surfaces
    random_background: float = 0.0  # share of the pictures before a random colour
    # share of the run, at its beginning, in which normals and opacity stand for the prior's latents; for
    # prior.name=stable_diffusion
    normals: float = 0.0

    @property
    def middle(self) -> tuple[float, float]:
        """The middles of radius and fov, for cameras that are not random."""
        return sum(self.radius) / 2, sum(self.fov) / 2


@dataclass
class PriorConfig:
    """The frozen model of images that judges the pictures."""

    # analytic (the exact one of the embedded world) | unet (of vision/train_prior.py) | stable_diffusion
    name: str = "analytic"
    # folder in diffusers' layout, or a name on the Hugging Face hub; not for analytic
    path: str | None = None
    guidance: float = 3.0  # classifier-free
    times: list[float] = field(default_factory=lambda: [0.02, 0.98])  # range of time steps, as shares
    views: bool = True  # tell it the view
    dtype: str = "float32"  # float32 | float16 | bfloat16
    attention_slicing: bool = False  # of diffusers: less memory, slower
    vae_slicing: bool = False  # the same, for the VAE
    sequential_cpu_offload: bool = False  # the least memory of the GPU, and much slower


@dataclass
class MeasureConfig:
    """How well the pictures show what the prompt says."""

    views: int = 16  # held-out views, in equal steps around the object
    elevation: float = 20.0  # of them, in degrees
    # folder or name on the hub of a CLIP model that judges R-precision; null: the prior does, if it can
    clip: str | None = None
    captions: str | None = None  # file with a caption in each line, for CLIP; null: the prompts of the row


@dataclass
class TextTo3DConfig(TrainConfig):
    """All settings of vision/text_to_3d.py. A sample is a random view of the scene."""

    prompt: str = "a red torus"
    scene: SceneConfig = field(default_factory=SceneConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    entropy: float = 0.0  # weight of the entropy of opacities
    orientation: float = 0.0  # weight of normals that look away from the camera
    smoothness: float = 0.0  # weight of differences between neighbouring voxels; for scene.name=grid

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        if not self.prompt.strip():
            raise UserError("prompt is empty: say what to make, as in prompt='a red torus'")
        if self.steps is None:
            raise UserError("steps is not set: a run of text to 3D has no epochs; set steps=N")
        one_of("scene.name", self.scene.name, ("grid", "hashgrid", "mlp"))
        one_of("scene.activation", self.scene.activation, ("exp", "softplus"))
        one_of("scene.background", self.scene.background, ("white", "learned"))
        one_of("prior.name", self.prior.name, ("analytic", "unet", "stable_diffusion"))
        one_of("prior.dtype", self.prior.dtype, ("float32", "float16", "bfloat16"))
        at_least(1, "scene.", self.scene, "samples", "occupancy_every", "levels", "entries", "frequencies",
                 "width", "depth")  # fmt: skip
        at_least(2, "scene.", self.scene, "resolution", "finest")
        at_least(0, "scene.", self.scene, "occupancy")
        at_least(1, "measure.", self.measure, "views")
        at_least(4, "view.", self.view, "size")
        for key in ("bound", "blob_radius", "normal_step"):
            if not getattr(self.scene, key) > 0:
                raise UserError(f"scene.{key}={getattr(self.scene, key)}: must be above 0")
        self._check_ranges()
        if self.prior.name != "analytic" and self.prior.path is None:
            made = "the folder `pipeline` of a run of vision/train_prior.py"
            cure = made if self.prior.name == "unet" else "a folder, or a name on the Hugging Face hub"
            raise UserError(f"prior.path is not set: prior.name={self.prior.name} needs {cure}")
        if self.smoothness and self.scene.name != "grid":
            raise UserError(f"smoothness={self.smoothness:g}: is for scene.name=grid, not {self.scene.name}")
        if self.prior.name != "stable_diffusion":
            parse(self.prompt)
        if self.view.normals and self.prior.name != "stable_diffusion":
            raise UserError(
                f"view.normals={self.view.normals:g}: is for prior.name=stable_diffusion; set it to 0"
            )

    def _check_ranges(self) -> None:
        limits = {
            "view.elevation": (-90.0, 90.0),
            "view.radius": (self.scene.bound, float("inf")),
            "view.fov": (1.0, 120.0),
            "view.ambient": (0.0, 1.0),
            "prior.times": (0.0, 1.0),
        }
        for key, (least, most) in limits.items():
            check_range(key, attrgetter(key)(self), least, most)
        for name in ("textureless", "random_background", "normals"):
            if not 0 <= getattr(self.view, name) <= 1:
                raise UserError(f"view.{name}={getattr(self.view, name)}: is a share, in [0, 1]")


def check_range(key: str, values: list[float], least: float, most: float) -> None:
    """Raise UserError unless `values` are two numbers from `least` to `most`, in order."""
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise UserError(
            f"{key}={values}: must be two numbers from {least:g} to {most:g}, the lower one first"
        )


ConfigStore.instance().store(name="text_to_3d_schema", node=TextTo3DConfig)
