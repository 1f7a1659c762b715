"""The drop-ins for other packages' Adans: their results where those are right, and what differs where not."""

import pytest
import torch

import adan_optim
from adan_optim.dropins import adan_pytorch, optimi, pytorch_optimizer

PATHS = ({"foreach": False, "fused": False}, {"foreach": True}, {})


def trained(make, first=1.0, steps=12):
    """Parameters [7] after steps with a constructor's optimizer, in float64; the first gradient is scaled."""
    p = torch.linspace(-2, 3, 7, dtype=torch.float64, requires_grad=True)
    optimizer = make([p])
    for step in range(steps):
        p.grad = torch.sin(p.detach() * (step + 1)) * (first if step == 0 else 1.0)
        optimizer.step()
    return p.detach()


def assert_same(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.filterwarnings("ignore:You are using weight_decay up to")
@pytest.mark.parametrize(
    "options", [{}, {"decouple_lr": True}, {"decouple_lr": True, "max_lr": 0.2}], ids=str
)
def test_optimi(options):
    theirs = pytest.importorskip("optimi").Adan
    options = dict(lr=0.1, betas=(0.9, 0.8, 0.7), weight_decay=0.3, eps=1e-3, **options)
    assert_same(
        trained(lambda p: optimi.Adan(p, **options)),
        trained(lambda p: theirs(p, foreach=False, triton=False, **options)),
    )


def test_optimi_in_words_of_its_own():
    p = [torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)]
    assert optimi.Adan(p, 0.1, kahan_sum=True).param_groups[0]["param_rounding"] == "kahan"
    assert optimi.Adan(p, 0.1, kahan_sum=None).param_groups[0]["param_rounding"] == "kahan"
    assert optimi.Adan(p, 0.1).param_groups[0]["param_rounding"] == "nearest"
    assert optimi.Adan(p, 0.1, adam_wd=True).param_groups[0]["no_prox"]
    assert optimi.Adan(p, 0.1, foreach=True, triton=False).fused is False
    with pytest.raises(TypeError, match=r"use adan_optim\.step_in_backward"):
        optimi.Adan(p, 0.1, gradient_release=True)
    with pytest.raises(TypeError, match=r"max_lr=0\.2: it has no effect without decouple_lr=True"):
        optimi.Adan(p, 0.1, max_lr=0.2)


@pytest.mark.parametrize(
    "options", [{}, {"weight_decouple": True}, {"max_grad_norm": 0.5}, {"weight_decay": 0.0}], ids=str
)
def test_pytorch_optimizer(options):
    theirs = pytest.importorskip("pytorch_optimizer").Adan
    options = dict(lr=0.1, betas=(0.9, 0.8, 0.7), weight_decay=0.3, eps=1e-3) | options
    assert_same(
        trained(lambda p: pytorch_optimizer.Adan(p, **options)),
        trained(lambda p: theirs(p, foreach=False, **options)),
        tolerance=1e-5 if "max_grad_norm" in options else 1e-12,  # it takes the norm in float32
    )


def test_pytorch_optimizer_ascends_otherwise():
    """Its decay and difference have the wrong sign then; ours is the step for -g."""
    theirs = pytest.importorskip("pytorch_optimizer").Adan
    options = dict(lr=0.1, weight_decay=0.3, maximize=True)
    ours = trained(lambda p: pytorch_optimizer.Adan(p, **options))
    assert_same(ours, trained(lambda p: adan_optim.Adan(p, **options)))
    assert not torch.allclose(ours, trained(lambda p: theirs(p, foreach=False, **options)), rtol=1e-3)
    with pytest.raises(TypeError, match="weigth_decay"):
        pytorch_optimizer.Adan([torch.zeros(1, requires_grad=True)], weigth_decay=0.1)


def test_adan_pytorch_but_for_its_first_step():
    """The original drops its first gradient: without one, both are the same."""
    theirs = pytest.importorskip("adan_pytorch").Adan
    options = dict(lr=0.1, betas=(0.1, 0.2, 0.3), weight_decay=0.3, eps=1e-3)
    ours = trained(lambda p: adan_pytorch.Adan(p, **options))
    assert_same(ours, trained(lambda p: adan_optim.Adan(p, **options | {"betas": (0.9, 0.8, 0.7)})))
    assert not torch.allclose(ours, trained(lambda p: theirs(p, **options)), rtol=1e-3)
    without = trained(lambda p: adan_pytorch.Adan(p, **options), first=0.0)
    assert_same(without, trained(lambda p: theirs(p, **options), first=0.0))


def test_adan_pytorch_has_the_papers_betas_in_groups_too():
    p = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    groups = [{"params": p[:1]}, {"params": p[1:], "betas": (0.1, 0.2, 0.3)}]
    optimizer = adan_pytorch.Adan(groups)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.98, 0.92, 0.99), (0.9, 0.8, 0.7)]
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.98, 0.92, 0.99), (0.9, 0.8, 0.7)]
    with pytest.raises(ValueError, match="here they are 1 minus the decay factors"):
        adan_pytorch.Adan(p, betas=(0.98, 0.92, 0.99))
    with pytest.raises(TypeError, match=r"restart_cond: .*optimizer.state.clear\(\)"):
        adan_pytorch.Adan(p, restart_cond=lambda state: True)


@pytest.mark.parametrize("module", [adan_pytorch, optimi, pytorch_optimizer])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_every_path(module, path):
    def make(params):
        optimizer = module.Adan(params, lr=0.1)
        optimizer.foreach, optimizer.fused = path.get("foreach"), path.get("fused")
        return optimizer

    default = {"weight_decay": 0.02, "eps": 1e-6} if module is optimi else {}
    torch.testing.assert_close(trained(make), trained(lambda p: adan_optim.Adan(p, lr=0.1, **default)))


@pytest.mark.parametrize(
    ("cls", "word", "hint"),
    [
        (optimi.Adan, "no_prox", "adam_wd"),
        (optimi.Adan, "fused", "triton"),
        (optimi.Adan, "learning_rate", "lr"),
        (pytorch_optimizer.Adan, "no_prox", "weight_decouple"),
        (pytorch_optimizer.Adan, "triton", "fused"),
        (adan_pytorch.Adan, "weight_decouple", "no_prox"),
    ],
)
def test_words_that_a_drop_in_does_not_have(cls, word, hint):
    with pytest.raises(TypeError, match=rf"^Adan has no option '{word}': did you mean '{hint}'\?$"):
        cls([torch.zeros(1, requires_grad=True)], lr=0.1, **{word: True})


@pytest.mark.parametrize("cls", [optimi.Adan, adan_pytorch.Adan, pytorch_optimizer.Adan])
def test_drop_ins_have_the_options_of_adan(cls):
    """Their signatures show them, so that building by name accepts them."""
    options = {"max_grad_norm": 0.5, "take_gradients": True, "state_dtype": "bfloat16"}
    optimizer = adan_optim.build_optimizer(torch.nn.Linear(2, 2), f"{cls.__module__}.Adan", lr=0.1, **options)
    assert type(optimizer) is cls
    assert (optimizer.max_grad_norm, optimizer.take_gradients) == (0.5, True)


def test_the_betas_of_adan_pytorch_are_named_in_its_own_convention():
    p = [torch.zeros(1, requires_grad=True)]
    with pytest.raises(ValueError, match=r"betas=\(0.1, 0.01\): .* the default is \(0.02, 0.08, 0.01\)"):
        adan_pytorch.Adan(p, betas=(0.1, 0.01))
    with pytest.raises(TypeError, match=r"betas=0.5: give 3 numbers"):
        adan_pytorch.Adan(p, betas=0.5)
