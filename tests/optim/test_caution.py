"""Caution: against timm's, and what the oracle's random numbers do not show."""

import numpy as np
import pytest
import torch
from harness import FLAGS, build, each_path, make_params, set_grads
from test_outside import check

import adan_optim
from adan_optim.engine.caution import LEAST_SHARE

timm = pytest.importorskip("timm.optim")

THEIRS = {
    "adamw": timm.adamw.AdamWLegacy,
    "nadamw": timm.NAdamW,
    "lion": timm.Lion,
    "lamb": timm.Lamb,
    "mars": timm.mars.Mars,
}
FIXED = {"lamb": dict(max_grad_norm=None, always_adapt=True)}


@pytest.mark.parametrize(("name", "path"), [x for x in each_path.args[1] if x[0] in THEIRS])
def test_timm(name, path):
    """Its Adan differs: there only the first moment is masked."""
    options = dict(lr=0.05, betas=(0.8, 0.7), eps=0.01, weight_decay=0.2, caution=True)
    options |= {"gamma": 0.3} if name == "mars" else {}
    options = {key: x for key, x in options.items() if key != "eps" or name != "lion"}
    path = path if adan_optim.CARDS[name].cautious_rules or path != "fused" else None
    check(
        lambda p: build(name, p, path, **options),
        lambda p: THEIRS[name](p, **options, **FIXED.get(name, {})),
    )


def adamw(path, p, g, m, **options):
    """The optimizer after a step on p from a first moment m, all [n]; the second moments are 1."""
    p = p.clone().requires_grad_()
    options = dict(lr=1.0, betas=(0.5, 0.5), eps=0.0, weight_decay=0.0, caution=True) | options
    optimizer = adan_optim.AdamW([p], **options, **FLAGS[path])
    optimizer.state[p] = {
        "step": torch.tensor(1000.0),
        "exp_avg": m.clone(),
        "exp_avg_sq": torch.ones_like(m),
    }
    p.grad = g.clone()
    optimizer.step()
    return p.detach()


@pytest.mark.parametrize("path", FLAGS)
def test_elements_that_disagree_stay_and_the_others_go_further(path):
    g, m = torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([1.0, -3.0, -1.0, 1.0])
    moved = adamw(path, torch.zeros(4), g, m)
    torch.testing.assert_close(moved, torch.tensor([-2.0, 0.0, 2.0, 0.0]))  # half of them agree


@pytest.mark.parametrize("path", FLAGS)
def test_the_share_has_a_lower_bound(path):
    g, m = torch.ones(4096), torch.full((4096,), -3.0)
    m[7] = 1.0
    moved = adamw(path, torch.zeros(4096), g, m)
    assert torch.nonzero(moved).flatten().tolist() == [7]
    torch.testing.assert_close(moved[7], torch.tensor(-1 / LEAST_SHARE))


@pytest.mark.parametrize("path", FLAGS)
def test_small_numbers_have_a_sign(path):
    """The product of gradient and step would be 0 in float32."""
    tiny = torch.tensor([1e-30, 1.0])
    moved = adamw(path, torch.zeros(2), tiny, tiny, lr=1e-20)
    torch.testing.assert_close(moved[1], torch.tensor(-1e-20))


@pytest.mark.parametrize("path", FLAGS)
def test_a_nan_reaches_the_parameter(path):
    """A comparison with it is false, which alone would leave the element where it is."""
    g = torch.tensor([float("nan"), 1.0])
    assert adamw(path, torch.zeros(2), g, torch.ones(2)).isnan().tolist() == [True, False]


@pytest.mark.parametrize(("name", "option"), [("lars", "momentum"), ("adafactor", "beta1")])
def test_without_a_first_moment(name, option):
    with pytest.raises(ValueError, match=f"caution=True needs a .*{option}"):
        adan_optim.OPTIMIZERS[name]([torch.ones(2)], **{option: 0.0}, caution=True)


def test_what_the_fused_path_cannot():
    p = [torch.ones(3, requires_grad=True)]
    for kind, reason in {
        "adan": dict(take_gradients=True),
        "adamw": dict(state_dtype="bfloat16"),
        "lamb": {},
    }.items():
        with pytest.raises(ValueError, match="caution"):
            adan_optim.OPTIMIZERS[kind](p, caution=True, fused=True, **reason)
        assert adan_optim.OPTIMIZERS[kind](p, caution=True, **reason).path == "foreach"


def test_switching_it_on_between_two_steps():
    """The plan of the step before is not used again."""
    params, twins = (make_params([(40,)], np.random.default_rng(0)) for _ in range(2))
    one, other = build("adamw", params, caution=False), build("adamw", twins, caution=True)
    for optimizer, tensors in ((one, params), (other, twins)):
        rng = np.random.default_rng(1)
        for on in (True, False, True):
            optimizer.param_groups[0]["caution"] = on
            set_grads(tensors, rng)
            optimizer.step()
    torch.testing.assert_close(params, twins, rtol=0, atol=0)


def test_checkpoints_of_timms():
    """Lion's and others' go on with it; Adan's would step otherwise."""
    for name, theirs in {"lion": timm.Lion, "nadamw": timm.NAdamW}.items():
        ours = build(name, make_params([(3,)], np.random.default_rng(0)))
        ours.load_state_dict(theirs(make_params([(3,)], np.random.default_rng(0)), caution=True).state_dict())
        assert ours.param_groups[0]["caution"]
    ours, theirs = (
        kind(make_params([(3,)], np.random.default_rng(0)), caution=True)
        for kind in (adan_optim.Adan, timm.adan.Adan)
    )
    with pytest.raises(ValueError, match="a checkpoint of timm's Adan with caution=True"):
        ours.load_state_dict(theirs.state_dict())
    ours.load_state_dict(ours.state_dict())
