"""Write the tables in docs/ that are generated from code.

A table is between `<!-- begin NAME -->` and `<!-- end NAME -->`. With --check nothing is written, and the
exit status is 1 if a table is out of date.

Examples:
    python scripts/docs.py --check
    python scripts/docs.py
"""

import argparse
import sys

from repro.train.cli import command_line


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    return parser.parse_args()


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import inspect
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import adan_optim
from adan_optim import CARDS, OPTIMIZERS
from adan_optim.card import COMMON_OPTIONS, STATE_BYTES
from adan_optim.interop.integrations import register, trainer_arguments
from adan_optim.public import __all__ as PUBLIC
from repro.errors import UserError
from repro.ledger import rows
from repro.ledger.describe import published
from repro.ledger.rows import Row
from repro.planner import step
from repro.planner.plan import Machine
from repro.results import table
from repro.train.cli import exit_status

ROOT = Path(__file__).resolve().parents[1]


def optimizers() -> str:
    """Return the table of the optimizers, one line each."""
    head = ["optimizer", "state, B/parameter: float32, bfloat16, int8", "state tensors", "paths"]
    lines = []
    for name, card in CARDS.items():
        states = [f"(`{state}`)" if state in card.optional else f"`{state}`" for state in card.states]
        states += [f"*`{small}`*" for small in card.small]
        devices = {"fused": f" ({', '.join(card.fused_devices)})"}
        paths = ", ".join(path + devices.get(path, "") for path in card.paths)
        sizes = ", ".join(f"{step.state_bytes(name, kept):.3g}" for kept in STATE_BYTES)
        title = f"`{card.name}` {card.title}"
        lines.append([title, sizes, ", ".join(states), paths, card.when, card.source])
    return table([*head, "when", "source"], lines)


def steps() -> str:
    """Return the table of the time of a step, for three models of language on 8 and 64 GPUs."""
    machines = [Machine("H100", 8), Machine("H100", 64)]
    return step.by_optimizer([1e9, 8e9, 70e9], machines, step.Setting())[0]


def options() -> str:
    """Return the table of the options of each optimizer besides lr, betas, eps and weight_decay."""
    own = [(name, card.title, meaning) for card in CARDS.values() for name, meaning in card.options.items()]
    common = [(name, "all", meaning) for name, meaning in COMMON_OPTIONS.items()]
    return table(["option", "of", "meaning"], ([f"`{name}`", of, said] for name, of, said in own + common))


def ledger() -> str:
    """Return the table of the ledger's folders: rows, verified rows, runnable rows."""
    verdicts = rows.verdicts()
    tables: dict[str, list[Row]] = defaultdict(list)
    for name in rows.names():
        tables[name.partition("/")[0]].append(rows.load(name).row)
    lines = []
    for folder, group in tables.items():
        models = ", ".join(dict.fromkeys(row.model for row in group))
        verified = sum(verdicts[row.name] == "verified" for row in group)
        runnable = sum(row.status == "runnable" for row in group)
        logs = sum(bool(row.logs) for row in group)
        numbers = map(str, (len(group), logs, verified, runnable))
        lines.append([f"`{folder}`", models, *numbers])
    return table(["`configs/paper/`", "models", "rows", "with a log", "verified", "runnable"], lines)


def language() -> str:
    """Return the table of the rows that the language recipes train."""
    lines = []
    for name in rows.names():
        row = rows.load(name).row
        if row.script.startswith("nlp/") and row.status == "runnable":
            proxy = "" if row.proxy is None else " (or `--scale proxy`)"
            command = f"`python scripts/reproduce.py {name} data.root=PATH`{proxy}"
            lines.append([row.title, published(row), command])
    return table(["row", "published", "command"], lines)


def installs() -> str:
    """Return the table of the platforms, Pythons and torches that the package was tried on."""
    here = ROOT / "results" / "install"
    tried = [
        row for file in ("versions", "platforms") for row in json.loads((here / f"{file}.json").read_text())
    ]
    keys = ("platform", "python", "torch", "path", "how", "seen")
    head = ["platform", "Python", "torch", "path", "how", "what was seen"]
    return table(head, ([row.get(key, "") for key in keys] for row in tried))


