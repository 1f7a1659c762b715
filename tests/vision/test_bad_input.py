"""Every kind of bad input ends in one line that names it, and exit status 2."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from repro.errors import UserError
from vision.config import VisionConfig

Command = Callable[..., tuple[int, str, str]]


def fails(command: Command, *arguments: str) -> str:
    """Run the command, which must fail with one line, and return the line without "error: "."""
    status, _, err = command(*arguments)
    lines = err.splitlines()
    assert status == 2
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """ImageNet's layout with two classes, four training and two test images each."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.JPEG")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("optimizer=adann", "optimizer=adann: no such option; did you mean adan?"),
        ("optimiser=adan", "optimiser: no such key; did you mean optimizer?"),
        ("epoch=3", "epoch: no such key; did you mean epochs?"),
        ("optimizer.beta=1", "optimizer.beta: no such key; did you mean betas?"),
        ("+epoch=3", "epoch: no such key; did you mean epochs?"),
        ("+optimizer.foo=3", "foo"),
        ("run.nam=x", "run.nam: no such key; did you mean name?"),
        ("epochs=abc", "epochs: Value 'abc' of type 'str' could not be converted to Integer"),
        ("batch_size=6.5", "batch_size: Value '6.5' of type 'float' could not be converted to Integer"),
        ("epochs", "cannot read 'epochs' on the command line: overrides are written key=value"),
        ("epochs=0", "epochs=0: must be at least 1"),
        ("batch_size=1438", "batch_size=1438: the training set has only 1437 images"),
        ("optimizer.lr=-1", "lr"),
        ("optimizer.lr=abc", "lr"),
        ("optimizer.betas=[0.9]", "betas"),
        ("optimizer.name=torch.optim.Nope", "torch.optim.Nope"),
        (
            "model=resnet99",
            "model=resnet99: no such option; did you mean resnet50? This recipe has convnext_tiny,",
        ),
        (
            "model=gpt2_125m",
            "model=gpt2_125m: is for other recipes; this one has convnext_tiny, resnet101, resn",
        ),
        ("data=c4", "data=c4: is for other recipes; this one has cifar10, digits,"),
        ("augment=zoom", "augment=zoom: no such option; this recipe has cifar, flip, imagenet, none,"),
        (
            "tokenizer=bpe",
            "tokenizer=bpe: this recipe has no such group; it has optimizer, schedule, model, au",
        ),
        ("paper=mae/base", "paper=mae/base: is added to the configuration; write +paper=mae/base"),
        (
            "+paper=gpt2/adan_150k",
            "+paper=gpt2/adan_150k: is a row of llm/pretrain.py, not of this recipe; run",
        ),
        ("optimizer=adan,adamw", "optimizer=adan,adamw: a run for each of several values needs -m;"),
        ("model.name=resnet5", "timm has no such model; did you mean resnet50"),
        ("+model.kwargs.deth=3", "unexpected keyword argument 'deth'"),
        ("model.kwargs.num_heads=7", "model.kwargs="),
        ("model.checkpoint=/nope", "model.checkpoint=/nope: no such file or folder"),
        ("model.head_std=0", "model.head_std=0.0: must be above 0"),
        ("model.probe=true", "model.checkpoint is not set: name a file"),
        ("+probe=digits", "model.checkpoint is not set: name a file"),
        (
            "+paper=mae/base",
            "mae/base starts from mae/base_pretrain, `python scripts/reproduce.py mae/base_pretr",
        ),
        ("data=fashionmnist", "data=fashionmnist: no such option; did you mean fashion_mnist?"),
        ("data.classes=11", "data.classes=11: digits has 10 classes"),
        ("data.mean=[0,0,0]", "data.mean=[0.0, 0.0, 0.0]: must have data.channels=1 numbers"),
        ("data=fashion_mnist", "data.root is not set: data=fashion_mnist needs a folder with"),
        ("data=imagefolder", "data.root is not set"),
        ("data=cifar10", "data.root is not set"),
        ("data=hfds", "data.root is not set"),
        ("loss=mse", "loss=mse: must be one of ce, bce"),
        ("schedule=cosin", "schedule=cosin: no such option; did you mean cosine?"),
        ("schedule.warmup_epochs=50", "schedule.warmup_epochs=50: the warm-up of 50 epochs must be shorter"),
        ("epochs=1", "must be shorter than the run of 1 epochs; set schedule.warmup_epochs=0.1"),
        (
            "steps=20",
            "the warm-up of 44 steps must be shorter than the run of 20 steps; set schedule.warmup_e",
        ),
        ("tracking=wandbb", "did you mean wandb?"),
    ],
)
def test_one_line(command: Command, argument: str, line: str) -> None:
    assert line in fails(command, argument)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "imagefolder"])
