"""Checks of a data set before a run: all problems at once, each with its cure."""

import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from repro.errors import UserError
from vision.config import DataConfig
from vision.data.images import IMAGE_SUFFIXES, Split, decode, eight_bits, suffix
from vision.data.readers import class_folders, files_below, first_folder, image_files, read
from vision.data.writing import read_manifest, sha256

IMAGENET = {"train": 1_281_167, "val": 50_000}  # images of ImageNet-1k, the ILSVRC 2012 classification set
IMAGENET_CLASSES = 1000
WNID = re.compile(r"n\d{8}")  # WordNet's name of a class, e.g. n01440764 for a tench
SHOWN = 10  # names of a list in a message
LINE = "\n      "
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}  # by suffix


@dataclass
class Findings:
    """Problems, each with its cure; notes, which need none; counts of images per split."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    classes: int = 0


def check(config: DataConfig, imagenet: bool, workers: int, decoded: bool) -> Findings:
    """Check a data set: with `imagenet` against ImageNet-1k, with `decoded` decoding every image."""
    found = Findings()
    if config.name == "imagefolder":
        _check_tree(config, imagenet, found)
    if config.name == "webdataset":
        _check_digests(config, workers, found)
    try:
        train, test, classes = read(config)
    except UserError as error:
        if not found.problems:  # it may repeat one of them
            found.problems.append(str(error))
        found.notes.append("the images themselves were not checked: fix this first")
        return found
    found.classes, found.counts = len(classes), {"train": len(train.labels), "val": len(test.labels)}
    for name, split in (("training", train), ("test", test)):
        used = len(set(split.labels))
        if used < len(classes):
            found.problems.append(f"the {name} split has images of {used} of {len(classes)} classes only")
    if imagenet:
        _check_numbers(found, test)
    if decoded:
        _check_images({"train": train, "val": test}, workers, found)
    return found


def _check_tree(config: DataConfig, imagenet: bool, found: Findings) -> None:
    """Check the folders, as `read` would stop at their first problem."""
    root = Path(config.root or "").expanduser()
    if not root.is_dir():
        return  # `read` says so
    packed = sorted(path.name for path in root.glob("*.tar*"))
    try:
        folders = {
            "train": first_folder(root, "train"),
            "val": first_folder(root, "val", "validation", "test"),
        }
    except UserError as error:
        hint = ""
        if packed:
            hint = f"; unpack {', '.join(packed[:SHOWN])} into train/ and val/"
        elif any(WNID.fullmatch(name) for name in class_folders(root)):
            hint = "; this is the folder of one split: name the one above it"
        found.problems.append(f"{error}{hint}")
        return
    names = {split: class_folders(folder) for split, folder in folders.items()}
    for split, folder in folders.items():
        _check_split(folder, names[split], imagenet, found)
    if names["train"] and names["val"]:
        for one, other in (("train", "val"), ("val", "train")):
            if missing := sorted(set(names[one]) - set(names[other])):
                found.problems.append(f"classes in {one}/ but not in {other}/: {_few(missing)}")


def _check_split(folder: Path, names: list[str], imagenet: bool, found: Findings) -> None:
    """Check the folder of a split and its class folders `names`."""
    loose = image_files(folder)
    if loose and not names:
        found.problems.append(
            f"{folder}: {len(loose)} images are not in class folders, as they come in ImageNet's "
            f"archive; sort them: python vision/prepare.py sort {folder} LABELS, where LABELS is the "
            "development kit's folder or LOC_val_solution.csv"
        )
    elif loose:
        found.problems.append(f"{folder}: {len(loose)} images lie next to the class folders: {_few(loose)}")
    files = {name: files_below(folder / name) for name in names}
    images = {n: [file for file in all_ if suffix(file) in IMAGE_SUFFIXES] for n, all_ in files.items()}
    if tars := sorted(path.name for path in folder.glob("n*.tar")):
        found.problems.append(
            f"{folder}: {len(tars)} archives of classes are still packed: {_few(tars)}; "
            "unpack each into a folder of its name"
        )
    if empty := [name for name in names if not images[name]]:
        found.problems.append(f"{folder}: class folders without images: {_few(empty)}")
    if imagenet and (odd := [name for name in names if not WNID.fullmatch(name)]):
        found.problems.append(f"{folder}: folders that are no WordNet names (n01440764): {_few(odd)}")
    suffixes = (suffix(file) for name in names for file in files[name])
    others = Counter(ending or "(none)" for ending in suffixes if ending not in IMAGE_SUFFIXES)
    if deep := [f"{name}/{file}" for name in names for file in images[name] if "/" in file]:
        found.notes.append(
            f"{folder}: {len(deep)} images in folders below a class folder count for it, as "
            f"torchvision has it (in timm the innermost folder is the class): {_few(deep)}"
        )
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
        found.notes.append(f"{folder}: files that are no images and are left out: {kinds}")


def _check_digests(config: DataConfig, workers: int, found: Findings) -> None:
    """Check shards against the manifest next to them, if there is one."""
    root = Path(config.root or "").expanduser()
    entries = read_manifest(root)["shards"] if root.is_dir() else []
    missing = [entry["name"] for entry in entries if not (root / entry["name"]).exists()]
    if missing:
        found.problems.append(f"{root}: shards that its manifest names are missing: {_few(missing)}")
    there = [entry for entry in entries if entry["name"] not in missing]
    paths = [root / entry["name"] for entry in there]
    digests = _in_processes(sha256, paths, workers, "digests of shards", "shard")
    bad = [entry["name"] for entry, digest in zip(there, digests, strict=True) if digest != entry["sha256"]]
    if bad:
        found.problems.append(f"{root}: shards that are not what was written: {_few(bad)}; copy them again")


def _check_numbers(found: Findings, test: Split) -> None:
    if found.classes != IMAGENET_CLASSES:
        found.problems.append(f"{found.classes} classes, ImageNet-1k has {IMAGENET_CLASSES}")
    for split, count in IMAGENET.items():
        if found.counts[split] != count:
            found.problems.append(
                f"{split}: {found.counts[split]:,} images, ImageNet-1k has {count:,}; "
                "unpack what is missing again"
            )
    uneven = sum(number != 50 for number in Counter(test.labels).values())
    if uneven:
        found.problems.append(f"val: {uneven} classes have not 50 images, as each of ImageNet-1k has")


def _check_images(splits: dict[str, Split], workers: int, found: Findings) -> None:
    """Decode every image, and collect problems and oddities by kind."""
    broken: dict[str, list[str]] = {}
    oddities: dict[str, list[str]] = {}
    for title, split in splits.items():
        look = partial(_look, split)
        for problem, oddity, name in _in_processes(look, range(len(split.labels)), workers, title, "image"):
            if problem is not None:
                broken.setdefault(problem, []).append(name)
            if oddity is not None:
                oddities.setdefault(oddity, []).append(name)
    for problem, names in broken.items():
        found.problems.append(f"{len(names)} {problem}; get them again:{LINE}{_few(names, LINE)}")
    for oddity, names in oddities.items():
        found.notes.append(f"{len(names)} {oddity}:{LINE}{_few(names, LINE)}")


def _look(split: Split, index: int) -> tuple[str | None, str | None, str]:
    """Return an image's problem or None, its oddity or None, and its name."""
    item = split.items[index]
    name = split.name(item)
    try:
        content = split.read(item)
        if isinstance(content, Image.Image):
            return None, None, name
        if not content:
            return "empty files", None, name
        image = decode(content, name)
        plain = eight_bits(image, name)
    except UserError as error:
        return "images that cannot be read", None, str(error).split("; ")[0]
    said = FORMATS.get(suffix(name))
    if said is not None and image.format != said:
        return None, f"{image.format} images with a suffix of {said}", name
    if plain is not image:
        return None, f"{image.mode} images of 16 bits, whose high bytes are used", name
    if image.mode not in ("RGB", "L"):
        return None, f"{image.mode} images, which are converted", name
    return None, None, name


def _in_processes(
    function: Callable[[Any], Any], things: Sequence[Any], workers: int, title: str, unit: str
) -> Iterator[Any]:
    """Yield function(thing) of each thing in order, with a progress bar."""
    bar = dict(total=len(things), desc=title, unit=unit, disable=None)
    if workers == 0:
        yield from tqdm(map(function, things), **bar)
        return
    chunk = max(1, min(64, len(things) // (4 * workers)))
    with multiprocessing.Pool(workers, _set_function, (function,)) as pool:  # sent once per process
        yield from tqdm(pool.imap(_call_function, things, chunk), **bar)


_function: Callable[[Any], Any]  # of this process of the pool


def _set_function(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _call_function(thing: Any) -> Any:
    return _function(thing)


def _few(names: list[str], between: str = ", ") -> str:
    rest = len(names) - SHOWN
    return between.join(names[:SHOWN]) + (f"{between}and {rest:,} more" if rest > 0 else "")
