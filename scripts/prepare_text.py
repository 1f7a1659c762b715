"""Tokenises text into shards that are mapped into memory, checks them, trains a tokenizer.

    python scripts/prepare_text.py shards FOLDER data=... tokenizer=...       for data=shards data.root=FOLDER
    python scripts/prepare_text.py check FOLDER                               is each what was written?
    python scripts/prepare_text.py train-tokenizer FOLDER data=... tokenizer=...   for tokenizer.path=FOLDER

data= and tokenizer= and their keys (data.root=PATH, tokenizer.path=PATH, tokenizer.vocab_size=N, ...) are
those of the training commands. `shards` can be stopped: the same command continues. `check` exits with
status 1 if it found a problem.
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
from repro.text import shards, sources, tokenizers
from repro.text.config import PrepareConfig
from repro.text.writing import write
from repro.train.cli import CONFIGS, command_line, exit_status, file_size, processes


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, 1 after problems were found, 2 after `error: ...`."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    options.overrides = [*getattr(options, "overrides", []), *rest]  # those after an option
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
    write_them.add_argument("folder", type=Path, help="of the shards, which holds nothing else")
    write_them.add_argument(
        "--size", type=file_size, default="16MB", help="of a shard's text (default: 16MB)"
    )
    write_them.add_argument("--workers", type=processes, default=cores, help=f"processes (default: {cores})")

    check = commands.add_parser("check", help="compare shards with their checksums")
    check.set_defaults(run=run_check)
    check.add_argument("folder", type=Path, help="what data.root would be")

    train = commands.add_parser("train-tokenizer", help="make a tokenizer from the training text")
    train.set_defaults(run=run_train)
    train.add_argument("folder", type=Path, help="of the tokenizer, a new one")

    for command in (write_them, train):
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="which text, which tokenizer")
    return top


def run_shards(options: argparse.Namespace) -> int:
    """Tokenise."""
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
    """Print what is wrong."""
    problems = shards.damaged(options.folder)
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        print(f"copy {options.folder} again, or delete it and write it again")
    else:
        print(f"{len(shards.read_manifest(options.folder)['shards']):,} shards; nothing wrong was found")
    return 1 if problems else 0


def run_train(options: argparse.Namespace) -> int:
    """Make a tokenizer."""
    config = read_config(options.overrides)
    if config.tokenizer.path is not None:
        raise UserError(f"tokenizer.path={config.tokenizer.path}: that one is made already")
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
    """Return the configuration that these words of the command line make."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return cast(PrepareConfig, OmegaConf.to_object(compose("text", list(overrides))))


if __name__ == "__main__":
    sys.exit(main())
