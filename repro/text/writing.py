"""Tokenise text into shards (see repro/text/shards.py) with several processes.

Every process makes parts, and one appends them in the order of the text. The manifest is the truth: it is
rewritten atomically after every shard, and anything in the files beyond it is cut off when the work resumes.
So the files depend on the text and the tokenizer alone, not on the number of processes or interruptions.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from repro.errors import UserError
from repro.publish import alone, clear, replacing
from repro.text import sources, tokenizers
from repro.text.config import TextConfig, TokenizerConfig
from repro.text.shards import FORMAT, LINES, MANIFEST, Manifest, file_sizes, read_manifest, total, unit_of
from repro.text.sources import Piece
from repro.text.tokenizers import Tokenizer

_tokenizer: Tokenizer  # of this process


def write(text: TextConfig, tokenizer: TokenizerConfig, out: Path, size: int, workers: int) -> Manifest:
    """Tokenise a text into `out`, in shards of about `size` bytes of text; return the manifest.

    The same call resumes an interrupted one. With `workers` 0 this process does everything.

    Raises:
        UserError: the text cannot be read, or `out` holds something else.
    """
    splits = sources.find(text, size)
    plan = [(split, number, piece) for split, found in splits.items() for number, piece in enumerate(found)]
    out.mkdir(parents=True, exist_ok=True)
    if not (out / ".lock").exists() and not (out / MANIFEST).exists():  # not ours, unless it is empty
        for path in out.iterdir():
            raise UserError(f"{out}: has {path.name} in it, and is no folder of shards; take an empty folder")
    with alone(out):
        clear(out, MANIFEST)
        clear(out / "tokenizer", "tokenizer.json", tokenizers.ABOUT, "asked.json")
        kind = (text.strip, text.rows) if text.unit == "lines" else (text.unit, text.end_of_document)
        source = _digest([(split, piece.name, piece.size, *kind) for split, _, piece in plan])
        made = _make_tokenizer(tokenizer, splits["train"], out, source)
        wanted = {
            "format": FORMAT,
            "text": text.name,
            "source": source,
            "tokenizer": {"name": made.name, "vocab_size": made.vocab_size, "fingerprint": made.fingerprint},
            "dtype": made.dtype.name,
            **(unit_of(text) if text.unit != TextConfig.unit else {}),
        }
        end = tokenizers.end_of_document(text, made)
        manifest = _begin(out, wanted, list(splits))
        rest = plan[len(manifest["shards"]) :]
        parts = out / "parts"
        parts.mkdir(exist_ok=True)
        everything = sum(piece.size for _, _, piece in plan)
        ready = sum(piece.size for _, _, piece in plan[: len(manifest["shards"])])
        unit = plan[0][2].unit
        bar = tqdm(None, "tokenising", everything, initial=ready, disable=None, unit=unit, unit_scale=True)
        with bar, _pool(out, min(workers, len(rest))) as run:
            work = [(piece, parts / f"{split}-{number:06d}", end) for split, number, piece in rest]
            for (split, number, piece), entry in zip(rest, run(_tokenise, work), strict=True):
                _append(out, split, parts / f"{split}-{number:06d}", manifest, entry)
                bar.update(piece.size)
        shutil.rmtree(parts)
        for split in splits:
            if not total(manifest, split, "tokens"):
                raise UserError(f"data={text.name}: the {split} split has no text in it")
        manifest["complete"] = True
        _save(out, manifest)
    return manifest


def _make_tokenizer(config: TokenizerConfig, train: list[Piece], out: Path, source: str) -> Tokenizer:
    """Return the tokenizer; if it is made from the text, it is made once and then read from the folder.

    Raises:
        UserError: the folder was begun with another one.
    """
    place = out / "tokenizer"
    asked = {"name": config.name, "vocab_size": config.vocab_size, "source": source}
    if config.path is None and (place / "asked.json").exists():
        if json.loads((place / "asked.json").read_text()) != asked:
            raise UserError(f"{out}: was begun with another tokenizer or text; take an empty folder")
        return tokenizers.load(place)
    made = tokenizers.build(config, lambda: (lines for piece in train for lines in piece.batches()))
    if (out / MANIFEST).exists():
        return made  # the manifest tells if it is another one
    made.save(place)
    if config.path is None:
        with replacing(place / "asked.json") as file:  # last, so the tokenizer is complete
            file.write_text(json.dumps(asked))
    return made


def _begin(out: Path, wanted: Manifest, splits: list[str]) -> Manifest:
    """Return the existing manifest, after cutting the files to it, or a new one with empty files.

    Raises:
        UserError: it is of another text or tokenizer, or a file is too short.
    """
    if not (out / MANIFEST).exists():
        manifest = {**wanted, "complete": False, "splits": {}, "shards": []}
        for split in splits:
            (out / f"{split}.tokens").write_bytes(b"")
            (out / f"{split}.lines").write_bytes(np.zeros(1, LINES).tobytes())
        _save(out, manifest)
        return manifest
    manifest = read_manifest(out)
    for key, what in {"tokenizer": "tokenizer", "source": "text", "text": "text"}.items():
        if manifest[key] != wanted[key]:
            raise UserError(f"{out}: holds shards of another {what}; take an empty folder")
    for split in splits:
        for path, length in file_sizes(out, manifest, split):
            if not path.exists() or path.stat().st_size < length:
                raise UserError(f"{path}: is shorter than {MANIFEST} says; delete {out} and write it again")
            os.truncate(path, length)
    return manifest


def _tokenise(work: tuple[Piece, Path, int | None]) -> dict[str, Any]:
    """Write the tokens of a piece and the ends of its lines; return its entry in the manifest.

    It is done in a thread, for which glibc takes the library's many small blocks of memory from an arena of
    their own: a tenth faster than from the heap that imports have left in pieces.
    """
    made: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            made.set_result(_write_part(*work))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # daemon: an interrupted process does not wait for it
    return made.result()


def _write_part(piece: Piece, place: Path, end: int | None) -> dict[str, Any]:
    digest, tokens = hashlib.sha256(), 0
    ends = []
    with place.with_suffix(".tokens").open("wb") as file:
        for lines in piece.batches():
            ids, counts = _tokenizer.encode_flat(lines, end)
            file.write(ids.data)
            digest.update(ids.data)
            ends.append(tokens + counts.cumsum())
            tokens += len(ids)
    flat = np.concatenate([np.zeros(0, LINES), *ends]).astype(LINES)
    digest.update(flat.data)
    flat.tofile(place.with_suffix(".lines"))
    return {"source": piece.name, "tokens": tokens, "lines": len(flat), "sha256": digest.hexdigest()}


def _append(out: Path, split: str, part: Path, manifest: Manifest, entry: dict[str, Any]) -> None:
    """Append a part to the files of its split and to the manifest, then delete it."""
    before = total(manifest, split, "tokens")
    with part.with_suffix(".tokens").open("rb") as made, (out / f"{split}.tokens").open("ab") as file:
        shutil.copyfileobj(made, file, 2**20)
        file.flush()
        os.fsync(file.fileno())
    with (out / f"{split}.lines").open("ab") as file:
        file.write((np.fromfile(part.with_suffix(".lines"), LINES) + before).data)
        file.flush()
        os.fsync(file.fileno())
    manifest["shards"].append({"split": split, **entry})
    manifest["splits"][split] = {key: total(manifest, split, key) for key in ("tokens", "lines")}
    _save(out, manifest)
    for suffix in (".tokens", ".lines"):
        part.with_suffix(suffix).unlink()


def _save(out: Path, manifest: Manifest) -> None:
    with replacing(out / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=1) + "\n")


def _digest(things: Any) -> str:
    return hashlib.sha256(json.dumps(things).encode()).hexdigest()


@contextmanager
def _pool(out: Path, workers: int) -> Iterator[Any]:
    """Yield a map function over processes that have loaded the folder's tokenizer."""
    if workers == 0:
        _start(out / "tokenizer")
        yield map
        return
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(out / "tokenizer",)) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(cancel_futures=True)  # unfinished parts are useless
            raise


def _start(tokenizer: Path) -> None:
    global _tokenizer
    _tokenizer = tokenizers.load(tokenizer)
    parent = parent_process()
    if parent is not None:  # a worker: it uses one thread, and ends with its parent
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

        def watch() -> None:
            connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
