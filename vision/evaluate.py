"""Measure a checkpoint on a test set: `python vision/evaluate.py CHECKPOINT [key=value ...]`.

    python vision/evaluate.py runs/vision/NAME                           a run of ours, with its own settings
    python vision/evaluate.py last.pth.tar data.root=PATH                timm's, which states model and crop
    python vision/evaluate.py FILE --row mae/base data.root=PATH         as a row states, against its value
    python vision/evaluate.py FILE model.name=resnet50 data.root=PATH    any other weights

CHECKPOINT is anything that scripts/checkpoint.py reads; for a run folder, its best checkpoint. key=value is
as for vision/train.py. batch_size (256) is the total over all processes that torchrun starts, and amp is off
by default. Every image counts once. See docs/evaluate.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--row", help="ledger row to take model, crop and published value from")
    parser.add_argument("--weights", choices=["model", "ema"], help="default: ema if the checkpoint has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    for option, rows in (("--out", "images"), ("--classes", "classes")):
        parser.add_argument(option, type=Path, metavar="FILE", help=f"table of all {rows} (.csv, .parquet)")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import json
from typing import Any

import pandas as pd
from torch import nn

from repro import interop
from repro.environment import environment
from repro.errors import UserError
from repro.interop import Checkpoint
from repro.ledger.rows import Row
from repro.reading import printable
from repro.train.accelerator import build, shut_down
from repro.train.cli import exit_status
from repro.train.run_folder import write_atomically
from vision import settings
from vision.models import build_random, load
from vision.predictions import by_class, measure, predict
from vision.train import Classification


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    evaluate(read_options(arguments))
    return 0


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate as the command line says; print, write and return the results.

    Raises:
        UserError: the checkpoint, the settings, the data or a file to write cannot be used.
    """
    for path in filter(None, (options.json, options.out, options.classes)):
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}")
    weights, found = interop.read_weights(options.checkpoint, options.weights)
    config = settings.of(options.checkpoint, found, options.row, options.overrides)
    task = Classification(config)
    model = build_random(config.model, config.data, task.classes)
    notes = load(model, weights, str(options.checkpoint))
    accelerator = build(config)
    try:
        table, seconds = predict(model, task, accelerator)
        if accelerator.is_main_process:
            print("\n".join(map(printable, notes)), end="\n" * bool(notes))
            results = describe_run(options, found, model, task)
            results |= measure(table) | {"images_per_second": round(len(table) / seconds, 1)}
            results |= against(config.row, results)
            print(describe(results))
            write(options, table, results, task.sets.classes)
            return results
        return {}
    finally:
        shut_down(accelerator)


def describe_run(
    options: argparse.Namespace, found: Checkpoint, model: nn.Module, task: Classification
) -> dict[str, Any]:
    """Return a record of the checkpoint, the model, the data and the settings."""
    config, data = task.config, task.config.data
    return {
        "checkpoint": str(found.path),
        "written_by": found.title,
        "position": found.position,
        "weights": options.weights or ("ema" if found.ema else "model"),
        "model": config.model.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": data.name if data.root is None else f"{data.name} {data.root}",
        "classes": task.classes,
        "size": data.size,
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
        "mean": list(data.mean),
        "std": list(data.std),
        "amp": config.amp,
        "environment": environment(),
    }


def against(row: Row | None, results: dict[str, Any]) -> dict[str, Any]:
    """Return a paper-scale row's published value and our difference from it, both in percent; else {}."""
    figures = [] if row is None or row.scale != "paper" else row.published
    figure = next((each for each in figures if each.metric in results and each.value is not None), None)
    if row is None or figure is None:
        return {}
    difference = results[figure.metric] - figure.goal
    return {"row": row.name, "published": figure.goal, "difference": difference}


def describe(results: dict[str, Any]) -> str:
    """Return the results as text."""
    kind = "averaged weights" if results["weights"] == "ema" else "weights"
    at = ", ".join(f"{key} {value}" for key, value in results["position"].items())
    rows = {
        "checkpoint": f"{results['checkpoint']}: {results['written_by']}, {kind}" + (f", {at}" if at else ""),
        "model": f"{results['model']}, {results['parameters']:,} parameters",
        "data": f"{results['data']}: {results['images']:,} images in {results['classes']} classes, "
        f"{results['size']} pixels, crop {results['crop_pct']:g}, {results['interpolation']}, "
        f"amp {results['amp']}",
        "top-1": f"{results['test_accuracy']:.3f} %, 95 % interval "
        f"{results['low']:.2f} to {results['high']:.2f}",
        **({"top-5": f"{results['test_top5']:.3f} %"} if results["classes"] > 5 else {}),
        "loss": f"{results['test_loss']:.5f}",
        "speed": f"{results['images_per_second']:,.1f} images/s",
    }
    if "row" in results:
        inside = results["low"] <= results["published"] <= results["high"]
        rows["published"] = (
            f"{results['published']} % ({results['row']}): {results['difference']:+.3f}, "
            f"{'inside' if inside else 'outside'} the interval"
        )
    return "\n".join(f"{key:<11} {value}" for key, value in rows.items())


def write(
    options: argparse.Namespace, table: pd.DataFrame, results: dict[str, Any], names: Sequence[str]
) -> None:
    """Write the files that were asked for."""
    if options.json is not None:
        write_atomically(options.json, json.dumps(results, indent=1) + "\n")
    for path, frame in ((options.out, table), (options.classes, by_class(table, names))):
        if path is not None:
            frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)


if __name__ == "__main__":
    sys.exit(main())
