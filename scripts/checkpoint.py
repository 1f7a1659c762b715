"""Optimizer states in checkpoint files: what they are, and the same for the optimizers of this package.

    python scripts/checkpoint.py show FILE
    python scripts/checkpoint.py convert IN OUT [--from SOURCE] [--to adan]

FILE is what torch.save wrote: a state dict of an optimizer, or a training checkpoint with one in it (timm,
fairseq, Lightning, ours, ...). OUT gets all that IN has, with the converted state dict in its place.
"""

import argparse
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

from optim.advice import REGIMES
from optim.convert import SOURCES, TARGETS, convert_state, recognise
from repro.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show_parser = commands.add_parser("show", help="say what is in a file")
    convert_parser = commands.add_parser("convert", help="write a file with the converted states")
    for command in (show_parser, convert_parser):
        command.add_argument("file", type=Path, metavar="FILE" if command is show_parser else "IN")
        command.add_argument("--at", metavar="KEY", help="where the state dict is, as in optimizer_states.1")
        command.add_argument(
            "--trust", action="store_true", help="run what the file asks to be run when it is read"
        )
    convert_parser.add_argument("out", type=Path, metavar="OUT")
    convert_parser.add_argument("--from", dest="source", choices=SOURCES, help="default: by its keys")
    convert_parser.add_argument("--to", dest="target", choices=TARGETS, default="adan", help="default: adan")
    convert_parser.add_argument(
        "--blocks", type=int, nargs="+", metavar="N", help="to adam_mini: blocks of each parameter, in order"
    )
    convert_parser.add_argument(
        "--regime", choices=REGIMES, default="pretrain", help="from AdamW to Adan: see adan_from_adamw.py"
    )
    convert_parser.add_argument("--force", action="store_true", help="overwrite OUT")
    options = parser.parse_args(arguments)
    try:
        show(options) if options.command == "show" else convert(options)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show(options: argparse.Namespace) -> None:
    """Print where the optimizer's state dict is, whose it is, and what it holds."""
    content = read(options.file, options.trust)
    key, state_dict = find(content, options.at, options.file)
    try:
        source = recognise(state_dict)
        print(f"{options.file}{at(key)}: {SOURCES[source].title} ({source})")
    except ValueError as error:
        print(f"{options.file}{at(key)}: not recognised: {error}")
    print(summary(state_dict))
    for number, group in enumerate(state_dict["param_groups"]):
        shown = ", ".join(f"{name}={value}" for name, value in group.items() if name != "params")
        print(f"group {number}: {len(group['params'])} parameters, {shown}")


def convert(options: argparse.Namespace) -> None:
    """Write the converted file and say what was done."""
    if options.out.exists() and not options.force:
        raise UserError(f"{options.out} exists: give another name, or --force to overwrite it")
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out}: there is no folder {options.out.parent}")
    content = read(options.file, options.trust)
    key, state_dict = find(content, options.at, options.file)
    source = options.source or recognise(state_dict)
    converted = convert_state(
        state_dict,
        options.source,
        options.target,
        blocks=options.blocks,
        shapes=shapes_of(content),
        regime=options.regime,
    )
    write(replaced(content, key, converted), options.out)
    print(f"{options.file}{at(key)}: {SOURCES[source].title} ({source})")
    print(f"  {summary(state_dict)}")
    print(f"{options.out}{at(key)}: {options.target}")
    print(f"  {summary(converted)}")
    clip = max((group.get("max_grad_norm") or 0 for group in state_dict["param_groups"]), default=0)
    if clip:
        print(f"it clipped gradients: construct the optimizer with max_grad_norm={clip}, too")


