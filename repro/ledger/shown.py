"""Rows of the ledger and own runs in the words of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from repro import hardware
from repro.errors import UserError
from repro.ledger.describe import disputed
from repro.ledger.rows import COMMIT, REPOSITORY, ROOT, Figure, Recipe, Row
from repro.ledger.runs import describe, last, value
from repro.logs import read
from repro.runs import METRICS, Run

# Folders of configs/paper in the order and with the headings of the report; others come after them.
TASKS = {
    "imagenet": "Image classification",
    "swin": "Image classification, Swin",
    "large_batch": "Image classification in large batches",
    "mae": "Masked autoencoders",
    "wikitext103": "Language modelling, Transformer-XL",
    "lstm": "Language modelling, LSTM",
    "bert": "BERT, pre-training",
    "glue": "BERT, fine-tuned on GLUE",
    "gpt2": "Code generation, GPT-2",
    "moe": "Mixtures of experts",
    "adam_mini": "Adam-mini's examples",
    "text_to_3d": "Text to 3D",
    "memory": "Memory and time of a step",
}
# What a verdict of the replay begins with: its key in the page's filter, its words, its class.
STATES = {
    "verified": ("agrees", "agrees with the files", "good"),
    "differs": ("differs", "differs from the files", "bad"),
    "log not here": ("absent", "files not on this machine", "wait"),
    "nothing released": ("unreleased", "no files released", "soft"),
    "not verified yet": ("unchecked", "not checked yet", "wait"),
}
CHECKS = {
    "files": "released files", "settings": "settings", "lr": "learning rates", "epochs": "lengths",
    "validation": "positions of validations", "parameters": "parameters",
    "figure": "published, of best and final",
}  # fmt: skip
UNITS = {"ms": "ms", "mb": "MB", "m": "millions"}  # last part of a metric's name: its unit
WORDS = {
    "adam": "Adam", "adan": "Adan", "lr": "learning rate", "valid": "validation", "eval": "validation",
    "train": "training", "ema": "averaged weights,", "pearson": "Pearson's r", "matthews": "Matthews",
    "f1": "F1", "ppl": "perplexity", "top1": "top-1 accuracy",
}  # fmt: skip


def words(metric: str, unit: str = "") -> str:
    """Return the name of a metric in words: `adam_peak_mb`, in MB, is `Adam peak`."""
    parts = metric.split("_")
    if unit and UNITS.get(parts[-1]) == unit:
        parts.pop()
    return " ".join(WORDS.get(part, part) for part in parts)


@dataclass(frozen=True)
class OwnRun:
    """A finished run of ours.

    Attributes:
        metric: by which it is judged, without the mark of averaged weights.
        values: of that metric, by epoch.
    """

    run: Run
    path: str
    what: str
    data: str
    optimizer: str
    lr: str
    result: str
    time: str
    commit: str
    metric: str
    values: pd.Series


def own_run(run: Run) -> OwnRun:
    """Return a finished run as the page shows it.

    Raises:
        UserError: its records cannot be read, or its files do not belong together.
    """
    path, summary, config = run.path, run.summary, run.config
    assert summary is not None
    log = read(path / METRICS)
    if log.faults:
        raise UserError(log.faults[0])
    try:
        metric = summary["metric"]
        measured = log.table.dropna(subset=[metric])
        return OwnRun(
            run,
            str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path),
            f"{summary['model']} on {config.get('data.name')}, {summary['epochs']} epochs",
            str(config.get("data.name")),
            summary["optimizer"],
            f"{config['optimizer.lr']:g}",
            f"{words(metric)} {summary['final'][metric]:.4g} (best {summary['best'][metric]:.4g})",
            hardware.show_time(summary["seconds"] / 3600),
            (run.starts[-1].get("commit") or "")[:10] if run.starts else "",
            metric.removeprefix("ema_"),
            pd.Series(measured[metric].to_numpy(), measured["epoch"].to_numpy()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: its files do not belong together ({type(error).__name__}: {error})"
        ) from error


@dataclass
class Shown:
    """A row of the ledger as the page shows it.

    Attributes:
        verdict: of the replay.
        checks: of the replay, as in results/ledger/verify.json.
        runs: our own, finished.
    """

    recipe: Recipe
    verdict: str
    checks: dict[str, dict[str, Any]]
    runs: Sequence[OwnRun] = ()

    @property
    def row(self) -> Row:
        """The row."""
        return self.recipe.row

    @property
    def table(self) -> str:
        """Its folder in configs/paper."""
        return self.row.name.partition("/")[0]

    @property
    def optimizer(self) -> str:
        """The optimizer's name on the command line; empty if the row compares several."""
        return str((self.recipe.config.get("optimizer") or {}).get("name", ""))

    @property
    def state(self) -> tuple[str, str, str]:
        """The verdict's key, words and class, see STATES."""
        return next(state for begin, state in STATES.items() if self.verdict.startswith(begin))

    @property
    def statuses(self) -> list[str]:
        """The values of the filter by status under which the row is shown."""
        others = {
            "published": self.row.is_published,
            "unpublished": not self.row.is_published,
            "own": bool(self.runs),
            "waiting": self.row.status != "runnable",
        }
        return [self.state[0], *(name for name, holds in others.items() if holds)]

    @property
    def time(self) -> str:
        """The estimated time on one H100."""
        return "" if self.row.cost is None else hardware.show_time(hardware.gpu_hours(self.row.cost, "H100"))

    @property
    def figures(self) -> list[tuple[str, Figure]]:
        """The published figures with their names in words."""
        return [(words(figure.metric, figure.unit), figure) for figure in self.row.published]

    @property
    def logged(self) -> list[str]:
        """The best and the final value of each figure in the released log."""
        return [f"{each.best:g}, {each.final:g}" for each in self.row.published if each.best is not None]

    @property
    def shows(self) -> str:
        """Which of the log's values the published ones are, if there is a log and a number: best, final."""
        found = [each.shows for each in self.row.published if None not in (each.value, each.best)]
        return ", ".join(dict.fromkeys(found)).replace("both", "best and final")

    @property
    def own(self) -> str:
        """Our newest result in a few words; one of a proxy begins with that."""
        newest = last((each.run for each in self.runs), self.row.name)
        if newest is None:
            return ""
        about = describe(newest, self.recipe)
        if newest.scale == "proxy":
            return f"proxy on {newest.config.get('data.name')}: {about.partition(' (')[0]}"
        return about

    @cached_property
    def notes(self) -> list[str]:
        """Everything known to be uncertain about the row."""
        unknown = [f"Not published: {key}: {what}" for key, what in self.row.unpublished.items()]
        chosen = [f"Chosen by us: {key}: {why}" for key, why in self.row.chosen.items()]
        return [*map(disputed, self.row.discrepancies), *unknown, *chosen]

    @property
    def files(self) -> list[tuple[str, str]]:
        """The path and the address of each released file."""
        return [
            (file.path, f"https://github.com/{REPOSITORY}/blob/{COMMIT[:10]}/{file.path}")
            for file in self.row.files
        ]

    @property
    def replayed(self) -> list[tuple[str, str]]:
        """The checks of the replay that had something to check against: what, and what came out."""
        return [
            (CHECKS.get(name, name), check["says"].removesuffix(" *"))
            for name, check in self.checks.items()
            if check["passed"] is not None and check["says"] != "unknown"
        ]


def distance(shown: Shown) -> float | None:
    """Return how far our newest result at the published scale is from the published one, relative to it.

    None without such a run, without a published number, or if the run has another metric.
    """
    figures = [figure for figure in shown.row.published if figure.value is not None]
    newest = last((each.run for each in shown.runs if each.run.scale == "paper"), shown.row.name)
    if newest is None or not figures:
        return None
    found = value(newest, figures[0])
    if found is None or found[0] != figures[0].metric:
        return None
    return abs(found[1] / figures[0].goal - 1)
