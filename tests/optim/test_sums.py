"""Sums of squares by rows, columns and tensors: against float64, and the same bits however they are split.

test_cuda_sums.py has the same of the CUDA kernels.
"""

import numpy as np
import pytest
import torch
from harness import assert_same_bits, case_id, random

from adan_optim.engine import native
from adan_optim.engine.sums import CpuSums, block_totals, totals

SHAPES = [(3, 5), (1, 1), (7, 1), (1, 9), (0, 4), (64, 1023), (2, 70001), (515, 300), (4097, 33), (1, 200000)]
SHAPES += [(1, 0), (30000, 70)]  # nothing at all, parts of columns that are longer than the last
each_dtype = pytest.mark.parametrize("dtype", native.PARAMETER, ids=case_id)

if reason := native.load()[1]:
    pytest.skip(reason, allow_module_level=True)


def tensors(dtype):
    rng = np.random.default_rng(0)
    return [random(shape, rng, dtype) for shape in SHAPES]


def check(sums, expected, dtype):
    assert sums.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(sums.double(), torch.cat(expected), rtol=tolerance, atol=0)


@each_dtype
def test_rows_and_columns(dtype):
    x = tensors(dtype)
    squares, sums = [t.double().square() for t in x], CpuSums(dtype, SHAPES)
    rows, columns = ([square.sum(dim) for square in squares] for dim in (1, 0))
    check(sums.rows(x), rows, dtype)
    check(sums.rows_and_columns(x), rows + columns, dtype)


@each_dtype
def test_whole_tensors(dtype):
    x = tensors(dtype)
    sums = CpuSums(dtype, [(1, t.numel()) for t in x]).rows(x)
    check(sums, [t.double().square().sum().view(1) for t in x], dtype)


@each_dtype
def test_weighted_rows(dtype):
    x, rng = tensors(dtype), np.random.default_rng(1)
    lengths = [length for _, length in SHAPES]
    weights = random((sum(lengths),), rng, torch.promote_types(dtype, torch.float32)).abs()
    each = torch.split(weights.double(), lengths)
    expected = [(t.double().square() * w).sum(1) for t, w in zip(x, each, strict=True)]
    check(CpuSums(dtype, SHAPES).rows(x, weights), expected, dtype)


@each_dtype
def test_threads_do_not_matter(dtype):
    x, sums = tensors(dtype), CpuSums(dtype, SHAPES)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([sums.rows_and_columns(x)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same_bits(results[0], other)


def test_memory_with_gaps_is_refused():
    with pytest.raises(ValueError, match="need dense tensors"):
        CpuSums(torch.float32, [(4, 2)]).rows([torch.ones(4, 4)[:, ::2]])


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: (None, "no compiler"))
    with pytest.raises(RuntimeError, match="no compiler"):
        CpuSums(torch.float32, [(4, 2)])


def test_totals_of_blocks():
    """Of many tensors at once; what is not a number stays visible in its own total."""
    rng = np.random.default_rng(0)
    blocks = [torch.as_tensor(rng.random((n, 2)), dtype=torch.float32) for n in (1, 700, 3)]
    blocks[1][5, 0] = torch.nan
    u, p = block_totals(torch.cat(blocks), [1, 700, 3])
    for total, column in ((u, 0), (p, 1)):  # as on a GPU
        many = totals(torch.cat([x[:, column] for x in blocks]), [1, 700, 3])
        torch.testing.assert_close(many, total, rtol=1e-12, atol=0, equal_nan=True)
    assert totals(torch.ones(5), [2, 0, 3]).tolist() == [2, 0, 3]
    assert totals(torch.ones(0), [0, 0]).tolist() == [0, 0]
    expected = torch.stack([x.double().sum(0) for x in blocks])
    torch.testing.assert_close(u, expected[:, 0], rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(p, expected[:, 1], rtol=1e-12, atol=0)
