"""`adan_optim.convert_state`: a converted checkpoint goes on as the source would have; what has no meaning
is refused. The sources are the packages themselves where they can be installed."""

import copy
import importlib.metadata
import importlib.util
import sys

import numpy as np
import pytest
import torch
from harness import all_params, array, build, make_params, needs_kinds, random
from test_checkpoints import OFFICIAL, Official, official_steps, through_a_file

import adan_optim
from adan_optim.interop.sources import SOURCES, recognise

SHAPES = [(4, 5), (3,), (), (2, 3, 2)]
HYPER = dict(lr=0.05, betas=(0.8, 0.7, 0.9), eps=0.01, weight_decay=0.2)
OTHERS = dict(lr=0.03, eps=0.02, weight_decay=0.1)  # of the second group
TWO = {**HYPER, "betas": (0.8, 0.9)}
WRONG = dict(lr=9.0, eps=9.0, weight_decay=9.0)  # what ours is built with: the checkpoint says otherwise


def gradients(params, steps, seed, absent=()):
    """Sets new gradients `steps` times; parameters in `absent` have none."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for i, p in enumerate(params):
            p.grad = random(tuple(p.shape), rng, p.dtype)
            if i in absent:
                p.grad = None
        yield


def train(optimizer, steps, seed, absent=()):
    for _ in gradients(all_params(optimizer), steps, seed, absent):
        optimizer.step()
    return optimizer


def make(cls, dtype=torch.float64, shapes=SHAPES, **options):
    """An optimizer with two groups that have different options."""
    params = make_params(shapes, np.random.default_rng(0), dtype)
    return cls([{"params": params[:2]}, {"params": params[2:], **OTHERS}], **options)


def loaded(theirs, name, state, **options):
    """Ours with the parameters of another optimizer and a converted state."""
    params = [p.detach().clone().requires_grad_() for p in all_params(theirs)]
    sizes = [len(group["params"]) for group in theirs.param_groups]
    groups = [{"params": [params.pop(0) for _ in range(size)]} for size in sizes]
    ours = build(name, groups, **{**WRONG, **options})
    ours.load_state_dict(state)
    return ours


def go_on_together(theirs, ours, tolerance=1e-12, steps=5):
    before = [array(p) for p in all_params(theirs)]
    for _ in range(steps):
        for p, q in zip(all_params(theirs), all_params(ours), strict=True):
            p.grad = random(tuple(p.shape), np.random.default_rng(p.numel()), p.dtype) + 0.3 * p.detach()
            q.grad = p.grad.clone()
        theirs.step()
        ours.step()
        for p, q in zip(all_params(theirs), all_params(ours), strict=True):
            np.testing.assert_allclose(array(q), array(p), rtol=tolerance, atol=tolerance)
    for p, start in zip(all_params(theirs), before, strict=True):
        assert np.abs(array(p) - start).mean() > 5e-3


def timm(**options):
    return make(pytest.importorskip("timm.optim.adan").Adan, **{**HYPER, **options})


def pytorch_optimizer(**options):
    return make(pytest.importorskip("pytorch_optimizer").Adan, **{**HYPER, **options})


def optimi(dtype=torch.float64, **options):
    return make(pytest.importorskip("optimi").Adan, dtype, **{**HYPER, "triton": False, **options})


def lucidrains(**options):
    betas = tuple(1 - beta for beta in HYPER["betas"])
    return make(pytest.importorskip("adan_pytorch").Adan, **{**HYPER, "betas": betas, **options})


# ---- Adan


ADANS = {
    "timm": (timm, {}),
    "timm no_prox": (timm, dict(no_prox=True, foreach=False)),
    "pytorch_optimizer": (pytorch_optimizer, {}),
    "pytorch_optimizer decoupled": (pytorch_optimizer, dict(weight_decouple=True)),
    "optimi": (optimi, {}),
    "lucidrains": (lucidrains, {}),
}


@pytest.mark.parametrize("case", ADANS)
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("absent", [(), (1,)], ids=["all", "one joins late"])
def test_an_adan_goes_on_exactly(case, steps, absent):
    """Also a parameter that joined late continues with the step count that the source has for it."""
    constructor, options = ADANS[case]
    theirs = constructor(**options)
    if absent:
        train(theirs, 2, seed=1, absent=absent)
    train(theirs, steps, seed=2)
    saved = through_a_file(theirs.state_dict())
    before = copy.deepcopy(saved)
    converted = adan_optim.convert_state(saved)
    assert recognise(saved) == case.split()[0]
    ours = loaded(theirs, "adan", converted)
    own = case == "lucidrains"  # which counts per parameter
    assert ours.state[all_params(ours)[0]]["step"] == steps + 2 * bool(absent)
    assert ours.state[all_params(ours)[1]]["step"] == steps + 2 * (bool(absent) and not own)
    go_on_together(theirs, ours)
    assert str(saved) == str(before)


def test_optimis_fully_decoupled_decay_is_a_decay_over_its_largest_rate():
    theirs = make_quietly(optimi, decouple_lr=True, max_lr=0.4)
    train(theirs, 3, seed=1)
    converted = adan_optim.convert_state(theirs.state_dict())
    assert converted["param_groups"][0]["weight_decay"] == HYPER["weight_decay"] / 0.4
    go_on_together(theirs, loaded(theirs, "adan", converted))


def make_quietly(constructor, **options):
    pytest.importorskip("optimi")
    with pytest.warns(UserWarning, match="weight_decay"):
        return constructor(**options)


def test_optimis_kahan_sum_is_what_was_rounded_off():
    theirs = optimi(torch.bfloat16, kahan_sum=True)
    train(theirs, 20, seed=1)
    converted = adan_optim.convert_state(theirs.state_dict())
    ours = loaded(theirs, "adan", converted, param_rounding="kahan")
    for p, q in zip(all_params(theirs), all_params(ours), strict=True):
        assert torch.equal(theirs.state[p]["kahan_comp"], ours.state[q]["compensation"])
        assert ours.state[q]["compensation"].abs().max() > 0


def test_pytorch_optimizers_clipping_is_for_the_constructor():
    theirs = pytorch_optimizer(max_grad_norm=1.5, shapes=[(4, 5), (3,), (2, 2)])  # it fails on 0-dim ones
    train(theirs, 3, seed=1)
    ours = loaded(
        theirs, "adan", adan_optim.convert_state(theirs.state_dict()), max_grad_norm=1.5, eps=HYPER["eps"]
    )
    go_on_together(theirs, ours, tolerance=1e-5)  # it sums squares in float32


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "without", [(), ("foreach", "fused", "no_prox", "max_grad_norm")], ids=["now", "fairseq"]
)
@pytest.mark.parametrize("restarted", [False, True])
def test_the_official_forms(old, without, restarted):
    params = make_params(SHAPES, np.random.default_rng(0), torch.float64)
    official = Official(params, old, **OFFICIAL)
    official_steps(official, 0 if restarted else 4, np.random.default_rng(1))
    if restarted:
        official.restart_opt()
    saved = official.state_dict(without)
    assert recognise(saved) == "official"
    converted = adan_optim.convert_state(saved)
    assert set(converted["state"][0]) == {"step", *adan_optim.CARDS["adan"].states}
    one, two = (build("adan", copy.deepcopy(params), max_grad_norm=0.9, eps=0.01) for _ in range(2))
    one.load_state_dict(saved)
    two.load_state_dict(converted)
    train(one, 3, seed=2)
    train(two, 3, seed=2)
    for p, q in zip(all_params(one), all_params(two), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    "kept", [{}, dict(state_dtype="int8", min_int8_size=0), dict(take_gradients=True)], ids=str
)
def test_our_own_adan_is_decoded(kept):
    one = build("adan", make_params(SHAPES, np.random.default_rng(0)), **kept)
    train(one, 3, seed=1)
    converted = adan_optim.convert_state(one.state_dict())
    two = loaded(one, "adan", converted)
    go_on_together(one, two, tolerance=1e-6, steps=1)


# ---- the family of AdamW


@needs_kinds
def test_torch_goes_on_exactly():
    for cls, options in ((torch.optim.AdamW, TWO), (torch.optim.Adam, {**TWO, "weight_decay": 0.0})):
        theirs = make(cls, **options)
        theirs.param_groups[1]["weight_decay"] = options["weight_decay"]
        train(theirs, 4, seed=1)
        assert recognise(theirs.state_dict()) == "torch"
        go_on_together(
            theirs, loaded(theirs, "adamw", adan_optim.convert_state(theirs.state_dict(), target="adamw"))
        )


def as_apex(saved):
    """torch's state in the form of apex, which cannot be installed without a GPU: the step in the group."""
    groups = [
        {
            **{key: group[key] for key in ("params", "lr", "betas", "eps", "weight_decay")},
            "bias_correction": True,
            "step": 4,
        }
        for group in saved["param_groups"]
    ]
    states = {
        i: {key: state[key] for key in ("exp_avg", "exp_avg_sq")} for i, state in saved["state"].items()
    }
    return {"state": states, "param_groups": groups}


