"""The command that looks for what is wrong with a data set, and the two that rearrange one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from made_images import CLASSES, encode, picture, write_tree
from PIL import Image

from repro.errors import UserError
from vision import prepare
from vision.config import DataConfig
from vision.data import Images, checking, read
from vision.data.images import eight_bits

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """ImageNet's layout, two classes."""
    return write_tree(tmp_path / "tree", train=3, val=2)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command; returns (exit status, stdout, stderr)."""

    def start(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = prepare.main([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return start


def problems(run: Run, root: Path, *more: str) -> list[str]:
    """What `check` finds, which must be something."""
    status, out, _ = run("check", root, "--workers", 0, *more)
    assert status == 1
    return [text.removeprefix("problem: ") for text in out.splitlines() if text.startswith("problem: ")]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_wrong(run: Run, tree: Path, workers: int) -> None:
    status, out, _ = run("check", tree, "--workers", workers)
    assert (status, out) == (0, "2 classes; 6 training, 4 test images\nnothing wrong was found\n")
    assert "not decoded" in run("check", tree, "--no-decode")[1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_broken_image_is_named(run: Run, tree: Path, workers: str) -> None:
    train, val = tree / "train" / CLASSES[0], tree / "val" / CLASSES[1]
    empty, cut, text = train / f"{CLASSES[0]}_0.JPEG", train / f"{CLASSES[0]}_2.JPEG", val / "x.png"
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-300])
    text.write_bytes(b"no image")
    status, out, _ = run("check", tree, "--workers", workers)
    assert status == 1
    assert f"problem: 1 empty files; get them again:\n      {empty}\n" in out
    assert (
        f"problem: 2 images that cannot be read; get them again:\n      {cut}: broken image (image file"
        in out
    )
    assert f"\n      {text}: broken image (cannot identify image file" in out
    assert run("check", tree, "--no-decode")[0] == 0


def test_oddities_are_notes(run: Run, tree: Path) -> None:
    folder = tree / "train" / CLASSES[0]
    (folder / "png.JPEG").write_bytes(encode(picture(), "PNG"))
    (folder / "cmyk.JPEG").write_bytes(encode(picture(mode="CMYK")))
    (folder / "grey.JPEG").write_bytes(encode(picture(mode="L")))
    (folder / "Thumbs.db").write_bytes(b"")
    status, out, _ = run("check", tree, "--workers", 0)
    assert status == 0
    notes = [line for line in out.splitlines() if line.startswith(("note", "      "))]
    assert notes == [
        f"note: {tree}/train: files that are no images and are left out: 1 .db",
        "note: 1 CMYK images, which are converted:",
        f"      {folder}/cmyk.JPEG",
        "note: 1 PNG images with a suffix of JPEG:",
        f"      {folder}/png.JPEG",
    ]


def test_images_in_folders_below_a_class_folder_are_its_images(run: Run, tree: Path, tmp_path: Path) -> None:
    """In torchvision's order; `check` says so, as timm takes the innermost folder for the class."""
    folder = tree / "train" / CLASSES[0]
    for below in ("sub", "sub/deep", "sub-2"):
        (folder / below).mkdir()
        (folder / below / "9.png").write_bytes(encode(picture(), "PNG"))
    (folder / "sub" / "notes.txt").write_text("no image")
    (folder / "sub" / "up").symlink_to(folder)  # a circle
    status, out, _ = run("check", tree, "--workers", 0)
    assert (status, out.splitlines()[0]) == (0, "2 classes; 9 training, 4 test images")
    assert "note: " + str(tree / "train") + ": 3 images in folders below a class folder count for it" in out
    assert f"{CLASSES[0]}/sub/9.png, {CLASSES[0]}/sub-2/9.png, {CLASSES[0]}/sub/deep/9.png" in out
    assert "are left out: 1 .txt\n" in out
    (folder / "sub" / "up").unlink()
    train = read(DataConfig(name="imagefolder", root=str(tree)))[0]
    theirs = torchvision.datasets.ImageFolder(str(tree / "train")).samples
    assert [
        (train.name(item), label) for item, label in zip(train.items, train.labels, strict=True)
    ] == theirs
    assert run("shards", tree, tmp_path / "out", "--workers", 0)[0] == 0
    assert len(read(DataConfig(name="webdataset", root=str(tmp_path / "out")))[0].labels) == 9


