"""Adam and AdamW beyond the generic tests: amsgrad in every storage, checkpoints, what separates the two.

Against torch they are compared in test_outside.py.
"""

import numpy as np
import pytest
import torch
from harness import (
    KEPT,
    VARIANTS,
    all_params,
    build,
    compare,
    gradients,
    make_params,
    oracle_of,
    resync,
    set_grads,
)

import adan_optim

BOTH = pytest.mark.parametrize("name", ["adam", "adamw"])
UNFUSED = pytest.mark.parametrize("path", ["foreach", "reference"])
SHAPES = [(5, 7), (13,), (), (2, 3, 400), (0,)]


@BOTH
@UNFUSED
@pytest.mark.parametrize("kept", KEPT)
def test_amsgrad_in_every_storage(name, path, kept):
    """Each of 20 steps is the definition's, within what the storage can hold."""
    dtype, options = KEPT[kept]
    params = make_params(SHAPES, np.random.default_rng(0), dtype)
    optimizer = build(name, params, path, **VARIANTS[name]["amsgrad"], **options)
    oracle, rng = oracle_of(optimizer), np.random.default_rng(1)
    for _ in range(20):
        set_grads(params, rng)
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)
    state = optimizer.state[params[0]]
    assert state["max_exp_avg_sq"].dtype == state["exp_avg_sq"].dtype


@BOTH
def test_amsgrad_takes_the_paths_without_kernels(name):
    cls = adan_optim.OPTIMIZERS[name]
    groups = [
        {"params": make_params([(3,)], np.random.default_rng(0)), "amsgrad": flag} for flag in (False, True)
    ]
    assert cls(groups).path.startswith("foreach")
    assert cls(groups, foreach=False).path == "reference"
    title = cls.card.title
    with pytest.raises(
        ValueError, match=f"group 1: fused=True cannot .*{title} has no fused kernel for amsgrad"
    ):
        cls(groups, fused=True)
    optimizer = cls(groups)
    set_grads(all_params(optimizer), np.random.default_rng(1))
    optimizer.step()
    assert ["max_exp_avg_sq" in optimizer.state[p] for p in all_params(optimizer)] == [False, True]


@BOTH
def test_amsgrad_without_its_maximum_is_no_checkpoint(name):
    """The checkpoint's amsgrad counts, as in torch; a state that does not go with it is refused."""
    plain, amsgrad = (
        build(name, make_params([(3,)], np.random.default_rng(0)), amsgrad=flag) for flag in (False, True)
    )
    for optimizer in (plain, amsgrad):
        set_grads(all_params(optimizer), np.random.default_rng(1))
        optimizer.step()
    saved = amsgrad.state_dict()
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["amsgrad"]
    del saved["state"][0]["max_exp_avg_sq"]
    with pytest.raises(ValueError, match=r"not a checkpoint of Adam.*max_exp_avg_sq"):
        plain.load_state_dict(saved)


def test_decay_goes_through_the_means_or_not():
    """With a gradient of zero Adam's step is lr sign(p), whatever the decay; AdamW's is lr decay p."""
    for name, expected in (("adam", [1.9, -2.9]), ("adamw", [1.96, -2.94])):
        p = torch.tensor([2.0, -3.0], dtype=torch.float64, requires_grad=True)
        p.grad = torch.zeros_like(p)
        build(name, [p], lr=0.1, eps=1e-12, weight_decay=0.2).step()
        torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64))


@BOTH
def test_8_bit_states_are_a_quarter(name):
    p = torch.ones(64, 256, requires_grad=True)
    optimizer = adan_optim.build_optimizer([p], name, state_dtype="int8")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert sum(adan_optim.state_bytes(optimizer).values()) == 4 + 2 * (p.numel() + 4 * p.numel() // 256)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_amsgrad_switched_on_between_steps(name):
    """A step that could go on as the ones before must notice it."""
    params = make_params([(4, 5)], np.random.default_rng(0))
    optimizer = build(name, params)
    rng = np.random.default_rng(1)
    for step in range(4):
        optimizer.param_groups[0]["amsgrad"] = step > 1
        set_grads(params, rng)
        optimizer.step()
        assert ("max_exp_avg_sq" in optimizer.state[params[0]]) == (step > 1)
    optimizer.state[params[0]]["max_exp_avg_sq"].sub_(optimizer.state[params[0]]["exp_avg_sq"])
    assert (optimizer.state[params[0]]["max_exp_avg_sq"] >= 0).all()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_largest_mean_square_needs_no_sign_in_8_bits(name):
    """So its codes go up to 255."""
    params = make_params([(20, 20)], np.random.default_rng(0))
    optimizer = build(name, params, amsgrad=True, state_dtype="int8", min_int8_size=0)
    set_grads(params, np.random.default_rng(1))
    optimizer.step()
    assert optimizer.state[params[0]]["max_exp_avg_sq"].max() == 255
