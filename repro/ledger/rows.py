"""The ledger: what was published, row by row, and how to run it again.

configs/paper/<table>/<row>.yaml is the Hydra configuration of a row (`+paper=<table>/<row>`). Its node `row`
states what was published and released, what is unknown, and where the sources disagree. Files whose name
begins with `_` hold what the rows of a table share.
"""

import copy
import difflib
import functools
import importlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
from repro.ledger import cache
from repro.overrides import opened
from repro.train import resolvers

resolvers.register()  # before any configuration is read

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
VERIFIED = ROOT / "results" / "ledger" / "verify.json"  # of scripts/verify_ledger.py
REPOSITORY = "sail-sg/Adan"
COMMIT = "2c65beaf400775753b155da4082c3819fea689b9"  # all paths and hashes are those of this commit

_WORD = re.compile(r"[\w.]+")
_LENGTH = re.compile(r"([\d,]+) (epochs|steps)\b")  # in a title


@dataclass
class Figure:
    """One published number."""

    metric: str = MISSING  # as our recipe's records name it
    value: int | float | None = None  # with the printed digits; None: only the log has it
    unit: str = MISSING
    higher_is_better: bool = True
    column: str | None = None  # the released log's name for it
    best: float | None = None  # in the released log, to the log's digits
    final: float | None = None

    @property
    def goal(self) -> float:
        """The value to reach: the published one, or else the log's final one."""
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
        """Return whether a logged value rounds (half up) to the published one, at its number of decimals."""
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
    records: int | None = None  # number of records in a log


@dataclass
class Discrepancy:
    """A contradiction between two sources, in our words."""

    what: str = MISSING
    follow: str | None = None  # the source that this row follows: table | readme | settings | log
    because: str | None = None
    instead: list[str] = field(default_factory=list)  # overrides that follow the other


@dataclass
class Sibling:
    """A row with the same settings up to a point: until then, the two logs differ by chance alone.

    Records that are equal to the last digit come from one and the same run, and say nothing about chance.
    """

    row: str = MISSING
    until: int = MISSING  # epoch or step, as the logs count, up to which the settings agree
    but: str | None = None  # settings that differ, but too little to matter compared with chance


@dataclass
class Cost:
    """The compute of a row."""

    forward_flops: float = MISSING  # multiplications and additions in the forward pass of one sample
    samples: float = MISSING  # images, sequences, ... seen in training: batch_size times optimizer steps
    passes: float = 3.0  # cost of a training step in forward passes; 4 if activations are recomputed

    @property
    def flops(self) -> float:
        """The operations of the whole training."""
        return self.forward_flops * self.samples * self.passes


@dataclass
class Row:
    """One published result. `name` is <table>/<row>."""

    name: str = MISSING
    table: str = MISSING  # where it was published
    title: str = MISSING
    model: str = MISSING
    data: str = MISSING
    script: str = MISSING  # of the recipe, relative to the repository
    config: str | None = None  # the primary config of the recipe; None: not a Hydra recipe
    arguments: list[str] = field(default_factory=list)  # of a script that is not a Hydra recipe
    after: str | None = None  # the row from whose result this one starts
    parameters: int | None = None  # exact number, of the model
    published: list[Figure] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)  # the numbers, if a whole table is one row here
    files: list[File] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)  # released outside the repository: what, where
    track: dict[str, str] = field(default_factory=dict)  # key of our records: column of the released log
    siblings: list[Sibling] = field(default_factory=list)
    unpublished: dict[str, str] = field(default_factory=dict)  # what is unknown, and the consequence
    chosen: dict[str, str] = field(default_factory=dict)  # config key whose value we chose: why this value
    discrepancies: list[Discrepancy] = field(default_factory=list)
    cost: Cost | None = None
    proxy: str | None = None  # name in configs/proxy
    scale: str = "paper"  # paper | proxy: a proxy's numbers are never the paper's
    # of a proxy: its batch stands for one this many times as large, see repro.train.scaling
    batch_scale: int = 1
    waits_for: str | None = None  # what the existing script still lacks for this row
    # config keys with several values: the row is a run for each
    sweep: dict[str, list[str]] = field(default_factory=dict)
    # in addition to data: what, how much of it, where from
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def logs(self) -> list[File]:
        """The files of the released log, in the order in which they were written."""
        return [file for file in self.files if file.kind == "log"]

    @property
    def is_published(self) -> bool:
        """Whether a number was published."""
        return bool(self.cells) or any(figure.value is not None for figure in self.published)

    @property
    def status(self) -> str:
        """`runnable`, or `not runnable yet: why`."""
        if not (ROOT / self.script).exists():
            return f"not runnable yet: {self.script} is to come"
        if self.waits_for is not None:
            return f"not runnable yet: it waits for {self.waits_for}"
        return "runnable"


