"""The paper's claims and those of Prodigy, each with the verdict of our runs at the size of a proxy.

The verdict on a task is `yes`, `no`, or `open` if an interval has both signs. A claim is confirmed at this
scale if more than half of the tasks say yes, not confirmed if more than half say no, and otherwise open.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.comparison.design import BATCHES, COMPARISON, EXPERIMENTS, OPTIMIZERS, REFERENCE, TASKS
from benchmarks.comparison.measures import (
    Estimate,
    difference,
    finals,
    in_times,
    multiplier,
    tolerated,
    untuned_finals,
)
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import best
from benchmarks.comparison.todo import tuned

YES, NO, OPEN = "yes", "no", "open"
ROBUST = 0.02  # share of a loss that may change, for a claim of robustness
LARGER = 5.0  # times the learning rate: the lower end of the paper's 5 to 10
USABLE = 0.05  # share of the best loss that a tolerated learning rate may cost
TWICE = 2.0  # times AdamW's steps for Adan's loss: its "half the steps"
NEAR = 0.03  # share of a tuned optimizer's loss that one without tuning may cost


@dataclass
class Finding:
    """The verdict on a claim for one task."""

    task: str
    verdict: str
    what: str


@dataclass
class Claim:
    """A claim, how it is judged, and the findings."""

    name: str
    says: str
    judged: str
    findings: list[Finding]

    @property
    def verdict(self) -> str:
        """The verdict over all tasks."""
        if not self.findings:
            return "not run yet"
        verdicts, half = [finding.verdict for finding in self.findings], len(self.findings) / 2
        if verdicts.count(YES) > half:
            return "confirmed at this scale"
        return "not confirmed at this scale" if verdicts.count(NO) > half else "open at this scale"


def claims(records: Sequence[Record]) -> list[Claim]:
    """Return all claims with their findings in the records."""
    return [
        Claim(
            "half",
            "Adan reaches in half of the steps what AdamW reaches in all.",
            "yes: the interval of Adan's loss after half the steps minus AdamW's after all lies below 0",
            list(_half(records)),
        ),
        Claim(
            "multiplier",
            f"AdamW needs {TWICE:g} times Adan's steps for Adan's result.",
            f"yes: the interval of the step multiplier is at least {TWICE:g}; no: it is below",
            list(_multiplier(records)),
        ),
        Claim(
            "lr",
            f"Adan tolerates {LARGER:g} to 10 times the learning rates of AdamW.",
            f"yes: the largest learning rate that is within {USABLE:.0%} of the own best loss is at least "
            f"{LARGER:g} times AdamW's",
            list(_rates(records)),
        ),
        Claim(
            "betas",
            EXPERIMENTS["betas"].claim,
            f"yes: no other beta of the list changes the mean loss by more than {ROBUST:.0%} for the worse",
            list(_betas(records)),
        ),
        Claim(
            "batch",
            "Adan keeps its result over batches from small to large, where LAMB does not.",
            "yes: from its best to its worst batch, Adan's loss grows by less than LAMB's",
            list(_batch(records)),
        ),
        Claim(
            "prox",
            EXPERIMENTS["prox"].claim,
            "yes: with weight decay 0.5 the proximal form's loss minus the other's is negative",
            list(_prox(records)),
        ),
        Claim(
            "restart",
            EXPERIMENTS["restart"].claim,
            "yes, restarts help: the interval of the loss with them minus that without lies below 0",
            list(_restart(records)),
        ),
        *(
            Claim(
                name,
                f"{about.title} with the learning rate 1, not tuned, is as good as tuned "
                f"{OPTIMIZERS[about.rival].title}. (Not a claim of the paper.)",
                f"yes: the mean loss is at most {NEAR:.0%} larger",
                list(_untuned(records, name)),
            )
            for name, about in OPTIMIZERS.items()
            if about.rival
        ),
    ]


def judge(found: Estimate) -> str:
    """Return yes for a difference below 0, no for one above, open if the interval has both signs."""
    if math.isnan(found.mean) or found.low <= 0 <= found.high:
        return OPEN
    return YES if found.high < 0 else NO


def _half(records: Sequence[Record]) -> Iterator[Finding]:
    for task in TASKS:
        half, whole = finals(records, task, "adan", Stage.HALF), finals(records, task, REFERENCE)
        if half and whole:
            found = difference(half, whole)
            what = f"{statistics.fmean(half):.4g} after half, AdamW {statistics.fmean(whole):.4g} after all"
            yield Finding(task, judge(found), f"{what}: {found.format('+.2g')}")


def _multiplier(records: Sequence[Record]) -> Iterator[Finding]:
    for task in TASKS:
        if (found := multiplier(records, task, "adan")) is not None:
            verdict = YES if found.low >= TWICE else NO if found.high < TWICE else OPEN
            yield Finding(task, verdict, in_times(found))


def _rates(records: Sequence[Record]) -> Iterator[Finding]:
    for task in TASKS:
        both = {name: tuned(records, task, name) for name in ("adan", REFERENCE)}
        if not all(both.values()):
            continue
        ranges = {name: tolerated(of, COMPARISON.space(task, name), USABLE) for name, of in both.items()}
        peak = {name: COMPARISON.space(task, name).lr(best(of).octave) for name, of in both.items()}
        ratio = ranges["adan"].highest / ranges[REFERENCE].highest
        below = OPEN if ranges["adan"].open_above else NO  # larger ones were not tried
        yield Finding(
            task,
            YES if ratio >= LARGER else below,
            f"{ratio:.1f} times ({ranges['adan'].highest:.2g} against {ranges[REFERENCE].highest:.2g}); best "
            f"ones {peak['adan'] / peak[REFERENCE]:g} times ({peak['adan']:g} against {peak[REFERENCE]:g})",
        )


def _variants(records: Sequence[Record], name: str, task: str) -> dict[str, list[float]]:
    """Return the final losses of an experiment on a task, by variant."""
    found = select(records, task=task, optimizer="adan", stage=name)
    losses = {v: [r.final for r in found if r.variant == v] for v in EXPERIMENTS[name].variants}
    return {variant: of for variant, of in losses.items() if of}


def _default(records: Sequence[Record], name: str, task: str) -> list[float]:
    """Return Adan's final losses on a task with the seeds of an experiment."""
    found = select(records, task=task, optimizer="adan", stage=Stage.SEEDS)
    return [record.final for record in found if record.seed in EXPERIMENTS[name].seeds]


