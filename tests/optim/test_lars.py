"""LARS against timm's and pytorch_optimizer's, and what holds for tensors as wholes.

timm's means the same with dampening=0. pytorch_optimizer's has no eps, and is plain SGD without weight decay
for tensors of less than two dimensions, so it is compared on matrices.
"""

import numpy as np
import pytest
import test_outside
import torch
from harness import build, make_params, set_grads
from test_outside import check

import adan_optim

timm_lars = pytest.importorskip("timm.optim.lars")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

each_path = pytest.mark.parametrize("path", adan_optim.CARDS["lars"].paths)
BASE = dict(lr=0.3, momentum=0.8, eps=0.01)


@each_path
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.0}, {"nesterov": True}, {"trust_clip": True}], ids=str
)
@pytest.mark.parametrize(
    ("weight_decay", "always_adapt"), [(0.2, True), (0.2, False), (0.0, False), (0.0, True)]
)
def test_timm(path, foreach, options, weight_decay, always_adapt):
    options = {**BASE, **options, "weight_decay": weight_decay, "always_adapt": always_adapt}
    check(
        lambda p: build("lars", p, path, trust_coefficient=0.2, **options),
        lambda p: timm_lars.Lars(p, trust_coeff=0.2, **options, foreach=foreach),
    )


@each_path
@pytest.mark.parametrize("nesterov", [False, True])
def test_pytorch_optimizer(path, nesterov, monkeypatch):
    monkeypatch.setattr(test_outside, "SHAPES", [(4, 5), (2, 3, 2)])
    options = dict(lr=0.3, momentum=0.8, weight_decay=0.2, trust_coefficient=0.2, nesterov=nesterov)
    check(
        lambda p: build("lars", p, path, eps=0.0, **options),
        lambda p: pytorch_optimizer.LARS(p, foreach=False, **options),
    )


@each_path
def test_a_step_moves_a_tensor_by_a_part_of_its_norm(path):
    """lr times trust_coefficient times the norm, whatever the gradient's size."""
    params = make_params([(3, 4), (5,), ()], np.random.default_rng(0), torch.float64)
    options = dict(lr=2.0, trust_coefficient=0.125, weight_decay=0.0, eps=0.0, always_adapt=True)
    optimizer = build("lars", params, path, **options)
    before = [p.detach().clone() for p in params]
    for p, size in zip(params, (1e-3, 1.0, 1e3), strict=True):
        p.grad = torch.full_like(p, size)
    optimizer.step()
    for p, start in zip(params, before, strict=True):
        torch.testing.assert_close((p.detach() - start).norm(), 0.25 * start.norm(), rtol=1e-12, atol=0)


@each_path
def test_zeros(path):
    """A parameter of zeros moves as under SGD; a zero gradient leaves the weight decay as it is in SGD."""
    zero, still = (torch.full((4,), x, dtype=torch.float64, requires_grad=True) for x in (0.0, 2.0))
    optimizer = build("lars", [zero, still], path, lr=0.125, eps=0.0, weight_decay=0.5)
    zero.grad, still.grad = torch.full_like(zero, 3.0), torch.zeros_like(still)
    optimizer.step()
    assert (zero == -0.375).all()
    assert (still == 2 - 0.125 * 0.5 * 2).all()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_state(momentum):
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = adan_optim.Lars([p], momentum=momentum)
    optimizer.step()
    assert set(optimizer.state[p]) == {"step", *(["momentum_buffer"] if momentum else [])}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"momentum": 1.0}, r"momentum=1.0: must be in \[0, 1\)"),
        ({"momentum": -0.1}, "momentum=-0.1: must be a finite number >= 0"),
        ({"trust_coefficient": -1.0}, "trust_coefficient=-1.0: must be a finite number >= 0"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True needs a momentum"),
    ],
)
def test_options_that_make_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        adan_optim.Lars([torch.ones(2)], **options)


def test_a_learning_rate_of_zero_with_a_clipped_trust():
    """Nothing moves, and nothing becomes NaN."""
    params = make_params([(3, 4)], np.random.default_rng(0))
    before = params[0].detach().clone()
    optimizer = build("lars", params, lr=0.0, trust_clip=True, trust_coefficient=0.0)
    set_grads(params, np.random.default_rng(1))
    optimizer.step()
    assert torch.equal(params[0], before)


@each_path
def test_gradients_stay_as_they_are_without_weight_decay(path):
    """Where nothing is added to them first, steps must not be computed in their memory."""
    params = make_params([(3, 4), (5,)], np.random.default_rng(0))
    optimizer = build("lars", params, path, weight_decay=0.0, always_adapt=True)
    set_grads(params, np.random.default_rng(1))
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
