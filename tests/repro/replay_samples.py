"""Rows and logs, small ones, for the tests of replay; and ways to plant a difference in them."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

from repro.ledger import rows
from repro.ledger.rows import Recipe, Row
from repro.logs.log import Log
from repro.verify import timm
from repro.verify.checks import Evidence
from repro.verify.settings import Must, Ours

load = cache(rows.load)


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


def epochs_log(count: int) -> Evidence:
    return evidence("timm", [{"record": "epoch", "epoch": epoch, "eval_loss": 1.0} for epoch in range(count)])