def read(path: Path, trust: bool) -> Any:
    """What torch.save wrote.

    Raises:
        UserError: it cannot be read, or not without running code in it.
    """
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
        raise UserError(f"{path} is a folder with {inside}: name the file with the optimizer's state")
    try:
        with warnings.catch_warnings(action="ignore"):  # of files that are not torch's
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise UserError(f"{path} was not written by torch.save, or is damaged") from None
        raise UserError(
            f"{path} holds more than tensors and numbers ({foreign[1]}): add --trust if you know who wrote "
            "it, because reading it can run code"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (RuntimeError, EOFError, AttributeError, ImportError, ValueError) as error:
        raise UserError(f"{path} was not written by torch.save, or is damaged ({error!r:.100})") from None


def find(content: Any, key: str | None, path: Path) -> tuple[list[Any], dict[str, Any]]:
    """The place of the optimizer's state dict, as keys from the outside in, and the state dict.

    Raises:
        UserError: there is none, or there are several and `key` does not say which.
    """
    places = dict(candidates(content, 3))
    if key is not None:
        if key not in places:
            raise UserError(f"no optimizer's state dict at {key} in {path}: {_listed(places)}")
        return places[key]
    if len(places) != 1:
        cure = "; say which with --at" if places else ""
        raise UserError(f"{path} has {len(places)} state dicts of optimizers: {_listed(places)}{cure}")
    return next(iter(places.values()))


def _listed(places: dict[str, Any]) -> str:
    return "there is " + (" and ".join(places) or "none (a dict with 'state' and 'param_groups')")


def candidates(content: Any, depth: int) -> Iterator[tuple[str, tuple[list[Any], dict[str, Any]]]]:
    """All state dicts of optimizers at most `depth` levels down, with the path to them."""
    if isinstance(content, dict) and {"state", "param_groups"} <= content.keys():
        yield "", ([], content)
    elif depth and isinstance(content, (dict, list)):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            for inner, (keys, found) in candidates(value, depth - 1):
                yield f"{name}.{inner}".rstrip("."), ([name, *keys], found)


def replaced(content: Any, keys: list[Any], value: dict[str, Any]) -> Any:
    """The same content with another value at a place; nothing is changed in the original."""
    if not keys:
        return value
    copied = list(content) if isinstance(content, list) else dict(content)
    copied[keys[0]] = replaced(content[keys[0]], keys[1:], value)
    return copied


def shapes_of(content: Any) -> dict[str, torch.Size]:
    """Shapes of the model's tensors, if they are there, by name in lower case as in Adam-mini's groups."""
    shapes: dict[str, torch.Size] = {}
    for name in ("model", "state_dict", "model_state_dict"):
        weights = content.get(name) if isinstance(content, dict) else None
        if isinstance(weights, dict):
            shapes |= {str(k).lower(): x.shape for k, x in weights.items() if isinstance(x, Tensor)}
    return shapes


def write(content: Any, path: Path) -> None:
    """Save atomically: the file is there completely, or not at all.

    Raises:
        UserError: the disk refused.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from None
    finally:
        temporary.unlink(missing_ok=True)


def at(keys: list[Any]) -> str:
    """Where in a file, for a message."""
    return f" at {'.'.join(map(str, keys))}" if keys else ""


def summary(state_dict: dict[str, Any]) -> str:
    """Numbers of a state dict in a line."""
    states = [state for state in state_dict["state"].values() if state]
    tensors = [x for state in states for x in _tensors(state)]
    steps = {int(step) for step in _steps(states, state_dict["param_groups"])}
    shown = (
        "no steps" if not steps else f"step {min(steps)}" + (f" to {max(steps)}" if len(steps) > 1 else "")
    )
    size = sum(x.nbytes for x in tensors)
    return f"{len(states)} parameters with a state, {len(tensors)} tensors, {size:,} bytes, {shown}"


def _tensors(state: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors of a state, without step counts; bitsandbytes keeps some one level down."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, Tensor) and name != "step":
            yield value


def _steps(states: list[dict[str, Any]], groups: list[dict[str, Any]]) -> Iterator[float]:
    yield from (float(holder["step"]) for holder in (*states, *groups) if "step" in holder)


if __name__ == "__main__":
    sys.exit(main())
