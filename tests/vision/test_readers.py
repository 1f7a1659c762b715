"""Readers of every data format: on small made-up data, and on the real data where it is at hand."""

import gzip
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from repro import reading
from repro.errors import UserError
from repro.train.data import dealt, keyed, make_loader
from vision.config import AugmentConfig, DataConfig
from vision.data import Images, Split, open_sets, read, readers
from vision.data import test_transform as evaluation_transform

WHOLE = AugmentConfig(crop="none", interpolation="bicubic", hflip=0.0, color_jitter=0.0)
AUGMENTS = {"none": WHOLE, "some": replace(WHOLE, hflip=0.5)}
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


def test_a_bomb_of_gzip_and_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "UNPACKED", 10_000)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(10_001)))
    config = DataConfig(name="fashion_mnist", root=str(tmp_path))
    with pytest.raises(UserError, match=r"ubyte\.gz: broken gzip file \(.* more than 10,000 bytes unpacked"):
        read(config)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3] + 12 * [255])))  # a shape beyond all numbers
    with pytest.raises(UserError, match="not an IDX file of 3 dimensions, or incomplete"):
        read(config)
    path.write_bytes(gzip.compress(os.urandom(1000))[:-8] + bytes(8))
    with pytest.raises(UserError, match="broken gzip file"):
        read(config)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="a pipe or a device"):
        read(config)


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


def test_an_archive_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "IN_MEMORY", 10_000)
    with tarfile.open(tmp_path / "train.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("train/a/0.png")
        member.size = 10_001
        archive.addfile(member, io.BytesIO(bytes(10_001)))
    with pytest.raises(UserError, match=r"train\.tar\.xz: has more than 10,000 bytes unpacked; unpack it"):
        read(DataConfig(name="cifar10", root=str(tmp_path)))
    content = bytearray((tmp_path / "train.tar.xz").read_bytes())
    content[40] ^= 255
    (tmp_path / "train.tar.xz").write_bytes(content)
    with pytest.raises(UserError, match="broken archive"):
        read(DataConfig(name="cifar10", root=str(tmp_path)))


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


@pytest.mark.parametrize("augment", ["none", "some"])
def test_an_image_in_memory_is_made_once_unless_it_is_drawn_again(augment: str) -> None:
    config = DataConfig(valid_share=0.25)
    made = open_sets(config, AUGMENTS[augment])
    assert isinstance(made.train, Subset)
    assert (made.train[3][0] is made.train[3][0]) == (augment == "none")
    assert made.valid[3][0] is made.valid[3][0]
    assert made.test is not None
    plain = Images(made.test.split, 1, evaluation_transform(config))
    assert plain[3][0] is not plain[3][0]
    for index in (0, 3, 3):
        assert torch.equal(made.test[index][0], plain[index][0])
        assert made.test[index][1] == plain[index][1]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> datasets.DatasetDict:
    """Six training and three validation images of two classes, not in the order of their labels."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def split(number: int) -> datasets.Dataset:
        images = [{"bytes": encoded(10 * index), "path": None} for index in range(number)]
        labels = [index % 2 for index in range(number)]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    return datasets.DatasetDict({"train": split(6), "validation": split(3)})


@pytest.mark.parametrize("kind", ["saved", "saved, shuffled", "parquet"])
def test_hfds_reads_what_datasets_wrote(
    tmp_path: Path, rows: datasets.DatasetDict, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, order = tmp_path / "rows", list(range(6))
    if kind == "parquet":
        root.mkdir()
        for name, split in rows.items():
            split.to_parquet(root / f"{name}-00000-of-00001.parquet")
    else:
        if kind == "saved, shuffled":
            order = [3, 1, 0, 2]
            rows["train"] = rows["train"].select(order)
        rows.save_to_disk(root)
    config = DataConfig(name="hfds", root=str(root), size=32, test_split="validation")
    with monkeypatch.context() as patch:
        patch.setattr(datasets.Image, "decode_example", None)  # neither labels nor images are decoded there
        train, test, classes = read(config)
        assert [first_pixel(train, index) for index in range(len(order))] == [10 * index for index in order]
    assert (train.labels, test.labels, classes) == ([index % 2 for index in order], [0, 1, 0], ["cat", "dog"])
    loader = make_loader(Images(train, 1, evaluation_transform(config)), keyed(dealt(4, 2)), None, 2)
    pixels = torch.cat([images for images, _ in loader])[:, 0, 0, 0].tolist()
    assert pixels == [10 * index for index in order[:4]]


def test_hfds_names_what_is_wrong(tmp_path: Path, rows: datasets.DatasetDict) -> None:
    def error(**more: str) -> str:
        with pytest.raises(UserError) as raised:
            read(
                DataConfig(
                    **{"name": "hfds", "root": str(tmp_path / "rows"), "test_split": "validation", **more}
                )
            )
        return str(raised.value)

    broken = rows["train"].to_dict()
    broken["image"][4] = {"bytes": b"no image", "path": None}
    rows["train"] = datasets.Dataset.from_dict(broken, features=rows["train"].features)
    rows["unlabelled"] = rows["validation"].map(lambda row: {"label": -1})
    rows["words"] = rows["train"].cast_column("label", datasets.Value("string"))
    rows.save_to_disk(tmp_path / "rows")
    assert "no split 'test'" in error(test_split="test")
    assert "data.label_column=class:" in error(label_column="class")
    assert "data.label_column=label: holds" in error(test_split="words")
    assert "data.image_column=label: holds" in error(image_column="label")
    line = error(test_split="unlabelled")
    assert line.startswith(
        f"{tmp_path / 'rows'}: unlabelled[0]: label -1 in the test split, but there are 2 classes"
    )
    split = read(DataConfig(name="hfds", root=str(tmp_path / "rows"), test_split="validation"))[0]
    with pytest.raises(UserError, match=r"rows: train\[4\]: broken image \(cannot identify image file"):
        split.open(4)


def test_hfds_says_how_to_open_a_gated_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError(
            "Dataset 'ILSVRC/imagenet-1k' is a gated dataset on the Hub. You must be authenticated."
        )

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"ILSVRC/imagenet-1k: datasets cannot load it: .*; accept its terms"):
        read(DataConfig(name="hfds", root="ILSVRC/imagenet-1k"))


def test_splits_can_be_pickled(tmp_path: Path, rows: datasets.DatasetDict) -> None:
    write_folders(tmp_path / "images", "test")
    rows.save_to_disk(tmp_path / "rows")
    for config in (
        DataConfig(),
        DataConfig(name="imagefolder", root=str(tmp_path / "images")),
        DataConfig(name="hfds", root=str(tmp_path / "rows"), test_split="validation"),
    ):
        split = read(config)[0]
        again = pickle.loads(pickle.dumps(split))
        assert first_pixel(again, 3) == first_pixel(split, 3)
        assert again.name(again.items[3]) == split.name(split.items[3])


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
