"""Shampoo's own: against pytorch_optimizer's two, cases that can be worked out by hand, where it is hard.

pytorch_optimizer means the same where it is compared, in float64 with a damping too small to matter:
* its Shampoo is Algorithm 1 of the first paper, without grafting, so directions are compared; its momentum is
  of preconditioned gradients, and it has no 1-D rule of ours;
* its ScalableShampoo grafts to RMSProp, which is AdamW with betas (0, b2) and eps 0 except for the bias
  correction. Its norms are over layers, not blocks; its Newton iteration stops at an error of 1e-3, so it is
  given use_svd.
Both damp by a multiple of the identity at the start of the sum, which is not relative.
"""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import PATHS, assert_same_bits, build, make_params, random, set_grads, tensors_of

import adan_optim
from adan_optim.engine.dtensor import share_of, tensor_module
from adan_optim.engine.matrices import alike, cut

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_optimizer")
each_path = pytest.mark.parametrize("path", [path for name, path in PATHS if name == "shampoo"])
F64 = torch.float64
PLAIN = dict(
    lr=0.1, betas=(0.0, 0.9), eps=0.0, weight_decay=0.0, shampoo_beta=1.0, matrix_eps=1e-14,
    precondition_frequency=1, start_preconditioning_step=1,
)  # fmt: skip


def shampoo(shapes, path, dtype=F64, **options):
    params = make_params(shapes, np.random.default_rng(0), dtype)
    return params, build("shampoo", params, path, **{**PLAIN, **options})


def moved(p, optimizer, g):
    """What a step with the gradient g subtracts from the parameter."""
    before, p.grad = p.detach().clone(), g
    optimizer.step()
    return before - p.detach()


def unit(x):
    return x / x.norm()


# ---- others


@each_path
@pytest.mark.parametrize("frequency", [1, 4])
def test_directions_of_pytorch_optimizers_shampoo(path, frequency):
    theirs_of = pytest.importorskip("pytorch_optimizer").Shampoo
    (p,), ours = shampoo(
        [(6, 6)], path, start_preconditioning_step=frequency, precondition_frequency=frequency
    )
    q = p.detach().clone().requires_grad_()
    theirs = theirs_of([q], lr=1.0, matrix_eps=1e-14, preconditioning_compute_steps=frequency)
    rng = np.random.default_rng(1)
    for step in range(1, 41):
        g = random((6, 6), rng, F64)
        one, two = moved(p, ours, g), moved(q, theirs, g.clone())
        if step >= frequency:  # theirs stands still before
            torch.testing.assert_close(unit(one), unit(two), rtol=1e-8, atol=1e-8)


