"""Tokenise text into shards that training maps into memory, check them, train a tokenizer.

    python scripts/prepare_text.py shards FOLDER data=... tokenizer=...       for data=shards data.root=FOLDER
    python scripts/prepare_text.py check FOLDER                               compare with the checksums
    python scripts/prepare_text.py train-tokenizer FOLDER data=... tokenizer=...   for tokenizer.path=FOLDER

data=, tokenizer= and their keys (data.root=PATH, tokenizer.path=PATH, tokenizer.vocab_size=N, ...) are those
of the training commands. `shards` can be stopped; the same command continues. `check` exits with status 1 if
it finds a problem.

Examples:
    python scripts/prepare_text.py shards runs/shards data=python_docs tokenizer=bpe --workers 2
    python scripts/prepare_text.py train-tokenizer runs/bpe data=python_docs tokenizer=bpe
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from repro.errors import UserError
from repro.text.config import PrepareConfig
from repro.train.cli import CONFIGS, command_line, exit_status, file_size, processes


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, 1 if it found problems, 2 after `error: ...`."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    options.overrides = [*getattr(options, "overrides", []), *rest]  # argparse leaves those after an option
    for word in options.overrides:
        if word.startswith("-") or "=" not in word:
            top.error(f"unrecognized argument: {word}")
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = command_line(__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    write_them = commands.add_parser("shards", help="tokenise text")
    write_them.set_defaults(run=run_shards)
    write_them.add_argument("folder", type=Path, help="of the shards; it holds nothing else")
    write_them.add_argument(
        "--size", type=file_size, default="16MB", help="of text per shard (default: 16MB)"
    )
    write_them.add_argument("--workers", type=processes, default=cores, help=f"processes (default: {cores})")

    check = commands.add_parser("check", help="compare shards with their checksums")
    check.set_defaults(run=run_check)
    check.add_argument("folder", type=Path, help="the value of data.root")

    train = commands.add_parser("train-tokenizer", help="train a tokenizer on the training text")
    train.set_defaults(run=run_train)
    train.add_argument("folder", type=Path, help="of the new tokenizer")

    for command in (write_them, train):
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="text and tokenizer")
    return top


def run_shards(options: argparse.Namespace) -> int:
    """Tokenise text and print what was written."""
    from repro.text.writing import write  # it takes seconds, --help needs none

    config, start = read_config(options.overrides), time.perf_counter()
    manifest = write(config.data, config.tokenizer, options.folder, options.size, options.workers)
    tokenizer, shards_made = manifest["tokenizer"], len(manifest["shards"])
    print(
        f"{options.folder}: {shards_made:,} shards in {time.perf_counter() - start:.0f} s: "
        f"{manifest['dtype']} ids of {tokenizer['vocab_size']:,} {tokenizer['name']} types"
    )
    for split, counts in manifest["splits"].items():
        print(f"  {split}: {counts['tokens']:,} tokens, {counts['lines']:,} {config.data.unit}")
    print(
        f"train with data=shards data.root={options.folder} tokenizer={tokenizer['name']} "
        f"tokenizer.vocab_size={tokenizer['vocab_size']}"
    )
    return 0


def run_check(options: argparse.Namespace) -> int:
    """Print the damaged shards."""
    from repro.text import shards

    problems = shards.damaged(options.folder)
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        print(f"copy {options.folder} again, or delete it and write it again")
    else:
        print(f"{len(shards.read_manifest(options.folder)['shards']):,} shards; nothing wrong was found")
    return int(bool(problems))


def run_train(options: argparse.Namespace) -> int:
    """Train a tokenizer.

    Raises:
        UserError: it exists already, or its folder has one.
    """
    from repro.text import sources, tokenizers

    config = read_config(options.overrides)
    if config.tokenizer.path is not None:
        raise UserError(f"tokenizer.path={config.tokenizer.path}: this tokenizer exists already")
    if (options.folder / "tokenizer.json").exists():
        raise UserError(f"{options.folder}: has a tokenizer; take another folder")
    train = sources.find(config.data)["train"]
    made = tokenizers.build(config.tokenizer, lambda: (lines for piece in train for lines in piece.batches()))
    made.save(options.folder)
    print(
        f"{options.folder}: {made.name}, {made.vocab_size:,} types; "
        f"use it with tokenizer={made.name} tokenizer.path={options.folder}"
    )
    return 0


def read_config(overrides: Sequence[str]) -> PrepareConfig:
    """Return the configuration for these overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return cast(PrepareConfig, OmegaConf.to_object(compose("text", list(overrides))))


if __name__ == "__main__":
    sys.exit(main())
