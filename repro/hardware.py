"""What a row takes to compute, in GPU-hours: an estimate from a count of operations, not a measurement.

    hours = forward FLOP of a sample * samples * passes / (peak of the GPU * UTILISATION) / 3600

It has the training alone: no measurement on the test set, no waiting for data. It is there to tell a day from
a month: expect a factor of two either way. scripts/plan.py goes further: memory, several GPUs, days, dollars.
"""

from dataclasses import dataclass

from repro.ledger.rows import Cost


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet (NVIDIA's, SXM modules), and what it costs."""

    memory: float  # bytes: the sheet's GB are 1e9, what a card has beyond is CUDA's and the allocator's
    peak: float  # dense tensor-core FLOP/s in bf16 and fp16
    peak_float32: float  # FLOP/s outside tensor cores
    dollars: float  # for an hour of one: our assumption, a round number; see --price of scripts/plan.py


GPUS = {
    "A100-40": Gpu(40e9, 312e12, 19.5e12, 1.5),
    "A100-80": Gpu(80e9, 312e12, 19.5e12, 2.0),
    "H100": Gpu(80e9, 989e12, 67e12, 3.0),
    "H200": Gpu(141e9, 989e12, 67e12, 3.5),
}

# of those whose hours the ledger shows: memory makes no difference there
PEAK = {"A100": GPUS["A100-80"].peak, "H100": GPUS["H100"].peak}

# Share of the peak that training reaches, for all rows and GPUs: our assumption, a round number. Large
# language models usually reach more, small vision models less, because their norms and activations wait for
# memory, and an H100 less of its peak than an A100. A run's own speed is in its summary.json.
UTILISATION = 0.25

# The same by family, for plans: our assumptions, too. What is computed again counts as use, not as progress.
FAMILIES = {"language model": 0.35, "mixture of experts": 0.2, "other": UTILISATION}

ASSUMPTIONS = f"{UTILISATION:.0%} of the peak in bf16 or fp16: " + ", ".join(
    f"{peak / 1e12:.0f} TFLOP/s on an {gpu}" for gpu, peak in PEAK.items()
)


def gpu_hours(cost: Cost, gpu: str) -> float:
    """Return the estimate for one of PEAK's GPUs; with n of them it takes an n-th of it, if all goes well."""
    return cost.flops / (PEAK[gpu] * UTILISATION) / 3600


def show_hours(hours: float) -> str:
    """Return hours with three digits: 1,230 | 45.6 | 0.0123."""
    return f"{hours:,.0f}" if hours >= 99.95 else f"{hours:#.3g}".rstrip(".")


def describe(cost: Cost) -> list[str]:
    """Return the estimate and what it rests on, as lines for people."""
    each = ", ".join(f"{show_hours(gpu_hours(cost, gpu))} hours on an {gpu}" for gpu in PEAK)
    return [
        f"about {each} (one GPU): estimated, at {ASSUMPTIONS}",
        f"{cost.flops:.3g} FLOP in training = {cost.forward_flops:.4g} in the forward pass of a sample "
        f"x {cost.samples:,.0f} samples x {cost.passes:g} passes",
    ]
