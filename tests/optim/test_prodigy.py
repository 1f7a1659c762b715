"""Prodigy's estimate: prodigyopt's numbers, scales of the loss, groups, shards, checkpoints, no waiting."""

import copy
import io
import itertools
import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import (
    assert_same_bits,
    build,
    compare,
    gradients,
    make_params,
    needs_fsdp2,
    oracle_of,
    random,
    resync,
    set_grads,
    tensors_of,
)
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed.checkpoint import state_dict as dcp_state

import adan_optim
from adan_optim.dropins.dadaptation import DAdaptAdan
from adan_optim.engine import fused
from adan_optim.engine.rule import Batch

NAMES = ("prodigy", "prodigy_adan")
ESTIMATE = ("d", "d_max", "d_numerator")
each_name = pytest.mark.parametrize("name", NAMES)
each_path = pytest.mark.parametrize("path", adan_optim.CARDS["prodigy"].paths)
F64 = torch.float64


def estimate(optimizer):
    return [optimizer.param_groups[0][name] for name in ESTIMATE]


def d_of(optimizer):
    return float(optimizer.param_groups[0]["d"])


# ---- prodigyopt


# d after steps 3, 6, 9 and 12, and the parameters after the last, of prodigyopt 1.1.2 in float64
PRODIGYOPT = {
    "paper": (
        [0.01, 0.043929977501533296, 0.20204682322479597, 0.5789623948156781],
        (
            *(0.7351281388711159, 1.329351707187298, 1.7716355166679736, 1.5482276872077505),
            *(1.1240764204270346, 1.2424968699790426, 1.9347998835884566, 1.5097281139038166),
        ),
    ),
    "bias_correction": (
        [0.01, 0.029469032432946823, 0.1068366731363245, 0.3347773653147648],
        (
            *(-0.322015801593872, 0.2789686801913519, 0.8785710756666288, 1.4169602070727256),
            *(1.4360571805044504, 1.3598801039806665, 1.1905015436190867, 0.4346964157860419),
        ),
    ),
    "decay": (
        [0.011449439254007836, 0.06196454395142443, 0.28270259164899997, 0.6837358418308073],
        (
            *(1.416985497952231, 1.8261382699331383, 1.7881495554288054, 1.1977512361504457),
            *(0.7946229376470723, 1.0094044511427271, 1.7039911139043369, 2.0185359864622474),
        ),
    ),
    "growth": (
        [0.018709935280914657, 0.04110572781216951, 0.09030928400333643, 0.19840949695533017],
        (
            *(-0.15391042182490908, 0.445207907700977, 1.0361526558442204, 1.5103958113095486),
            *(1.4862771780158075, 1.2948010496654903, 1.3460828341622266, 0.6012029668821682),
        ),
    ),
    "warmup": (
        [0.01, 0.016632444184288334, 0.041624165471458606, 0.10700504324585122],
        (
            *(-0.7010461734565737, -0.10129000843107844, 0.4975747354042173, 1.087949210224139),
            *(1.4791628251635511, 1.72174084156735, 0.800600037096046, 0.050162524591389944),
        ),
    ),
    "slices": (
        [0.01, 0.02889325552363606, 0.11814677834684827, 0.379310804489395],
        (
            *(0.0261523560774089, 0.6284343467057045, 1.220176069273672, 1.5665748214566206),
            *(1.3577243810233193, 1.0238757665428975, 1.5417397628486298, 0.7891504325453831),
        ),
    ),
}
OPTIONS = {
    "paper": dict(use_bias_correction=False),
    "bias_correction": dict(),
    "decay": dict(weight_decay=0.1, beta3=0.7, use_bias_correction=False),
    "growth": dict(growth_rate=1.3, d_coef=2.0, use_bias_correction=False),
    "warmup": dict(safeguard_warmup=True),
    "slices": dict(slice_p=3, d_coef=0.8, use_bias_correction=False),
}


def problem():
    x = torch.linspace(-1, 2, 6, dtype=F64).view(2, 3).requires_grad_()
    return [x, torch.tensor([0.5, -0.25], dtype=F64, requires_grad=True)]


