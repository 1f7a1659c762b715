"""The output of a run: a line per epoch and the closing summary."""

from pathlib import Path
from typing import Any

import torch

import adan_optim
from adan_optim.monitor.readings import peak_resident_bytes
from repro.doctor.hint import hint
from repro.hardware import show_time
from repro.ledger import tracking
from repro.runs import sample_rate
from repro.train.config import TrainConfig
from repro.train.state import Progress, TrainState
from repro.train.throughput import Throughput


def epoch_line(progress: Progress, epochs: int, steps: int, verdict: str) -> str:
    """Return one line on the last finished epoch of a run with `epochs` epochs and `steps` steps."""
    record = progress.last or {}
    left = progress.seconds / progress.step * (steps - progress.step)
    parts = [
        f"epoch {record['epoch']}/{epochs}",
        *metrics(record),
        f"lr {record['lr']:.3g}",
        f"left {_duration(left)}",
        verdict,
    ]
    return "  ".join(part for part in parts if part)


def metrics(record: dict[str, Any]) -> list[str]:
    """Return the metrics of a record, each with that of the released run at the same position."""
    return [
        f"{key} {value:.4g}"
        + (f" (released {record[f'released_{key}']:.4g})" if f"released_{key}" in record else "")
        for key, value in record.items()
        if key not in ("step", "epoch", "lr", "verdict") and not key.startswith("released_")
    ]


def summarise(
    state: TrainState,
    config: TrainConfig,
    *,
    run: str,
    model: str,
    epochs: int,
    metric: str,
    speed: Throughput,
    tracker: tracking.Tracker,
    monitor: adan_optim.Monitor | None,
    test: dict[str, Any] | None,
    examples: list[str],
) -> dict[str, Any]:
    """Return the closing summary of a run, JSON-able, with units in the keys.

    Args:
        run: its folder.
        model: name of the model.
        metric: the one that selects the best checkpoint.
        test: the record of the test set, if there is one.
        examples: see Task.examples.
    """
    progress = state.progress
    on_gpu = state.history["loss"].is_cuda
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()
    summary = {
        "run": run,
        "model": model,
        "parameters": state.parameters,
        "optimizer": config.optimizer["name"],
        "optimizer_path": (
            state.optimizer.description
            if isinstance(state.optimizer, adan_optim.Optimizer)
            else adan_optim.path_in_use(state.optimizer)
        ),
        "state_bytes": sum(adan_optim.state_bytes(state.optimizer).values()),
        "seed": config.seed,
        "epochs": epochs,
        "steps": progress.step,
        "metric": metric,
        "final": progress.last,
        "best": progress.best,
        **({"test": test} if test else {}),
        "seconds": round(progress.seconds, 2),
        **speed.rates(progress.step, progress.train_seconds, progress.wait_seconds),
        "peak_memory_mib": round(peak / 2**20),
        "memory_of": "GPU, allocated" if on_gpu else "process, resident",
    }
    tested = test or {}
    paper = tracker.summarise((progress.last or {}) | tested, (progress.best or {}) | tested)
    if paper is not None:
        summary["paper"] = paper
    if monitor is not None:
        summary["monitor"] = monitor.report().splitlines()
    if examples:
        summary["examples"] = examples
    return summary


def describe(summary: dict[str, Any]) -> str:
    """Return the closing summary as text."""
    metric, final, best = summary["metric"], summary["final"], summary["best"]
    unit, rate = sample_rate(summary)
    reached = [_number(record[metric]) for record in (final, best)]
    rows = {
        "result": f"{metric} {reached[0]} (best {reached[1]} at epoch {best['epoch']}), "
        f"train_loss {final['train_loss']:.4g}",
        "model": f"{summary['model']}, {summary['parameters']:,} parameters",
        "optimizer": f"{summary['optimizer']}, path: {summary['optimizer_path']}",
        "time": f"{show_time(summary['seconds'] / 3600)} for {summary['epochs']} epochs, "
        f"{rate:,.0f} {unit}/s"
        + (f", {summary['tflop_per_second']:.3g} TFLOP/s" if summary.get("tflop_per_second", 0) >= 1 else "")
        + (f" ({summary['mfu']:.1%} of the peak)" if "mfu" in summary else "")
        + f", {summary['wait_share']:.0%} of the time waiting for data",
        "memory": f"{summary['peak_memory_mib']:,} MiB at most ({summary['memory_of']})",
        "folder": summary["run"],
    }
    if "test" in summary:
        step = summary["test"]["weights_of_step"]
        rows["test"] = (
            ", ".join(
                f"{key} {_number(value)}" for key, value in summary["test"].items() if key.startswith("test_")
            )
            + f", with the best weights, those of step {step:,}"
        )
    lines = [f"{key:<10} {value}" for key, value in rows.items()]
    if "paper" in summary:
        lines += [f"{'paper':<10} {line}" for line in tracking.describe(summary["paper"])]
    lines += filter(None, [hint(Path(summary["run"]))])
    for key in ("examples", "monitor"):
        lines += ["", *summary[key]] if key in summary else []
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
