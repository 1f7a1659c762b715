"""Muon's own: against torch's and timm's, its iteration, hidden matrices of models, split work."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import (
    VARIANTS,
    all_params,
    assert_same_bits,
    build,
    make_params,
    needs_fsdp2,
    oracle_of,
    random,
    set_grads,
    tensors_of,
)
from torch import nn

import adan_optim
from adan_optim.engine import orthogonal
from adan_optim.engine.dtensor import over_processes
from adan_optim.muon import COEFFICIENTS, MARGIN, REST_OPTIONS

F64 = torch.float64
each_path = pytest.mark.parametrize("path", adan_optim.CARDS["muon"].paths)
JORDAN, EXPRESS = COEFFICIENTS["jordan"] * 5, COEFFICIENTS["polar_express"]


def muon(shapes, path=None, dtype=F64, **options):
    params = make_params(shapes, np.random.default_rng(0), dtype)
    return params, build("muon", params, path, **{**VARIANTS["muon"]["plain"], **options})


def walk_together(ours, theirs, params, others, steps, tolerance):
    rng = np.random.default_rng(1)
    for _ in range(steps):
        set_grads(params, rng)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


# ---- against other implementations


@each_path
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [("jordan", "original"), ("moonshot", "match_rms_adamw"), ("bernstein", "spectral_unclamped")],
)
def test_torchs(path, nesterov, scaling, theirs):
    """Whose iterations are in bfloat16: the directions, and the lengths, to a few hundredths."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    options = dict(lr=0.05, momentum=0.8, nesterov=nesterov, weight_decay=0.1)
    params, ours = muon([(12, 8), (8, 20), (9, 9)], path, torch.float32, scaling=scaling, **options)
    others = [p.detach().clone().requires_grad_() for p in params]
    before = [p.detach().clone() for p in params]
    try:
        torchs = torch.optim.Muon(others, adjust_lr_fn=theirs, **options)
    except ValueError as error:  # of a torch before the newest
        if f"{theirs} is not supported" not in str(error):
            raise
        pytest.skip(str(error))
    walk_together(ours, torchs, params, others, 5, 1.0)
    for p, q, start in zip(params, others, before, strict=True):
        assert (p - q).norm() < 0.04 * (q - start).norm()


@each_path
@pytest.mark.parametrize("name", ["original", "polar_express"])
def test_timms_iteration(path, name):
    """In float64, with our coefficients."""
    timms = pytest.importorskip("timm.optim.muon").zeropower_via_newtonschulz
    coefficients = {"original": JORDAN, "polar_express": list(EXPRESS[:5])}[name]
    x = random((3, 6, 14), np.random.default_rng(0), F64)
    iterate = {"foreach": orthogonal.newton_schulz_fast, "reference": orthogonal.newton_schulz}[path]
    for each in (x, x.mT.contiguous()):
        expected = timms(each, 5, coefficients, dtype=F64)
        torch.testing.assert_close(iterate(orthogonal.normalized(each), coefficients), expected)


def test_checkpoints_of_torchs():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    params = make_params([(4, 6), (7, 3)], np.random.default_rng(0))
    theirs = torch.optim.Muon(params)
    set_grads(params, np.random.default_rng(1))
    theirs.step()
    ours = adan_optim.Muon([p.detach().clone().requires_grad_() for p in params], precision="float32")
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["momentum"] == 0.95
    for p, q in zip(params, all_params(ours), strict=True):
        assert_same_bits([theirs.state[p]["momentum_buffer"]], [ours.state[q]["momentum_buffer"]])


# ---- the iteration


def test_polar_express_is_optimal():
    """After each iteration the largest and the smallest image of [0.001, 1] are equally far from 1."""
    s = torch.logspace(-3, 0, 100001, dtype=F64)
    raw = [(a * 1.01, b * 1.01**3, c * 1.01**5) for a, b, c in EXPRESS[:-1]]
    for a, b, c in raw[:6]:
        s = a * s + b * s**3 + c * s**5
        assert s.max() - 1 == pytest.approx((1 - s.min()).item(), rel=1e-4)
    assert s.max() - 1 < 0.002
    assert EXPRESS[-1] == (1.875, -1.25, 0.375)  # the Newton-Schulz iteration of order five