def test_the_form_of_apex():
    theirs = train(make(torch.optim.AdamW, **TWO), 4, seed=1)
    saved = as_apex(theirs.state_dict())
    assert recognise(saved) == "apex"
    with pytest.raises(ValueError, match=r"parameter group 0: weight_decay=0.2.*mode: give source='apex'"):
        adan_optim.convert_state(saved, target="adamw")
    go_on_together(theirs, loaded(theirs, "adamw", adan_optim.convert_state(saved, "apex", "adamw")))


@pytest.mark.parametrize("bits", [32, 8])
def test_bitsandbytes(bits):
    """In 8 bits the next step is its own; then its roundings begin to differ from our float32."""
    bnb = pytest.importorskip("bitsandbytes")
    theirs = make(bnb.optim.AdamW, torch.float32, optim_bits=bits, min_8bit_size=0, **TWO)
    params = all_params(theirs)
    big = random((50, 30), np.random.default_rng(3)).requires_grad_()  # several blocks
    theirs.add_param_group({"params": [big]})
    train(theirs, 4, seed=1)
    assert theirs.state[big]["state1"].dtype == (torch.float32 if bits == 32 else torch.uint8)
    saved = through_a_file(theirs.state_dict())
    assert recognise(saved) == "bitsandbytes"
    ours = loaded(theirs, "adamw", adan_optim.convert_state(saved, target="adamw"))
    assert len(params) + 1 == len(ours.state)
    go_on_together(theirs, ours, tolerance=2e-6, steps=5 if bits == 32 else 1)