def test_what_is_no_file_is_named(run: Run, tree: Path, tmp_path: Path) -> None:
    """To open a pipe would wait for ever."""
    folder = tree / "train" / CLASSES[0]
    link, pipe = folder / "link.png", folder / "pipe.png"
    link.symlink_to("nowhere.png")
    gone = f"{link}: cannot be read (a link to nowhere.png, which is missing)"
    assert problems(run, tree)[0].startswith("1 images that cannot be read")
    assert f"\n      {gone}\n" in run("check", tree, "--workers", 0)[1]
    assert run("shards", tree, tmp_path / "out") == (2, "", f"error: {gone}\n")
    link.unlink()
    os.mkfifo(pipe)
    line = f"{pipe}: cannot be read (not a regular file)"
    assert f"\n      {line}\n" in run("check", tree, "--workers", 0)[1]
    assert run("shards", tree, tmp_path / "out") == (2, "", f"error: {line}\n")
    assert not (tmp_path / "out").exists()
    for kind, name in (("webdataset", "train-000000.tar"), ("webdataset", "manifest.json")):
        other = tmp_path / name
        other.mkdir()
        os.mkfifo(other / name)
        assert run("check", other, "--data", kind, "--workers", 0)[0] in (1, 2)
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    assert "not a regular file" in problems(run, tmp_path, "--data", "fashion_mnist")[0]


def test_images_of_more_than_8_bits(run: Run, tree: Path) -> None:
    """Grey ones of 16 bits keep their high bytes, as 16-bit RGB does; an unknown range is a problem."""
    folder = tree / "train" / CLASSES[0]
    values = np.array([[0, 255, 256, 1000, 40000, 65535]], np.uint16)
    for name in ("grey.png", "grey.tiff", "grey.ppm"):
        Image.fromarray(values).save(folder / name)
    status, out, _ = run("check", tree, "--workers", 0)
    assert status == 0
    assert "note: 2 I;16 images of 16 bits, whose high bytes are used:" in out
    train = read(DataConfig(name="imagefolder", root=str(tree)))[0]
    for item in train.items[:3]:
        image = eight_bits(train.open(item), "it")
        assert np.asarray(image).tolist() == (values >> 8).tolist()
    Image.fromarray(values.astype(np.float32)).save(folder / "float.tiff")
    (line,) = problems(run, tree)
    assert line.startswith("1 images that cannot be read")
    image = Images(train, 3, lambda image: torch.from_numpy(np.array(image)))[0][0]
    assert image.shape == (1, 6, 3)
    message = r"float.tiff: pixels of 32 bits \(mode F\), whose range is unknown"
    with Image.open(folder / "float.tiff") as file, pytest.raises(UserError, match=message):
        eight_bits(file, str(folder / "float.tiff"))


def test_all_problems_of_a_tree_at_once(run: Run, tree: Path) -> None:
    shutil.rmtree(tree / "val" / CLASSES[1])
    (tree / "train" / "n03000684").mkdir()
    (tree / "train" / "n03000684.tar").write_bytes(b"")
    (tree / "val" / "loose.jpg").write_bytes(b"")
    assert problems(run, tree) == [
        f"{tree}/train: 1 archives of classes are still packed: n03000684.tar; "
        "unpack each into a folder of its name",
        f"{tree}/train: class folders without images: n03000684",
        f"{tree}/val: 1 images lie next to the class folders: loose.jpg",
        f"classes in train/ but not in val/: {CLASSES[1]}, n03000684",
    ]
    assert "not checked" in run("check", tree)[1]


