"""Splits of encoded images, and the Dataset that decodes and transforms them."""

import io
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from repro.errors import UserError
from vision.config import DataConfig

SIXTEEN_BITS = ("PNG", "PPM")  # formats whose grey images of mode I have at most 16 bits
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
Transform = Callable[[Image.Image], Tensor]


@dataclass
class Split:
    """Images that are not decoded yet.

    Workers share it, so its functions must be picklable, and large data is in arrays: the reference counts of
    many objects would copy memory pages in every worker.

    Attributes:
        items: one argument of `read` for each image.
        labels: their class indices.
        read: returns the file content of an item, or its image if the data set stores pixels.
        name: returns the name of an item in errors.
    """

    items: Sequence[Any] | NDArray[Any]
    labels: Sequence[int]
    read: Callable[[Any], bytes | Image.Image]
    name: Callable[[Any], str] = str

    @property
    def decoded(self) -> bool:
        """Whether the items are pixels in memory."""
        return self.read is Image.fromarray

    def open(self, item: Any, draft: tuple[int, int] | None = None) -> Image.Image:
        """Return an item as an image, decoded at a size for `draft` as in PIL's Image.draft.

        Raises:
            UserError: the file is broken; the error names it.
        """
        content = self.read(item)
        return decode(content, self.name(item), draft) if isinstance(content, bytes) else content


class Images(Dataset[tuple[Tensor, int]]):
    """Pairs of an image, uint8 [channels, size, size], and its class index."""

    def __init__(
        self, split: Split, channels: int, transform: Transform, draft: int | None = None, random: bool = True
    ) -> None:
        """Transform the images of a split.

        Args:
            draft: decode JPEGs at the smallest of 1, 1/2, 1/4, 1/8 with both sides at least this long.
            random: whether `transform` is random; if not, its results for pixels in memory are cached.
        """
        self.split, self.transform = split, transform
        self.mode = "L" if channels == 1 else "RGB"
        self.draft = None if draft is None else (draft, draft)
        self.kept: dict[int, Tensor] | None = {} if split.decoded and not random else None

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.split.labels[index])
        if self.kept is None:
            return self._make(index), label
        if index not in self.kept:
            self.kept[index] = self._make(index)
        return self.kept[index], label

    def _make(self, index: int) -> Tensor:
        image = self.split.open(self.split.items[index], self.draft)
        if image.mode != self.mode:  # `convert` would copy anyway
            image = eight_bits(image, self.split.name(self.split.items[index])).convert(self.mode)
        return self.transform(image)


def decode(content: bytes, name: str, draft: tuple[int, int] | None = None) -> Image.Image:
    """Decode the bytes of an image file; see Split.open."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if draft is not None:
                image.draft(None, draft)  # None keeps the mode
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # any of PIL's
        reason = str(error).split(" <")[0]
        raise UserError(f"{name}: broken image ({reason}); replace or delete the file") from error


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Return an image with 8 bits a channel: the high byte of 16 bits, as PIL reads 16-bit RGB.

    PIL's own conversion clips grey values at 255.

    Raises:
        UserError: the pixels have 32 bits, of unknown range; the error names the image.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = f"pixels of 32 bits (mode {image.mode}), whose range is unknown"
        raise UserError(f"{name}: {kind}; save it with 8 or 16")
    return image


def read_file(path: str | bytes) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: it cannot be read, or is not a regular file; reading a pipe would block.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            _require_file(os.fstat(file.fileno()), path)
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def file_bytes(path: str | bytes) -> int:
    """Return the size of a file in bytes; see read_file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    _require_file(status, path)
    return status.st_size


def _require_file(status: os.stat_result, path: str | bytes) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{os.fsdecode(path)}: cannot be read (not a regular file)")


def _unreadable(path: str | bytes, error: OSError) -> UserError:
    name = os.fsdecode(path)
    broken = isinstance(error, FileNotFoundError) and os.path.islink(name)
    reason = f"a link to {os.readlink(name)}, which is missing" if broken else error.strerror
    return UserError(f"{name}: cannot be read ({reason})")


def file_name(path: str | bytes) -> str:
    """Return a path as text, like os.fsdecode, which cannot be pickled."""
    return os.fsdecode(path)


def suffix(name: str) -> str:
    """Return the suffix of a file name in lower case: .jpeg of n01440764_36.JPEG."""
    return Path(name).suffix.lower()


def same_classes(root: Path, train: list[str], test: list[str]) -> None:
    """Raise UserError unless both splits have the same classes."""
    for name in sorted(set(train) ^ set(test)):
        there, missing = ("training", "test") if name in train else ("test", "training")
        raise UserError(f"{root}: class {name} is in the {there} split but not in the {missing} split")


def find_root(config: DataConfig, content: str) -> Path:
    """Return data.root, or raise UserError, which states the required `content`, if it is no folder."""
    if config.root is None:
        raise UserError(f"data.root is not set: data={config.name} needs a folder with {content}")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={config.root}: no such folder; data={config.name} needs {content}")
    return root