def like_prodigyopt(params, path, case):
    """With an eps of next to nothing: theirs is multiplied by the next d."""
    common = dict(lr=0.9, betas=(0.8, 0.95), eps=1e-30, d0=0.01, d_coef=1.0, weight_decay=0.0)
    return build("prodigy", params, path, **{**common, **OPTIONS[case]})


def walk(optimizer, params, steps):
    """The d after each third of these steps."""
    found = []
    for t in steps:
        for p, factor in zip(params, (1.0, 4.0), strict=True):
            x = p.detach()
            p.grad = factor * (x - 1.5) + 0.3 * torch.cos(x + t)
        optimizer.step()
        if t % 3 == 2:
            found.append(d_of(optimizer))
    return found


@each_path
@pytest.mark.parametrize("case", PRODIGYOPT)
def test_prodigyopt(path, case):
    if path == "fused" and "slice_p" in OPTIONS[case]:
        path = None
    params = problem()
    found = walk(like_prodigyopt(params, path, case), params, range(12))
    d, values = PRODIGYOPT[case]
    torch.testing.assert_close(found, d, rtol=1e-12, atol=0)
    expected = torch.tensor(values, dtype=F64)
    torch.testing.assert_close(
        torch.cat([p.detach().flatten() for p in params]), expected, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("case", ["paper", "slices"])
def test_checkpoints_of_prodigyopt_go_on(case):
    """Which keep s and p0 flat, one number for a p0 of zeros, and d as a number of each group."""
    params = problem()
    first = like_prodigyopt(params, None, case)
    walk(first, params, range(6))
    saved = copy.deepcopy(first.state_dict())
    for state in saved["state"].values():
        for name in ("s", "p0"):
            state[name] = state.pop(f"{name}_slice", state.get(name)).flatten()
    for group in saved["param_groups"]:
        group |= {name: float(group[name]) for name in ESTIMATE} | {"k": 6, "growth_rate": math.inf}
    second = like_prodigyopt(params, None, case)
    second.load_state_dict(saved)
    found = walk(second, params, range(6, 12))
    torch.testing.assert_close(found, PRODIGYOPT[case][0][2:], rtol=1e-12, atol=0)


def test_a_p0_of_zeros_from_prodigyopt():
    p = torch.zeros(2, 3, requires_grad=True)
    optimizer = adan_optim.Prodigy([p])
    set_grads([p], np.random.default_rng(0))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["p0"] = torch.tensor(0.0)
    saved["state"][0]["s"] = saved["state"][0]["s"].flatten()
    optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.state[p]["p0"], torch.zeros(2, 3))


# ---- what d becomes


def quadratic(seed):
    generator = torch.Generator().manual_seed(seed)
    target, curvature = torch.randn(20, generator=generator), torch.logspace(0, 1, 20)
    p = torch.zeros(20, requires_grad=True)
    return [p], lambda: (curvature * (p - target).square()).mean()


def network(seed):
    torch.manual_seed(seed)
    x = torch.randn(128, 8)
    y = x[:, :4].prod(1, keepdim=True).tanh() + x[:, 4:5].sin()
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    return list(model.parameters()), lambda: (model(x) - y).square().mean()


@each_name
@pytest.mark.parametrize(
    # over ten seeds d was within 0.27 to 0.76 and 0.026 to 0.054, and the loss below 4e-4 and 4e-3
    ("task", "least", "most", "left"),
    [(quadratic, 0.2, 1.0, 2e-3), (network, 0.015, 0.1, 0.02)],
)
def test_d_grows_to_a_sensible_value_at_any_scale_of_the_loss(name, task, least, most, left):
    found = []
    for scale in (1e-3, 1.0, 1e3):
        params, loss = task(0)
        optimizer = adan_optim.OPTIMIZERS[name](params)
        start = loss().item()
        for _ in range(400):
            optimizer.zero_grad()
            (scale * loss()).backward()
            optimizer.step()
        assert least < d_of(optimizer) < most
        assert loss().item() < left * start
        found.append(d_of(optimizer))
    assert max(found) < 1.2 * min(found)  # 1.06 at most, over ten seeds