def test_imagenets_numbers(run: Run, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "train" / "cat").mkdir()
    (tree / "val" / "cat").mkdir()
    assert problems(run, tree, "--imagenet")[1::2] == [
        f"{tree}/{split}: folders that are no WordNet names (n01440764): cat" for split in ("train", "val")
    ]
    (tree / "train" / "cat").rmdir()
    (tree / "val" / "cat").rmdir()
    assert problems(run, tree, "--imagenet") == [
        "2 classes, ImageNet-1k has 1000",
        "train: 6 images, ImageNet-1k has 1,281,167; unpack what is missing again",
        "val: 4 images, ImageNet-1k has 50,000; unpack what is missing again",
        "val: 2 classes have not 50 images, as each of ImageNet-1k has",
    ]
    monkeypatch.setattr(checking, "IMAGENET", {"train": 6, "val": 4})
    monkeypatch.setattr(checking, "IMAGENET_CLASSES", 2)
    assert len(problems(run, tree, "--imagenet")) == 1


def test_wrong_folders(run: Run, tree: Path, tmp_path: Path) -> None:
    assert problems(run, tree / "train") == [
        f"{tree}/train: no folder train/ in it; this is the folder of one split: name the one above it"
    ]
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "ILSVRC2012_img_train.tar").write_bytes(b"")
    (line,) = problems(run, tmp_path / "packed")
    assert line.endswith("; unpack ILSVRC2012_img_train.tar into train/ and val/")
    assert problems(run, tmp_path / "nothing")[0].endswith("as in ImageNet")
    assert problems(run, tree, "--data", "nope")[0].startswith("data.name=nope: must be one of")


def flatten(tree: Path) -> dict[str, str]:
    """Bring the validation images into ImageNet's state: flat, numbered; returns their classes."""
    val, classes = tree / "val", {}
    for number, path in enumerate(sorted(val.glob("*/*"), key=lambda path: path.name[::-1]), 1):
        classes[f"ILSVRC2012_val_{number:08d}"] = path.parent.name
        path.rename(val / f"ILSVRC2012_val_{number:08d}.JPEG")
    for name in CLASSES:
        (val / name).rmdir()
    return classes


def kit(folder: Path, classes: dict[str, str]) -> Path:
    """A development kit, whose class numbers are not in the order of the names."""
    from scipy.io import savemat

    (folder / "data").mkdir(parents=True)
    numbers = {name: number for number, name in enumerate(reversed(CLASSES), 1)}
    lines = [f"{numbers[name]}\n" for name in classes.values()]
    (folder / "data" / prepare.GROUND_TRUTH).write_text("".join(lines))
    rows = [(number, name) for name, number in numbers.items()]
    savemat(
        folder / "data" / "meta.mat",
        {"synsets": np.array(rows, dtype=[("ILSVRC2012_ID", "i4"), ("WNID", object)])},
    )
    return folder


def solution(path: Path, classes: dict[str, str]) -> Path:
    lines = [f"{image},{name} 10 20 30 40 \n" for image, name in classes.items()]
    path.write_text("ImageId,PredictionString\n" + "".join(lines))
    return path


@pytest.mark.parametrize("kind", ["kit", "csv"])
def test_a_flat_validation_folder_is_sorted(run: Run, tree: Path, tmp_path: Path, kind: str) -> None:
    before = sorted(path.read_bytes() for path in (tree / "val" / CLASSES[0]).iterdir())
    classes = flatten(tree)
    line = problems(run, tree)[0]
    assert line.startswith(f"{tree}/val: 4 images are not in class folders")
    assert f"python vision/prepare.py sort {tree}/val LABELS" in line
    labels = kit(tmp_path / "kit", classes) if kind == "kit" else solution(tmp_path / "labels.csv", classes)
    name, own = next(iter(classes.items()))
    taken = next((tree / "val").glob(f"{name}*")).name
    (tree / "val" / own).mkdir()
    (tree / "val" / own / taken).write_text("another image of that name")
    status, _, err = run("sort", tree / "val", labels)
    assert (status, err.partition(":")[2].partition(";")[0]) == (
        2,
        f" {tree}/val/{own}/{taken}: is there already",
    )
    assert len(list((tree / "val").glob("*.JPEG"))) == 4
    shutil.rmtree(tree / "val" / own)
    status, out, _ = run("sort", tree / "val", labels)
    assert (status, out) == (0, f"{tree}/val: 4 images sorted into folders of 2 classes\n")
    assert run("check", tree, "--workers", 0)[0] == 0
    assert sorted(path.read_bytes() for path in (tree / "val" / CLASSES[0]).iterdir()) == before
    assert run("sort", tree / "val", labels)[1].startswith(f"{tree}/val: 0 images")


