"""The ledger: what was published, row by row, and how to run it again.

configs/paper/<table>/<row>.yaml is the row's Hydra configuration (`+paper=<table>/<row>`), and its node `row`
says what was published, what was released with it, what is not known, and where the sources disagree.
Files whose name begins with `_` hold what the rows of a table share.
"""

import copy
import functools
import importlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from repro.errors import UserError
from repro.explain import explain
from repro.train import resolvers

resolvers.register()  # what configurations may have in them, before one is read

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
VERIFIED = ROOT / "results" / "ledger" / "verify.json"  # of scripts/verify_ledger.py
REPOSITORY = "sail-sg/Adan"
COMMIT = "2c65beaf400775753b155da4082c3819fea689b9"  # of the repository, to which all paths and hashes belong

_WORD = re.compile(r"[\w.]+")


@dataclass
class Figure:
    """One published number."""

    metric: str = MISSING  # as our recipe's records name it
    value: int | float | None = None  # with the digits that were printed; None where only the log tells it
    unit: str = MISSING
    higher_is_better: bool = True
    column: str | None = None  # the released log's name for it
    best: float | None = None  # in the released log, to the log's digits
    final: float | None = None

    @property
    def goal(self) -> float:
        """What a run is measured by: the published value, or else the log's final one."""
        goal = self.final if self.value is None else self.value
        assert goal is not None, f"{self.metric} has neither a published value nor a log's"
        return goal

    @property
    def printed(self) -> str:
        """The published value with its unit."""
        return "none" if self.value is None else f"{self.value} {self.unit}".strip()

    @property
    def shows(self) -> str:
        """Which of the released log's values was published: best, final, both, neither or unknown."""
        if self.value is None or self.best is None or self.final is None:
            return "unknown"
        same = [name for name in ("best", "final") if self.agrees(getattr(self, name))]
        return {0: "neither", 1: "".join(same), 2: "both"}[len(same)]

    def agrees(self, logged: float) -> bool:
        """Tell whether a logged value rounds (half up) to the published one, at its number of decimals."""
        if not math.isfinite(logged):
            return False
        published = Decimal(str(self.value))
        return Decimal(str(logged)).quantize(published, ROUND_HALF_UP) == published


@dataclass
class File:
    """A file of the official repository."""

    path: str = MISSING
    sha256: str = MISSING
    kind: str = "log"  # log (several are parts of one run, in order) | settings | other
    records: int | None = None  # of a log: how many the file has


@dataclass
class Discrepancy:
    """Two sources that say different things, in our words."""

    what: str = MISSING
    follow: str | None = None  # which of them this row follows: table | readme | settings | log
    because: str | None = None
    instead: list[str] = field(default_factory=list)  # overrides that follow the other


@dataclass
class Sibling:
    """A row with the same settings for a while: what the two logs differ by until then is chance.

    As far as they are equal to the last digit one run lies under both, which tells nothing about chance.
    """

    row: str = MISSING
    until: int = MISSING  # position (epoch or step, as the logs count) up to which the settings agree
    but: str | None = None  # settings that differ nevertheless, too little to matter compared with chance


@dataclass
class Cost:
    """What the row takes to compute."""

    forward_flops: float = MISSING  # multiplications and additions of one sample's forward pass
    samples: float = MISSING  # seen in training, batch_size times optimizer steps: images, sequences, ...
    passes: float = 3.0  # forward passes' worth of a training step; 4 where activations are recomputed

    @property
    def flops(self) -> float:
        """Of the whole training."""
        return self.forward_flops * self.samples * self.passes


@dataclass
class Row:
    """One published result. `name` is <table>/<row>."""

    name: str = MISSING
    table: str = MISSING  # where it was published
    title: str = MISSING
    model: str = MISSING
    data: str = MISSING
    script: str = MISSING  # the recipe, from the repository's root; "" where there will be none
    config: str | None = None  # the recipe's primary config; None where the script is no Hydra recipe
    arguments: list[str] = field(default_factory=list)  # of a script that is no Hydra recipe
    after: str | None = None  # the row whose result this one starts from
    parameters: int | None = None  # of the model, exactly
    published: list[Figure] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)  # numbers of a table that is one row here
    files: list[File] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)  # released outside of the repository: what, where
    track: dict[str, str] = field(default_factory=dict)  # our recipe's record key: the released log's column
    siblings: list[Sibling] = field(default_factory=list)
    unpublished: dict[str, str] = field(default_factory=dict)  # what is not known, and what follows
    chosen: dict[str, str] = field(default_factory=dict)  # key of the config: why this value, which is ours
    discrepancies: list[Discrepancy] = field(default_factory=list)
    cost: Cost | None = None
    proxy: str | None = None  # name in configs/proxy
    scale: str = "paper"  # paper | proxy: a proxy's numbers are never the paper's
    # of a proxy: its batch stands for one that many times as large, see repro.train.scaling
    batch_scale: int = 1
    waits_for: str | None = None  # what the script, which exists, still lacks for this row
    not_runnable: str | None = None  # why this row cannot be run here at all

    @property
    def logs(self) -> list[File]:
        """The released log's files, in the order they were written in."""
        return [file for file in self.files if file.kind == "log"]

    @property
    def status(self) -> str:
        """`runnable`, `not runnable yet: why` or `not runnable: why`."""
        if self.not_runnable is not None:
            return f"not runnable: {self.not_runnable}"
        if not (ROOT / self.script).exists():
            return f"not runnable yet: {self.script} is to come"
        if self.waits_for is not None:
            return f"not runnable yet: it waits for {self.waits_for}"
        return "runnable"


