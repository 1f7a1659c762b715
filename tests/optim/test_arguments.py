"""Arguments: what makes no sense is one clear error that names the value; what is accepted matters."""

import importlib
import inspect
import math
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import (
    FLAGS,
    NAMES,
    all_params,
    build,
    each_fused_name,
    each_name,
    make_params,
    needs_names,
    options_of,
    prepared,
    set_grads,
    tensors_of,
    unfused_options,
)
from hypothesis import given
from hypothesis import strategies as st
from oracle import DEFINITIONS

import adan_optim
from adan_optim.engine import native
from adan_optim.engine.checks import OPTIMIZER_WIDE
from adan_optim.engine.words import INSTEAD, SYNONYMS

CLASSES = adan_optim.OPTIMIZERS
INSTALLED = "/env/lib/python3/site-packages/framework/build.py"
NUMBERS = ("lr", "eps", "weight_decay", "max_grad_norm")
each_number = pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in NAMES for key in NUMBERS if key in options_of(name)]
)
each_with_betas = pytest.mark.parametrize(
    "name", [name for name, card in adan_optim.CARDS.items() if card.betas]
)


def one(value=1.0, **kwargs):
    return [torch.full((2,), value, requires_grad=True, **kwargs)]


def refused(name, error, match, params=None, **options):
    with pytest.raises(error, match=match) as caught:
        CLASSES[name](one() if params is None else params, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- numbers

negative = st.floats(max_value=-1e-300, allow_infinity=True, allow_nan=False)
not_finite = st.sampled_from([math.nan, math.inf])
no_number = st.one_of(
    st.none(), st.booleans(), st.text(max_size=5), st.lists(st.floats(), max_size=2), st.complex_numbers()
)


@pytest.mark.per_family
@each_number
@given(value=st.one_of(negative, not_finite))
def test_numbers_out_of_range(name, key, value):
    message = refused(name, ValueError, "must be a finite number >= 0", **{key: value})
    assert f"{key}={value}" in message


@pytest.mark.per_family
@each_number
@given(value=no_number)
def test_no_numbers(name, key, value):
    message = refused(name, TypeError, "give a number >= 0", **{key: value})
    assert f"{key}={value!r}" in message


@each_with_betas
@given(
    index=st.integers(0, 2),
    value=st.one_of(negative, not_finite, st.floats(min_value=1.0, allow_infinity=False)),
)
def test_betas_out_of_range(name, index, value):
    betas = [0.9, 0.8, 0.99][: adan_optim.CARDS[name].betas]
    betas[index % len(betas)] = value
    assert str(value) in refused(name, ValueError, r"betas.*(must be|each must be)", betas=betas)


@each_with_betas
@given(betas=st.lists(st.floats(0.5, 0.99), max_size=5))
def test_number_of_betas(name, betas):
    count = adan_optim.CARDS[name].betas
    if len(betas) == count:
        assert CLASSES[name](one(), betas=betas).param_groups[0]["betas"] == tuple(betas)
    else:
        default = inspect.signature(CLASSES[name]).parameters["betas"].default
        message = refused(name, ValueError, f"give {count} numbers?, not {len(betas)}", betas=betas)
        assert message.endswith(f"; the default is {default}")


@each_with_betas
@pytest.mark.parametrize("betas", [None, 0.9, "0.9", True])
def test_betas_that_are_no_list(name, betas):
    assert f"betas={betas!r}" in refused(name, TypeError, r"give \d numbers?", betas=betas)
    last = adan_optim.CARDS[name].betas - 1
    refused(name, TypeError, rf"betas\[{last}\]=None: give a number", betas=(*(0.9,) * last, None))


@each_name
@given(numbers=st.fixed_dictionaries(dict.fromkeys(NUMBERS, st.floats(0, 1e3))))
def test_sensible_numbers_are_accepted(name, numbers):
    options = {key: value for key, value in numbers.items() if key in options_of(name)}
    optimizer = CLASSES[name](one(), **options)
    group = {**optimizer.param_groups[0], "max_grad_norm": optimizer.max_grad_norm}
    assert {key: group[key] for key in options} == options


@each_name
def test_tensor_learning_rates(name):
    refused(name, ValueError, r"lr is a tensor of shape \(2,\): give one number", lr=torch.ones(2))
    refused(name, ValueError, "lr=-1.0", lr=torch.tensor(-1.0))
    lr = torch.tensor(0.1)
    assert CLASSES[name](one(), lr=lr).param_groups[0]["lr"] is lr


@each_name
def test_numbers_of_numpy_and_tensors_become_pythons(name):
    """Every number that is an option, so that checkpoints can hold it and every path computes with it."""
    numbers = {key: x for key, x in CLASSES[name](one()).defaults.items() if type(x) is float}
    for make in (np.float32, np.float64, lambda x: torch.tensor([x]), lambda x: torch.tensor(x)):
        group = CLASSES[name](one(), **{key: make(x) for key, x in numbers.items()}).param_groups[0]
        tensors = {key for key in numbers if isinstance(group[key], torch.Tensor)}
        assert tensors <= {"lr"}
        assert all(type(group[key]) is float for key in numbers.keys() - tensors)
        assert [float(group[key]) for key in numbers] == pytest.approx(list(numbers.values()), rel=1e-6)
    assert type(CLASSES[name](one(), weight_decay=np.int64(0)).param_groups[0]["weight_decay"]) is int
    refused(name, ValueError, "lr=nan", lr=np.float32("nan"))
    refused(name, TypeError, "lr=", lr=np.bool_(True))


# ---- flags and words


@each_name
@given(value=st.one_of(st.text(max_size=8), st.none(), st.integers()))
def test_nonfinite_is_one_of_three_words(name, value):
    if value not in ("propagate", "skip", "raise"):
        assert f"nonfinite={value!r}" in refused(
            name, ValueError, "'propagate', 'skip' or 'raise'", nonfinite=value
        )


@each_name
@pytest.mark.parametrize("key", ["foreach", "fused"])
@pytest.mark.parametrize("value", ["yes", 2, 0.5, "None"])
def test_path_flags(name, key, value):
    assert f"{key}={value!r}" in refused(name, TypeError, "use None, True or False", **{key: value})


@each_name
@pytest.mark.parametrize("value", ["yes", None, 1, 0.0])
def test_flags_of_a_group(name, value):
    for key, default in CLASSES[name](one()).defaults.items():
        if isinstance(default, bool) and key in options_of(name):
            assert f"{key}={value!r}" in refused(name, TypeError, "use True or False", **{key: value})


@each_name
def test_differentiable_is_refused_with_the_reason(name):
    refused(name, ValueError, r"differentiable=True: .*in place.*autograd", differentiable=True)


@each_name
@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("weigth_decay", "did you mean 'weight_decay'"),
        ("capturabel", "did you mean 'capturable'"),
        ("qqqq", "it has lr, "),
    ],
)
def test_unknown_keywords(name, key, hint):
    refused(name, TypeError, rf"^{CLASSES[name].__name__} has no option '{key}': {hint}", **{key: 1})


