"""Predict an optimizer's settings from another's, on any recipe, by the steps that both take.

Words with = choose and change the recipe's configuration, as on its own command line. A pilot trains with the
optimizer that was tuned, and the other one sees the same gradients. Nothing is written; with --out, the
numbers are, as JSON. In a run, optimizer.lr=like:adamw does the same. See docs/transfer.md.

Examples:
    python scripts/transfer.py llm/pretrain.py
    python scripts/transfer.py vision/train.py data=digits epochs=20 --like adamw --lr 1e-3 --to adan
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line, exit_status


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("recipe", help="its script, as llm/pretrain.py")
    parser.add_argument("words", nargs="*", metavar="key=value", help="as for the recipe")
    parser.add_argument(
        "--like", default="adamw", metavar="NAME", help="the optimizer that was tuned (adamw)"
    )
    parser.add_argument("--lr", type=float, help="its learning rate; default: that of configs/optimizer")
    parser.add_argument("--weight-decay", type=float, help="its weight decay; the same default")
    parser.add_argument("--to", default="adan", metavar="NAME", help="the optimizer to move to (adan)")
    parser.add_argument(
        "--pilot", type=int, metavar="STEPS", help="default: 400, at most a quarter of the run"
    )
    parser.add_argument("--samples", type=int, default=32, metavar="N", help="gradients for the noise (32)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the numbers")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

from dataclasses import asdict

from repro.environment import environment
from repro.train.run_folder import write_atomically
from repro.train.transfer import predict


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the settings and return the exit status."""
    options = read_options(arguments)
    given = {"lr": options.lr, "weight_decay": options.weight_decay}
    found = predict(
        options.recipe, options.words, options.like, given, options.to, options.pilot, options.samples
    )
    print(f"{found}\n\n{found.settings.yaml}")
    if options.out is not None:
        noise = {name: asdict(each) for name, each in found.noise.items()}
        content = {
            "settings": asdict(found.settings),
            "factor": found.factor,
            "factors": found.factors,
            "noise": noise,
        }
        write_atomically(options.out, json.dumps(content | {"environment": environment()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
