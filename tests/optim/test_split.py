"""What is kept apart from a bfloat16 parameter: `param_rounding="split"` is a float32 parameter, bit for bit.

And how that, or Kahan's compensation, goes through checkpoints, from one to the other, and to the user.
"""

import numpy as np
import pytest
import torch
from harness import (
    PATHS,
    VARIANTS,
    all_params,
    assert_same_bits,
    bits,
    build,
    can,
    each_path,
    make_params,
    prepared,
    random,
    set_grads,
    tensors_of,
    variants_of,
)

import adan_optim
from adan_optim.engine import storage

pytestmark = pytest.mark.per_family

SHAPES = [(40, 90), (300,), (), (7, 5), (0,)]
SPLIT = dict(param_rounding="split", state_dtype="float32")
INF, NAN = float("inf"), float("nan")


def exact_values(optimizer):
    return list(adan_optim.exact_params(optimizer).values())


def awkward():
    """Float32 numbers whose upper and lower halves are at every edge, and random ones."""
    edges = [0, 1, 0x7F, 0x80, 0x7F7F, 0x7F80, 0x7FFF, 0x8000, 0x8001, 0xFF7F, 0xFF80, 0xFFFF]
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    numbers = ((torch.tensor(edges)[:, None] << 16) | lower).flatten()
    every = (0x3F80 << 16) + torch.arange(1 << 16)  # all lower halves of one upper half
    some = torch.randint(0, 1 << 32, (1 << 16,), generator=torch.Generator().manual_seed(0))
    return torch.cat([numbers, every, some]).to(torch.int32).view(torch.float32)


# ---- the numbers


def test_a_number_and_its_halves():
    """Nearest, ties away from zero, and nothing is lost; a NaN is one in the parameter already."""
    x = awkward()
    upper, rest = storage.split(x)
    assert (upper.dtype, rest.dtype) == (torch.bfloat16, torch.int16)
    back = storage.exact(upper, {"remainder": rest})
    nan = x.isnan()
    assert_same_bits([back[~nan]], [x[~nan]])
    assert torch.equal(upper.isnan(), nan)
    assert torch.equal(back.isnan(), nan)
    assert not rest[nan].any()
    assert torch.equal(bits(upper[nan]), torch.full((int(nan.sum()),), 0x7FC0, dtype=torch.int16))
    tie = (bits(x) & 0xFFFF) == 0x8000
    assert_same_bits([upper[~tie & ~nan]], [x[~tie & ~nan].to(torch.bfloat16)])
    away = upper[tie & ~nan].double().abs() - x[tie & ~nan].double().abs()
    assert len(away)
    assert (away > 0).all()


@pytest.mark.parametrize("path", adan_optim.CARDS["adamw"].paths)
def test_every_path_stores_these_halves(path):
    """With lr = 0 AdamW stores the number it has read: p + 0."""
    x = awkward()
    upper, rest = storage.split(x)
    p = upper.clone().requires_grad_()
    optimizer = build("adamw", [p], path, lr=0.0, **SPLIT)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[p]["remainder"].copy_(rest)
    with torch.no_grad():
        p.copy_(upper)
    optimizer.step()
    nan = x.isnan()
    assert_same_bits([p[~nan], optimizer.state[p]["remainder"]], [upper[~nan], rest])
    assert p[nan].isnan().all()


@pytest.mark.parametrize("path", adan_optim.CARDS["adamw"].paths)
def test_nan_of_any_kind_stays_nan(path):
    """Also those whose bits are all ones, as CUDA makes them, where rounding up would carry into the sign."""
    patterns = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1, -0x7FFFFF], dtype=torch.int32)
    p = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
    optimizer = build("adamw", [p], path, **SPLIT)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.state[p]["exp_avg"].copy_(patterns.view(torch.float32))
    optimizer.step()
    assert torch.equal(bits(p), torch.full((5,), 0x7FC0, dtype=torch.int16))
    assert not optimizer.state[p]["remainder"].any()


@pytest.mark.parametrize("path", adan_optim.CARDS["adamw"].paths)
@pytest.mark.parametrize("value", [0.0, -0.0, INF, -INF, NAN])
def test_a_parameter_that_is_set_from_outside(path, value):
    """Pruned to 0, say: its bits with an old remainder may be those of a NaN."""
    p = torch.zeros(2000, dtype=torch.bfloat16, requires_grad=True)
    optimizer = build("adamw", [p], path, lr=0.0, **SPLIT)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[p]["remainder"].copy_(torch.arange(-1000, 1000))
    with torch.no_grad():
        p.fill_(value)
    optimizer.step()
    torch.testing.assert_close(
        p.detach().float(), torch.full((2000,), value), equal_nan=True, atol=1e-38, rtol=0
    )


# ---- a float32 parameter


