"""Who may import whom: scripts -> benchmarks -> recipes -> repro -> optim/; never back or in circles.

Read from the source: imports inside functions count, and so do strings that name a module of ours.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIM = ("adan_optim", "adan", "adam_mini")  # the packages in optim/
LAYERS = (
    OPTIM[:1],
    OPTIM[1:],
    ("repro",),
    ("vision", "nlp", "llm"),
    ("benchmarks",),
    ("scripts",),
)  # from the bottom
LEVEL = {tree: level for level, trees in enumerate(LAYERS) for tree in trees}
NEVER_IN_OPTIM = {"hydra", "omegaconf", "timm", "transformers", "accelerate"}  # before somebody asks for them

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Use:
    """An import, or a string that names a module."""

    by: str  # module
    line: int
    name: str  # as it is written; of `from a import b` a.b
    at_once: bool  # an import outside of functions, so that it comes with the import of `by`

    def __str__(self) -> str:
        return f"{self.by}, line {self.line}: {self.name}"


def modules(root: Path) -> dict[str, Path]:
    """The modules of all trees, by their dotted names."""
    found = {}
    for tree in LEVEL:
        parent = root / "optim" if tree in OPTIM else root
        for path in sorted((parent / tree).rglob("*.py")):
            name = ".".join(path.relative_to(parent).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def uses(module: str, path: Path) -> Iterator[Use]:
    """What a module imports, or names in strings."""
    tree = ast.parse(path.read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        for name in _names(node, module if path.name == "__init__.py" else module.rpartition(".")[0]):
            at_once = id(node) not in inside and not isinstance(node, ast.Constant)
            yield Use(module, getattr(node, "lineno", 0), name, at_once)


def _names(node: ast.AST, package: str) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=base, names=names, level=level):
            up = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            return [".".join([*up, *([base] if base else []), alias.name]) for alias in names]
        case ast.Call(func=ast.Attribute(attr=by) | ast.Name(id=by), args=[ast.Constant(str(text)), *_]):
            return [text] if by in ("import_module", "__import__") else []
        case ast.JoinedStr(values=[ast.Constant(str(start)), *_]):  # f"llm.{name}"
            tree, dot, _ = start.partition(".")
            return [tree] if dot and tree in LEVEL else []
        case ast.Constant(str(text)) if _DOTTED.fullmatch(text):
            return [text]
    return []


def imported(use: Use, known: dict[str, Path]) -> str | None:
    """The module of ours that is meant, or its package where it is unknown; None: it is none of ours."""
    parts = use.name.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((name for name in names if name in known or name in LEVEL), None)


def problems(root: Path) -> list[str]:
    """What breaks the rules, a line each."""
    known, found = modules(root), []
    graph: dict[str, set[str]] = {module: set() for module in known}
    for module, path in known.items():
        for use in uses(module, path):
            tree, other = module.partition(".")[0], imported(use, known)
            if tree in OPTIM and use.at_once and use.name.partition(".")[0] in NEVER_IN_OPTIM:
                found.append(f"{use}: {tree} is imported without it")
            if other is None or other == module:
                continue
            graph[module].add(other)
            level, theirs = LEVEL[tree], LEVEL[other.partition(".")[0]]
            if theirs > level:
                found.append(f"{use}: upward")
            elif theirs == level and other.partition(".")[0] != tree:
                found.append(f"{use}: sideways")
    found += [f"circle: {circle}" for circle in circles(graph)]
    return sorted(set(found))


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles of modules, as many as have to be broken."""
    found = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return found
        except CycleError as error:
            circle = error.args[1]  # each is imported by the next one
            graph[circle[1]].discard(circle[0])
            found.append(" -> ".join(reversed(circle)))


def test_the_layers_hold() -> None:
    assert set(modules(ROOT)) >= {*OPTIM, "repro.train.trainer", "vision.train", "scripts.plan"}
    assert not (found := problems(ROOT)), "\n".join(["", *found])


def test_what_is_allowed(tmp_path: Path) -> None:
    write(tmp_path, "optim/adan_optim/adan.py", "def fit():\n    import timm\n")
    write(
        tmp_path,
        "repro/loop.py",
        '"""See llm.models."""\nimport adan_optim.adan\nname = "model.vocab_size"\n',
    )
    write(tmp_path, "vision/train.py", "from . import models\nfrom repro import loop\n")
    write(tmp_path, "vision/models.py", "import timm\n")
    write(tmp_path, "benchmarks/speed.py", "from llm import models\nimport vision.train\n")
    write(tmp_path, "llm/models.py", 'where = "adan.llm.models"\n')
    write(tmp_path, "scripts/report.py", "from benchmarks.speed import main\n")
    assert problems(tmp_path) == []


def test_what_is_not(tmp_path: Path) -> None:
    write(tmp_path, "optim/adan_optim/__init__.py", "from adan_optim.adan import Adan\nimport hydra.utils\n")
    write(tmp_path, "optim/adan_optim/adan.py", "def fit():\n    from repro import loop\n")
    write(tmp_path, "repro/__init__.py", "")
    write(tmp_path, "repro/loop.py", "def f():\n    import importlib\n    importlib.import_module('llm')\n")
    write(
        tmp_path,
        "repro/plan.py",
        'MODELS = "llm.models.build"\ncall(f"vision.{MODELS}")\n__import__("nlp.x")\n',
    )
    write(tmp_path, "llm/models.py", "if True:\n    from vision import train\n")
    write(tmp_path, "vision/__init__.py", "")
    write(tmp_path, "vision/train.py", "from .models import build\n")
    write(tmp_path, "vision/models.py", "def f():\n    from vision import data\n")
    write(tmp_path, "vision/data.py", "from .train import main\n")
    write(tmp_path, "benchmarks/speed.py", "from scripts import report\n")
    assert problems(tmp_path) == [
        "adan_optim, line 2: hydra.utils: adan_optim is imported without it",
        "adan_optim.adan, line 2: repro.loop: upward",
        "benchmarks.speed, line 1: scripts.report: upward",
        "circle: vision.data -> vision.train -> vision.models -> vision.data",
        "llm.models, line 2: vision.train: sideways",
        "repro.loop, line 3: llm: upward",
        "repro.plan, line 1: llm.models.build: upward",
        "repro.plan, line 2: vision: upward",
        "repro.plan, line 3: nlp.x: upward",
    ]


def write(root: Path, name: str, text: str) -> None:
    """Write a module."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