WORDS = [
    ("adan", "learning_rate", "did you mean 'lr'?"),
    ("adan", "weight_decouple", "did you mean 'no_prox'?"),
    ("adan", "beta", "did you mean 'betas'?"),
    ("adan", "cautious", "did you mean 'caution'?"),
    ("adan", "restart_cond", r"call its restart_opt\(\) in your loop"),
    ("adan", "gradient_release", "use adan_optim.step_in_backward"),
    ("adan", "triton", "did you mean 'fused'?"),
    ("adamw", "wd", "did you mean 'weight_decay'?"),
    ("adamw", "weight_decouple", "it is no choice here"),
    ("lars", "betas", "did you mean 'momentum'?"),
    ("adafactor", "momentum", "did you mean 'beta1'?"),
    ("lion", "grad_clip", "did you mean 'max_grad_norm'?"),
]


@pytest.mark.parametrize(("name", "word", "hint"), WORDS)
def test_words_of_other_packages(name, word, hint):
    hint = hint.replace("?", r"\?")
    refused(name, TypeError, f"^{CLASSES[name].__name__} has no option '{word}': {hint}", **{word: 0.5})
    with pytest.raises(TypeError, match=hint):
        adan_optim.build_optimizer(torch.nn.Linear(2, 2), name, **{word: 0.5})