@each_name
@each_path
def test_options_of_the_estimate(name, path):
    """A factor on the estimate, and a bound on its growth, which does not hold for the first."""

    def walked(**options):
        params = problem()
        optimizer = build(
            name, params, path, lr=0.9, weight_decay=0.0, **{"d_coef": 1.0, "d0": 0.01, **options}
        )
        found = []
        for t in range(12):
            walk(optimizer, params, [t])
            found.append(d_of(optimizer))
        return found

    assert walked(d_coef=2.0)[-1] > 1.1 * walked()[-1]
    found, free = walked(growth_rate=1.05), walked()
    ratios = [b / a for a, b in itertools.pairwise(found) if a > 0.01]
    assert max(ratios) == pytest.approx(1.05)
    assert max(b / a for a, b in itertools.pairwise(free) if a > 0.01) > 1.1


@each_name
@each_path
def test_a_group_with_another_lr_is_a_group_in_other_units(name, path):
    """lr 1/4 for x is lr 1 for x / 4: the same steps and the same d. A power of two, so only sums round."""

    def run(factor):
        x, y = (p.detach() for p in make_params([(4, 3), (5,)], np.random.default_rng(0), F64))
        params = [x.div(factor).requires_grad_(), y.requires_grad_()]
        groups = [{"params": params[:1], "lr": 0.25 / factor}, {"params": params[1:]}]
        optimizer = build(name, groups, path, lr=1.0, eps=1e-30, weight_decay=0.0, d0=0.01, d_coef=1.0)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (params[0] * factor - 1).square().sum() + (params[1] - 0.3).square().sum()
            loss.backward()
            optimizer.step()
        return params[0].detach() * factor, params[1].detach(), torch.tensor(d_of(optimizer))

    ours, expected = run(1.0), run(0.25)
    assert expected[2] > 0.02
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=0)


@each_name
@each_path
def test_a_group_with_a_learning_rate_of_zero_does_not_count(name, path):
    def run(with_it):
        params = problem()
        optimizer = build(name, params[:1], path, lr=0.9, d0=0.01)
        if with_it:
            optimizer.add_param_group({"params": params[1:], "lr": 0.0})
        walk(optimizer, params, range(9))
        return params, estimate(optimizer)

    alone, together = run(False), run(True)
    assert_same_bits([alone[0][0], *alone[1]], [together[0][0], *together[1]])
    assert torch.equal(together[0][1], problem()[1])
    assert alone[1][0] > 0.01


