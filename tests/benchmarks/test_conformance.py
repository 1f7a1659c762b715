"""benchmarks/conformance.py: real cells, and planted faults that each check must notice."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.results import as_text

ROOT = Path(__file__).resolve().parents[2]
CONFORMANCE = runpy.run_path(str(ROOT / "benchmarks" / "conformance.py"))
GLOBALS = CONFORMANCE["judge"].__globals__
CONTRACT, OPTIONS, judge = (CONFORMANCE[name] for name in ("CONTRACT", "OPTIONS", "judge"))
cell_of, cells = CONFORMANCE["cell"], CONFORMANCE["run"]
Implementation = CONFORMANCE["Implementation"]
OURS, THEIRS = CONFORMANCE["ours"](), CONFORMANCE["theirs"]()


class Planted(torch.optim.Optimizer):
    """AdamW with exact bfloat16 parameters; right, as long as there is no `fault`."""

    fault = ""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        **unknown: Any,
    ) -> None:
        if unknown and self.fault != "swallowed keyword":
            raise TypeError(f"unknown: {unknown}")
        super().__init__(
            params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
        )
        if self.fault == "float lr only" and isinstance(lr, Tensor):
            raise TypeError("lr")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "weigth_decay" in param_group and self.fault != "kept group key":
            raise ValueError("weigth_decay")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            if self.fault != "needs its flag":
                group.setdefault("maximize", self.fault == "another default")
        for state in self.state.values():
            if self.fault == "forgets on loading":
                state["m"].zero_()

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            if self.fault == "compiles every step":
                group["text"] = group.get("text", "") + "x"
                if len(group["text"]) > 100:
                    return
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        b1, b2 = group["betas"]
        if g.is_sparse and self.fault != "sparse as nothing":
            text = "no" if self.fault == "unclear error" else "sparse gradients are not supported"
            raise RuntimeError(text)
        if p.is_complex() and self.fault != "complex as it is":
            raise ValueError("complex")
        if g.is_sparse:
            return
        if not state:
            state |= {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
            if p.dtype == torch.bfloat16 and self.fault != "rounds small updates away":
                state["p"] = p.float()
            if self.fault == "class in the state":
                state["extra"] = Path()
        state["t"] += 1
        t = max(s["t"] for s in self.state.values()) if self.fault == "shared step" else state["t"]
        if self.fault == "scales the gradient":
            g.mul_(2)
        g = -g if group["maximize"] != (self.fault == "wrong sign") else g
        state["m"].lerp_(g, 1 - b1)
        state["v"].lerp_(g * g, 1 - b2)
        u = state["m"] / (1 - b1**t) / ((state["v"] / (1 - b2**t)).sqrt() + group["eps"])
        exact = state.get("p", p)
        decay = 0 if self.fault == "no decay" else group["weight_decay"]
        exact -= group["lr"] * (u + decay * exact)
        p.copy_(exact)


PLANTED = Implementation(
    "torch",
    "adamw",
    f"{__name__}.Planted",
    {name: name for name in ("lr", "betas", "eps", "weight_decay", "maximize")},
)
FAULTS = {
    "wrong sign": "plain",
    "no decay": "weight decay",
    "shared step": "late join",
    "scales the gradient": "gradient kept",
    "sparse as nothing": "sparse",
    "unclear error": "sparse",
    "forgets on loading": "resume",
    "swallowed keyword": "keyword",
    "kept group key": "group key",
    "rounds small updates away": "small bf16",
    "compiles every step": "compiled",
    "complex as it is": "complex",
    "float lr only": "tensor lr",
    "class in the state": "weights_only",
    "needs its flag": "old checkpoint",
    "another default": "old checkpoint",
}


def test_a_healthy_optimizer_passes() -> None:
    row = cells(PLANTED)
    assert {name for name, cell in row.items() if cell.verdict != "pass"} == {"caution", "clipping"}
    assert row["clipping"].why == "has no max_grad_norm"
    assert [*row] == [*OPTIONS["adamw"], *CONTRACT]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "fault", fault)
    cell = cell_of(PLANTED, FAULTS[fault])
    assert cell.verdict in ("FAIL", "raises")
    assert cell.why
    assert "**" in str(cell)


def test_every_check_has_a_fault() -> None:
    assert {*CONTRACT} <= {*FAULTS.values()}


@pytest.mark.parametrize(
    "implementation",
    [each if each.optimizer == "adan" else pytest.param(each, marks=pytest.mark.exhaustive) for each in OURS],
    ids=lambda each: f"{each.optimizer}, {each.path}",
)
def test_ours_pass(implementation: Any) -> None:
    if implementation.missing:
        pytest.skip(implementation.missing)
    assert not {name: cell for name, cell in cells(implementation).items() if cell.verdict != "pass"}


def test_every_optimizer_of_ours_has_options() -> None:
    assert {each.optimizer for each in OURS} <= OPTIONS.keys()
    for each in [*OURS, *THEIRS]:
        assert {*each.variants} <= {"", *OPTIONS[each.optimizer]}


@pytest.mark.parametrize(
    ("package", "path"), [("timm", "loop"), ("pytorch_optimizer", "foreach"), ("torch-optimi", "loop")]
)
def test_adan_of_others(package: str, path: str) -> None:
    [each] = [x for x in THEIRS if (x.optimizer, x.package, x.path) == ("adan", package, path)]
    if each.missing:
        pytest.skip(each.missing)
    cell = judge(CONFORMANCE["displacement"], each, OPTIONS["adan"]["proximal decay"])
    assert cell.verdict == "pass"
    assert float(cell.shown) < 1e-12


def test_optax_adamw() -> None:
    [each] = [x for x in THEIRS if (x.optimizer, x.package) == ("adamw", "optax")]
    if each.missing:
        pytest.skip(each.missing)
    assert cell_of(each, "weight decay").verdict == cell_of(each, "keyword").verdict == "pass"
    assert cell_of(each, "resume").verdict == "-"


def test_a_variant_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "fault", "no decay")
    cell = cell_of(replace(PLANTED, variants={"weight decay": "means to"}), "weight decay")
    assert (cell.verdict, cell.why) == ("variant", "means to")
    assert cell_of(replace(PLANTED, variants={"plain": "means to"}), "weight decay").verdict == "FAIL"


def test_definitions_and_options_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OPTIONS["adamw"]["plain"]
    check = CONFORMANCE["displacement"]
    assert judge(check, replace(PLANTED, optimizer="nobody's"), plain).why == "no definition"
    cell = judge(check, PLANTED, {key: value for key, value in plain.items() if key != "eps"})
    assert cell.verdict == "raises"
    assert "takes 'eps'" in cell.why
    assert "does not know 'rho'" in judge(check, PLANTED, {**plain, "rho": 1}).why


def test_the_committed_page_may_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GLOBALS, "ours", list)
    monkeypatch.setitem(GLOBALS, "theirs", list)
    shutil.copy(ROOT / "results" / "conformance" / "README.md", tmp_path)
    assert CONFORMANCE["main"](["--out", str(tmp_path)]) == 0
    assert "Everything known was run." in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# Mine\n")
    assert CONFORMANCE["main"](["--out", str(tmp_path)]) == 2


@pytest.mark.recipe
def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    absent = Implementation("no-such-package", "adamw", "no_such_package.AdamW", {})
    monkeypatch.setitem(GLOBALS, "ours", list)
    monkeypatch.setitem(GLOBALS, "theirs", lambda: [PLANTED, absent])
    assert CONFORMANCE["main"](["--only", "adamw", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert as_text(text) in capsys.readouterr().out
    assert "* adamw, no-such-package: not installed: pip install no-such-package" in text
    assert "* clipping: has no max_grad_norm (torch " in text
    result = json.loads((tmp_path / "conformance.json").read_text())
    assert result["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    monkeypatch.setattr(Planted, "fault", "wrong sign")
    monkeypatch.setitem(GLOBALS, "ours", lambda: [replace(PLANTED, package="")])
    assert CONFORMANCE["main"](["--only", "adamw"]) == 1
    assert "  **FAIL** " in capsys.readouterr().out
