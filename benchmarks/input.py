"""Times the input pipeline of a vision row: `python benchmarks/input.py data.root=PATH [--row ROW]`.

data.root is a set in ImageNet's layout. A sample of its training images goes to a temporary folder, once as
class folders, once as tar shards; all is measured on it. ImageNet's photographs are mostly 500 x 375, 110 kB
in the mean; from a set of thumbnails --shorter-side 375 makes images of that size, but smoother ones, which
decode somewhat faster.

    stages     one process, one thread, microseconds an image: what a worker does, step by step
    loader     images a second of the loop's own DataLoader, by number of workers, in turn: from folders, from
               shards, and with floats made, normalised and erased in the worker ("float32")
    storage    images and MB a second of reading alone, after the files were dropped from the page cache. A
               disk has a cache of its own, and a sample this small fits: an upper bound for the whole set
    training   images a second that one GPU takes: --training N, or for --gpu the estimate of
               repro/hardware.py, peak x utilisation / (FLOP of an image x passes). --measure-training adds
               this machine's own

The last lines say how many of this machine's cores keep such a GPU busy. All but `storage` reads from the
page cache, so it is about cores, not about a disk.
"""

import argparse
import io
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import PIL
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import default_collate
from tqdm import tqdm

from benchmarks.common import machine, made, parser
from repro import hardware
from repro.errors import UserError
from repro.ledger.rows import load
from repro.results import page, publish, table
from repro.train.accelerator import build_optimizer
from repro.train.cli import exit_status
from repro.train.data import SeededDataset, TrainingSampler, make_loader, shuffled
from vision.config import DataConfig, VisionConfig
from vision.data import Images, Normalize, Split, build_erasing, read, train_transform
from vision.data.images import suffix
from vision.data.writing import write_shards
from vision.train import Batch, Classification

