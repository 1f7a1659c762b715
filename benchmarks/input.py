"""Time the input pipeline of a vision row.

data.root is a set in ImageNet's layout. A sample of its training images is copied to a temporary folder, once
as class folders, once as tar shards; everything is measured on it. ImageNet's photographs are mostly
500 x 375, 110 kB on average. From a set of thumbnails, --shorter-side 375 makes images of that size, but
smoother ones, which decode somewhat faster.

    stages     one process, one thread, microseconds per image: what a worker does, step by step
    loader     images per second of the training loop's own DataLoader, by number of workers, in turns: from
               folders and from shards
    storage    images and MB per second of reading alone, after the files were dropped from the page cache.
               A disk has a cache of its own, which holds a sample this small: an upper bound for a whole set
    training   images per second that one GPU consumes: --training N, or for --gpu the estimate of
               repro/hardware.py, peak x utilisation / (FLOP of an image x passes). --measure-training also
               measures this machine

The last lines say how many of this machine's cores keep such a GPU busy. Everything except `storage` reads
from the page cache, so the result is about cores, not about a disk.

Examples:
    python benchmarks/input.py data.root=PATH
    python benchmarks/input.py data.root=PATH --row mae/base --workers 0 4 8 --gpu A100
"""

import argparse

from benchmarks.common import parser
from repro import hardware


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__)
    add = found.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="of vision/train.py: data.root=PATH, ...")
    add("--row", default="imagenet/vit_s_150_i", help="sets augmentation and model (default: ViT-S)")
    add("--images", type=int, default=512, help="in the sample (default: 512)")
    add("--shorter-side", type=int, metavar="PIXELS", help="re-encode the sample")
    add("--workers", type=int, nargs="+", default=[0, 1, 2])
    add("--batch", type=int, default=64, help="images per batch of the loader (default: 64)")
    add("--seconds", type=float, default=3.0, help="per measurement (default: 3)")
    add("--rounds", type=int, default=3, help="of all measurements (default: 3)")
    add("--gpu", choices=list(hardware.PEAK), default="H100")
    add("--training", type=float, metavar="N", help="images/s of training, instead of the estimate")
    add("--measure-training", action="store_true", help="also on this machine, with its GPU if any")
    add("--train-batch", type=int, default=8, help="for --measure-training (default: 8)")
    return found.parse_intermixed_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import functools
import io
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import PIL
import torch
from PIL import Image
from torch.utils.data import default_collate

from benchmarks.common import WARM_UP, check, machine, made, take_turns
from repro.errors import UserError
from repro.ledger.rows import load
from repro.results import page, publish, table
from repro.train.accelerator import build_optimizer
from repro.train.cli import exit_status
from repro.train.config import typed
from repro.train.data import SeededDataset, TrainingSampler, make_loader, shuffled
from vision.config import DataConfig, VisionConfig
from vision.data import Images, Split, read, train_transform
from vision.data.images import suffix
from vision.data.writing import write_shards
from vision.train import Batch, Classification

AMP = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sample(config: VisionConfig, count: int, side: int | None, folder: Path) -> Path:
    """Copy `count` evenly spaced training images to train/ in `folder`, and one per class to val/.

    Args:
        side: re-encode images as JPEG with this shorter side, in pixels.

    Raises:
        UserError: the data set has no image files.
    """
    split = read(config.data)[0]
    seen = set()
    for index in sorted({i * len(split.labels) // count for i in range(count)}):
        item, label = split.items[index], int(split.labels[index])
        content, ending = split.read(item), suffix(split.name(item))
        if isinstance(content, Image.Image):
            raise UserError(
                f"data={config.data.name}: keeps pixels, not image files; there is nothing to decode"
            )
        if side is not None:
            image, ending = split.open(item).convert("RGB"), ".jpg"
            scale = side / min(image.size)
            size = round(image.width * scale), round(image.height * scale)
            buffer = io.BytesIO()
            image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            content = buffer.getvalue()
        for part in ("train",) if label in seen else ("train", "val"):
            place = folder / part / f"{label:04d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:08d}{ending}").write_bytes(content)
        seen.add(label)
    return folder


def images(split: Split, config: VisionConfig, transform: Callable[[Any], Any]) -> Images:
    """Return a split as the Dataset of the training loop, with another transform."""
    return Images(split, config.data.channels, transform, config.data.size if config.data.draft else None)


def stages(split: Split, config: VisionConfig) -> dict[str, float]:
    """Return the microseconds per image of each step of a worker, medians over three passes."""
    passes = [_pass(split, config) for _ in range(3)]
    return {name: statistics.median(times[name] for times in passes) for name in passes[0]}


def _pass(split: Split, config: VisionConfig) -> dict[str, float]:
    count = len(split.labels)
    times: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[[Any], Any], things: Iterable[Any]) -> list[Any]:
        start = time.perf_counter()
        results = [function(thing) for thing in things]
        times[name] += (time.perf_counter() - start) / count * 1e6
        return results

    random.seed(0)
    torch.manual_seed(0)
    contents = timed("read", split.read, split.items)
    in_memory = replace(split, items=contents, read=lambda content: content, name=lambda _: "an image")
    decoded = images(in_memory, config, lambda image: image)
    things: Sequence[Any] = timed("decode", lambda index: decoded[index][0], range(count))
    for step in train_transform(config.data, config.augment).transforms:  # type: ignore[attr-defined]
        things = timed(getattr(step, "__name__", type(step).__name__), step, things)
    timed("seeding", SeededDataset([0] * count, 0).__getitem__, [(0, index) for index in range(count)])
    pairs = [(image, 0) for image in things]
    timed("collate", default_collate, [pairs[i : i + 64] for i in range(0, count, 64)])
    return times