def test_missing_folder(command: Command, name: str) -> None:
    line = fails(command, f"data={name}", "data.root=/no/where")
    assert line.startswith(f"data.root=/no/where: no such folder; data={name} needs ")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "imagefolder"])
def test_folder_of_something_else(command: Command, tmp_path: Path, name: str) -> None:
    assert str(tmp_path) in fails(command, f"data={name}", f"data.root={tmp_path}")


def imagefolder(images: Path, *more: str) -> list[str]:
    small = ["data.size=32", "batch_size=4", "epochs=1", "schedule.warmup_epochs=0"]
    return ["data=imagefolder", f"data.root={images}", *small, *more]


def test_empty_class_folder(command: Command, images: Path) -> None:
    (images / "train" / "bird").mkdir()
    assert "train/bird: class folder without images" in fails(command, *imagefolder(images))


def test_classes_differ(command: Command, images: Path) -> None:
    shutil.rmtree(images / "val" / "dog")
    line = fails(command, *imagefolder(images))
    assert "class dog is in the training split but not in the test split" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_image(command: Command, images: Path, workers: int) -> None:
    path = images / "train" / "dog" / "2.JPEG"
    path.write_bytes(path.read_bytes()[:-300])
    line = fails(command, *imagefolder(images, f"workers={workers}"))
    assert line.startswith(f"{path}: broken image (image file is truncated")
    assert line.endswith("; replace or delete the file")
    path.write_bytes(b"not an image")
    assert f"{path}: broken image (cannot identify image file" in fails(command, *imagefolder(images))


def test_broken_archive_and_idx(command: Command, tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    assert "train.tar: broken archive" in fails(command, "data=cifar10", f"data.root={tmp_path}")
    assert "broken gzip file" in fails(command, "data=fashion_mnist", f"data.root={tmp_path}")
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9]))
    assert "not an IDX file of 3 dimensions" in fails(command, "data=fashion_mnist", f"data.root={tmp_path}")


def test_checkpoint_of_another_model(command: Command) -> None:
    assert command(*TINY, "run.name=small")[0] == 0
    line = fails(command, "epochs=1", "schedule.warmup_epochs=0", "model.checkpoint=runs/vision/small")
    assert line.startswith("runs/vision/small does not fit vit_tiny_patch16_224: its ")
    assert "here it is [" in line


def test_resume_with_changed_batch_size(command: Command) -> None:
    assert command(*TINY, "run.name=x")[0] == 0
    line = fails(command, *TINY, "run.name=x", "batch_size=32")
    assert line.startswith("runs/vision/x was begun with batch_size=64, now it is 32; ")


def test_debug_raises(command: Command) -> None:
    with pytest.raises(Exception, match="epochs=0"):
        command("epochs=0", "--debug")


def test_grey_images_are_read_as_rgb(command: Command, images: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (40, 40)).save(buffer, "JPEG")
    (images / "train" / "cat" / "0.JPEG").write_bytes(buffer.getvalue())
    status, _, err = command(*imagefolder(images))
    assert (status, err) == (0, "")


def test_an_odd_micro_batch_cannot_be_mixed() -> None:
    config = VisionConfig(batch_size=12, gradient_accumulation_steps=2)
    assert config.micro_batch(2) == 3
    config.augment.mixup = 0.8
    assert config.micro_batch(1) == 6
    with pytest.raises(UserError, match="batch_size=12: mixup and cutmix need an even micro-batch, not 3;"):
        config.micro_batch(2)
