"""Every optimizer, path, dtype and option set computes what the papers say: against the float64 oracle."""

import functools
import math
import os
import platform
import shutil
from itertools import zip_longest
from unittest import mock

import numpy as np
import pytest
import torch
from harness import (
    CASES,
    FUSED,
    PATHS,
    VARIANTS,
    all_params,
    assert_same_bits,
    build,
    case_id,
    compare,
    each_case,
    each_fused_name,
    each_kept,
    each_path,
    gradients,
    kept_by,
    make_params,
    oracle_of,
    prepared,
    random,
    resync,
    set_grads,
    tensors_of,
    undecided,
    variants_of,
)

from adan_optim.engine import native

SHAPES = [(5, 7), (13,), (), (2, 3, 4)]
# what 16 bits can hold does not depend on the options: each of the two types takes every other option set
TURN = {torch.bfloat16: 0, torch.float16: 1}
LOCK_STEP = [
    (*case, variant)
    for case in CASES
    for i, variant in enumerate(variants_of(*case[:2]))
    if TURN.get(case[2], i % 2) == i % 2
]
# nor does how errors add up in float32: one option set there, and all of them in float64, which sees more
FREE = [
    (name, path, dtype, variant)
    for name, path, dtype in CASES
    for i, variant in enumerate(variants_of(name, path))
    if dtype == torch.float64 or (dtype == torch.float32 and i == 0)
]


def two_groups(name, path, dtype, variant, rng):
    """Two groups whose learning rate and weight decay differ."""
    options = VARIANTS[name][variant]
    other = {key: by * options[key] for key, by in {"lr": 0.5, "weight_decay": 3}.items() if key in options}
    params = make_params(SHAPES, rng, dtype)
    return prepared(build(name, [{"params": params[:2]}, {"params": params[2:], **other}], path, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=case_id)
def test_every_16_bit_number_is_loaded_and_rounded_as_torch_does(dtype):
    """All 65536 bit patterns: subnormals, ties to even, overflow to infinity, infinities and NaN.

    With a zero gradient AdamW multiplies a parameter by 1 - lr wd = 0.75, an exact product in float32 that
    often is a tie. With a gradient of one it adds lr, which takes the largest to a tie with infinity or on.
    """
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for grad, options, expected in [
        (0.0, dict(lr=0.5, weight_decay=0.5), patterns.float() * 0.75),
        (-1.0, dict(lr=16.0, weight_decay=0.0, eps=0.0), patterns.float() + 16),
        (-1.0, dict(lr=2.0**17, weight_decay=0.0, eps=0.0), patterns.float() + 2**17),
    ]:
        p = patterns.clone().requires_grad_()
        p.grad = torch.full_like(p, grad)
        build("adamw", [p], "fused", betas=(0.0, 0.0), **options).step()
        expected = expected.to(dtype)
        nan = expected.isnan()
        assert torch.equal(p.isnan(), nan)
        assert_same_bits([p[~nan]], [expected[~nan]])


# Around a vector, a cache line, a page and 16 bits; with zero-size tensors first, in the middle and last.
SMALL = [(0,), 1, 2, 3, 4, 5, (), 1023, 1024, 1025, (0, 3)]
LARGE = [4095, 4096, 4097, 5000, 20000, 65535, 65536, 65537]


def sizes_for(path):
    """Only the kernels take a large tensor in pieces."""
    return [*SMALL, *(LARGE if path == "fused" else LARGE[:5]), (1, 1), (0,)]


@each_kept
def test_sizes(name, path, dtype, kept):
    """Lists of all sizes."""
    rng = np.random.default_rng(2)
    optimizer = build(name, make_params(sizes_for(path), rng, dtype), path, **kept)
    oracle = oracle_of(optimizer)
    for _ in range(2):
        set_grads(all_params(optimizer), rng)
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)


