"""The GPU-hours of a row: an estimate from a count of operations, not a measurement.

    hours = forward FLOP of a sample * samples * passes / (peak of the GPU * UTILISATION) / 3600

It covers training alone, without evaluation and waiting for data. It tells a day from a month: expect a
factor of two either way. scripts/plan.py adds memory, several GPUs, days and dollars.
"""

from dataclasses import dataclass

from repro.ledger.rows import Cost


@dataclass(frozen=True)
class Gpu:
    """A GPU: its data sheet (NVIDIA's, SXM modules) and its price."""

    memory: float  # bytes; the sheet's GB are 1e9, the card's surplus is for CUDA and the allocator
    peak: float  # dense tensor-core FLOP/s in bf16 and fp16
    peak_float32: float  # FLOP/s outside tensor cores
    bandwidth: float  # of the memory, bytes/s
    pcie: float  # bytes/s in each direction
    dollars: float  # per hour: our assumption, a round number; see --price of scripts/plan.py


GPUS = {
    "A100-40": Gpu(40e9, 312e12, 19.5e12, 1.555e12, 32e9, 1.5),
    "A100-80": Gpu(80e9, 312e12, 19.5e12, 2.039e12, 32e9, 2.0),
    "H100": Gpu(80e9, 989e12, 67e12, 3.35e12, 64e9, 3.0),
    "H200": Gpu(141e9, 989e12, 67e12, 4.8e12, 64e9, 3.5),
}

# of the GPUs for which the ledger shows times; their memory makes no difference there
PEAK = {"A100": GPUS["A100-80"].peak, "H100": GPUS["H100"].peak}

# Share of the peak that training reaches, for all rows and GPUs: our assumption, a round number. Large
# language models usually reach more. Small vision models reach less, because their norms and activations are
# bound by memory, and an H100 reaches less than an A100. A run's own speed is in its summary.json.
UTILISATION = 0.25

# The same by family, for plans: also our assumptions. Recomputed activations count as use, not as progress.
FAMILIES = {"language model": 0.35, "mixture of experts": 0.2, "other": UTILISATION}

ASSUMPTIONS = f"{UTILISATION:.0%} of the peak in bf16 or fp16: " + ", ".join(
    f"{peak / 1e12:.0f} TFLOP/s on an {gpu}" for gpu, peak in PEAK.items()
)


def gpu_hours(cost: Cost, gpu: str) -> float:
    """Return the estimated hours on one GPU of PEAK; n of them take an n-th of it at best."""
    return cost.flops / (PEAK[gpu] * UTILISATION) / 3600


def show_time(hours: float) -> str:
    """Return a time in the unit that people use for it: 3 s | 12 min | 2.5 h | 3.2 days."""
    for unit, length, limit in (("s", 1 / 3600, 120 / 3600), ("min", 1 / 60, 2), ("h", 1, 48)):
        if hours < limit:
            return f"{hours / length:.2g} {unit}" if hours < 10 * length else f"{hours / length:.0f} {unit}"
    return f"{hours / 24:.2g} days" if hours < 240 else f"{hours / 24:,.0f} days"


def describe(cost: Cost) -> list[str]:
    """Return the estimate and its assumptions, as lines of text."""
    each = ", ".join(f"{show_time(gpu_hours(cost, gpu))} on an {gpu}" for gpu in PEAK)
    return [
        f"about {each} (one GPU): estimated, at {ASSUMPTIONS}",
        f"{cost.flops:.3g} FLOP in training = {cost.forward_flops:.4g} in the forward pass of a sample "
        f"x {cost.samples:,.0f} samples x {cost.passes:g} passes",
    ]
