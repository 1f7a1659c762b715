"""Readers of every data format: on small made-up data, and on the real data where it is at hand."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision.config import DataConfig
from vision.data import Images, Split, read
from vision.data import test_transform as evaluation_transform

real = pytest.mark.skipif("ADAN_DATA" not in os.environ, reason="ADAN_DATA names no folder with real data")


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def first_pixel(split: Split, index: int) -> int:
    return int(np.asarray(split.open(split.items[index])).flat[0])


def test_digits_split_is_fixed_and_stratified() -> None:
    train, test, classes = read(DataConfig())
    assert (len(train.labels), len(test.labels), len(classes)) == (1437, 360, 10)
    assert np.bincount(test.labels).min() >= 34
    assert test.labels[:10] == read(DataConfig())[1].labels[:10]


def write_idx(path: Path, array: np.ndarray, zipped: bool) -> None:
    raw = (
        bytes([0, 0, 8, array.ndim])
        + b"".join(size.to_bytes(4, "big") for size in array.shape)
        + array.tobytes()
    )
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
    else:
        path.write_bytes(raw)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path: Path, zipped: bool, below: str) -> None:
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for part, number in (("train", 6), ("t10k", 3)):
        images = np.arange(number, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", images, zipped)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(number, dtype=np.uint8), zipped)
    train, test, _ = read(DataConfig(name="fashion_mnist", root=str(tmp_path)))
    assert (train.labels, test.labels) == ([0, 1, 2, 3, 4, 5], [0, 1, 2])
    assert first_pixel(train, 5) == 5


def write_folders(root: Path, test_name: str) -> None:
    for split in ("train", test_name):
        for label, name in enumerate(("b_second", "a_first")):
            (root / split / name).mkdir(parents=True)
            for index in range(3):
                (root / split / name / f"{index}.png").write_bytes(encoded(10 * label + index))
    (root / "train" / "a_first" / "notes.txt").write_text("not an image")


@pytest.mark.parametrize("test_name", ["val", "validation", "test"])
def test_imagefolder(tmp_path: Path, test_name: str) -> None:
    write_folders(tmp_path, test_name)
    train, test, classes = read(DataConfig(name="imagefolder", root=str(tmp_path)))
    assert classes == ["a_first", "b_second"]
    assert train.labels == test.labels == [0, 0, 0, 1, 1, 1]
    assert [first_pixel(train, index) for index in (0, 5)] == [10, 2]


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_cifar10_from_tar_is_cifar10_from_folders(tmp_path: Path, suffix: str) -> None:
    write_folders(tmp_path / "folders", "test")
    (tmp_path / "tars").mkdir()
    for split in ("train", "test"):
        with tarfile.open(tmp_path / "tars" / f"{split}.tar{suffix}", f"w:{suffix[1:]}") as archive:
            archive.add(tmp_path / "folders" / split, split)
    one = read(DataConfig(name="cifar10", root=str(tmp_path / "folders")))
    other = read(DataConfig(name="cifar10", root=str(tmp_path / "tars")))
    assert one[2] == other[2]
    for a, b in zip(one[:2], other[:2], strict=True):
        assert a.labels == b.labels
        assert [first_pixel(a, i) for i in range(6)] == [first_pixel(b, i) for i in range(6)]


def test_hfds_reads_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_folders(tmp_path / "images", "test")
    (tmp_path / "images" / "train" / "a_first" / "notes.txt").unlink()
    config = DataConfig(name="hfds", root=str(tmp_path / "images"), size=32)
    train, test, classes = read(config)
    assert classes == ["a_first", "b_second"]
    assert train.labels == test.labels == [0, 0, 0, 1, 1, 1]
    image, label = Images(train, 1, evaluation_transform(config))[5]
    assert (image.shape, label) == ((1, 32, 32), 1)


@real
@pytest.mark.parametrize(
    ("name", "folder", "sizes", "shape"),
    [
        ("fashion_mnist", "fashion-mnist", (60000, 10000), (28, 28)),
        ("cifar10", "cifar10-jpeg", (50000, 10000), (32, 32)),
        ("imagefolder", "imagenette-224-subset", (1400, 500), None),
    ],
)
def test_real_data(name: str, folder: str, sizes: tuple[int, int], shape: tuple[int, int] | None) -> None:
    train, test, classes = read(DataConfig(name=name, root=f"{os.environ['ADAN_DATA']}/{folder}"))
    assert (len(train.labels), len(test.labels), len(classes)) == (*sizes, 10)
    assert len(set(np.bincount(train.labels))) == 1  # all three are balanced
    image = train.open(train.items[0])
    assert shape in (None, image.size)
    if name == "cifar10":  # the official order begins frog, truck, truck; files are in class order
        assert classes[:3] == ["airplane", "automobile", "bird"]