def loader_rate(data: Any, workers: int, batch: int, seconds: float) -> float:
    """Return images per second of the loop's DataLoader over epochs of `data`, once the workers are busy."""
    sampler = TrainingSampler(shuffled(len(data), batch, seed=0))
    loader = make_loader(data, sampler, 0, workers)
    epoch, count, start = 0, 0, None
    while True:
        sampler.start_at(epoch)
        for number, (tensor, _) in enumerate(loader):
            if start is None:
                if epoch or number >= 2 * workers:  # these were made during the wait for the first batch
                    start = time.perf_counter()
                continue
            count += len(tensor)
            if time.perf_counter() - start > seconds:
                return count / (time.perf_counter() - start)
        epoch += 1


def loader(
    splits: dict[str, Split], config: VisionConfig, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rates of every source and number of workers."""
    transform = train_transform(config.data, config.augment)
    cases = {
        (source, workers): functools.partial(
            loader_rate, images(split, config, transform), workers, options.batch, options.seconds
        )
        for workers in options.workers
        for source, split in splits.items()
    }
    return [
        {"images": source, "workers": workers, "per_second": statistics.median(rates)}
        for (source, workers), rates in take_turns(cases, options.rounds, "loader").items()
    ]


def storage(splits: dict[str, Split], scratch: Path) -> list[dict[str, Any]]:
    """Return the speed of reading the sample once from below the page cache.

    Args:
        scratch: the folder of all files of the splits.
    """
    rows = []
    for name, split in splits.items():
        for order in ("in order", "shuffled"):
            items = list(split.items)
            if order == "shuffled":
                random.Random(0).shuffle(items)
            for path in filter(Path.is_file, scratch.rglob("*")):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            size = sum(len(cast(bytes, split.read(item))) for item in items)
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "source": f"{name}, {order}",
                    "per_second": len(items) / seconds,
                    "MB_per_s": size / seconds / 1e6,
                }
            )
    return rows


def training_rate(config: VisionConfig, batch: int, seconds: float) -> float:
    """Return images per second of forward, backward and step on this machine, on one batch in memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = Classification(config)
    model = task.build_model().to(device).train()
    optimizer = build_optimizer(model, config.optimizer)
    pixels = torch.randint(0, 256, (batch, config.data.channels, *[config.data.size] * 2), dtype=torch.uint8)
    images = Batch(pixels, torch.randint(0, task.classes, (batch,)))
    amp = AMP[config.amp] if device.type == "cuda" else torch.float32
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)

    def step() -> None:
        with torch.autocast(device.type, amp, enabled=amp != torch.float32):
            loss = task.loss(model, task.move(images, device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP[device.type]):
        step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    return steps * batch / (time.perf_counter() - start)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers.

    Raises:
        UserError: the row, its configuration or the data cannot be used.
    """
    recipe = load(options.row, options.overrides)
    config = typed(recipe.config, VisionConfig)
    config.check()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        folders = sample(config, options.images, options.shorter_side, scratch / "folders")
        write_shards(folders, scratch / "shards", 10**8, 0)
        splits = {
            "folder": read(DataConfig(name="imagefolder", root=str(folders)))[0],
            "shards": read(DataConfig(name="webdataset", root=str(scratch / "shards")))[0],
        }
        split = splits["folder"]
        sizes = [split.open(item).size for item in split.items]
        result: dict[str, Any] = {
            "sample": {
                "row": options.row,
                "images": len(split.labels),
                "re_encoded": options.shorter_side,
                "mean_pixels": statistics.mean(width * height for width, height in sizes),
                "mean_KB": statistics.mean(len(cast(bytes, split.read(item))) for item in split.items) / 1e3,
                "augment": config.augment.auto_augment or "none",
            },
            "stages_us": stages(split, config),
            "storage": storage(splits, scratch),
            "loader": loader(splits, config, options),
        }
    training, source = options.training, "--training"
    if training is None:
        if recipe.row.cost is None:
            raise UserError(f"{options.row}: has no count of operations; give --training IMAGES_PER_SECOND")
        flops, peak = recipe.row.cost.forward_flops * recipe.row.cost.passes, hardware.PEAK[options.gpu]
        training = peak * hardware.UTILISATION / flops
        source = (
            f"estimated: {hardware.UTILISATION:.0%} of {peak / 1e12:.0f} TFLOP/s, "
            f"{flops / 1e9:.1f} GFLOP an image"
        )
    result["training"] = {"gpu": options.gpu, "per_second": training, "source": source}
    if options.measure_training:
        torch.set_num_threads(cores())
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
        rate = training_rate(config, options.train_batch, 4 * options.seconds)
        result["measured"] = {"device": device, "batch": options.train_batch, "per_second": rate}
    rates = {(row["images"], row["workers"]): row["per_second"] for row in result["loader"]}
    result["per_core"] = rates.get(("folder", 1)) or 1e6 / sum(result["stages_us"].values())
    result["cores_for_gpu"] = math.ceil(training / result["per_core"])
    return result


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    about, images, training = result["machine"], result["sample"], result["training"]
    encoded = f", re-encoded to a shorter side of {images['re_encoded']}" if images["re_encoded"] else ""
    total = sum(result["stages_us"].values())
    measured = ""
    if "measured" in result:
        here, best = result["measured"], max(row["per_second"] for row in result["loader"])
        measured = (
            f"Training on {here['device']}, measured with {here['batch']} images per step: "
            f"{here['per_second']:.1f} images/s; "
            f"the pipeline delivers {best / here['per_second']:.1f} times as many."
        )
    source = made(about, f"{about['cores']} cores", f"Pillow {about['pillow']}")
    return page(
        "The input pipeline",
        f"{source} Row {images['row']}, "
        f"RandAugment {images['augment']}; {images['images']} images of {images['mean_pixels'] / 1e3:.0f} "
        f"thousand pixels and {images['mean_KB']:.0f} KB on average{encoded}. "
        "`--help` explains the numbers.",
        "## A worker's steps",
        table(
            ["step", "microseconds an image", "share"],
            (
                [name, f"{time:.0f}", f"{time / total:.0%}"]
                for name, time in [*result["stages_us"].items(), ("all", total)]
            ),
        ),
        "## The loader",
        table(
            ["images", "workers", "images/s", "of training on the GPU"],
            (
                [
                    row["images"],
                    str(row["workers"]),
                    f"{row['per_second']:.0f}",
                    f"{row['per_second'] / training['per_second']:.3f}",
                ]
                for row in result["loader"]
            ),
        ),
        "## Reading alone, dropped from the page cache",
        table(
            ["source", "images/s", "MB/s"],
            (
                [row["source"], f"{row['per_second']:.0f}", f"{row['MB_per_s']:.0f}"]
                for row in result["storage"]
            ),
        ),
        f"Training on one {training['gpu']}: {training['per_second']:.0f} images/s ({training['source']}). "
        f"A core of this machine prepares {result['per_core']:.0f} images/s, so "
        f"{result['cores_for_gpu']} such cores keep the GPU busy.",
        measured,
    )


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    check(options, "images", "shorter_side", "batch", "rounds", "train_batch")
    if options.images < options.batch:
        raise UserError(f"--images {options.images}: must be at least --batch {options.batch}")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as in a worker
        about = machine("cpu", arguments) | {"cores": cores(), "pillow": PIL.__version__}
        result = {"machine": about} | measure(options)
    finally:
        torch.set_num_threads(threads)
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
