"""SOAP's own: against pytorch_optimizer's, its bases, their order and signs, where it is hard."""

import math

import numpy as np
import pytest
import torch
from harness import VARIANTS, assert_same_bits, build, make_params, random, set_grads, tensors_of

import adan_optim
from adan_optim.soap import eigenvectors, power_iteration

F64 = torch.float64
each_path = pytest.mark.parametrize("path", adan_optim.CARDS["soap"].paths)
PLAIN = dict(lr=0.1, betas=(0.8, 0.9), eps=1e-20, weight_decay=0.0, shampoo_beta=0.9, matrix_eps=0.0)
PLAIN |= dict(block_size=100, precondition_frequency=3)


def soap(shapes, path, dtype=F64, **options):
    params = make_params(shapes, np.random.default_rng(0), dtype)
    return params, build("soap", params, path, **{**PLAIN, **options})


@each_path
def test_pytorch_optimizers(path):
    """Of square matrices, whose factors have a definite basis, without decay, which theirs does later."""
    theirs_of = pytest.importorskip("pytorch_optimizer").SOAP
    params, ours = soap([(6, 6), (8, 8), (6, 6)], path)
    others = [p.detach().clone().requires_grad_() for p in params]
    options = {key: PLAIN[key] for key in ("lr", "betas", "eps", "weight_decay", "shampoo_beta")}
    theirs = theirs_of(others, **options, precondition_frequency=3)
    rng, to = np.random.default_rng(1), torch.Tensor.to

    def keeping_float64(x, *arguments, **options):  # theirs casts to float32 for the QR decomposition
        return x if arguments == (torch.float32,) else to(x, *arguments, **options)

    for _ in range(12):
        set_grads(params, rng)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.clone()
        ours.step()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "to", keeping_float64)
            theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)


@each_path
def test_vectors_take_adamws_step(path):
    shapes = [(5,), (), (1, 4), (4, 1), (3, 1, 1, 1), (0, 3)]
    options = dict(betas=(0.7, 0.9), eps=0.1, weight_decay=0.3)
    params, ours = soap(shapes, path, **options)
    others = [p.detach().clone().requires_grad_() for p in params]
    theirs = build("adamw", others, path, lr=0.1, **options)
    rng = np.random.default_rng(1)
    for _ in range(4):
        set_grads(params, rng)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad
        ours.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-14)
        assert set(ours.state[p]) == {"step", "exp_avg", "exp_avg_sq"}


@each_path
def test_the_first_gradient_makes_a_basis_and_no_step(path):
    (p,), optimizer = soap([(4, 6)], path, weight_decay=0.5)
    start, g = p.detach().clone(), random((4, 6), np.random.default_rng(1), F64)
    p.grad = g
    optimizer.step()
    assert torch.equal(p, start)
    state = optimizer.state[p]
    left, factor = (state[name][0, :16].view(4, 4) for name in ("eigenbases", "factors"))
    torch.testing.assert_close(factor, 0.1 * g @ g.mT)
    diagonal = left.mT @ factor @ left
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-12)
    assert (diagonal.diagonal().diff() < 0).all()
    assert not state["exp_avg"].any()


@each_path
def test_bases_change_when_they_are_due(path):
    (p,), optimizer = soap([(4, 3)], path, precondition_frequency=4)
    rng, changed = np.random.default_rng(1), []
    for step in range(1, 14):
        before = optimizer.state[p]["eigenbases"].clone() if step > 1 else torch.zeros(1, 25, dtype=F64)
        set_grads([p], rng)
        optimizer.step()
        if not torch.equal(before, optimizer.state[p]["eigenbases"]):
            changed.append(step)
    assert changed == [1, 5, 9, 13]


@each_path
def test_a_change_of_basis_turns_the_mean_and_sorts_the_squares(path):
    (p,), optimizer = soap([(5, 4)], path, precondition_frequency=2)
    rng = np.random.default_rng(1)
    for _ in range(3):
        set_grads([p], rng)
        optimizer.step()
    state = optimizer.state[p]

    def bases():
        row = state["eigenbases"][0]
        return row[:25].view(5, 5).clone(), row[25:41].view(4, 4).clone()

    for step in (4, 5):
        (left, right), mean, square = bases(), state["exp_avg"].clone(), state["exp_avg_sq"].clone()
        p.grad = 1e-3 * random((5, 4), np.random.default_rng(step), F64)
        g = left.mT @ p.grad @ right
        mean, square = 0.8 * mean + 0.2 * g, 0.9 * square + 0.1 * g**2
        optimizer.step()
        new_left, new_right = bases()
        expected = new_left.mT @ (left @ mean @ right.mT) @ new_right
        torch.testing.assert_close(state["exp_avg"], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(state["exp_avg_sq"].flatten().sort()[0], square.flatten().sort()[0])
        assert torch.equal(left, new_left) == (step == 4)


def test_power_iteration_keeps_signs_and_sorts():
    """Of a diagonal factor: the columns of the identity in falling order, as positive as they were."""
    factor = torch.diag(torch.tensor([1.0, 5.0, 3.0], dtype=F64))[None]
    former = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=F64))[None]
    basis, order = power_iteration(factor, former, 0.0)
    assert order.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(basis, former[:, :, [1, 2, 0]])
    _, order = power_iteration(
        torch.ones(1, 1, 1, dtype=F64).expand(1, 3, 3), torch.eye(3, dtype=F64)[None], 0.1
    )
    assert order.tolist() == [[0, 1, 2]]  # equal ones in the order of the small diagonal