@pytest.mark.parametrize(
    ("name", "path", "variant"),
    [
        (name, path, variant)
        for name, path in PATHS
        for variant in variants_of(name, path)
        if can(name, path, torch.bfloat16, VARIANTS[name][variant])
    ],
)
def test_it_is_a_float32_parameter(name, path, variant):
    """With the same gradients, bit for bit: parameters and states, for as many steps as one likes."""
    made = []
    for dtype, options in ((torch.float32, {}), (torch.bfloat16, SPLIT)):
        values = make_params(SHAPES, np.random.default_rng(0), torch.bfloat16)
        params = [p.detach().to(dtype).requires_grad_() for p in values]
        made.append(prepared(build(name, params, path, **VARIANTS[name][variant], **options)))
    expected, ours = made
    for step in range(6):
        for optimizer in made:
            rng = np.random.default_rng(step + 1)
            for p in all_params(optimizer):
                p.grad = random(tuple(p.shape), rng, torch.bfloat16).to(p.dtype)
            optimizer.step()
        assert_same_bits(all_params(expected), exact_values(ours))
    for p, q in zip(all_params(expected), all_params(ours), strict=True):
        state = dict(ours.state[q])
        rest = state.pop("remainder")
        assert (rest.dtype, rest.shape) == (torch.int16, p.shape)
        assert state.keys() == expected.state[p].keys()
        assert_same_bits([state[key] for key in state], [expected.state[p][key] for key in state])
    assert not all(torch.equal(p, q.float()) for p, q in zip(*map(all_params, made), strict=True))


@each_path
def test_layouts_and_gaps(name, path):
    """Transposed, and with gaps, where `fused=None` takes another path: the numbers of a dense parameter."""
    values = random((40, 30), np.random.default_rng(0), torch.bfloat16)
    gaps = torch.zeros(40, 60, dtype=torch.bfloat16)[:, ::2].copy_(values)
    results = []
    for x in (values.clone(), values.t().contiguous().t(), gaps):
        p = torch.nn.Parameter(x)
        optimizer = build(name, [p], path if x.is_contiguous() or path != "fused" else None, **SPLIT)
        for step in range(3):
            p.grad = random((40, 30), np.random.default_rng(step), torch.bfloat16)
            optimizer.step()
        results += exact_values(optimizer)
        torch.testing.assert_close(results[-1], results[0], rtol=1e-5, atol=1e-6)
    assert not gaps.as_strided((40, 30), (60, 2), 1).any()


# ---- out of the optimizer


@pytest.mark.parametrize("rounding", storage.ROUNDINGS)
def test_exact_params(rounding):
    """By parameter, as copies, before and after the first step, of every dtype."""
    dtypes = [torch.bfloat16, torch.float32, torch.float64]
    params = [p for dtype in dtypes for p in make_params([(30, 3)], np.random.default_rng(0), dtype)]
    optimizer = adan_optim.AdamW(
        [{"params": params[:1], "param_rounding": rounding}, {"params": params[1:]}], lr=1e-4
    )
    for step in range(3):
        if step:
            set_grads(params, np.random.default_rng(step))
            optimizer.step()
        values = adan_optim.exact_params(optimizer)
        assert list(map(id, values)) == list(map(id, params))
        assert [x.dtype for x in values.values()] == [torch.float32, torch.float32, torch.float64]
        assert not any(x.requires_grad or x.data_ptr() == p.data_ptr() for p, x in values.items())
        for p, x in values.items():
            torch.testing.assert_close(p.detach(), x.to(p.dtype))
    assert torch.equal(values[params[0]], params[0].float()) == (rounding not in storage.RESTS)


