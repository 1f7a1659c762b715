"""Replay: every row agrees with what was released; departures, files, figures, parameters and verdicts."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from replay_samples import changed, epochs_log, evidence, load

import repro.verify
from repro.ledger.rows import Discrepancy, Figure, File, Recipe, Row, names
from repro.verify import Verdict, _or_departed, timm
from repro.verify.checks import Check, Evidence, figures, gather
from repro.verify.models import build, parameters

verify = cache(repro.verify.verify)


@pytest.mark.parametrize("name", names())
def test_every_row(name: str, released: Path) -> None:
    verdict = verify(name)
    assert not verdict.failed, [note for check in verdict.failed for note in verdict.checks[check].notes]
    row = load(name).row
    wanted = [file for file in row.files if file.kind in ("log", "settings")]
    complete = "log" not in row.elsewhere and all((released / file.path).is_file() for file in wanted)
    says = "nothing released" if not (wanted or row.elsewhere.get("log")) else "verified"
    assert verdict.says == says if complete else verdict.says.startswith("log not here: ")
    for check in ("lr", "epochs", "validation"):
        assert not complete or not row.logs or verdict.checks[check].passed or check == "validation"
    if row.logs and complete:
        assert verdict.checks["lr"].compared >= sum(file.records or 0 for file in row.logs) * 0.9


def test_every_line_with_a_learning_rate(released: Path) -> None:
    assert sum(verify(f"bert/{name}").checks["lr"].compared for name in ("adan", "adam")) == 10_037
    rows = ["50k", "100k", "200k"]
    logs = [row for row in rows if (released / f"NLP/Transformer-XL/exp_results/log-{row}.txt").is_file()]
    checks = [verify(f"wikitext103/adan_{row}").checks["lr"] for row in logs]
    assert sum(check.compared for check in checks) == sum(
        {"50k": 250, "100k": 500, "200k": 1000}[r] for r in logs
    )


def test_a_departure_passes_where_it_is_stated() -> None:
    row = load("imagenet/vit_s_150_i")  # follows its settings, not its log of 170 epochs
    assert _or_departed("log", timm.epochs, epochs_log(160), row) == Check(True, "160", 160)
    result = _or_departed("log", timm.epochs, epochs_log(170), row)
    assert (result.passed, result.says) == (True, "170 *")
    assert result.notes == ("with epochs=160, from which the row departs",)
    assert _or_departed("log", timm.epochs, epochs_log(165), row).passed is False
    # the row says that it follows its settings: an override cannot bring it back to them
    assert _or_departed("settings", timm.epochs, epochs_log(170), row).passed is False


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({}, None),
        ({"best": 80.2}, "the log's best is 80.166, the row's 80.2"),
        ({"final": 80.109}, "the log's final is 80.108, the row's 80.109"),
        ({"best": None}, "the log's best is 80.166, the row's None"),
        ({"higher_is_better": False}, "the log's best is 79.0, the row's 80.166"),
    ],
)
def test_figures(stated: dict[str, Any], message: str | None) -> None:
    figure = Figure(
        metric="test_accuracy", value=80.1, unit="%", column="eval_top1", best=80.166, final=80.108
    )
    row = Row(published=[replace(figure, **stated)])
    records = [{"record": "epoch", "epoch": e, "eval_top1": v} for e, v in enumerate((79.0, 80.166, 80.108))]
    result = figures(evidence("timm", records, row))
    assert result.passed is (message is None)
    assert result.says == "final" if message is None else any(message in note for note in result.notes)


SUMMARY = "epoch,train_loss,eval_loss,eval_top1,eval_top5\r\n0,6.5,6.2,1.0,4.0\r\n1,6.0,5.9,2.0,6.0\r\n"


@pytest.mark.parametrize(
    ("content", "stated", "message"),
    [
        (SUMMARY, {}, None),
        (SUMMARY.replace("5.9", "5.8"), {}, "has SHA-256"),
        (SUMMARY, {"records": 3}, "has 2 records, the row 3"),
        ("nothing of the kind\n", {}, "cannot be read"),
        (None, {}, "not here: summary.csv"),
    ],
)
def test_files(
    content: str | None,
    stated: Mapping[str, Any],
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path))
    if content is not None:
        (tmp_path / "summary.csv").write_text(content, newline="")
    file = File(path="summary.csv", sha256=hashlib.sha256(SUMMARY.encode()).hexdigest(), records=2)
    found, check = gather(Row(files=[replace(file, **stated)]), lambda _: {})
    assert check.passed is (None if content is None else message is None)
    assert message is None or any(message in note for note in check.notes)
    assert found.missing == ([] if content is not None else ["summary.csv"])


def test_parameters() -> None:
    row = load("imagenet/vit_s_150_i")
    assert parameters(Evidence(row.row), row) == Check(True, "22,050,664 (model)", 1)
    assert parameters(Evidence(row.row), changed(row, model__name="deit_base_patch16_224")).passed is False
    logged = evidence("mae", [{"record": "epoch", "epoch": 0}], config={"parameters": 22_050_665})
    assert parameters(logged, row).notes == ("parameters: the log has 22,050,665, the row 22050664",)
    assert build(load("memory/vit_b")) is None  # which is no recipe's


@pytest.mark.parametrize(
    ("passed", "missing", "released", "says"),
    [
        (True, [], True, "verified"),
        (False, ["a.csv"], True, "differs: lr"),
        (True, ["a.csv", "b.yaml"], True, "log not here: a.csv, b.yaml"),
        (None, [], False, "nothing released"),
    ],
)
def test_verdicts(passed: bool | None, missing: list[str], released: bool, says: str) -> None:
    assert Verdict("table/row", {"lr": Check(passed, "")}, missing, released).says == says


def test_what_a_check_lacks_is_a_difference() -> None:
    ours = Recipe(Row(name="imagenet/vit_s_150_i", discrepancies=[Discrepancy(what="something")]), {})
    result = _or_departed("log", timm.epochs, epochs_log(3), ours)
    assert (result.passed, result.notes) == (False, ("no epochs in the configuration or the log",))
