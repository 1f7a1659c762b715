"""torch.amp.GradScaler's fused protocol: it hands over the scale and whether there is an inf, and unscaling,
clipping and the step are one pass. The scale is a power of two, so everything must be bit for bit what it is
with gradients that were never scaled (with clipping: except for the rounding of the coefficient)."""

import numpy as np
import pytest
import torch
from harness import (
    FLAGS,
    all_params,
    assert_same_bits,
    bits,
    build,
    each_path,
    make_params,
    random,
    tensors_of,
    unit_options,
)

pytestmark = pytest.mark.per_family

SHAPES = [(4, 3), (5,), (), (2, 2, 2)]
OVERFLOW = (0, 3, 4)  # steps in which a gradient is not finite


def train(name, path, scaler, unscale=False, **options):
    """Six good steps, and with a scaler three bad ones between them, which must leave no trace."""
    optimizer = build(name, make_params(SHAPES, np.random.default_rng(0)), path, **options)
    params, rng = all_params(optimizer), np.random.default_rng(1)
    for step in range(9):
        if scaler is None:
            if step in OVERFLOW:
                continue
            for p in params:
                p.grad = random(tuple(p.shape), rng)
            optimizer.step()
            continue
        optimizer.zero_grad()
        source = np.random.default_rng(2) if step in OVERFLOW else rng
        loss = sum((p * random(tuple(p.shape), source)).sum() for p in params)
        scaler.scale(loss).backward()
        if step in OVERFLOW:
            params[2].grad.fill_(float("nan" if step == 3 else "inf"))
        if unscale:
            scaler.unscale_(optimizer)
        before = [bits(p.grad) for p in params]
        steps = [optimizer.state[p]["step"].item() for p in params if p in optimizer.state]
        scaler.step(optimizer)
        assert_same_bits(before, [bits(p.grad) for p in params])
        if step in OVERFLOW:
            assert steps == [optimizer.state[p]["step"].item() for p in params if steps]
        scaler.update()
        assert not hasattr(optimizer, "grad_scale")
    return tensors_of(optimizer)


@each_path
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 0.8, "eps": 0.3},
        {"max_grad_norm": 1e5},
        {"maximize": True, "max_grad_norm": 0.8},
        {"nonfinite": "skip"},
        {"nonfinite": "raise", "max_grad_norm": 0.8},
    ],
    ids=str,
)
def test_grad_scaler(name, path, unscale, options):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    scaled = train(name, path, scaler, unscale, **options)
    assert scaler.get_scale() == 2.0**12 * 2**3 / 2**3  # it halved thrice, and doubled thrice
    expected = train(name, path, None, **options)
    if "max_grad_norm" in options and not unscale:  # the coefficient is taken in float64 with a scale
        torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=1e-6)
    else:
        assert_same_bits(scaled, expected)


@each_path
def test_the_scaler_uses_the_fused_protocol(name, path):
    """It leaves the gradients alone and passes the factor on."""
    optimizer = build(name, make_params(SHAPES, np.random.default_rng(0)), path)
    assert optimizer._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(sum(p.sum() for p in all_params(optimizer))).backward()
    scaler.step(optimizer)
    assert all((p.grad == 1024).all() for p in all_params(optimizer))


@pytest.mark.parametrize("path", FLAGS)
def test_accelerate_sees_that_a_step_was_skipped(path):
    """It takes an overflow for a step that was not called; without it the scaler leaves that to the step."""
    accelerate = pytest.importorskip("accelerate")
    from accelerate.optimizer import AcceleratedOptimizer

    accelerate.Accelerator(cpu=True)
    try:
        params = make_params(SHAPES, np.random.default_rng(0))
        optimizer = build("adan", params, path)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        wrapped = AcceleratedOptimizer(optimizer, scaler=scaler)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)  # which replaces the step, too
        for overflow in (False, True, False):
            wrapped.zero_grad()
            scaler.scale(sum(p.square().sum() for p in params)).backward()
            if overflow:
                params[0].grad[0, 0] = float("inf")
            before = tensors_of(optimizer)
            wrapped.step()
            assert wrapped.step_was_skipped == overflow
            same = [torch.equal(x, y) for x, y in zip(before, tensors_of(optimizer), strict=False)]
            assert all(same) == overflow
        assert optimizer._step_supports_amp_scaling  # of its own step
        optimizer._step_supports_amp_scaling = False
        assert not optimizer._step_supports_amp_scaling
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@each_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_gradients_are_unscaled_in_float32(name, path, dtype):
    """A gradient below the smallest float16, scaled into range, still counts."""
    p = torch.ones(3, dtype=dtype, requires_grad=True)
    options = dict(weight_decay=0.0, eps=1e-10, lr=0.25)
    optimizer = build(name, [p], path, **{**options, **unit_options(name)})
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0**24), torch.tensor(0.0)
    p.grad = torch.full_like(p, 2.0**-2)
    optimizer.step()
    assert (p < 0.8).all()
