"""Tokenised text in files that are mapped into memory.

A folder has tokenizer/, manifest.json, and for every split

    train.tokens    [tokens]: the ids of all lines, uint16 or uint32, little-endian
    train.lines     [lines + 1], int64: the begin of each line in them, and the end of the last one

A shard is the stretch of these files made from one piece of the text; the manifest lists the shards. Its
SHA-256 covers its tokens and the ends of its lines, counted from the beginning of the shard.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from repro.errors import UserError
from repro.reading import parse_json, read_bytes
from repro.text import tokenizers
from repro.text.config import TextConfig, TokenizerConfig
from repro.text.tokenizers import Tokenizer

MANIFEST = "manifest.json"
FORMAT = 1
LINES = np.dtype("<i8")
BLOCK = 2**24  # tokens or lines checked at once
Manifest = dict[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        UserError: there is none, or it is damaged or of something else.
    """
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_bytes(path))
    except OSError as error:
        raise UserError(
            f"{folder}: no {MANIFEST} in it; `scripts/prepare_text.py shards FOLDER` makes such a folder"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON; delete {folder} and write it again") from error
    if not isinstance(manifest, dict) or not {"format", "tokenizer", "dtype", "shards"} <= manifest.keys():
        raise UserError(f"{path}: not a manifest of scripts/prepare_text.py")
    return manifest


def total(manifest: Manifest, split: str, key: str) -> int:
    """Return the number of "tokens" or "lines" in the shards of a split."""
    return sum(entry[key] for entry in manifest["shards"] if entry["split"] == split)


def file_sizes(out: Path, manifest: Manifest, split: str) -> list[tuple[Path, int]]:
    """Return the files of a split and their sizes in bytes."""
    tokens, lines = (total(manifest, split, key) for key in ("tokens", "lines"))
    size = np.dtype(manifest["dtype"]).itemsize
    return [(out / f"{split}.tokens", tokens * size), (out / f"{split}.lines", (lines + 1) * LINES.itemsize)]


def open_folder(folder: Path, asked: TokenizerConfig) -> tuple[Tokenizer, Manifest]:
    """Return the tokenizer and the manifest of a complete folder of shards.

    Raises:
        UserError: the folder is incomplete, a file has the wrong size, or the tokenizer is not as `asked`.
    """
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise UserError(f"{folder}: is not complete; run the command that began it again")
    for split in manifest["splits"]:
        for path, size in file_sizes(folder, manifest, split):
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise UserError(
                    f"{path}: has {found:,} bytes, {MANIFEST} says {size:,}; copy the folder again, or "
                    "delete it and write it again"
                )
    tokenizer = tokenizers.load(folder / "tokenizer")
    if tokenizer.fingerprint != manifest["tokenizer"]["fingerprint"]:
        raise UserError(f"{folder / 'tokenizer'}: is not the tokenizer of these shards; write them again")
    if asked.name not in (tokenizer.name, "file"):
        raise UserError(f"tokenizer.name={asked.name}: {folder} was made with tokenizer={tokenizer.name}")
    most = asked.name in ("words", "bytes", "bpe", "wordpiece") and asked.path is None
    if asked.vocab_size is not None and not (
        tokenizer.vocab_size == asked.vocab_size or (most and tokenizer.vocab_size < asked.vocab_size)
    ):
        raise UserError(
            f"tokenizer.vocab_size={asked.vocab_size}: {folder} was made with one of "
            f"{tokenizer.vocab_size:,} entries"
        )
    if asked.path is not None:
        other = tokenizers.build(asked, list)
        if other.fingerprint != tokenizer.fingerprint:
            raise UserError(f"tokenizer.path={asked.path}: is not the tokenizer with which {folder} was made")
    return tokenizer, manifest


def unit_of(thing: Manifest | TextConfig) -> Manifest:
    """Return the settings on the unit of text in a manifest or a configuration; older manifests have none."""
    made = thing if isinstance(thing, dict) else vars(thing)
    return {key: made.get(key, getattr(TextConfig, key)) for key in ("unit", "end_of_document")}


def check_unit(folder: Path, manifest: Manifest, asked: TextConfig) -> None:
    """Raise UserError if shards do not have the unit that is asked for; data=shards takes any."""
    for key, made in unit_of(manifest).items():
        wanted = getattr(asked, key)
        anything = asked.name == "shards" and wanted == getattr(TextConfig, key)
        if wanted != made and not anything:
            wanted, made = (str(value).lower() for value in (wanted, made))
            raise UserError(
                f"data.{key}={wanted}: {folder} was made with data.{key}={made}; say so, or write it again"
            )


def mapped(folder: Path, manifest: Manifest, split: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the ids [tokens] and line offsets [lines + 1] of a split, mapped from their files.

    Raises:
        UserError: the offsets do not cover the ids.
    """
    ids = np.memmap(folder / f"{split}.tokens", np.dtype(manifest["dtype"]).newbyteorder("<"), "r")
    lines = np.memmap(folder / f"{split}.lines", LINES, "r")
    if lines[0] != 0 or lines[-1] != len(ids):
        raise UserError(
            f"{folder / split}.lines: does not belong to the tokens next to it; write the folder again"
        )
    return ids, lines


def damaged(folder: Path) -> list[str]:
    """Read every shard of a complete folder, and return a line for each one that is damaged."""
    _, manifest = open_folder(folder, TokenizerConfig(name="file"))
    problems = []
    splits = {split: mapped(folder, manifest, split) for split in manifest["splits"]}
    begins = {split: [0, 0] for split in splits}
    for number, shard in enumerate(tqdm(manifest["shards"], unit="shard", desc="checking", disable=None)):
        (ids, lines), (token, line) = splits[shard["split"]], begins[shard["split"]]
        digest = hashlib.sha256()
        for begin in range(token, token + shard["tokens"], BLOCK):
            digest.update(ids[begin : min(begin + BLOCK, token + shard["tokens"])].data)
        for begin in range(line, line + shard["lines"], BLOCK):
            digest.update((lines[begin + 1 : min(begin + BLOCK, line + shard["lines"]) + 1] - token).data)
        if digest.hexdigest() != shard["sha256"]:
            problems.append(f"shard {number} ({shard['split']}, {shard['source']}) is not what was written")
        begins[shard["split"]] = [token + shard["tokens"], line + shard["lines"]]
    return problems