@each_name
@each_path
def test_parameters_without_a_gradient_keep_their_sums(name, path):
    """Each of 12 steps, with one parameter, then another, frozen: their s counts for d."""
    params = make_params([(5, 7), (13,), (2, 3)], np.random.default_rng(0), F64)
    optimizer = build(name, params, path, lr=0.5, d0=0.1, d_coef=2.0)
    oracle = oracle_of(optimizer)
    for t in range(12):
        for i, p in enumerate(params):
            p.grad = None if t and (t // 2 + i) % 3 == 0 else 2 * p.detach() + 0.5
        resync(oracle, optimizer)
        oracle.step(gradients(optimizer))
        optimizer.step()
        compare(oracle, optimizer)
    assert d_of(optimizer) > 0.2


@each_name
@each_path
def test_steps_without_a_known_estimate_keep_it(name, path):
    """Gradients that are 0, not finite, skipped, or scaled beyond what GradScaler allows."""
    params = problem()
    optimizer = build(name, params, path, lr=0.9, d0=0.01)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert d_of(optimizer) == 0.01
    walk(optimizer, params, range(6))
    before = [x.clone() for x in estimate(optimizer)]
    assert before[0] > 0.01
    optimizer.nonfinite = "skip"
    params[1].grad[0] = math.nan
    optimizer.step()
    assert_same_bits(estimate(optimizer), before)
    optimizer.nonfinite = "propagate"
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    assert_same_bits(estimate(optimizer), before)
    del optimizer.grad_scale, optimizer.found_inf
    optimizer.step()
    assert_same_bits(estimate(optimizer), before)
    assert params[1][0].isnan()
    assert not params[1][1].isnan()


@each_name
@each_path
def test_clipping_and_closures(name, path):
    """The estimate sees the clipped gradient; a closure is the same step."""

    def run(scale, closure=False, **options):
        params = problem()
        optimizer = build(name, params, path, lr=0.9, d0=0.01, eps=1e-30, **options)

        def loss():
            optimizer.zero_grad()
            value = scale * sum((p - 1.5).square().sum() for p in params)
            value.backward()
            return value

        for _ in range(8):
            if closure:
                assert optimizer.step(loss) > 0
            else:
                loss()
                optimizer.step()
        assert d_of(optimizer) > 0.01
        return [*params, *estimate(optimizer)]

    torch.testing.assert_close(run(1.0, max_grad_norm=0.5), run(2.0, max_grad_norm=0.5), rtol=1e-12, atol=0)
    assert_same_bits(run(1.0), run(1.0, closure=True))


# ---- where it is kept


@each_name
@each_path
@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}], ids=str)
def test_resuming_in_the_middle_gives_the_same_bits(name, path, options):
    def new():
        params, loss = network(0)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]
        return params, loss, build(name, groups, path, lr=1.0, d0=1e-4, **options)

    def train(loss, optimizer):
        for _ in range(15):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    params, loss, optimizer = new()
    train(loss, optimizer)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), params), file)
    middle = d_of(optimizer)
    train(loss, optimizer)
    file.seek(0)
    again, loss, resumed = new()
    saved, values = torch.load(file, weights_only=True)
    with torch.no_grad():
        torch._foreach_copy_(again, values)
    resumed.load_state_dict(saved)
    assert d_of(resumed) == middle > 1e-4
    train(loss, resumed)
    assert_same_bits(tensors_of(optimizer) + estimate(optimizer), tensors_of(resumed) + estimate(resumed))
    assert d_of(resumed) > middle
    for copied in (copy.deepcopy(resumed), adan_optim.OPTIMIZERS[name]([torch.ones(2)])):
        assert all(group["d"] is copied.param_groups[0]["d"] for group in copied.param_groups)


@each_name
def test_the_same_bits_with_any_number_of_threads(name):
    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            params = make_params([70001, 3, 65537, 99991], np.random.default_rng(0))
            optimizer = build(name, params, "fused", lr=1.0, d0=1e-3)
            for _ in range(4):
                for p in params:
                    p.grad = p.detach() - 0.3
                optimizer.step()
            return estimate(optimizer)
        finally:
            torch.set_num_threads(before)

    one = run(1)
    assert one[0] > 1e-3
    for threads in (2, 3, 5):
        assert_same_bits(one, run(threads))


@each_name
@each_path
def test_the_estimate_is_one_for_groups_and_dtypes(name, path):
    """Batches of several dtypes: in float64 it is that of one group, in others nearly so."""
    found = []
    for dtypes in ((F64, F64), (F64, torch.float32), (torch.float32, torch.bfloat16)):
        params = [p.detach().to(dtype).requires_grad_() for p, dtype in zip(problem(), dtypes, strict=True)]
        groups = [{"params": params[:1]}, {"params": params[1:], "param_rounding": "kahan"}]
        optimizer = build(name, groups, path, lr=0.9, d0=0.05, weight_decay=0.0)
        walk(optimizer, params, range(6))
        found.append(d_of(optimizer))
    assert found[0] > 0.06
    assert found[1:] == pytest.approx([found[0]] * 2, rel=0.05)


@each_name
def test_states_and_bytes(name):
    """24 bytes of Prodigy-Adan's states, halved in bfloat16; s and p0 of each eleventh element alone."""
    card, adan = adan_optim.CARDS[name], adan_optim.CARDS["adan"]
    most = {"prodigy": (16, 8, 9), "prodigy_adan": (24, 12, 17)}[name]
    for options, bytes_ in zip(({}, {"state_dtype": "bfloat16"}, {"slice_p": 11}), most, strict=True):
        p = torch.randn(1000, 11, requires_grad=True)
        optimizer = adan_optim.OPTIMIZERS[name]([p], **options)
        set_grads([p], np.random.default_rng(0))
        optimizer.step()
        assert sum(adan_optim.state_bytes(optimizer).values()) <= bytes_ * p.numel() + 4
    assert card.traffic_bytes() == {"prodigy": 40, "prodigy_adan": 56}[name] <= 1.4 * adan.traffic_bytes()