# ---- from AdamW to Adan


@needs_kinds
def test_after_one_step_adamws_state_is_adans():
    """Whatever the gradient: the same moments as if Adan had made that step."""
    adamw = train(make(torch.optim.AdamW, **TWO), 1, seed=1)
    converted = adan_optim.convert_state(adamw.state_dict())
    settings = adan_optim.adan_from_adamw(lr=TWO["lr"], weight_decay=TWO["weight_decay"])
    assert converted["param_groups"][0].items() >= settings.options.items()
    assert converted["param_groups"][1]["lr"] == 5 * OTHERS["lr"]
    adan = train(
        build("adan", make_params(SHAPES, np.random.default_rng(0), torch.float64), **settings.options),
        1,
        seed=1,
    )
    for p, state in zip(all_params(adan), converted["state"].values(), strict=True):
        assert state["step"] == 1
        for name in adan_optim.CARDS["adan"].states:
            torch.testing.assert_close(state[name], adan.state[p][name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("steps", [2, 10, 300])
def test_moments_are_adans_on_average(mean, steps):
    rng = np.random.default_rng(0)
    settings = adan_optim.adan_from_adamw(lr=0.0, weight_decay=0.0).options
    p, q = (torch.zeros(40_000, dtype=torch.float64, requires_grad=True) for _ in range(2))
    adamw, adan = torch.optim.AdamW([p], lr=0.0, weight_decay=0.0), adan_optim.Adan([q], **settings)
    for _ in range(steps):
        p.grad = torch.from_numpy(mean + rng.standard_normal(p.numel()))
        q.grad = p.grad.clone()
        adamw.step()
        adan.step()
    state, true = adan_optim.convert_state(adamw.state_dict())["state"][0], adan.state[q]
    ratio = float(state["exp_avg_sq"].mean() / true["exp_avg_sq"].mean())
    if steps == 300:  # a variance that comes out below zero is taken as zero, which shows where it is small
        assert 0.97 < ratio < (1.08 if mean == 3 else 1.03)
    else:  # in Adan's own first step there is no difference, and that step weighs much in the first ones
        assert 1 < ratio < 1.7
    scale = 1 - 0.98**steps
    assert abs(float((state["exp_avg"] - true["exp_avg"]).mean())) < 0.02 * scale
    assert abs(float(true["exp_avg_diff"].mean())) < 0.02
    assert not state["exp_avg_diff"].any()
    assert abs(float(-state["neg_pre_grad"].mean()) - mean) < 0.02


def test_training_goes_on_after_the_change():
    """A noisy quadratic: Adan arrives where AdamW was heading."""
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.standard_normal(100))

    def train_on(optimizer, p, steps):
        for _ in range(steps):
            p.grad = p.detach() - target + 0.1 * torch.from_numpy(rng.standard_normal(100))
            optimizer.step()
        return float((p.detach() - target).square().mean())

    p = torch.full((100,), 2.0, dtype=torch.float64, requires_grad=True)
    adamw = torch.optim.AdamW([p], lr=0.002, weight_decay=0.0)
    before = train_on(adamw, p, 300)
    adan = adan_optim.Adan([p])
    adan.load_state_dict(adan_optim.convert_state(adamw.state_dict()))
    losses = [train_on(adan, p, 1) for _ in range(20)]
    assert max(losses) < before * 1.01
    assert train_on(adan, p, 280) < 0.1 * before


@needs_kinds
def test_a_schedule_goes_on_at_the_new_height():
    adamw = make(torch.optim.AdamW, **TWO)
    torch.optim.lr_scheduler.LambdaLR(adamw, lambda t: 0.5)
    train(adamw, 1, seed=1)
    first = adan_optim.convert_state(adamw.state_dict(), regime="diffusion")["param_groups"][0]
    assert (first["lr"], first["initial_lr"]) == (0.05, 0.1)
    assert (first["betas"], first["no_prox"]) == ((0.98, 0.95, 0.95), True)


def test_our_adamw_in_8_bits_and_with_kahan_sums():
    """What was rounded off belongs to the parameter, and goes along."""
    kept = dict(state_dtype="int8", min_int8_size=0, param_rounding="kahan")
    adamw = train(
        build("adamw", make_params(SHAPES, np.random.default_rng(0), torch.bfloat16), **kept), 5, seed=1
    )
    assert recognise(adamw.state_dict()) == "adamw"
    ours = loaded(adamw, "adan", adan_optim.convert_state(adamw.state_dict()), param_rounding="kahan")
    for p, q in zip(all_params(adamw), all_params(ours), strict=True):
        assert torch.equal(adamw.state[p]["compensation"], ours.state[q]["compensation"])
        assert ours.state[q]["exp_avg_sq"].min() > 0
    train(ours, 2, seed=2)


# ---- Adam-mini


BLOCKS = [4, 3, 1, 2]


@needs_kinds
def test_adam_minis_second_moment_is_the_mean_of_adamws():
    """Both moments are linear in the squared gradients: after any steps the block means are Adam-mini's."""
    adamw = make(torch.optim.AdamW, **TWO)
    means = [torch.zeros(blocks, dtype=torch.float64) for blocks in BLOCKS]
    for _ in gradients(all_params(adamw), 6, seed=1):
        adamw.step()
        for p, mean, blocks in zip(all_params(adamw), means, BLOCKS, strict=True):
            mean.mul_(0.9).add_(p.grad.reshape(blocks, -1).square().mean(1), alpha=0.1)
    saved = adamw.state_dict()
    converted = adan_optim.convert_state(saved, target="adam_mini", blocks=BLOCKS)
    assert adan_optim.convert_state(saved, target="adam_mini", blocks=dict(enumerate(BLOCKS)))[
        "state"
    ].keys() == {
        0,
        1,
        2,
        3,
    }
    for i, (p, mean) in enumerate(zip(all_params(adamw), means, strict=True)):
        state = converted["state"][i]
        torch.testing.assert_close(state["exp_avg_sq"], mean, rtol=1e-12, atol=1e-12)
        assert torch.equal(state["exp_avg"], adamw.state[p]["exp_avg"])
        assert state["step"] == 6
    own = [
        {**group, "state_dtype": None, "min_int8_size": 4096, "param_rounding": "nearest"}
        for group in converted["param_groups"]
    ]
    mini = {**converted, "param_groups": own}
    assert recognise(mini) == "adam_mini"
    back = adan_optim.convert_state(mini, target="adamw")
    for i, (p, mean) in enumerate(zip(all_params(adamw), means, strict=True)):
        v = back["state"][i]["exp_avg_sq"]
        assert v.shape == p.shape
        torch.testing.assert_close(
            v.reshape(len(mean), -1), mean[:, None].expand(len(mean), p.numel() // len(mean))
        )
    train(loaded(adamw, "adamw", back), 1, seed=2)


@needs_kinds
def test_names_for_blocks():
    layer = torch.nn.Linear(4, 2)
    adamw = torch.optim.AdamW(layer.named_parameters())
    layer(torch.ones(4)).sum().backward()
    adamw.step()
    converted = adan_optim.convert_state(
        adamw.state_dict(), target="adam_mini", blocks={"weight": 2, "bias": 1}
    )
    assert [len(state["exp_avg_sq"]) for state in converted["state"].values()] == [2, 1]


def official_adam_mini():
    """Its module by its place: by its name, ours is found."""
    try:
        package = importlib.metadata.distribution("adam-mini")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("adam-mini is not installed; its module has the name of our drop-in")
    path = str(package.locate_file("adam_mini/__init__.py"))
    spec = importlib.util.spec_from_file_location("adam_mini", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "adam_mini", module)
        spec.loader.exec_module(module)
    return module


def test_the_official_adam_mini_goes_on_exactly():
    adam_mini = official_adam_mini()
    shapes = {"q_proj.weight": (4, 4), "mlp.weight": (6, 4), "mlp.bias": (6,), "other.weight": (3, 2)}
    params = make_params(shapes.values(), np.random.default_rng(0), torch.float64)
    named = dict(zip(shapes, params, strict=True))
    theirs = adam_mini.Adam_mini(
        named.items(), lr=0.05, betas=(0.8, 0.9), eps=0.01, weight_decay=0.2, dim=4, n_heads=2, verbose=False
    )
    train(theirs, 4, seed=1)
    saved = copy.deepcopy(theirs.state_dict())
    with pytest.raises(ValueError, match=r"parameter 0: m is kept as \[heads.*\(2, 8\).*shapes="):
        adan_optim.convert_state(saved, target="adam_mini")
    converted = adan_optim.convert_state(saved, target="adam_mini", shapes={"q_proj.weight": (4, 4)})
    assert [len(converted["state"][i]["exp_avg_sq"]) for i in range(4)] == [2, 6, 6, 1]
    ours = [p.detach().clone() for p in named.values()]
    for _ in gradients(list(named.values()), 5, seed=2):
        theirs.step()
        for i, (p, q) in enumerate(zip(ours, named.values(), strict=True)):
            state, group = converted["state"][i], converted["param_groups"][i]
            m, v, t, (b1, b2) = state["exp_avg"], state["exp_avg_sq"], int(state["step"]) + 1, group["betas"]
            state["step"] = torch.tensor(float(t))
            m.copy_(b1 * m + (1 - b1) * q.grad)
            v.copy_(b2 * v + (1 - b2) * q.grad.reshape(len(v), -1).square().mean(1))
            h = (v / (1 - b2**t)).sqrt() + group["eps"]
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] / (1 - b1**t) * (m.reshape(len(v), -1) / h[:, None]).reshape(p.shape))
            np.testing.assert_allclose(array(p), array(q), rtol=1e-12, atol=1e-12)


