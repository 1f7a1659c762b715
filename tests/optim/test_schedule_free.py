"""Schedule-free AdamW and Adan: their modes, the mean that they are, and facebookresearch/schedule_free."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import (
    KEPT,
    array,
    assert_same_bits,
    build,
    make_params,
    needs_fsdp2,
    random,
    set_grads,
    tensors_of,
)
from torch.utils._python_dispatch import TorchDispatchMode

import adan_optim
from adan_optim import schedule_free

NAMES = ("schedule_free_adamw", "schedule_free_adan")
PATHS = ("fused", "foreach", "reference")
SHAPES = [(40, 30), (7,), (1,), ()]
OPTIONS = dict(lr=0.05, weight_decay=0.1, warmup_steps=3)
each_name = pytest.mark.parametrize("name", NAMES)
each_path = pytest.mark.parametrize("path", PATHS)


def trained(name, path=None, steps=5, seed=0, shapes=SHAPES, dtype=torch.float32, **options):
    params = make_params(shapes, np.random.default_rng(seed), dtype)
    optimizer = build(name, params, path, **{**OPTIONS, **options})
    return params, train(optimizer, params, steps, seed + 1)


def train(optimizer, params, steps, seed):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        set_grads(params, rng)
        optimizer.step()
    return optimizer


def values(params):
    return [p.detach().clone() for p in params]


# ---- against the authors' code

SETTINGS = {
    "plain": dict(lr=0.05, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0),
    "warmup": dict(lr=0.05, betas=(0.7, 0.9), eps=0.01, weight_decay=0.2, warmup_steps=7),
    "polynomial": dict(lr=0.02, betas=(0.95, 0.9), eps=1e-3, weight_decay=0.1, r=1.5, warmup_steps=30),
    "uniform": dict(
        lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, weight_lr_power=0.0, warmup_steps=5
    ),
}
# x and y after the steps of `recorded` from (0.5, -1, 2): AdamWScheduleFree(foreach=False) of schedulefree
# 1.4.1, with torch 2.14.1 on a CPU
RECORDED = {
    "plain": (
        [0.38942909366255646, -0.6596586481212657, 1.593591542595587],
        [0.38914733215338615, -0.6482509546226253, 1.5840446409580966],
    ),
    "warmup": (
        [0.35913238733763186, -0.651902370419876, 1.6230744629832854],
        [0.3623750663566419, -0.6243947921725067, 1.5955566716089618],
    ),
    "polynomial": (
        [0.48842845941576396, -0.9589231125613368, 1.9607953484323504],
        [0.48841590695594245, -0.958705106433297, 1.9604766669969336],
    ),
    "uniform": (
        [0.42062590669156474, -0.796688761073312, 1.7285330005044548],
        [0.40865439278537896, -0.7525149910930974, 1.6886747681429293],
    ),
}


def recorded(optimizer, p):
    optimizer.train()
    for t in range(1, 13):
        p.grad = p.detach() / 2 + torch.cos(torch.arange(3, dtype=torch.float64) + t)
        if t in (7, 10):
            optimizer.param_groups[0]["lr"] *= 2 if t == 7 else 0.1
        optimizer.step()
    y = p.detach().tolist()
    optimizer.eval()
    return p.detach().tolist(), y


@pytest.mark.parametrize("setting", SETTINGS)
@each_path
def test_recorded_steps_of_the_authors_code(setting, path):
    p = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    ours = recorded(build("schedule_free_adamw", [p], path, **SETTINGS[setting]), p)
    np.testing.assert_allclose(ours, RECORDED[setting], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "theirs", ["schedulefree.AdamWScheduleFree", "pytorch_optimizer.ScheduleFreeAdamW"], ids=str
)
@each_path
def test_other_packages_step_by_step(theirs, setting, path):
    """The authors' and another, in both modes, with a learning rate that changes."""
    package, name = theirs.split(".")
    theirs_of = getattr(pytest.importorskip(package, reason=f"{package} is not installed"), name)
    mine, other = (make_params([(4, 5), (3,)], np.random.default_rng(0), torch.float64) for _ in range(2))
    ours, theirs = (
        build("schedule_free_adamw", mine, path, **SETTINGS[setting]),
        theirs_of(other, **SETTINGS[setting], foreach=False),
    )
    rng = np.random.default_rng(1)
    for t in range(40):
        ours.train()
        theirs.train()
        for p, q in zip(mine, other, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
            p.grad = random(tuple(p.shape), rng, p.dtype)
            q.grad = p.grad.clone()
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = SETTINGS[setting]["lr"] * (0.5 if 10 < t < 20 else 1 + t / 40)
            optimizer.step()
            optimizer.eval()
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


# ---- the mean


@each_name
@each_path
def test_eval_is_the_weighted_mean_of_z(name, path):
    options = dict(r=1.0, weight_lr_power=2.0, warmup_steps=4, lr=0.05)
    params, optimizer = trained(name, path, 0, dtype=torch.float64, **options)
    rng, total, mean = np.random.default_rng(5), 0.0, [0.0] * len(params)
    for t in range(1, 11):
        set_grads(params, rng)
        optimizer.step()
        weight = t * (0.05 * min(1, t / 4)) ** 2
        total += weight
        mean = [m + weight * array(optimizer.state[p]["z"]) for m, p in zip(mean, params, strict=True)]
    with adan_optim.evaluating(optimizer):
        for m, p in zip(mean, params, strict=True):
            np.testing.assert_allclose(array(p), m / total, rtol=1e-12, atol=1e-13)


def test_a_million_steps_are_weighed_exactly():
    """In float32, where a running sum of squared learning rates would stop growing evenly."""
    state = {"weight_sum": torch.tensor(0.0), "lr_max": torch.tensor(0.0)}
    group = dict(lr=1e-3, r=0.0, weight_lr_power=2.0, warmup_steps=0)
    state["weight_sum"] += 999_999
    state["lr_max"] += 1e-3
    _, share = schedule_free._weigh([state], torch.tensor([1e6]), group)
    assert state["weight_sum"] == 1e6
    assert share == torch.tensor(1e-6)


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_steps_without_a_learning_rate(power):
    """A scheduler's warm-up from 0: nothing moves, and nothing becomes NaN."""
    params, optimizer = trained("schedule_free_adamw", steps=0, lr=0.0, weight_lr_power=power)
    before = values(params)
    train(optimizer, params, 3, 1)
    assert_same_bits(values(params), before)
    optimizer.param_groups[0]["lr"] = 0.1
    train(optimizer, params, 1, 1)
    assert float(optimizer.state[params[0]]["weight_sum"]) == (1.0 if power else 4.0)
    assert all(p.isfinite().all() for p in params)


BETAS = {"adamw": (0.9, 0.999), NAMES[0]: (0.9, 0.999), NAMES[1]: (0.9, 0.92, 0.99)}


def noisy(name, seed, steps=600):
    """The loss of a quadratic that is left after steps of one learning rate on noisy gradients."""
    generator = torch.Generator().manual_seed(seed)
    target, curvature = torch.randn(50, generator=generator).double(), torch.logspace(0, 1, 50).double()
    p = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    optimizer = build(name, [p], lr=0.1, betas=BETAS[name], eps=1e-8, weight_decay=0.0)
    for _ in range(steps):
        p.grad = curvature * (p.detach() - target) + 3 * torch.randn(50, generator=generator)
        optimizer.step()
    with adan_optim.evaluating(optimizer):
        return float((curvature * (p.detach() - target).square()).sum() / 2)


@each_name
@pytest.mark.parametrize("seed", range(10))
def test_noise_is_averaged_without_a_schedule(name, seed):
    """To a loss of 0.35 to 0.9, where AdamW without a schedule stays at 3.1 or more."""
    assert noisy(name, seed) < 1.5
    assert noisy("adamw", seed) > 2


class NoWaiting(TorchDispatchMode):
    """Refuses what waits for a GPU: a number that Python reads from a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_the_weights_of_the_mean_wait_for_nothing(lr):
    states = [{"weight_sum": torch.tensor(2.0), "lr_max": torch.tensor(0.01)} for _ in range(3)]
    group = dict(lr=lr, r=0.5, weight_lr_power=2.0, warmup_steps=10)
    with NoWaiting():
        schedule_free._weigh(states, torch.tensor([3.0, 4.0, 20.0]), group)
    assert [round(float(s["lr_max"]), 6) for s in states] == [0.03, 0.04, 0.1]


# ---- modes


def ulp(x):
    """The unit in the last place of floating-point numbers, in float64."""
    _, exponent = np.frexp(array(x))
    return np.ldexp(torch.finfo(x.dtype).eps, np.maximum(exponent - 1, -100))


@each_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_there_and_back(name, dtype):
    """The same bits, but where the mean is in a higher binade, or y a power of two: numbers are denser below.

    There, at most one unit in the mean's last place. In float64, a few units everywhere.
    """
    kept = {"state_dtype": "float32"} if dtype.itemsize == 2 else {}
    changed = 0
    for seed in range(10):
        params, optimizer = trained(name, seed=seed, dtype=dtype, **kept)
        before = values(params)
        optimizer.eval()
        at_mean = values(params)
        assert not any(torch.equal(x, y) for x, y in zip(at_mean[:1], before[:1], strict=True))
        optimizer.train()
        for x, y, now in zip(at_mean, before, values(params), strict=True):
            if dtype == torch.float64:
                assert (np.abs(array(now - y)) <= 3 * np.maximum(ulp(x), ulp(y))).all()
                continue
            same_binade = (ulp(x) <= ulp(y)) & (np.abs(np.frexp(array(y))[0]) != 0.5)
            exact = torch.as_tensor(np.asarray(same_binade))
            assert torch.equal(now[exact], y[exact])
            assert (np.abs(array(now) - array(y)) <= ulp(x)).all()
            changed += int((now != y).sum())
    assert changed < 0.05 * 10 * sum(p.numel() for p in params)


@each_name
@pytest.mark.parametrize(
    "case", ["bf16_int8_kahan", "bf16_float32_split", "bf16_bfloat16_stochastic", "f32_int8"]
)
def test_there_and_back_as_it_is_kept(name, case):
    """The rest of a bfloat16 parameter goes with it: with "split" both ways are those of float32."""
    dtype, kept = KEPT[case]
    optimizer = trained(name, dtype=dtype, **kept)[1]
    exact = adan_optim.exact_params(optimizer)
    optimizer.eval()
    there = adan_optim.exact_params(optimizer)
    optimizer.train()
    units = {"split": 2.0**-23, "kahan": 2.0**-15}.get(kept.get("param_rounding"), 0.0)
    for p, now in adan_optim.exact_params(optimizer).items():
        bound = (units or float(torch.finfo(dtype).eps)) * np.maximum(
            np.abs(array(there[p])), np.abs(array(exact[p]))
        )
        assert (np.abs(array(now) - array(exact[p])) <= bound).all()


@each_name
def test_split_evaluates_as_float32(name):
    """A bfloat16 model with "split" and a float32 one, given the same gradients, have the same mean."""
    start = [x.to(torch.bfloat16).float() for x in make_params(SHAPES, np.random.default_rng(0))]
    means = []
    for dtype, kept in ((torch.float32, {}), (torch.bfloat16, KEPT["bf16_float32_split"][1])):
        params = [x.detach().clone().to(dtype).requires_grad_() for x in start]
        optimizer, rng = build(name, params, "reference", **OPTIONS, **kept), np.random.default_rng(1)
        for _ in range(4):
            for p in params:
                p.grad = random(tuple(p.shape), rng, torch.bfloat16).to(dtype)
            optimizer.step()
        optimizer.eval()
        means.append([x.float() for x in adan_optim.exact_params(optimizer).values()])
    assert_same_bits(*means)


@each_name
def test_modes_are_idempotent_and_remembered(name):
    params, optimizer = trained(name)
    y = values(params)
    optimizer.train()
    assert_same_bits(y, values(params))
    optimizer.eval()
    x = values(params)
    optimizer.eval()
    assert_same_bits(x, values(params))
    assert not optimizer.is_training
    assert [group["train_mode"] for group in optimizer.state_dict()["param_groups"]] == [False]
    other = build(name, [p.detach().clone().requires_grad_() for p in params], **OPTIONS)
    other.load_state_dict(optimizer.state_dict())
    assert not other.is_training
    assert not copy.deepcopy(optimizer).is_training


@each_name
@each_path
def test_checkpoints_of_both_modes_go_on(name, path):
    """To the bit, whichever is loaded first, the weights or the optimizer."""
    for evaluates in (False, True):
        params, optimizer = trained(name, path)
        if evaluates:
            optimizer.eval()
        saved, weights = copy.deepcopy(optimizer.state_dict()), values(params)
        optimizer.train()
        train(optimizer, params, 3, 9)
        for weights_first in (False, True):
            others = make_params(SHAPES, np.random.default_rng(7))
            again = build(name, others, path, **OPTIONS)
            loads = [
                lambda o=others, w=weights: copy_into(o, w),
                lambda a=again, s=saved: a.load_state_dict(s),
            ]
            for load in loads if weights_first else reversed(loads):
                load()
            again.train()
            train(again, others, 3, 9)
            assert_same_bits(tensors_of(again), tensors_of(optimizer))


def copy_into(params, weights):
    with torch.no_grad():
        torch._foreach_copy_(params, weights)


@each_name
def test_a_step_in_eval_mode_is_an_error(name):
    params, optimizer = trained(name)
    optimizer.eval()
    before = tensors_of(optimizer)
    set_grads(params, np.random.default_rng(3))
    with pytest.raises(RuntimeError, match=r"eval mode.*optimizer\.train\(\).*evaluating"):
        optimizer.step()
    assert_same_bits(before, tensors_of(optimizer))


@each_name
def test_evaluating_restores_the_mode(name):
    params, optimizer = trained(name)
    with pytest.raises(KeyError), adan_optim.evaluating(optimizer):  # noqa: PT012
        assert not optimizer.is_training
        raise KeyError
    assert optimizer.is_training
    optimizer.eval()
    x = values(params)
    with adan_optim.evaluating(optimizer):
        pass
    assert not optimizer.is_training
    assert_same_bits(x, values(params))


def test_evaluating_any_optimizer():
    p = torch.ones(2, requires_grad=True)
    for optimizer in (torch.optim.SGD([p], lr=0.1), adan_optim.Adan([p])):
        with adan_optim.evaluating(optimizer):
            assert p.tolist() == [1, 1]


def test_evaluating_what_accelerate_wraps():
    accelerate = pytest.importorskip("accelerate")
    params, optimizer = trained("schedule_free_adan")
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    y = values(params)
    with adan_optim.evaluating(wrapped):
        assert not optimizer.is_training
        assert not torch.equal(params[0], y[0])
    assert optimizer.is_training


def test_statistics_of_batch_norm_are_computed_again():
    """Those of training belong to y; torch's update_bn gives those of the mean, and leaves them behind."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = adan_optim.build_optimizer(model, "schedule_free_adamw", lr=0.05)
    batches = [torch.randn(16, 3) for _ in range(4)]
    for x in batches * 5:
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    with adan_optim.evaluating(optimizer):
        torch.optim.swa_utils.update_bn(batches, model)
        hidden = model[0](torch.cat(batches))
        torch.testing.assert_close(model[1].running_mean, hidden.mean(0))


@each_name
def test_groups_that_join_have_the_mode_of_the_others(name):
    optimizer = trained(name)[1]
    optimizer.eval()
    late = torch.ones(3, requires_grad=True)
    optimizer.add_param_group({"params": [late]})
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]
    optimizer.train()
    late.grad = torch.ones(3)
    optimizer.step()
    assert late.tolist() != [1, 1, 1]


