"""What a step must not cost: memory in the steady state, and tables made anew."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import optim
from optim import native

FUSED = [name for name, card in optim.CARDS.items() if "fused" in card.paths]


def parameters(count: int = 20) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(33, 7)) for _ in range(count)]


@pytest.mark.parametrize("name", FUSED)
def test_steady_state_allocates_no_tensor_memory(name: str) -> None:
    params = parameters()
    optimizer = optim.build_optimizer(params, name, fused=True)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        optimizer.step()
    assert [event.name for event in seen.events() if event.cpu_memory_usage > 0] == []


@pytest.mark.parametrize("name", FUSED)
def test_new_gradients_need_no_new_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    original = native.Table.__init__

    def counting(self: native.Table, *args: object) -> None:
        nonlocal made
        made += 1
        original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(native.Table, "__init__", counting)
    params = parameters()
    optimizer = optim.build_optimizer(params, name, fused=True)
    for _ in range(5):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        optimizer.zero_grad()
    assert made == 1
