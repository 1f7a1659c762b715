"""Against other people's code where it means the same: timm's and pytorch_optimizer's Adan, torch's Adam(W).

Where they do not mean the same, and so are not compared:
* both count steps per group, so a parameter that joins late gets bias corrections of the wrong step;
* timm has no clipping and no maximize; pytorch_optimizer's maximize takes the first difference between a
  negated and a plain gradient, and its per-parameter path negates the gradients in place (copies are given);
* pytorch_optimizer's clipping, min(1, max / (norm + eps)) with the constructor's eps, is ours, but it
  sums the squares in float32 and fails on 0-dim parameters.
"""

import numpy as np
import pytest
import torch
from harness import assert_same_bits, build, each_path, make_params, random

timm_adan = pytest.importorskip("timm.optim.adan")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

SHAPES = [(4, 5), (3,), (1,), (2, 3, 2)]
STEPS = 40
BASE = dict(lr=0.05, betas=(0.8, 0.7, 0.9), eps=0.01, weight_decay=0.2)


def displacement(optimizer, params, start, rng):
    """The parameters after STEPS steps on gradients that depend on them."""
    with torch.no_grad():
        for p, s in zip(params, start, strict=True):
            p.copy_(s)
    for _ in range(STEPS):
        for p in params:
            noise = random(tuple(p.shape), rng, p.dtype)
            p.grad = p.detach() * 0.3 + noise
        optimizer.step()
    return [p.detach().clone() for p in params]


def check(ours, theirs, tolerance=1e-12):
    """Both start at the same point, and gradients depend on it alike; in float64 only rounding differs."""
    start = make_params(SHAPES, np.random.default_rng(0), torch.float64)
    results = []
    for make in (ours, theirs):
        params = make_params(SHAPES, np.random.default_rng(0), torch.float64)
        results.append(displacement(make(params), params, start, np.random.default_rng(1)))
    assert max((x - s).abs().max() for x, s in zip(results[0], start, strict=True)) > 0.5
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


adan_paths = [path for path in each_path.args[1] if path[0] == "adan"]
TORCH = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
torch_cases = pytest.mark.parametrize(
    ("name", "path", "amsgrad"),
    [
        (name, path, amsgrad)
        for name, path in each_path.args[1]
        if name in TORCH
        for amsgrad in ([False] if path == "fused" else [False, True])
    ],
)


@pytest.mark.parametrize(("name", "path"), adan_paths)
@pytest.mark.parametrize("no_prox", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_timm(name, path, no_prox, foreach):
    options = {**BASE, "no_prox": no_prox}
    check(lambda p: build(name, p, path, **options), lambda p: timm_adan.Adan(p, **options, foreach=foreach))


@pytest.mark.parametrize(("name", "path"), adan_paths)
@pytest.mark.parametrize("no_prox", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("max_grad_norm", [0.0, 2.0])
def test_pytorch_optimizer(name, path, no_prox, foreach, max_grad_norm):
    options = {**BASE, "max_grad_norm": max_grad_norm}
    check(
        lambda p: build(name, p, path, no_prox=no_prox, **options),
        lambda p: pytorch_optimizer.Adan(p, weight_decouple=no_prox, foreach=foreach, **options),
        1e-5 if max_grad_norm else 1e-12,
    )


@torch_cases
@pytest.mark.parametrize("theirs", [dict(fused=True), dict(foreach=True), dict(foreach=False)], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
def test_torch_adam(name, path, amsgrad, theirs, maximize):
    options = {**BASE, "betas": (0.8, 0.7), "maximize": maximize, "amsgrad": amsgrad}
    check(lambda p: build(name, p, path, **options), lambda p: TORCH[name](p, **options, **theirs))


@torch_cases
def test_torch_adam_checkpoints_both_ways(name, path, amsgrad):
    """torch's state has our keys: a run can change sides in the middle."""
    options = {**BASE, "betas": (0.8, 0.9), "amsgrad": amsgrad}

    def run(order):
        rng, params = np.random.default_rng(0), make_params(SHAPES, np.random.default_rng(0), torch.float64)
        previous = None
        for make in order:
            optimizer = make(params)
            if previous:
                optimizer.load_state_dict(previous.state_dict())
            displacement(optimizer, params, [p.detach().clone() for p in params], rng)
            previous = optimizer
        return params

    ours, theirs = lambda p: build(name, p, path, **options), lambda p: TORCH[name](p, **options)
    straight = run([theirs, theirs, theirs])
    for order in ([theirs, ours, theirs], [ours, theirs, ours]):
        for a, b in zip(run(order), straight, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert_same_bits(run([theirs, theirs, theirs]), straight)
