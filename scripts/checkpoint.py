"""Show a checkpoint, export its weights for timm and transformers, convert its optimizer's state to ours.

    python scripts/checkpoint.py PATH [--all]
    python scripts/checkpoint.py PATH --export OUT.safetensors [--for transformers] [--ema]
    python scripts/checkpoint.py convert IN OUT [--from SOURCE] [--to adan]

PATH is a file or a folder, from one of our runs, timm, MAE, fairseq, Megatron-LM, Transformer-XL or Hugging
Face, or a bare state dict. Its contents are never executed. `convert` writes the same file with the
optimizer's state converted to that of an optimizer in optim.

Examples:
    python scripts/checkpoint.py results/comparison/winners/vit-muon
    python scripts/checkpoint.py results/comparison/winners/gpt-muon --export gpt.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in ("show", "convert", "-h", "--help"):
        words.insert(0, "show")
    parser = command_line(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show_parser = commands.add_parser("show", help="describe a file or folder; the default")
    show_parser.add_argument("path", type=Path, metavar="PATH")
    show_parser.add_argument("--all", action="store_true", help="all settings and parameter groups")
    show_parser.add_argument("--export", type=Path, metavar="OUT", help="write the weights as safetensors")
    show_parser.add_argument(
        "--for",
        dest="library",
        choices=["timm", "transformers", "same"],
        help="library whose names the weights get (same: no change); default: the one that has the model",
    )
    show_parser.add_argument("--ema", action="store_true", help="export the averaged weights")
    show_parser.add_argument("--heads", type=int, metavar="N", help="attention heads, if not in the file")
    convert_parser = commands.add_parser("convert", help="write a file with the converted optimizer's state")
    convert_parser.add_argument("file", type=Path, metavar="IN")
    convert_parser.add_argument("out", type=Path, metavar="OUT")
    convert_parser.add_argument("--at", metavar="KEY", help="place of the state, such as optimizer_states.1")
    convert_parser.add_argument(
        "--from", dest="source", help="whose state it is; default: recognised by its keys"
    )
    convert_parser.add_argument("--to", dest="target", default="adan", help="default: adan")
    convert_parser.add_argument(
        "--blocks", type=int, nargs="+", metavar="N", help="for adam_mini: blocks of each parameter, in order"
    )
    convert_parser.add_argument(
        "--regime",
        choices=["pretrain", "finetune", "diffusion"],
        default="pretrain",
        help="for AdamW to Adan: see adan_from_adamw.py",
    )
    for command in (show_parser, convert_parser):
        command.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser.parse_args(words)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

from typing import Any

import torch

from adan_optim.interop.convert import convert_state
from adan_optim.interop.sources import SOURCES, recognise
from repro import interop
from repro.errors import UserError
from repro.interop import export, states, unpickle
from repro.interop.checkpoint import named
from repro.interop.describe import describe
from repro.interop.tensors import require_values
from repro.reading import printable
from repro.train.cli import exit_status


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    options = read_options(arguments)
    try:
        show(options) if options.command == "show" else convert(options)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    except RecursionError:
        raise UserError("its contents are nested deeper than in any checkpoint") from None
    return 0


def show(options: argparse.Namespace) -> None:
    """Describe a checkpoint, and with --export write its weights."""
    if options.export:
        _check_out(options.export, options.force)
    found = interop.read(options.path)
    print("\n".join(map(printable, describe(found, options.all))))
    if options.export:
        made = export.translate(found, options.library, options.ema, options.heads)
        size = export.write(made, found, options.export)
        print(f"{options.export}: {len(made.weights)} tensors, {size:,} bytes")
        for note in made.notes:
            print(f"  {printable(note)}")


def convert(options: argparse.Namespace) -> None:
    """Write the converted file and report it.

    Raises:
        UserError: IN has no optimizer's state that can be converted, or OUT cannot be written.
    """
    _check_out(options.out, options.force)
    if options.file.is_dir():
        raise UserError(_folder(options.file))
    if options.file.suffix == ".safetensors":
        raise UserError(f"{options.file} has weights only: the optimizer's state is in another file")
    content, replaced = unpickle.read(options.file)
    if isinstance(content, unpickle.Foreign):
        raise UserError(
            f"{options.file} is a whole pickled module ({content.name}) without an optimizer's state: "
            "Transformer-XL keeps that in optimizer.pt next to it"
        )
    keys, state_dict = states.find(content, options.at, options.file)
    require_values(named(state_dict["state"]), options.file)
    try:
        source = options.source or recognise(state_dict)
        converted = convert_state(
            state_dict,
            options.source,
            options.target,
            blocks=options.blocks,
            shapes=_shapes(content),
            regime=options.regime,
        )
    except states.MALFORMED as error:
        raise UserError(
            f"{options.file}{_at(keys)}: not a sound state of an optimizer ({error!r:.150})"
        ) from None
    rest = {key: value for key, value in state_dict.items() if key not in converted}  # fairseq's loss_scale
    new = states.replaced(content, keys, {**rest, **converted})
    with export.replacing(options.out) as temporary, temporary.open("wb") as file:
        torch.save(unpickle.plain(new, namespaces=True), file)
    print(f"{options.file}{_at(keys)}: {SOURCES[source].title} ({source})")
    print(f"  {states.summary(state_dict)}")
    print(f"{options.out}{_at(keys)}: {options.target}")
    print(f"  {states.summary(converted)}")
    if replaced:
        print(
            f"written as plain data, because their classes are not loaded: {printable(', '.join(replaced))}"
        )
    clip = max((group.get("max_grad_norm") or 0 for group in state_dict["param_groups"]), default=0)
    if clip:
        print(f"it clipped gradients: also construct the optimizer with max_grad_norm={clip}")


def _check_out(out: Path, force: bool) -> None:
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file in it")
    if out.exists() and not force:
        raise UserError(f"{out} exists: give another name, or --force to overwrite it")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")


def _folder(path: Path) -> str:
    """Return why a folder cannot be converted, and which of its files can."""
    inside = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
    try:
        found = interop.read(path)
        names = [str(found.path / place.split(": ")[0]) for place in found.optimizers]
    except UserError:
        names = []
    files = f": {', '.join(dict.fromkeys(names))}" if names else ""
    return f"{path} is a folder with {inside}: name the file with the optimizer's state{files}"


def _shapes(content: Any) -> dict[str, torch.Size]:
    """Return the shapes of the model's tensors, if any, by name in lower case as in Adam-mini's groups."""
    trees = content if isinstance(content, dict) else {}
    models = (named(trees.get(key)) for key in ("model", "state_dict", "model_state_dict"))
    return {name.lower(): x.shape for model in models for name, x in model.items()}


def _at(keys: states.Place) -> str:
    """Return the place in a file, for a message."""
    return f" at {'.'.join(map(str, keys))}" if keys else ""


if __name__ == "__main__":
    sys.exit(main())