def _betas(records: Sequence[Record]) -> Iterator[Finding]:
    for task in EXPERIMENTS["betas"].tasks:
        variants, default = _variants(records, "betas", task), _default(records, "betas", task)
        if not default or len(variants) < len(EXPERIMENTS["betas"].variants):
            continue
        base = statistics.fmean(default)
        changes = {name: statistics.fmean(losses) / base - 1 for name, losses in variants.items()}
        least, worst = min(changes, key=changes.__getitem__), max(changes, key=changes.__getitem__)
        yield Finding(
            task,
            YES if changes[worst] <= ROBUST else NO,
            f"from {changes[least]:+.1%} ({least}) to {changes[worst]:+.1%} ({worst})",
        )


def _batch(records: Sequence[Record]) -> Iterator[Finding]:
    growth: dict[str, float] = {}
    for name in ("adan", "adamw", "lamb"):
        losses = [finals(records, f"batch_{size}", name) for size in BATCHES]
        if not all(losses):
            return
        means = [statistics.fmean(of) for of in losses]
        growth[name] = max(means) / min(means) - 1
    what = ", ".join(f"{OPTIMIZERS[name].title} {growth[name]:+.1%}" for name in growth)
    yield Finding(
        "batch", YES if growth["adan"] < growth["lamb"] else NO, f"from the best to the worst: {what}"
    )


def _prox(records: Sequence[Record]) -> Iterator[Finding]:
    for task in EXPERIMENTS["prox"].tasks:
        variants = _variants(records, "prox", task)
        if len(variants) == 2:
            found = difference(variants["proximal"], variants["as AdamW"])
            yield Finding(task, judge(found), found.format("+.2g"))


def _restart(records: Sequence[Record]) -> Iterator[Finding]:
    for task in EXPERIMENTS["restart"].tasks:
        for variant, losses in _variants(records, "restart", task).items():
            if without := _default(records, "restart", task):
                found = difference(losses, without)
                yield Finding(task, judge(found), f"{variant}: {found.format('+.2g')}")


def _untuned(records: Sequence[Record], name: str) -> Iterator[Finding]:
    rival = OPTIMIZERS[name].rival
    for task in TASKS:
        losses, others = untuned_finals(records, task, name), finals(records, task, rival)
        if losses and others:
            mean, other = statistics.fmean(losses), statistics.fmean(others)
            change = mean / other - 1
            what = f"{mean:.4g}, {OPTIMIZERS[rival].title} {other:.4g}: {change:+.1%}"
            yield Finding(task, YES if change <= NEAR else NO, what)
