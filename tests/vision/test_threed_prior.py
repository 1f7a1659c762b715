"""The embedded world, its analytic prior, and score distillation."""

import math

import pytest
import torch
from torch import Tensor

from repro.errors import UserError
from vision.threed.analytic import Analytic
from vision.threed.cameras import Cameras, ring
from vision.threed.captions import CAPTIONS, COLOURS, SHAPES, SIZES, parse
from vision.threed.judge import overlap
from vision.threed.prior import Prior, distil, scaled_linear
from vision.threed.shapes import DISTANCES, render

SIDE, VIEWS = 8, 5
CAPTION = "a red mug"


@pytest.fixture(scope="module")
def world() -> Analytic:
    """The prior of small pictures from few views, in float64."""
    return Analytic(SIDE, VIEWS, (-10.0, 60.0), 3.0, 40.0).double()


def views(prior: Analytic) -> Cameras:
    """The cameras of its pictures, found from their positions."""
    x, y, z = prior.towards.float().unbind(-1)
    n = len(x)
    return Cameras(
        torch.atan2(y, x), z.clamp(-1, 1).asin(), torch.full((n,), 3.0), torch.full((n,), math.radians(40))
    )


def every_image(prior: Analytic) -> Tensor:
    """All pictures of the world, rendered one by one, in -1..1: [captions, views, 3, side, side]."""
    cameras = views(prior)
    pictures = [render([caption] * VIEWS, cameras, SIDE)[:, :3] for caption in CAPTIONS]
    return 2 * torch.stack(pictures).double() - 1


# ---- the world


def test_captions() -> None:
    assert len(CAPTIONS) == len(set(CAPTIONS)) == 128 == len(SIZES) * len(COLOURS) * len(SHAPES)
    assert set(SHAPES) == DISTANCES.keys()
    assert parse("an orange cone") == ("", "orange", "cone")
    assert parse("a small orange cone") == ("small", "orange", "cone")
    with pytest.raises(UserError, match=r"^prompt='a pink cone': .* red, green.*; sphere, cube.*$"):
        parse("a pink cone")


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_fill_the_ball_that_rays_are_sampled_in(shape: str) -> None:
    """They are inside, and small ones smaller; no step of sphere tracing is longer than the way to them."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4000, 3, generator=generator)
    far = 1.001 * points / points.norm(dim=-1, keepdim=True)
    assert (DISTANCES[shape](far) > 0).all()
    near, other = points[:2000] * 0.5, points[2000:] * 0.5
    gap = (DISTANCES[shape](near) - DISTANCES[shape](other)).abs()
    assert (gap <= (near - other).norm(dim=-1) * 1.001 + 1e-6).all()
    large, small = render([f"a red {shape}", f"a small red {shape}"], ring(2, 20.0, 3.0, 40.0), 32)[:, 3].sum(
        (1, 2)
    )
    assert small < 0.6 * large


def test_a_sphere_is_a_disc_of_the_right_size() -> None:
    silhouette = render(["a red sphere"], ring(1, 15.0, 3.0, 40.0), 64)[0, 3]
    radius = 3 * 0.55 / math.sqrt(3**2 - 0.55**2)  # of its outline, in the plane through the centre
    share = math.pi * radius**2 / (2 * 3 * math.tan(math.radians(20))) ** 2
    assert silhouette.mean().item() == pytest.approx(share, rel=0.02)


def test_a_torus_shows_its_hole_from_the_front_alone() -> None:
    front, side = render(
        ["a red torus"] * 2, Cameras(*(field[[0, 1]] for field in ring(4, 0.0, 3.0, 40.0))), 33
    )
    assert front[3, 16, 16] == 0
    assert side[3, 16, 16] == 1
    assert front[3].sum() > 1.5 * side[3].sum()


# ---- the prior


def test_noise_schedule() -> None:
    alphas = scaled_linear()
    assert alphas[0].item() == pytest.approx(1 - 0.00085)
    assert alphas[-1].item() == pytest.approx(0.00466, rel=0.01)  # Stable Diffusion's last


@pytest.mark.parametrize("told", [("", False), (CAPTION, False), (CAPTION, True)])
def test_the_mean_is_that_of_all_images(world: Analytic, told: tuple[str, bool]) -> None:
    """Against a sum over every picture of the world, from the definition of the posterior."""
    caption, with_view = told
    images = every_image(world)
    samples = images[CAPTIONS.index("a blue mug"), :2] * 0.5
    times = torch.tensor([200, 900])
    noisy = world.mixed(
        samples, torch.randn(samples.shape, generator=torch.Generator().manual_seed(0)), times
    )
    cameras = Cameras(*(field[:2].double() for field in ring(4, 30.0, 3.0, 40.0))) if with_view else None
    found = world.mean(noisy, times, [caption] * 2, cameras)
    for row in range(2):
        alpha = float(world.alphas[times[row]])
        gaps = (noisy[row] - math.sqrt(alpha) * images).square().sum((2, 3, 4))
        log = -gaps / (2 * (1 - alpha))
        if cameras is not None:
            angles = (world.towards @ cameras.position[row]).acos()
            log = log - angles.square() / (2 * math.radians(8) ** 2)
        if caption:
            log = log[[CAPTIONS.index(caption)]]
        mine = images[[CAPTIONS.index(caption)]] if caption else images
        weights = log.flatten().softmax(0).view_as(log)
        expected = (weights[:, :, None, None, None] * mine).sum((0, 1))
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


def test_a_noisy_picture_is_recognised(world: Analytic) -> None:
    images = every_image(world)
    chosen = [3, 40, 77, 126]
    found = world.likelihoods(images[chosen, 2], CAPTIONS, None)
    assert found.argmax(1).tolist() == chosen
    generic = Prior.likelihoods(world, images[chosen, 2], CAPTIONS, None)  # by the errors of the noise
    assert generic.argmax(1).tolist() == chosen


def test_guidance(world: Analytic) -> None:
    noisy, times = torch.randn(2, 3, SIDE, SIDE).double(), torch.tensor([300, 600])
    plain, told = (world.noise(noisy, times, [caption] * 2, None) for caption in ("", CAPTION))
    torch.testing.assert_close(world.guided(noisy, times, [CAPTION] * 2, None, 1.0), told)
    torch.testing.assert_close(
        world.guided(noisy, times, [CAPTION] * 2, None, 3.0), plain + 3 * (told - plain)
    )


# ---- distillation


class One(Prior):
    """The prior that knows a single image: its noise is known exactly, and no caption matters."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.register_buffer("alphas", scaled_linear().double())

    def noise(self, noisy: Tensor, times: Tensor, captions: object, cameras: Cameras | None) -> Tensor:
        alphas = self.alphas[times].view(-1, 1, 1, 1)
        return (noisy - alphas.sqrt() * self.image) / (1 - alphas).sqrt()


