"""What the checks of a row share: their result, the released files, and ways to compare."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from repro.ledger.rows import File, Recipe, Row
from repro.logs import read
from repro.logs.files import locate
from repro.logs.log import Log, LogError, merge
from repro.reading import sha256
from repro.train.config import ScheduleConfig
from repro.train.schedules import build_schedule

SHOWN = 3  # differences that a check lists
ROUNDED = 5e-4  # rows state the figures of logs to three decimals


@dataclass(frozen=True)
class Check:
    """The result of one check of a row."""

    passed: bool | None  # None: nothing to compare with
    says: str
    compared: int = 0  # files, keys of settings, lines of a log, numbers
    notes: tuple[str, ...] = ()  # differences and remarks


@dataclass
class Evidence:
    """The released files of a row that are on this machine."""

    row: Row
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the file's path, flat
    logs: list[Log] = field(default_factory=list)  # one per file, in order
    log: Log | None = None  # all of them merged; None unless all are here
    missing: list[str] = field(default_factory=list)  # paths


def gather(row: Row, read_settings: Callable[[File], dict[str, Any]]) -> tuple[Evidence, Check]:
    """Read the released files of a row, and check their hashes and numbers of records."""
    evidence, here, notes = Evidence(row), 0, []
    for file in row.files:
        try:
            path = locate(file)
        except LogError:
            evidence.missing.append(file.path)
            continue
        here += 1
        if (digest := sha256(path)) != file.sha256:
            notes.append(f"{file.path} has SHA-256 {digest}, the row {file.sha256}")
        try:
            if file.kind == "settings":
                evidence.settings[file.path] = read_settings(file)
            elif file.kind == "log":
                evidence.logs.append(read(path, strict=True))
        except LogError as error:
            notes.append(f"{file.path} cannot be read: {error}")
            continue
        if file.kind == "log" and (count := evidence.logs[-1].lines["record"]) != file.records:
            notes.append(f"{file.path} has {count} records, the row {file.records}")
    if evidence.logs and len(evidence.logs) == len(row.logs):
        evidence.log = merge(evidence.logs)
    absent = tuple(f"not here: {path}" for path in evidence.missing)
    says = f"{here} of {len(row.files)}" if row.files else "none released"
    return evidence, Check(not notes if here else None, says, here, (*notes, *absent))


def rates(recipe: Recipe, steps_per_epoch: int = 1) -> Callable[[int], float]:
    """Return the function from step (from 0) to learning rate of a configuration.

    With steps_per_epoch=1, steps are epochs.
    """
    config = recipe.config
    lr: float = config["optimizer"]["lr"]
    schedule = ScheduleConfig(**config["schedule"])
    multiplier = build_schedule(schedule, lr, config.get("epochs", 1), steps_per_epoch, config.get("steps"))
    return lambda step: lr * multiplier(step)


def closeness(pairs: Iterable[tuple[int, float, float]], of: str, tolerance: float) -> Check:
    """Check that the rates in (position, ours, theirs) agree to a relative `tolerance`; `of` names them."""
    errors = {position: abs(ours - theirs) / abs(theirs) for position, ours, theirs in pairs}
    worst = max(errors, key=errors.__getitem__)
    says = f"{of}, {errors[worst]:.0e}"
    notes = () if errors[worst] <= tolerance else (f"lr: relative error {errors[worst]:.3g} at {worst}",)
    return Check(not notes, says, len(errors), notes)


def digits(logs: Iterable[Log], ours: Callable[[int], float], form: str) -> Check:
    """Check that every learning rate in the logs is ours, printed in the log's format `form`."""
    count, differences = 0, []
    for log in logs:
        for record in log.of("train").itertuples():
            count += 1
            printed = format(ours(record.step), form)
            if float(printed) != record.lr:  # so the log's digits differ
                differences.append(f"lr: {record.lr:{form}} at step {record.step}, ours {printed}")
    says = f"{count:,} lines, {'every digit' if not differences else f'{len(differences):,} differ'}"
    return Check(not differences, says, count, shown(differences))


def positions(name: str, ours: Iterable[int], theirs: Iterable[int], says: str) -> Check:
    """Check that two lists of positions are equal."""
    ours, theirs = list(ours), list(theirs)
    if ours == theirs:
        return Check(True, says, len(theirs))
    alone = sorted(set(theirs) ^ set(ours))
    places = ["the configuration" if position in set(ours) else "the log" for position in alone]
    notes = [f"{name} {position:g}: in {place} alone" for position, place in zip(alone, places, strict=True)]
    notes = notes or [f"{name}: in another order, or more than once"]
    return Check(False, f"{len(theirs):,}, ours {len(ours):,}", len(theirs), shown(notes))


def all_of(first: Check, *others: Check) -> Check:
    """Return the first failed check, or else `first`, with the counts and notes of all."""
    checks = (first, *others)
    failed = next((check for check in checks if check.passed is False), first)
    notes = tuple(note for check in checks for note in check.notes)
    return Check(failed.passed, failed.says, sum(check.compared for check in checks), notes)


def figures(evidence: Evidence) -> Check:
    """Check that the log's best and final values are the row's, and say which was published."""
    log, figures = evidence.log, [figure for figure in evidence.row.published if figure.column is not None]
    if not figures:
        return Check(None, "no log has it" if evidence.row.published else "none published")
    if log is None:
        return Check(None, "log not here")
    notes = []
    for figure in figures:
        values = log.series(figure.column or "")
        found = {"best": values.max() if figure.higher_is_better else values.min(), "final": values.iloc[-1]}
        for which, value in found.items():
            stated: float | None = getattr(figure, which)
            if stated is None or abs(stated - value) > ROUNDED:
                notes.append(f"{figure.metric}: the log's {which} is {value}, the row's {stated}")
    return Check(not notes, ", ".join(figure.shows for figure in figures), 2 * len(figures), tuple(notes))


def shown(differences: list[str]) -> tuple[str, ...]:
    """Return the first SHOWN differences, and the number of the others."""
    more = len(differences) - SHOWN
    return (*differences[:SHOWN], *([f"and {more} more"] if more > 0 else []))
