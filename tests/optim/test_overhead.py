"""What a step must not cost: memory in the steady state, and tables made again."""

from typing import Any

import pytest
import torch
from harness import can
from torch.profiler import ProfilerActivity, profile

import adan_optim
from adan_optim.engine import native

FUSED = [name for name, card in adan_optim.CARDS.items() if "fused" in card.paths]


def parameters(count: int = 20) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(330, 70)) for _ in range(count)]


@pytest.mark.parametrize("name", FUSED)
def test_steady_state_allocates_no_tensor_memory(name: str) -> None:
    """But for factors and sums: they are made again, a few numbers for each row and column, or block."""
    small = 64 * 1024 if any(rule.factors or rule.sums for rule in adan_optim.CARDS[name].fused_rules) else 0
    params = parameters()
    optimizer = adan_optim.build_optimizer(params, name, fused=True)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        optimizer.step()
    assert [event.name for event in seen.events() if event.cpu_memory_usage > small] == []


TAKE = [{}, {"take_gradients": True}, {"state_dtype": "int8"}]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for name in FUSED
        for options in TAKE
        if "take_gradients" not in options or name == "adan"
        if can(name, "fused", torch.float32, options)
    ],
    ids=str,
)
def test_new_gradients_need_no_new_table(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    original = native.CpuTable.__init__

    def counting(self: native.CpuTable, *args: object) -> None:
        nonlocal made
        made += 1
        original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(native.CpuTable, "__init__", counting)
    params = parameters()
    optimizer = adan_optim.build_optimizer(params, name, fused=True, **options)
    for _ in range(5):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        optimizer.zero_grad()
    assert made == len(optimizer.fused_rules(optimizer.state_spec(params[0], optimizer.param_groups[0])))
