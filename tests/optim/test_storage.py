"""Small states and rounded parameters: codes, noise, and what survives saving and loading.

The statistical tests are of a deterministic function (noise is a hash), so they cannot fail by chance; their
limits are where a truly random source would fail with a probability below 1e-9.
"""

import io

import numpy as np
import pytest
import torch
from harness import (
    KEPT,
    PATHS,
    all_params,
    array,
    assert_same_bits,
    build,
    each_name,
    each_path,
    full_states,
    kept_by,
    make_params,
    random,
    set_grads,
    tensors_of,
    tolerance_of_codes,
    unit_options,
    value_of,
)
from oracle import DEFINITIONS

import adan_optim
from adan_optim.engine import storage

pytestmark = pytest.mark.per_family

SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
NEAREST = 1 << 18


def round_trip(x, signed, noise=NEAREST):
    bits = noise if isinstance(noise, torch.Tensor) else torch.full((x.numel(),), noise)
    codes, maxima = storage.encode(x, signed, bits)
    return codes, maxima, storage.decode(codes, maxima, signed)


def numbers(count, signed, seed=0, spread=3.0):
    """Over several powers of ten, as gradients and their squares are."""
    rng = np.random.default_rng(seed)
    x = torch.as_tensor(np.exp(spread * rng.standard_normal(count)), dtype=torch.float32)
    return x * torch.as_tensor(rng.choice([-1.0, 1.0], count), dtype=torch.float32) if signed else x


# ---- codes


@SIGNED
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 5000])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e20])
@pytest.mark.parametrize("noise", [0, NEAREST, (1 << 19) - 1])
def test_round_trip_is_within_a_step(signed, count, scale, noise):
    x = numbers(count, signed) * scale
    codes, maxima, back = round_trip(x, signed, noise)
    assert maxima.shape == (-(-count // 256),)
    expected = array(x) / scale
    allowed = tolerance_of_codes(expected, codes, maxima / scale, signed)
    if noise == NEAREST and signed:
        allowed = allowed / 2 + 1e-6
    assert (np.abs(array(back) / scale - expected) <= allowed).all()
    for block in range(len(maxima)):
        part = slice(256 * block, 256 * block + 256)
        assert maxima[block] == x[part].abs().max()
        if noise:  # without, the rounding of a product may cost the largest a step
            torch.testing.assert_close(back[part].abs().max(), maxima[block], rtol=1e-6, atol=0)


@SIGNED
def test_codes_are_monotonic_and_all_different(signed):
    count = 127 if signed else 255
    values = storage.decode(torch.arange(count + 1, dtype=torch.uint8), torch.ones(1), signed)
    assert values[0] == 0
    assert values[-1] == pytest.approx(1)
    assert (values.diff() > 0).all()
    steps = values.diff() / (values[1:] + 2 / (494 if signed else 126974))
    assert steps.max() <= 1 / 16 + 1e-6
    x = numbers(256, signed=False).sort().values
    codes = round_trip(x, signed)[0].to(torch.int64)
    assert (codes.diff() >= 0).all()
    if signed:
        assert_same_bits([storage.decode(torch.arange(1, 128) + 128, torch.ones(1), True)], [-values[1:]])


@pytest.mark.parametrize("path", ["fused", "reference"])
def test_no_noise_takes_the_largest_of_a_block_beyond_the_last_code(path):
    """A million of them: every gradient is the same."""
    p = torch.nn.Parameter(torch.zeros(1 << 20))
    p.grad = torch.full_like(p, 0.37)
    optimizer = build("adamw", [p], path, state_dtype="int8")
    optimizer.step()
    state = optimizer.state[p]
    assert (state["exp_avg"] & 0x7F).min() >= 0x7E
    assert state["exp_avg_sq"].min() >= 0xFE


@SIGNED
def test_codes_are_decoded_to_themselves(signed):
    codes = torch.arange(256, dtype=torch.uint8)
    values = storage.decode(codes, torch.tensor([3.7]), signed)
    if signed:
        values, codes = values[1:], codes[1:]  # 128 is minus zero
    again = storage.encode(values, signed, torch.full((values.numel(),), NEAREST))[0]
    assert torch.equal(again, codes)


@SIGNED
def test_zero_stays_zero_and_others_do_not_become_zero_where_they_divide(signed):
    x = numbers(512, signed)
    x[::3] = 0
    x[1] = 1e-30  # far below the smallest code of its block
    for noise in (0, NEAREST, (1 << 19) - 1):
        back = round_trip(x, signed, noise)[2]
        assert (back[::3] == 0).all()
        assert signed or (back[x > 0] > 0).all()
    for noise in (0, (1 << 19) - 1):
        codes, maxima, back = round_trip(torch.zeros(300), signed, noise)
        assert not codes.any()
        assert not maxima.any()
        assert not back.any()


@SIGNED
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_poisons_its_block_and_no_other(signed, bad):
    x = numbers(768, signed)
    x[300] = bad
    back = round_trip(x, signed)[2]
    assert not back[300].isfinite()
    assert not back[256:512].isfinite().any()
    assert_same_bits(
        [back[:256], back[512:]],
        [round_trip(x[:256], signed)[2], round_trip(x[512:], signed)[2]],
    )


# ---- every path stores what `encode` and `to_bfloat16` say


@pytest.mark.parametrize("path", adan_optim.CARDS["adamw"].paths)
@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
def test_states_are_rounded_with_their_noise(state_dtype, size, path):
    """With betas of 0 AdamW's states are g and g^2, exact in float32: every bit of what is kept is known."""
    p = torch.ones(size, requires_grad=True)
    options = dict(betas=(0.0, 0.0), state_dtype=state_dtype, min_int8_size=0)
    optimizer = build("adamw", [p], path, **options)
    for step in range(1, 6):
        p.grad = numbers(size, True, seed=step, spread=2.0)
        if step == 5:
            p.grad[0] = float("nan") if state_dtype == "bfloat16" else 0.0
        optimizer.step()
        words = storage.noise(step, size)
        for slot, (name, x) in enumerate({"exp_avg": p.grad, "exp_avg_sq": p.grad.square()}.items()):
            state = optimizer.state[p]
            if state_dtype == "bfloat16":
                expected = storage.to_bfloat16(x, storage.noise_bits(words, slot))
                assert torch.equal(state[name].isnan(), expected.isnan())
                kept, expected = state[name].nan_to_num(), expected.nan_to_num()
                assert_same_bits([kept], [expected])
            else:
                codes, maxima = storage.encode(x, slot == 0, storage.noise_of_code(words, slot))
                assert_same_bits([state[name], state[f"{name}_scale"]], [codes, maxima])


def test_nan_of_any_kind_stays_nan():
    """Also those whose bits are all ones, where rounding up would carry into the sign."""
    patterns = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1, -0x7FFFFF], dtype=torch.int32)
    p = torch.ones(5, dtype=torch.float32, requires_grad=True)
    p.grad = patterns.view(torch.float32)
    optimizer = build("adan", [p], "fused", state_dtype="bfloat16")
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq", "neg_pre_grad"):
        assert optimizer.state[p][name].isnan().all()
    assert storage.to_bfloat16(patterns.view(torch.float32), torch.full((5,), 0xFFFF)).isnan().all()


