"""PyTorch alone: parameters that join late, mixed precision, groups of other libraries."""

import pytest
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

import adan_optim

NAMES = list(adan_optim.OPTIMIZERS)
OPTIONS = dict(lr=0.02, weight_decay=0.1)
each_name = pytest.mark.parametrize("name", NAMES)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 1)
    return nn.Sequential(*layers).to(dtype)


def loss(model, seed, dtype=torch.float64):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return (model(x) - x.sin().sum(dim=1, keepdim=True)).square().mean()


@each_name
def test_frozen_and_late_parameters(name):
    """Each behaves as if it had an optimizer of its own, which steps when there is a gradient."""

    def freeze(model, step):
        model[0].requires_grad_(step not in (2, 3))  # frozen for a while
        model[5].requires_grad_(step >= 3)  # joins late

    model, twin = network(), network()
    freeze(model, 0)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = adan_optim.build_optimizer(params, name, **OPTIONS)
    alone = [adan_optim.build_optimizer([p], name, **OPTIONS) for p in twin.parameters()]
    for step in range(7):
        for net in (model, twin):
            freeze(net, step)
        if step == 3:
            optimizer.add_param_group({"params": list(model[5].parameters())})
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
        for single in alone:
            single.zero_grad()
        loss(twin, step).backward()
        for single in alone:
            single.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    assert int(optimizer.state[model[0].weight]["step"]) == 5
    assert int(optimizer.state[model[5].weight]["step"]) == 4


@each_name
def test_autocast_and_grad_scaler(name):
    """A loss scaled by a power of two makes the same steps, and a step that overflows is left out.

    To the bit: where a weight differed in its last digit, it could round to another bfloat16.
    """
    results = []
    for enabled in (False, True):
        model = network(torch.float32)
        optimizer = adan_optim.build_optimizer(model, name, **OPTIONS)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=256.0)
        for step in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(model, step, torch.float32)
            scaler.scale(value).backward()
            if step == 3:
                if not enabled:
                    continue
                model[0].weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == (1 if not enabled else 256 if step < 3 else 128)
        assert value < 12
        results.append(list(model.parameters()))
    for p, q in zip(*results, strict=True):
        assert torch.equal(p, q)


@each_name
@pytest.mark.parametrize("groups", [param_groups_weight_decay, param_groups_layer_decay])
def test_groups_of_timm(name, groups):
    """Are taken as they are: every key that is ours has its effect, the others are kept."""
    model = network()
    built = groups(model, weight_decay=0.1)
    optimizer = adan_optim.OPTIMIZERS[name](built, lr=0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [g["weight_decay"] for g in built]
    loss(model, 0).backward()
    optimizer.step()
    assert len(optimizer.state) == len(list(model.parameters()))
