"""MARS-AdamW against timm's, and its checkpoints."""

import numpy as np
import pytest
import torch
from harness import build, make_params, set_grads
from test_outside import check

import adan_optim

mars = pytest.importorskip("timm.optim.mars")

OPTIONS = dict(lr=0.05, betas=(0.8, 0.7), eps=0.01, weight_decay=0.2, gamma=0.3)


@pytest.mark.parametrize("path", adan_optim.CARDS["mars"].paths)
@pytest.mark.parametrize("optimize_1d", [False, True])
def test_timm(path, optimize_1d):
    options = OPTIONS | {"optimize_1d": optimize_1d}
    check(lambda p: build("mars", p, path, **options), lambda p: mars.Mars(p, **options))


def test_checkpoints_of_timms_go_on():
    params, twins = (make_params([(4, 5), (3,)], np.random.default_rng(0), torch.float64) for _ in range(2))
    theirs, ours = mars.Mars(params, **OPTIONS), build("mars", twins)

    def train(optimizer, params, seed):
        rng = np.random.default_rng(seed)
        for _ in range(4):
            set_grads(params, rng)
            optimizer.step()

    train(theirs, params, 1)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch._foreach_copy_(twins, params)
    train(theirs, params, 2)
    train(ours, twins, 2)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("option", [{"mars_type": "lion"}, {"lr_1d_factor": 0.5}, {"betas_1d": (0.5, 0.6)}])
def test_options_of_timms_that_are_not_here(option):
    params = make_params([(3,)], np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"a checkpoint with .*{next(iter(option))}"):
        build("mars", params).load_state_dict(mars.Mars(params, **option).state_dict())


@pytest.mark.parametrize("path", adan_optim.CARDS["mars"].paths)
def test_an_infinite_gradient_shows(path):
    p = torch.ones(3, 2, requires_grad=True)
    optimizer = build("mars", [p], path)
    p.grad = torch.ones(3, 2)
    p.grad[1, 1] = float("inf")
    optimizer.step()
    assert p[1, 1].isnan()