# ---- noise


def test_noise_is_uniform_and_independent():
    steps, count = 64, 4096
    words = torch.stack([storage.noise(step, count) for step in range(1, steps + 1)])
    slots = [storage.noise_bits(words, slot) for slot in (0, 1)] + [storage.noise_of_parameter(words)]
    for bits in slots:
        assert bits.min() >= 0
        assert bits.max() < 1 << 16
        x = (bits.double() + 0.5) / (1 << 16) - 0.5
        n = x.numel()
        assert abs(x.mean()) < 6.5 * (1 / 12 / n) ** 0.5
        bins = torch.histc(x.float(), 64, -0.5, 0.5)
        chi2 = ((bins - n / 64) ** 2 / (n / 64)).sum()
        assert chi2 < 63 + 6.5 * (2 * 63) ** 0.5 + 30
        for neighbours in (x[1:, :] * x[:-1, :], x[:, 1:] * x[:, :-1]):  # of steps, of elements
            assert abs(neighbours.mean()) < 6.5 / 12 / neighbours.numel() ** 0.5
        blocks = x[:, 256:] * x[:, :-256]  # a pair of blocks is one sample: it has one pair of keys
        assert abs(blocks.mean()) < 6.5 / 12 / (steps * (count / 256 - 1)) ** 0.5
        # at one element over the steps, and at one step over the elements
        assert (x.mean(0).abs() < 6.5 * (1 / 12 / steps) ** 0.5).all()
        assert (x.mean(1).abs() < 6.5 * (1 / 12 / count) ** 0.5).all()
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        x, y = (slots[k].double() / (1 << 16) - 0.5 for k in (i, j))
        assert abs((x * y).mean()) < 6.5 / 12 / x.numel() ** 0.5


