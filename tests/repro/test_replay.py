"""Replay: every row agrees with what was released, and each planted difference is noticed."""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest

from repro import ledger, replay
from repro.ledger import Discrepancy, Figure, File, Recipe, Row, names
from repro.released.log import Log
from repro.replay import Verdict, _or_departed, fairseq, mae, timm, transformer_xl
from repro.replay.checks import Check, Evidence, figures, gather
from repro.replay.models import build, parameters
from repro.replay.settings import FREE, Must, Ours, Table, compare

load, verify = cache(ledger.load), cache(replay.verify)

CheckFunction = Callable[[Evidence, Recipe], Check]


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


# --- settings -------------------------------------------------------------------------------------


def recipe(**config: Any) -> Recipe:
    return Recipe(Row(name="table/row"), config)


def changed(original: Recipe, **values: Any) -> Recipe:
    """The recipe with other values at dotted keys, written with `__` for the dot."""
    config = copy.deepcopy(original.config)
    for key, value in values.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return Recipe(original.row, config)


ROW = recipe(optimizer={"lr": 1e-3, "betas": [0.9, 0.99]}, batch_size=64, amp="fp16")
TABLE = Table(
    {
        "lr": Ours("optimizer.lr"),
        "betas": Ours("optimizer.betas"),
        "per_gpu": Ours("batch_size", lambda settings: settings["per_gpu"] * 8),
        "clip": Ours("clip_grad", lambda settings: settings["clip"] or None),
        "nesterov": Must(False),
        "folder": FREE,
        "wandb.*": FREE,
    },
    absent={"clip": 0.0},
)
FILE = {
    "lr": 1e-3,
    "betas": (0.9, 0.99),
    "per_gpu": 8,
    "nesterov": False,
    "folder": "a",
    "wandb.project": "b",
}


def test_settings_that_agree() -> None:
    comparison = compare(FILE, ROW, TABLE)
    assert comparison.differences == ()
    assert comparison.fields == 7  # with `clip`, which is off where nothing is said of it
    assert comparison.kinds == (4, 1, 2)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"lr": 2e-3}, "lr: 0.002, ours has optimizer.lr=0.001"),
        ({"betas": [0.9, 0.999]}, "betas: [0.9, 0.999], ours has optimizer.betas=[0.9, 0.99]"),
        ({"betas": [0.9]}, "betas: [0.9], ours"),
        ({"per_gpu": 9}, "per_gpu: 72, ours has batch_size=64"),
        ({"per_gpu": None}, "per_gpu: None cannot be understood"),
        ({"clip": 1.0}, "clip: 1.0, ours has no clip_grad"),
        ({"nesterov": True}, "nesterov: True, where only False"),
        ({"nesterov": 0}, "nesterov: 0, where only False"),
        ({"swa": True}, "swa: True: nothing is known of this key"),
    ],
)
def test_settings_that_differ(planted: dict[str, Any], message: str) -> None:
    (difference,) = compare({**FILE, **planted}, ROW, TABLE).differences
    assert difference.startswith(message)


@pytest.mark.parametrize("key", ["lr", "nesterov"])
def test_a_key_dropped_from_the_file(key: str) -> None:
    settings = {name: value for name, value in FILE.items() if name != key}
    assert compare(settings, ROW, TABLE).differences == (f"{key}: not in the file",)
    assert bool(compare(settings, ROW, replace(TABLE, partial=True)).differences) == (key == "lr")


def test_a_key_dropped_from_ours() -> None:
    ours = recipe(optimizer={"betas": [0.9, 0.99]}, batch_size=64)
    assert compare(FILE, ours, TABLE).differences == ("lr: 0.001, ours has no optimizer.lr",)


def timm_args() -> dict[str, Any]:
    """What an args.yaml of imagenet/vit_s_150_i has in it, of its own for what is converted."""
    row = load("imagenet/vit_s_150_i")
    args: dict[str, Any] = {}
    for key, rule in timm.TABLE.rules.items():
        match rule:
            case Ours(where, None):
                args[key] = row.get(where)
            case Must(value):
                args[key] = value
            case _:
                args[key] = None
    return args | {
        "amp": True,
        "aug_repeats": 0,
        "batch_size": 256,
        "bce_loss": True,
        "dataset": "",
        "interpolation": "",
        "model_ema": False,
        "model_ema_decay": 0.9998,
        "lr_cycle_decay": 0.5,
    }


