"""The paper's claims in the lab, each with a rule, findings and one of four verdicts.

A finding is about one task at one length: yes, no, open (an interval holds both), or "regime not reached":
no, in runs too short for what the claim speaks of. A claim is confirmed, refuted or not reached if more than
half of its tasks say so in their longest runs, and otherwise open.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.comparison.claims import NO, OPEN, YES
from benchmarks.comparison.design import REFERENCE
from benchmarks.comparison.measures import Estimate, in_times, steps_to
from benchmarks.comparison.records import Record, Stage, select
from benchmarks.lab.design import ALL_TASKS, BATCHES, EXPERIMENTS, LENGTHS, OPTIMIZERS, PAPER_STEPS, TASKS
from benchmarks.lab.measures import (
    best_lr,
    change,
    finals,
    ladder,
    least_change,
    least_multiplier,
    multiplier,
    paired,
    trend,
)
from benchmarks.lab.predictions import Prediction, predicted
from benchmarks.lab.todo import length

NOT_REACHED = "regime not reached"
TWICE = 2.0  # AdamW's steps for Adan's loss: the paper's "half the steps"
LARGER = 5.0  # the lower end of the paper's 5 to 10 times the learning rate
OCTAVE = 2.0  # the distance of the learning rates that were tried
ROBUST = 0.02  # share of a loss that other betas may cost
SAME = 0.01  # share of a loss that smaller states may cost
MEMORIES = 50  # of its longest average, 100 steps, from which on a run is in the paper's regime
LONGEST_MEMORY = 100
VERDICTS = {YES: "confirmed", NO: "refuted", NOT_REACHED: NOT_REACHED}


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim for a task at a length, what was seen, and the least effect that would be."""

    task: str
    steps: int
    verdict: str
    what: str
    least: float | None = None


@dataclass(frozen=True)
class Claim:
    """A claim, the paper's figures behind it, how it is judged, and the findings.

    Attributes:
        effect: the format of the least effect that a test sees, four times of five.
    """

    name: str
    says: str
    paper: str
    judged: str
    findings: Sequence[Finding]
    tasks: Sequence[str] = tuple(TASKS)
    effect: str = "{:.1%} of the loss"

    def power(self, found: Finding) -> str:
        """Return the least effect that a finding would have told; empty if it is not known."""
        return "" if found.least is None else self.effect.format(found.least)

    @property
    def powers(self) -> str:
        """The smallest and the largest of these."""
        of = sorted(found.least for found in self.findings if found.least is not None)
        return " to ".join(dict.fromkeys(map(self.effect.format, (*of[:1], *of[-1:]))))

    @property
    def verdict(self) -> str:
        """The verdict over all tasks, those to come included: that of most of them, in their longest runs."""
        if not self.findings:
            return "not run yet"
        longest = {finding.task: finding.steps for finding in self.findings}  # lengths grow
        last = [
            finding.verdict
            for finding in self.findings
            if finding.task in self.tasks and finding.steps == longest[finding.task]
        ]
        for verdict, word in VERDICTS.items():
            if last.count(verdict) > len(self.tasks) / 2:
                return word
        return "open"

    @property
    def seen(self) -> str:
        """Which verdicts there are so far, and on which tasks at which lengths."""
        lengths: dict[str, dict[str, list[str]]] = {}
        for found in self.findings:
            title = ALL_TASKS[found.task].title
            lengths.setdefault(found.verdict, {}).setdefault(title, []).append(f"{found.steps:,}")
        return "; ".join(
            f"{verdict}: " + ", ".join(f"{title} at {', '.join(of)} steps" for title, of in tasks.items())
            for verdict, tasks in lengths.items()
        )


