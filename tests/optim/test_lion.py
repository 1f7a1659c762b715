"""Lion against timm's and pytorch_optimizer's, their checkpoints, and the sign of NaN and inf."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from harness import assert_same_bits, build, make_params, set_grads
from test_outside import check

import adan_optim

timm_lion = pytest.importorskip("timm.optim.lion")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

each_path = pytest.mark.parametrize("path", adan_optim.CARDS["lion"].paths)
OPTIONS = dict(lr=0.05, betas=(0.8, 0.9), weight_decay=0.2)


@each_path
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("theirs", [timm_lion.Lion, pytorch_optimizer.Lion])
def test_other_packages(path, foreach, maximize, theirs):
    options = OPTIONS | {"maximize": maximize}
    check(lambda p: build("lion", p, path, **options), lambda p: theirs(p, **options, foreach=foreach))


def test_defaults_are_timms():
    ours, theirs = (
        adan_optim.Lion(make_params([(3,)], np.random.default_rng(0))),
        timm_lion.Lion([torch.ones(1)]),
    )
    for name in ("lr", "betas", "weight_decay"):
        assert ours.defaults[name] == theirs.defaults[name]


@each_path
@pytest.mark.parametrize(("theirs", "counted"), [(timm_lion.Lion, 5), (pytorch_optimizer.Lion, 10)])
def test_a_checkpoint_of_theirs_goes_on(path, theirs, counted):
    params, twins = (make_params([(4, 5), (3,)], np.random.default_rng(0), torch.float64) for _ in range(2))
    theirs, ours = theirs(params, **OPTIONS), build("lion", twins, path)

    def train(optimizer, params, seed):
        rng = np.random.default_rng(seed)
        for _ in range(5):
            set_grads(params, rng)
            optimizer.step()

    train(theirs, params, 1)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for p, q in zip(params, twins, strict=True):
            q.copy_(p)
    train(theirs, params, 2)
    train(ours, twins, 2)
    assert ours.state[twins[0]]["step"] == counted  # timm's has no step count
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("theirs", "option"),
    [
        (timm_lion.Lion, "corrected_weight_decay"),
        (pytorch_optimizer.Lion, "fixed_decay"),
        (pytorch_optimizer.Lion, "cautious"),
    ],
)
def test_options_of_others_that_are_not_here(theirs, option):
    saved = theirs(make_params([(3,)], np.random.default_rng(0)), **{option: True}).state_dict()
    ours = adan_optim.Lion(make_params([(3,)], np.random.default_rng(0)))
    with pytest.raises(ValueError, match=f"a checkpoint with {option}=True: there is no such option here"):
        ours.load_state_dict(saved)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_coupled_weight_decay_is_refused(decay):
    theirs, ours = (make_params([(3,)], np.random.default_rng(0)) for _ in range(2))
    saved = pytorch_optimizer.Lion(theirs, weight_decay=decay, weight_decouple=False).state_dict()
    ours = adan_optim.Lion(ours)
    refused = pytest.raises(ValueError, match=r"weight_decay=0\.1 that is part of the gradient")
    with refused if decay else nullcontext():
        ours.load_state_dict(saved)


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_nan_reaches_the_parameter(path, dtype):
    """torch's sign of it is 0: the element would stay where it is, and only its state would show why."""
    params = make_params([(7,), (300,)], np.random.default_rng(0), dtype)
    optimizer = build("lion", params, path)
    set_grads(params, np.random.default_rng(1))
    params[1].grad[3] = float("nan")
    optimizer.step()
    assert torch.nonzero(params[1].isnan()).flatten().tolist() == [3]
    assert not params[0].isnan().any()


@each_path
def test_every_element_moves_by_lr(path):
    """Whatever the size of its gradient, also infinite; not at all where the mean is 0."""
    p = torch.zeros(6, requires_grad=True)
    p.grad = torch.tensor([1e-30, -1e30, float("inf"), -float("inf"), 0.0, -0.0])
    build("lion", [p], path, lr=0.25, weight_decay=0.0).step()
    assert_same_bits([p + 0.0], [torch.tensor([-0.25, 0.25, -0.25, 0.25, 0.0, 0.0])])