@dataclass
class Recipe:
    """A row with the whole configuration that runs it."""

    row: Row
    config: dict[str, Any]

    def get(self, key: str) -> Any:
        """Return the value at a dotted key.

        Raises:
            KeyError: there is none.
        """
        value: Any = self.config
        for part in key.split("."):
            value = value[part]
        return value


def names() -> list[str]:
    """Return the names of all rows, table by table."""
    files = sorted((CONFIGS / "paper").glob("*/*.yaml"))
    return [f"{path.parent.name}/{path.stem}" for path in files if not path.stem.startswith("_")]


def verdicts() -> dict[str, str]:
    """Return what scripts/verify_ledger.py last found of each row (`Verdict.says`), by the row's name."""
    rows = json.loads(VERIFIED.read_text())["rows"] if VERIFIED.exists() else {}
    return {name: rows[name]["verdict"] if name in rows else "not verified yet" for name in names()}


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a row and its configuration, with overrides as on the command line.

    Raises:
        UserError: there is no such row, or it or an override does not fit the schema.
    """
    if name not in names():
        raise UserError(f"{name}: no such row; python scripts/reproduce.py --list shows all{_hint(name)}")
    return copy.deepcopy(_load(name, tuple(overrides), CONFIGS))


@functools.cache  # Hydra takes a fifth of a second
def _load(name: str, overrides: tuple[str, ...], configs: Path) -> Recipe:
    where = " with ".join([f"configs/paper/{name}.yaml", *([" ".join(overrides)] if overrides else [])])
    try:
        composed = _compose(name, overrides)
        row = _typed(composed.row)
        values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except Exception as error:  # of Hydra, of OmegaConf, or of the YAML reader
        raise UserError(f"{where}: {_reason(error)}") from error
    if row.name != name:
        raise UserError(f"configs/paper/{name}.yaml: row.name is {row.name}: write {name}, where the file is")
    title = _words(row.title)
    if not title.isdisjoint(_families(configs)) and not _words(row.model) <= title:
        raise UserError(
            f"configs/paper/{name}.yaml: row.title is '{row.title}' but row.model is '{row.model}': "
            "a title that names a model must have all words of row.model"
        )
    del values["row"]
    return Recipe(row, values)


@functools.cache
def _families(configs: Path) -> set[str]:
    """The first words of all rows' models: ViT, ResNet, GPT, ... in lower case."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth of the time
    families: set[str] = set()
    for path in (configs / "paper").rglob("*.yaml"):
        try:
            families.update(_WORD.findall(yaml.load(path.read_text(), loader)["row"]["model"].lower())[:1])
        except (yaml.YAMLError, KeyError, TypeError, AttributeError):
            continue  # a file without a model, or one that is reported when its row is loaded
    return families


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    config, script = _primary(name)
    arguments = list(overrides)
    if config is not None and script is not None and (ROOT / script).exists():
        # a recipe registers the schema of its primary config where it defines it: <folder>/config.py
        importlib.import_module(f"{Path(script).parent.name}.config")
        arguments = [f"+paper={name}", *arguments]
    else:
        config = f"paper/{name}"
    return compose_config(config, arguments)


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that Hydra composes of configs/<name>.yaml and overrides."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()  # a run has one of its own, and Hydra refuses a second
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(name, list(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def _typed(node: DictConfig) -> Row:
    return cast(Row, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Row), node)))


def _primary(name: str) -> tuple[str | None, str | None]:
    """The primary config and the script of a row, which may stand in a file that it builds on."""
    path = CONFIGS / "paper" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    node = content.get("row", {})
    if "script" in node:
        return node.get("config"), node["script"]
    for parent in content.get("defaults", []):
        if isinstance(parent, str) and parent.startswith("/paper/"):
            return _primary(parent.removeprefix("/paper/"))
    return None, None


def _reason(error: Exception) -> str:
    below = error.__context__
    if not isinstance(below, OmegaConfBaseException) or (below.full_key is None and _has_key(error)):
        below = error
    return explain(below) or " ".join(str(error).split())


def _has_key(error: Exception) -> bool:
    return isinstance(error, OmegaConfBaseException) and error.full_key is not None


def _hint(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, names(), n=1)
    return f"; did you mean {close[0]}?" if close else ""