# ---- what is refused


def of(cls, steps=2, **options):
    return train(
        cls(make_params(SHAPES[:2], np.random.default_rng(0)), lr=0.1, **options), steps, seed=1
    ).state_dict()


def without(saved, *keys):
    for group in saved["param_groups"]:
        for key in keys:
            group.pop(key, None)
    return saved


def changed(saved, **options):
    saved["param_groups"][0].update(options)
    return saved


def official_without_a_step():
    official = Official(make_params(SHAPES, np.random.default_rng(0)), **OFFICIAL)
    official_steps(official, 2, np.random.default_rng(1))
    return official.state_dict(("step",))


ADAMW, ADAM = torch.optim.AdamW, torch.optim.Adam


@needs_kinds
@pytest.mark.parametrize(
    ("saved", "arguments", "message"),
    [
        (lambda: of(torch.optim.RAdam), {}, "several optimizers have such states: give source="),
        (lambda: of(torch.optim.NAdam), {}, "not a state dict of an implementation known here.*mu_product"),
        (lambda: of(torch.optim.SGD, momentum=0.9), {}, "an implementation.*momentum_buffer"),
        (lambda: changed(of(ADAMW), trust_clip=1), {}, "several optimizers have such states.*trust_clip"),
        (lambda: of(ADAMW, steps=0), {}, "no states in it"),
        (lambda: {"model": 1}, {}, "not the state dict of an optimizer: it has model"),
        (list, {}, "not the state dict of an optimizer: it has list"),
        (lambda: of(ADAMW), dict(source="timm"), "not a state of Adan of timm: it lacks exp_avg_diff"),
        (lambda: of(ADAMW), dict(source="timmm"), "source='timmm': use 'adan'.*"),
        (lambda: of(ADAMW), dict(target="sgd"), "target='sgd': use 'adan', 'adamw', .* or 'adam_mini'"),
        (lambda: of(ADAM, weight_decay=0.1), {}, "a checkpoint with weight_decay=0.1"),
        (lambda: of(ADAMW, amsgrad=True), {}, "an implementation known here.*max_exp_avg_sq"),
        (lambda: changed(of(ADAMW), amsgrad=True), {}, "group 0: a checkpoint with amsgrad=True"),
        (lambda: without(of(ADAMW), "decoupled_weight_decay"), {}, "or AdamW: give source='torch'"),
        (lambda: of(ADAMW), dict(target="adam_mini"), "parameter 0: give its number of blocks"),
        (lambda: of(ADAMW), dict(target="adam_mini", blocks=[3, 1]), "blocks=3 does not divide its 20"),
        (lambda: of(ADAMW), dict(target="adam_mini", blocks=[4]), "parameter 1: only 1 values"),
        (lambda: of(ADAMW), dict(regime="rl"), "regime='rl': use 'pretrain', 'finetune'"),
        (official_without_a_step, {}, "parameter 0: there is no step count"),
        (lambda: of(adan_optim.Adan), dict(target="adamw"), "from adan to adamw no conversion is defined"),
        (lambda: of(adan_optim.Adan), dict(target="adam_mini"), "from adan to adam_mini no conversion"),
    ],
)  # fmt: skip
def test_refused(saved, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        adan_optim.convert_state(saved(), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("constructor", "options", "message"),
    [
        (timm, dict(caution=True), "caution=True"),
        (pytorch_optimizer, dict(use_gc=True), "use_gc=True"),
        (pytorch_optimizer, dict(adanorm=True, adanorm_r=0.9), "exp_grad_adanorm"),
        (optimi, dict(adam_wd=True), "adam_wd=True: optimi accepts it"),
        (lucidrains, dict(restart_cond=lambda state: False), "restart_cond="),
    ],
)
def test_options_that_ours_do_not_have(constructor, options, message):
    with pytest.raises(ValueError, match=message):
        adan_optim.convert_state(train(constructor(**options), 2, seed=1).state_dict())


@needs_kinds
def test_what_load_state_dict_takes_directly_has_no_such_options_either():
    theirs = train(timm(caution=True), 2, seed=1)
    with pytest.raises(ValueError, match="caution=True"):
        loaded(theirs, "adan", theirs.state_dict())
    theirs = train(make(ADAM, **TWO), 2, seed=1)
    with pytest.raises(ValueError, match=r"a checkpoint with weight_decay=0\.2 that is part"):
        loaded(theirs, "adamw", theirs.state_dict())


def test_old_checkpoints_of_torch_when_the_source_is_said():
    theirs = train(make(ADAMW, **TWO), 2, seed=1)
    saved = without(theirs.state_dict(), "decoupled_weight_decay")
    go_on_together(theirs, loaded(theirs, "adamw", adan_optim.convert_state(saved, "torch", "adamw")))


def test_no_two_sources_have_the_same_title():
    assert len({source.title for source in SOURCES.values()}) == len(SOURCES)


def test_a_parameters_own_step_count_goes_before_its_groups():
    """optimi keeps one of its own with gradient release, next to the group, which is no state."""
    saved = train(timm(), 4, seed=1).state_dict()
    saved["state"][0].update(step=2, group={"lr": 1.0})
    converted = adan_optim.convert_state(saved, "timm")
    assert [int(state["step"]) for state in converted["state"].values()] == [2, 4, 4, 4]


@pytest.mark.parametrize("target", ["nadamw", "ademamix"])
def test_between_adamw_and_its_kin(target):
    """There and back, AdamW goes on as if nothing had been; what it lacks begins at its default."""
    adamw = train(make(adan_optim.AdamW, **TWO, caution=True), 5, 1)
    there = adan_optim.convert_state(adamw.state_dict(), target=target)
    other = loaded(adamw, target, there)
    assert other.param_groups[0]["caution"]
    if target == "ademamix":
        assert other.param_groups[0]["betas"] == (0.8, 0.9, 0.9999)
        assert not any(state["exp_avg_slow"].any() for state in other.state.values())
    assert recognise(other.state_dict()) == target
    again = loaded(adamw, target, adan_optim.convert_state(other.state_dict(), target=target))
    back = loaded(adamw, "adamw", adan_optim.convert_state(again.state_dict(), target="adamw"))
    go_on_together(adamw, back)
