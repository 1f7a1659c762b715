"""optimizer=apex_fused_adam and apex_fused_lamb, with a stand-in; and what is said where there is no apex."""

import sys

import pytest
from torch import nn
from torch.optim import Optimizer

from repro.errors import UserError
from repro.ledger.rows import compose_config
from repro.train.accelerator import build_optimizer

NAMES = {"apex_fused_adam": "FusedAdam", "apex_fused_lamb": "FusedLAMB"}


def built(name: str, **options: object) -> Optimizer:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    return build_optimizer(model, {**compose_config(f"optimizer/{name}").optimizer, **options})


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_and_options_are_ours(apex: None, name: str) -> None:
    optimizer = built(name, lr=0.5, weight_decay=0.25)
    assert type(optimizer).__name__ == NAMES[name]
    groups = [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert sorted(groups) == [(0.0, 3), (0.25, 1)]
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_apex_is_one_clear_error(name: str) -> None:
    if "apex" in sys.modules:  # it is not on PyPI: another package of that name is
        pytest.fail("apex is installed here")
    with pytest.raises(UserError, match=r"No module named 'apex'; the CUDA images have it .* APEX=COMMIT"):
        built(name)


def test_apex_without_its_kernels_is_one_clear_error(apex: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *arguments: object, **options: object) -> None:
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

    monkeypatch.setattr(sys.modules["apex.optimizers"].FusedAdam.__bases__[0], "__init__", refuse)
    with pytest.raises(UserError, match=r"requires cuda extensions; the CUDA images"):
        built("apex_fused_adam")


def test_other_faults_of_a_constructor_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, params: object, lr: float = 0.1) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("torch.optim.SGD.__init__", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        build_optimizer(nn.Linear(1, 1), {"name": "torch.optim.SGD", "lr": 0.1})