@needs_fsdp2
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_modes_of_sharded_parameters(tmp_path):
    """A DTensor goes there and back as the plain tensor does."""
    from torch.distributed.tensor import Shard, distribute_tensor

    params, optimizer = trained(NAMES[1], shapes=[(8, 3), (4,)])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        starts = make_params([(8, 3), (4,)], np.random.default_rng(0))
        shards = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in starts]
        sharded, rng = build(NAMES[1], shards, **OPTIONS), np.random.default_rng(1)
        for _ in range(5):
            for p in shards:
                p.grad = distribute_tensor(random(tuple(p.shape), rng), mesh, [Shard(0)])
            sharded.step()
        for switch in ("eval", "train"):
            getattr(optimizer, switch)()
            getattr(sharded, switch)()
            assert_same_bits([p.full_tensor() for p in shards], params)
    finally:
        dist.destroy_process_group()


# ---- arguments and storage


def test_checkpoints_of_the_authors_code_are_refused():
    """They count steps and weights for groups, and here each parameter has its own."""
    p = torch.ones(2, requires_grad=True)
    group = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, k=3, train_mode=True, params=[0])
    group |= dict(r=0.0, warmup_steps=0, weight_lr_power=2.0, weight_sum=1.0, lr_max=1e-3, foreach=True)
    saved = {"state": {0: {"z": torch.ones(2), "exp_avg_sq": torch.ones(2)}}, "param_groups": [group]}
    with pytest.raises(ValueError, match=r"not a checkpoint of Schedule-free AdamW: .*\['exp_avg_sq', 'z'\]"):
        build(NAMES[0], [p]).load_state_dict(saved)


