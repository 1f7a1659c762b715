"""Check a data set, write it as tar shards, or sort ImageNet's validation images.

    python vision/prepare.py check ROOT [--imagenet]    list all problems of a data set, and their cures
    python vision/prepare.py shards ROOT OUT            write train/ and val/ as webdataset shards
    python vision/prepare.py sort ROOT/val LABELS       sort a flat validation folder into class folders

`check` exits with status 1 if it finds a problem. `shards` can be stopped; the same command continues.
"""

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.errors import UserError
from repro.reading import printable_lines, read_bytes
from repro.train.cli import command_line, exit_status, file_size, processes
from vision.config import DataConfig

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # in the development kit; line i is for image i


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, 1 after problems were found, 2 after `error: ...`."""
    options = parser().parse_args(arguments)
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = command_line(__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    checks = commands.add_parser("check", help="list the problems of a data set")
    checks.set_defaults(run=run_check)
    checks.add_argument("root", help="as for data.root")
    checks.add_argument("--data", default="imagefolder", help="as for data= (default: imagefolder)")
    checks.add_argument("--imagenet", action="store_true", help="require the whole of ImageNet-1k")
    checks.add_argument("--no-decode", action="store_true", help="do not decode the images")

    shards = commands.add_parser("shards", help="write webdataset shards")
    shards.set_defaults(run=run_shards)
    shards.add_argument("root", type=Path, help="folder with train/ and val/")
    shards.add_argument("out", type=Path, help="folder for the shards and nothing else")
    shards.add_argument("--size", type=file_size, default="1GB", help="of a shard, at most (default: 1GB)")

    sort = commands.add_parser("sort", help="sort ImageNet's validation images into class folders")
    sort.set_defaults(run=run_sort)
    sort.add_argument("folder", type=Path, help="the images, ILSVRC2012_val_00000001.JPEG, ...")
    sort.add_argument("labels", type=Path, help="unpacked development kit, or Kaggle's LOC_val_solution.csv")

    for command in (checks, shards):
        command.add_argument("--workers", type=processes, default=cores, help=f"processes (default: {cores})")
    return top


def run_check(options: argparse.Namespace) -> int:
    """Print the problems and notes; return 1 if there are problems."""
    from vision.data.checking import check  # it takes seconds, --help needs none

    config = DataConfig(name=options.data, root=options.root)
    if options.data == "hfds":
        config.test_split = "validation"
    found = check(config, options.imagenet, options.workers, not options.no_decode)
    if found.counts:
        counts = f"{found.counts['train']:,} training, {found.counts['val']:,} test images"
        print(f"{found.classes:,} classes; {counts}")
    for title, lines in (("problem", found.problems), ("note", found.notes)):
        for line in lines:
            print(f"{title}: {printable_lines(line)}")  # some are lists
    if not found.problems:
        print("nothing wrong was found" + ("; the images were not decoded" if options.no_decode else ""))
    return 1 if found.problems else 0


def run_shards(options: argparse.Namespace) -> int:
    """Write shards."""
    from vision.data.writing import write_shards

    manifest = write_shards(options.root, options.out, options.size, options.workers)
    samples, shards = manifest["samples"], manifest["shards"]
    size = sum(shard["bytes"] for shard in shards) / 1e9
    print(
        f"{options.out}: {len(shards)} shards, {size:.2f} GB: {samples['train']:,} training, "
        f"{samples['val']:,} test images; train with data=webdataset data.root={options.out}"
    )
    return 0


def run_sort(options: argparse.Namespace) -> int:
    """Move images into class folders, after looking all of them up."""
    from vision.data.images import suffix
    from vision.data.readers import image_files

    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder")
    names = image_files(options.folder)
    reader = _csv_classes if suffix(options.labels.name) == ".csv" else _kit_classes
    classes = reader(options.labels)
    for name in names:
        if Path(name).stem not in classes:
            raise UserError(f"{options.folder / name}: {options.labels} has no label for it")
        if not re.fullmatch(r"\w[\w-]*", wanted := str(classes[Path(name).stem])):  # it becomes a folder
            raise UserError(f"{options.labels}: {wanted!r:.80} is not a class, as n01751748 is")
        target = options.folder / classes[Path(name).stem] / name
        if os.path.lexists(target):
            raise UserError(f"{target}: is there already; remove it, or {options.folder / name}")
    for name in names:
        folder = options.folder / classes[Path(name).stem]
        folder.mkdir(exist_ok=True)
        os.rename(options.folder / name, folder / name)
    count = len(set(classes.values()))
    print(f"{options.folder}: {len(names):,} images sorted into folders of {count} classes")
    return 0


def _csv_classes(path: Path) -> dict[str, str]:
    """Read lines of image, class and boxes: "ILSVRC2012_val_00000001,n01751748 111 108 230 367 ..."."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(path).decode(), newline="")))
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except (KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not Kaggle's LOC_val_solution.csv: no {error} in it") from error


def _kit_classes(folder: Path) -> dict[str, str]:
    """Read the development kit: a class number for each image in order, and the names of the numbers."""
    from scipy.io import loadmat

    truth, names = folder / "data" / GROUND_TRUTH, folder / "data" / "meta.mat"
    for path in (truth, names):
        if not path.exists():
            cure = "LABELS is the folder of the unpacked ILSVRC2012_devkit_t12"
            raise UserError(f"{path}: no such file; {cure}")
    try:
        synsets = loadmat(io.BytesIO(read_bytes(names)), squeeze_me=True)["synsets"]
        wnids = dict(zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True))
        numbers = [int(line) for line in read_bytes(truth).split()]
        return {f"ILSVRC2012_val_{image:08d}": wnids[number] for image, number in enumerate(numbers, 1)}
    except Exception as error:  # SciPy raises anything on a damaged file
        raise UserError(f"{folder}: not the unpacked ILSVRC2012_devkit_t12 ({error!r})") from error


if __name__ == "__main__":
    sys.exit(main())
