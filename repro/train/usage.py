"""The `--help` of a recipe: what it does, its groups of configurations, and a line for each key.

What the lines say are the comments of the schema, and for the free-form keys of an optimizer or a model those
of the files in configs/.
"""

import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from repro.train import choices
from repro.train.config import TrainConfig

OPTIONS = """\
-m, --multirun  a run for each combination of key=value,value,...
--cfg job       print the configuration as YAML, and start nothing
--debug         raise errors, instead of one line on stderr
--hydra-help    the other options, which are Hydra's"""

WIDTH = 110  # columns of the groups
COLUMN = 38  # where comments begin, unless key=value is longer

_KEY = re.compile(r" *(\w+):(?:.*?  # (.*))?")
_HEADER = re.compile(r"\A(#.*\n)*")  # of a file
_ABOVE = re.compile(r" *# (.*)")


def usage(
    doc: str | None,
    configs: Path,
    config_name: str,
    schema: type[TrainConfig],
    values: Mapping[str, Any],
    chosen: Mapping[str, str],
) -> str:
    """Return the help of an entry point.

    Args:
        doc: what it does, with examples.
        values: the composed configuration, whose values are shown.
        chosen: the option that was chosen of each group.
    """
    groups, free = [], {}
    for group, names in choices.groups(configs, config_name, schema).items():
        text = f"  {group}={chosen[group]}  of {', '.join(names)}"
        groups.append(textwrap.fill(text, WIDTH, subsequent_indent="    "))
        files = [*sorted((configs / group).glob("_*.yaml")), configs / group / f"{chosen[group]}.yaml"]
        free[group] = comments("\n".join(_HEADER.sub("", file.read_text()) for file in files))
    groups.append("  +paper=TABLE/ROW  a published result; `python scripts/reproduce.py --list` has them")
    return "\n\n".join(
        [
            *([doc.strip()] if doc else []),
            OPTIONS,
            "Groups: group=NAME takes the settings of configs/group/NAME.yaml\n" + "\n".join(groups),
            "Keys: key=value changes one. The values are those of this command line.",
            *_sections(schema, values, free),
        ]
    )


def comments(source: str) -> dict[str, str]:
    """Return what comments say about the keys of a dataclass, or of a mapping in YAML, beside and above."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        if match := _ABOVE.fullmatch(line):
            above.append(match[1])
            continue
        if match := _KEY.match(line):
            found.setdefault(match[1], " ".join([*above, *filter(None, [match[2]])]))
        above = []
    return found


def _sections(
    schema: type, values: Mapping[str, Any], free: Mapping[str, Mapping[str, str]], prefix: str = ""
) -> Iterator[str]:
    """Yield the keys of a configuration in blocks: first its own values, then each of its mappings."""
    hints = typing.get_type_hints(schema)
    said: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            said |= comments(inspect.getsource(base).partition("\n    def ")[0])
    names = [field.name for field in dataclasses.fields(schema) if field.name != "row"]  # see +paper
    nested = {name: hints[name] for name in names if dataclasses.is_dataclass(hints[name])}
    mappings = [name for name in names if not prefix and name in free and name not in nested]
    own = [name for name in names if name not in nested and name not in mappings]
    yield "\n".join(_line(prefix + name, values[name], said.get(name, "")) for name in own)
    for name in mappings:
        lines = [
            _line(f"{name}.{key}", value, free[name].get(key, "")) for key, value in values[name].items()
        ]
        yield "\n".join([f"{name}: {said[name]}", *lines])
    for name, kind in nested.items():
        about = said[name] or inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
        head, *blocks = _sections(kind, values[name], free, f"{prefix}{name}.")
        yield f"{prefix}{name}: {about}\n{head}"
        yield from blocks


def _line(key: str, value: Any, comment: str) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"  {f'{key}={shown}':{COLUMN}}  {comment}".rstrip()