def test_exact_weights_of_a_model():
    """What the docstring says, with tied weights and buffers."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4)
    ).bfloat16()
    model[2].weight = model[0].weight
    optimizer = adan_optim.Adan(model.parameters(), lr=1e-4, **SPLIT)
    model(torch.ones(3, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    exact = adan_optim.exact_params(optimizer)
    weights = {name: exact.get(x, x) for name, x in model.state_dict(keep_vars=True).items()}
    assert weights["0.weight"] is weights["2.weight"]
    model.float().load_state_dict(weights)
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())


# ---- from one rounding to another


def trained(rounding, seed=0, name="adan", path=None, steps=20):
    params = make_params(SHAPES, np.random.default_rng(seed), torch.bfloat16)
    optimizer = build(name, params, path, lr=1e-3, state_dtype="float32", param_rounding=rounding)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        set_grads(params, rng)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("path", adan_optim.CARDS["adan"].paths)
@pytest.mark.parametrize("target", storage.ROUNDINGS)
@pytest.mark.parametrize("source", storage.ROUNDINGS)
def test_any_rounding_continues_any_other(source, target, path, order):
    """With as much of the value as it can hold; the parameter stays as it was saved."""
    one, two = trained(source), trained(target, seed=5, path=path, steps=1)
    saved = one.state_dict()

    def load_model():
        with torch.no_grad():
            for p, q in zip(all_params(one), all_params(two), strict=True):
                q.copy_(p)

    if order == "model first":
        load_model()
    two.load_state_dict(saved)
    load_model()
    expected = exact_values(one) if source in storage.RESTS else [p.float() for p in all_params(one)]
    before = [p.detach().clone() for p in all_params(two)]
    for group in two.param_groups:
        group.update(lr=0.0, weight_decay=0.0)
    for p in all_params(two):
        p.grad = torch.zeros_like(p)
    two.step()
    if target != "kahan":  # whose sum may be a tie
        assert_same_bits(all_params(two), before)
    wanted = storage.RESTS.get(target)
    for p, x, y in zip(all_params(two), expected, exact_values(two), strict=True):
        assert storage.REST_NAMES & two.state[p].keys() == ({wanted.name} if wanted else set())
        if wanted is None:
            assert_same_bits([y], [p.detach().float()])
        elif source == target:
            assert_same_bits([x], [y])
        else:  # a tie that Kahan's rounding took towards zero is a unit of float32 beyond the remainder
            allowed = {"split": 2.0**-23, "kahan": 2.0**-16}[target]
            assert ((x - y).abs() <= allowed * x.abs()).all()
            assert target == "kahan" or (x != y).sum() <= x.numel() / 20


def test_a_tie_that_went_towards_zero():
    """1 + 2^-8 is 1 to the nearest even number: its remainder of 2^15 is one too many for int16."""
    p = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    state = {"compensation": torch.tensor([2.0**-8, -(2.0**-9), 2.0**-10, NAN], dtype=torch.bfloat16)}
    storage.Storage("float32", "split", False).fit_rest(adan_optim.CARDS["adan"], p, state)
    assert state["remainder"].tolist()[:3] == [0x7FFF, -0x8000, 1 << 13]
    assert storage.exact(p.detach(), state).isfinite().all()


def test_a_group_changes_its_rounding_between_steps():
    optimizer = trained("split")
    for rounding in ("kahan", "split", "nearest", "kahan", "stochastic", "split"):
        optimizer.param_groups[0]["param_rounding"] = rounding
        set_grads(all_params(optimizer), np.random.default_rng(2))
        optimizer.step()
        wanted = {rest.name for name, rest in storage.RESTS.items() if name == rounding}
        assert all(storage.REST_NAMES & state.keys() == wanted for state in optimizer.state.values())


@pytest.mark.parametrize("bad", [torch.zeros(300), torch.zeros(3, dtype=torch.int16), 3])
def test_a_remainder_that_is_none_is_refused(bad):
    optimizer = trained("split")
    saved = optimizer.state_dict()
    saved["state"][1] = {**saved["state"][1], "remainder": bad}
    with pytest.raises(ValueError, match=r"parameter 1.* state remainder"):
        optimizer.load_state_dict(saved)
    optimizer.state[all_params(optimizer)[1]]["remainder"] = bad
    set_grads(all_params(optimizer), np.random.default_rng(2))
    with pytest.raises(RuntimeError, match="state remainder"):
        optimizer.step()


def test_bytes():
    """2 for each parameter, beside the states."""
    optimizer = trained("split")
    assert adan_optim.state_bytes(optimizer)["remainder"] == 2 * sum(p.numel() for p in all_params(optimizer))


def test_a_resized_parameter_keeps_its_rows():
    optimizer = trained("split")
    old = all_params(optimizer)[0]
    before = adan_optim.exact_params(optimizer)[old]
    rows = torch.tensor([4, 0, -1, 2])
    new = torch.nn.Parameter(
        torch.cat([old.detach()[[4, 0]], torch.ones(1, 90), old.detach()[2:3]]).bfloat16()
    )
    adan_optim.resize_state(optimizer, old, new, rows)
    after = adan_optim.exact_params(optimizer)[new]
    assert_same_bits([after[[0, 1, 3]], after[2]], [before[[4, 0, 2]], torch.ones(90)])
    new.grad = torch.ones_like(new)
    optimizer.step()


def test_a_restart_keeps_the_remainder():
    optimizer = trained("split")
    before = exact_values(optimizer)
    optimizer.restart_opt()
    assert_same_bits(before, exact_values(optimizer))


def test_a_converted_state_keeps_the_remainder():
    """From AdamW to Adan, whose values are other ones; the parameter's are the same."""
    one, two = trained("split", name="adamw"), trained("split", steps=0)
    two.load_state_dict(adan_optim.convert_state(one.state_dict()))
    with torch.no_grad():
        for p, q in zip(all_params(one), all_params(two), strict=True):
            q.copy_(p)
    assert_same_bits(exact_values(one), exact_values(two))
    assert len(tensors_of(two)) == 5 * 7
