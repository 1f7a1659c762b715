"""Causes that the settings prove, or nearly so."""

import itertools
import math
import re
import statistics

from repro.doctor.finding import Finding, listed, override, setting
from repro.doctor.record import Record, Series, Unjudged

# As a decay factor of the slowest average, nobody uses less. Adan's paper writes 1 - beta.
PAPER_BETA = 0.5


def paper_betas(run: Record) -> Finding | None:
    """Betas in the convention of Adan's paper, as (0.02, 0.08, 0.01), where decay factors are expected."""
    betas = run.betas
    if not betas or max(betas) >= PAPER_BETA:
        return None
    return Finding(
        "paper_betas",
        f"betas={listed(betas)}: the longest average forgets {1 - max(betas):.0%} of its content in a step. "
        "Adan's paper writes 1 - beta",
        setting(run, "optimizer.betas", override([1 - beta for beta in betas])),
    )


WHOLE_RUN = 1.0  # memory of the first moment over the run's steps: it still averages the first gradients
HALF_A_RUN = 0.5
LONG_SECOND = 10.0  # of the second moment: bias correction makes a mean of it, which only reacts slowly


def betas_too_long(run: Record) -> Finding | None:
    """Averages longer than the run: 1 / (1 - beta) steps against its steps."""
    betas, steps, name = run.betas, run.steps, str(run.config.get("optimizer.name"))
    if not steps:
        raise Unjudged("the number of optimizer steps")
    if name.startswith("schedule_free"):
        return None  # its first beta is an interpolation, not an average
    first, second = _memory(betas[0]), _memory(betas[1] if name == "ademamix" else betas[-1])
    if first < HALF_A_RUN * steps and second < LONG_SECOND * steps:
        return None
    long_first = first >= HALF_A_RUN * steps
    memory = first if long_first else second
    which = "the first moment" if long_first else "the second moment"
    cured = [min(beta, 1 - 10 / steps) if steps > 20 else 0.5 for beta in betas]
    return Finding(
        "betas_too_long",
        f"betas={listed(betas)}: {which} averages over {memory:,.0f} steps, and the run has {steps:,.0f}",
        setting(run, "optimizer.betas", override(cured)),
        likely=first >= WHOLE_RUN * steps,
    )


NORM = re.compile(r"(^|[._])(\w*norm\w*|ln_?\w*|bn\d*|layernorm)\.weight$", re.IGNORECASE)
SHRUNK = 0.7  # of a norm's weights, which begin as ones; those of healthy runs stay within 10 %
PULL = 0.3  # weight decay times the sum of learning rates: weights lose 1 - exp(-PULL) to it


def decay_on_norms(run: Record) -> Finding | None:
    """Weight decay on the weights of norms and on biases, which pulls them to zero."""
    decay, on = run.number("optimizer.weight_decay"), run.config.get("optimizer.decay_bias_and_norm")
    if on is None:
        raise Unjudged("a log that states whether norms and biases decay")
    if not on or not decay:
        return None
    pull = decay * _integral(run)
    if pull < PULL:
        return None
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for sample in run.samples:
        for name, one in sample.get("parameters", {}).items():
            if NORM.search(name) and one.get("weight_norm"):
                first.setdefault(name, one["weight_norm"])
                last[name] = one["weight_norm"]
    shares = [last[name] / first[name] for name in first]
    seen = bool(shares) and statistics.median(shares) < SHRUNK
    if shares and not seen:
        return None
    what = (
        f"; the weights of {len(shares)} norms fell to {statistics.median(shares):.0%} of their first norm"
        if seen
        else ", but no sample of the monitor shows what became of them"
    )
    return Finding(
        "decay_on_norms",
        f"weight_decay={decay:g} applies to norms and biases, and alone would shrink them by "
        f"{1 - math.exp(-pull):.0%} in this run{what}",
        setting(run, "optimizer.decay_bias_and_norm", "false"),
        likely=seen,
    )


def _integral(run: Record) -> float:
    """Return the sum of the learning rates of all steps so far."""
    if not run.lr or run.position != "step":
        return 0.0
    points: Series = [(0.0, run.lr[0][1]), *run.lr]
    return sum((b[0] - a[0]) * b[1] for a, b in itertools.pairwise(points))


def _memory(beta: float) -> float:
    """Return the steps over which an average with a decay factor looks back."""
    return 1 / (1 - beta) if beta < 1 else math.inf
