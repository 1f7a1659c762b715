"""Deterministic replay: our configuration must give exactly what the released files of a row determine.

Nothing is trained. Every row of the ledger gets the same checks, as far as files were released for it:

    files       their hashes are those in the row, and their logs have the number of records in the row
    settings    the configuration agrees with the released settings, key by key
    lr          it gives every learning rate in the log
    epochs      it gives the log's epochs and steps, and the iterations of an epoch
    validation  it gives the positions of the log's evaluations
    parameters  the log and the model have the row's number of parameters
    figure      the log's best and final values are the row's; says which of them was published
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain, combinations
from pathlib import PurePosixPath
from typing import Any

from repro.errors import UserError
from repro.ledger.rows import File, Recipe, load
from repro.logs import fairseq as fairseq_files
from repro.logs import megatron as megatron_files
from repro.logs import timm as timm_files
from repro.logs.files import locate
from repro.logs.log import Source
from repro.runs import flatten
from repro.verify import fairseq, mae, megatron, timm, transformer_xl
from repro.verify.checks import Check, Evidence, figures, gather, shown
from repro.verify.models import parameters
from repro.verify.settings import Settings, Table, compare

FORMATS = {"timm": timm, "mae": mae, "fairseq": fairseq, "transformer_xl": transformer_xl}  # of logs
READERS: dict[str, tuple[Callable[[Source], dict[str, Any]], Callable[[Settings], Table]]] = {  # of settings
    "CV/timm/*.yaml": (timm_files.read_args, lambda _: timm.TABLE),
    "NLP/BERT/*.yaml": (fairseq_files.read_config, fairseq.table),
    "gpt2/*/gpt_args": (megatron_files.read_args, lambda _: megatron.TABLE),
}


@dataclass(frozen=True)
class Verdict:
    """The checks of a row, by name, and their overall result."""

    name: str
    checks: dict[str, Check]
    missing: list[str]  # released files that are not on this machine
    released: bool  # whether a log or settings were released, here or elsewhere

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [name for name, check in self.checks.items() if check.passed is False]

    @property
    def says(self) -> str:
        """`verified`, `differs: ...`, `log not here: ...` or `nothing released`."""
        if self.failed:
            return f"differs: {', '.join(self.failed)}"
        if self.missing:
            return f"log not here: {', '.join(self.missing)}"
        return "verified" if self.released else "nothing released"


def verify(name: str) -> Verdict:
    """Check a row of the ledger against its released files.

    Raises:
        UserError: there is no such row, or it does not fit the schema.
    """
    recipe = load(name)
    row = recipe.row
    evidence, files = gather(row, read_settings)
    checks = {"files": files, "settings": _or_departed("settings", settings, evidence, recipe)}
    module = None if evidence.log is None else FORMATS[evidence.log.format]
    for check in ("lr", "epochs", "validation"):
        if module is None:
            checks[check] = Check(None, "log not here" if row.logs else "no log")
        else:
            checks[check] = _or_departed("log", getattr(module, check), evidence, recipe)
    checks["parameters"] = parameters(evidence, recipe)
    checks["figure"] = figures(evidence)
    wanted = {file.path for file in row.files if file.kind in ("log", "settings")}
    missing = [PurePosixPath(path).name for path in evidence.missing if path in wanted]
    missing += [PurePosixPath(row.elsewhere["log"]).name] if "log" in row.elsewhere else []
    return Verdict(name, checks, missing, bool(wanted or missing))


def read_settings(file: File) -> dict[str, Any]:
    """Return the settings in a released file, flat.

    Raises:
        LogError: the file is not here, or has no settings.
    """
    read, _ = _reader(file.path)
    return flatten(read(Source(locate(file))))


def settings(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare the configuration with every file of settings, and with the settings at the head of a log."""
    found = {path: (values, _reader(path)[1](values)) for path, values in evidence.settings.items()}
    if evidence.log is not None and evidence.log.format == "transformer_xl":
        found[str(evidence.log.paths[0].name)] = evidence.log.config, transformer_xl.TABLE
    if not found:
        return Check(None, "not here" if evidence.missing else "none released")
    compared = [compare(values, recipe, table) for values, table in found.values()]
    differences = [difference for comparison in compared for difference in comparison.differences]
    fields = sum(comparison.fields for comparison in compared)
    ours, must, free = map(sum, zip(*(comparison.kinds for comparison in compared), strict=True))
    kinds = f"{ours} keys are ours, {must} must have one value, {free} have no bearing"
    says = f"{fields - len(differences)} of {fields} fields"
    return Check(not differences, says, fields, (*shown(differences), kinds))


def _or_departed(
    source: str, check: Callable[[Evidence, Recipe], Check], evidence: Evidence, recipe: Recipe
) -> Check:
    """Check the row's configuration, and if that fails, the configuration that follows `source`.

    A row may follow another source and state the overrides for this one, in one or more discrepancies. It
    passes if those of one discrepancy, or of two together, do.
    """
    result = _run(check, evidence, recipe)
    if result.passed is not False:
        return result
    departures = [each.instead for each in recipe.row.discrepancies if each.instead and each.follow != source]
    for some in chain.from_iterable(combinations(departures, n + 1) for n in range(2)):
        overrides = [override for instead in some for override in instead]
        try:
            again = _run(check, evidence, load(recipe.row.name, overrides))
        except UserError:  # the two exclude each other
            continue
        if again.passed:
            note = f"with {' '.join(overrides)}, from which the row departs"
            return replace(again, says=f"{again.says} *", notes=(*again.notes, note))
    return result


def _run(check: Callable[[Evidence, Recipe], Check], evidence: Evidence, recipe: Recipe) -> Check:
    """Run a check. It fails if a value is missing or the schedule is impossible."""
    try:
        return check(evidence, recipe)
    except KeyError as error:
        return Check(False, "incomplete", notes=(f"no {error.args[0]} in the configuration or the log",))
    except UserError as error:
        return Check(False, "impossible", notes=(str(error),))


def _reader(path: str) -> tuple[Callable[[Source], dict[str, Any]], Callable[[Settings], Table]]:
    return next(reader for pattern, reader in READERS.items() if fnmatchcase(path, pattern))