@each_name
def test_restarts_and_pruning(name):
    """A restart of Adan's moments keeps x0, s and d; rows cannot be moved, as new ones would have no x0."""
    params = problem()
    optimizer = build(name, params, lr=0.9, d0=0.01)
    walk(optimizer, params, range(6))
    state = {key: x.clone() for key, x in optimizer.state[params[0]].items()}
    before = d_of(optimizer)
    if name == "prodigy_adan":
        optimizer.restart_opt()
        after = optimizer.state[params[0]]
        assert_same_bits([after["s"], after["p0"]], [state["s"], state["p0"]])
        assert not after["exp_avg"].any()
        assert after["step"] == 0
        walk(optimizer, params, range(6, 9))
        assert d_of(optimizer) >= before > 0.01
    with pytest.raises(ValueError, match="cannot be resized"):
        adan_optim.resize_state(optimizer, params[0], torch.ones(1, 3), torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"d0": 0.0}, "d0=0: must be above 0"),
        ({"d_coef": 0.0}, "d_coef=0: must be above 0"),
        ({"d0": -1.0}, "d0=-1.0: must be a finite number >= 0"),
        ({"beta3": 1.0}, "beta3=1.0: must be below 1"),
        ({"growth_rate": 1.0}, "growth_rate=1.0: give a number above 1"),
        ({"growth_rate": math.nan}, "growth_rate=nan: give a number above 1"),
        ({"growth_rate": "fast"}, "growth_rate='fast': give a number above 1"),
        ({"slice_p": 0}, "slice_p=0: give a whole number >= 1"),
    ],
)
@each_name
def test_options_that_make_no_sense(name, options, match):
    with pytest.raises(ValueError, match=match):
        adan_optim.OPTIMIZERS[name]([torch.ones(2)], **options)


@each_name
@pytest.mark.parametrize("option", ["d0", "d_coef", "growth_rate", "beta3"])
def test_options_that_are_one_for_all_groups(name, option):
    groups = [
        {"params": [torch.ones(2)]},
        {"params": [torch.ones(2)], option: 0.5 + (option == "growth_rate")},
    ]
    with pytest.raises(ValueError, match=rf"parameter group 1: {option}=.* in different groups: d is one"):
        adan_optim.OPTIMIZERS[name](groups)


# ---- devices and processes


@each_name
def test_a_step_on_a_gpu_waits_for_nothing(name):
    """Tensors without values, for which whatever needs one is an error."""
    optimizer = adan_optim.OPTIMIZERS[name]([torch.ones(3)])
    group = optimizer.param_groups[0]
    with FakeTensorMode():
        p = torch.zeros(3, device="cuda")
        old = [torch.zeros((), dtype=F64, device="cuda") for _ in ESTIMATE]
        for lr in (0.5, torch.zeros((), device="cuda")):
            group.update(zip(ESTIMATE, old, strict=True), lr=lr)
            given = fused._numbers_on_device(optimizer, Batch(group, "fused", None, None, params=[p]))
            assert (given.shape, given.dtype, given.device.type) == ((2,), F64, "cuda")
            hyper = optimizer.fused_hyper({**group, "lr": 0.0, "d": 0.0})
            assert all(isinstance(x, int | float) for x in hyper)
            optimizer.found_inf = torch.zeros((), device="cuda")
            new = optimizer._next(old, torch.zeros(2, dtype=F64, device="cuda"))
            assert {(x.shape, x.dtype, x.device.type) for x in new} == {((), F64, "cuda")}


def model_of_halves():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5), nn.Linear(5, 1)).to(F64)


