"""Sums of squares by rows, columns and tensors: against float64, and the same bits however they are split."""

import numpy as np
import pytest
import torch
from harness import assert_same_bits, case_id, random

from optim.engine import native
from optim.engine.sums import block_totals, column_sums, row_sums, totals

SHAPES = [(3, 5), (1, 1), (7, 1), (1, 9), (0, 4), (64, 1023), (2, 70001), (515, 300), (4097, 33), (1, 200000)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=case_id)


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: (None, "hidden by a test"))
    elif reason := native.load()[1]:
        pytest.skip(reason)


def tensors(dtype):
    rng = np.random.default_rng(0)
    return [random(shape, rng, dtype) for shape in SHAPES]


def check(sums, expected, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6 if native.load()[0] else 2e-5
    for x, y in zip(sums, expected, strict=True):
        assert x.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=0)


@each_dtype
def test_rows(dtype):
    x = tensors(dtype)
    check(row_sums(x, [s[1] for s in SHAPES]), [t.double().square().sum(1) for t in x], dtype)


@each_dtype
def test_whole_tensors(dtype):
    x = tensors(dtype)
    check(row_sums(x, [0] * len(x)), [t.double().square().sum().view(1) for t in x], dtype)


@each_dtype
def test_weighted_rows(dtype):
    x, rng = tensors(dtype), np.random.default_rng(1)
    work = torch.promote_types(dtype, torch.float32)
    weights = [random((shape[1],), rng, work).abs() if i % 3 else None for i, shape in enumerate(SHAPES)]
    expected = [
        (t.double().square() * (1 if w is None else w.double())).sum(1)
        for t, w in zip(x, weights, strict=True)
    ]
    check(row_sums(x, [s[1] for s in SHAPES], weights), expected, dtype)


@each_dtype
def test_columns(dtype):
    x = tensors(dtype)
    check(column_sums(x, [s[1] for s in SHAPES]), [t.double().square().sum(0) for t in x], dtype)


@each_dtype
def test_threads_do_not_matter(dtype):
    x, lengths = tensors(dtype), [s[1] for s in SHAPES]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows = row_sums(x, lengths) + row_sums(x, [0] * len(x))
            results.append(rows + column_sums(x, lengths))
    finally:
        torch.set_num_threads(before)
    if native.load()[0] is not None:
        for other in results[1:]:
            assert_same_bits(results[0], other)


def test_memory_with_gaps_is_refused():
    if native.load()[0] is not None:
        with pytest.raises(ValueError, match="need dense tensors"):
            row_sums([torch.ones(4, 4)[:, ::2]], [2])


def test_totals_of_blocks():
    """Of many tensors at once; what is not a number stays visible in its own total."""
    rng = np.random.default_rng(0)
    blocks = [torch.as_tensor(rng.random((n, 2)), dtype=torch.float32) for n in (1, 700, 3)]
    blocks[1][5, 0] = torch.nan
    u, p = block_totals(blocks)
    for total, column in ((u, 0), (p, 1)):  # as on a GPU
        many = totals(torch.cat([x[:, column] for x in blocks]), [1, 700, 3])
        torch.testing.assert_close(many, total, rtol=1e-12, atol=0, equal_nan=True)
    assert totals(torch.ones(5), [2, 0, 3]).tolist() == [2, 0, 3]
    assert totals(torch.ones(0), [0, 0]).tolist() == [0, 0]
    expected = torch.stack([x.double().sum(0) for x in blocks])
    torch.testing.assert_close(u, expected[:, 0], rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(p, expected[:, 1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_whole_tensors_are_one_operation(backend):
    """On a GPU each is a launch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    x = [torch.ones(n) for n in (3, 5, 7, 9)]
    with Counting():
        row_sums(x, [0] * 4)
    reads = [name for name in names if "norm" in name or "mul" in name or "copy" in name]
    assert reads == ["_foreach_norm.Scalar", "_foreach_copy_.default", "_foreach_mul_.List"]
