"""The groups of configurations that an entry point has, and the files of configs/ that fit it."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

import yaml

from repro.errors import UserError
from repro.ledger import rows
from repro.train.config import TrainConfig

# group=name, or several names of a multirun; other values are left to Hydra
CHOICE = re.compile(r"([a-z_]+)=([\w./-]+(?:,[\w./-]+)*)")


def groups(configs: Path, config_name: str, schema: type[TrainConfig]) -> dict[str, list[str]]:
    """Return the groups in the defaults of configs/<config_name>.yaml, each with the names that fit."""
    defaults = yaml.safe_load((configs / f"{config_name}.yaml").read_text())["defaults"]
    return {
        group: sorted(
            path.stem
            for path in (configs / group).glob("[!_]*.yaml")  # without what files share
            if any(fnmatch(path.stem, pattern) for pattern in schema.options.get(group, ["*"]))
        )
        for entry in defaults
        if isinstance(entry, dict)
        for group in entry
    }


def check(configs: Path, config_name: str, schema: type[TrainConfig], arguments: Sequence[str]) -> None:
    """Raise UserError for a group, an option or a row on the command line that this entry point lacks."""
    known = groups(configs, config_name, schema)
    for argument in arguments:
        if argument.startswith("+paper="):
            for name in argument.removeprefix("+paper=").split(","):
                _check_row(name, config_name)
        elif choice := CHOICE.fullmatch(argument):
            group = choice[1]
            if group in known:
                for name in choice[2].split(","):
                    _check_option(configs, group, name, known[group])
            elif group in ("paper", "proxy", "probe"):
                raise UserError(f"{argument}: is added to the configuration; write +{argument}")
            elif (configs / group).is_dir():
                raise UserError(f"{argument}: this recipe has no such group; it has {', '.join(known)}")


def _check_option(configs: Path, group: str, name: str, options: list[str]) -> None:
    if name in options:
        return
    if (configs / group / f"{name}.yaml").exists() and not name.startswith("_"):
        raise UserError(f"{group}={name}: is for other recipes; this one has {', '.join(options)}")
    close = "".join(f"did you mean {each}? T" for each in get_close_matches(name, options, n=1)) or "t"
    raise UserError(f"{group}={name}: no such option; {close}his recipe has {', '.join(options)}")


def _check_row(name: str, config_name: str) -> None:
    row = rows.load(name).row
    if row.config != config_name:
        cure = f"run `python scripts/reproduce.py {name}`"
        raise UserError(f"+paper={name}: is a row of {row.script}, not of this recipe; {cure}")