def claims(records: Sequence[Record], predictions: Sequence[Prediction]) -> list[Claim]:
    """Return all claims with their findings in the records."""
    return [
        Claim(
            "half the steps",
            f"AdamW needs {TWICE:g} times Adan's steps for Adan's result.",
            "Transformer-XL, WikiText-103: perplexity 24.26 after 100,000 steps of Adan at a learning rate "
            "of 1e-3, 24.24 after 200,000 of Adam at 2.5e-4; how much each was tuned is not known",
            f"by the interval of the step multiplier: yes from {TWICE:g} on, no below; a no becomes 'regime "
            f"not reached' if the upper end of the trend, continued to {PAPER_STEPS:,} steps, is {TWICE:g} "
            "or more, or if there is no trend yet",
            list(_half(records)),
            effect="{:.2f} times the steps",
        ),
        Claim(
            "learning rate",
            f"Adan's best learning rate is {LARGER:g} to 10 times AdamW's.",
            "BERT 1e-3 against Adam's 1e-4, Transformer-XL 1e-3 against 2.5e-4; no sweep was published. The "
            "paper itself excepts MAE and LSTM",
            f"yes if the ratio of the tuned ones, each the minimum of a parabola, is at least {LARGER:g}; "
            f"open from {LARGER / 2**0.5:.1f}, half an octave below",
            list(_rates(records, predictions)),
            tuple(ALL_TASKS),
            effect="a factor of {:g}, the distance of the rates tried",
        ),
        Claim(
            "betas",
            "Adan's result depends little on its betas.",
            "one setting, (0.98, 0.92, 0.99), in nearly all published runs",
            f"each beta changed alone, the learning rate tuned again: no if the interval of one lies above "
            f"{ROBUST:+.0%}, yes if all end below it; a no becomes 'regime not reached' below "
            f"{MEMORIES * LONGEST_MEMORY:,} steps",
            list(_variants(records, "betas", _robust)),
        ),
        Claim(
            "memory",
            "In short runs, averages that keep their share of the run are better than the default's. (Not a "
            "claim of the paper.)",
            "none",
            "yes if the interval of the change lies below 0, no above",
            list(_variants(records, "memory", _sign)),
        ),
        Claim(
            "batches",
            "Adan keeps its speed over batches from small to large, where LAMB does not.",
            "ImageNet, batches of 1,024 to 32,768; no table of it is in the ledger",
            "steps to the worst final loss of all these runs, AdamW's over the own, in each batch; their "
            "spread is the largest over the smallest: yes if the interval of LAMB's spread over Adan's, seed "
            "by seed, lies above 1, no below; decided once the largest batch has run",
            list(_batches(records)),
            tuple(BATCHES)[-1:],
            effect="a spread {:.2f} times as large",
        ),
        Claim(
            "proximal decay",
            "Adan's proximal weight decay is better than AdamW's form of it.",
            "all published runs have the proximal form",
            "yes if the interval of the proximal form's loss minus the other's lies below 0, no above",
            list(_prox(records)),
        ),
        Claim(
            "restart",
            "Restarts of the moments help.",
            "part of the algorithm; off in nearly all published runs",
            "yes if the interval of the change lies below 0, no above",
            list(_variants(records, "restart", _sign)),
        ),
        *(
            Claim(
                f"states in {word}",
                f"Adan with states in {word} ends at the same loss. (Not a claim of the paper.)",
                "none",
                f"yes if the interval of the change ends below {SAME:+.0%}, no if it lies above",
                list(_states(records, name)),
            )
            for name, word in (("adan_bf16", "bfloat16"), ("adan_int8", "int8"))
        ),
    ]


def _half(records: Sequence[Record]) -> Iterator[Finding]:
    for task in TASKS:
        grows = trend(records, task, "adan")
        for steps in LENGTHS:
            found = multiplier(records, task, "adan", steps)
            if found is None or found.number == 1:  # has no interval
                continue
            least = least_multiplier(records, task, "adan", steps)
            rungs = list(ladder(records, task, steps))
            low = min(found.low, rungs[-1])  # all that is known of one beyond the ladder
            verdict = YES if low >= TWICE else NO if found.high < TWICE else OPEN
            what = in_times(found, rungs)
            if verdict == NO and grows is None:
                verdict = NOT_REACHED
            elif verdict == NO and grows is not None:
                later = found.high * grows.high ** math.log(PAPER_STEPS / steps, 4)
                what += f"; at {PAPER_STEPS:,} steps at most {later:.2f} by the trend"
                verdict = NOT_REACHED if later >= TWICE else NO
            yield Finding(task, steps, verdict, what, least)


def _rates(records: Sequence[Record], predictions: Sequence[Prediction]) -> Iterator[Finding]:
    for task, about in ALL_TASKS.items():
        ours, theirs = best_lr(records, task, "adan"), best_lr(records, task, REFERENCE)
        if ours is None or theirs is None:
            continue
        ratio = ours / theirs
        verdict = YES if ratio >= LARGER else OPEN if ratio >= LARGER / 2**0.5 else NO
        guess = predicted(predictions, task)
        beside = "" if guess is None else f"; {guess.factor:.1f} predicted by `adan_optim.transfer`"
        what = f"{ratio:.1f} ({ours:.2g} against {theirs:.2g}){beside}"
        yield Finding(task, about.tuned, verdict, what, OCTAVE)


