"""Stepping in the backward pass: the same as stepping after it, with one gradient alive at a time."""

from pathlib import Path

import pytest
import torch
from torch import nn

import adan_optim
from adan_optim.engine.plan import collect

pytestmark = pytest.mark.per_family

NAMES = [name for name, cls in adan_optim.OPTIMIZERS.items() if cls.independent]
OPTIONS = dict(lr=0.02, weight_decay=0.1)
each_name = pytest.mark.parametrize("name", NAMES)


class Tied(nn.Module):
    """With a weight that two layers share, a layer without a gradient, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.unused, self.frozen = nn.Linear(5, 5), nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.double()

    def forward(self, x):
        return self.frozen(self.second(self.first(x).tanh()))


def backward(model, seed):
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (model(x) - x.sin()).square().mean().backward()


def train(model, optimizer, seeds, scheduler=None):
    for seed in seeds:
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()
        if scheduler:
            scheduler.step()


def assert_same(optimizer, other):
    for x, y in zip(optimizer.param_groups, other.param_groups, strict=True):
        for p, q in zip(x["params"], y["params"], strict=True):
            assert torch.equal(p, q)
            ours, theirs = optimizer.state.get(p, {}), other.state.get(q, {})
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in ours)


@each_name
def test_it_is_the_same_step(name):
    """With a schedule that was there before, a checkpoint that is loaded, and a group that comes later."""
    results = []
    for inside in (False, True):
        model = Tied()
        optimizer = adan_optim.build_optimizer(adan_optim.param_groups(model, **OPTIONS), name)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        if inside:
            adan_optim.step_in_backward(optimizer)
        train(model, optimizer, range(4), scheduler)
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(4, 6), scheduler)
        model.frozen.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.frozen.parameters())})
        train(model, optimizer, range(6, 9), scheduler)
        assert int(optimizer.state[model.first.weight]["step"]) == 9
        assert int(optimizer.state[model.frozen.weight]["step"]) == 3
        results.append(optimizer)
    assert_same(*results)


@each_name
def test_handles_give_the_usual_step_back(name):
    model = Tied()
    optimizer = adan_optim.build_optimizer(model, name, **OPTIONS)
    for handle in adan_optim.step_in_backward(optimizer):
        handle.remove()
    before = model.first.weight.clone()
    backward(model, 0)
    assert torch.equal(model.first.weight, before)
    optimizer.step()
    train(model, optimizer, [1])  # SOAP's first step moves nothing
    assert not torch.equal(model.first.weight, before)


def test_taken_gradients():
    results = []
    for inside in (False, True):
        model = Tied()
        optimizer = adan_optim.build_optimizer(model, "adan", take_gradients=True, **OPTIONS)
        if inside:
            adan_optim.step_in_backward(optimizer)
        train(model, optimizer, range(4))
        results.append(optimizer)
    assert_same(*results)


@each_name
@pytest.mark.parametrize("options", [{"max_grad_norm": 1.0}, {"nonfinite": "skip"}, {"nonfinite": "raise"}])
def test_what_needs_all_gradients_is_refused(name, options):
    optimizer = adan_optim.build_optimizer(Tied(), name, **options)
    [(key, value)] = options.items()
    with pytest.raises(ValueError, match=f"{key}={value!r} needs all gradients at once"):
        adan_optim.step_in_backward(optimizer)


@pytest.mark.parametrize("name", [x for x, cls in adan_optim.OPTIMIZERS.items() if not cls.independent])
def test_steps_that_depend_on_all_gradients_are_refused(name):
    with pytest.raises(
        ValueError, match=r"'s steps depend on all gradients at once.*: call step\(\) after it"
    ):
        adan_optim.step_in_backward(adan_optim.build_optimizer(Tied(), name))


def test_hooks_of_the_step_are_refused():
    """There is no step for them to see: those that are there, and those that come later."""
    for hook in ("register_step_pre_hook", "register_step_post_hook"):
        model = Tied()
        optimizer = adan_optim.build_optimizer(model, "adan")
        handle = getattr(optimizer, hook)(lambda *args: None)
        with pytest.raises(ValueError, match=r"step hooks \(adan_optim\.Monitor.*remove them"):
            adan_optim.step_in_backward(optimizer)
        handle.remove()
        adan_optim.step_in_backward(optimizer)
        backward(model, 0)
        getattr(optimizer, hook)(lambda *args: None)
        with pytest.raises(RuntimeError, match=r"step hooks"):
            backward(model, 1)


def test_a_schedule_without_calls_of_step():
    """It does not warn: a warning is an error here."""
    model = Tied()
    optimizer = adan_optim.build_optimizer(model, "adan", lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    adan_optim.step_in_backward(optimizer)
    for seed in range(2):
        backward(model, seed)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.25


@each_name
def test_a_step_does_not_look_at_all_parameters(name, monkeypatch):
    """What the fused path knows of a tensor is collected once."""
    model = Tied()
    optimizer = adan_optim.build_optimizer(model, name, **OPTIONS)
    if optimizer.path in ("foreach", "reference"):
        pytest.skip(f"{name} takes the path {optimizer.path}, which collects at every step")
    adan_optim.step_in_backward(optimizer)
    looked_at = []
    monkeypatch.setattr(adan_optim.base, "collect", lambda it: looked_at.append(it) or collect(it))
    for seed in range(5):
        backward(model, seed)
        if seed == 0:
            assert len(looked_at) == 3  # a weight and two biases
    assert len(looked_at) == 3


@pytest.mark.parametrize(("name", "options"), [*((n, {}) for n in NAMES), ("adan", {"take_gradients": True})])
def test_bytes_of_gradients(name, options):
    """Those alive when a gradient is complete, at most: what the page says."""
    peaks = []
    for inside in (False, True):
        model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
        optimizer = adan_optim.build_optimizer(model, name, **OPTIONS, **options)
        params, alive = list(model.parameters()), []

        def look(_, params=params, alive=alive):
            alive.append(sum(p.grad.nbytes for p in params if p.grad is not None))

        for p in params:
            p.register_post_accumulate_grad_hook(look)
        if inside:
            adan_optim.step_in_backward(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 256)).square().mean().backward()
            optimizer.step()
        peaks.append(max(alive))
    assert peaks == [8 * (256 * 256 + 256) * 4, 256 * 256 * 4]
    page = (Path(__file__).resolve().parents[2] / "docs" / "frameworks.md").read_text()
    assert f"{peaks[1]:,} bytes instead of {peaks[0]:,}" in page
