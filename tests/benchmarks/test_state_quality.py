"""benchmarks/state_quality.py: two steps of its own task, records, resuming, the verdict."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

QUALITY = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "state_quality.py"))
MAIN = QUALITY["main"]
GLOBALS = MAIN.__wrapped__.__globals__


@pytest.mark.recipe
def test_gpt_in_two_steps_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GLOBALS["VALIDATION"] = 16
    arguments = [
        "--tasks",
        "gpt",
        "--gpt-steps",
        "2",
        "--seeds",
        "0",
        "--out",
        str(tmp_path / "q" / "states"),
    ]
    assert MAIN(arguments) == 0, capsys.readouterr().err
    records = QUALITY["load"](tmp_path / "q" / "states.jsonl")
    assert [record["storage"] for record in records] == ["float32", "bfloat16", "int8"]
    each = {record["storage"]: record["state_bytes"] / record["parameters"] for record in records}
    assert each["float32"] == 16
    assert each["bfloat16"] == 8
    assert 4.06 < each["int8"] < 4.3
    assert all(0 < record["validation_loss"] < 8 for record in records)
    assert "3 runs done now" in capsys.readouterr().out

    with (tmp_path / "q" / "states.jsonl").open("a") as file:
        file.write('{"task": "gp')  # a kill in the middle of a line
    assert MAIN(arguments) == 0
    assert "0 runs done now" in capsys.readouterr().out
    assert QUALITY["load"](tmp_path / "q" / "states.jsonl") == records
    assert MAIN([*arguments, "--storages", "float32", "--pure-bf16"]) == 0
    pure = QUALITY["load"](tmp_path / "q" / "states.jsonl")[3:]
    assert [record["storage"] for record in pure] == list(QUALITY["PURE_BF16"])
    assert [record["state_bytes"] / record["parameters"] for record in pure] == [8, 8, 10, 10]


@pytest.mark.slow
def test_digits_through_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GLOBALS["VISION"], "digits", ["data=digits", "epochs=1", "schedule.warmup_epochs=0"])
    out, runs = str(tmp_path / "states"), str(tmp_path / "runs")
    arguments = ["--tasks", "digits", "--storages", "int8", "--seeds", "0", "--out", out, "--runs", runs]
    assert MAIN(arguments) == 0
    [record] = QUALITY["load"](tmp_path / "states.jsonl")
    assert 4.06 < record["state_bytes"] / record["parameters"] < 5
    assert 0 < record["validation_accuracy"] <= 100


def record(storage: str, seed: int, loss: float) -> dict[str, Any]:
    run = {"task": "gpt", "optimizer": "adan", "storage": storage, "seed": seed, "recipe": "some"}
    result = {"train_loss": loss, "validation_loss": loss, "validation_accuracy": None}
    return run | result | {"seconds": 1.0, "state_bytes": 16, "parameters": 1}


def test_the_table_and_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [record("float32", seed, loss) for seed, loss in enumerate([1.0, 1.1, 1.2])]
    rows += [record("bfloat16", seed, loss) for seed, loss in enumerate([1.2, 1.3, 1.35])]
    rows += [record("int8", seed, loss) for seed, loss in enumerate([1.3, 1.3, 1.4])]
    rows += [record("pure bfloat16, kahan", 0, 1.1)]
    (tmp_path / "states.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert MAIN(["--table", "--out", str(tmp_path / "states")]) == 0
    cells = {
        line.split(" | ")[0][2:]: line.split(" | ")[1:7]
        for line in (tmp_path / "states.md").read_text().splitlines()
        if line.startswith("| ")
    }
    assert cells["float32"] == ["3", "1.1000", "1.0000 to 1.2000", "", "0.2000", ""]
    assert cells["bfloat16"] == ["3", "1.2833", "1.2000 to 1.3500", "+0.1833", "0.2000", "within"]
    assert cells["int8"] == ["3", "1.3333", "1.3000 to 1.4000", "+0.2333", "0.2000", "outside"]
    assert cells["pure bfloat16, kahan"][5] == "fewer than 3 seeds"


def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert MAIN([*arguments, "--out", str(tmp_path / "states")]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "--gpt-steps 0: must be at least 1" in error("--tasks", "gpt", "--gpt-steps", "0")
    missing = str(tmp_path / "none")
    assert f"--fashion-mnist {missing}: no such folder" in error("--fashion-mnist", missing)
    assert "does not exist; train without --table first" in error("--table")
    (tmp_path / "states.jsonl").write_text("{\n")
    assert "line 1 is not a record; repair or delete that line" in error("--table")
