"""Compare Adam and Adan at text to 3D.

Each optimizer's learning rate is tuned by the rule of the fair comparison (benchmarks.comparison.search), on
the first prompt with seed 0, by the distillation loss on held-out views, which needs no truth. Then it makes
every prompt with each seed. The Janus check is Adan's best run without telling the prior the view.

Every run is vision/text_to_3d.py in RUNS; those that are finished there are not run again, so the command can
be stopped and given again. Its numbers are a proxy's: those of the embedded world.

Examples:
    python benchmarks/text_to_3d.py
    python benchmarks/text_to_3d.py --prompts 'a red torus' --seeds 2 --out text_to_3d
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import parser


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__)
    found.add_argument("--prompts", nargs="+", default=["a red torus", "a blue mug"])
    found.add_argument("--seeds", type=int, default=5, metavar="N")
    found.add_argument("--runs", type=Path, default=Path("runs/text_to_3d_benchmark"), metavar="FOLDER")
    return found.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import itertools
import re
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

from benchmarks.common import check, machine, made
from benchmarks.comparison.search import Point, Space, best, next_points
from repro.errors import UserError
from repro.interop import read_weights
from repro.loading import read_yaml
from repro.plots import save_pictures
from repro.results import as_text, bullets, page, table, write
from repro.runs import CONFIG, Run, read
from repro.train.cli import exit_status
from repro.train.config import typed
from vision import text_to_3d
from vision.models import load
from vision.threed.config import TextTo3DConfig
from vision.threed.products import SHOWN, views
from vision.threed.render import Renderer

GOOD = 0.85  # IoU
SPACES = {  # no weight decay: the scene is fitted, not generalised from
    name: Space(start, (0.0,), octaves=(-1, 0, 1), budget=8) for name, start in (("adam", 0.1), ("adan", 0.2))
}


@dataclass(frozen=True)
class Result:
    """What a finished run has measured on its test views."""

    optimizer: str
    prompt: str
    seed: int
    lr: float
    iou: float
    psnr: float
    r_precision: float
    steps_to_good: int | None  # of the first evaluation with an IoU of GOOD on the validation views


def run(runs: Path, optimizer: str, lr: float, prompt: str, seed: int, *more: str) -> Run:
    """Return a run, finished."""
    name = re.sub(r"[ =]", "_", "-".join([optimizer, f"{lr:g}", prompt, str(seed), *more]))
    words = [
        f"optimizer={optimizer}", f"optimizer.lr={lr:g}", "optimizer.weight_decay=0.0", f"prompt={prompt}",
        f"seed={seed}", f"run.root={runs}", f"run.name={name}", *more,
    ]  # fmt: skip
    if status := text_to_3d.main(words):
        raise UserError(f"`python vision/text_to_3d.py {' '.join(words)}` has ended with {status}")
    return read(runs / "text_to_3d" / name)


def tune(runs: Path, optimizer: str, prompt: str) -> tuple[float, dict[float, float]]:
    """Return the best learning rate, and the losses of all that were tried."""
    space, losses = SPACES[optimizer], dict[Point, float]()
    while points := next_points(space, losses):
        for point in points:
            summary = run(runs, optimizer, space.lr(point.octave), prompt, 0).summary
            assert summary is not None
            losses[point] = summary["final"]["valid_loss"]
    found = {space.lr(point.octave): loss for point, loss in sorted(losses.items())}
    return space.lr(best(losses).octave), found


def result(optimizer: str, prompt: str, seed: int, lr: float, run: Run) -> Result:
    """Return what a run has measured."""
    assert run.summary is not None
    test = run.summary["test"]
    good = (record["step"] for record in run.records if record.get("valid_iou", 0) >= GOOD)
    iou, psnr, r_precision = (test[f"test_{key}"] for key in ("iou", "psnr", "r_precision"))
    return Result(optimizer, prompt, seed, lr, iou, psnr, r_precision, next(good, None))


def spread(values: Sequence[float], digits: str) -> str:
    """Return the median and the range of values, or the only one."""
    if len(values) == 1:
        return f"{values[0]:{digits}}"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"


def row(results: Sequence[Result]) -> list[str]:
    """Return the cells of a table row on the runs of several seeds."""
    steps = [each.steps_to_good for each in results]
    reached = [step for step in steps if step is not None]
    return [
        spread([each.iou for each in results], ".3f"),
        spread([each.psnr for each in results], ".1f"),
        spread([each.r_precision for each in results], ".2f"),
        ("never" if not reached else spread(reached, ".0f"))
        + (f", {len(reached)} of {len(steps)} runs" if len(reached) < len(steps) > 1 else ""),
    ]


def text(command: str, tuned: dict[str, Any], results: Sequence[Result], janus: Sequence[Result]) -> str:
    """Return the page."""
    head = ["", "IoU", "PSNR, dB", "R-precision", f"steps to IoU {GOOD}"]
    groups = itertools.groupby(results, key=lambda each: (each.prompt, each.optimizer))
    compared = [[f"{prompt}, {optimizer}", *row([*group])] for (prompt, optimizer), group in groups]
    blind = [
        [f"{each.prompt}, {'view not told' if seen else 'view told'}", *row([each])]
        for seen, group in ((False, _same(results, janus)), (True, janus))
        for each in group
    ]
    tried = [
        f"{name}: {lr:g}, of " + ", ".join(f"{rate:g} ({loss:.4g})" for rate, loss in losses.items())
        for name, (lr, losses) in tuned.items()
    ]
    return page(
        "Text to 3D: Adam and Adan in the embedded world",
        command,
        "A proxy: the prior is the exact one of a world of 128 captions, not a text-to-image model, and the "
        "scene is a grid of voxels. Test views lie between those that select the weights. Medians over seeds "
        "with the range.",
        table(head, compared),
        "## Learning rates\n\nThe best of those that were tried, with their losses on held-out views:",
        bullets(tried),
        "## Is the view needed?\n\nRuns of one seed with and without telling the prior the view. Without it, "
        "every side may look like the front (the Janus problem).",
        table(head, blind),
    )


def _same(results: Sequence[Result], others: Sequence[Result]) -> list[Result]:
    """Return the results with the optimizer, prompt and seed of others."""
    wanted = {(each.optimizer, each.prompt, each.seed) for each in others}
    return [each for each in results if (each.optimizer, each.prompt, each.seed) in wanted]


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write the page and return the exit status."""
    options = read_options(arguments)
    check(options, "seeds")
    runs, prompts = options.runs, options.prompts
    tuned = {name: tune(runs, name, prompts[0]) for name in SPACES}
    cells = list(itertools.product(prompts, SPACES, range(1, options.seeds + 1)))
    results: list[Result] = []
    folders: dict[str, Path] = {}
    for prompt, name, seed in tqdm(cells, desc="seeds", unit="run", disable=None):
        lr = tuned[name][0]
        found = run(runs, name, lr, prompt, seed)
        results.append(result(name, prompt, seed, lr, found))
        if seed == 1:
            folders[f"{prompt}, {name.title()}: IoU {results[-1].iou:.2f}"] = found.path
    lr, janus = tuned["adan"][0], []
    for prompt in prompts:
        found = run(runs, "adan", lr, prompt, 1, "prior.views=false")
        janus.append(result("adan", prompt, 1, lr, found))
        folders[f"{prompt}, Adan, the view not told: IoU {janus[-1].iou:.2f}"] = found.path
    about = machine("cpu", arguments)
    shown = text(made(about), tuned, results, janus)
    print(as_text(shown))
    if options.out:
        record = {**about, "tuned": tuned, "results": [*map(asdict, results)], "janus": [*map(asdict, janus)]}
        rows = {label: seen(folder) for label, folder in folders.items()}
        write(record, f"{shown}\n\n{pictures(rows, results, options.out)}", options.out)
    return 0