def test_words_lead_to_options_that_exist():
    options = set().union(*(inspect.signature(cls).parameters for cls in CLASSES.values()))
    assert {words[0] for words in SYNONYMS} <= options
    assert not {word for word in INSTEAD if word in options} - {"no_prox"}


def test_a_model_in_place_of_its_parameters():
    for model in (torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2))):
        refused(
            "adan", TypeError, r"^Adan takes parameters, not a model: give model.parameters\(\), or", model
        )


# ---- subclasses


def test_subclasses_as_people_write_them():
    """Their signature shows what they pass on, and building by name or keyword takes it."""

    class Mixin:
        def __init_subclass__(cls, label="", **kwargs):
            super().__init_subclass__(**kwargs)
            cls.label = label

    class Short(adan_optim.AdamW):
        def __init__(self, params, lr=0.5, **kw):
            super().__init__(params, lr=lr, **kw)

    class Again(adan_optim.Adan):
        def __init__(self, params, maximize=True, **options):
            super().__init__(params, maximize=maximize, **options)

    class All(Mixin, adan_optim.AdamW, label="mixed"):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    class Closed(Short):
        def __init__(self, params):
            super().__init__(params, lr=0.25)

    class Same(Short):
        pass

    options = set(inspect.signature(adan_optim.AdamW).parameters)
    for cls in (Short, Again, All, Same):
        optimizer = cls(one(), weight_decay=0.3, state_dtype="bfloat16")
        group = optimizer.param_groups[0]
        assert (group["weight_decay"], group["state_dtype"]) == (0.3, "bfloat16")
        with pytest.raises(
            TypeError, match=f"{cls.__name__} has no option 'weigth_decay': did you mean 'weig"
        ):
            cls(one(), weigth_decay=0.3)
    assert set(inspect.signature(Short).parameters) == set(inspect.signature(Same).parameters) == options
    assert set(inspect.signature(All).parameters) == options - {"params"} | {"args"}
    assert inspect.signature(Again).parameters["maximize"].default is True
    assert "take_gradients" in inspect.signature(Again).parameters
    assert list(inspect.signature(Closed).parameters) == ["params"]
    assert All.label == "mixed"
    assert Short(one()).param_groups[0]["lr"] == 0.5
    assert Again(one()).param_groups[0]["maximize"] is True


@pytest.mark.filterwarnings("error")
def test_float16_states_that_lose_small_gradients_are_warned_of():
    """The hint names what helps; with it, and where no mean square is kept in float16, there is none."""
    half = one(dtype=torch.float16)
    for name in ("adan", "adamw", "adafactor"):
        with pytest.warns(UserWarning, match=r"float16.*state_dtype='float32'") as caught:
            CLASSES[name](half)
        assert len(caught) == 1
        assert caught[0].filename == __file__
    adan_optim.Adan(half, state_dtype="float32")
    adan_optim.Adan(half, state_dtype="int8")
    adan_optim.AdamMini(half)
    adan_optim.Lars(half)
    adan_optim.Adafactor([torch.ones(2, 2, dtype=torch.float16, requires_grad=True)])
    adan_optim.Adan(one(dtype=torch.bfloat16))


# ---- groups


@each_name
@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("weigth_decay", "weight_decay"),
        ("state_dtyp", "state_dtype"),
        ("maximise", "maximize"),
        ("learning_rate", "lr"),
    ],
)
def test_misspelt_keys_of_a_group(name, key, near):
    title = adan_optim.CARDS[name].title
    groups = [{"params": one()}, {"params": one(), key: 0.1}]
    refused(
        name, ValueError, f"{title}, parameter group 1: unknown key {key!r}: did you mean {near!r}", groups
    )


@each_name
@pytest.mark.parametrize("key", OPTIMIZER_WIDE)
def test_options_of_the_whole_optimizer_are_no_keys_of_a_group(name, key):
    refused(name, ValueError, f"{key} is an option of the whole optimizer", [{"params": one(), key: 0.5}])


