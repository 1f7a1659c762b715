"""Replay: learning rates, epochs and validations of logs, and planted differences."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest
from replay_samples import changed, epochs_log, evidence, load, planted, recipe, timm_args

from repro.ledger.rows import Figure, Recipe, Row
from repro.logs.log import Log
from repro.verify import fairseq, mae, timm, transformer_xl
from repro.verify.checks import Check, Evidence

CheckFunction = Callable[[Evidence, Recipe], Check]

TXL = recipe(
    steps=40,
    batch_size=2,
    eval_every=8,
    run={"log_every": 2},
    optimizer={"lr": 1e-3},
    schedule=dict(name="cosine", join="scale", per="step", warmup_steps=4),
    train_tokens=101,
    tgt_len=4,  # 2 streams of 50 tokens: 13 batches
)


def txl_log() -> Evidence:
    lr, records = 0.0, []
    for step in range(1, 41):
        if step < 4:
            lr = 1e-3 * step / 4
        else:
            lr *= (1 + math.cos(math.pi * step / 40)) / (1 + math.cos(math.pi * (step - 1) / 40))
        epoch, batch = divmod(step - 1, 13)
        where = {"epoch": epoch + 1, "step": step, "batch": batch + 1}
        if step % 2 == 0:
            records.append({"record": "train", **where, "lr": float(f"{lr:.3g}"), "train_ppl": 50.0})
        if step % 8 == 0:
            records.append({"record": "eval", "step": step, "eval_ppl": 60.0 - step})
    return evidence("transformer_xl", records)


def notices(check: CheckFunction, found: Evidence, ours: Recipe, *messages: str) -> None:
    result = check(found, ours)
    assert result.passed is False
    assert any(all(message in note for message in messages) for note in result.notes), result.notes


def test_transformer_xl() -> None:
    found = txl_log()
    for check, count in (
        (transformer_xl.lr, 20),
        (transformer_xl.epochs, 40),
        (transformer_xl.validation, 5),
    ):
        assert check(found, TXL) == replace(check(found, TXL), passed=True, compared=count, notes=())
    digit = planted(found, 0, lr=found.logs[0].table["lr"][0] * 1.01)
    notices(transformer_xl.lr, digit, TXL, "0.000505 at step 2, ours 0.0005")
    notices(transformer_xl.lr, found, changed(TXL, schedule__warmup_steps=5), "at step 2")
    notices(transformer_xl.lr, found, changed(TXL, schedule__join="cut"), "at step 4")
    notices(transformer_xl.epochs, found, changed(TXL, steps=42), "42: in the configuration alone")
    notices(transformer_xl.epochs, found, changed(TXL, batch_size=8), "ours have 3 each")
    notices(transformer_xl.validation, planted(found, 4, step=9), TXL, "9: in the log alone")
    notices(transformer_xl.validation, found, changed(TXL, eval_every=9), "9: in the configuration alone")


BERT = recipe(
    steps=40,
    batch_size=4,
    eval_every=20,
    eval_epochs=2,
    run={"log_every": 2},
    optimizer={"lr": 1e-3},
    schedule=dict(name="polynomial", per="step", warmup_steps=6),
    data={"train_sequences": 37},  # 10 iterations an epoch
)


def bert_log(resumed: bool = False) -> Evidence:
    """A run in which iterations 4 and 24 overflow; resumed from update 20 if so, after a few updates more."""
    records: list[list[dict[str, Any]]] = [[], []]
    events: list[list[dict[str, Any]]] = [[], []]
    line = 0

    def add(part: int, **values: Any) -> None:
        nonlocal line
        line += 1
        records[part].append({**values, "segment": part, "file": part, "line": line})

    parts = [(0, 0, 26), (1, 20, 40)] if resumed else [(0, 0, 40)]
    for part, begin, end in parts:
        update, iteration = begin, begin + (begin >= 4)
        if begin:
            events[part].append({"what": "loaded", "step": begin, "line": 0})
        while update < end:
            iteration += 1
            if iteration in (4, 24):
                line += 1
                last = records[part][-1]["step"] if records[part] else begin
                events[part].append({"what": "overflow", "step": last, "line": line})
            else:
                update += 1
                lr = 1e-3 * min(update / 6, (40 - update) / 34)
                if update % 2 == 0:
                    add(part, record="train", step=update, epoch=iteration // 10 + 1, lr=float(f"{lr:.6g}"))
                if update % 20 == 0:
                    add(part, record="eval", step=update, eval_loss=2.0)
            if iteration % 10 == 0 and update < 40:
                if iteration % 20 == 0:
                    add(part, record="eval", step=update, eval_loss=2.0)
                add(part, record="epoch", step=update, epoch=iteration // 10, train_loss=2.0)
    logs = [
        Log("fairseq", [Path(f"log{part}")], pd.DataFrame(rows), {}, events=events[part])
        for part, rows in enumerate(records)
        if rows
    ]
    table = pd.concat([log.table for log in logs], ignore_index=True)
    table = table[~table.duplicated(["record", "step"], keep="last")].sort_values("step", ignore_index=True)
    return Evidence(Row(name="table/row"), logs=logs, log=Log("fairseq", [], table, {}))


@pytest.mark.parametrize("resumed", [False, True])
def test_bert(resumed: bool) -> None:
    found = bert_log(resumed)
    assert fairseq.lr(found, BERT) == Check(True, f"{20 + 3 * resumed} lines, every digit", 20 + 3 * resumed)
    assert fairseq.epochs(found, BERT) == Check(True, "40, 10 an epoch", 24)
    assert fairseq.validation(found, BERT).passed
    notices(fairseq.lr, planted(found, 0, lr=0.000333334), BERT, "0.000333334 at step 2, ours 0.000333333")
    notices(fairseq.lr, found, changed(BERT, steps=41), "at step")
    notices(fairseq.lr, found, changed(BERT, schedule__warmup_steps=7), "at step 2")
    notices(
        fairseq.epochs,
        found,
        changed(BERT, data__train_sequences=41),
        "epoch 1 ends after 10",
        "ours after 11",
    )
    notices(fairseq.epochs, found, changed(BERT, run__log_every=4), ": in the log alone")
    notices(fairseq.validation, found, changed(BERT, eval_every=18), "18: in the configuration alone")
    notices(fairseq.validation, found, changed(BERT, eval_epochs=3), ": in the log alone")
    without = copy.deepcopy(found)
    without.logs[0].events.clear()
    notices(fairseq.epochs, without, BERT, "epoch 1 ends after 9 iterations")


def test_bert_states_its_iterations() -> None:
    found = bert_log()
    assert found.log is not None
    found.log.config["iterations_per_epoch"] = 11
    notices(fairseq.epochs, found, BERT, "11 in the log, ours 10")


MAE = recipe(
    epochs=6,
    batch_size=4096,
    gradient_accumulation_steps=2,
    optimizer={"lr": 2e-3},
    schedule=dict(name="cosine", join="shift", per="step", warmup_epochs=2, cooldown_epochs=0, min_lr=1e-8),
)


def mae_log() -> Evidence:
    def rate(t: float) -> float:
        return 2e-3 * t / 2 if t < 2 else 1e-8 + (2e-3 - 1e-8) / 2 * (1 + math.cos(math.pi * (t - 2) / 4))

    def mean(epoch: int) -> float:
        return math.fsum(rate(epoch + (i - i % 2) / 625) for i in range(625)) / 625

    records = [{"record": "epoch", "epoch": e, "lr": mean(e), "eval_loss": 1.0} for e in range(6)]
    return evidence("mae", records, Row(published=[Figure(metric="test_accuracy")]))


def test_mae() -> None:
    found = mae_log()
    result = mae.lr(found, MAE)
    assert (result.passed, result.compared) == (True, 6)
    assert mae.epochs(found, MAE) == Check(True, "6", 6)
    assert mae.validation(found, MAE).passed
    notices(
        mae.lr,
        planted(found, 3, lr=found.logs[0].table["lr"][3] * (1 + 1e-11)),
        MAE,
        "relative error 1e-11 at 3",
    )
    notices(mae.lr, found, changed(MAE, gradient_accumulation_steps=1), "relative error")
    notices(mae.lr, found, changed(MAE, schedule__min_lr=1e-6), "relative error")
    notices(mae.lr, found, changed(MAE, schedule__warmup_epochs=3), "relative error")
    notices(mae.epochs, found, changed(MAE, epochs=7), "6: in the configuration alone")
    notices(mae.validation, planted(found, 5, eval_loss=None), MAE, "5: in the configuration alone")


def test_timm_schedule() -> None:
    row = load("imagenet/vit_s_150_i")
    found = Evidence(row.row, settings={"args.yaml": timm_args()})
    assert timm.lr(found, row).passed
    for key, value in (
        ("warmup_epochs", 61),
        ("warmup_lr", 2e-8),
        ("min_lr", 0.0),
        ("join", "shift"),
        ("per", "step"),
    ):
        assert timm.lr(found, changed(row, **{f"schedule__{key}": value})).passed is (key == "per")
    assert timm.lr(found, changed(row, optimizer__lr=0.0150001)).passed is False


def test_a_gap_in_the_epochs() -> None:
    found = planted(epochs_log(160), 7, epoch=8)
    notices(timm.epochs, found, load("imagenet/vit_s_150_i"), "7: in the configuration alone")
