"""Small made-up images and ImageNet's layout of them, for tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n02102040")


def picture(seed: int = 0, size: tuple[int, int] = (50, 40), mode: str = "RGB") -> Image.Image:
    """An image of random pixels, width x height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_tree(root: Path, train: int = 4, val: int = 2, classes: tuple[str, ...] = CLASSES) -> Path:
    """ImageNet's layout: `train` and `val` images in each class."""
    for split, number in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                content = encode(picture(100 * label + 10 * index + len(split)))
                (folder / f"{name}_{index}.JPEG").write_bytes(content)
    return root
