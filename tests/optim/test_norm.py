"""The global norm, against torch.linalg in float64."""

import math

import numpy as np
import pytest
import torch
from harness import case_id, random

import adan_optim
from adan_optim.engine import native, norm
from adan_optim.engine.dtensor import is_dtensor, local
from adan_optim.engine.norm import global_norm

SHAPES = [(3, 4), (0,), (), (1000,), (2, 0, 3), (5, 5, 5)]


def exact(tensors):
    return torch.linalg.vector_norm(torch.cat([x.double().flatten() for x in tensors])).item()


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float32],
        [torch.float64],
        [torch.bfloat16],
        [torch.float16],
        [torch.float16, torch.bfloat16, torch.float32],
        [torch.float32, torch.float64],
    ],
    ids=case_id,
)
def test_against_linalg(dtypes):
    rng = np.random.default_rng(0)
    tensors = [random(shape, rng, dtype) for dtype in dtypes for shape in SHAPES]
    before = [x.clone() for x in tensors]
    found = global_norm(tensors)
    assert found.ndim == 0
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(exact(tensors), rel=1e-14)
    assert all(map(torch.equal, tensors, before))


def test_empty_tensors_only():
    assert global_norm([torch.zeros(0), torch.zeros(3, 0)]).item() == 0


def test_float16_squares_do_not_overflow_nor_vanish():
    assert global_norm([torch.full((4,), 300.0, dtype=torch.float16)]).item() == 600
    tiny = torch.full((4,), 2.0**-20, dtype=torch.float16)
    assert global_norm([tiny]).item() == 2.0**-19


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite(bad):
    assert not global_norm([torch.ones(3), torch.tensor([1.0, bad])]).isfinite()


def test_non_contiguous():
    x = random((6, 8), np.random.default_rng(0))
    parts = [x[:, ::2], x[:, 1::2].t(), x[:1].expand(3, 8)]
    assert global_norm(parts).item() == pytest.approx(exact(parts), rel=1e-6)


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: (None, "no compiler"))
    tensors = [random((1000,), np.random.default_rng(0)), torch.ones(3, dtype=torch.float16), torch.ones(0)]
    assert global_norm(tensors).item() == pytest.approx(exact(tensors), rel=1e-6)
    with pytest.raises(RuntimeError, match="no compiler"):
        native.square_sum(tensors[:1])


def test_squares_do_not_overflow_nor_vanish():
    """Those of float32 numbers, whose own range they leave."""
    for size in (1e30, 1e-30):
        assert global_norm([torch.full((4,), size)]).item() == pytest.approx(2 * size, rel=1e-6)
    assert global_norm([torch.full((4,), 1e200, dtype=torch.float64)]).item() == math.inf


AWKWARD = [
    (1,),
    (15,),
    (16,),
    (17,),
    (511,),
    (513,),
    (0,),
    (65535,),
    (65536,),
    (65537,),
    (3, 70001),
    (200000,),
]


@pytest.mark.parametrize("dtype", native.PARAMETER, ids=case_id)
def test_threads_do_not_matter(dtype):
    """Between them they miss no element, and the sum has the same bits."""
    rng = np.random.default_rng(0)
    tensors = [random(shape, rng, dtype) for shape in AWKWARD]
    found = set()
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        found.add(native.square_sum(tensors))
    assert len(found) == 1
    assert math.sqrt(found.pop()) == pytest.approx(exact(tensors), rel=1e-12)
    assert native.square_sum([torch.ones(0)]) == 0


@pytest.mark.parametrize("name", ["adan", "lamb", "adafactor"])
def test_gradients_of_tables(name, monkeypatch):
    """A fused step finds the same norm, of all groups, as one over a list of the gradients."""
    rng, found = np.random.default_rng(0), []
    params = [
        random(shape, rng).requires_grad_() for shape in [(3, 5), (700,), (2, 3, 4), (0, 4), (64, 1100)]
    ]
    params.append(random((33, 9), rng, torch.float64).requires_grad_())
    groups = [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.0}]
    optimizer = adan_optim.OPTIMIZERS[name](groups, lr=0.0, max_grad_norm=1.0)
    monkeypatch.setattr(
        "adan_optim.engine.scaling.gradient_norm", lambda x: found.append(norm.gradient_norm(x)) or found[-1]
    )
    for _ in range(3):
        for p in params:
            p.grad = random(tuple(p.shape), rng, p.dtype)
        optimizer.step()
        assert found.pop().item() == pytest.approx(exact([p.grad for p in params]), rel=1e-12)


def test_plain_tensors_are_no_dtensors():
    x = torch.ones(2)
    assert not is_dtensor(x)
    assert local(x) is x
