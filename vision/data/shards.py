"""Tar shards in the webdataset layout, with access to any sample by its number.

A shard is a plain tar file. Its members KEY.jpg (or another image suffix) and KEY.cls (or KEY.json with
"label") form a sample; KEY ends at the first dot of the file name. Sequential reading could not make an epoch
a function of (seed, epoch, index), count each test image once, or continue in the middle of an epoch. So the
headers are read once into an index of offsets, and a sample is then one `pread`.
"""

import hashlib
import io
import os
import re
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from repro.errors import UserError
from repro.publish import store, stored
from repro.reading import open_file, parse_json
from vision.config import DataConfig
from vision.data.images import IMAGE_SUFFIXES, Split, find_root, read_file

SHARD = re.compile(r"(?:.*[-_])?(train|val|validation|test)[-_](\d+)(?:[-_]of[-_](\d+))?\.tar")
CLASSES = "classes.txt"  # the names of the classes, one a line, next to the shards
AGAIN = "get or write it again"
ARRAYS = ("shard", "offset", "size", "label", "member")  # fields of an index
LARGEST_LABEL = 10**6  # names are made for all classes up to the largest
LARGEST_NOTE = 1 << 20  # bytes of a .cls or .json
Sample = tuple[str, int, int, int]  # name of the image's member, offset, size, label


