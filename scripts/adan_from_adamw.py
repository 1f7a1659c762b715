"""Derive Adan's settings from AdamW's.

Prints each setting with its reason, and the lines for a file in configs/optimizer.

Examples:
    python scripts/adan_from_adamw.py --lr 1e-3 --weight-decay 0.05
    python scripts/adan_from_adamw.py --lr 2e-5 --warmup 500 --regime finetune
"""

import argparse
import sys
from collections.abc import Sequence

from repro.train.cli import command_line, exit_status


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--lr", type=float, required=True, help="AdamW's peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="AdamW's (default: 0.01)")
    parser.add_argument("--warmup", type=int, default=0, help="steps of AdamW's warm-up (default: 0)")
    parser.add_argument(
        "--regime",
        choices=["pretrain", "finetune", "diffusion"],
        default="pretrain",
        help="default: pretrain",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

from adan_optim.interop.advice import adan_from_adamw
from repro.errors import UserError


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the settings and return the exit status."""
    try:
        settings = adan_from_adamw(**vars(read_options(arguments)))
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"{settings}\n\n{settings.yaml}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