@pytest.mark.parametrize("shape", [(40, 40), (24, 80), (80, 24)])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_singular_values_come_near_to_one(shape, name):
    """Whatever they are, in float32 and in bfloat16."""
    rng, n = np.random.default_rng(0), min(shape)
    left, right = (torch.linalg.qr(random((k, n), rng, F64))[0] for k in shape)
    coefficients = [COEFFICIENTS[name][min(i, len(COEFFICIENTS[name]) - 1)] for i in range(5)]
    for values in (torch.ones(n), torch.logspace(0, -2, n), torch.logspace(0, -9, n)):
        g = left * values @ right.mT
        expected = orthogonal.newton_schulz(orthogonal.normalized(g, MARGIN[name]), coefficients)
        for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 0.5)):
            x = orthogonal.normalized(g.to(dtype)[None], MARGIN[name])
            x = orthogonal.newton_schulz_fast(x, coefficients)[0].double()
            assert values[-1] < 1e-3 or (x - expected).norm() < close * expected.norm()
            assert torch.linalg.svdvals(x)[0] < 1.25
    assert torch.linalg.svdvals(expected)[0] > 0.6


def test_oblong_matrices_take_fewer_operations(monkeypatch):
    """In float32, 64 x 256, 5 iterations: 4 products with X and 14 of squares, instead of 10 and 5."""
    from torch.utils.flop_counter import FlopCounterMode

    x = orthogonal.normalized(torch.randn(1, 64, 256))
    counted = {}
    for run in (1, 3):
        monkeypatch.setitem(orthogonal.RUN, torch.float32, run)
        with FlopCounterMode(display=False) as counter:
            orthogonal.newton_schulz_fast(x, JORDAN)
        counted[run] = counter.get_total_flops()
    square, oblong = 2 * 64**3, 2 * 64**2 * 256
    assert counted == {1: 10 * oblong + 5 * square, 3: 4 * oblong + 14 * square}


def test_the_fast_precision(monkeypatch):
    x = torch.zeros(1)
    assert orthogonal.fast_dtype(x.double()) == F64
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has, raising=False)
        assert orthogonal.fast_dtype(x) == dtype


@each_path
def test_precision(path):
    """bfloat16 has another result than float32, a near one; the fast precision is one of both."""
    steps = {}
    for precision in ("float32", "bfloat16", "fast"):
        (p,), optimizer = muon([(6, 30)], path, torch.float32, precision=precision)
        start = p.detach().clone()
        set_grads([p], np.random.default_rng(1))
        optimizer.step()
        steps[precision] = p.detach() - start
    difference = (steps["float32"] - steps["bfloat16"]).norm() / steps["float32"].norm()
    assert 1e-4 < difference < 0.05
    assert any(torch.equal(steps["fast"], steps[other]) for other in ("float32", "bfloat16"))


@each_path
def test_steps_are_as_long_as_adamws(path):
    """With "moonshot": an RMS of 0.2 lr, whatever the shape, where singular values are about 1."""
    for shape in ((30, 30), (16, 64), (64, 16)):
        (p,), optimizer = muon([shape], path, lr=0.1, iterations=8, coefficients="polar_express")
        start = p.detach().clone()
        set_grads([p], np.random.default_rng(1))
        optimizer.step()
        assert (p - start).square().mean().sqrt().item() == pytest.approx(0.02, rel=0.01)


@each_path
@pytest.mark.parametrize("scale", [0.0, 1e-18, 1e12])
def test_gradients_that_vanish_or_are_large(path, scale):
    """A zero gradient moves nothing; of others only the direction counts."""
    moves = []
    for factor in (1.0, scale):
        (p,), optimizer = muon([(5, 8)], path, torch.float32)
        start = p.detach().clone()
        p.grad = factor * random((5, 8), np.random.default_rng(1))
        optimizer.step()
        moves.append(p.detach() - start)
    torch.testing.assert_close(moves[1], moves[0] * (scale > 0), rtol=1e-3, atol=1e-5)


# ---- which rule


class Net(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        block = [nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)]
        self.blocks = nn.ModuleList(block)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20)
        if tied:
            self.head.weight = self.embedding.weight


def test_hidden_matrices_of_a_model():
    found = adan_optim.hidden_matrices(Net())
    hidden = [f"blocks.{i}.{j}.weight" for i in (0, 1) for j in (0, 2)]
    assert [name for name, entry in found.items() if entry.is_hidden] == hidden
    reasons = {name: entry.reason for name, entry in found.items()}
    assert reasons["embedding.weight"] == "Embedding: embedding"
    assert reasons["head.weight"] == "Linear: output layer"
    assert reasons["position"] == "Net: vector"
    assert reasons["blocks.0.0.bias"] == "Linear: vector"
    assert reasons["blocks.0.0.weight"] == "Linear"
    total = sum(p.numel() for p in Net().parameters())
    assert str(found).splitlines()[-1] == f"512 of {total} elements in hidden matrices"


