"""Blocks of tensors that share a number: sums over them and the way back, and Adam-mini on shards of them."""

import dataclasses
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import FLAGS, array, assert_same_bits, case_id, needs_fsdp2, random, tensors_of
from torch import nn

from adan_optim import AdamMini, partition
from adan_optim.engine import native
from adan_optim.engine.blocks import canonical, default, spread, squared_sums
from adan_optim.engine.dtensor import tensor_module


def by_hand(shape, blocks):
    """The number of each element's block, from the definition in adan_optim.engine.blocks."""
    if len(blocks) == 1:
        return (np.arange(np.prod(shape, dtype=int)) // (np.prod(shape, dtype=int) // blocks[0])).reshape(
            shape
        )
    index = np.zeros(shape, int)
    for d, n in enumerate(blocks):
        at = np.arange(shape[d]) // (shape[d] // n)
        index = index * n + at.reshape([-1 if i == d else 1 for i in range(len(shape))])
    return index


CUTS = [
    ((), (1,)), ((6,), (1,)), ((6,), (6,)), ((6,), (3,)), ((4, 6), (1,)), ((4, 6), (2,)), ((4, 6), (4,)),
    ((4, 6), (24,)), ((4, 6), (8,)), ((4, 6), (3,)), ((4, 6), (1, 6)), ((4, 6), (1, 2)), ((4, 6), (2, 3)),
    ((4, 6, 5), (24,)), ((4, 6, 5), (2, 3, 1)), ((4, 6, 5), (4, 1, 5)), ((1, 7, 5), (7,)),
    ((4, 2, 3, 5), (4,)), ((4, 2, 3, 5), (2, 2, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "blocks"), CUTS)
@pytest.mark.parametrize("turned", [False, True])
def test_sums_and_factors_of_blocks(shape, blocks, turned):
    """In any layout in memory."""
    g = random(shape, np.random.default_rng(0), torch.float64)
    if turned:
        g = g.permute(turn := tuple(range(g.ndim))[::-1]).contiguous().permute(turn)
    index = by_hand(shape, blocks)
    expected = np.bincount(index.ravel(), weights=array(g).ravel() ** 2, minlength=np.prod(blocks))
    sums = squared_sums(g, blocks)
    assert sums.shape == blocks
    np.testing.assert_allclose(array(sums).ravel(), expected, rtol=1e-14)
    x = torch.arange(float(np.prod(blocks))).reshape(blocks)
    np.testing.assert_array_equal(array(spread(x, g).expand(shape)), index)


def test_blocks_that_follow_each_other_are_written_so():
    assert canonical((4, 6), (2, 1)) == canonical((4, 6), (2,)) == (2,)
    assert canonical((4, 6), (4, 6)) == (24,)
    assert canonical((4, 6), (4, 3)) == (12,)
    assert canonical((4, 6, 5), (4, 6, 1)) == (24,)
    assert canonical((1, 6), (1, 6)) == (6,)
    assert canonical((4, 6), (1, 3)) == (1, 3)
    assert canonical((4, 6), (2, 6)) == (2, 6)
    assert canonical((4, 6, 5), (4, 1, 5)) == (4, 1, 5)


def test_blocks_by_shape():
    shapes = [(), (5,), (4, 3), (1, 3), (1, 7, 3), (1, 1, 3), (4, 3, 2, 2), (0,), (0, 3), (3, 0)]
    assert [default(shape) for shape in shapes] == [(n,) for n in (1, 1, 4, 1, 7, 1, 4, 1, 1, 1)]


# ---- shards

SHARDED = [  # shape, blocks, sharded dimension
    ((12, 5), (3,), 0),  # heads that two processes share
    ((12, 5), (2,), 0),
    ((7, 5), (1,), 0),
    ((7, 5), (7,), 0),
    ((7, 5), (35,), 0),
    ((8, 3), (6,), 0),  # that end within rows
    ((2, 6), (2,), 0),  # fewer rows than processes
    ((6,), (1,), 0),
    ((7,), (7,), 0),
    ((5, 12), (1, 12), 0),  # GPT-2's weights
    ((5, 12), (1, 4), 0),
    ((5, 7), (5,), 1),  # tensor parallel
    ((6, 7), (2,), 1),
    ((5, 12), (1, 4), 1),
    ((4, 7, 5), (28,), 1),
    ((4, 7, 6), (4, 1, 6), 0),
    ((4, 7, 6), (4, 1, 6), 2),
    ((3, 4), (3,), None),  # replicated
]


def sharded_model():
    rng = np.random.default_rng(0)
    return nn.ParameterList([random(shape, rng, torch.float64) for shape, _, _ in SHARDED])


def train_sharded(model, optimizer, place=lambda x, dim: x):
    rng = np.random.default_rng(1)
    for _ in range(3):
        for p, (shape, _, dim) in zip(model, SHARDED, strict=True):
            p.grad = place(random(shape, rng, torch.float64), dim)
        optimizer.step()


def built(model):
    rules = {p: blocks for p, (_, blocks, _) in zip(model, SHARDED, strict=True)}
    return AdamMini(
        model.parameters(),
        0.1,
        (0.7, 0.8),
        0.01,
        0.1,
        partition=partition(model, rules=rules),
        max_grad_norm=1.0,
    )


# ---- the CPU's kernel, which makes the factors

# Blocks that end in other places than tiles and the parts of threads, some of one element, some long.
ROWS = [((300, 1000), 300), ((3,), 1), ((0, 4), 1), ((70000,), 70000), ((131, 777), 131), ((200001,), 3)]
ROWS += [((100000,), 1), ((5000, 9), 5000), ((40, 4096), 40)]


def trained(path, dtype=torch.float32, threads=1, bad=(), **options):
    """The tensors of an optimizer after three steps."""
    rng = np.random.default_rng(0)
    model = nn.ParameterList([random(shape, rng, dtype) for shape, _ in ROWS])
    rules = {p: (blocks,) for p, (_, blocks) in zip(model, ROWS, strict=True)}
    options = {"weight_decay": 0.1, "min_int8_size": 0, "maximize": True, **options, **FLAGS[path]}
    optimizer = AdamMini(
        model.parameters(), 0.1, (0.7, 0.8), 0.01, partition=partition(model, rules=rules), **options
    )
    torch.set_num_threads(threads)
    for step in range(3):
        for p in model[: 7 + step]:  # two begin later
            p.grad = random(tuple(p.shape), rng, dtype)
        for value in bad:
            model[0].grad[150, 3] = model[5].grad[7] = value
        optimizer.step()
    return tensors_of(optimizer)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"state_dtype": "float32"}], ids=str)
