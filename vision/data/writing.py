"""Writing class folders as tar shards in the webdataset layout."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from tqdm import tqdm

from repro.errors import UserError
from repro.publish import alone, clear, is_leftover, replacing
from repro.reading import parse_json, read_bytes
from vision.config import DataConfig
from vision.data.images import Split, file_bytes, file_name, read_file, suffix
from vision.data.readers import read_imagefolder
from vision.data.shards import CLASSES, read_webdataset

MANIFEST = "manifest.json"
BLOCK = 512  # bytes, of tar
HEADERS = 3 * BLOCK  # the headers of an image and its label, and the label itself


@dataclass(frozen=True)
class Shard:
    """A shard: samples begin..end of a split. `source` is a digest of their names, labels and sizes."""

    name: str
    split: str
    begin: int
    end: int
    source: str


def write_shards(root: Path, out: Path, size: int, workers: int) -> dict[str, Any]:
    """Write `root` (train/ and val/ with class folders) as shards of about `size` bytes; return the manifest.

    The samples keep their order, so data=webdataset gives the same run as data=imagefolder. Shards are
    written atomically. The same call continues with the missing shards. The bytes depend only on the files.

    Raises:
        UserError: `root` lacks the layout of data=imagefolder, or has empty files.
    """
    train, test, classes = read_imagefolder(DataConfig(name="imagefolder", root=str(root)))
    splits = {"train": train, "val": test}
    shards = [shard for name, split in splits.items() for shard in plan(name, split, size)]
    out.mkdir(parents=True, exist_ok=True)
    if not (out / MANIFEST).exists() and (
        strange := {name for name in os.listdir(out) if name != ".lock" and not is_leftover(name, MANIFEST)}
    ):
        raise UserError(f"{out}: holds {min(strange)}, which is none of these shards; take an empty folder")
    with alone(out):
        return _write(splits, classes, shards, out, workers)


def _write(
    splits: dict[str, Split], classes: list[str], shards: list[Shard], out: Path, workers: int
) -> dict[str, Any]:
    known = {entry["name"]: entry for entry in read_manifest(out)["shards"]}
    wanted = {shard.name for shard in shards}
    clear(out, MANIFEST, CLASSES, *wanted)
    if strange := {path.name for path in out.glob("*.tar")} - wanted:
        raise UserError(f"{out}: holds {min(strange)}, which is none of these shards; take an empty folder")
    if not (out / MANIFEST).exists():
        _save_manifest(out, [])  # first, as a folder without one is not ours
    with replacing(out / CLASSES) as file:
        file.write_text("".join(f"{name}\n" for name in classes))
    done = {}
    for shard in shards:
        entry, path = known.get(shard.name, {}), out / shard.name
        if entry.get("source") == shard.source and path.exists() and path.stat().st_size == entry["bytes"]:
            done[shard.name] = entry
    rest = [shard for shard in shards if shard.name not in done]
    total = sum(shard.end - shard.begin for shard in shards)
    ready = sum(entry["samples"] for entry in done.values())
    items = (splits[shard.split].items[shard.begin : shard.end] for shard in rest)
    labels = (splits[shard.split].labels[shard.begin : shard.end] for shard in rest)
    with (
        tqdm(total=total, initial=ready, unit="image", desc="writing shards", disable=None) as bar,
        ProcessPoolExecutor(max(1, min(workers, len(rest)))) as pool,
    ):
        for entry in pool.map(_write_shard, repeat(out), rest, items, labels):
            done[entry["name"]] = entry
            bar.update(entry["samples"])
            _save_manifest(out, [done[shard.name] for shard in shards if shard.name in done])
    _save_manifest(out, [done[shard.name] for shard in shards])
    again = read_webdataset(DataConfig(name="webdataset", root=str(out)))  # also writes the index
    for split, other in zip(splits.values(), again[:2], strict=True):
        if list(split.labels) != list(other.labels):
            raise UserError(f"{out}: the shards are not what was written; run the command again")
    return read_manifest(out)


def plan(name: str, split: Split, size: int) -> list[Shard]:
    """Cut a split into shards of at most `size` bytes each, unless a single image is larger."""
    shards: list[Shard] = []
    begin, length, digest = 0, 0, hashlib.sha256()
    for index, item in enumerate(split.items):
        file = file_bytes(item)
        if file == 0:
            raise UserError(f"{split.name(item)}: empty file; get it again")
        room = HEADERS + -(-file // BLOCK) * BLOCK
        if index > begin and length + room > size:
            shards.append(Shard(f"{name}-{len(shards):06d}.tar", name, begin, index, digest.hexdigest()))
            begin, length, digest = index, 0, hashlib.sha256()
        length += room
        digest.update(
            f"{_key(file_name(item), index)} {split.labels[index]} {file}\n".encode(errors="surrogateescape")
        )
    shards.append(Shard(f"{name}-{len(shards):06d}.tar", name, begin, len(split.labels), digest.hexdigest()))
    return shards


def read_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest next to shards, or an empty one if there is none."""
    try:
        manifest = parse_json(read_bytes(out / MANIFEST))
    except FileNotFoundError:
        return {"shards": []}
    except (OSError, ValueError) as error:
        raise UserError(f"{out / MANIFEST}: not JSON; delete it to write all shards again") from error
    return dict(manifest)


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(file: str, index: int) -> str:
    """Return a unique key of a sample, without a dot, which would end it."""
    path = Path(file)
    return f"{path.parent.name.replace('.', '_')}/{index:08d}_{path.stem.replace('.', '_')}"


def _write_shard(out: Path, shard: Shard, items: Any, labels: Sequence[int]) -> dict[str, Any]:
    path = out / shard.name
    with replacing(path) as file, tarfile.open(file, mode="w") as archive:
        for index, item, label in zip(range(shard.begin, shard.end), items, labels, strict=True):
            name = file_name(item)
            key = _key(name, index)
            _add(archive, key + suffix(name), read_file(item))
            _add(archive, f"{key}.cls", str(label).encode())
    return {
        "name": shard.name,
        "samples": shard.end - shard.begin,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "source": shard.source,
    }


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # with fixed time and owner: the same files give the same bytes
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _save_manifest(out: Path, entries: Sequence[dict[str, Any]]) -> None:
    samples = {
        split: sum(e["samples"] for e in entries if e["name"].startswith(split)) for split in ("train", "val")
    }
    text = json.dumps({"samples": samples, "shards": list(entries)}, indent=1) + "\n"
    with replacing(out / MANIFEST) as file:
        file.write_text(text)