def seen(folder: Path) -> Tensor:
    """Return the object of a finished run from SHOWN sides [SHOWN, side, side, 3] in 0..1."""
    config = typed(read_yaml(folder / CONFIG), TextTo3DConfig)
    model = Renderer(config.scene).eval()
    load(model, read_weights(folder)[0], str(folder))
    return views(model, config, SHOWN)[0].movedim(1, -1)


def pictures(rows: Mapping[str, Tensor], results: Sequence[Result], out: Path) -> str:
    """Write turntables below each other to OUT.png, and return the text that shows it.

    Args:
        rows: pictures [SHOWN, side, side, 3] in 0..1 by label.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for each in results:
        found.setdefault((each.prompt, each.optimizer), []).append(each.iou)
    pairs = [(found[prompt, "adan"], of) for (prompt, name), of in found.items() if name == "adam"]
    ahead = sum(statistics.median(ours) > statistics.median(theirs) for ours, theirs in pairs)
    overlap = sum(min(ours) <= max(theirs) and min(theirs) <= max(ours) for ours, theirs in pairs)
    seeds = len({each.seed for each in results})
    finding = f"Adan's IoU is above Adam's on {ahead} of {len(pairs)} prompts, as medians of {seeds} seeds"
    finding += f"; their ranges overlap on {overlap}" if overlap else ""
    note = "Rows: seed 1. IoU: overlap with the true silhouette, on test views; higher is better."
    degrees = [f"{360 * view / SHOWN:.0f}°" for view in range(SHOWN)]
    save_pictures(rows, out.with_suffix(".png"), finding, degrees, note)
    return f"## Turntables\n\n![{finding}; {'; '.join(rows)}]({out.stem}.png)"


if __name__ == "__main__":
    sys.exit(main())
