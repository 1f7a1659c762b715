"""AdEMAMix against pytorch_optimizer's, its schedules, and the checkpoints of others."""

import copy

import numpy as np
import pytest
import torch
from harness import build, make_params, set_grads
from test_outside import check

import adan_optim
from adan_optim.ademamix import warmed_up

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

OPTIONS = dict(lr=0.05, betas=(0.8, 0.7, 0.95), eps=0.01, weight_decay=0.2, alpha=2.0)


@pytest.mark.parametrize("path", adan_optim.CARDS["ademamix"].paths)
@pytest.mark.parametrize("warmup", [0, 25, 100])
def test_pytorch_optimizer(path, warmup):
    check(
        lambda p: build("ademamix", p, path, **OPTIONS, alpha_warmup=warmup, beta3_warmup=warmup),
        lambda p: pytorch_optimizer.AdEMAMix(
            p, **OPTIONS, t_alpha_beta3=warmup or None, weight_decouple=True
        ),
    )


def test_the_warm_ups_end_where_they_should():
    group = dict(betas=(0.9, 0.999, 0.9999), alpha=5.0, alpha_warmup=1000, beta3_warmup=1000)
    values = [warmed_up(t, group) for t in range(1, 1101)]
    alphas, betas = zip(*values, strict=True)
    assert alphas[499] == 2.5
    assert values[999] == values[1099] == (5.0, 0.9999)
    assert np.all(np.diff(betas[:1000]) > 0)
    half_lives = np.log(0.5) / np.log(betas[:1000])
    np.testing.assert_allclose(np.diff(half_lives), np.diff(half_lives).mean(), rtol=1e-6)


def test_checkpoints_with_the_authors_names():
    params = make_params([(4, 5)], np.random.default_rng(0))
    ours, other = build("ademamix", params), build("ademamix", params)
    set_grads(params, np.random.default_rng(1))
    ours.step()
    saved = copy.deepcopy(ours.state_dict())
    saved["state"][0]["exp_avg_fast"] = saved["state"][0].pop("exp_avg")
    other.load_state_dict(saved)
    assert torch.equal(other.state[params[0]]["exp_avg"], ours.state[params[0]]["exp_avg"])


@pytest.mark.parametrize("name", ["alpha_warmup", "beta3_warmup"])
def test_warm_ups_are_steps(name):
    with pytest.raises(ValueError, match=f"{name}=2.5: give a whole number >= 0"):
        adan_optim.AdEMAMix([torch.ones(2)], **{name: 2.5})