@each_name
def test_other_keys_of_a_group_are_the_users(name):
    optimizer = CLASSES[name]([{"params": one(), "name": "head", "lr_scale": 0.5}])
    assert optimizer.param_groups[0]["lr_scale"] == 0.5


@each_name
@pytest.mark.parametrize(
    ("key", "value", "error"),
    [("lr", -1.0, ValueError), ("weight_decay", "x", TypeError), ("state_dtype", "int4", ValueError)],
)
def test_each_group_is_checked(name, key, value, error):
    """The message says which group; add_param_group leaves the optimizer as it was."""
    refused(name, error, rf"parameter group 1: {key}", [{"params": one()}, {"params": one(), key: value}])
    optimizer = CLASSES[name](one())
    with pytest.raises(error, match=f"parameter group 1: {key}"):
        optimizer.add_param_group({"params": one(), key: value})
    assert len(optimizer.param_groups) == 1


@each_name
@pytest.mark.parametrize(
    ("dtype", "match"),
    [
        (torch.complex64, "parameter 0 is complex .*view_as_real"),
        (torch.complex128, "parameter 0 is complex .*view_as_real"),
        (torch.float8_e4m3fn, "parameter 0 has dtype torch.float8_e4m3fn; supported are torch.float32, "),
        (torch.int64, "parameter 0 has dtype torch.int64; supported are"),
    ],
)
def test_parameters_of_other_types(name, dtype, match):
    refused(name, ValueError, match, [torch.zeros(2, dtype=dtype)])


@needs_names
@each_name
def test_named_parameters_are_named_in_errors(name):
    refused(
        name, ValueError, "head.weight is complex", [("head.weight", torch.zeros(2, dtype=torch.complex64))]
    )


@each_name
def test_no_parameters(name):
    refused(name, ValueError, "empty parameter list", [])


# ---- Adan's own


@pytest.mark.parametrize("betas", [(0.02, 0.08, 0.01), (0.1, 0.1, 0.001), (0.01, 0.01, 0.01)])
def test_the_papers_betas_get_a_warning(betas):
    meant = tuple(round(1 - beta, 10) for beta in betas)
    with pytest.warns(UserWarning, match="did you mean") as caught:
        optimizer = adan_optim.Adan(one(), betas=betas)
    assert str(meant) in str(caught[0].message)
    assert optimizer.param_groups[0]["betas"] == betas


def test_warnings_point_at_the_users_line():
    """Past this package, torch and other installed ones; at the nearest of those where there is no other."""
    scope = {"__name__": "framework"}
    exec(compile("def build(*args, **options): return make(*args, **options)", INSTALLED, "exec"), scope)
    scope["make"] = adan_optim.build_optimizer
    model, betas = torch.nn.Linear(2, 2, bias=False), (0.02, 0.08, 0.01)
    optimizer = adan_optim.Adan(model.parameters())
    torch.optim.lr_scheduler.ConstantLR(optimizer)  # wraps the step
    optimizer.param_groups[0]["betas"] = betas
    model.weight.grad = torch.ones(2, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adan_optim.build_optimizer(model, "adan", betas=betas)
        scope["build"](model, "adan", betas=betas)
        optimizer.step()
    lines = [warning.lineno for warning in caught]
    assert {warning.filename for warning in caught} == {__file__}
    assert lines == [lines[0], lines[0] + 1, lines[0] + 2]
    thread = threading.Thread(target=scope["build"], args=(model, "adan"), kwargs={"betas": betas})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread.start()
        thread.join()
    assert [warning.filename for warning in caught] == [INSTALLED]


def test_official_positional_order():
    """The official names, order and defaults, except for the choice of the path."""
    official = dict(
        lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0, max_grad_norm=0.0, no_prox=False
    )
    parameters = list(inspect.signature(adan_optim.Adan).parameters.values())
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert names == ["params", *official, "foreach", "fused"]
    assert {p.name: p.default for p in parameters if p.name in official} == official
    optimizer = adan_optim.Adan(one(), 0.1, (0.9, 0.8, 0.7), 1e-6, 0.02, 5.0, True, False, False)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.9, 0.8, 0.7), 1e-6)
    assert (group["weight_decay"], group["no_prox"], optimizer.max_grad_norm) == (0.02, True, 5.0)
    assert optimizer.path == "reference"


