"""Judge all causes, rank them, and say what was found."""

from dataclasses import dataclass

from repro.doctor.causes import CAUSES
from repro.doctor.finding import Finding
from repro.doctor.record import Record, Unjudged


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a record, the likeliest first."""

    record: Record
    findings: list[Finding]
    unjudged: dict[str, str]  # cause: what is missing

    @property
    def likeliest(self) -> Finding | None:
        """The first finding if it is likely, else None."""
        return next((finding for finding in self.findings if finding.likely), None)

    @property
    def went_wrong(self) -> bool:
        """Whether the loss is not finite, or ended no lower than it began."""
        loss = self.record.loss
        return self.record.diverged is not None or (len(loss) > 1 and loss[-1][1] >= loss[0][1])


def diagnose(record: Record) -> Diagnosis:
    """Judge each cause: likely ones first, each kind in the order of CAUSES."""
    findings, unjudged = [], {}
    for cause, judge in CAUSES.items():
        try:
            finding = judge(record)
        except Unjudged as missing:
            unjudged[cause] = str(missing)
        else:
            findings += [finding] if finding else []
    return Diagnosis(record, sorted(findings, key=lambda finding: not finding.likely), unjudged)


def describe(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text."""
    lines = []
    if (first := diagnosis.likeliest) is not None:
        lines += [f"likeliest cause: {title(first.cause)}", *_of(first)]
    elif diagnosis.went_wrong:
        lines += ["the run went wrong, and its records show none of the causes"]
    else:
        lines += ["nothing found"]
    for finding in diagnosis.findings:
        if finding is not first:
            lines += [
                "",
                f"{'also' if finding.likely else 'possible'}: {title(finding.cause)}",
                *_of(finding),
            ]
    if diagnosis.unjudged:
        lines += ["", "not judged, for want of"]
        lines += [f"  {title(cause)}: {missing}" for cause, missing in diagnosis.unjudged.items()]
    return "\n".join(lines)


def title(cause: str) -> str:
    """Return a cause in words."""
    return cause.replace("_", " ")


def _of(finding: Finding) -> list[str]:
    return [f"  evidence  {finding.evidence}", f"  cure      {finding.cure}"]
