"""Tar shards: the same samples as the folder's, whoever wrote them, and a clear error for broken ones."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import encode, picture, write_tree

from repro.errors import UserError
from repro.train.data import TrainingSampler, make_loader, shuffled
from vision.config import AugmentConfig, DataConfig
from vision.data import Images, read, shards, train_transform
from vision.data.writing import plan, write_shards

Member = tuple[str, bytes]


def write_tar(path: Path, members: list[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(number: int, begin: int = 0, classes: int = 2) -> list[Member]:
    return [
        member
        for index in range(begin, begin + number)
        for member in (
            (f"{index:05d}.jpg", encode(picture(index))),
            (f"{index:05d}.cls", str(index % classes).encode()),
        )
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training shards and one of validation."""
    write_tar(tmp_path / "shards" / "train-000000.tar", samples(3))
    write_tar(tmp_path / "shards" / "train-000001.tar", samples(2, 3))
    write_tar(tmp_path / "shards" / "val-000000.tar", samples(2, 5))
    return tmp_path / "shards"


def config(root: Path, **more: object) -> DataConfig:
    return DataConfig(
        name="webdataset", root=str(root), size=32, channels=3, mean=[0] * 3, std=[1] * 3, **more
    )


def error(root: Path, **more: object) -> str:
    with pytest.raises(UserError) as raised:
        read(config(root, **more))
    return str(raised.value)


def test_samples_come_in_the_order_of_shards_and_members(root: Path) -> None:
    train, test, classes = read(config(root))
    assert (train.labels, test.labels, classes) == ([0, 1, 0, 1, 0], [1, 0], ["0", "1"])
    assert [train.read(item) for item in train.items] == [encode(picture(index)) for index in range(5)]
    assert train.name(4) == f"{root}/train-000001.tar:00004.jpg"


def test_written_shards_are_the_folder(tmp_path: Path) -> None:
    """Also for names with dots, of both cases, that differ in the suffix alone, or that are long."""
    tree = write_tree(tmp_path / "tree")
    folder = tree / "train" / "n01440764"
    for name in ("a.b.jpg", "a.c.JPG", "same.png", "same.jpg", "x" * 120 + "ü.png"):
        kind = "PNG" if name.endswith("png") else "JPEG"
        (folder / name).write_bytes(encode(picture(len(name)), kind))
    manifest = write_shards(tree, tmp_path / "out", 20_000, workers=2)
    assert manifest["samples"] == {"train": 13, "val": 4}
    assert len(manifest["shards"]) > 4
    one = read(DataConfig(name="imagefolder", root=str(tree)))
    other = read(config(tmp_path / "out"))
    assert one[2] == other[2]
    for a, b in zip(one[:2], other[:2], strict=True):
        assert a.labels == b.labels
        assert [a.read(item) for item in a.items] == [b.read(item) for item in b.items]


def test_writing_continues_and_gives_the_same_bytes(tmp_path: Path) -> None:
    tree, out = write_tree(tmp_path / "tree", train=6), tmp_path / "out"
    first = write_shards(tree, out, 10_000, workers=0)
    assert {path.name for path in out.glob(".tmp-*")} == set()
    for name in ("train-000001.tar", "manifest.json"):
        (out / f".tmp-0123-{name}").write_bytes(b"of a process that was killed")
    kept, lost = out / "train-000000.tar", out / "train-000001.tar"
    before = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert write_shards(tree, out, 10_000, workers=0) == first
    assert (kept.stat().st_mtime_ns, lost.read_bytes()) == before
    image = next((tree / "train" / "n01440764").iterdir())
    image.write_bytes(encode(picture(77, (90, 90))))
    assert write_shards(tree, out, 10_000, workers=0) != first  # what changed is written again
    assert image.read_bytes() in [split.read(item) for split in read(config(out))[:2] for item in split.items]
    assert {path.name for path in out.glob(".tmp-*")} == set()
    (out / "train-000099.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds train-000099\.tar, which is none of these shards"):
        write_shards(tree, out, 10_000, workers=0)


def test_shards_stay_below_their_size(tmp_path: Path) -> None:
    split = read(DataConfig(name="imagefolder", root=str(write_tree(tmp_path / "tree", train=9))))[0]
    planned = plan("train", split, 15_000)
    assert [part.begin for part in planned[1:]] == [part.end for part in planned[:-1]]
    assert (planned[0].begin, planned[-1].end) == (0, 18)
    assert len(planned) > 3
    (Path(split.name(split.items[3]))).write_bytes(b"")
    with pytest.raises(UserError, match=r"_3\.JPEG: empty file"):
        plan("train", split, 15_000)


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # a file that its reader leaves open
def test_shards_of_the_webdataset_package(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=3, verbose=0) as writer:
        for index in range(5):
            image = np.asarray(picture(index))
            writer.write({"__key__": f"some/{index:04d}", "png": image, "cls": index % 3})
    with webdataset.TarWriter(str(tmp_path / "val-000000.tar")) as writer:
        writer.write({"__key__": "0", "jpg": encode(picture(9)), "json": {"label": 2, "width": 50}})
    train, test, classes = read(config(tmp_path))
    assert (train.labels, test.labels, classes) == ([0, 1, 2, 0, 1], [2], ["0", "1", "2"])
    for index in range(5):
        assert np.array_equal(np.asarray(train.open(train.items[index])), np.asarray(picture(index)))
    # and the other way: it reads ours
    tree = write_tree(tmp_path / "tree")
    write_shards(tree, tmp_path / "out", 10**6, workers=0)
    stream = webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False)
    theirs = [(sample["jpeg"], int(sample["cls"])) for sample in stream]
    ours = read(config(tmp_path / "out"))[0]
    assert theirs == [(ours.read(item), label) for item, label in zip(ours.items, ours.labels, strict=True)]