@each_path
def test_one_tensor_of_each_size(name, path):
    for size in {str(size): size for size in sizes_for(path)}.values():
        rng = np.random.default_rng(3)
        optimizer = build(name, make_params([size], rng), path)
        oracle = oracle_of(optimizer)
        for _ in range(2):
            set_grads(all_params(optimizer), rng)
            resync(oracle, optimizer)
            oracle.step(gradients(optimizer))
            optimizer.step()
            compare(oracle, optimizer)


@each_case
def test_path_against_reference(name, path, dtype):
    """As near to the reference path as both are to the definition, from the same state at each step."""
    if path == "reference":
        pytest.skip("is the reference")
    one, two = (
        prepared(build(name, make_params(sizes_for(path), np.random.default_rng(4), dtype), which))
        for which in ("reference", path)
    )
    rng = np.random.default_rng(5)
    for _ in range(3):
        set_grads(all_params(one), rng)
        for p, q in zip(all_params(one), all_params(two), strict=True):
            q.grad = p.grad.clone()
        before = oracle_of(one)
        before.step(gradients(one))
        one.step()
        two.step()
        expected = oracle_of(one)
        expected.jumps = before.jumps
        tolerant = 2 if dtype in (torch.float32, torch.float64) else 1
        if dtype.itemsize == 2:  # both are within half a unit of the exact result, so a unit apart at most
            masks = map(torch.as_tensor, map(np.asarray, undecided(expected, two)))
            for x, y, skip in zip_longest(tensors_of(one), tensors_of(two), masks):
                unit = torch.finfo(dtype).eps * torch.maximum(x.abs(), y.abs()).clamp(min=1e-3)
                near = (x.double() - y.double()).abs() <= unit
                assert bool((near if skip is None else near | skip).all())
        else:
            compare(expected, two, tolerant)
        with torch.no_grad():
            for p, q in zip(all_params(one), all_params(two), strict=True):
                q.copy_(p)
                for key, x in one.state[p].items():
                    two.state[q][key].copy_(x)


@functools.cache
def large(dtype):
    """Parameters and three gradients of each, more elements than a thread takes at a time."""
    shapes, rng = [70001, 3, 0, 65537, (257, 129), 1, 99991], np.random.default_rng(6)
    return [[random(shape, rng, dtype) for shape in shapes] for _ in range(4)]


def run_threads(name, dtype, threads, kept):
    start, *gradients = large(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        optimizer = build(name, [p.clone().requires_grad_() for p in start], "fused", **kept)
        for step in gradients:
            for p, g in zip(all_params(optimizer), step, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return tensors_of(optimizer)
    finally:
        torch.set_num_threads(before)


each_fused = pytest.mark.parametrize(
    ("name", "dtype", "kept"),
    [
        pytest.param(name, dtype, kept, id=f"{name}-{case}")
        for name in FUSED
        for case, (dtype, kept) in kept_by(name, "fused").items()
    ],
)


@each_fused
def test_threads_do_not_matter(name, dtype, kept):
    """The fused path gives the same bits with 1, 2, 3 and 5 threads, wherever the tensors are cut."""
    one = run_threads(name, dtype, 1, kept)
    for threads in (2, 3, 5):
        assert_same_bits(one, run_threads(name, dtype, threads, kept))


@each_fused_name
def test_threads_agree_with_the_oracle(name):
    rng = np.random.default_rng(7)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        optimizer = build(name, make_params([70001, 3, 0, 65537, 1, 99991], rng), "fused")
        oracle = oracle_of(optimizer)
        for _ in range(3):
            set_grads(all_params(optimizer), rng)
            resync(oracle, optimizer)
            oracle.step(gradients(optimizer))
            optimizer.step()
            compare(oracle, optimizer)
    finally:
        torch.set_num_threads(before)


@pytest.mark.every("name", "variant")
@pytest.mark.parametrize(("name", "path", "dtype", "variant"), LOCK_STEP, ids=case_id)
def test_each_of_12_steps(name, path, dtype, variant):
    """From the optimizer's own parameters and states, each step is the oracle's (see harness.tolerance)."""
    rng = np.random.default_rng(0)
    optimizer = two_groups(name, path, dtype, variant, rng)
    oracle = oracle_of(optimizer)
    for _ in range(12):
        set_grads(all_params(optimizer), rng)
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)


SMALL_STATES = [
    pytest.param(name, path, dtype, kept, variant, id=f"{name}-{path}-{case}-{variant}")
    for name, path in PATHS
    for case, (dtype, kept) in kept_by(name, path).items()
    if kept
    for variant in ("decay", "clip", "maximize_clip")
]


@pytest.mark.every("name", "dtype", "kept")
@pytest.mark.parametrize(("name", "path", "dtype", "kept", "variant"), SMALL_STATES)
def test_each_of_10_steps_with_other_storage(name, path, dtype, kept, variant):
    """Small states, rounded parameters, taken gradients: the same, within what their storage can hold."""
    rng = np.random.default_rng(0)
    params = make_params([(5, 7), (13,), (), (2, 3, 400)], rng, dtype)
    optimizer = prepared(build(name, params, path, **VARIANTS[name][variant], **kept))
    oracle = oracle_of(optimizer)
    for _ in range(10):
        set_grads(params, rng)
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)


