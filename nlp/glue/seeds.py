"""Several runs that differ only in their seed, and their median."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlp.config.glue import GlueConfig
from repro.train.run_folder import run_name, write_atomically

FILE = "seeds.json"


def runs(config: GlueConfig, overrides: Sequence[str]) -> Iterator[tuple[str, GlueConfig]]:
    """Yield the name and configuration of each run, as `-m seed=1,2,3` would make them."""
    if config.seeds is None:
        yield config.run.name or run_name(overrides), config
        return
    others = [text for text in overrides if text.split("=")[0].lstrip("+~") not in ("seed", "seeds")]
    for seed in config.seeds:
        name = f"{config.run.name}-seed{seed}" if config.run.name else run_name([*others, f"seed={seed}"])
        yield name, replace(config, seed=seed, seeds=None)


def write(folder: Path, seeds: Sequence[int], summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write and return the spread of each metric over the best checkpoints of the runs."""
    best = [summary["best"] for summary in summaries]
    names = [name for name in best[0] if name.startswith(("valid_", "ema_"))]
    tested = [summary.get("test") or {} for summary in summaries]
    values = {name: [record[name] for record in best] for name in names}
    values |= {name: [record[name] for record in tested] for name in tested[0] if name.startswith("test_")}
    found = {
        "seeds": list(seeds),
        "runs": [summary["run"] for summary in summaries],
        "metric": summaries[0]["metric"],
        "of": "the best checkpoint of each run by `metric`",
        "measures": {name: spread(numbers) for name, numbers in values.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, json.dumps(found, indent=1) + "\n")
    return found | {"file": str(folder / FILE)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, extremes, sample standard deviation (0 for one value) and the values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": list(values),
    }


def describe(found: dict[str, Any]) -> str:
    """Return the spread as text."""
    of = found["of"].replace("`metric`", found["metric"])
    lines = [f"{len(found['seeds'])} seeds, {of}: {found['file']}"]
    width = max(map(len, found["measures"]))
    for name, x in found["measures"].items():
        ends = f"{x['min']:.4g} to {x['max']:.4g}"
        lines.append(f"{name:<{width}}  median {x['median']:.4g}, {ends}, deviation {x['deviation']:.2g}")
    return "\n".join(lines)