@SIGNED
def test_stochastic_rounding_is_unbiased(signed):
    """The mean over many steps is the number: bfloat16 and codes, over binades and near zero."""
    steps, x = 1000, numbers(64, signed, spread=2.0)
    total_16 = torch.zeros(64, dtype=torch.float64)
    total_8 = torch.zeros(64, dtype=torch.float64)
    for step in range(1, steps + 1):
        words = storage.noise(step, 64)
        total_16 += storage.to_bfloat16(x, storage.noise_bits(words, 1)).double()
        total_8 += round_trip(x, signed, storage.noise_of_code(words, 1))[2].double()
    step_8 = tolerance_of_codes(array(x), torch.empty(64), x.abs().max().reshape(1), signed)
    step_16 = array(x.abs()) * 2.0**-7
    for total, unit in ((total_16, step_16), (total_8, step_8)):
        error = np.abs(array(total) / steps - array(x))
        assert (error < 6.5 * unit / 2 / steps**0.5 + 1e-6 * np.abs(array(x))).all()


# ---- pure bfloat16


@each_path
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
def test_small_updates_of_bfloat16_parameters(name, path, rounding):
    """100 steps of 4e-4 move 0.04, where rounding to nearest (what others do) moves nothing."""
    p = torch.ones(1024, dtype=torch.bfloat16, requires_grad=True)
    options = dict(lr=4e-4, weight_decay=0.0, eps=0.0, state_dtype="float32", param_rounding=rounding)
    optimizer = build(name, [p], path, **{**options, **unit_options(name)})
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    moved = 1 - p.detach().float()
    if rounding == "nearest":
        assert not moved.any()
    elif rounding == "kahan":
        assert ((moved - 0.04).abs() < 2.0**-8).all()
    else:  # each step rounds by 2^-8 or not: a variance of 4e-4 2^-8 a step
        assert abs(moved.mean() - 0.04) < 6.5 * (100 * 4e-4 * 2.0**-8 / 1024) ** 0.5


@pytest.mark.parametrize("path", adan_optim.CARDS["adamw"].paths)
def test_parameters_have_noise_of_their_own(path):
    """From 1 by 2^-10, exact in float32: every bit of the rounded parameter is known."""
    p = torch.ones(1000, dtype=torch.bfloat16, requires_grad=True)
    options = dict(lr=2.0**-10, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, param_rounding="stochastic")
    optimizer = build("adamw", [p], path, **options)
    p.grad = torch.ones_like(p)
    optimizer.step()
    noise = storage.noise_of_parameter(storage.noise(1, 1000))
    assert_same_bits([p], [storage.to_bfloat16(torch.full((1000,), 1 - 2.0**-10), noise)])


# ---- taken gradients


@each_path
@pytest.mark.parametrize(
    "options", [{}, {"max_grad_norm": 0.5}, {"maximize": True, "max_grad_norm": 0.5}], ids=str
)
def test_taken_gradients_give_the_same_bits(name, path, options):
    """Also under clipping, where what is kept is the raw gradient and the coefficient."""
    if not adan_optim.CARDS[name].previous:
        pytest.skip(f"{name} keeps no previous gradient")
    one, two = (
        build(
            name, make_params([(4, 3), (5,), (0,), (300,)], np.random.default_rng(0)), path, **options, **take
        )
        for take in ({}, {"take_gradients": True})
    )
    rng = np.random.default_rng(1)
    for step in range(6):
        set_grads(all_params(one), rng)
        given = []
        for p, q in zip(all_params(one), all_params(two), strict=True):
            q.grad = p.grad.clone()
            given.append(q.grad)
        if step == 3:  # one parameter pauses
            all_params(one)[1].grad = all_params(two)[1].grad = None
        one.step()
        two.step()
        assert all(q.grad is None for q in all_params(two))
        kept = [two.state[q]["pre_grad"] for q in all_params(two)]
        assert all(x is g for x, g in zip(kept, given, strict=True) if step != 3)
        assert_same_bits(all_params(one), all_params(two))
    assert "neg_pre_grad" not in two.state[all_params(two)[0]]
    assert adan_optim.state_bytes(two)["pre_grad"] == adan_optim.state_bytes(one)["neg_pre_grad"]


# ---- saving, loading, changing


def trained(name, kept, path=None, steps=3):
    dtype, options = kept
    params = make_params([(40, 90), (5,), ()], np.random.default_rng(0), dtype)
    optimizer = build(name, params, path, max_grad_norm=1.0, **options)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        set_grads(params, rng)
        optimizer.step()
    return optimizer