@pytest.mark.parametrize(("name", "path", "dtype", "variant"), FREE, ids=case_id)
def test_50_steps_without_looking(name, path, dtype, variant):
    """The gradients do not depend on the parameters, so rounding errors add up at most."""
    rng = np.random.default_rng(1)
    optimizer = two_groups(name, path, dtype, variant, rng)
    oracle = oracle_of(optimizer)
    for _ in range(50):
        set_grads(all_params(optimizer), rng)
        oracle.step(gradients(optimizer))
        optimizer.step()
    compare(oracle, optimizer, steps=50)


@pytest.fixture(scope="module")
def narrower(tmp_path_factory):
    """The kernels for SSE2 and AVX2: copies of the library that were told so when they were first asked."""
    library = native.load()[0]
    if platform.machine() != "x86_64" or library is None:
        pytest.skip("needs x86-64 and the kernels")
    libraries = []
    for limit, name in {"default": "baseline", "avx2": "AVX2"}.items():
        path = shutil.copy(library.kernels._name, tmp_path_factory.mktemp(limit))
        with mock.patch.dict(os.environ, ATEN_CPU_CAPABILITY=limit):
            libraries.append(native.Library(path))
        assert libraries[-1].instruction_set in (name, library.instruction_set)
    return libraries


@each_fused
def test_instruction_set_does_not_matter(name, dtype, kept, narrower, monkeypatch):
    """The widest vectors of this machine, AVX2 and plain SSE2 give the same bits."""
    widest = run_threads(name, dtype, 1, kept)
    for library in narrower:
        monkeypatch.setattr(native, "load", lambda library=library: (library, ""))
        assert_same_bits(widest, run_threads(name, dtype, 1, kept))


@pytest.mark.parametrize("name", ["adan", "lion"])
def test_codes_of_infinities(name, narrower, monkeypatch):
    """Blocks of 8-bit codes with infinities have the same codes with all vectors."""

    def codes():
        (p,) = params = [torch.ones(5 * 256 + 37, requires_grad=True)]
        optimizer = build(name, params, "fused", state_dtype="int8", min_int8_size=0)
        p.grad = torch.linspace(-1, 1, p.numel())
        p.grad[[5, 300, 301, 800]] *= math.inf
        optimizer.step()
        return [x for x in tensors_of(optimizer) if x.dtype == torch.uint8]

    widest = codes()
    assert widest
    for library in narrower:
        monkeypatch.setattr(native, "load", lambda library=library: (library, ""))
        assert_same_bits(widest, codes())


def test_instruction_set_does_not_matter_for_norms(narrower, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = [[random((n,), rng, dtype) for n in (70000, 515, 9)] for dtype in native.PARAMETER]
    widest = list(map(native.square_sum, tensors))
    for library in narrower:
        monkeypatch.setattr(native, "load", lambda library=library: (library, ""))
        assert list(map(native.square_sum, tensors)) == widest