def test_drop_in_module():
    assert importlib.import_module("adan").Adan is adan_optim.Adan


# ---- every option matters

CHANGES = {  # option -> a value whose effect three steps show
    "lr": 0.5,
    "betas": lambda count: (0.6, 0.7, 0.8)[:count],
    "eps": 0.5,
    "weight_decay": 0.5,
    "max_grad_norm": 0.1,
    "maximize": True,
    "caution": True,
    "nonfinite": "skip",
    "state_dtype": "bfloat16",
    "min_int8_size": 4,
    "param_rounding": "stochastic",
}
GIVEN = {  # what an option needs to have an effect
    "min_int8_size": {"state_dtype": "int8"},
    "param_rounding": {"dtype": torch.bfloat16},
}
SHOWN_ELSEWHERE = {
    "foreach": "test_path_table",
    "fused": "test_path_table",
    "capturable": "test_capturable_needs_the_fused_cuda_path",
    "process_group": "test_the_norm_is_that_of_all_processes",
    "differentiable": "test_differentiable_is_refused_with_the_reason",
}


def three_steps(name, path, spoil=False, dtype=torch.float32, **options):
    """lr and weight decay large enough to show whatever changes."""
    params = make_params([(3, 2), (4,)], np.random.default_rng(0), dtype)
    optimizer = prepared(build(name, params, path, **options))
    rng = np.random.default_rng(1)
    for step in range(3):
        set_grads(all_params(optimizer), rng)
        if spoil and step == 1:
            all_params(optimizer)[0].grad[0, 0] = float("inf")
        optimizer.step()
    return tensors_of(optimizer)


@pytest.mark.every("name", "option")
@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in NAMES for option in options_of(name)]
)
def test_every_option_matters(name, option):
    """On every path. An option needs a line in CHANGES or SHOWN_ELSEWHERE, here or in its definition."""
    if option in SHOWN_ELSEWHERE:
        assert SHOWN_ELSEWHERE[option] in globals()
        return
    if test := getattr(DEFINITIONS[name], "SHOWN_ELSEWHERE", {}).get(option):
        file, function = test.split("::")
        assert f"def {function}(" in Path(__file__).with_name(file).read_text()
        return
    value = {**CHANGES, **getattr(DEFINITIONS[name], "CHANGES", {})}[option]
    value = value(adan_optim.CARDS[name].betas) if callable(value) else value
    for path in adan_optim.CARDS[name].paths:
        given = {**GIVEN, **getattr(DEFINITIONS[name], "GIVEN", {})}.get(option, {})
        if path == "fused" and option in unfused_options(name):
            message = f"no fused kernel for {option}="
            refused(name, ValueError, message, fused=True, **given, **{option: value})
            continue
        spoil = option == "nonfinite"
        plain = three_steps(name, path, spoil, **given)
        changed = three_steps(name, path, spoil, **given, **{option: value})
        same = len(plain) == len(changed) and all(map(torch.equal, plain, changed))
        assert not same, path


@pytest.fixture
def others(monkeypatch):
    """A process group, of this process alone; to `others[0]` belongs what further ones would add."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    squares = [0.0]
    monkeypatch.setattr(dist, "all_reduce", lambda x, group: x.add_(squares[0]))
    yield squares
    dist.destroy_process_group()


def test_the_norm_is_that_of_all_processes(others):
    p = torch.zeros(2, requires_grad=True)
    options = dict(max_grad_norm=1.0, nonfinite="skip", eps=0.0, process_group="world")
    optimizer = adan_optim.AdamW([p], **options)
    optimizer.step()  # without a gradient it takes part all the same
    p.grad = torch.tensor([3.0, 4.0])
    others[0] = 75.0
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.tensor([0.03, 0.04]))
    before = p.detach().clone()
    others[0] = math.inf
    optimizer.step()
    assert torch.equal(p, before)
    assert adan_optim.AdamW([p], process_group=dist.group.WORLD).process_group is dist.group.WORLD


def test_a_process_group_must_be_one():
    p = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(TypeError, match="process_group='all': use None, 'world' or a group"):
        adan_optim.AdamW(p, process_group="all")
    with pytest.raises(ValueError, match=r"process_group='world': call torch.distributed.init_process_group"):
        adan_optim.AdamW(p, process_group="world")


def test_a_capture_needs_capturable_and_states(monkeypatch):
    """States that a capture allocates are zeros again at every replay."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = adan_optim.Adan([p])
    with pytest.raises(RuntimeError, match="construct the optimizer with capturable=True"):
        optimizer.step()
    optimizer.capturable = True
    with pytest.raises(RuntimeError, match="make one step before the capture"):
        optimizer.step()
    assert p.tolist() == [1, 1, 1]
    assert not optimizer.state
    for capturing[0] in (False, True):
        optimizer.step()
    assert optimizer.state[p]["step"] == 2


