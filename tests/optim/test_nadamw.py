"""NAdamW against timm's and torch's NAdam, and their checkpoints."""

import numpy as np
import pytest
import torch
from harness import build, make_params, set_grads
from test_outside import check

import adan_optim

timm = pytest.importorskip("timm.optim")

OPTIONS = dict(lr=0.05, betas=(0.8, 0.7), eps=0.01, weight_decay=0.2)
DOZAT = OPTIONS | {"momentum_decay": 0.3}
each_path = pytest.mark.parametrize("path", adan_optim.CARDS["nadamw"].paths)


@each_path
@pytest.mark.parametrize("maximize", [False, True])
def test_timm(path, maximize):
    options = OPTIONS | {"maximize": maximize}
    check(lambda p: build("nadamw", p, path, **options), lambda p: timm.NAdamW(p, **options))


@pytest.mark.parametrize("path", ["foreach", "reference"])
def test_torch(path):
    check(
        lambda p: build("nadamw", p, path, **DOZAT),
        lambda p: torch.optim.NAdam(p, **DOZAT, decoupled_weight_decay=True),
        1e-6,  # it keeps the product of the momenta in float32
    )


def test_defaults_are_those_of_others():
    ours, theirs = (kind([torch.ones(1)]).defaults for kind in (adan_optim.NAdamW, timm.NAdamW))
    assert all(ours[name] == theirs[name] for name in OPTIONS)


@pytest.mark.parametrize("theirs", [timm.NAdamW, torch.optim.NAdam])
def test_checkpoints_go_on(theirs):
    more = {"decoupled_weight_decay": True, "momentum_decay": 0.3} if theirs is torch.optim.NAdam else {}
    params, twins = (make_params([(4, 5), (3,)], np.random.default_rng(0), torch.float64) for _ in range(2))
    old, new = theirs(params, **OPTIONS, **more), build("nadamw", twins)

    def train(optimizer, params, seed):
        rng = np.random.default_rng(seed)
        for _ in range(4):
            set_grads(params, rng)
            optimizer.step()

    train(old, params, 1)
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        torch._foreach_copy_(twins, params)
    train(old, params, 2)
    train(new, twins, 2)
    torch.testing.assert_close(params, twins, rtol=1e-6, atol=1e-6)


def test_the_schedule_of_the_momentum_has_no_kernel():
    p = [torch.ones(2, requires_grad=True)]
    with pytest.raises(ValueError, match=r"no fused kernel for momentum_decay=0\.004"):
        adan_optim.NAdamW(p, momentum_decay=0.004, fused=True)
    assert adan_optim.NAdamW(p, momentum_decay=0.004).path == "foreach"