SHARDED = [(name, path) for name in NAMES for path in ("fused", "foreach", "reference")]


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        if step == 5:  # without a gradient, and its s counts
            model[0].requires_grad_(False)
        x = random((8, 6), np.random.default_rng(step), F64)
        (model(x) - 0.3).square().mean().backward()
        model[0].requires_grad_(True)
        optimizer.step()


def worker(rank, port, folder):
    """One of two processes: trains sharded models, and writes d, the weights and a whole checkpoint."""
    import luck  # noqa: F401 (the same seeds as in the process that compares)
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        results = {}
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for name, path in SHARDED:
            model = model_of_halves()
            for layer in (*model, model):
                if any(True for _ in layer.parameters()):
                    fully_shard(layer, mesh=mesh)
            with pytest.raises(ValueError, match="slice_p=2 is not for DTensors"):
                build(name, model.parameters(), slice_p=2)
            optimizer = build(name, model.parameters(), path, lr=1.0, d0=1e-3, d_coef=1.0)
            train(model, optimizer, range(8))
            whole = dcp_state.StateDictOptions(full_state_dict=True)
            saved = dcp_state.get_optimizer_state_dict(model, optimizer, options=whole)
            both = [torch.zeros((), dtype=F64) for _ in range(2)]
            dist.all_gather(both, optimizer.param_groups[0]["d"])
            weights = dcp_state.get_model_state_dict(model, options=whole)
            results[name, path] = both, weights, saved
        if rank == 0:
            torch.save(results, folder / "results.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.exhaustive
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch", "ignore:.*:FutureWarning:torch")
@needs_fsdp2
def test_shards_have_one_estimate(tmp_path):
    """Of two processes it is that of one, to rounding; and one process goes on from their checkpoint."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(worker, (port, tmp_path), nprocs=2, start_method="forkserver")
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for name, path in SHARDED:
        (first, second), weights, saved = results[name, path]
        assert torch.equal(first, second)
        model = model_of_halves()
        optimizer = build(name, model.parameters(), path, lr=1.0, d0=1e-3, d_coef=1.0)
        train(model, optimizer, range(8))
        assert first > 2e-3
        assert float(first) == pytest.approx(d_of(optimizer), rel=1e-10)
        resumed = model_of_halves()
        resumed.load_state_dict(weights)
        again = build(name, resumed.parameters(), path, lr=1.0, d0=1e-3, d_coef=1.0)
        options = dcp_state.StateDictOptions(full_state_dict=True)
        dcp_state.set_optimizer_state_dict(resumed, again, saved, options=options)
        assert d_of(again) == float(first)
        for one, other in ((model, optimizer), (resumed, again)):
            train(one, other, range(8, 14))
        torch.testing.assert_close(
            list(resumed.parameters()), list(model.parameters()), rtol=1e-9, atol=1e-12
        )
        assert d_of(again) == pytest.approx(d_of(optimizer), rel=1e-9)


# ---- dadaptation's names


def test_dadaptations_names():
    """The original's arguments, in its order; it is our Prodigy-Adan."""
    params, others = problem(), problem()
    theirs = DAdaptAdan(params, 0.9, (0.8, 0.7, 0.9), 1e-6, 0.1, True, 0, 0.01, 1.5)
    options = dict(lr=0.9, betas=(0.8, 0.7, 0.9), eps=1e-6, weight_decay=0.1, no_prox=True)
    ours = adan_optim.ProdigyAdan(others, d0=0.01, growth_rate=1.5, **options)
    for optimizer, some in ((theirs, params), (ours, others)):
        walk(optimizer, some, range(6))
    assert_same_bits(tensors_of(theirs) + estimate(theirs), tensors_of(ours) + estimate(ours))
    assert d_of(ours) > 0.01
    group = DAdaptAdan(problem(), state_dtype=None, fused=False).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["growth_rate"]) == (1.0, 0.02, math.inf)
    with pytest.warns(UserWarning, match="log_every=10 prints nothing here"):
        DAdaptAdan(problem(), log_every=10)
    with pytest.raises(TypeError, match="no option 'dlr'"):
        DAdaptAdan(problem(), dlr=1)