@each_name
def test_capturable_needs_the_fused_cuda_path(name):
    refused(
        name, ValueError, "capturable=True needs parameter 0 on the fused CUDA path: .* cpu", capturable=True
    )
    refused(name, ValueError, "nonfinite='propagate'", capturable=True, nonfinite="skip")


@each_name
def test_storage_that_cannot_be(name):
    match = "state_dtype='int4': use None, 'float32', 'bfloat16' or 'int8'"
    refused(name, ValueError, match, state_dtype="int4")
    refused(
        name,
        ValueError,
        "param_rounding='up': use 'nearest', 'stochastic', 'kahan' or 'split'",
        param_rounding="up",
    )
    refused(name, ValueError, "min_int8_size=-1: give a whole number", min_int8_size=-1)
    double, half = (one(dtype=dtype) for dtype in (torch.float64, torch.float16))
    refused(name, ValueError, "state_dtype='int8': parameter 0 is float64", double, state_dtype="int8")
    refused(name, ValueError, "for bfloat16, and parameter 0 is float16", half, param_rounding="kahan")
    refused(name, ValueError, "for bfloat16, and parameter 0 is float16", half, param_rounding="split")


@each_name
def test_take_gradients_is_for_optimizers_that_keep_one(name):
    if adan_optim.CARDS[name].previous:
        assert CLASSES[name](one(), take_gradients=True).take_gradients
    else:
        refused(name, TypeError, "has no option 'take_gradients': it keeps no previous", take_gradients=True)


def test_take_gradients_refuses_what_it_cannot_keep():
    with pytest.raises(ValueError, match="set_to_none=True"):
        adan_optim.Adan(one(), take_gradients=True).zero_grad(set_to_none=False)
    with pytest.raises(TypeError, match="take_gradients=1: use True or False"):
        adan_optim.Adan(one(), take_gradients=1)
    bucket = torch.ones(6)
    params = [torch.ones(2, requires_grad=True), torch.ones(4, requires_grad=True)]
    params[0].grad, params[1].grad = bucket[:2], bucket[2:]
    with pytest.raises(RuntimeError, match=r"is a view of other memory.*gradient_as_bucket_view=False"):
        adan_optim.Adan(params, take_gradients=True).step()
    params[0].grad, params[1].grad = bucket[:2].detach(), bucket[2:].detach()  # no views, but in one memory
    optimizer = adan_optim.Adan(params, take_gradients=True)
    optimizer.step()
    bucket.zero_()
    assert all((optimizer.state[p]["pre_grad"] == 1).all() for p in params)


def test_taken_gradients_keep_no_graph():
    p = torch.ones(3, requires_grad=True)
    optimizer = adan_optim.Adan([p], take_gradients=True)
    for _ in range(3):  # the steps after the first use again what it collected
        (p.grad,) = torch.autograd.grad((p**3).sum(), [p], create_graph=True)
        given = p.grad
        optimizer.step()
        previous = optimizer.state[p]["pre_grad"]
        assert not previous.requires_grad
        assert previous.data_ptr() == given.data_ptr()
        assert given.requires_grad  # the caller's is as it was


def test_the_card_lists_the_options():
    """Whatever a constructor takes is a hyper-parameter of all, an option of the card, or a common one."""
    from adan_optim.card import COMMON_OPTIONS

    for name, card in adan_optim.CARDS.items():
        shared = {"lr", "eps", "weight_decay"} & set(options_of(name))
        own = {*shared, *(["betas"] if card.betas else []), *card.options}
        known = {*own, "differentiable", *COMMON_OPTIONS}
        assert set(options_of(name)) == known


