"""Image data sets: readers of each format, and one Dataset class for all of them.

A file that cannot be decoded ends the run with an error that names it; images are never skipped, because two
runs that are compared should have seen the same data.
"""

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize

from repro.errors import UserError
from vision.config import AugmentConfig, DataConfig

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
Transform = Callable[[Image.Image], Tensor]


@dataclass
class Split:
    """Images that are not decoded yet: `open(items[i])` decodes the i-th."""

    items: Sequence[Any] | NDArray[np.uint8]
    labels: Sequence[int]
    open: Callable[[Any], Image.Image]


class Images(Dataset[tuple[Tensor, int]]):
    """Pairs of an image as float tensor [channels, size, size] and its class index."""

    def __init__(self, split: Split, channels: int, transform: Transform) -> None:
        self.split, self.transform = split, transform
        self.mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.split.open(self.split.items[index])
        return self.transform(image.convert(self.mode)), int(self.split.labels[index])


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
    return train, test, classes


def train_transform(data: DataConfig, augment: AugmentConfig) -> Transform:
    """Return timm's training transform; a padded crop, which timm does not have, comes before it."""
    whole = augment.crop != "resized"
    timm_transform = create_transform(
        (data.channels, data.size, data.size),
        is_training=True,
        scale=(1.0, 1.0) if whole else tuple(augment.scale),
        ratio=(1.0, 1.0) if whole else tuple(augment.ratio),
        hflip=augment.hflip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.auto_augment,
        interpolation=augment.interpolation,
        mean=tuple(data.mean),
        std=tuple(data.std),
        re_prob=augment.erase,
        re_mode=augment.erase_mode,
        re_count=augment.erase_count,
    )
    if augment.crop == "padded":
        side = (data.size, data.size)
        crop = [Resize(side, InterpolationMode.BICUBIC), RandomCrop(side, padding=augment.padding)]
        return Compose([*crop, *timm_transform.transforms])
    return timm_transform


def test_transform(data: DataConfig) -> Transform:
    """Return timm's evaluation transform: resize, central crop, normalise."""
    return create_transform(
        (data.channels, data.size, data.size),
        interpolation=data.interpolation,
        mean=tuple(data.mean),
        std=tuple(data.std),
        crop_pct=data.crop_pct,
    )


