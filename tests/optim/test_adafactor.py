"""Adafactor against transformers' and torch's.

transformers' means the same with beta1=None for 0, eps a pair, decay_rate negated; with relative_step its
lr is 1e-2. torch's with eps next to nothing: it clamps by eps where the paper adds it. It has no momentum,
and decays by lr instead of by the tensor's own step, so without decay.
"""

import pytest
import torch
from harness import build, needs_torch
from test_outside import check

import adan_optim

transformers = pytest.importorskip("transformers.optimization")
each_path = pytest.mark.parametrize("path", adan_optim.CARDS["adafactor"].paths)
BASE = dict(eps=1e-30, eps_scale=1e-3, clip_threshold=0.9, decay_rate=0.7)


@each_path
@pytest.mark.parametrize("beta1", [0.0, 0.7])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("scale", [False, True])
def test_transformers(path, beta1, weight_decay, scale):
    common = dict(clip_threshold=0.9, weight_decay=weight_decay, scale_parameter=scale, relative_step=False)
    check(
        lambda p: build("adafactor", p, path, **{**BASE, **common}, lr=0.1, beta1=beta1),
        lambda p: transformers.Adafactor(
            p, lr=0.1, eps=(1e-30, 1e-3), decay_rate=-0.7, beta1=beta1 or None, **common
        ),
    )


@needs_torch((2, 5), "torch.optim.Adafactor")
@each_path
def test_torch(path):
    check(
        lambda p: build(
            "adafactor",
            p,
            path,
            **{**BASE, "clip_threshold": 1.0},
            lr=0.1,
            weight_decay=0.0,
            beta1=0.0,
            relative_step=True,
        ),
        lambda p: torch.optim.Adafactor(p, lr=0.1, beta2_decay=-0.7, eps=(1e-30, 1e-3), d=1.0),
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beta1": 1.0}, r"beta1=1.0: must be in \[0, 1\)"),
        ({"clip_threshold": 0.0}, "clip_threshold=0 would leave no update"),
        ({"warmup_init": True, "relative_step": False}, "warmup_init=True needs relative_step=True"),
    ],
)
def test_options_that_make_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        adan_optim.Adafactor([torch.ones(2)], **options)
