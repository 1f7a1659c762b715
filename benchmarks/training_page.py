"""The results page of training.py."""

from typing import Any

from benchmarks.common import made
from repro.results import bullets, page, table


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    about = result["machine"]
    what = "optimizers in the bare loop" if result["optimizers"] else "three loops"
    parts = []
    for name, run in result["models"].items():
        turn = "" if run["steps_of_a_turn"] == 1 else f" of {run['steps_of_a_turn']} steps"
        size = "" if run["per_sample"] == 1 else f" sequences of {run['per_sample']}"
        parts += [
            f"## {name}: {run['parameters'] / 1e6:.1f} M parameters, "
            f"{run['batch']}{size} {run['unit']}, "
            f"{'float32' if run['amp'] == 'no' else run['amp']}, {run['rounds']} rounds{turn}",
            *(optimizers_table if result["optimizers"] else loops_table)(run),
        ]
    return page(
        f"Training steps on the {'GPU' if about['device'] == 'cuda' else 'CPU'}: {what}",
        f"{made(about, 'Adan: ' + about['path'])} Seed 0, medians of interleaved rounds. `--help` explains "
        "contestants and columns.",
        *parts,
        bullets(f"{key}: {text}." for key, text in result["optimizers"].items()),
    )


def loops_table(run: dict[str, Any]) -> list[str]:
    """Return the table of the three loops with one model, and the text below it."""
    cells = ([key, *cells_of(values)] for key, values in run["rows"].items())
    alone = run["optimizer"]
    return [
        table(["loop", "ms", f"{run['unit']}/s", "TFLOP/s", "to bare (95%)"], cells),
        f"Ours to timm's structure: {shown(run['ours_to_timm'])}. "
        f"Losses agree to {run['loss_difference']:.1e}. "
        f"The optimizer takes {alone['ms']:.1f} ms of a step of the bare loop, {alone['share']:.2%}.",
    ]


def optimizers_table(run: dict[str, Any]) -> list[str]:
    """Return the table of the optimizers with one model, and the text below it."""
    header = ["optimizer", "ms", f"{run['unit']}/s", "TFLOP/s", "ratio (95%)", "optimizer, ms", "share"]
    header += ["B/parameter", "state, B/parameter", "peak, GiB"]
    cells = (
        [
            key,
            *cells_of(values),
            f"{values['optimizer']['ms']:.2f}",
            f"{values['optimizer']['share']:.2%}",
            f"{values['bytes_per_parameter']:.4g}",
            f"{values['state_bytes_per_parameter']:.2f}",
            "" if values["peak_GiB"] is None else f"{values['peak_GiB']:.2f}",
        ]
        for key, values in run["rows"].items()
    )
    return [table(header, cells), *(f"Not here: {key}." for key in run["absent"])]


def cells_of(values: dict[str, Any]) -> list[str]:
    """Return the cells that both tables have."""
    tflops = "" if values["tflops"] is None else f"{values['tflops']:.4g}"
    return [f"{values['ms']:.1f}", f"{values['per_s']:.4g}", tflops, shown(values["ratio"])]


def shown(ratio: list[float]) -> str:
    """Return a ratio and its interval as text."""
    middle, low, high = ratio
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"
