"""Scores of judged programs: pass@k, reasons of failures, and published values."""

import collections
from collections.abc import Sequence
from typing import Any

from llm.code_eval.pass_at_k import estimate
from repro.ledger import rows


def summarise(results: Sequence[dict[str, Any]], ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Return pass@k with intervals, and counts of the reasons of failures."""
    by_task: dict[str, list[bool]] = {}
    for record in results:
        by_task.setdefault(record["task_id"], []).append(record["passed"])
    counts = [(len(passed), sum(passed)) for passed in by_task.values()]
    passed = sum(right for _, right in counts)
    reasons = collections.Counter(r["reason"].partition(":")[0] for r in results if not r["passed"])
    scores = {}
    for k in ks:
        value, low, high = estimate(counts, k, seed)
        scores[f"pass@{k}"] = {"value": value, "low": low, "high": high}
    solved = sum(right > 0 for _, right in counts)
    return {
        "tasks": len(counts), "solved": solved, "programs": len(results), "passed": passed,
        "failed": dict(reasons.most_common()), "scores": scores,
    }  # fmt: skip


def against(row: rows.Recipe | None, ks: Sequence[int]) -> dict[str, Any]:
    """Return the published values of a paper-scale row, else {}."""
    if row is None or row.row.scale != "paper":
        return {}
    asked = {f"pass@{k}" for k in ks}
    figures = {figure.metric: figure.goal for figure in row.row.published if figure.metric in asked}
    return {"row": row.row.name, "published": figures}


def describe(summary: dict[str, Any]) -> str:
    """Return the result as text."""
    lines = [
        f"{summary['tasks']} of {summary['tasks_in_all']} tasks, {summary['programs']:,} programs: "
        f"{summary['passed']:,} passed, {summary['solved']} tasks solved at least once"
    ]
    for name, score in summary["scores"].items():
        line = f"{name:<9} {score['value']:.4f}, 95 % interval {score['low']:.4f} to {score['high']:.4f}"
        if (published := summary.get("published", {}).get(name)) is not None:
            inside = "inside" if score["low"] <= published <= score["high"] else "outside"
            line += f"; published {published} ({summary['row']}), {inside} the interval"
        lines.append(line)
    lines += [f"failed    {count:,} {reason}" for reason, count in list(summary["failed"].items())[:8]]
    return "\n".join(lines)