AMP = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sample(config: VisionConfig, count: int, side: int | None, folder: Path) -> Path:
    """Copy `count` training images, evenly spaced, into folders train/ and (one a class) val/ of `folder`."""
    split = read(config.data)[0]
    picked = sorted({i * len(split.labels) // count for i in range(count)})
    seen = set()
    for index in picked:
        item, label = split.items[index], int(split.labels[index])
        content, ending = split.read(item), suffix(split.name(item))
        if isinstance(content, Image.Image):
            raise UserError(
                f"data={config.data.name}: keeps pixels, not image files; there is nothing to decode"
            )
        if side is not None:
            image, ending = split.open(item).convert("RGB"), ".jpg"
            scale = side / min(image.size)
            image = image.resize(
                (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
            )
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            content = buffer.getvalue()
        for part in ("train",) if label in seen else ("train", "val"):
            place = folder / part / f"{label:04d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:08d}{ending}").write_bytes(content)
        seen.add(label)
    return folder


def stages(split: Split, config: VisionConfig, count: int) -> dict[str, float]:
    """Return microseconds an image of every step of a worker, medians over three passes."""
    data = config.data
    steps = train_transform(data, config.augment).transforms  # type: ignore[attr-defined]
    passes = []
    for _ in range(3):
        times: dict[str, float] = {}

        def timed(
            name: str, function: Callable[[Any], Any], things: Sequence[Any], times: dict[str, float] = times
        ) -> list[Any]:
            start = time.perf_counter()
            results = [function(thing) for thing in things]
            times[name] = times.get(name, 0) + (time.perf_counter() - start) / count * 1e6
            return results

        random.seed(0)
        torch.manual_seed(0)
        things = timed("read", split.read, list(split.items))
        things = timed("decode", _decoder(things, config), range(count))
        for step in steps:
            things = timed(getattr(step, "__name__", type(step).__name__), step, things)
        seeded = SeededDataset([0] * count, 0)
        timed("seeding", seeded.__getitem__, [(0, index) for index in range(count)])
        pairs = [(image, 0) for image in things]
        timed("collate", default_collate, [pairs[i : i + 64] for i in range(0, count, 64)])
        passes.append(times)
    return {name: statistics.median(times[name] for times in passes) for name in passes[0]}


def _decoder(contents: list[Any], config: VisionConfig) -> Callable[[int], Image.Image]:
    """A Dataset's first half, from bytes that were read before."""
    loaded = Split(contents, [0] * len(contents), lambda content: content, lambda content: "an image")
    draft = config.data.size if config.data.draft else None
    images = Images(loaded, config.data.channels, lambda image: cast(Any, image), draft)
    return lambda index: cast(Image.Image, images[index][0])


class Floats:
    """`images` as floats, normalised and erased one by one: what workers sent before they sent uint8."""

    def __init__(self, images: Images, config: VisionConfig) -> None:
        self.images, self.normalize = images, Normalize(config.data)
        self.erasing = build_erasing(config.augment)
        if self.erasing is not None:
            self.erasing.device = "cpu"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        image = self.normalize(image[None])[0]
        return self.erasing(image) if self.erasing is not None else image, label


def loader_rate(data: Any, workers: int, batch: int, seconds: float) -> float:
    """Return images a second of the loop's DataLoader over epochs of `data`, after the workers have begun."""
    sampler = TrainingSampler(shuffled(len(data), batch, seed=0))
    loader = make_loader(data, sampler, 0, workers)
    epoch, images, start = 0, 0, None
    while True:
        sampler.start_at(epoch)
        for number, (tensor, _) in enumerate(loader):
            if start is None:
                if epoch or number >= 2 * workers:  # what was made while the first batch was waited for
                    start = time.perf_counter()
                continue
            images += len(tensor)
            if time.perf_counter() - start > seconds:
                return images / (time.perf_counter() - start)
        epoch += 1


def loader(
    folders: Path, shards: Path, config: VisionConfig, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rates of every source, type and number of workers."""
    data = config.data
    transform = train_transform(data, config.augment)

    def images(name: str, root: Path) -> Images:
        split = read(DataConfig(name=name, root=str(root)))[0]
        return Images(split, data.channels, transform, data.size if data.draft else None)

    files, tars = images("imagefolder", folders), images("webdataset", shards)
    kinds = {"folder, uint8": files, "shards, uint8": tars, "folder, float32": Floats(files, config)}
    cases = [(kind, workers) for workers in options.workers for kind in kinds]
    rates: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for turn in tqdm(range(options.rounds), desc="loader", leave=False, disable=None):
        for case in cases[turn % len(cases) :] + cases[: turn % len(cases)]:
            kind, workers = case
            rates[case].append(loader_rate(kinds[kind], workers, options.batch, options.seconds))
    return [
        {"images": kind, "workers": workers, "per_second": statistics.median(rates[kind, workers])}
        for kind, workers in cases
    ]


def storage(folders: Path, shards: Path) -> list[dict[str, Any]]:
    """Return the speed of reading the sample once from what lies below the page cache."""
    sources = {
        "folder": read(DataConfig(name="imagefolder", root=str(folders)))[0],
        "shards": read(DataConfig(name="webdataset", root=str(shards)))[0],
    }
    rows = []
    for name, split in sources.items():
        for order in ("in order", "shuffled"):
            items = list(split.items)
            if order == "shuffled":
                random.Random(0).shuffle(items)
            _drop([*folders.rglob("*.*"), *shards.glob("*.tar")])
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


def _drop(paths: Iterable[Path]) -> None:
    """Ask the system to forget the contents of files."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def training_rate(config: VisionConfig, batch: int, seconds: float) -> float:
    """Return images a second of forward, backward and step on this machine, on one batch that is there."""
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

    for _ in range(2 if device.type == "cpu" else 10):
        step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    return steps * batch / (time.perf_counter() - start)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers."""
    recipe = load(options.row, options.overrides)
    config = cast(
        VisionConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VisionConfig), recipe.config))
    )
    config.check()
    with tempfile.TemporaryDirectory() as scratch:
        folders = sample(config, options.images, options.shorter_side, Path(scratch) / "folders")
        shards = Path(scratch) / "shards"
        write_shards(folders, shards, 10**8, 0)
        split = read(DataConfig(name="imagefolder", root=str(folders)))[0]
        count = len(split.labels)
        sizes = [split.open(item).size for item in split.items]
        about = {
            "row": options.row,
            "images": count,
            "re_encoded": options.shorter_side,
            "mean_pixels": statistics.mean(width * height for width, height in sizes),
            "mean_KB": statistics.mean(len(cast(bytes, split.read(item))) for item in split.items) / 1e3,
            "augment": config.augment.auto_augment or "none",
        }
        result: dict[str, Any] = {"sample": about}
        result["stages_us"] = stages(split, config, count)
        result["storage"] = storage(folders, shards)
        result["loader"] = loader(folders, shards, config, options)
    result["training"] = {"gpu": options.gpu, "per_second": options.training, "source": "--training"}
    if options.training is None:
        if recipe.row.cost is None:
            raise UserError(f"{options.row}: has no count of operations; give --training IMAGES_PER_SECOND")
        flops = recipe.row.cost.forward_flops * recipe.row.cost.passes
        result["training"] |= {
            "per_second": hardware.PEAK[options.gpu] * hardware.UTILISATION / flops,
            "source": f"estimated: {hardware.UTILISATION:.0%} of "
            f"{hardware.PEAK[options.gpu] / 1e12:.0f} TFLOP/s, "
            f"{flops / 1e9:.1f} GFLOP an image",
        }
    if options.measure_training:
        torch.set_num_threads(cores())
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
        rate = training_rate(config, options.train_batch, 4 * options.seconds)
        result["measured"] = {"device": device, "batch": options.train_batch, "per_second": rate}
    one = next(
        (row for row in result["loader"] if row["images"] == "folder, uint8" and row["workers"] == 1), None
    )
    result["per_core"] = one["per_second"] if one else 1e6 / sum(result["stages_us"].values())
    result["cores_for_gpu"] = math.ceil(result["training"]["per_second"] / result["per_core"])
    return result


def markdown(result: dict[str, Any]) -> str:
    """The result as tables."""
    about, images, training = result["machine"], result["sample"], result["training"]
    encoded = f", re-encoded to a shorter side of {images['re_encoded']}" if images["re_encoded"] else ""
    total = sum(result["stages_us"].values())
    steps = [*result["stages_us"].items(), ("all", total)]
    rates = [(row, row["per_second"]) for row in result["loader"]]
    measured = ""
    if "measured" in result:
        here, best = result["measured"], max(rate for _, rate in rates)
        measured = (
            f"Training on {here['device']}, measured with {here['batch']} images a step: "
            f"{here['per_second']:.1f} images/s; "
            f"the pipeline gives {best / here['per_second']:.1f} times as many."
        )
    source = made(about, f"{about['cores']} cores", f"Pillow {about['pillow']}")
    return page(
        "The input pipeline",
        f"{source} Row {images['row']}, "
        f"RandAugment {images['augment']}; {images['images']} images of {images['mean_pixels'] / 1e3:.0f} "
        f"thousand pixels and {images['mean_KB']:.0f} KB in the mean{encoded}. "
        "`--help` explains the numbers.",
        "## A worker's steps",
        table(
            ["step", "microseconds an image", "share"],
            ([name, f"{time:.0f}", f"{time / total:.0%}"] for name, time in steps),
        ),
        "## The loader",
        table(
            ["images", "workers", "images/s", "of training on the GPU"],
            (
                [row["images"], str(row["workers"]), f"{rate:.0f}", f"{rate / training['per_second']:.3f}"]
                for row, rate in rates
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


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    found = parser(__doc__)
    found.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of vision/train.py: data.root=PATH, ..."
    )
    found.add_argument(
        "--row", default="imagenet/vit_s_150_i", help="whose augmentation and model (default: ViT-S)"
    )
    found.add_argument("--images", type=_positive, default=512, help="of the sample (default: 512)")
    found.add_argument("--shorter-side", type=_positive, metavar="PIXELS", help="re-encode the sample")
    found.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument(
        "--batch", type=_positive, default=64, help="images of the loader's batches (default: 64)"
    )
    found.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: 3)")
    found.add_argument("--rounds", type=_positive, default=3, help="over all measurements (default: 3)")
    found.add_argument("--gpu", choices=list(hardware.PEAK), default="H100")
    found.add_argument(
        "--training", type=float, metavar="N", help="images/s of training, instead of the estimate"
    )
    found.add_argument(
        "--measure-training", action="store_true", help="also on this machine, with its GPU if any"
    )
    found.add_argument("--train-batch", type=_positive, default=8, help="for --measure-training (default: 8)")
    options = found.parse_intermixed_args(arguments)
    threads = torch.get_num_threads()
    try:
        if options.images < options.batch:
            raise UserError(f"--images {options.images}: must be at least --batch {options.batch}")
        torch.set_num_threads(1)  # as in a worker
        about = machine("cpu", arguments) | {"cores": cores(), "pillow": PIL.__version__}
        result = {"machine": about} | measure(options)
    finally:
        torch.set_num_threads(threads)
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
