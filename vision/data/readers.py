"""Readers of every format: each returns the training split, the test split and the names of the classes."""

import lzma
import math
import os
import tarfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repro.errors import UserError
from repro.reading import read_bytes, unpack
from vision.config import DataConfig
from vision.data.images import IMAGE_SUFFIXES, Split, file_name, find_root, read_file, same_classes, suffix
from vision.data.shards import LARGEST_LABEL, read_webdataset

IN_MEMORY = 4 << 30  # bytes, limit of an archive, which is kept in memory


def read(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """Return the training split, the test split and the names of the classes.

    Raises:
        UserError: the data set is missing, malformed, or does not have `config.classes` classes.
    """
    readers = {
        "digits": read_digits,
        "fashion_mnist": read_fashion_mnist,
        "cifar10": read_cifar10,
        "imagefolder": read_imagefolder,
        "webdataset": read_webdataset,
        "hfds": read_hfds,
    }
    if config.name not in readers:
        raise UserError(f"data.name={config.name}: must be one of {', '.join(readers)}")
    train, test, classes = readers[config.name](config)
    if config.classes not in (None, len(classes)):
        raise UserError(f"data.classes={config.classes}: {config.name} has {len(classes)} classes")
    for name, split in (("training", train), ("test", test)):
        if len(split.labels) == 0:
            raise UserError(f"data={config.name}: the {name} split is empty")
        labels = np.asarray(split.labels)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if wrong.size:
            item = split.name(split.items[int(wrong[0])])
            label = f"label {labels[wrong[0]]} in the {name} split"
            raise UserError(f"{item}: {label}, but there are {len(classes)} classes, counted from 0")
    return train, test, classes


def read_digits(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """Read scikit-learn's 1797 handwritten digits, 8x8 grey, in a fixed stratified split of 1437 and 360."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, random_state=0, stratify=digits.target
    )
    train, test = (
        Split(images[part], digits.target[part].tolist(), Image.fromarray, _unnamed) for part in (train, test)
    )
    return train, test, [str(digit) for digit in range(10)]


def read_fashion_mnist(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """Read the four IDX files of Fashion-MNIST, 28x28 grey, compressed by gzip or not."""
    wanted = "the four IDX files, e.g. train-images-idx3-ubyte.gz, of zalandoresearch/fashion-mnist"
    root = find_root(config, wanted)
    if (root / "FashionMNIST" / "raw").is_dir():  # torchvision's layout
        root = root / "FashionMNIST" / "raw"
    splits = []
    for part in ("train", "t10k"):
        images = _read_idx(root / f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(root / f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise UserError(f"{root}: {len(images)} images but {len(labels)} labels in {part}-*")
        splits.append(Split(images, labels.tolist(), Image.fromarray, _unnamed))
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
    return splits[0], splits[1], [*names, "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read_cifar10(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """Read CIFAR-10 as images, 32x32 RGB, in class folders below train/ and test/, or two tar archives."""
    wanted = "folders train/ and test/ with a folder per class, or train.tar[.gz|.xz] and test.tar[...]"
    root = find_root(config, wanted)
    if (root / "train").is_dir():
        return read_imagefolder(config)
    train, train_classes = _read_tar(root, "train")
    test, test_classes = _read_tar(root, "test")
    same_classes(root, train_classes, test_classes)
    return train, test, train_classes


def read_imagefolder(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """Read ImageNet's layout: train/ and val/ (or validation/, test/) with a folder of images per class."""
    root = find_root(config, "folders train/ and val/ with a folder of images per class, as in ImageNet")
    train, train_classes = _read_folders(first_folder(root, "train"))
    test, test_classes = _read_folders(first_folder(root, "val", "validation", "test"))
    same_classes(root, train_classes, test_classes)
    return train, test, train_classes


def read_hfds(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """Read a name on the Hugging Face hub, or a folder that `datasets` can load or has saved.

    Rows stay in memory-mapped Arrow files that all workers share. Images are decoded here, so that an error
    names a broken one.
    """
    import datasets

    if config.root is None:
        raise UserError("data.root is not set: data=hfds needs a name on the Hugging Face hub or a folder")
    splits = []
    for name in (config.train_split, config.test_split):
        rows = _load_rows(config.root, name)
        for key in ("image_column", "label_column"):
            if getattr(config, key) not in rows.column_names:
                there = ", ".join(rows.column_names)
                raise UserError(f"data.{key}={getattr(config, key)}: {config.root} has {there}")
        feature = rows.features[config.label_column]
        labels = rows.select_columns([config.label_column]).with_format("numpy")[:][config.label_column]
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"data.label_column={config.label_column}: holds {feature}, not class indices")
        if not isinstance(rows.features[config.image_column], datasets.Image):
            held = rows.features[config.image_column]
            raise UserError(f"data.image_column={config.image_column}: holds {held}, not images")
        images = rows.select_columns([config.image_column]).with_format(None)
        images = images.cast_column(config.image_column, datasets.Image(decode=False))
        place = partial(_row_name, config.root, name)
        splits.append(Split(range(len(rows)), labels.tolist(), partial(_read_row, images), place))
        classes = getattr(feature, "names", None)
    if classes is None:
        largest = max(max(split.labels, default=0) for split in splits)
        if largest > LARGEST_LABEL:
            raise UserError(f"data.label_column={config.label_column}: {largest} is not a class index")
        classes = [str(label) for label in range(largest + 1)]
    return splits[0], splits[1], list(classes)


def _load_rows(root: str, split: str) -> Any:
    """Return a split as a datasets.Dataset."""
    import datasets

    saved = Path(root).expanduser()
    try:
        if (saved / "dataset_dict.json").exists():  # by DatasetDict.save_to_disk
            return datasets.load_from_disk(saved)[split]
        return datasets.load_dataset(root, split=split)
    except Exception as error:  # builders, the hub and the network raise anything
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        if isinstance(error, KeyError):
            reason = f"no split {reason}"
        cure = ""
        if "gated" in str(error):
            cure = "; accept its terms on its page of the hub, then log in with `hf auth login`"
        raise UserError(f"data.root={root}: datasets cannot load it: {reason}{cure}") from error


def _read_row(images: Any, index: int) -> bytes:
    (image,) = images[index].values()
    return image["bytes"] if image["bytes"] is not None else read_file(image["path"])


def _row_name(root: str, split: str, index: int) -> str:
    return f"{root}: {split}[{index}]"


def first_folder(root: Path, *names: str) -> Path:
    """Return the first of these folders that exists in `root`."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root}: no folder {' or '.join(f'{name}/' for name in names)} in it")


def _read_folders(folder: Path) -> tuple[Split, list[str]]:
    classes = class_folders(folder)
    if not classes:
        raise UserError(f"{folder}: no class folders in it")
    paths: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = images_below(folder / name)
        if not found:
            raise UserError(f"{folder / name}: class folder without images; fill it, or remove it everywhere")
        paths += [os.fsencode(f"{folder}/{name}/{file}") for file in found]
        labels += [label] * len(found)
    return Split(np.array(paths), labels, read_file, file_name), classes


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a split's folder; a class index is a place in this list."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def image_files(folder: Path) -> list[str]:
    """Return the names of the images in a folder, sorted."""
    return sorted(name for name in os.listdir(folder) if suffix(name) in IMAGE_SUFFIXES)


def images_below(folder: Path) -> list[str]:
    """Return the images in and below a class folder, as paths relative to it."""
    return [name for name in files_below(folder) if suffix(name) in IMAGE_SUFFIXES]


def files_below(folder: Path) -> list[str]:
    """Return all files in and below a folder, sorted by folder and name as in torchvision.

    Links are followed, except to a folder above them.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    found: list[tuple[str, list[str]]] = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if not _leads_up(root, name)]
        found.append((root, sorted(files)))
    above = len(str(folder)) + 1
    return [f"{root}/{name}"[above:] for root, files in sorted(found) for name in files]


def _leads_up(root: str, name: str) -> bool:
    path = os.path.join(root, name)
    return os.path.islink(path) and Path(os.path.realpath(root)).is_relative_to(os.path.realpath(path))


def _read_tar(root: Path, name: str) -> tuple[Split, list[str]]:
    """Read an archive into memory in one pass, as xz has no random access; images stay encoded."""
    candidates = [root / f"{name}.tar{suffix}" for suffix in ("", ".xz", ".gz")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        archives = f"{name}.tar, {name}.tar.xz or {name}.tar.gz"
        raise UserError(f"{root}: neither a folder {name}/ nor {archives} in it")
    members: list[tuple[str, bytes]] = []
    size = 0
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                size += member.size
                if size > IN_MEMORY:
                    raise UserError(f"{path}: has more than {IN_MEMORY:,} bytes unpacked; unpack it")
                file = archive.extractfile(member)
                if file is not None and member.name.lower().endswith(IMAGE_SUFFIXES):
                    members.append((member.name, file.read()))
    except (
        tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, RecursionError,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: broken archive ({error}); get it again") from error
    members.sort()
    folders = [Path(member).parent.name for member, _ in members]
    classes = sorted(set(folders))
    labels = [classes.index(folder) for folder in folders]
    return Split(members, labels, _member_content, partial(_member_name, path)), classes


def _member_content(member: tuple[str, bytes]) -> bytes:
    return member[1]


def _member_name(archive: Path, member: tuple[str, bytes]) -> str:
    return f"{archive}:{member[0]}"


def _unnamed(item: Any) -> str:
    return "an image"


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a file in MNIST's IDX format, or its .gz, into an array with this number of dimensions."""
    zipped = path.with_name(path.name + ".gz")
    try:
        raw = unpack(zipped) if zipped.exists() else read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent}: neither {path.name} nor {zipped.name} in it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{zipped}: broken gzip file ({error}); get it again") from error
    shape = np.frombuffer(raw[4 : 4 + 4 * dimensions], ">u4").astype(int)
    data = np.frombuffer(raw[4 + 4 * dimensions :], np.uint8)
    if raw[:4] != bytes([0, 0, 8, dimensions]) or data.size != math.prod(shape.tolist()):
        raise UserError(f"{path}: not an IDX file of {dimensions} dimensions, or incomplete; get it again")
    return data.reshape(shape)
