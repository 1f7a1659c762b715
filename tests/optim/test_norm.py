"""The global norm, against torch.linalg in float64."""

import numpy as np
import pytest
import torch
from harness import case_id, random

from optim.engine.dtensor import is_dtensor, local
from optim.engine.norm import global_norm

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
    norm = global_norm(tensors)
    assert norm.ndim == 0
    wide = torch.float64 in dtypes
    assert norm.dtype == (torch.float64 if wide else torch.float32)
    assert norm.item() == pytest.approx(exact(tensors), rel=1e-14 if wide else 1e-6)
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


def test_plain_tensors_are_no_dtensors():
    x = torch.ones(2)
    assert not is_dtensor(x)
    assert local(x) is x