@pytest.mark.parametrize("dtype", native.PARAMETER, ids=case_id)
def test_blocks_of_any_length(dtype, options):
    if dtype == torch.float64 and "state_dtype" in options:
        return
    expected = trained("reference", dtype, **options)
    small = dtype.itemsize == 2
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if small else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(trained("fused", dtype, **options), expected, **tolerance)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_block(bad):
    found, expected = (trained(path, bad=[bad]) for path in ("fused", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kept", [None, "bfloat16", "int8"])
def test_blocks_that_threads_share(kept):
    one = trained("fused", state_dtype=kept)
    for threads in (2, 3, 7, 30):
        assert_same_bits(one, trained("fused", state_dtype=kept, threads=threads))


def test_factors_made_apart(monkeypatch):
    """As on a GPU: by torch's operations, before the step."""
    one = trained("fused", max_grad_norm=1.0)
    monkeypatch.setattr(AdamMini, "card", dataclasses.replace(AdamMini.card, cpu_rules=()))
    torch.testing.assert_close(trained("fused", max_grad_norm=1.0), one, rtol=1e-5, atol=1e-6)


def worker(rank, port, folder):
    dtensors = tensor_module()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (3,))

        def place(x, dim):
            return dtensors.distribute_tensor(
                x, mesh, [dtensors.Replicate() if dim is None else dtensors.Shard(dim)]
            )

        model = nn.ParameterList(
            [
                nn.Parameter(place(p.detach(), dim))
                for p, (_, _, dim) in zip(sharded_model(), SHARDED, strict=True)
            ]
        )
        optimizer = built(model)
        train_sharded(model, optimizer, place)
        values = [p.full_tensor().detach() for p in model]
        torch.save((values, [optimizer.state[p]["exp_avg_sq"] for p in model]), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.exhaustive
@needs_fsdp2
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch", "ignore:.*:FutureWarning:torch")
def test_blocks_across_shards(tmp_path):
    """Three processes: parameters and second moments are those of one process, on every process."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # from a process that has imported all this once
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(worker, (port, tmp_path), nprocs=3, start_method="forkserver")
    model = sharded_model()
    optimizer = built(model)
    train_sharded(model, optimizer)
    for rank in range(3):
        values, moments = torch.load(tmp_path / f"{rank}.pt")
        for p, case, value, v in zip(model, SHARDED, values, moments, strict=True):
            told = f"rank {rank}, {case}"
            np.testing.assert_allclose(array(value), array(p), rtol=1e-10, err_msg=told)
            np.testing.assert_allclose(
                array(v), array(optimizer.state[p]["exp_avg_sq"]), rtol=1e-12, err_msg=told
            )