@dataclass
class Shards:
    """The index of a split: sample i is `size[i]` bytes at `offset[i]` of the file `paths[shard[i]]`."""

    paths: list[str]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int64]
    member: NDArray[np.bytes_]

    def read(self, index: int) -> bytes:
        """Return the image file of a sample. Each call opens the shard, so workers share no descriptor."""
        size = int(self.size[index])
        try:
            with open(self.paths[self.shard[index]], "rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, int(self.offset[index]))
        except OSError as error:
            raise UserError(f"{self.name(index)}: cannot be read ({error.strerror})") from error
        if len(content) < size:
            raise UserError(f"{self.name(index)}: the shard became shorter during the run; {AGAIN}")
        return content

    def name(self, index: int) -> str:
        """Return shard:member."""
        return f"{self.paths[self.shard[index]]}:{os.fsdecode(self.member[index])}"


def read_webdataset(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """Read shards train-000000.tar, ..., and val-000000.tar, ... (or validation-, test-), with any prefix."""
    root = find_root(config, "shards train-000000.tar, ... and val-000000.tar, ... in the webdataset layout")
    found = find_shards(root)
    test = next((name for name in ("val", "validation", "test") if name in found), "val")
    for name in ("train", test):
        if name not in found:
            packed = any(root.glob("*.tar.*z*"))
            hint = "; compressed shards have no random access: unpack them" if packed else ""
            raise UserError(f"{root}: no shards {name}-000000.tar, ... in it{hint}")
    splits = []
    for name in ("train", test):
        index = read_index(root, name, found[name])
        splits.append(Split(range(len(index.label)), index.label.tolist(), index.read, index.name))
    if (root / CLASSES).exists():
        classes = read_file(str(root / CLASSES)).decode().splitlines()
    else:
        most = max(max(split.labels, default=-1) for split in splits) + 1
        classes = [str(label) for label in range(config.classes or most)]
    return splits[0], splits[1], classes


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Return the shards of each split, ordered by number.

    Raises:
        UserError: the numbers have gaps, or two data sets are mixed.
    """
    found: dict[str, dict[int, Path]] = {}
    totals: dict[str, set[str]] = {}
    for path in sorted(root.glob("*.tar")):
        match = SHARD.fullmatch(path.name)
        if match is None:
            continue
        split, number, total = match[1], int(match[2]), match[3]
        other = found.setdefault(split, {}).setdefault(number, path)
        if other != path:
            raise UserError(f"{root}: {other.name} and {path.name} have the same number: two data sets?")
        totals.setdefault(split, set()).add(total or "")
    for split, paths in found.items():
        if len(totals[split]) > 1:
            raise UserError(f"{root}: the {split} shards disagree about how many there are: two data sets?")
        first, (total,) = min(paths), totals[split]
        count = int(total) if total else max(paths) + 1 - min(first, 1)
        missing = sorted(set(range(min(first, 1), min(first, 1) + count)) - set(paths))
        if missing:
            raise UserError(f"{root}: {split} shard {missing[0]} is missing ({len(missing)} of {count} are)")
    return {split: [paths[number] for number in sorted(paths)] for split, paths in found.items()}


def read_index(root: Path, split: str, paths: list[Path]) -> Shards:
    """Return the index of a split, cached for as long as the sizes and times of the shards stay the same.

    The cache is `.index-<split>.cache` next to the shards, or in the user's cache folder ($XDG_CACHE_HOME) if
    that cannot be written. A damaged cache is replaced.
    """
    stats = ((path.name, path.stat()) for path in paths)
    about = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "adan-shards" / key
    candidates = [folder / f".index-{split}.cache" for folder in (root, cache)]
    names = [str(path) for path in paths]
    for candidate in candidates:
        content = stored(candidate)
        if content is not None:
            with np.load(io.BytesIO(content), allow_pickle=False) as index:
                if index["about"].tolist() == about:
                    return Shards(names, *(index[key] for key in ARRAYS))
    arrays = _index(paths)
    made = io.BytesIO()
    np.savez(made, about=about, **arrays)
    for candidate in candidates:
        try:
            store(candidate, made.getvalue())
            break
        except OSError:
            continue
    return Shards(names, **arrays)


def _index(paths: list[Path]) -> dict[str, Any]:
    """Read the headers and labels of all shards, in several processes if there is much to read."""
    show = dict(desc="reading the headers of shards", unit="shard", disable=None, leave=False)
    workers = min(len(paths), os.cpu_count() or 1, 16)
    if workers > 1 and sum(path.stat().st_size for path in paths) > 2**30:
        with ProcessPoolExecutor(workers) as pool:
            shards = list(tqdm(pool.map(index_shard, paths), total=len(paths), **show))
    else:
        shards = [index_shard(path) for path in tqdm(paths, **show)]
    samples = [sample for shard in shards for sample in shard]
    return {
        "shard": np.repeat(np.arange(len(paths), dtype=np.int32), [len(shard) for shard in shards]),
        "offset": np.array([sample[1] for sample in samples], np.int64),
        "size": np.array([sample[2] for sample in samples], np.int64),
        "label": np.array([sample[3] for sample in samples], np.int64),
        "member": np.array([os.fsencode(sample[0]) for sample in samples], np.bytes_),
    }


def index_shard(path: Path) -> list[Sample]:
    """Return the samples of a shard in order. Images are not read.

    Raises:
        UserError: the tar file is incomplete, or a sample has no image or label, or two.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    records: dict[str, int] = {}  # labels of .json files; a .cls takes precedence
    try:
        with open_file(path) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if not member.isfile() or name.startswith((".", "__")):
                    continue  # metadata of webdataset (__*) or macOS (._*)
                stem, _, ending = name.partition(".")
                key, kind = f"{folder}/{stem}", "." + ending.rpartition(".")[2].lower()
                if kind in IMAGE_SUFFIXES:
                    _add(images, key, member, f"{path}:{member.name}")
                elif kind in (".cls", ".json"):
                    where = f"{path}:{member.name}"
                    if member.size > LARGEST_NOTE:
                        raise UserError(f"{where}: {member.size:,} bytes, which is no label")
                    file = archive.extractfile(member)
                    content = file.read() if file is not None else b""
                    if kind == ".cls":
                        _add(labels, key, _label(content, where), where)
                    elif (label := _json_label(content, where)) is not None:
                        _add(records, key, label, where)
            if archive.offset >= path.stat().st_size:
                raise tarfile.ReadError("it ends without the mark of its end")
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken shard ({error}); {AGAIN}") from error
    labels = records | labels
    for key, member in images.items():
        if key not in labels:
            lacks = 'no label (.cls, or .json with "label") next to it'
            raise UserError(f"{path}:{member.name}: {lacks}; {AGAIN}")
    for key in labels:
        if key not in images:
            raise UserError(f"{path}:{key.lstrip('/')}: a label without an image; {AGAIN}")
    return [(m.name, m.offset_data, m.size, labels[key]) for key, m in images.items()]


def _add(found: dict[str, Any], key: str, value: Any, where: str) -> None:
    if key in found:
        raise UserError(f"{where}: the shard has this key twice; {AGAIN}")
    found[key] = value


def _label(content: bytes, where: str) -> int:
    try:
        label = int(content)
    except ValueError:
        label = None
    return _class_index(label, repr(content[:40]), where)


def _json_label(content: bytes, where: str) -> int | None:
    """Return the "label" of a record, or None if it has none."""
    try:
        label = parse_json(content).get("label")
    except (ValueError, AttributeError):
        raise UserError(f"{where}: not a JSON object") from None
    return None if label is None else _class_index(label, f"label {label!r:.40}", where)


def _class_index(label: Any, shown: str, where: str) -> int:
    if type(label) is int and abs(label) <= LARGEST_LABEL:  # `read` reports negative ones
        return label
    raise UserError(f"{where}: {shown} is not a class index")