# ---- paths


@each_name
@pytest.mark.parametrize(
    ("foreach", "fused", "path"),
    [
        (None, None, "fused"),
        (None, True, "fused"),
        (None, False, "foreach"),
        (True, None, "foreach"),
        (True, True, "fused"),
        (True, False, "foreach"),
        (False, None, "reference"),
        (False, True, "fused"),
        (False, False, "reference"),
    ],
)
@pytest.mark.parametrize("built", [True, False])
@pytest.mark.every("foreach", "fused", "built")
@pytest.mark.filterwarnings("ignore::adan_optim.SlowPathWarning")
def test_path_table(name, foreach, fused, path, built, monkeypatch):
    """What each combination takes, with the kernels and without; every path shown to be the one that runs."""
    paths = adan_optim.CARDS[name].paths
    if not built:
        monkeypatch.setattr(native, "load", lambda: (None, "the CPU kernels are hidden"))
    if not built or "fused" not in paths:
        if fused:
            reason = (
                "the CPU kernels are hidden" if "fused" in paths else ".* has fused kernels for no device.*"
            )
            match = f"fused=True cannot update parameter 0: {reason}; fused=None"
            refused(name, ValueError, match, foreach=foreach, fused=fused)
            return
        path = "foreach" if path == "fused" else path
    if path not in paths:
        path = "reference"
    elif path == "fused" and native.load()[0] is None:
        pytest.skip(native.load()[1])
    ran = []
    cls = CLASSES[name]
    for method, which in {
        "single_tensor": "reference",
        "multi_tensor": "foreach",
        "fused_hyper": "fused",
    }.items():
        if which not in paths:
            continue
        original = getattr(cls, method)
        monkeypatch.setattr(
            cls, method, lambda *args, original=original, which=which: ran.append(which) or original(*args)
        )
    optimizer = cls(one(), foreach=foreach, fused=fused)
    assert optimizer.path.split(" ")[0] == path
    assert adan_optim.path_in_use(optimizer) == optimizer.path
    set_grads(all_params(optimizer), np.random.default_rng(0))
    optimizer.step()
    assert set(ran) == {path}


@each_fused_name
def test_fused_that_cannot_run_says_why(name):
    gaps = torch.zeros(4, 6)[:, ::2].requires_grad_()
    refused(
        name,
        ValueError,
        r"cannot update parameter 0: a parameter of shape \(4, 3\)",
        [gaps],
        **FLAGS["fused"],
    )
    meta = torch.zeros(2, device="meta").requires_grad_()
    refused(name, ValueError, "has fused kernels for cpu and cuda, not for meta", [meta], **FLAGS["fused"])
    refused(
        name, ValueError, "group 1: fused=True cannot", [{"params": one()}, {"params": [gaps]}], fused=True
    )


@each_fused_name
def test_fused_that_cannot_go_on_says_why(name):
    optimizer = build(name, [p := torch.ones(4, 3, requires_grad=True)], "fused")
    set_grads([p], np.random.default_rng(0))
    optimizer.step()
    p.data = torch.ones(4, 6)[:, ::2]
    with pytest.raises(RuntimeError, match=r"\(fused=True\) cannot continue: a parameter of shape"):
        optimizer.step()


@each_fused_name
def test_automatic_choice_is_made_for_each_parameter(name):
    if reason := native.load()[1]:
        pytest.skip(reason)
    params = [torch.ones(4, 3, requires_grad=True), torch.zeros(4, 6)[:, ::2].requires_grad_()]
    assert CLASSES[name](params).path == f"foreach + fused (CPU, {native.load()[0].instruction_set})"


def test_importing_optim_is_light():
    """No compiled library, no GPU, and none of the recipes' libraries."""
    code = (
        "import sys, torch, adan_optim; from adan_optim.engine import native; "
        "assert native.load.cache_info().currsize == 0; assert not torch.cuda.is_initialized(); "
        "print([m for m in ('timm', 'hydra', 'transformers', 'accelerate', 'repro') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
