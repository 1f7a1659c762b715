"""Discontinuous rules without eps: the harness leaves out what rounding decides, the base runs them."""

import harness
import numpy as np
import pytest
import torch
from harness import (
    all_params,
    compare,
    gradients,
    make_params,
    oracle_of,
    random,
    resync,
    set_grads,
    undecided,
)
from oracle import DEFINITIONS

import adan_optim
from adan_optim import Lion
from adan_optim.base import Optimizer
from adan_optim.card import Card

B1 = DEFINITIONS["lion"].BASE["betas"][0]


class Sign(Optimizer):
    """The sign of the gradient: of all common hyper-parameters it has only lr."""

    card = Card(
        name="sign",
        title="Sign",
        source="",
        when="",
        states={},
        betas=0,
        paths=("reference",),
        fused_devices=(),
    )

    def __init__(self, params, lr=1e-4, **options):
        super().__init__(params, dict(lr=lr), **options)

    def single_tensor(self, p, g, state, t, group):
        p.sub_(g.sign(), alpha=float(group["lr"]))


def lock_step(variant, path="reference", dtype=torch.float32, at_jump=2, steps=5):
    """Each step is the oracle's, with `at_jump` elements of 600 where the mean is 0 except for rounding."""
    rng = np.random.default_rng(0)
    params = make_params([(20, 15), (300,)], rng, dtype)
    optimizer = Lion(params, **harness.VARIANTS["lion"][variant], **harness.FLAGS[path])
    set_grads(params, rng)
    optimizer.step()
    oracle = oracle_of(optimizer)
    for _ in range(steps):
        set_grads(params, rng)
        m = optimizer.state[params[1]]["exp_avg"]
        uphill = -1 if optimizer.param_groups[0]["maximize"] else 1
        params[1].grad[:at_jump] = (m * (-uphill * B1 / (1 - B1)))[:at_jump]
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)
    return oracle, optimizer


@pytest.mark.parametrize("path", Lion.card.paths)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_elements_at_the_jump_are_left_out(path, dtype):
    for variant in ("plain", "decay", "maximize"):  # clipping would move the gradients away from the jump
        oracle, optimizer = lock_step(variant, path, dtype)
        first, second = undecided(oracle, optimizer)
        assert not first.any()
        assert np.flatnonzero(second).tolist() == ([0, 1] if dtype != torch.bfloat16 else [])
    lock_step("clip", path, dtype, at_jump=0)
    lock_step("no_need_to_clip", path, dtype)


def test_without_the_declaration_rounding_fails_the_test(monkeypatch):
    monkeypatch.delattr(DEFINITIONS["lion"], "jump")
    lock_step("plain", at_jump=0)
    with pytest.raises(AssertionError, match=r"parameter of parameter 1 \(300,\), [1-6] elements from"):
        lock_step("plain", at_jump=6)


def test_not_many_may_be_left_out():
    lock_step("plain", at_jump=6)
    with pytest.raises(AssertionError, match="7 of 600 elements are at a discontinuity"):
        lock_step("plain", at_jump=7)


@pytest.mark.parametrize("cls", [Lion, Sign])
def test_the_base_takes_no_eps_for_granted(cls):
    """Groups, clipping, non-finite gradients, checkpoints, growth by a group, and the model's groups."""
    model = torch.nn.Linear(3, 2)
    optimizer = cls.of_model(
        model, adan_optim.param_groups(model, 0.5, 0.0), max_grad_norm=1.0, nonfinite="skip"
    )
    rng = np.random.default_rng(0)
    set_grads(all_params(optimizer), rng)
    before = [p.detach().clone() for p in all_params(optimizer)]
    optimizer.step()
    for p, old in zip(all_params(optimizer), before, strict=True):
        assert torch.equal(p, old - 0.5 * p.grad.sign())
    optimizer.add_param_group({"params": [random((2,), rng).requires_grad_()], "lr": 0.1})
    with pytest.raises(ValueError, match="lr=-1"):
        optimizer.add_param_group({"params": [random((2,), rng).requires_grad_()], "lr": -1.0})
    with pytest.raises(ValueError, match="unknown key 'lrr'"):
        cls([{"params": [random((2,), rng).requires_grad_()], "lrr": 1.0}])
    other = cls([{"params": group["params"]} for group in optimizer.param_groups])
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.5, 0.1]
    zero = [torch.zeros(3, requires_grad=True)]
    zero[0].grad = torch.zeros(3)
    cls(zero, max_grad_norm=1.0).step()
    assert torch.equal(zero[0], torch.zeros(3))