def _batches(records: Sequence[Record]) -> Iterator[Finding]:
    """Yield one finding, about all batches in which the three optimizers have run."""
    names = (REFERENCE, "adan", "lamb")
    runs: dict[str, dict[str, list[Record]]] = {}  # by batch and optimizer
    for task in BATCHES:
        found = {name: select(records, task=task, optimizer=name, stage=Stage.SEEDS) for name in names}
        if all(len(each) == ALL_TASKS[task].seeds for each in found.values()):
            runs[task] = {name: sorted(each, key=lambda run: run.seed) for name, each in found.items()}
    if len(runs) < 2:
        return
    last = (run.final for of in runs.values() for each in of.values() for run in each)
    target = max(filter(math.isfinite, last))

    def steps(run: Record) -> float:
        return min(steps_to(run, target), length(run))  # one that failed counts with its whole length

    taken = {name: np.array([[steps(run) for run in of[name]] for of in runs.values()]) for name in names}
    speeds = {name: taken[REFERENCE] / taken[name] for name in names[1:]}  # by batch and seed
    ours, theirs = (np.log(of.max(axis=0) / of.min(axis=0)) for of in speeds.values())  # their spreads
    more = paired((theirs - ours).tolist())
    verdict = YES if more.low > 0 else NO if more.high < 0 else OPEN
    sizes = ", ".join(f"{ALL_TASKS[task].batch:,}" for task in runs)
    means = "; ".join(
        f"{OPTIMIZERS[name].title} {', '.join(f'{mean:.2f}' for mean in of.mean(axis=1))}"
        for name, of in speeds.items()
    )
    ratio = Estimate(math.exp(more.mean), math.exp(more.low), math.exp(more.high), more.number)
    what = f"in batches of {sizes}: {means}; LAMB's spread over Adan's: {ratio.format('.2f')}"
    *_, largest = runs
    yield Finding(largest, ALL_TASKS[largest].tuned, verdict, what, math.exp(least_change(more)))


def _base(records: Sequence[Record], task: str, steps: int) -> dict[int, float]:
    return finals(records, task, "adan", steps)


def _variants(
    records: Sequence[Record], name: str, judge: Callable[[dict[str, Estimate]], str]
) -> Iterator[Finding]:
    """Yield the findings of an experiment whose variants are compared with Adan's own result."""
    asked = EXPERIMENTS[name]
    for task in asked.tasks:
        for steps in asked.lengths:
            found = {
                variant: changed
                for variant in asked.variants
                if (changed := change(
                    finals(records, task, "adan", steps, name, variant), _base(records, task, steps)
                )) is not None
            }  # fmt: skip
            if len(found) == len(asked.variants):
                verdict = judge(found)
                if name == "betas" and verdict == NO and steps < MEMORIES * LONGEST_MEMORY:
                    verdict = NOT_REACHED
                what = "; ".join(f"{variant}: {each.format('+.1%')}" for variant, each in found.items())
                yield Finding(task, steps, verdict, what, max(map(least_change, found.values())))


def _robust(found: dict[str, Estimate]) -> str:
    if any(each.low > ROBUST for each in found.values()):
        return NO
    return YES if all(each.high <= ROBUST for each in found.values()) else OPEN


def _sign(found: dict[str, Estimate]) -> str:
    (each,) = found.values()
    return YES if each.high < 0 else NO if each.low > 0 else OPEN


def _prox(records: Sequence[Record]) -> Iterator[Finding]:
    asked = EXPERIMENTS["prox"]
    for task in asked.tasks:
        for steps in asked.lengths:
            ours, theirs = (finals(records, task, "adan", steps, "prox", v) for v in asked.variants)
            if (found := change(ours, theirs)) is not None:
                verdict, what = _sign({"": found}), found.format("+.1%")
                yield Finding(task, steps, verdict, what, least_change(found))


def _states(records: Sequence[Record], name: str) -> Iterator[Finding]:
    for task in TASKS:
        for steps in LENGTHS:
            found = change(finals(records, task, name, steps), _base(records, task, steps))
            if found is not None:
                verdict = YES if found.high <= SAME else NO if found.low > SAME else OPEN
                yield Finding(task, steps, verdict, found.format("+.2%"), least_change(found))
