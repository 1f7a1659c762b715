"""benchmarks/optimizers.py and published_step_times.py: bytes, memory, tables. Nothing is timed."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

import adan_optim

ROOT = Path(__file__).resolve().parents[2]
BENCH = runpy.run_path(str(ROOT / "benchmarks" / "optimizers.py"))
PUBLISHED = runpy.run_path(str(ROOT / "benchmarks" / "published_step_times.py"))


def test_bytes_by_design() -> None:
    moved = {key: round(entry.moved, 1) for key, entry in BENCH["ENTRIES"].items()}
    assert moved["torch AdamW fused"] == moved["AdamW fused"] == 28
    assert moved["Adan fused"] == 44
    assert moved["Adan fused, taken gradients"] == 40
    assert moved["Adan fused, bf16 states"] == 28
    assert moved["Adan fused, int8 states"] == 20.1
    assert moved["Adan fused, clipped"] == 48
    assert moved[BENCH["EMULATED"]] == PUBLISHED["BYTES"]["fused_adan_step_ms"] == 60
    assert (moved["LAMB fused"], moved["LARS fused"], moved["Adafactor fused"]) == (40, 28, 28)
    assert (moved["Adam-mini fused"], moved["Adam-mini fused, bf16 states"]) == (24, 20)
    for card in adan_optim.CARDS.values():
        if card.elementwise and not card.state_reads:
            assert BENCH["one_pass"](card.state_bytes()) == card.traffic_bytes()


@pytest.mark.parametrize(
    "key",
    [
        key
        for key, entry in BENCH["ENTRIES"].items()
        if key.startswith("Ad") and not entry.device and key != "Adafactor fused"  # rows, columns, vectors
    ],
)
def test_states_are_as_large_as_designed(key: str) -> None:
    entry, size = BENCH["ENTRIES"][key], 8192
    params = BENCH["make"]([torch.Size((size,))], "cpu")
    optimizer = entry.build(params)
    optimizer.step()
    assert (params[0].grad is None) == entry.taken
    assert 0 <= BENCH["state_bytes"](optimizer) / size - entry.state <= 8 / size  # the step count, a scale


def test_official_traffic_steps_like_adan() -> None:
    ours, emulated = (BENCH["make"]([torch.Size((8, 8))], "cpu") for _ in range(2))
    adan_optim.Adan(ours, weight_decay=0.02).step()
    optimizer = BENCH["OfficialTraffic"](emulated, weight_decay=0.02)
    optimizer.step()
    assert torch.equal(ours[0], emulated[0])
    assert torch.equal(optimizer.scratch[0], -emulated[0].grad)


def test_parties_share_what_memory_there_is() -> None:
    entries, baseline = BENCH["ENTRIES"], BENCH["BASELINE"]
    count, gib = 100_000_000, 2**30
    [everyone], misfits = BENCH["parties"](entries, count, 100 * gib)
    assert sorted(everyone) == sorted(entries)
    assert not misfits
    groups, misfits = BENCH["parties"](entries, count, 4.5 * gib)  # 3.4 GiB with the baseline
    assert all(group[0] == baseline for group in groups)
    assert sorted(key for group in groups for key in group[1:]) == sorted(
        entries.keys() - misfits.keys() - {baseline}
    )
    assert "Adan fused" in misfits
    assert "Adan fused, int8 states" not in misfits
    assert all(need > 4.5 * gib for need in misfits.values())
    groups, misfits = BENCH["parties"](entries, count, gib)
    assert not groups
    assert misfits.keys() == {baseline}


def test_shapes_of_the_published_models() -> None:
    count = sum(size.numel() for size in BENCH["shapes"]("GPT-2 758M"))
    assert count == PUBLISHED["gpt2_parameters"](*BENCH["GPT2"]["GPT-2 758M"]) == 758_799_360
    count = sum(size.numel() for size in BENCH["shapes"]("GPT-2 6x768"))
    assert count == PUBLISHED["gpt2_parameters"](6, 768)
    assert sum(size.numel() for size in BENCH["shapes"]("ResNet-50")) == 25_557_032


def test_a_list_and_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCH["bench_list"].__globals__, "shapes", lambda name: [torch.Size((96, 64))] * 2)
    run = BENCH["bench_list"]("small", "cpu", 2, 2**30, list(BENCH["ENTRIES"]))
    assert {"Adan fused, int8 states", "copy", "update"} <= run["rows"].keys()
    assert "No module" in run["absent"]["apex FusedAdam"] or "cuda only" in run["absent"]["apex FusedAdam"]
    assert all(values > 0 for row in run["rows"].values() for values in row.values())
    for row in run["rows"].values():
        row["ratios"] = [1.0, 2.0]
    monkeypatch.setattr(sys, "argv", ["bench"])
    about = BENCH["machine"]("cpu", ["--lists", "a b"]) | {"memory_GiB": 1.0}
    nothing = run | {"rows": {}, "misfits": {"torch AdamW fused": 2**31}}
    lists = {"small": run | {"processes": 2}, "large": nothing | {"processes": 2}}
    text = BENCH["markdown"]({"machine": about, "lists": lists, "overhead_us": {"Adan": {"again": 1.0}}})
    assert "`python bench --lists 'a b'`" in text
    assert "| Adan fused | " in text
    assert "of update" in text
    assert "Not measured: torch AdamW fused needs 2.0 GiB, there are 1.0 GiB." in text
    assert "* Not measured, apex FusedAdam: " in text


@pytest.mark.recipe
def test_the_steps_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only these are measured, with the baseline, and their overhead."""
    monkeypatch.setitem(BENCH["bench_list"].__globals__, "shapes", lambda name: [torch.Size((96, 64))] * 2)
    only = [BENCH["BASELINE"], "Adan fused", "Adan fused, taken gradients"]
    run = BENCH["bench_list"]("small", "cpu", 2, 2**30, only)
    assert list(run["rows"]) == [*only, *BENCH["STREAMS"]]
    rows = BENCH["bench_overhead"]("cpu", 1, only)
    assert list(rows) == only
    for row in rows.values():
        for column in BENCH["OVERHEAD"]:
            assert row.get(f"{column}, fastest tenth", 0) <= row.get(column, 0)
    assert "again" in rows["Adan fused"]
    assert "again" not in rows["Adan fused, taken gradients"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lists", "resnot"], "--lists resnot: neither a timm model"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--steps", "Adam"], "--steps 'Adam': not one of torch AdamW fused, "),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: torch finds no CUDA GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert BENCH["main"](arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_published_times_are_those_of_one_step() -> None:
    cells = PUBLISHED["grid"]()
    assert len(cells) == 25
    for cell in cells:
        parameters = PUBLISHED["gpt2_parameters"](cell["layers"], cell["width"])
        assert parameters // 1_000_000 == cell["parameters_m"]
        assert 1150 < PUBLISHED["bandwidth"](parameters, 60, cell["fused_adan_step_ms"]) < 1250


def test_the_docs_quote_what_the_commands_print() -> None:
    text = (ROOT / "docs" / "memory.md").read_text()
    assert BENCH["design"]() in text
    assert PUBLISHED["report"]() in text
