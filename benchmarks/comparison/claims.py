"""The paper's claims, each with what our runs say of it at the size of a proxy.

Of a task the verdict is `yes`, `no`, or `open` where an interval has both signs. A claim is confirmed at this
scale if more tasks say yes than all others, and not confirmed if more say no; else open.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.comparison.design import BATCHES, EXPERIMENTS, OPTIMIZERS, REFERENCE, TASKS
from benchmarks.comparison.measures import Estimate, difference, finals, tolerated
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.comparison.search import best
from benchmarks.comparison.todo import space, tuned

YES, NO, OPEN = "yes", "no", "open"
ROBUST = 0.02  # of a loss: how much it may change, for a claim of robustness
LARGER = 5.0  # times the learning rate: the lower end of the paper's 5 to 10
USABLE = 0.05  # of the best loss: what a learning rate may cost to count as tolerated


@dataclass
class Finding:
    """What a claim comes to on one task."""

    task: str
    verdict: str
    what: str


@dataclass
class Claim:
    """A claim of the paper, how it is judged, and what was found."""

    name: str
    says: str
    judged: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The verdict over all tasks."""
        counts = {kind: sum(f.verdict == kind for f in self.findings) for kind in (YES, NO, OPEN)}
        if not self.findings:
            return "not run yet"
        if counts[YES] > counts[NO] + counts[OPEN]:
            return "confirmed at this scale"
        if counts[NO] > counts[YES] + counts[OPEN]:
            return "not confirmed at this scale"
        return "open at this scale"


def claims(records: Sequence[Record]) -> list[Claim]:
    """Return all claims with what the records say of them."""
    return [
        Claim(
            "half",
            "Adan reaches in half of the steps what AdamW reaches in all.",
            "yes: the interval of Adan's loss after half the steps minus AdamW's after all lies below 0",
            list(_half(records)),
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
    ]


def judge(found: Estimate) -> str:
    """Return yes for a difference below 0, no for one above, open where the interval has both signs."""
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


def _rates(records: Sequence[Record]) -> Iterator[Finding]:
    for task in TASKS:
        both = {name: tuned(records, task, name) for name in ("adan", REFERENCE)}
        if not all(both.values()):
            continue
        ranges = {name: tolerated(of, space(task, name), USABLE) for name, of in both.items()}
        peak = {name: space(task, name).lr(best(of).octave) for name, of in both.items()}
        ratio = ranges["adan"].highest / ranges[REFERENCE].highest
        below = OPEN if ranges["adan"].open_above else NO  # larger ones were not tried
        yield Finding(
            task,
            YES if ratio >= LARGER else below,
            f"{ratio:.1f} times ({ranges['adan'].highest:.2g} against {ranges[REFERENCE].highest:.2g}); best "
            f"ones {peak['adan'] / peak[REFERENCE]:g} times ({peak['adan']:g} against {peak[REFERENCE]:g})",
        )


def _variants(records: Sequence[Record], name: str, task: str) -> dict[str, list[float]]:
    found = select(records, task=task, optimizer="adan", stage=name)
    return {
        variant: [record.final for record in found if record.variant == variant]
        for variant in EXPERIMENTS[name].variants
        if any(record.variant == variant for record in found)
    }


def _betas(records: Sequence[Record]) -> Iterator[Finding]:
    experiment = EXPERIMENTS["betas"]
    for task in experiment.tasks:
        variants, known = _variants(records, "betas", task), select(records, task=task, optimizer="adan")
        default = [r.final for r in known if r.stage == Stage.SEEDS and r.seed in experiment.seeds]
        if not default or len(variants) < len(experiment.variants):
            continue
        base = statistics.fmean(default)
        changes = {name: statistics.fmean(losses) / base - 1 for name, losses in variants.items()}
        worst = max(changes, key=lambda name: changes[name])
        least = min(changes, key=lambda name: changes[name])
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
    experiment = EXPERIMENTS["restart"]
    for task in experiment.tasks:
        for variant, losses in _variants(records, "restart", task).items():
            runs = select(records, task=task, optimizer="adan", stage=Stage.SEEDS)
            without = [record.final for record in runs if record.seed in experiment.seeds]
            if without:
                found = difference(losses, without)
                yield Finding(task, judge(found), f"{variant}: {found.format('+.2g')}")