def test_a_tied_head_is_an_embedding_and_a_block_has_no_output_layer():
    reasons = {name: entry.reason for name, entry in adan_optim.hidden_matrices(Net(tied=True)).items()}
    assert reasons["embedding.weight"] == "Embedding: embedding"
    body = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)))
    assert sum(entry.is_hidden for entry in adan_optim.hidden_matrices(body).values()) == 8
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    assert [entry.is_hidden for entry in adan_optim.hidden_matrices(layers).values()][::2] == [
        True,
        True,
        False,
    ]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_experts = 3
        self.up = nn.Parameter(torch.zeros(3, 4, 6))
        self.out = nn.Linear(4, 2)


def test_experts_are_stacks_and_convolutions_matrices():
    found = adan_optim.hidden_matrices(Experts())
    assert found["up"][1:] == (True, True, "Experts: experts")
    conv = nn.Sequential(nn.Conv1d(3, 4, 6), nn.Conv2d(4, 4, 1, groups=4), nn.Linear(4, 2))
    found = adan_optim.hidden_matrices(conv)
    assert found["0.weight"][1:] == (True, False, "Conv1d")
    assert found["1.weight"][1:] == (False, False, "Conv2d: vector")
    groups = adan_optim.build_optimizer(Experts(), "muon").param_groups
    assert [(group["name"], group["use_muon"], group["stacked"]) for group in groups] == [
        ("decay_stacks", True, True),
        ("decay_rest", False, False),
        ("no_decay_rest", False, False),
    ]


@each_path
def test_a_stack_is_matrices_of_their_own(path):
    (p,), one = muon([(3, 4, 6)], path, stacked=True)
    parts = [x.clone().requires_grad_() for x in p.detach()]
    two = build("muon", parts, path, **VARIANTS["muon"]["plain"])
    set_grads([p], np.random.default_rng(1))
    for part, g in zip(parts, p.grad, strict=True):
        part.grad = g.clone()
    one.step()
    two.step()
    torch.testing.assert_close(p.detach(), torch.stack(parts).detach(), rtol=1e-12, atol=1e-12)


def test_rules():
    """By name, type and parameter; the first counts."""
    net = Net()
    rules = {"blocks.0": False, nn.Linear: True, net.embedding.weight: True}
    found = adan_optim.hidden_matrices(net, rules={**rules, "bias": False})
    hidden = {name for name, entry in found.items() if entry.is_hidden}
    assert hidden == {"blocks.1.0.weight", "blocks.1.2.weight", "head.weight", "embedding.weight"}
    assert found["blocks.0.0.weight"].reason == "rule: False"
    optimizer = adan_optim.build_optimizer(net, "muon", rules={"head": False, "blocks": False})
    assert not any(group["use_muon"] for group in optimizer.param_groups)
    with pytest.raises(ValueError, match=r"rule True for norm\.weight of shape \(8,\), which is no matrix"):
        adan_optim.hidden_matrices(net, rules={"norm.weight": True})
    with pytest.raises(ValueError, match="the rule for 'nothing' matches no trainable parameter"):
        adan_optim.hidden_matrices(net, rules={"nothing": True})
    with pytest.raises(TypeError, match=r"rules needs the model: use adan_optim.build_optimizer"):
        adan_optim.Muon(net.parameters(), rules=rules)


def test_a_model_is_one_optimizer_that_says_what_it_does():
    net = Net()
    optimizer = adan_optim.build_optimizer(net, "muon", rest="adan", lr=0.1, weight_decay=0.2)
    assert optimizer.description == "foreach: Muon for 4, Adan for 10 parameters"
    set_grads(list(net.parameters()), np.random.default_rng(0))
    optimizer.step()
    saved = optimizer.state_dict()
    kinds = [set(state) for state in saved["state"].values()]
    assert sum(kind == {"step", "momentum_buffer"} for kind in kinds) == 4
    assert (
        sum(kind == {"step", "exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"} for kind in kinds) == 10
    )
    other = adan_optim.build_optimizer(Net(), "muon", rest="adan")
    other.load_state_dict(saved)
    assert other.state_dict()["param_groups"] == saved["param_groups"]


@each_path
@pytest.mark.parametrize("rest", REST_OPTIONS)
def test_the_rest_takes_the_steps_of_its_own_optimizer(path, rest):
    """Vectors, and all of a group with use_muon=False: AdamW's or Adan's, with lr in proportion."""
    shapes = [(7,), (), (1, 5), (4, 1), (6, 3)]
    params = make_params(shapes, np.random.default_rng(0), F64)
    others = [p.detach().clone().requires_grad_() for p in params]
    options = dict(eps=0.01, weight_decay=0.3)
    groups = [{"params": params[:4]}, {"params": params[4:], "use_muon": False}]
    mine = {**VARIANTS["muon"]["plain"], **options, "lr": 0.2, "rest_lr_scale": 0.25, "rest": rest}
    ours = build("muon", groups, path, **{**mine, "rest_betas": None})
    betas = REST_OPTIONS[rest]["betas"]
    theirs = build(rest, others, "reference", lr=0.05, betas=betas, **options)
    walk_together(ours, theirs, params, others, 4, 1e-12)


