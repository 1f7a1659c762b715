"""Every optimizer goes to the minimum: of a quadratic, of Rosenbrock's valley, of logistic regression.

In float64, without noise, on every path. Steps that do not shrink by themselves (a sign, a part of the
parameter's norm) only get as near as the learning rate allows, so it goes to zero along a cosine.
"""

import math

import pytest
import torch
from harness import FLAGS, each_path

import adan_optim

# Learning rates for parameters of the order of one and about a thousand steps, and whatever else a problem
# without noise asks for. An optimizer without a line here gets DEFAULT.
DEFAULT = dict(lr=0.1, weight_decay=0.0)
SETTINGS = {
    "lamb": dict(lr=0.1, weight_decay=0.0),
    "lars": dict(lr=0.5, weight_decay=0.0, trust_coefficient=0.02, always_adapt=True),
    "adafactor": dict(lr=0.3, weight_decay=0.0, relative_step=False),
    "schedule_free_adamw": dict(
        lr=0.1, weight_decay=0.0, r=2.0
    ),  # later steps count more, as they go to zero
    "schedule_free_adan": dict(lr=0.1, weight_decay=0.0, r=2.0),
    # a schedule that falls from the first step on leaves no time to grow from 1e-6
    "prodigy": dict(lr=1.0, weight_decay=0.0, d0=1e-3),
    "prodigy_adan": dict(lr=1.0, weight_decay=0.0, d0=1e-3),
}


def minimise(name, path, loss, params, steps):
    """The loss after so many steps, relative to that before."""
    settings = {**SETTINGS.get(name, DEFAULT), **FLAGS[path]}
    optimizer = adan_optim.OPTIMIZERS[name](params, **settings)
    top = settings["lr"]
    start = loss().item()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = top * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    with adan_optim.evaluating(optimizer):
        return loss().item() / start


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@each_path
def test_quadratic(name, path):
    """A matrix and a vector, curvatures from 1 to 100."""
    targets = tensors((4, 3), (5,))
    curvatures = [torch.logspace(0, 2, x.numel(), dtype=torch.float64).view_as(x) for x in targets]
    params = [x.requires_grad_() for x in tensors((4, 3), (5,), seed=1)]

    def loss():
        return sum((c * (p - x).square()).sum() for c, p, x in zip(curvatures, params, targets, strict=True))

    assert minimise(name, path, loss, params, 300) < 1e-2


@pytest.mark.per_family
@each_path
def test_rosenbrock(name, path):
    """From the usual start (-1.2, 1), around the bend, to the minimum at (1, 1)."""
    p = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)

    def loss():
        return (1 - p[0]).square() + 100 * (p[1] - p[0].square()).square()

    assert minimise(name, path, loss, [p], 800) < 1e-2


@pytest.mark.per_family
@each_path
def test_logistic_regression(name, path):
    """To within 1 % of the least loss, which Newton's method finds."""
    x, truth, noise = tensors((60, 4), (4,), (60,))
    labels = (x @ truth + 0.5 + 2 * noise > 0).double()
    x = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1)  # the last weight is the bias

    def loss_of(w):
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ w, labels)

    best = torch.zeros(5, dtype=torch.float64)
    for _ in range(20):
        s = (x @ best).sigmoid()
        best -= torch.linalg.solve(x.T @ (x * (s * (1 - s))[:, None]), x.T @ (s - labels))
    params = [w.requires_grad_() for w in (torch.full((4,), 0.1).double(), torch.full((1,), 0.1).double())]
    least, start = loss_of(best), loss_of(torch.cat(params)).detach()
    left = minimise(name, path, lambda: loss_of(torch.cat(params)) - least, params, 250)
    assert least < 0.8 * start
    assert 0 <= left < 0.01