# The walk-through in docs/monitor.md. Title: optimizer, options, the factor of x^2 in the objective.
WALKS: dict[str, tuple[str, dict[str, Any], float]] = {
    "Adam": ("adamw", dict(weight_decay=0.0), 0.0),
    "AdamW": ("adamw", dict(weight_decay=0.1), 0.5),
    "Adan": ("adan", {}, 0.0),
    "Adafactor": ("adafactor", {}, 0.0),
}


def walk(name: str, options: dict[str, Any], square: float) -> list[tuple[float, float]]:
    """Make 100 steps from x = 3 with lr 0.1, in float64; return x and the objective before and after each.

    The objective is x^4 + 3 x^3 + 2 + square x^2.
    """
    x = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([x], lr=0.1, **options)
    seen = []
    for _ in range(101):
        loss = x**4 + 3 * x**3 + 2 + square * x**2
        seen.append((x.item(), loss.item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen


def walkthrough() -> str:
    """Return the table of x and the objective after some steps, one column for each optimizer."""
    walks = {title: walk(*how) for title, how in WALKS.items()}
    rows = (
        [str(done), *("{:.4f}, {:.4f}".format(*seen[done]) for seen in walks.values())]
        for done in (0, 1, 11, 51, 91, 100)
    )
    return table(["step", *(f"{title}: x, objective" for title in walks)], rows)


def copied(page: str, *columns: str) -> str:
    """Return some columns of a table on a page of results/, for what docs/ says of it.

    Args:
        page: its folder.
        columns: at least what tells the table from those before it.

    Raises:
        UserError: no table of the page has these columns.
    """
    path = ROOT / "results" / page / "README.md"
    for block in path.read_text().split("\n\n"):
        head, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.split("\n"))
        if set(columns) <= set(head):
            return table(columns, ([line[head.index(name)] for name in columns] for line in lines[1:]))
    raise UserError(f"{path}: has no table with the columns {', '.join(columns)}")


def lab_claims() -> str:
    """Return the verdicts of the claims lab."""
    return copied("lab", "claim", "verdict", "so far", "power")


def lab_multipliers() -> str:
    """Return the step multipliers of the claims lab."""
    return copied("lab", "task", "optimizer", "512 steps", "2,048 steps", "8,192 steps", "power")


def lab_predictions() -> str:
    """Return what `adan_optim.transfer` predicted, and what it is worth."""
    return copied("lab", "task", "steps", "predicted", "tuned", "loss at predicted", "at 5 times")


def api() -> str:
    """Return a table of the public names for each kind, with their sources and first paragraphs."""
    optimizers = {cls.__name__: cls for cls in OPTIMIZERS.values()}
    others = {name: getattr(adan_optim, name) for name in PUBLIC if name not in optimizers}
    others |= {f"interop.integrations.{plug.__name__}": plug for plug in (register, trainer_arguments)}
    kinds: dict[str, dict[str, Any]] = {
        "Optimizers": optimizers,
        "Functions": {name: it for name, it in others.items() if inspect.isfunction(it)},
        "Classes": {name: it for name, it in others.items() if inspect.isclass(it)},
    }
    parts = []
    for kind, names in kinds.items():
        lines = []
        for name, it in names.items():
            source = Path(inspect.getsourcefile(inspect.unwrap(it)) or "").relative_to(ROOT)
            what = (inspect.getdoc(it) or "").partition("\n\n")[0].replace("\n", " ")
            lines.append([f"[`{name}`](../{source})", what])
        parts += [f"## {kind}", table(["name", "what it is"], lines)]
    return "\n\n".join(parts)


MAKERS = (
    api, installs, lab_claims, lab_multipliers, lab_predictions, language, ledger, optimizers, options, steps,
    walkthrough,
)  # fmt: skip
TABLES = {make.__name__: make for make in MAKERS}


def generated(text: str) -> str:
    """Return a page's text with all its tables up to date."""
    for name, make in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, mark, rest = text.partition(begin)
        if mark:
            text = f"{before}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


@exit_status
def main() -> int:
    """Write the tables, or name the pages that are out of date; return the exit status."""
    check = read_options().check
    stale = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text()
        if generated(text) != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(generated(text))
    if stale:
        print(("out of date, run `make docs`: " if check else "wrote ") + ", ".join(map(str, stale)))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