def test_power_iterations_find_the_eigenvectors():
    x = random((6, 6), np.random.default_rng(0), F64)
    factor = (x @ torch.diag(torch.tensor([32.0, 16.0, 8.0, 4.0, 2.0, 1.0], dtype=F64)) @ x.mT)[None]
    expected, _ = eigenvectors(factor, torch.zeros_like(factor), 0.0)
    basis = torch.eye(6, dtype=F64)[None]
    for _ in range(300):
        basis, _ = power_iteration(factor, basis, 0.0)
    torch.testing.assert_close((basis.mT @ expected).abs(), torch.eye(6, dtype=F64)[None], rtol=0, atol=1e-6)
    assert (expected.gather(-2, expected.abs().argmax(-2, keepdim=True)) > 0).all()


@each_path
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layouts_do_not_matter(path, layout):
    moved = []
    for memory_format in (torch.contiguous_format, getattr(torch, layout, torch.contiguous_format)):
        p = random((4, 3, 2, 2), np.random.default_rng(0), F64).contiguous(memory_format=memory_format)
        optimizer = build("soap", [p.requires_grad_()], path, **PLAIN)
        for seed in range(6):
            p.grad = random((4, 3, 2, 2), np.random.default_rng(seed), F64).contiguous(
                memory_format=memory_format
            )
            optimizer.step()
        moved.append(p.detach().contiguous())
    torch.testing.assert_close(*moved, rtol=1e-12, atol=1e-12)


@each_path
def test_a_checkpoint_between_two_changes(path):
    options = dict(dtype=torch.float32, precondition_frequency=5, eps=1e-8)
    (p,), one = soap([(9, 7)], path, **options)
    rng = np.random.default_rng(1)
    for _ in range(8):
        set_grads([p], rng)
        one.step()
    (q,), two = soap([(9, 7)], path, **options)
    q.data.copy_(p.data)
    two.load_state_dict(one.state_dict())
    for _ in range(8):
        set_grads([p], rng)
        q.grad = p.grad.clone()
        one.step()
        two.step()
    assert_same_bits(tensors_of(one), tensors_of(two))


@each_path
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e12, 1e25])
def test_gradients_that_vanish_or_are_large(path, scale):
    """Factors that are zero keep their basis, the identity; those that overflow keep theirs for good."""
    (p,), optimizer = soap([(4, 3)], path, dtype=torch.float32, eps=1e-8, matrix_eps=1e-9)
    rng = np.random.default_rng(1)
    for i in range(8):
        p.grad = (scale if i < 4 else 1.0) * random((4, 3), rng)
        optimizer.step()
        basis = optimizer.state[p]["eigenbases"][0, :16].view(4, 4)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(4), rtol=0, atol=1e-5)
    assert p.isfinite().all()
    if scale == 1e25:
        assert not optimizer.state[p]["factors"].isfinite().all()


@each_path
def test_factors_that_overflow_keep_their_bases(path):
    """Bit for bit, and the order of their columns, whereas those of other parameters change."""
    params, optimizer = soap([(4, 3), (4, 3)], path, dtype=torch.float32, precondition_frequency=1, eps=1e-8)
    rng = np.random.default_rng(1)
    for _ in range(3):
        set_grads(params, rng)
        optimizer.step()
    before = [optimizer.state[p]["eigenbases"].clone() for p in params]
    set_grads(params, rng)
    params[0].grad.fill_(1e25)
    optimizer.step()
    after = [optimizer.state[p]["eigenbases"] for p in params]
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("shampoo_beta", 1.0, r"shampoo_beta=1.0: must be in \[0, 1\)"),
        ("matrix_eps", -1.0, "matrix_eps=-1.0: must be a finite number >= 0"),
        ("block_size", 0, "block_size=0: give a whole number >= 1"),
        ("precondition_frequency", 1.5, "precondition_frequency=1.5: give a whole number >= 1"),
    ],
)
def test_bad_arguments(option, value, match):
    with pytest.raises(ValueError, match=match) as caught:
        adan_optim.Soap([torch.ones(2, 2, requires_grad=True)], **{option: value})
    assert "\n" not in str(caught.value)


@each_path
def test_block_size_cannot_be_changed(path):
    (p,), optimizer = soap([(4, 6)], path)
    set_grads([p], np.random.default_rng(0))
    optimizer.step()
    optimizer.param_groups[0]["block_size"] = 3
    with pytest.raises(ValueError, match="block_size=3: a parameter has states for another"):
        optimizer.step()


@each_path
def test_fewer_steps_than_adamw_on_a_matrix_with_two_bad_sides(path):
    """|A W B - C|^2, whose curvature is a Kronecker product: SOAP turns to its axes, AdamW does not."""
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

    options = {key: VARIANTS["soap"]["plain"][key] for key in ("shampoo_beta", "precondition_frequency")}
    ours = loss_after("soap", **{**options, "shampoo_beta": 0.95, "matrix_eps": 1e-9, "block_size": 100})
    assert math.isfinite(ours)
    assert ours < loss_after("adamw") / 2
