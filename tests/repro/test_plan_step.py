"""The cost of the optimizer's step, against numbers computed by hand."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import adan_optim
from repro.errors import UserError
from repro.planner import step
from repro.planner.plan import Machine
from repro.planner.step import Cost, Setting

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import plan as command


def table(size: float, machine: str, **setting: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The numbers of the table for one model and machine, by optimizer and states."""
    _, found = step.by_optimizer([size], [Machine.read(machine)], Setting(**setting))
    return {(row["optimizer"], row["states"]): row for row in found}


def test_the_step_of_8_billion_parameters_on_8_gpus() -> None:
    """A billion parameters on each: AdamW moves 28 GB, 8.36 ms at 3.35 TB/s, Adan 44 GB."""
    found = table(8e9, "8xH100")
    adamw, adan = found["adamw", "float32"], found["adan", "float32"]
    assert (adamw["moved"], adan["moved"]) == (28e9, 44e9)
    assert adamw["seconds"] == pytest.approx(28 / 3350)
    # 6 * 8e9 * 8192 operations at 35 % of 989e12 are 1.1360 s; 8.358 ms are 0.730 % of the sum
    assert adamw["share"] == pytest.approx(0.00730, rel=1e-3)
    assert adan["share"] == pytest.approx(0.011429, rel=1e-3)
    assert adamw["offloaded"] == pytest.approx(8e9 / 64e9)  # the states: two times four bytes
    assert adan["offloaded"] == pytest.approx(16e9 / 64e9)
    assert found["adan", "bfloat16"]["moved"] == 28e9
    assert found["lion", "bfloat16"]["moved"] == 16e9  # p read and written, g, one state of two bytes twice
    assert found["lamb", "float32"]["moved"] == 40e9
    assert found["lars", "float32"]["moved"] == 28e9
    assert found["adafactor", "float32"]["moved"] == pytest.approx(28e9, rel=1e-3)
    assert found["adam_mini", "float32"]["moved"] == pytest.approx(24e9, rel=1e-3)
    assert found["adafactor", "float32"]["offloaded"] == found["adafactor", "float32"]["seconds"]


def test_more_gpus_make_less_of_it_each_but_not_with_int8() -> None:
    few, many = table(70e9, "8xH100"), table(70e9, "64xH100")
    assert few["adan", "float32"]["moved"] == 385e9
    assert many["adan", "float32"]["moved"] == 48.125e9
    whole = (12 + 2 * 4 * (1 + 4 / 256)) * 70e9
    assert few["adan", "int8"]["moved"] == many["adan", "int8"]["moved"] == pytest.approx(whole)


def test_every_optimizer_with_a_fused_path_is_there_with_its_states() -> None:
    found = table(1e9, "8xH100").keys()
    assert {name for name, _ in found} == adan_optim.CARDS.keys() - {"shampoo", "muon", "soap"}
    assert {kept for name, kept in found if name == "lamb"} == {"float32"}
    assert {kept for name, kept in found if name == "adan"} == {"float32", "bfloat16", "int8"}
    for name, kept in found:
        card, state = adan_optim.CARDS[name], step.state_bytes(name, kept)
        assert step.cost(4, state, name).moved == card.step_bytes(state)
        if not card.optional and not card.small:
            assert card.step_bytes(state) == card.traffic_bytes(kept)


def test_given_bandwidths_tokens_and_utilisation() -> None:
    adamw = table(1e9, "10xA100-80", bandwidth=1e12, pcie=1e9, tokens=1000, mfu=0.5)["adamw", "float32"]
    assert adamw["seconds"] == pytest.approx(0.0028)
    assert adamw["offloaded"] == pytest.approx(0.8)
    others = 6 * 1e9 * 1000 / (312e12 * 0.5)
    assert adamw["share"] == pytest.approx(0.0028 / (0.0028 + others))


def test_other_optimizers_make_one_pass_and_clipping_reads_the_gradient() -> None:
    assert step.cost(4, 8, "torch.optim.SGD") == Cost(28, 8)
    assert step.cost(4, 16, "adan", clipped=True) == Cost(48, 16)


@pytest.mark.parametrize(("text", "size"), [("350M", 350e6), ("8B", 8e9), ("8e9", 8e9), ("1.5B", 1.5e9)])
def test_sizes(text: str, size: float) -> None:
    assert step.read_size(text) == size


@pytest.mark.parametrize("text", ["8GB", "", "B", "-1B", "nan", "inf"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match=r"^--parameters .*: write a number of parameters as 350M, 8B or 8e9"):
        step.read_size(text)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--parameters", "8B", "--gpus", "64xH100", "--bandwidth", "3000", "--out", str(tmp_path)]
    assert command.main(words) == 0
    assert re.search(r"^Adan +float32 +44 ", capsys.readouterr().out, re.M)
    [adan] = [
        row
        for row in json.loads((tmp_path / "step.json").read_text())["results"]
        if (row["optimizer"], row["states"]) == ("adan", "float32")
    ]
    assert adan["seconds"] == pytest.approx(44 / 8 / 3000)
    assert "8,192 tokens on each GPU" in (tmp_path / "step.md").read_text()
    for key in ("bandwidth", "pcie", "tokens", "mfu"):
        assert command.main(["--parameters", "8B", f"--{key}", "0"]) == 2
        assert f"--{key} 0.0: must be above 0" in capsys.readouterr().err


@pytest.mark.recipe
def test_the_line_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2 small, 124,439,808 parameters of four bytes, AdamW: 28 bytes for each on each of four GPUs."""
    assert command.main(["adam_mini/gpt2_small_adamw", "--gpus", "4xA100-80"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step on a GPU: ")]
    moved = 28 * 124_439_808
    assert line.startswith(
        f"step on a GPU: {moved / 1e9:.3g} GB moved, {moved / 2.039e9:.3g} ms at 2,039 GB/s"
    )
    assert line.endswith(f"{8 * 124_439_808 / 32e6:.3g} ms with offloaded states at 32 GB/s")
