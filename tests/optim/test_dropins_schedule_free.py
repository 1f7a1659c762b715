"""The drop-in for the schedule-free Adans of neosr and traiNNer-redux."""

import inspect

import numpy as np
import pytest
import torch
from harness import assert_same_bits, make_params, set_grads, tensors_of

import adan_optim
from adan_optim.dropins.schedule_free import AdanScheduleFree, adan_sf

SHAPES = [(6, 5), (3,)]
OPTIONS = dict(lr=0.02, betas=(0.8, 0.7, 0.9), weight_decay=0.1, max_grad_norm=1.0)


def after_three_steps(make):
    params, rng = make_params(SHAPES, np.random.default_rng(0)), np.random.default_rng(1)
    optimizer = make(params)
    for _ in range(3):
        set_grads(params, rng)
        optimizer.step()
    return [*params, *tensors_of(optimizer)]


def test_schedule_free_arguments_are_those_of_neosr():
    names = [
        "params",
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "max_grad_norm",
        "warmup_steps",
        "r",
        "weight_lr_power",
        "schedule_free",
    ]
    assert list(inspect.signature(adan_sf).parameters)[:-1] == names
    assert adan_sf is AdanScheduleFree
    with pytest.raises(TypeError, match="no option 'warmup': did you mean 'warmup_steps'"):
        adan_sf([torch.ones(1)], warmup=3)


def test_schedule_free_is_ours():
    weights = dict(warmup_steps=2, r=1.0, weight_lr_power=1.0)
    ours = after_three_steps(lambda p: adan_optim.ScheduleFreeAdan(p, **OPTIONS, **weights))
    assert_same_bits(ours, after_three_steps(lambda p: adan_sf(p, **OPTIONS, **weights, schedule_free=True)))


def test_without_it_it_is_adan():
    ours = after_three_steps(lambda p: adan_optim.Adan(p, **OPTIONS, no_prox=True))
    assert_same_bits(ours, after_three_steps(lambda p: adan_sf(p, **OPTIONS, schedule_free=False)))
    with pytest.raises(ValueError, match=r"warmup_steps=5 with schedule_free=False: .*scheduler"):
        adan_sf([torch.ones(1)], warmup_steps=5, schedule_free=False)


def test_checkpoints_of_neosr_and_traiNNer_are_refused():
    p = torch.ones(2, requires_grad=True)
    names = ("exp_avg", "exp_avg_sq", "exp_avg_diff", "z", "neg_pre_grad")
    group = dict(lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0, step=3, params=[0])
    group |= dict(r=0.0, warmup_steps=0, weight_lr_power=2.0, weight_sum=1.0, lr_max=1e-3, train_mode=True)
    saved = {"state": {0: {name: torch.ones(2) for name in names}}, "param_groups": [group]}
    with pytest.raises(ValueError, match=r"not a checkpoint of Schedule-free Adan: .*exp_avg"):
        adan_sf([p]).load_state_dict(saved)