@pytest.mark.parametrize(
    ("planted", "key"),
    [
        ({}, None),
        ({"experiment": "bs4096", "batch_size": 256}, "batch_size"),
        ({"aug_repeats": 3}, "aug_repeats"),
        ({"bce_loss": False}, "bce_loss"),
        ({"crop_pct": 0.95}, "crop_pct"),
        ({"img_size": 256}, "img_size"),
        ({"interpolation": "bilinear"}, "interpolation"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean"),
        ({"amp": False}, "amp"),
        ({"jsd_loss": True}, "jsd_loss"),
        ({"warmup_lr": 1e-6}, "warmup_lr"),
    ],
)
def test_timm_settings(planted: dict[str, Any], key: str | None) -> None:
    comparison = compare(timm_args() | planted, load("imagenet/vit_s_150_i"), timm.TABLE)
    assert {difference.split(":")[0] for difference in comparison.differences} - {"input_size"} == (
        set() if key is None else {key}
    )


def test_averaged_weights_are_two_keys_of_theirs_and_one_of_ours() -> None:
    args = timm_args() | {"model_ema": True}
    row = load("imagenet/vit_s_150_i")
    assert len(compare(args, row, timm.TABLE).differences) == 2
    assert compare(args, changed(row, ema_decay=0.9998), timm.TABLE).differences == ()


GLUE = {
    "common.fp16": True,
    "common.fp16_init_scale": 4,
    "common.fp16_scale_window": 128,
    "common.log_interval": 200,
    "common.threshold_loss_scale": 1,
    "task._name": "sentence_prediction",
    "task.init_token": 0,
    "task.separator_token": 2,
    "task.num_classes": 2,
    "task.max_positions": 512,
    "checkpoint.best_checkpoint_metric": "accuracy",
    "checkpoint.maximize_best_checkpoint_metric": True,
    "distributed_training.distributed_world_size": 1,
    "criterion._name": "sentence_prediction",
    "dataset.batch_size": 16,
    "dataset.max_tokens": 4400,
    "optimizer._name": "adan",
    "optimizer.weight_decay": 0.01,
    "optimizer.adan_betas": "(0.98,0.99,0.99)",
    "optimizer.adan_eps": 1e-8,
    "lr_scheduler._name": "polynomial_decay",
    "lr_scheduler.warmup_updates": 122,
    "optimization.clip_norm": 0.0,
    "optimization.lr": [2e-5],
    "optimization.max_update": 2036,
    "optimization.max_epoch": 10,
    "model._name": "roberta",
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
}


@pytest.mark.parametrize(
    ("planted", "key"),
    [
        ({}, None),
        ({"optimizer.adan_betas": "(0.98,0.92,0.99)"}, "optimizer.adan_betas"),
        ({"optimizer.adam_betas": "(0.9,0.99)"}, "optimizer.adam_betas"),
        ({"optimization.update_freq": [2]}, "optimization.update_freq"),
        ({"distributed_training.distributed_world_size": 2}, "distributed_training.distributed_world_size"),
        ({"optimization.clip_norm": 0.5}, "optimization.clip_norm"),
        ({"lr_scheduler._name": "cosine"}, "lr_scheduler._name"),
        ({"lr_scheduler._name": "fixed"}, "lr_scheduler._name"),
        ({"criterion.regression_target": True}, "criterion.regression_target"),
        ({"common.seed": 2}, "common.seed"),
        ({"checkpoint.best_checkpoint_metric": "loss"}, "checkpoint.best_checkpoint_metric"),
        ({"checkpoint.reset_optimizer": False}, "checkpoint.reset_optimizer"),
        ({"common.fp16_init": 4}, "common.fp16_init"),
    ],
)
def test_fairseq_settings(planted: dict[str, Any], key: str | None) -> None:
    settings = GLUE | planted
    found = {
        d.split(":")[0] for d in compare(settings, load("glue/rte"), fairseq.table(settings)).differences
    }
    batch = {"dataset.batch_size"} if key and ("update_freq" in key or "world_size" in key) else set()
    assert found - batch - {"distributed_training.distributed_world_size"} | found & {key} == {key} - {None}


# --- logs -----------------------------------------------------------------------------------------


def evidence(format: str, records: list[dict[str, Any]], row: Row | None = None, **rest: Any) -> Evidence:
    table = pd.DataFrame(records).assign(segment=0, file=0, line=range(1, len(records) + 1))
    log = Log(format, [Path("log")], table, {}, **rest)
    return Evidence(row or Row(name="table/row"), logs=[log], log=log)


def planted(found: Evidence, record: int, **values: Any) -> Evidence:
    """The evidence with other values in a record of the log."""
    found = copy.deepcopy(found)
    for log in {id(log): log for log in (*found.logs, found.log) if log is not None}.values():
        for key, value in values.items():
            log.table.loc[record, key] = value
    return found


TXL = recipe(
    steps=40,
    batch_size=2,
    measure_every=8,
    run={"log_every": 2},
    optimizer={"lr": 1e-3},
    schedule=dict(name="cosine", join="scale", per="step", warmup_steps=4),
    data={"train_tokens": 101, "tgt_len": 4},  # 2 streams of 50 tokens: 13 batches
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
    notices(transformer_xl.validation, found, changed(TXL, measure_every=9), "9: in the configuration alone")


BERT = recipe(
    steps=40,
    batch_size=4,
    measure_every=20,
    measure_epochs=2,
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
    notices(fairseq.validation, found, changed(BERT, measure_every=18), "18: in the configuration alone")
    notices(fairseq.validation, found, changed(BERT, measure_epochs=3), ": in the log alone")
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
    accumulate=2,
    optimizer={"lr": 2e-3},
    schedule=dict(name="cosine", join="shift", per="step", warmup_epochs=2, min_lr=1e-8),
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
    notices(mae.lr, found, changed(MAE, accumulate=1), "relative error")
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


def epochs_log(count: int) -> Evidence:
    return evidence("timm", [{"record": "epoch", "epoch": epoch, "eval_loss": 1.0} for epoch in range(count)])


def test_a_departure_passes_where_it_is_stated() -> None:
    row = load("imagenet/vit_s_150_i")  # follows its settings, not its log of 170 epochs
    assert _or_departed("log", timm.epochs, epochs_log(160), row) == Check(True, "160", 160)
    result = _or_departed("log", timm.epochs, epochs_log(170), row)
    assert (result.passed, result.says) == (True, "170 *")
    assert result.notes == ("with epochs=160, from which the row departs",)
    assert _or_departed("log", timm.epochs, epochs_log(165), row).passed is False
    # the row says that it follows its settings: an override cannot bring it back to them
    assert _or_departed("settings", timm.epochs, epochs_log(170), row).passed is False


def test_a_gap_in_the_epochs() -> None:
    found = planted(epochs_log(160), 7, epoch=8)
    notices(timm.epochs, found, load("imagenet/vit_s_150_i"), "7: in the configuration alone")


# --- files, figures, parameters, verdicts ---------------------------------------------------------


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
    assert build({"name": "unheard_of"}) is None


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
