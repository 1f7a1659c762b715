"""LAMB against timm's and pytorch_optimizer's, and what holds for tensors as wholes.

timm's means the same with max_grad_norm=None (it clips to 1 by default, and divides by norm / max without an
eps) and caution=False. pytorch_optimizer's corrects lr by
1 - b1^t after the ratio and v not at all, clamps ||p|| to at most 10, and adds eps to ||u|| as well: it is
compared with b1 = 0, where the norm stays below and eps is next to nothing.
"""

import numpy as np
import pytest
import torch
from harness import build, make_params
from test_outside import check

import adan_optim

timm_lamb = pytest.importorskip("timm.optim.lamb")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

each_path = pytest.mark.parametrize("path", adan_optim.CARDS["lamb"].paths)
BASE = dict(lr=0.05, betas=(0.8, 0.9), eps=0.01)


@each_path
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias_correction": False}, {"trust_clip": True}], ids=str)
@pytest.mark.parametrize(
    ("weight_decay", "always_adapt"), [(0.2, True), (0.2, False), (0.0, False), (0.0, True)]
)
def test_timm(path, foreach, options, weight_decay, always_adapt):
    options = {**BASE, **options, "weight_decay": weight_decay, "always_adapt": always_adapt}
    check(
        lambda p: build("lamb", p, path, **options),
        lambda p: timm_lamb.Lamb(p, **options, max_grad_norm=None, foreach=foreach),
    )


@each_path
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_pytorch_optimizer(path, weight_decay):
    options = {**BASE, "weight_decay": weight_decay, "betas": (0.0, 0.9), "eps": 1e-15}
    check(
        lambda p: build("lamb", p, path, bias_correction=False, **options),
        lambda p: pytorch_optimizer.Lamb(p, weight_decouple=False, foreach=False, **options),
    )


@each_path
def test_a_step_moves_a_tensor_by_a_part_of_its_norm(path):
    """lr times the norm, whatever the gradient's size."""
    params = make_params([(3, 4), (5,), ()], np.random.default_rng(0), torch.float64)
    optimizer = build("lamb", params, path, lr=0.125, weight_decay=0.0)
    before = [p.detach().clone() for p in params]
    for p, size in zip(params, (1e-3, 1.0, 1e3), strict=True):
        p.grad = torch.full_like(p, size)
    optimizer.step()
    for p, start in zip(params, before, strict=True):
        torch.testing.assert_close((p.detach() - start).norm(), 0.125 * start.norm(), rtol=1e-12, atol=0)


@each_path
def test_zeros(path):
    """A parameter of zeros moves as under Adam; a zero gradient without decay moves nothing."""
    zero, still = (torch.full((4,), x, dtype=torch.float64, requires_grad=True) for x in (0.0, 2.0))
    optimizer = build("lamb", [zero, still], path, lr=0.125, eps=1e-3, weight_decay=0.0)
    zero.grad, still.grad = torch.full_like(zero, 3.0), torch.zeros_like(still)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full_like(zero, -0.125 * 3 / 3.001), rtol=1e-12, atol=0)
    assert (still == 2).all()
