"""Estimate what a row of the ledger needs: memory, tokens per second, days and money.

    python scripts/plan.py ROW... --gpus 8xH100 [--set key=value ...]   does it fit; what would make it fit
    python scripts/plan.py ROW... --gpus 8xH100 --optimizers adamw,...  memory by optimizer
    python scripts/plan.py --parameters 8B --gpus 64xH100               the step of every optimizer, sharded
    python scripts/plan.py [ROW...] --measure                           train some steps here, and compare

Memory is counted, on tensors without values; speed assumes a share of the GPU's peak. With --out DIR the
tables are also written there, memory.md, step.md and plan.md, with a JSON file each. See docs/plan.md.

Examples:
    python scripts/plan.py adam_mini/gpt2_small --gpus 4xA100-80
    python scripts/plan.py --parameters 8B --gpus 64xH100
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.environment import environment
from repro.errors import UserError
from repro.hardware import GPUS
from repro.results import as_text, page, write
from repro.train.cli import command_line, exit_status

if TYPE_CHECKING:
    from repro.planner.step import Setting


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan and return the exit status: 1 if --measure finds that a prediction is off."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    if not (options.rows or options.measure or options.parameters):
        raise UserError(
            "name a row, as in `python scripts/plan.py ROW --gpus 8xH100`; reproduce.py lists them"
        )
    from repro.planner import step  # these take seconds, --help needs none
    from repro.planner.describe import by_optimizer, describe
    from repro.planner.measured import CASES, compare
    from repro.planner.plan import Machine

    setting = read_setting(options)
    if options.parameters:
        machine = Machine.read(options.gpus)
        text, found = step.by_optimizer([step.read_size(options.parameters)], [machine], setting)
        note = f"{setting.tokens:,.0f} tokens on each GPU. Estimated, not measured: see docs/plan.md."
        publish(options.out, "step", "The optimizer's step", note, [text], found, words)
        return 0
    optimizers = options.optimizers.split(",") if options.optimizers else []
    if options.measure:
        cases = [(row, options.set, name) for row in options.rows for name in optimizers or [""]] or CASES
        compared = compare(cases)
        note = (
            "Predicted before and measured in a fresh process each: bytes of live tensors, and the growth "
            "of the process. Below, predicted : tensors at the peak, by kind, case by case. See docs/plan.md."
        )
        title = "Predicted and measured memory"
        publish(options.out, "plan", title, note, compared.parts, compared.found, words)
        return int(compared.off > 0)
    machine = Machine.read(options.gpus)
    if optimizers:
        text, found = by_optimizer(options.rows, options.set, optimizers, machine)
        note = (
            f"On {machine}, per GPU; GB are 1e9 bytes. States are those of the whole model; under FSDP a GPU "
            "has its part of them. Counted, not measured: see docs/plan.md."
        )
        publish(options.out, "memory", "Memory by optimizer", note, [text], found, words)
        return 0
    for name in options.rows:
        print("\n".join(describe(name, options.set, machine, setting, options.price)), flush=True)
    return 0


def read_setting(options: argparse.Namespace) -> "Setting":
    """Return what the command line assumes.

    Raises:
        UserError: a number is out of range.
    """
    from repro.planner.step import Setting

    for key in ("tokens", "mfu", "bandwidth", "pcie"):
        value = getattr(options, key)
        if value is not None and not value > 0:
            raise UserError(f"--{key} {value}: must be above 0")
    if options.mfu is not None and options.mfu > 1:
        raise UserError(f"--mfu {options.mfu}: must be above 0 and at most 1")
    rates = {key: getattr(options, key) and 1e9 * getattr(options, key) for key in ("bandwidth", "pcie")}
    return Setting(options.tokens, options.mfu, **rates)


def publish(
    folder: Path | None, name: str, title: str, note: str, parts: list[str], found: Any, words: list[str]
) -> None:
    """Print the parts of a page; if there is a folder, also write the page and its numbers there."""
    print(as_text("\n\n".join(parts)))
    if folder is not None:
        here, command = environment(), ["python", "scripts/plan.py", *words]
        made = f"`{' '.join(command)}` at commit {here['commit']}, {here['time']}, {here['system']}"
        result = {"command": command, "environment": here, "results": found}
        write(result, page(title, made, note, *parts), folder / name)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_line(__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--gpus", default="8xH100", help=f"number and kind: {', '.join(GPUS)} (8xH100)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="as for the recipe")
    parser.add_argument("--optimizers", help="names in configs/optimizer, with -bfloat16 or -int8")
    parser.add_argument("--mfu", type=float, help="share of the peak, instead of the assumed one")
    parser.add_argument("--price", type=float, help="dollars per GPU-hour, instead of the assumed price")
    parser.add_argument(
        "--parameters", metavar="SIZE", help="a language model of 350M, 8B, ... instead of a ROW"
    )
    parser.add_argument("--tokens", type=float, default=8192, help="of it in a step, on each GPU (8192)")
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB/s", help="of memory, instead of the data sheet's"
    )
    parser.add_argument("--pcie", type=float, metavar="GB/s", help="each way, instead of the data sheet's")
    parser.add_argument("--measure", action="store_true", help="train some steps here and compare")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the tables there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