@each_name
def test_arguments(name):
    p = [torch.ones(2, requires_grad=True)]
    betas = (0.0, 0.9, 0.9)[: adan_optim.CARDS[name].betas]
    with pytest.raises(ValueError, match=r"betas=\(0\.0, .*the first must be above 0"):
        build(name, p, betas=betas)
    with pytest.raises(ValueError, match=r"warmup_steps=1\.5: give a whole number >= 0"):
        build(name, p, warmup_steps=1.5)
    with pytest.raises(ValueError, match=r"r=-1: must be a finite number >= 0"):
        build(name, p, r=-1)
    with pytest.raises(TypeError, match="train_mode=1: use True or False"):
        build(name, [{"params": p, "train_mode": 1}])


@each_name
def test_z_is_never_kept_in_8_bits(name):
    """Its steps are far below those of the codes: 8 bits would move it by chance."""
    params, optimizer = trained(name, state_dtype="int8", min_int8_size=0)
    state = optimizer.state[params[0]]
    assert state["z"].dtype == torch.float32
    assert state["exp_avg_sq"].dtype == torch.uint8
    assert optimizer.path == "foreach"
    with pytest.raises(ValueError, match="state_dtype='int8', z stays float32, and the kernels"):
        build(name, params, "fused", fused=True, state_dtype="int8", min_int8_size=0)


@each_name
def test_new_rows_begin_at_their_own_value(name):
    params, optimizer = trained(name, shapes=[(4, 3)])
    grown = torch.nn.Parameter(torch.cat([params[0].detach(), torch.full((2, 3), 5.0)]))
    adan_optim.resize_state(optimizer, params[0], grown, torch.tensor([0, 1, 2, 3, -1, -1]))
    optimizer.eval()
    assert (grown[4:] == 5).all()


def test_caution_with_zero_gradients():
    """AdamW's direction always has the gradient's sign: only elements without a gradient are left out."""
    moves = []
    for caution in (False, True):
        for path in ("foreach", "reference"):
            p = torch.ones(4, requires_grad=True)
            optimizer = build(NAMES[0], [p], path, lr=0.1, eps=1e-8, weight_decay=0.0, caution=caution)
            p.grad = torch.tensor([1.0, 0.0, -1.0, 0.0])
            optimizer.step()
            moves.append((1 - p.detach()).tolist())
    np.testing.assert_allclose(moves[0], [0.1, 0, -0.1, 0], atol=1e-6)
    np.testing.assert_allclose(moves[2], [0.2, 0, -0.2, 0], atol=1e-6)
    np.testing.assert_allclose(moves[::2], moves[1::2])
