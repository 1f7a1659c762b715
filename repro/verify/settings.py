"""Compare one of our configurations with a released file of settings, key by key.

A table has a rule for every key of the file: our configuration has it too (`Ours`), it must have one value
because we support nothing else (`Must`), or it has no bearing on the result (`FREE`). An unknown key and a
missing key are differences, like a wrong value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from repro.ledger.rows import Recipe

Settings = Mapping[str, Any]  # of a file, flat: "optimizer.lr", whatever the file nests


@dataclass(frozen=True)
class Ours:
    """Our configuration has the value at `key`: that of the file, or what `of` makes of the whole file."""

    key: str
    of: Callable[[Settings], Any] | None = None


@dataclass(frozen=True)
class Must:
    """The key must have this value: we support no other."""

    value: Any


@dataclass(frozen=True)
class Free:
    """The key changes no result: paths, printing, speed, options of what is switched off."""


FREE = Free()
Rule = Ours | Must | Free


@dataclass(frozen=True)
class Table:
    """The rules of one kind of file.

    A key with a `*` is a pattern for the keys that have no rule of their own. Keys with `Ours` or `Must` have
    to be in the file, unless `absent` gives their value. A `partial` file states only what differs from
    defaults: there this holds for `Ours` alone.
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
    """The result of comparing a file with a configuration."""

    fields: int  # keys in the file or expected there
    differences: tuple[str, ...] = ()  # one line each
    kinds: tuple[int, int, int] = (0, 0, 0)  # number of keys with Ours, Must and FREE


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
    """Return the difference at a key, as a list of at most one line."""
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
    """Return whether two values are equal: True is not 1, but a list may equal a tuple."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def rules(
    under: str = "",
    ours: Mapping[str, str | Ours] | None = None,
    same: Mapping[str, str] | None = None,
    must: Mapping[str, Any] | None = None,
    off: str = "",
    unset: str = "",
    free: str = "",
) -> dict[str, Rule]:
    """Return the rules of one part of a file, all of whose keys begin with `under`.

    Args:
        ours: by key, the place of the same value in our configuration, or `Ours` if the value differs.
        same: by the prefix in our configuration, the keys (as words) that have the same name there.
        must: by key, the only value allowed.
        off: keys (as words) that must be False.
        unset: keys that must be None.
        free: keys without a bearing on the result.
    """
    every: dict[str, Rule] = {
        **{key: Ours(where) if isinstance(where, str) else where for key, where in (ours or {}).items()},
        **{key: Ours(prefix + key) for prefix, keys in (same or {}).items() for key in keys.split()},
        **{key: Must(value) for key, value in (must or {}).items()},
        **dict.fromkeys(off.split(), Must(False)),
        **dict.fromkeys(unset.split(), Must(None)),
        **dict.fromkeys(free.split(), FREE),
    }
    return {under + key: rule for key, rule in every.items()}