@dataclass
class Recipe:
    """A row and its complete configuration."""

    row: Row
    config: dict[str, Any]

    def get(self, key: str) -> Any:
        """Return the value at a dotted key.

        Raises:
            KeyError: there is no such key.
        """
        value: Any = self.config
        for part in key.split("."):
            value = value[part]
        return value


def names() -> list[str]:
    """Return the names of all rows, table by table."""
    files = sorted((CONFIGS / "paper").glob("*/*.yaml"))
    return [f"{path.parent.name}/{path.stem}" for path in files if not path.stem.startswith("_")]


def verified() -> dict[str, dict[str, Any]]:
    """Return what the last scripts/verify_ledger.py found: `verdict` and `checks` by the name of the row."""
    rows = json.loads(VERIFIED.read_text())["rows"] if VERIFIED.exists() else {}
    return {name: rows.get(name, {"verdict": "not verified yet", "checks": {}}) for name in names()}


def verdicts() -> dict[str, str]:
    """Return the verdicts of the last scripts/verify_ledger.py (`Verdict.says`), by the name of the row."""
    return {name: found["verdict"] for name, found in verified().items()}


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a row and its configuration, with overrides as on the command line.

    Raises:
        UserError: there is no such row, or it or an override does not fit the schema.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{name}: no such row; python scripts/reproduce.py --list shows all{hint}")
    return copy.deepcopy(_load(name, tuple(overrides), CONFIGS))


@functools.cache
def _load(name: str, overrides: tuple[str, ...], configs: Path) -> Recipe:
    if overrides:
        return _made(name, overrides, configs)
    recipe = cache.read(name, configs, _restored)
    if recipe is None:
        recipe = _made(name, overrides, configs)
        cache.write(name, configs, asdict(recipe))
    return recipe


def _restored(values: dict[str, Any]) -> Recipe:
    """Return the recipe that dataclasses.asdict turned into these values."""
    row, cost = values["row"], values["row"]["cost"]
    kinds = {"published": Figure, "files": File, "siblings": Sibling, "discrepancies": Discrepancy}
    lists = {key: [kind(**each) for each in row[key]] for key, kind in kinds.items()}
    return Recipe(Row(**{**row, **lists, "cost": cost and Cost(**cost)}), values["config"])


def _made(name: str, overrides: tuple[str, ...], configs: Path) -> Recipe:
    """Return a row and its configuration, by Hydra."""
    where = f"configs/paper/{name}.yaml"
    try:
        composed = _compose(name, overrides)
        row = cast(Row, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Row), composed.row)))
        values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except Exception as error:  # of Hydra, OmegaConf or the YAML parser
        given = f" with {' '.join(overrides)}" if overrides else ""
        raise UserError(f"{where}{given}: {_reason(error)}") from error
    if row.name != name:
        raise UserError(f"{where}: row.name is {row.name}: write {name}, where the file is")
    title = _words(row.title)
    if not title.isdisjoint(_families(configs)) and not _words(row.model) <= title:
        raise UserError(
            f"{where}: row.title is '{row.title}' but row.model is '{row.model}': "
            "a title that names a model must have all words of row.model"
        )
    length = _LENGTH.search(row.title)
    if length and not overrides and int(length[1].replace(",", "")) != values.get(length[2]):
        raise UserError(
            f"{where}: row.title is '{row.title}' but {length[2]}={values.get(length[2])}: "
            "a title that names a length must have the configuration's"
        )
    del values["row"]
    return Recipe(row, values)


@functools.cache
def _families(configs: Path) -> set[str]:
    """Return the first word of the model of every row, in lower case: vit, resnet, gpt, ..."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    families: set[str] = set()
    for path in (configs / "paper").rglob("*.yaml"):
        try:
            families.update(_WORD.findall(yaml.load(path.read_text(), loader)["row"]["model"].lower())[:1])
        except (yaml.YAMLError, KeyError, TypeError, AttributeError):
            continue  # no model, or a damaged file, which is reported when its row is loaded
    return families


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    config, script = _primary(name)
    arguments = list(overrides)
    if config is not None and script is not None and (ROOT / script).exists():
        # <folder>/config.py registers the schema of the primary config
        importlib.import_module(f"{Path(script).parent.name}.config")
        arguments = [f"+paper={name}", *arguments]
    else:
        config = f"paper/{name}"
    return compose_config(config, arguments)


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that Hydra composes from configs/<name>.yaml and overrides."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()  # within a run, Hydra would refuse a second instance
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(name, opened(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def _primary(name: str) -> tuple[str | None, str | None]:
    """Return the primary config and the script of a row; a file that it builds on may state them."""
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
    below: BaseException | None = error.__context__
    known = getattr(error, "full_key", None) is not None
    if not isinstance(below, OmegaConfBaseException) or (below.full_key is None and known):
        below = error
    return explain(below) or " ".join(str(error).split())