def test_sorting_moves_nothing_without_all_labels(run: Run, tree: Path, tmp_path: Path) -> None:
    classes = flatten(tree)
    classes.popitem()
    status, _, err = run("sort", tree / "val", solution(tmp_path / "labels.csv", classes))
    assert (status, err.count("\n")) == (2, 1)
    assert "_00000004.JPEG: " in err
    assert len(list((tree / "val").glob("*.JPEG"))) == 4
    for labels, message in (
        (tmp_path / "none.csv", "cannot be read"),
        (tree, "no such file; LABELS is the folder of the unpacked"),
    ):
        assert message in run("sort", tree / "val", labels)[2]
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    assert "not Kaggle's LOC_val_solution.csv" in run("sort", tree / "val", tmp_path / "labels.csv")[2]
    assert "no such folder" in run("sort", tree / "nope", tree)[2]


def test_sorting_by_labels_that_mean_harm(run: Run, tree: Path, tmp_path: Path) -> None:
    """A class that leads out of the folder, a cell without end, a damaged kit, a pipe."""
    classes = dict.fromkeys(flatten(tree), "../../elsewhere")
    labels = solution(tmp_path / "labels.csv", classes)
    refused = run("sort", tree / "val", labels)[2]
    assert "labels.csv: '../../elsewhere' is not a class, as n01751748 is" in refused
    labels.write_text("ImageId,PredictionString\n" + "x" * 200_000)
    assert "labels.csv: cannot be read (field larger than" in run("sort", tree / "val", labels)[2]
    labels.unlink()
    os.mkfifo(labels)
    assert "labels.csv: cannot be read" in run("sort", tree / "val", labels)[2]
    (tmp_path / "kit" / "data").mkdir(parents=True)
    for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
        (tmp_path / "kit" / "data" / name).write_bytes(b"x" * 200)
    assert "kit: not the unpacked ILSVRC2012_devkit_t12" in run("sort", tree / "val", tmp_path / "kit")[2]
    assert len(list((tree / "val").glob("*.JPEG"))) == 4


def test_shards(run: Run, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, text, _ = run("shards", tree, out, "--size", "1MB", "--workers", 0)
    assert status == 0
    assert "2 shards, 0.00 GB: 6 training, 4 test images; train with data=webdataset" in text
    assert read(DataConfig(name="webdataset", root=str(out)))[2] == list(CLASSES)
    assert run("check", out, "--data", "webdataset", "--workers", 0)[0] == 0
    content = bytearray((out / "val-000000.tar").read_bytes())
    content[1500] ^= 1  # a bit of an image: sizes and headers are as they were
    (out / "val-000000.tar").write_bytes(content)
    (line,) = (line for line in problems(run, out, "--data", "webdataset") if "written" in line)
    assert line == f"{out}: shards that are not what was written: val-000000.tar; copy them again"
    (out / "val-000000.tar").unlink()
    assert f"{out}: shards that its manifest names are missing: val-000000.tar" in problems(
        run, out, "--data", "webdataset"
    )
    (tree / "train" / CLASSES[0] / "empty.JPEG").write_bytes(b"")
    status, _, err = run("shards", tree, tmp_path / "other")
    assert (status, err) == (2, f"error: {tree}/train/{CLASSES[0]}/empty.JPEG: empty file; get it again\n")


def test_shards_go_into_no_folder_of_others(run: Run, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("classes.txt", "train-000000.tar"):
        (out / name).write_text("mine")
        status, _, err = run("shards", tree, out, "--workers", 0)
        assert (status, err.count("\n")) == (2, 1)
        assert f"{out}: holds {name}, which is none of these shards; take an empty folder" in err
        assert {path.name: path.read_text() for path in out.iterdir()} == {name: "mine"}
        (out / name).unlink()


@pytest.mark.parametrize("size", ["3", "0MB", "1TB", "-1GB"])
def test_bad_arguments(run: Run, tree: Path, size: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("shards", tree, tree / "out", f"--size={size}")
    assert f"{size}: must be written as 500KB, 16MB or 1GB" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        run("check", tree, "--workers=-1")
