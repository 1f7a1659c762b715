"""The comparison's section of the report, from the records of results/comparison and from a part of them."""

import pytest

from benchmarks.comparison.design import LADDER, OPTIMIZERS, TASKS
from benchmarks.comparison.measures import finals, in_times, multiplier
from benchmarks.comparison.records import RECORDS, Record, Stage, load
from benchmarks.comparison.report import COMPARED, section
from repro.plots import MOST


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """The committed runs."""
    return load(RECORDS)


def test_the_section_has_what_the_records_say(records: list[Record]) -> None:
    found = section(records)
    assert found is not None
    headline = found["headline"]
    assert {row.label for row in headline.rows} == {OPTIMIZERS[n].title for n in COMPARED if n != "adamw"}
    middles = [row.middle for row in headline.rows]
    assert middles == sorted(middles, reverse=True)
    (adan,) = (row for row in headline.rows if row.loud)
    of_task = {task: multiplier(records, task, "adan") for task in TASKS}
    assert adan.values == [
        (f"{TASKS[task].title}: {in_times(m)}", m.mean) for task, m in of_task.items() if m
    ]
    means = [m.mean for m in of_task.values() if m]
    assert headline.title == f"Step multipliers: Adan {min(means):.2f} to {max(means):.2f}"
    assert headline.marks == LADDER
    for table in found["tables"]:
        assert all(len(row) == len(table["head"]) == len(TASKS) + 1 for row in table["rows"])
    assert len(found["charts"]) == len(TASKS)
    for chart, task in zip(found["charts"], TASKS, strict=True):
        assert [line.label for line in chart.lines[:2]] == ["AdamW", "Adan"]
        assert len(chart.lines) == MOST
        seeds = finals(records, task, "adan")
        assert chart.lines[1].last == pytest.approx(sum(seeds) / len(seeds))


def test_runs_that_are_not_finished_are_left_out(records: list[Record]) -> None:
    assert section([]) is None
    no_ladder = section([record for record in records if record.stage == Stage.SEEDS])
    assert no_ladder is not None
    assert no_ladder["headline"] is None
    two = section([record for record in records if record.optimizer in ("adamw", "adan")])
    assert two is not None
    assert [row.label for row in two["headline"].rows] == ["Adan"]
