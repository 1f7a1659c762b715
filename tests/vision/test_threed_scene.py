"""Scenes and their rendering: closed forms, finite differences, direct transcriptions."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vision.threed.cameras import Cameras, ring, words
from vision.threed.config import SceneConfig
from vision.threed.hashgrid import PRIMES, HashEncoding
from vision.threed.render import Light, Renderer, entropy, roughness
from vision.threed.scenes import SCENES, Scene

SMALL = SceneConfig(
    resolution=6,
    samples=12,
    levels=4,
    entries=8,
    finest=32,
    frequencies=2,
    width=8,
    depth=2,
    background="learned",
)


class Ball(Scene):
    """A ball of constant density and colour around the origin, which is itself a scene."""

    def __init__(self, density: float, radius: float, samples: int = 64) -> None:
        super().__init__(SceneConfig(samples=samples))
        self.constant = torch.nn.Parameter(torch.tensor(density, dtype=torch.float64))
        self.radius = radius

    def raw(self, points: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def density(self, points: Tensor) -> Tensor:
        return self.constant * (points.norm(dim=-1) < self.radius)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(points), points.new_tensor([0.2, 0.5, 0.9]).expand_as(points)


def looking(scene: Scene) -> Renderer:
    """A renderer of a scene made here, that takes samples at the middles."""
    renderer = Renderer(SceneConfig(resolution=2))
    renderer.config, renderer.scene = scene.config, scene
    return renderer.eval()


def cameras(n: int = 3) -> Cameras:
    return Cameras(*(field.double() for field in ring(n, 25.0, 3.0, 40.0)))


def chords(origins: Tensor, directions: Tensor, radius: float) -> Tensor:
    """The lengths of rays inside a ball around the origin."""
    nearest = -(origins[:, None] * directions).sum(-1)
    gap = origins.square().sum(-1)[:, None] - nearest**2
    return 2 * (radius**2 - gap).clamp(min=0).sqrt()


# ---- cameras


def test_cameras_look_at_the_origin_from_where_they_are() -> None:
    one = Cameras(*(torch.tensor([value]) for value in (0.0, 0.0, 3.0, math.radians(90))))
    origins, directions = one.rays(2)
    assert torch.equal(origins, torch.tensor([[3.0, 0.0, 0.0]]))
    # rows from the top, and from left to right: +y is on the right of one who looks along -x with z up
    expected = torch.tensor([[-1, -0.5, 0.5], [-1, 0.5, 0.5], [-1, -0.5, -0.5], [-1, 0.5, -0.5]])
    torch.testing.assert_close(directions[0], expected / math.sqrt(1.5))
    origins, directions = cameras(5).rays(9)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(5, 81, dtype=torch.float64))
    middle = directions[:, 40]  # the central pixel
    torch.testing.assert_close(middle, -origins / 3)


def test_words_of_views() -> None:
    angles = [0, 44, 46, 134, 136, 180, 224, 226, -44, 360, 90]
    elevations = [0.0] * 10 + [61.0]
    n = len(angles)
    views = Cameras(
        torch.tensor(angles).deg2rad(), torch.tensor(elevations).deg2rad(), torch.ones(n), torch.ones(n)
    )
    expected = ["front", "front", "side", "side", "back", "back", "back", "side", "front", "front"]
    assert words(views) == [f"{word} view" for word in expected] + ["overhead view"]


# ---- rendering


@pytest.mark.parametrize("density", [0.0, 0.3, 2.0, 40.0])
def test_a_homogeneous_ball_absorbs_by_the_law_of_lambert_and_beer(density: float) -> None:
    """exp(-density x chord), exactly when the ball is all that rays are sampled in."""
    seen = looking(Ball(density, 1.0))(cameras(), 16)
    lengths = chords(*cameras().rays(16), 1.0)
    opacity = 1 - torch.exp(-density * lengths).view(3, 1, 16, 16)
    torch.testing.assert_close(seen.opacity, opacity, rtol=1e-9, atol=1e-9)
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(seen.colour, opacity * colour + 1 - opacity, rtol=1e-9, atol=1e-9)


def test_a_smaller_ball_up_to_the_length_of_a_section() -> None:
    for samples in (64, 512):
        seen = looking(Ball(2.0, 0.6, samples))(cameras(), 16)
        depth = -torch.log1p(-seen.opacity.flatten(1)) / 2.0
        assert (depth - chords(*cameras().rays(16), 0.6)).abs().max() <= 2 * 2 / samples


def test_stratified_samples_are_unbiased() -> None:
    """Over many drawings, the optical depth is that of the integral, which middles approximate."""
    renderer = looking(Ball(1.0, 0.6, 8)).train()
    torch.manual_seed(0)
    drawn = torch.stack([-torch.log1p(-renderer(cameras(1), 8).opacity) for _ in range(400)])
    exact = chords(*cameras(1).rays(8), 0.6).view(1, 1, 8, 8)
    error = drawn.std(0) / 20
    assert ((drawn.mean(0) - exact).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("activation", ["exp", "softplus"])
def test_gradients_are_those_of_finite_differences(name: str, activation: str) -> None:
    torch.manual_seed(0)
    renderer = Renderer(replace(SMALL, name=name, activation=activation)).double().eval()
    for p in renderer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    light = Light(cameras(2).position, torch.tensor([0.3, 0.8]).double(), torch.tensor([False, True]))

    def total() -> Tensor:
        seen = renderer(cameras(2), 4, light=light)
        assert seen.normals is not None  # the gradient of `orientation` leaves out that of the weights
        parts = [seen.colour, seen.opacity, seen.normals]
        return torch.stack(
            [(part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in parts]
        ).sum()

    total().backward()
    generator = torch.Generator().manual_seed(1)
    for key, p in renderer.named_parameters():
        assert p.grad is not None
        way = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        expected = (p.grad * way).sum()
        with torch.no_grad():
            p.add_(1e-6 * way)
            upper = total()
            p.sub_(2e-6 * way)
            lower = total()
            p.add_(1e-6 * way)
        torch.testing.assert_close(
            (upper - lower) / 2e-6, expected, rtol=2e-4, atol=1e-6, msg=f"{name} {key}"
        )


def test_pictures_do_not_depend_on_those_rendered_with_them() -> None:
    torch.manual_seed(0)
    renderer = Renderer(SMALL).eval()
    torch.nn.init.normal_(renderer.scene.voxels)  # type: ignore[arg-type]
    views = ring(40, 10.0, 3.0, 40.0)
    together = renderer(views, 16, normals=True)
    with torch.no_grad():
        apart = renderer(views, 16, normals=True)  # in parts
    for mine, theirs in zip(together, apart, strict=True):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine, theirs)


def test_empty_space_is_left_out() -> None:
    """With and without the grid of occupied cells pictures are the same, up to what empty cells absorb."""
    torch.manual_seed(0)
    config = replace(SMALL, blob_density=12.0, blob_radius=0.2, samples=64, activation="exp")
    plain = Renderer(config).eval()
    torch.nn.init.constant_(plain.scene.voxels, -8.0)  # type: ignore[arg-type]
    skipping = Renderer(replace(config, occupancy=32))
    skipping.scene.load_state_dict(plain.scene.state_dict())
    views = ring(4, 10.0, 3.0, 40.0)
    skipping.train()(views, 8)  # it looks
    assert skipping.occupied is not None
    assert 0.01 < skipping.occupied.float().mean() < 0.5
    counted = []
    forward = skipping.scene.forward
    skipping.scene.forward = lambda points: counted.append(len(points)) or forward(points)  # type: ignore
    ours, all_of_it = skipping.eval()(views, 24, normals=True), plain(views, 24, normals=True)
    assert counted[0] < 0.5 * 4 * 24 * 24 * 64
    torch.testing.assert_close(ours.opacity, all_of_it.opacity, rtol=0, atol=0.02)
    torch.testing.assert_close(ours.colour, all_of_it.colour, rtol=0, atol=0.02)


def test_what_is_occupied_is_looked_at_again() -> None:
    renderer = Renderer(replace(SMALL, occupancy=8, occupancy_every=3))
    torch.nn.init.constant_(renderer.scene.voxels, -20.0)  # type: ignore[arg-type]
    views, shares = ring(1, 10.0, 3.0, 40.0), []
    for step in range(7):
        if step == 4:
            torch.nn.init.constant_(renderer.scene.voxels, 5.0)  # type: ignore[arg-type]
        renderer(views, 4)
        assert renderer.occupied is not None
        shares.append(float(renderer.occupied.float().mean()))
    assert max(shares[:6]) < 0.5
    assert shares[6] == 1.0
    assert {"occupied", "calls"} <= renderer.state_dict().keys()  # a run that continues looks when it should


@pytest.mark.recipe
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it from all but pytest
@pytest.mark.parametrize("occupancy", [0, 4])
def test_a_compiled_renderer_is_the_same(occupancy: int, caplog: pytest.LogCaptureFixture) -> None:
    """Traced as by compile=true, in training and evaluation; the compiler complains of nothing."""
    torch.compiler.reset()  # it counts how often it compiles a function in all tests together
    torch.manual_seed(0)
    model = Renderer(replace(SMALL, name="hashgrid", occupancy=occupancy))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    compiled = torch.compile(model, backend="aot_eager")
    around = ring(2, 20.0, 3.0, 40.0)
    found = []
    for renderer in (model, compiled):
        model.train()
        renderer(around, 4).colour.sum().backward()
        model.eval()
        found.append([renderer(around, 4).colour, renderer(around, 4, normals=True).normals])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_normals_point_outward() -> None:
    scene = SCENES["grid"](replace(SMALL, blob_density=5.0, blob_radius=0.3))
    points = torch.randn(20, 3) * 0.3
    outward = torch.nn.functional.normalize(points, dim=-1)
    torch.testing.assert_close(scene.normals(points), outward, rtol=0, atol=0.02)


def test_light() -> None:
    """Ambient light leaves the colours, textureless surfaces are white, and those turned away are dark."""
    scene = replace(SMALL, blob_density=8.0, blob_radius=0.3, background="white")
    renderer = Renderer(scene).eval()
    view = ring(1, 0.0, 3.0, 40.0)

    def seen(ambient: float, textureless: bool, side: float) -> Tensor:
        light = Light(side * view.position, torch.tensor([ambient]), torch.tensor([textureless]))
        return renderer(view, 16, light=light).colour[0, :, 8, 8]  # type: ignore[no-any-return]

    plain = renderer(view, 16).colour[0, :, 8, 8]
    torch.testing.assert_close(seen(1.0, False, 1.0), plain)
    assert (seen(1.0, True, 1.0) > 0.99).all()
    assert (seen(0.2, False, 1.0) > 2 * seen(0.2, False, -1.0)).all()
    torch.testing.assert_close(seen(0.2, False, -1.0), 0.2 * plain, rtol=0.05, atol=0.01)


def test_a_background_of_its_own() -> None:
    renderer = Renderer(replace(SMALL, blob_density=-20.0)).eval()
    torch.nn.init.constant_(renderer.scene.voxels, -30.0)  # type: ignore[arg-type]
    given = torch.tensor([[0.1, 0.2, 0.3], [torch.nan] * 3])
    seen = renderer(ring(2, 10.0, 3.0, 40.0), 4, background=given).colour
    torch.testing.assert_close(seen[0], given[0][:, None, None].expand(3, 4, 4), rtol=0, atol=1e-4)
    assert not seen[1].isnan().any()


# ---- regularisers


def test_entropy_is_finite_where_rounding_leaves_the_range() -> None:
    opacity = torch.tensor([0.0, 1.0, 1.0 + 1e-6, -1e-7, 0.5], requires_grad=True)
    value = entropy(opacity)
    value.backward()
    assert opacity.grad is not None
    assert opacity.grad.isfinite().all()
    assert value.item() == pytest.approx(0.2, abs=1e-3)  # one of five is undecided: a bit


def test_roughness() -> None:
    renderer = Renderer(SMALL)
    assert roughness(renderer).item() == 0
    with torch.no_grad():
        renderer.scene.voxels[:, :, 0] = 1.0  # type: ignore[index]
    assert roughness(renderer).item() == pytest.approx(1 / 5)  # the first of five differences along one axis


# ---- encodings


def test_the_hash_encoding_is_that_of_the_paper() -> None:
    """Transcribed from section 3 of arXiv 2201.05989, a corner at a time."""
    torch.manual_seed(0)
    encoding = HashEncoding(levels=5, features=2, entries=9, base=4, finest=64)
    torch.nn.init.normal_(encoding.table)
    points = torch.rand(30, 3)
    points[:4] = torch.tensor([[0.0, 0, 0], [1.0, 1, 1], [1.0, 0, 0.5], [0.25, 0.5, 1.0]])
    found = encoding(points)
    growth = math.exp((math.log(64) - math.log(4)) / 4)
    begin = 0
    for level in range(5):
        side = math.floor(4 * growth**level + 1e-6)
        size = min((side + 1) ** 3, 2**9)
        for n, point in enumerate(points.tolist()):
            low = [min(math.floor(x * side), side - 1) for x in point]
            inside = [x * side - corner for x, corner in zip(point, low, strict=True)]
            smooth = [t * t * (3 - 2 * t) for t in inside]
            expected = torch.zeros(2)
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (a + b for a, b in zip(low, corner, strict=True))
                if (side + 1) ** 3 <= 2**9:
                    entry = x + y * (side + 1) + z * (side + 1) ** 2
                else:
                    entry = (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) % size
                weight = math.prod(s if one else 1 - s for s, one in zip(smooth, corner, strict=True))
                expected += weight * encoding.table[begin + entry].detach()
            torch.testing.assert_close(found[n, 2 * level : 2 * level + 2], expected, rtol=1e-4, atol=1e-5)
        begin += size
    assert begin == len(encoding.table)


def test_the_row_has_the_sizes_of_instant_ngp() -> None:
    encoding = HashEncoding()
    assert encoding.width == 32
    assert encoding.cells.tolist()[0] == 16
    assert encoding.cells.tolist()[-1] == 2048
    assert encoding.sizes.max() == 2**19
    sides = [math.floor(16 * 128 ** (level / 15) + 1e-6) + 1 for level in range(16)]
    assert len(encoding.table) == sum(min(side**3, 2**19) for side in sides)