@each_path
def test_pytorch_optimizers_scalable_shampoo(path):
    """Schedule, forgetting, norms and vectors too: the parameters stay together."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    shapes, b2 = [(6, 6), (5,), (7, 7)], 0.9
    options = dict(betas=(0.0, b2), start_preconditioning_step=6)
    params, ours = shampoo(shapes, path, shampoo_beta=b2, precondition_frequency=3, **options)
    others = [p.detach().clone().requires_grad_() for p in params]
    theirs = pytorch_optimizer.ScalableShampoo(
        others, lr=0.1, **options, preconditioning_compute_steps=3, moving_average_for_momentum=True,
        nesterov=False, graft_type=3, diagonal_eps=0.0, matrix_eps=1e-14, use_svd=True,
        shape_interpretation=False,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for step in range(1, 41):
        set_grads(params, rng)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.clone()
        ours.param_groups[0]["lr"] = 0.1 / math.sqrt(1 - b2**step)
        ours.step()
        theirs.step()
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)


@each_path
def test_vectors_take_adamws_step(path):
    """Of one dimension, of one row or column, of none."""
    shapes = [(5,), (), (1, 4), (4, 1), (1, 1), (3, 1, 1, 1), (0, 3)]
    options = dict(betas=(0.7, 0.9), eps=0.1, weight_decay=0.3)
    params, ours = shampoo(shapes, path, **options)
    others = [p.detach().clone().requires_grad_() for p in params]
    theirs = build("adamw", others, path, lr=0.1, **options)
    rng = np.random.default_rng(1)
    for _ in range(5):
        set_grads(params, rng)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad
        ours.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-14)
        assert set(ours.state[p]) == {"step", "exp_avg", "exp_avg_sq"}


# ---- by hand


@each_path
def test_a_constant_gradient_is_made_orthogonal(path):
    """G = U S V^T: (G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T; with exponent 1/2, U S^(-1) V^T."""
    for exponent, power in ((0.25, 0.0), (0.5, -1.0)):
        (p,), optimizer = shampoo([(4, 6)], path, exponent=exponent)
        g = random((4, 6), np.random.default_rng(1), F64)
        u, s, vt = torch.linalg.svd(g, full_matrices=False)
        for _ in range(3):
            step = moved(p, optimizer, g)
        torch.testing.assert_close(unit(step), unit(u @ torch.diag(s**power) @ vt), rtol=1e-3, atol=1e-3)


@each_path
def test_a_rank_one_history_keeps_its_direction(path):
    (p,), optimizer = shampoo([(5, 3)], path)
    rng = np.random.default_rng(1)
    g = random((5, 1), rng, F64) @ random((1, 3), rng, F64)
    for scale in (1.0, 0.1, 7.0):
        # the roots of directions without a gradient multiply rounding by 1e7 in all
        torch.testing.assert_close(unit(moved(p, optimizer, scale * g)), unit(g), rtol=1e-6, atol=1e-6)


@each_path
def test_a_diagonal_quadratic_is_whitened(path):
    """Of sum(h_i x_i^2) / 2 on a diagonal: each element moves by g_i / sqrt(sum g_i^2), as AdaGrad would."""
    h = torch.tensor([1e-2, 1.0, 30.0, 1e3], dtype=F64)
    p = torch.diag(torch.tensor([1.0, -2.0, 3.0, -1.0], dtype=F64)).requires_grad_()
    optimizer = build("shampoo", [p], path, **{**PLAIN, "lr": 0.05, "matrix_eps": 1e-20, "eps": 1e-9})
    total = torch.zeros(4, dtype=F64)
    for _ in range(20):
        g = h * p.detach().diagonal()
        total += g**2
        step = moved(p, optimizer, torch.diag(g))
        torch.testing.assert_close(unit(step), torch.diag(unit(g / total.sqrt())), rtol=1e-6, atol=1e-12)


@each_path
@pytest.mark.parametrize("block_size", [100, 4])
def test_the_norm_is_that_of_adamws_step(path, block_size):
    options = dict(betas=(0.8, 0.9), eps=0.01)
    (p,), ours = shampoo([(7, 9)], path, matrix_eps=0.01, block_size=block_size, **options)
    q = p.detach().clone().requires_grad_()
    theirs = build("adamw", [q], path, lr=0.1, weight_decay=0.0, **options)
    rng = np.random.default_rng(1)
    for _ in range(6):
        g = random((7, 9), rng, F64)
        one, two = moved(p, ours, g), moved(q, theirs, g)
        assert (unit(one) - unit(two)).norm() > 0.01
        for x, y in zip(cut(one, block_size), cut(two, block_size), strict=True):
            torch.testing.assert_close(x.norm(), y.norm(), rtol=1e-13, atol=0)


# ---- blocks and the schedule


@each_path
def test_blocks_are_parameters_of_their_own(path):
    """(7, 9) in blocks of at most 4: rows 4 + 3, columns 3 + 3 + 3; a convolution is [out, rest]."""
    options = dict(matrix_eps=0.01, betas=(0.8, 0.9), shampoo_beta=0.9)
    (p, conv), one = shampoo([(7, 9), (6, 2, 1, 3)], path, block_size=4, **options)
    parts = [x.detach().clone().requires_grad_() for x in (*cut(p.detach(), 4), *cut(conv.detach(), 4))]
    assert [tuple(x.shape) for x in parts] == [(4, 3)] * 3 + [(3, 3)] * 3 + [(3, 3)] * 4
    two = build("shampoo", parts, path, **{**PLAIN, **options})
    rng = np.random.default_rng(1)
    for _ in range(5):
        set_grads([p, conv], rng)
        for x, g in zip(parts, (*cut(p.grad, 4), *cut(conv.grad, 4)), strict=True):
            x.grad = g.clone()
        one.step()
        two.step()
    for x, y in zip((*cut(p.detach(), 4), *cut(conv.detach(), 4)), parts, strict=True):
        torch.testing.assert_close(x, y.detach(), rtol=1e-13, atol=1e-13)
    for name in ("factors", "inverse_roots"):
        rows = [row for x in (p, conv) for row in one.state[x][name]]
        for row, x in zip(rows, parts, strict=True):
            m, n = x.shape
            torch.testing.assert_close(row[: m * m + n * n], two.state[x][name][0], rtol=1e-12, atol=1e-12)
    assert adan_optim.state_bytes(one)["factors"] == 8 * (6 * 25 + 4 * 18)


@each_path
def test_roots_change_when_they_are_due(path):
    (p,), optimizer = shampoo([(4, 3)], path, start_preconditioning_step=3, precondition_frequency=4)
    rng, changed = np.random.default_rng(1), []
    for step in range(1, 16):
        before = optimizer.state[p]["inverse_roots"].clone() if step > 1 else torch.zeros(1, 25, dtype=F64)
        moved(p, optimizer, random((4, 3), rng, F64))
        if not torch.equal(before, optimizer.state[p]["inverse_roots"]):
            changed.append(step)
    assert changed == [3, 7, 11, 15]


@each_path
def test_a_checkpoint_between_two_computations(path):
    options = dict(dtype=torch.float32, matrix_eps=1e-6, precondition_frequency=5, shampoo_beta=0.9)
    (p,), one = shampoo([(9, 7)], path, **options)
    rng = np.random.default_rng(1)
    for _ in range(8):
        moved(p, one, random((9, 7), rng))
    (q,), two = shampoo([(9, 7)], path, **options)
    q.data.copy_(p.data)
    two.load_state_dict(one.state_dict())
    for _ in range(8):
        g = random((9, 7), rng)
        moved(p, one, g)
        moved(q, two, g)
    assert_same_bits(tensors_of(one), tensors_of(two))


def test_stacks_are_bounded(monkeypatch):
    """Many equal blocks are taken in turns."""
    monkeypatch.setattr("adan_optim.engine.matrices.STACK", 30)
    rows = [(torch.full((3, 4), float(i)), torch.zeros(2)) for i in range(5)] + [
        (torch.ones(9, 9), torch.ones(1))
    ]
    found = [[len(column) for column in columns] for columns in alike(rows)]
    assert found == [[2, 2], [2, 2], [1, 1], [1, 1]]
    assert [x[0, 0].item() for columns in alike(rows) for x in columns[0]] == [0.0, 1.0, 2.0, 3.0, 4.0, 1.0]


# ---- where it is hard


def failing(dtypes, calls):
    """torch.linalg.eigh that does not converge for these dtypes."""
    eigh = torch.linalg.eigh

    def fails(x):
        calls.append(x.dtype)
        if x.dtype in dtypes:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(x)

    return fails


@each_path
def test_float64_where_float32_fails(path, monkeypatch):
    options = dict(dtype=torch.float32, matrix_eps=0.01, block_size=3)
    (p,), one = shampoo([(5, 4)], path, **options)
    (q,), two = shampoo([(5, 4)], path, **options)
    moved(p, one, g := random((5, 4), np.random.default_rng(1)))
    calls = []
    monkeypatch.setattr(torch.linalg, "eigh", failing({torch.float32}, calls))
    moved(q, two, g)
    assert set(calls) == {torch.float32, torch.float64}
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert two.state[q]["inverse_roots"].dtype == torch.float32


@each_path
def test_former_roots_where_both_fail(path, monkeypatch):
    (p,), optimizer = shampoo([(5, 4)], path, dtype=torch.float32)
    rng = np.random.default_rng(1)
    moved(p, optimizer, random((5, 4), rng))
    before = optimizer.state[p]["inverse_roots"].clone()
    monkeypatch.setattr(torch.linalg, "eigh", failing({torch.float32, torch.float64}, []))
    moved(p, optimizer, random((5, 4), rng))
    assert torch.equal(optimizer.state[p]["inverse_roots"], before)
    assert p.isfinite().all()


@each_path
def test_factors_that_overflow_keep_their_roots(path):
    """Of 1e25 float32 holds no square: the block goes on with the roots it has, the other with new ones."""
    (p,), optimizer = shampoo(
        [(4, 8)], path, dtype=torch.float32, block_size=4, matrix_eps=0.01, betas=(0.5, 0.9)
    )
    rng = np.random.default_rng(1)
    moved(p, optimizer, random((4, 8), rng))
    before = optimizer.state[p]["inverse_roots"].clone()
    g = random((4, 8), rng)
    g[2, 1] = 1e25
    moved(p, optimizer, g)
    after = optimizer.state[p]["inverse_roots"]
    # infinite are an element of the left factor's diagonal, and of the right one's
    assert not optimizer.state[p]["factors"][0].isfinite().all()
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1, :16], before[1, :16])
    assert not torch.equal(after[1, 16:], before[1, 16:])
    for _ in range(3):
        moved(p, optimizer, random((4, 8), rng))
    assert p.isfinite().all()
    assert optimizer.state[p]["inverse_roots"].isfinite().all()


@each_path
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12])
def test_gradients_that_vanish_or_are_large(path, scale):
    """Nothing becomes NaN, and there are roots once there is something to take them of."""
    (p,), optimizer = shampoo([(4, 3)], path, dtype=torch.float32, eps=1e-8, matrix_eps=1e-6)
    rng = np.random.default_rng(1)
    for _ in range(4):
        assert moved(p, optimizer, scale * random((4, 3), rng)).norm() <= 0.1 * math.sqrt(12) * 4
    assert optimizer.state[p]["inverse_roots"].isfinite().all()
    for _ in range(40):
        step = moved(p, optimizer, random((4, 3), rng))
        assert step.isfinite().all()
        assert scale > 1 or step.norm() > 0.01
    assert optimizer.state[p]["inverse_roots"].isfinite().all()
    assert optimizer.state[p]["inverse_roots"].any()


@each_path
def test_a_factor_of_low_rank_in_float32(path):
    """Eigenvalues that rounding makes negative are zeros: the largest root is matrix_eps^-exponent."""
    (p,), optimizer = shampoo([(60, 2)], path, dtype=torch.float32, matrix_eps=1e-6)
    for seed in range(5):
        moved(p, optimizer, random((60, 2), np.random.default_rng(seed % 2)))
    left = optimizer.state[p]["inverse_roots"][0, :3600].view(60, 60)
    assert torch.linalg.eigvalsh(left.double()).max() <= 1e-6**-0.25 * 1.001
    assert p.isfinite().all()


# ---- arguments


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("shampoo_beta", 1.5, r"shampoo_beta=1.5: must be in \[0, 1\]"),
        ("shampoo_beta", -0.1, "shampoo_beta=-0.1: must be a finite number >= 0"),
        ("matrix_eps", 0.0, "matrix_eps=0.0: must be above 0"),
        ("exponent", float("nan"), "exponent=nan: must be a finite number"),
        ("block_size", 0, "block_size=0: give a whole number >= 1"),
        ("block_size", 2.0, "block_size=2.0: give a whole number >= 1"),
        ("precondition_frequency", True, "precondition_frequency=True: give a whole number >= 1"),
        ("start_preconditioning_step", 0, "start_preconditioning_step=0: give a whole number >= 1"),
    ],
)
def test_bad_arguments(option, value, match):
    with pytest.raises(ValueError, match=match) as caught:
        adan_optim.Shampoo([torch.ones(2, 2, requires_grad=True)], **{option: value})
    assert "\n" not in str(caught.value)


@each_path
def test_block_size_cannot_be_changed(path):
    (p,), optimizer = shampoo([(4, 6)], path)
    moved(p, optimizer, torch.ones(4, 6, dtype=F64))
    optimizer.param_groups[0]["block_size"] = 3
    with pytest.raises(ValueError, match="block_size=3: a parameter has states for another"):
        moved(p, optimizer, torch.ones(4, 6, dtype=F64))


# ---- what it is for


@each_path
def test_fewer_steps_than_adamw_on_a_matrix_with_two_bad_sides(path):
    """|A W B - C|^2, whose curvature is a Kronecker product: Shampoo turns both sides, AdamW neither."""
    rng = np.random.default_rng(0)
    spread = torch.logspace(-1, 0, 8, dtype=F64)
    a, b = (
        torch.linalg.qr(random((8, 8), rng, F64))[0] * spread @ random((8, 8), rng, F64) for _ in range(2)
    )
    c = random((8, 8), rng, F64)

    def loss_after(name, **options):
        w = torch.zeros(8, 8, dtype=F64, requires_grad=True)
        optimizer = build(name, [w], path, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8, lr=0.02, **options)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (a @ w @ b - a @ c @ b).square().sum()
            loss.backward()
            optimizer.step()
        return loss.item()

    ours = loss_after("shampoo", matrix_eps=1e-6, shampoo_beta=0.99, block_size=100)
    assert ours < loss_after("adamw") / 2


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning:torch",
    "ignore:.*:FutureWarning:torch",
    "ignore:DTensor random operators may not have complete support:UserWarning",  # torch 2.4
)
def test_a_step_is_sharded_like_its_parameter():
    """Each process computes the whole step; what goes on with a DTensor has the DTensor's placements."""
    dtensors = tensor_module()

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        owner = dtensors.distribute_tensor(
            torch.zeros(4, 3), dist.device_mesh.init_device_mesh("cpu", (1,)), [dtensors.Shard(1)]
        )
        step = torch.arange(12.0).view(4, 3)
        shared = share_of(owner, step)
        assert shared.placements == owner.placements
        assert torch.equal(shared.full_tensor(), step)
        assert share_of(torch.zeros(4, 3), step) is step
    finally:
        dist.destroy_process_group()