@pytest.mark.per_family
@each_name
@pytest.mark.parametrize("path", [None, "reference"])
def test_any_storage_loads_any_other(name, path):
    """What the checkpoint held, as near as the new storage can hold it; and training goes on."""
    cases = {case: kept for case, kept in kept_by(name).items() if kept[0] != torch.float64}
    for source in cases.values():
        one = trained(name, source, path)
        before = tensors_of(one)
        for target in cases.values():
            two = trained(name, target, path, steps=0)
            two.load_state_dict(one.state_dict())
            for option, default in {"state_dtype": None, "param_rounding": "nearest"}.items():
                assert two.param_groups[0][option] == target[1].get(option, default)
            for p, q in zip(all_params(one), all_params(two), strict=True):
                assert two.state[q]["step"] == 3
                for state in full_states(one, p):
                    x = value_of(one, one.state[p], state)
                    y = value_of(two, two.state[q], state)
                    small = max(np.abs(x).max(), 1e-6)
                    assert (np.abs(x - y) <= np.abs(x) / 15 + small / 1000).all(), (source, target, state)
            set_grads(all_params(two), np.random.default_rng(2))
            two.step()
            assert all(p.isfinite().all() for p in all_params(two))
        assert_same_bits(before, tensors_of(one))


@each_name
def test_a_checkpoint_is_as_small_as_the_states(name):
    def saved(kept):
        file = io.BytesIO()
        torch.save(trained(name, kept).state_dict()["state"], file)
        return file.tell()

    one = trained(name, KEPT["f32"])
    moments = [key for key in full_states(one, all_params(one)[0]) if key not in one.card.iterates]
    full, small = saved(KEPT["f32"]), saved(KEPT["f32_int8"])
    assert full - small > 0.7 * 3600 * len(moments) * 3  # the rest is names
    held = trained(name, KEPT["f32_int8"]).state_dict()["state"][0]
    for key in moments:
        assert held[key].dtype == torch.uint8
        assert held[f"{key}_scale"].shape == (15,)


@pytest.mark.parametrize(("name", "path"), [x for x in PATHS if adan_optim.CARDS[x[0]].elementwise])
@pytest.mark.parametrize("case", ["f32_int8", "f32_bfloat16"])
def test_blocks_are_in_the_order_of_memory(name, path, case):
    """channels_last, and a parameter whose layout changes between steps."""
    shape = (7, 5, 4, 6)
    dense = random(shape, np.random.default_rng(0))
    p = dense.to(memory_format=torch.channels_last).requires_grad_()
    optimizer = build(name, [p], path, **KEPT[case][1])
    p.grad = random(shape, np.random.default_rng(1)).to(memory_format=torch.channels_last)
    optimizer.step()
    q = dense.permute(0, 2, 3, 1).reshape(-1).clone().requires_grad_()
    flat = build(name, [q], path, **KEPT[case][1])
    q.grad = p.grad.permute(0, 2, 3, 1).reshape(-1)
    flat.step()
    assert_same_bits([p.permute(0, 2, 3, 1).reshape(-1)], [q])
    for x, y in zip(optimizer.state[p].values(), flat.state[q].values(), strict=True):
        assert_same_bits([x.permute(0, 2, 3, 1) if x.ndim == 4 else x], [y])
    before = {key: value_of(optimizer, optimizer.state[p], key) for key in full_states(optimizer, p)}
    p.data = p.data.contiguous()
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0].update(DEFINITIONS[name].SLOW)
    optimizer.step()
    for key, x in before.items():
        if key != adan_optim.CARDS[name].previous:
            y = value_of(optimizer, optimizer.state[p], key)
            assert (np.abs(x - y) <= np.abs(x) / 7 + np.abs(x).max() / 200 + 1e-5).all()


@each_path
def test_small_tensors_and_single_groups_keep_float32(name, path):
    params = make_params([(64, 64), (63, 65), (8,), (70, 70)], np.random.default_rng(0))
    groups = [{"params": params[:3]}, {"params": params[3:], "state_dtype": "float32"}]
    optimizer = build(name, groups, path, state_dtype="int8")
    set_grads(params, np.random.default_rng(1))
    optimizer.step()
    keys = [next(x for x in full_states(optimizer, p) if x not in optimizer.card.iterates) for p in params]
    dtypes = [optimizer.state[p][key].dtype for p, key in zip(params, keys, strict=True)]
    assert dtypes == [torch.uint8, torch.float32, torch.float32, torch.float32]
    other = build(name, groups, path, state_dtype="int8")
    other.load_state_dict(optimizer.state_dict())
    assert [other.state[p][key].dtype for p, key in zip(params, keys, strict=True)] == dtypes


@pytest.mark.slow
def test_more_elements_than_31_bits():
    """2^31 + 300 bfloat16 parameters with 8-bit states: about 13 GB."""
    count = 2**31 + 300
    p = torch.zeros(count, dtype=torch.bfloat16).requires_grad_()
    p.grad = torch.ones_like(p)
    p.grad[-300:] = -2.0
    build("adamw", [p], "fused", lr=0.5, eps=0.0, weight_decay=0.0, state_dtype="int8").step()
    assert p[0] == -0.5
    assert p[2**31 - 1] == -0.5
    assert (p[-300:] == 0.5).all()
    assert (p.detach()[: 2**31 : 2**20] == -0.5).all()
