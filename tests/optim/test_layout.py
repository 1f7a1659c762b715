"""Where the states of large CPU parameters lie in memory."""

import copy
import io

import pytest
import torch

import adan_optim
from adan_optim.engine.layout import zeros_like

ELEMENTS = [100, 16_384, 100_003, 2**19, 2**20 + 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("count", ELEMENTS)
def test_states_are_zeros_apart_from_each_other(count: int, dtype: torch.dtype) -> None:
    states = [zeros_like(torch.empty(count), slot, dtype) for slot in range(5)]
    for slot, state in enumerate(states):
        assert (state.shape, state.dtype) == ((count,), dtype)
        assert not state.count_nonzero()
        state.fill_(slot)
    for slot, state in enumerate(states):
        assert (state == slot).all()
    if count * dtype.itemsize >= 2**16:  # large memory begins at a page, unless the allocator reuses some
        assert len({state.storage_offset() * dtype.itemsize % 4096 for state in states}) == len(states)


def test_a_large_state_is_saved_and_copied_like_any_other() -> None:
    p = torch.randn(700, 1100).requires_grad_()
    optimizer = adan_optim.Adan([p], fused=None)
    p.grad = torch.randn_like(p)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert file.tell() < 4 * (p.nbytes + 8192)  # what is saved is what is used
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["state"][0]
    twin = copy.deepcopy(optimizer).state_dict()["state"][0]
    for name, state in optimizer.state[p].items():
        assert torch.equal(loaded[name], state)
        assert torch.equal(twin[name], state)


def test_states_outlive_their_optimizer() -> None:
    p = torch.ones(700, 1100).requires_grad_()
    optimizer = adan_optim.Adan([p])
    p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    kept = optimizer.state[p]["neg_pre_grad"]
    del optimizer
    assert (kept == -2).all()
    shared = kept.clone(memory_format=torch.preserve_format)
    assert torch.equal(kept.share_memory_(), shared)