def test_batches_are_those_of_the_folder_with_any_number_of_workers(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    write_shards(tree, tmp_path / "out", 10_000, workers=0)
    seen = []
    for data, workers in ((DataConfig(name="imagefolder", root=str(tree)), 0), (config(tmp_path / "out"), 2)):
        split = read(data)[0]
        images = Images(split, 3, train_transform(config(tree), AugmentConfig()))
        sampler = TrainingSampler(shuffled(len(images), 4, seed=1))
        sampler.start_at(2, 1)
        seen.append(list(make_loader(images, sampler, 1, workers)))
    assert len(seen[0]) == 1
    for (a, x), (b, y) in zip(*seen, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_headers_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    index_shard = shards.index_shard
    monkeypatch.setattr(shards, "index_shard", lambda path: calls.append(path.name) or index_shard(path))
    first = read(config(root))[0].labels
    assert len(calls) == 3
    assert read(config(root))[0].labels == first
    assert len(calls) == 3
    write_tar(root / "val-000000.tar", samples(4, 5))
    assert len(read(config(root))[1].labels) == 4
    assert calls[3:] == ["val-000000.tar"]
    os.utime(root / "train-000001.tar", (1, 1))  # another time: it may be another file
    read(config(root))
    assert len(calls) == 6
    index = root / ".index-train.cache"
    whole = index.read_bytes()
    for position in range(0, len(whole), len(whole) // 9):
        index.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert read(config(root))[0].labels == first
        assert index.read_bytes() == whole


def test_index_in_the_cache_folder_where_shards_are_read_only(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = shards.store

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == root:
            raise PermissionError("read-only")
        store(path, content)

    monkeypatch.setattr(shards, "store", refuse)
    read(config(root))
    assert not list(root.glob(".index*"))
    assert len(list((tmp_path / "cache").rglob(".index-*.cache"))) == 2
    monkeypatch.setattr(shards, "index_shard", None)  # not needed any more
    assert len(read(config(root))[0].labels) == 5


@pytest.mark.parametrize("kept", [0.3, 0.62, 0.98])
def test_truncated_shard(root: Path, kept: float) -> None:
    path = root / "train-000001.tar"
    size = path.stat().st_size - tarfile.RECORDSIZE  # the zeros at the end are no loss
    os.truncate(path, int(kept * size) // 512 * 512 + 100)
    assert error(root).startswith(f"{path}: broken shard (")


def test_shard_without_its_end(root: Path) -> None:
    """Cut between two members: what is there looks whole."""
    path = root / "train-000001.tar"
    with tarfile.open(path) as archive:
        end = archive.getmembers()[2].offset
    os.truncate(path, end)
    assert error(root) == (
        f"{path}: broken shard (it ends without the mark of its end); get or write it again"
    )


def test_shard_that_shrinks_during_the_run(root: Path) -> None:
    train = read(config(root))[0]
    os.truncate(root / "train-000001.tar", 2000)
    with pytest.raises(UserError, match=r"train-000001\.tar:00004\.jpg: the shard became shorter"):
        train.open(4)
    (root / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar:00003\.jpg: cannot be read \(No such file"):
        train.open(3)


BAD: dict[str, tuple[Callable[[list[Member]], list[Member]], str]] = {
    "no label": (lambda m: m[:-1], ":00004.jpg: no label (.cls, or .json"),
    "no image": (lambda m: m[:-2] + m[-1:], ":00004: a label without an image"),
    "key twice": (lambda m: [*m, m[0]], ":00003.jpg: the shard has this key twice"),
    "two images": (lambda m: [*m, ("00003.png", m[0][1])], ":00003.png: the shard has this key twice"),
    "label twice": (lambda m: [*m, m[1]], ":00003.cls: the shard has this key twice"),
    "label of words": (lambda m: [*m[:-1], ("00004.cls", b"cat")], ":00004.cls: b'cat' is not a class index"),
    "label of 30 digits": (
        lambda m: [*m[:-1], ("00004.cls", b"9" * 30)],
        f":00004.cls: b'{'9' * 30}' is not a class index",
    ),
    "label of 9 digits": (  # there would be as many names of classes
        lambda m: [*m[:-1], ("00004.json", b'{"label": 999999999}')],
        ":00004.json: label 999999999 is not a class index",
    ),
    "large label": (
        lambda m: [*m[:-1], ("00004.cls", b" " * 2**21)],
        ":00004.cls: 2,097,152 bytes, which is no label",
    ),
    "deep json": (lambda m: [*m[:-1], ("00004.json", b"[" * 5000)], ":00004.json: not a JSON object"),
    "broken json": (lambda m: [*m[:-1], ("00004.json", b"{")], ":00004.json: not a JSON object"),
    "json list": (lambda m: [*m[:-1], ("00004.json", b"[1]")], ":00004.json: not a JSON object"),
    "json word": (
        lambda m: [*m[:-1], ("00004.json", b'{"label": "cat"}')],
        ":00004.json: label 'cat' is not a class index",
    ),
    "json without": (lambda m: [*m[:-1], ("00004.json", b"{}")], ":00004.jpg: no label"),
    "negative label": (
        lambda m: [*m[:-1], ("00004.cls", b"-1")],
        ":00004.jpg: label -1 in the training split",
    ),
}


def test_a_pipe_and_a_tar_of_nested_headers(root: Path) -> None:
    path = root / "train-000001.tar"
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    path.write_bytes((header.tobuf() + b"x" * 512) * 2000)
    assert error(root).startswith(f"{path}: broken shard (")
    path.unlink()
    os.mkfifo(path)
    assert error(root).startswith(f"{path}: broken shard (")


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_named(root: Path, name: str) -> None:
    change, message = BAD[name]
    path = write_tar(root / "train-000001.tar", change(samples(2, 3)))
    assert error(root).startswith(f"{path}{message}")


def test_label_out_of_range(root: Path) -> None:
    write_tar(root / "val-000000.tar", samples(8, 5, classes=8))
    assert len(read(config(root))[2]) == 8  # nothing says how many there are
    path = root / "val-000000.tar"
    wanted = f"{path}:00005.jpg: label 5 in the test split, but there are 2 classes, counted from 0"
    assert error(root, classes=2) == wanted
    (root / "classes.txt").write_text("cat\ndog\n")
    assert error(root) == wanted
    assert error(root, classes=8) == "data.classes=8: webdataset has 2 classes"


def test_mixed_and_missing_shards(root: Path) -> None:
    (root / "train-000001.tar").rename(root / "train-000003.tar")
    assert error(root) == f"{root}: train shard 1 is missing (2 of 4 are)"
    (root / "train-000003.tar").rename(root / "other-train-00000.tar")
    assert "other-train-00000.tar and train-000000.tar have the same number: two data sets?" in error(root)
    (root / "other-train-00000.tar").rename(root / "train-00001-of-00003.tar")
    assert "the train shards disagree about how many there are" in error(root)
    (root / "train-000000.tar").rename(root / "train-00000-of-00003.tar")
    assert error(root) == f"{root}: train shard 2 is missing (1 of 3 are)"
    for path in root.glob("val*"):
        path.rename(path.with_suffix(".tar.gz"))
    (root / "train-00001-of-00003.tar").rename(root / "train-00002-of-00003.tar")
    write_tar(root / "train-00001-of-00003.tar", samples(1))
    assert error(root).endswith(
        "no shards val-000000.tar, ... in it; compressed shards have no random access: unpack them"
    )


@pytest.mark.parametrize("name", ["imagenet1k-{}-0000.tar", "{}_00001.tar", "set-{}-00000-of-00001.tar"])
def test_names_of_other_shards(tmp_path: Path, name: str) -> None:
    """timm's and others' on the hub."""
    write_tar(tmp_path / name.format("train"), samples(2))
    write_tar(tmp_path / name.format("validation"), samples(1))
    train, test, _ = read(config(tmp_path))
    assert (len(train.labels), len(test.labels)) == (2, 1)


def test_broken_image_is_named_by_shard_and_member(root: Path) -> None:
    members = samples(2, 3)
    path = write_tar(root / "train-000001.tar", [(n, c[:-60] if n == "00004.jpg" else c) for n, c in members])
    split = read(config(root))[0]
    images = Images(split, 3, train_transform(config(root), AugmentConfig()))
    assert images[3][0].shape == (3, 32, 32)
    with pytest.raises(UserError, match=r"00004\.jpg: broken image \(image file is truncated") as raised:
        images[4]
    assert str(raised.value).startswith(f"{path}:00004.jpg: ")


def test_notes_of_others_are_left_out(root: Path) -> None:
    extra = [
        ("__index__.json", b"no"),
        ("._00003.jpg", b"no"),
        ("00003.txt", b"a cat"),
        ("00003.json", json.dumps({"label": 1}).encode()),
    ]
    write_tar(root / "train-000001.tar", [*samples(2, 3), *extra])
    assert read(config(root))[0].labels[3:] == [1, 0]
