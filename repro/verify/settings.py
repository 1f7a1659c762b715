"""Whether a configuration of ours says what a released file of settings says, key by key.

Every key of the file is accounted for by a rule of its table: it is one of ours (`Ours`), or it must have a
stated value because we do nothing else (`Must`), or it has no bearing on the result (`FREE`). A key that the
table does not know, and one that it expects and the file lacks, are differences like a wrong value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from repro.ledger.rows import Recipe

Settings = Mapping[str, Any]  # of a file, flat: "optimizer.lr", whatever the file nests


@dataclass(frozen=True)
class Ours:
    """The configuration has it at `key`: as the file has it, or as `of` makes it from the whole file."""

    key: str
    of: Callable[[Settings], Any] | None = None


@dataclass(frozen=True)
class Must:
    """It switches something on or off, or sets it, that is one way here."""

    value: Any


@dataclass(frozen=True)
class Free:
    """It changes no result: where files are, what is printed, how fast it goes, or what is switched off."""


FREE = Free()
Rule = Ours | Must | Free


@dataclass(frozen=True)
class Table:
    """The rules of one kind of file.

    A rule whose key has a `*` is for all keys that fit and have no rule of their own. Keys with `Ours` or
    `Must` have to be in the file, unless `absent` has what it means when they are not; of a `partial` file,
    which names what differs from defaults, this is asked of `Ours` alone.
    """

    rules: Mapping[str, Rule]
    absent: Settings = field(default_factory=dict)
    partial: bool = False

    @property
    def expected(self) -> set[str]:
        """The keys that have to be in a file."""
        kinds = Ours if self.partial else (Ours, Must)
        needed = {key for key, rule in self.rules.items() if isinstance(rule, kinds) and "*" not in key}
        return needed - self.absent.keys()

    def rule(self, key: str) -> Rule | None:
        """Return the rule for a key of a file."""
        patterns = (
            rule for pattern, rule in self.rules.items() if "*" in pattern and fnmatchcase(key, pattern)
        )
        return self.rules.get(key) or next(patterns, None)


@dataclass(frozen=True)
class Comparison:
    """What became of the keys of a file."""

    fields: int  # keys, of the file or expected in it
    differences: tuple[str, ...] = ()  # a line for each that is not as it should be
    kinds: tuple[int, int, int] = (0, 0, 0)  # keys that are ours, that must have a value, that are free


def compare(settings: Settings, recipe: Recipe, table: Table) -> Comparison:
    """Compare a file's settings with a row's configuration."""
    complete = {**table.absent, **settings}
    missing = sorted(table.expected - complete.keys())
    differences = [f"{key}: not in the file" for key in missing]
    kinds = dict.fromkeys((Ours, Must, Free), 0)
    for key, value in complete.items():
        rule = table.rule(key)
        if rule is None:
            differences.append(f"{key}: {value!r}: nothing is known of this key")
            continue
        kinds[type(rule)] += 1
        match rule:
            case Must(only) if not _same(value, only):
                differences.append(f"{key}: {value!r}, where only {only!r} is what is done here")
            case Ours():
                differences += _difference(key, rule, complete, recipe)
    return Comparison(
        len(complete) + len(missing), tuple(differences), (kinds[Ours], kinds[Must], kinds[Free])
    )


def _difference(key: str, rule: Ours, settings: Settings, recipe: Recipe) -> list[str]:
    """Return what is different about a key of ours, if something is."""
    try:
        theirs = settings[key] if rule.of is None else rule.of(settings)
    except (LookupError, TypeError, ValueError) as error:
        return [f"{key}: {settings[key]!r} cannot be understood ({error})"]
    try:
        value = recipe.get(rule.key)
    except (KeyError, TypeError):
        # what is switched off in the file need not be in the configuration
        return [] if theirs is None else [f"{key}: {theirs!r}, ours has no {rule.key}"]
    return [] if _same(value, theirs) else [f"{key}: {theirs!r}, ours has {rule.key}={value!r}"]


def _same(a: Any, b: Any) -> bool:
    """Tell whether two values are equal; a truth value is no number, a list may be a tuple."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def rules(
    under: str = "",
    ours: Mapping[str, str | Ours] | None = None,
    must: Mapping[str, Any] | None = None,
    free: str = "",
) -> dict[str, Rule]:
    """Return the rules of a part of a file, whose keys all begin with `under`.

    ours: for a key, where our configuration has the same value, or `Ours` where it is not the same.
    must: for a key, the one value that it may have.
    free: keys of no bearing, as words.
    """
    named = {key: Ours(where) if isinstance(where, str) else where for key, where in (ours or {}).items()}
    fixed = {key: Must(value) for key, value in (must or {}).items()}
    every: dict[str, Rule] = {**named, **fixed, **dict.fromkeys(free.split(), FREE)}
    return {under + key: rule for key, rule in every.items()}