def read_digits(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """scikit-learn's 1797 handwritten digits, 8x8 grey; a fixed stratified split into 1437 and 360."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, random_state=0, stratify=digits.target
    )
    splits = [Split(images[part], digits.target[part].tolist(), Image.fromarray) for part in (train, test)]
    return splits[0], splits[1], [str(digit) for digit in range(10)]


def read_fashion_mnist(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """The four IDX files of Fashion-MNIST, 28x28 grey, gzip'd or not."""
    root = _root(
        config, "the four IDX files, e.g. train-images-idx3-ubyte.gz, of zalandoresearch/fashion-mnist"
    )
    if (root / "FashionMNIST" / "raw").is_dir():  # torchvision's layout
        root = root / "FashionMNIST" / "raw"
    splits = []
    for part in ("train", "t10k"):
        images = _read_idx(root / f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(root / f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise UserError(f"{root}: {len(images)} images but {len(labels)} labels in {part}-*")
        splits.append(Split(images, labels.tolist(), Image.fromarray))
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
    return splits[0], splits[1], [*names, "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read_cifar10(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """CIFAR-10 as image files, 32x32 RGB: class folders in train/ and test/, or two tar archives of them."""
    root = _root(
        config, "folders train/ and test/ with a folder per class, or train.tar[.gz|.xz] and test.tar[...]"
    )
    if (root / "train").is_dir():
        return read_imagefolder(config)
    train, train_classes = _read_tar(root, "train")
    test, test_classes = _read_tar(root, "test")
    _same_classes(root, train_classes, test_classes)
    return train, test, train_classes


def read_imagefolder(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """ImageNet's layout: train/ and val/ (or validation/, test/) with a folder of images per class."""
    root = _root(config, "folders train/ and val/ with a folder of images per class, as ImageNet has them")
    train, train_classes = _read_folders(_first_folder(root, "train"))
    test, test_classes = _read_folders(_first_folder(root, "val", "validation", "test"))
    _same_classes(root, train_classes, test_classes)
    return train, test, train_classes


def read_hfds(config: DataConfig) -> tuple[Split, Split, list[str]]:
    """A data set of the Hugging Face hub, or a local folder that `datasets` can read."""
    import datasets

    if config.root is None:
        raise UserError(
            "data.root is not set: data=hfds needs a name on the Hugging Face hub or a local folder"
        )
    try:
        both = [
            datasets.load_dataset(config.root, split=split)
            for split in (config.train_split, config.test_split)
        ]
    except Exception as error:  # datasets raises whatever its builders, the hub and the network do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.root={config.root}: datasets cannot load it: {reason}") from error
    splits = []
    for rows in both:
        for key in ("image_column", "label_column"):
            if getattr(config, key) not in rows.column_names:
                raise UserError(
                    f"data.{key}={getattr(config, key)}: {config.root} has {', '.join(rows.column_names)}"
                )
        images, labels = rows.select_columns([config.image_column]), list(rows[config.label_column])
        splits.append(Split(images, labels, lambda row: row[config.image_column]))
    feature = both[0].features[config.label_column]
    names = getattr(feature, "names", None) or [str(label) for label in range(max(splits[0].labels) + 1)]
    return splits[0], splits[1], list(names)


def _root(config: DataConfig, content: str) -> Path:
    if config.root is None:
        raise UserError(f"data.root is not set: data={config.name} needs a folder with {content}")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={config.root}: no such folder; data={config.name} needs {content}")
    return root


def _first_folder(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root}: no folder {' or '.join(f'{name}/' for name in names)} in it")


def _read_folders(folder: Path) -> tuple[Split, list[str]]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"{folder}: no class folders in it")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UserError(f"{folder / name}: class folder without images; fill it, or remove it everywhere")
        paths += found
        labels += [label] * len(found)
    return Split(paths, labels, lambda path: _decode(path, str(path))), classes


def _read_tar(root: Path, name: str) -> tuple[Split, list[str]]:
    """Read all of an archive once, front to back (xz has no random access), keeping the images encoded."""
    candidates = [root / f"{name}.tar{suffix}" for suffix in ("", ".xz", ".gz")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{root}: neither a folder {name}/ nor {name}.tar, {name}.tar.xz or {name}.tar.gz in it"
        )
    members: list[tuple[str, bytes]] = []
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.lower().endswith(IMAGE_SUFFIXES):
                    members.append((member.name, file.read()))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: broken archive ({error}); get it again") from error
    members.sort()
    folders = [Path(member).parent.name for member, _ in members]
    classes = sorted(set(folders))
    labels = [classes.index(folder) for folder in folders]
    return Split(members, labels, lambda item: _decode(io.BytesIO(item[1]), f"{path}:{item[0]}")), classes


def _same_classes(root: Path, train: list[str], test: list[str]) -> None:
    for name in sorted(set(train) ^ set(test)):
        there, missing = ("training", "test") if name in train else ("test", "training")
        raise UserError(f"{root}: class {name} is in the {there} split but not in the {missing} split")


def _decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:  # PIL raises both for broken files
        reason = str(error).split(" <")[0]
        raise UserError(f"{name}: broken image ({reason}); replace or delete the file") from error


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a file of MNIST's IDX format, or its gzip'd twin, into an array of that many dimensions."""
    zipped = path.with_name(path.name + ".gz")
    try:
        raw = gzip.decompress(zipped.read_bytes()) if zipped.exists() else path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path.parent}: neither {path.name} nor {zipped.name} in it") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{zipped}: broken gzip file ({error}); get it again") from error
    shape = np.frombuffer(raw[4 : 4 + 4 * dimensions], ">u4").astype(int)
    data = np.frombuffer(raw[4 + 4 * dimensions :], np.uint8)
    if raw[:4] != bytes([0, 0, 8, dimensions]) or data.size != shape.prod():
        raise UserError(f"{path}: not an IDX file of {dimensions} dimensions, or incomplete; get it again")
    return data.reshape(shape)