@each_path
def test_another_rule_than_that_of_the_states(path):
    (p,), optimizer = muon([(4, 6)], path)
    set_grads([p], np.random.default_rng(0))
    optimizer.step()
    optimizer.param_groups[0]["use_muon"] = False
    with pytest.raises(ValueError, match="has the states of another rule, without exp_avg, exp_avg_sq"):
        optimizer.step()


@each_path
def test_int8_momentum(path):
    """One byte a number, and steps near those of float32."""
    moves = {}
    for state_dtype in (None, "int8"):
        (p,), optimizer = muon([(64, 80)], path, torch.float32, state_dtype=state_dtype)
        start = p.detach().clone()
        rng = np.random.default_rng(1)
        for _ in range(3):
            set_grads([p], rng)
            optimizer.step()
        moves[state_dtype] = p.detach() - start
    assert adan_optim.state_bytes(optimizer)["momentum_buffer"] == 64 * 80
    assert 1e-4 < (moves["int8"] - moves[None]).norm() / moves[None].norm() < 0.1


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("momentum", 1.0, r"momentum=1.0: must be in \[0, 1\)"),
        ("coefficients", "other", "coefficients='other': use 'jordan' or 'polar_express'"),
        ("scaling", None, "scaling=None: use 'jordan', 'moonshot' or 'bernstein'"),
        ("precision", "float16", "precision='float16': use 'fast', 'float32' or 'bfloat16'"),
        ("rest", "sgd", "rest='sgd': use 'adamw' or 'adan'"),
        ("rest_betas", (0.9,), r"rest_betas=\(0.9,\): give 2 numbers, not 1"),
        ("rest_betas", (0.9, 1.0), r"rest_betas=\(0.9, 1.0\): each must be in \[0, 1\)"),
        ("iterations", 0, "iterations=0: give a whole number >= 1"),
    ],
)
def test_bad_arguments(option, value, match):
    with pytest.raises(ValueError, match=match) as caught:
        adan_optim.Muon([torch.ones(2, 2, requires_grad=True)], **{option: value})
    assert "\n" not in str(caught.value)


# ---- stacks and processes


def test_equal_matrices_are_stacked_up_to_a_bound(monkeypatch):
    counts, work = [], orthogonal.newton_schulz_fast
    shapes = [(4, 6), (3, 3), (4, 6), (6, 4), (4, 6)]
    one = muon(shapes, "foreach")[1]
    two = muon(shapes, "foreach")[1]

    def counting(x, coefficients):
        counts.append(tuple(x.shape))
        return work(x, coefficients)

    monkeypatch.setattr("adan_optim.muon.newton_schulz_fast", counting)
    for optimizer, bound in ((one, 2**24), (two, 50)):
        monkeypatch.setattr("adan_optim.muon.STACK", bound)
        set_grads(all_params(optimizer), np.random.default_rng(1))
        optimizer.step()
    assert counts[:3] == [(3, 4, 6), (1, 3, 3), (1, 6, 4)]
    assert counts[3:] == [(2, 4, 6), (1, 4, 6), (1, 3, 3), (1, 6, 4)]
    for p, q in zip(tensors_of(one), tensors_of(two), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch", "ignore:.*:FutureWarning:torch")
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@needs_fsdp2
def test_work_on_whole_tensors_of_parts():
    """With one process; frameworks/test_examples.py has two."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        parts = [torch.full((3, 4), float(i)) for i in range(2)]
        for placement in (Shard(0), Shard(1), Replicate()):
            owner = distribute_tensor(torch.zeros(3, 4), mesh, [placement])
            got = over_processes(owner, parts, lambda x: x + 10 * x.shape[0])
            assert [x[0, 0].item() for x in got] == [20.0, 21.0]
            assert all(x.shape == (3, 4) for x in got)
    finally:
        dist.destroy_process_group()


def test_the_oracle_follows_groups():
    """Of one optimizer whose groups take different rules."""
    params = make_params([(4, 6), (5, 3), (7,)], np.random.default_rng(0), F64)
    groups = [
        {"params": params[:1]},
        {"params": params[1:], "use_muon": False, "rest": "adan", "rest_betas": None},
    ]
    optimizer = build("muon", groups, "foreach", **VARIANTS["muon"]["plain"])
    oracle = oracle_of(optimizer)
    for seed in range(4):
        set_grads(params, np.random.default_rng(seed))
        oracle.step([p.grad.numpy() for p in params])
        optimizer.step()
    for p, expected in zip(params, oracle.params, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