def test_the_gradient_of_distillation_is_the_analytic_one() -> None:
    """w (noise found - noise added) = w sqrt(alpha / (1 - alpha)) (sample - image), whatever the noise is."""
    image = torch.randn(3, 4, 4, dtype=torch.float64)
    samples = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    prior = One(image)
    share = 300 / 999
    loss = distil(prior, samples, "", None, 7.5, (share, share))
    loss.backward()
    alpha = prior.alphas[300]
    expected = (1 - alpha) * (alpha / (1 - alpha)).sqrt() * (samples.detach() - image) / 5
    torch.testing.assert_close(samples.grad, expected)
    torch.testing.assert_close(loss.detach(), 0.5 * 5 * expected.square().sum())


def test_distillation_draws_times_from_its_range() -> None:
    drawn: list[Tensor] = []

    class Spy(One):
        def noise(self, noisy: Tensor, times: Tensor, captions: object, cameras: Cameras | None) -> Tensor:
            drawn.append(times)
            return super().noise(noisy, times, captions, cameras)

    torch.manual_seed(0)
    samples = torch.zeros(4000, 1, 1, 1, dtype=torch.float64)
    distil(Spy(torch.zeros(1, 1, 1)), samples, "", None, 1.0, (0.02, 0.98))
    assert 20 <= drawn[0].min() < 30
    assert 970 < drawn[0].max() <= 979
    assert abs(drawn[0].double().mean() - 499.5) < 20


def test_overlap() -> None:
    truth = torch.zeros(2, 4, 4, 4)
    truth[:, 3, :2] = 1
    opacity = torch.zeros(2, 1, 4, 4)
    opacity[0, 0, :2], opacity[1, 0, :, :2] = 0.6, 0.6
    colour = truth[:, :3] + torch.tensor([0.1, 0.01])[:, None, None, None]
    iou, psnr = overlap(colour, opacity, truth)
    torch.testing.assert_close(iou, torch.tensor([1.0, 1 / 3]))
    torch.testing.assert_close(psnr, torch.tensor([20.0, 40.0]))
