"""A cause that a run shows, and the words for it."""

from dataclasses import dataclass

from repro.doctor.record import Record


@dataclass(frozen=True)
class Finding:
    """A cause that a run shows."""

    cause: str  # key of repro.doctor.causes.CAUSES
    evidence: str  # a sentence with numbers of this run
    cure: str
    likely: bool = True  # the records show the fault at work; else it is only possible


def setting(run: Record, key: str, value: str) -> str:
    """Return KEY=VALUE, with the key as ours for a run of this project, else as other programs call it."""
    return f"{key if run.ours else key.rpartition('.')[2]}={value}"


def listed(betas: list[float]) -> str:
    """Return [0.9, 0.999]."""
    return f"[{', '.join(f'{beta:g}' for beta in betas)}]"


def override(betas: list[float]) -> str:
    """Return [0.9,0.999], without spaces for a command line."""
    return f"[{','.join(f'{beta:.4g}' for beta in betas)}]"


def times(ratio: float) -> str:
    """Return a ratio in words."""
    return f"{ratio:,.3g} times"


def some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
