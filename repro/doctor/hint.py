"""The line that a run prints when it went wrong."""

from pathlib import Path

from repro.doctor.diagnosis import diagnose, title
from repro.doctor.record import read_record
from repro.runs import read


def hint(folder: Path) -> str | None:
    """Return the likeliest cause in one line, with the command for more; None if the run went well.

    A run went wrong if its loss is not finite, or is no lower at the end than at the start. The line is a
    courtesy, so nothing raises.
    """
    try:
        run = read(folder)
        losses = [record["train_loss"] for record in run.records if "train_loss" in record]
        if run.state != "diverged" and (len(losses) < 2 or losses[-1] < losses[0]):
            return None
        first = diagnose(read_record([folder])).likeliest
    except Exception:  # the run has an error or a summary of its own to show, which this must not hide
        return None
    what = f"likely {title(first.cause)} ({first.evidence}): {first.cure}; " if first else ""
    return f"{'doctor':<10} {what}python scripts/doctor.py {folder} says more"
