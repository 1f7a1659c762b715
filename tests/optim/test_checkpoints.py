"""Saving and loading: our own state dicts continue bit for bit, those of the official Adan and of timm's
continue exactly, and what does not belong here is one clear error that changes nothing."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from harness import (
    FLAGS,
    all_params,
    array,
    assert_same_bits,
    build,
    each_kept,
    each_name,
    each_path,
    full_states,
    make_params,
    needs_names,
    random,
    set_grads,
    tensors_of,
)

import adan_optim

pytestmark = pytest.mark.per_family

SHAPES = [(4, 3), (5,), (), (2, 2, 2), (0,)]


def new(name, path=None, dtype=torch.float32, **options):
    params = make_params(SHAPES, np.random.default_rng(0), dtype)
    return build(name, [{"params": params[:2]}, {"params": params[2:], "lr": 0.03}], path, **options)


def train(optimizer, steps, seed):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        set_grads(all_params(optimizer), rng)
        optimizer.step()
    return optimizer


def with_parameters_of(optimizer, fresh):
    with torch.no_grad():
        for p, q in zip(all_params(fresh), all_params(optimizer), strict=True):
            p.copy_(q)
    return fresh


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- our own


@each_kept
def test_a_state_dict_continues_bit_for_bit(name, path, dtype, kept):
    """As it is, copied, and through a file; none of those that go on shares anything with another."""
    one = train(new(name, path, dtype, max_grad_norm=1.0, **kept), 3, seed=1)
    others = []
    for carry in (lambda x: x, copy.deepcopy, through_a_file):
        saved = carry(one.state_dict())
        two = with_parameters_of(one, new(name, path, dtype, max_grad_norm=1.0, lr=0.9, eps=0.9, **kept))
        two.load_state_dict(saved)
        if "eps" in one.defaults:  # of the clipping, which belongs to the constructor
            two.defaults["eps"] = one.defaults["eps"]
        others.append(two)
    train(one, 3, seed=2)
    for two in others:
        train(two, 3, seed=2)
        assert_same_bits(tensors_of(one), tensors_of(two))


@each_path
def test_neither_loading_nor_training_touches_what_was_loaded(name, path):
    saved = copy.deepcopy(train(new(name, path), 3, seed=1).state_dict())
    copied = copy.deepcopy(saved)
    optimizer = new(name, path)
    optimizer.load_state_dict(saved)
    train(optimizer, 2, seed=2)
    assert saved["param_groups"] == copied["param_groups"]
    for index, state in copied["state"].items():
        assert_same_bits(state.values(), saved["state"][index].values())


@each_path
def test_a_state_dict_goes_from_any_path_to_any_path(name, path):
    for other in adan_optim.CARDS[name].paths:
        one = train(new(name, path, torch.float64), 3, seed=1)
        two = with_parameters_of(one, new(name, other, torch.float64))
        two.load_state_dict(one.state_dict())
        train(one, 3, seed=2)
        train(two, 3, seed=2)
        for x, y in zip(tensors_of(one), tensors_of(two), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@each_name
@pytest.mark.parametrize("from_dtype", [torch.float32, torch.bfloat16])
def test_states_take_the_parameters_type_and_layout(name, from_dtype):
    shape = (2, 3, 4, 4)
    one = build(name, [random(shape, np.random.default_rng(0), from_dtype).requires_grad_()])
    train(one, 2, seed=1)
    p = torch.ones(shape).to(memory_format=torch.channels_last).requires_grad_()
    two = build(name, [p])
    two.load_state_dict(one.state_dict())
    for key in full_states(two, p):
        assert two.state[p][key].dtype == p.dtype
        assert two.state[p][key].stride() == p.stride()
        torch.testing.assert_close(two.state[p][key], one.state[all_params(one)[0]][key].float())
    assert two.state[p]["step"].dtype == torch.float32


@each_path
@pytest.mark.parametrize(
    "carry", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("steps", [0, 3])
def test_copies_of_the_optimizer(name, path, carry, steps):
    """They keep every option, and share nothing with the original."""
    one = train(new(name, path, max_grad_norm=0.5, nonfinite="skip"), steps, seed=1)
    two = carry(one)
    for key in ("max_grad_norm", "nonfinite", "foreach", "fused", "path"):
        assert getattr(one, key) == getattr(two, key)
    before = tensors_of(one)
    train(two, 3, seed=2)
    assert_same_bits(before, tensors_of(one))
    assert_same_bits(tensors_of(train(one, 3, seed=2)), tensors_of(two))
    all_params(two)[0].grad.fill_(float("inf"))
    before = tensors_of(two)
    two.step()
    assert_same_bits(before, tensors_of(two))


@each_path
def test_loading_never_changes_what_belongs_to_the_constructor(name, path):
    for other in adan_optim.CARDS[name].paths:
        saved = train(new(name, other, max_grad_norm=9.0, nonfinite="raise"), 2, seed=1).state_dict()
        for group in saved["param_groups"]:
            group.update(foreach=True, fused=True, max_grad_norm=9.0, nonfinite="raise", differentiable=False)
        optimizer = new(name, path, max_grad_norm=0.5, nonfinite="skip")
        optimizer.load_state_dict(saved)
        assert optimizer.max_grad_norm == 0.5
        assert optimizer.nonfinite == "skip"
        assert path in optimizer.path
        assert (
            not {*FLAGS["fused"], "foreach", "max_grad_norm", "nonfinite"} & optimizer.param_groups[0].keys()
        )
        train(optimizer, 2, seed=1)


@each_name
def test_a_state_dict_says_only_what_others_can_read(name):
    """Tensors, numbers, strings: nothing that weights_only=True refuses, and no path."""
    saved = train(new(name, lr=torch.tensor(0.1)), 2, seed=1).state_dict()
    loaded = through_a_file(saved)
    assert loaded["param_groups"][0]["lr"] == torch.tensor(0.1)
    assert loaded["state"].keys() == saved["state"].keys()


@each_name
def test_an_empty_state_can_be_loaded(name):
    optimizer = new(name)
    optimizer.load_state_dict(new(name).state_dict())
    train(optimizer, 2, seed=1)
    optimizer.load_state_dict(new(name).state_dict())
    assert not optimizer.state


# ---- errors


def wrong_optimizer(saved, name):
    other = next(other for other in adan_optim.CARDS if other != name)
    return train(new(other), 1, seed=1).state_dict()


def wrong_shape(saved, name):
    for key in saved["state"][0].keys() - {"step"}:
        saved["state"][0][key] = torch.zeros(3, 3)
    return saved


def one_state_missing(saved, name):
    del saved["state"][1][list(saved["state"][1])[-1]]
    return saved


def one_state_too_many(saved, name):
    other = "exp_avg_diff" if name == "ademamix" else "exp_avg_slow"  # Adan's or AdEMAMix's
    saved["state"][1][other] = torch.zeros(5)
    return saved


def a_group_missing(saved, name):
    saved["param_groups"].pop()
    return saved


def a_parameter_missing(saved, name):
    saved["param_groups"][0]["params"].pop()
    return saved


@each_path
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_optimizer, r"not a checkpoint of [\w -]+: the state of parameter 0 is .*expected \["),
        (wrong_shape, r"another model.*: parameter 0 has .* state \w+ has shape \(3, 3\), not \(4, 3\)$"),
        (one_state_missing, r"not a checkpoint of [\w -]+: the state of parameter 1 is"),
        (
            one_state_too_many,
            r"not a checkpoint of [\w -]+: the state of parameter 1 is .*exp_avg_(diff|slow)",
        ),
        (a_group_missing, r"parameter groups of sizes \[\d+\], the optimizer \[\d+, \d+\]; build it as"),
        (a_parameter_missing, r"parameter groups of sizes \[.*\], the optimizer \[.*\]; build it as"),
    ],
)
def test_a_checkpoint_that_does_not_fit(name, path, spoil, message):
    """One ValueError, and training goes on as if nothing had been tried."""
    one, two = (train(new(name, path), 3, seed=1) for _ in range(2))
    saved = spoil(copy.deepcopy(one.state_dict()), name)
    with pytest.raises(ValueError, match=message):
        one.load_state_dict(saved)
    assert_same_bits(tensors_of(train(one, 2, seed=2)), tensors_of(train(two, 2, seed=2)))


@pytest.mark.parametrize("name", ["adafactor", "shampoo"])
def test_parameters_in_another_order_whose_states_differ_in_kind(name):
    shapes = [(4, 3), (5,)]
    one, two = (build(name, make_params(s, np.random.default_rng(0))) for s in (shapes, shapes[::-1]))
    with pytest.raises(ValueError, match=r"or parameters in another order.*: .* for shape \(5,\)"):
        two.load_state_dict(train(one, 1, seed=1).state_dict())


def saved_by(*groups):
    optimizer = adan_optim.Adan(list(groups))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer.state_dict()


def test_other_groups_than_those_that_were_saved():
    """Positions and shapes alone would load some of these without an error, into other parameters."""
    a, b, c = (torch.zeros(2, requires_grad=True) for _ in range(3))
    one, two = ({"params": [p], "name": name} for p, name in ((a, "decay"), (b, "no_decay")))
    saved = saved_by(one, two)
    with pytest.raises(
        ValueError, match=r"groups .* another order: number 0 is 'decay' there and 'no_decay'"
    ):
        adan_optim.Adan([two, one]).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"of sizes \[1, 1\], the optimizer \[2\]; build it as the saved"):
        adan_optim.Adan([a, b]).load_state_dict(saved)
    saved = saved_by({"params": [a, b]}, {"params": [c]})
    with pytest.raises(ValueError, match=r"sizes \[2, 1\], the optimizer \[1, 2\], in another order"):
        adan_optim.Adan([{"params": [a]}, {"params": [b, c]}]).load_state_dict(saved)
    adan_optim.Adan([{"params": [a, b]}, {"params": [c], "name": "new"}]).load_state_dict(saved)


@needs_names
def test_named_parameters_in_another_order():
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    saved = saved_by(("a", a), ("b", b))
    with pytest.raises(
        ValueError, match=r"parameters .* in another order: number 0 is 'a' there and 'b' here"
    ):
        adan_optim.Adan([("b", b), ("a", a)]).load_state_dict(saved)
    adan_optim.Adan([("module.a", a), ("module.b", b)]).load_state_dict(saved)


def test_what_is_no_state_dict_of_an_optimizer():
    model = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(3)))
    optimizer = adan_optim.Adan(model.parameters())
    with pytest.raises(ValueError, match=r"keys '0.weight', .*'1.bias', ...: give what optimizer.state_dict"):
        optimizer.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="the keys 'epoch', 'optimizer': load the entry 'optimizer'"):
        optimizer.load_state_dict({"epoch": 1, "optimizer": optimizer.state_dict()})


# ---- hooks


@needs_names
def test_hooks_see_and_change_what_is_loaded():
    """Loading by name, as torch documents it: the parameters are in another order here."""

    def by_name(optimizer, saved):
        assert len(saved["state"]) == 2
        there, here = (groups[0]["param_names"] for groups in (saved["param_groups"], optimizer.param_groups))
        state = {i: saved["state"][there.index(name)] for i, name in enumerate(here)}
        return {"state": state, "param_groups": [{**saved["param_groups"][0], "param_names": here}]}

    def named(*names):
        shapes = {"a": (4, 3), "b": (5,)}
        rng = np.random.default_rng(0)
        return build("adafactor", [(name, *make_params([shapes[name]], rng)) for name in names])

    def forget(optimizer):
        seen.append(len(optimizer.state))
        optimizer.state[all_params(optimizer)[0]].clear()

    one, two, seen = named("a", "b"), named("b", "a"), []
    train(one, 2, seed=1)
    two.register_load_state_dict_pre_hook(by_name)
    two.register_load_state_dict_post_hook(forget)
    two.load_state_dict(one.state_dict())
    assert seen == [2]
    (a, _), (b, a_too) = all_params(one), all_params(two)
    assert not two.state[b]
    assert two.state[a_too].keys() == one.state[a].keys()
    assert_same_bits(two.state[a_too].values(), one.state[a].values())
    assert (
        len(two._optimizer_load_state_dict_pre_hooks) == len(two._optimizer_load_state_dict_post_hooks) == 1
    )


@pytest.mark.parametrize("name", ["adan", "lamb"])
def test_what_a_hook_returns_is_checked(name):
    one = train(new(name), 1, seed=1)
    before = tensors_of(one)
    one.register_load_state_dict_pre_hook(lambda optimizer, saved: wrong_shape(copy.deepcopy(saved), name))
    with pytest.raises(ValueError, match=r"a checkpoint of another model"):
        one.load_state_dict(one.state_dict())
    assert_same_bits(tensors_of(one), before)
    assert len(one._optimizer_load_state_dict_pre_hooks) == 1


# ---- entries of others in the state


@pytest.mark.parametrize("path", FLAGS)
def test_entries_of_others_in_the_state(path):
    """Those of a wrapper or a pruner: a step, a restart, a file and loading leave them as they are."""
    one = new("adan", path)
    p = all_params(one)[0].detach()
    foreign = dict(
        rank=4, mask=torch.tensor([True, False]), history=[torch.ones(2), "late"], slow_buffer=p + 1
    )
    one.state[all_params(one)[0]].update(foreign)  # before the first step, and of one parameter only
    plain = train(new("adan", path), 2, seed=1)
    train(one, 2, seed=1).restart_opt()
    plain.restart_opt()
    train(one, 2, seed=2)
    two = new("adan", path)
    two.load_state_dict(through_a_file(one.state_dict()))
    for optimizer in (one, two):
        state = optimizer.state[all_params(optimizer)[0]]
        kept = {key: state.pop(key) for key in foreign}
        assert kept["rank"] == 4
        assert torch.equal(kept["mask"], foreign["mask"])
        assert kept["history"][1] == "late"
        assert torch.equal(kept["slow_buffer"], foreign["slow_buffer"])
    train(plain, 2, seed=2)
    assert_same_bits(tensors_of(one), tensors_of(plain))
    states = [[state[key] for state in o.state.values() for key in sorted(state)] for o in (one, two)]
    assert_same_bits(*states)


def test_entries_of_others_without_a_state_of_ours():
    one, two = new("adamw"), new("adamw")
    one.state[all_params(one)[1]]["mask"] = torch.tensor([True])
    two.load_state_dict(one.state_dict())
    assert two.state == {all_params(two)[1]: {"mask": torch.tensor([True])}}
    train(two, 1, seed=1)


# ---- the official Adan


class Official:
    """The official optimizer's bookkeeping (not its code): one step count per group, states made when needed.

    `old` is the form until December 2022, which kept the previous gradient itself.
    """

    def __init__(self, params, old=False, **hyper):
        self.params, self.old, self.hyper = params, old, hyper
        self.step_count, self.state = 0, {i: {} for i in range(len(params))}

    def restart_opt(self):
        self.step_count = 0
        for i, p in enumerate(self.params):
            for key in ("exp_avg", "exp_avg_sq", "exp_avg_diff"):
                self.state[i][key] = torch.zeros_like(p)

    def step(self):
        b1, b2, b3 = self.hyper["betas"]
        lr, wd, eps = (self.hyper[key] for key in ("lr", "weight_decay", "eps"))
        self.step_count += 1
        t, max_norm = self.step_count, self.hyper["max_grad_norm"]
        norm = torch.stack([p.grad.square().sum() for p in self.params if p.grad is not None]).sum().sqrt()
        clip = min(1.0, float(max_norm / (norm + eps))) if max_norm else 1.0
        with torch.no_grad():
            for i, p in enumerate(self.params):
                if p.grad is None:
                    continue
                g, s = p.grad * clip, self.state[i]
                key, sign = ("pre_grad", 1) if self.old else ("neg_pre_grad", -1)
                for moment in ("exp_avg", "exp_avg_sq", "exp_avg_diff"):
                    s.setdefault(moment, torch.zeros_like(p))
                if key not in s or t == 1:
                    s[key] = sign * g
                diff = g - sign * s[key]
                s["exp_avg"] = b1 * s["exp_avg"] + (1 - b1) * g
                s["exp_avg_diff"] = b2 * s["exp_avg_diff"] + (1 - b2) * diff
                s["exp_avg_sq"] = b3 * s["exp_avg_sq"] + (1 - b3) * (g + b2 * diff) ** 2
                u = s["exp_avg"] / (1 - b1**t) + b2 * s["exp_avg_diff"] / (1 - b2**t)
                u = u / (s["exp_avg_sq"].sqrt() / (1 - b3**t) ** 0.5 + eps)
                if self.hyper["no_prox"]:
                    p.mul_(1 - lr * wd).sub_(lr * u)
                else:
                    p.sub_(lr * u).div_(1 + lr * wd)
                s[key] = sign * g

    def state_dict(self, without=()):
        group = {**self.hyper, "foreach": True, "fused": False, "params": [*range(len(self.params))]}
        if self.step_count or "exp_avg" in self.state[0]:
            group["step"] = self.step_count
        group = {key: value for key, value in group.items() if key not in without}
        return {"state": {i: {**s} for i, s in self.state.items() if s}, "param_groups": [group]}


OFFICIAL = dict(lr=0.05, betas=(0.8, 0.7, 0.9), eps=0.01, weight_decay=0.2, max_grad_norm=0.9, no_prox=False)


def official_steps(official, steps, rng):
    for _ in range(steps):
        for p in official.params:
            p.grad = random(tuple(p.shape), rng, p.dtype)
        official.step()


def continue_officially(official, path, saved, **options):
    """Loads the saved state into ours and trains both on: they stay together."""
    params = [p.detach().clone().requires_grad_() for p in official.params]
    ours = build(
        "adan",
        params,
        path,
        max_grad_norm=official.hyper["max_grad_norm"],
        eps=official.hyper["eps"],
        **options,
    )
    ours.load_state_dict(saved)
    rng = np.random.default_rng(9)
    for _ in range(10):
        for p, q in zip(params, official.params, strict=True):
            p.grad = q.grad = random(tuple(p.shape), rng, p.dtype)
        ours.step()
        official.step()
        for p, q in zip(params, official.params, strict=True):
            np.testing.assert_allclose(array(p), array(q), rtol=1e-12, atol=1e-12)
    return ours


adan_paths = pytest.mark.parametrize("path", adan_optim.CARDS["adan"].paths)


@adan_paths
@pytest.mark.parametrize("no_prox", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 6])
@pytest.mark.parametrize(
    ("old", "without"),
    [
        (False, ()),
        (False, ("foreach", "fused")),
        (False, ("fused",)),
        (True, ("foreach", "fused")),
        (True, ()),
    ],
    ids=["now", "no flags", "no fused", "2022 no flags", "2022"],
)
def test_official_checkpoints_continue_exactly(path, no_prox, steps, old, without):
    params = make_params(SHAPES, np.random.default_rng(0), torch.float64)
    official = Official(params, old, **{**OFFICIAL, "no_prox": no_prox})
    official_steps(official, steps, np.random.default_rng(1))
    ours = continue_officially(official, path, through_a_file(official.state_dict(without)))
    assert ours.path.startswith(path)
    assert ours.state[all_params(ours)[0]]["step"] == steps + 10


@adan_paths
def test_official_checkpoint_from_before_no_prox(path):
    params = make_params(SHAPES, np.random.default_rng(0), torch.float64)
    official = Official(params, True, **OFFICIAL)
    official_steps(official, 3, np.random.default_rng(1))
    continue_officially(official, path, official.state_dict(("foreach", "fused", "no_prox")))


@adan_paths
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("steps", [0, 4])
def test_official_checkpoint_saved_after_a_restart(path, old, steps):
    """The moments are there, the step count is 0, and the previous gradient is stale or was never made."""
    params = make_params(SHAPES, np.random.default_rng(0), torch.float64)
    official = Official(params, old, **OFFICIAL)
    official_steps(official, steps, np.random.default_rng(1))
    official.restart_opt()
    continue_officially(official, path, official.state_dict())


@adan_paths
def test_official_checkpoint_with_frozen_parameters(path):
    """Those without a state stay without one."""
    params = make_params(SHAPES, np.random.default_rng(0), torch.float64)
    official = Official(params, **OFFICIAL)
    params[1].requires_grad_(False)
    rng = np.random.default_rng(1)
    for _ in range(3):
        for p in params:
            p.grad = random(tuple(p.shape), rng, p.dtype) if p.requires_grad else None
        official.step()
    ours = build("adan", params, path)
    ours.load_state_dict(official.state_dict())
    assert params[1] not in ours.state
    assert ours.state[params[2]]["step"] == 3


@adan_paths
def test_timm_checkpoint_continues_exactly(path):
    timm_adan = pytest.importorskip("timm.optim.adan")
    hyper = {key: OFFICIAL[key] for key in ("lr", "betas", "eps", "weight_decay")}
    theirs = timm_adan.Adan(make_params(SHAPES, np.random.default_rng(0), torch.float64), **hyper)
    train(theirs, 5, seed=1)
    params = [p.detach().clone().requires_grad_() for p in all_params(theirs)]
    ours = build("adan", params, path)
    ours.load_state_dict(theirs.state_dict())
    train(theirs, 5, seed=2)
    train(ours, 5, seed=2)
    for p, q in zip(params, all_params(theirs), strict=True):
        np.testing.assert_allclose(array(p), array(q), rtol=1e-12, atol=1e-12)


def test_pytorch_optimizers_checkpoint_is_refused():
    """Its previous gradient has another name; to load it without would drift silently."""
    theirs = pytest.importorskip("pytorch_optimizer").Adan(make_params(SHAPES[:2], np.random.default_rng(0)))
    train(theirs, 2, seed=1)
    ours = build("adan", make_params(SHAPES[:2], np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"not a checkpoint of Adan.*previous_grad"):
        ours.load_state_dict(theirs.state_dict())
