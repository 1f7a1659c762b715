"""The comparison: how is tuned, what runs next, and how its runs are recorded."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_samples import ALL, SPACE, bowl, record, sweep

from benchmarks.comparison import records
from benchmarks.comparison.design import COMPARISON, EXPERIMENTS, OPTIMIZERS, SEEDS, TASKS
from benchmarks.comparison.search import Point, Space, best, edges, next_points
from benchmarks.comparison.todo import Job, todo
from repro.errors import UserError
from repro.runs import Run


def identity(r: records.Record) -> tuple[object, ...]:
    """Return the values that identify a run."""
    return r.task, r.optimizer, r.stage, r.variant, r.octave, r.weight_decay, r.seed


def search(space: Space, loss: dict[Point, float] | None = None, optimum: int = 0) -> dict[Point, float]:
    """Follow the rule on a bowl whose best learning rate is at an octave, with the second weight decay."""
    losses: dict[Point, float] = dict(loss or {})
    while points := next_points(space, losses):
        assert not losses.keys() & set(points)
        for point in points:
            losses[point] = (point.octave - optimum) ** 2 + (point.weight_decay != space.weight_decays[-2])
    return losses


@pytest.mark.parametrize("optimum", [-7, -4, -1, 0, 3, 6])
@pytest.mark.parametrize("full", [False, True])
def test_the_search_ends_at_an_interior_optimum(optimum: int, full: bool) -> None:
    space = replace(SPACE, full=full, octaves=tuple(range(-4, 5)), budget=40) if full else SPACE
    losses = search(space, optimum=optimum)
    assert best(losses) == Point(optimum, 0.0)
    assert edges(space, losses) == []
    assert {Point(optimum - 1, 0.0), Point(optimum + 1, 0.0)} <= losses.keys()
    assert len(losses) <= space.budget


def test_a_search_keeps_to_its_budget_and_says_where_it_stopped() -> None:
    losses = search(replace(SPACE, budget=6), optimum=9)
    assert len(losses) == 6
    assert edges(SPACE, losses) == ["largest learning rate tried", "other weight decays not tried"]


def test_a_weight_decay_at_the_end_is_followed_outward() -> None:
    losses: dict[Point, float] = {}
    while points := next_points(SPACE, losses):
        losses |= {p: p.octave**2 + abs(math.log10(p.weight_decay + 1e-9) - math.log10(5)) for p in points}
    assert best(losses) == Point(0, 5.0)
    assert edges(SPACE, losses) == []


def test_a_search_where_everything_diverges_ends() -> None:
    losses: dict[Point, float] = {}
    while points := next_points(SPACE, losses):
        losses |= dict.fromkeys(points, math.inf)
    assert list(losses) == SPACE.grid()


def test_learning_rates_are_those_of_the_command_line() -> None:
    assert [SPACE.lr(octave) for octave in (-4, 0, 3)] == [6.25e-5, 1e-3, 8e-3]


def test_a_sweep_ends_and_all_are_tuned_by_equal_budgets() -> None:
    runs = sweep(ALL)
    assert len({identity(run) for run in runs}) == len(runs)
    for task in TASKS:
        for name, about in OPTIMIZERS.items():
            of = [run for run in runs if run.task == task and run.optimizer == name]
            seeds = {stage: sorted(run.seed for run in of if run.stage == stage) for stage in records.Stage}
            tried = len(seeds.pop(records.Stage.TUNE))
            if about.space is None or not COMPARISON.works(task, name):  # a variant takes its optimizer's
                assert tried == 0
            else:
                assert len(about.space.grid()) <= tried <= about.space.budget
            most = 5 if name in ("adamw", "adan", "adan_bf16", "adan_int8") else 3
            wanted = {"seeds": [*SEEDS[:most]], "half": [*SEEDS[: 3 if most == 5 else 2]]}
            wanted["ladder"] = [*(3 * [1] + 3 * [2] + 3 * [3])] if name == "adamw" else []
            wanted["untuned"] = [*SEEDS[:most]] if about.rival else []  # the bowl's best octave is 1
            assert seeds == (wanted if COMPARISON.works(task, name) else {key: [] for key in wanted})
    tried = {run.octave for run in records.select(runs, optimizer="prodigy", stage="untuned")}
    assert tried == {0}
    for name, experiment in EXPERIMENTS.items():
        found = records.select(runs, stage=name)
        assert len(found) == len(experiment.tasks) * len(experiment.variants) * len(experiment.seeds)
    assert {run.optimizer for run in runs if run.task == "batch_32"} == {"adamw", "adan", "lamb"}


def test_a_sweep_goes_on_from_any_of_its_records() -> None:
    whole = sweep(["vit", "mae"])
    for number in random.Random(0).sample(range(len(whole)), 10):
        known = whole[:number]
        for pair in COMPARISON.cells(["vit", "mae"], list(OPTIMIZERS)):
            while jobs := todo(*pair, known):
                for job in jobs:
                    known += [
                        record(job, octave, seed, bowl(job, octave, seed)) for octave, seed in job.runs()
                    ]
        assert {identity(run) for run in known} == {identity(run) for run in whole}


def test_what_a_job_types() -> None:
    job = Job("batch_256", "adan", "tune", 0.05, (0, 1), (0,))
    assert job.words == [
        "+comparison=batch", "optimizer=adan", "batch_size=256", "optimizer.weight_decay=0.05",
    ]  # fmt: skip
    assert [job.lr(octave) for octave in job.octaves] == [4e-3, 8e-3]
    words = Job("vit", "adan", "prox", 0.05, (0,), (1,), more=EXPERIMENTS["prox"].variants["proximal"]).words
    assert [word for word in words if "weight_decay" in word] == ["optimizer.weight_decay=0.5"]
    words = Job("vit", "adan_int8", "half", 0.0, (0,), (1,), more=("epochs=8",)).words
    assert {"optimizer=adan", "optimizer.state_dtype=int8", "epochs=8"} <= set(words)


# ---- records


def test_records_are_kept(tmp_path: Path) -> None:
    path, runs = tmp_path / "deep" / "runs.jsonl", sweep(["vit"], most=3)
    runs.append(replace(runs[0], final=math.inf, diverged=3, seed=9, curve=((1, 2.0), (2, math.inf))))
    assert records.load(path) == []
    for run in runs:
        records.append(path, run)
    assert records.load(path) == runs
    with path.open("a") as file:
        file.write('{"task": "vi')  # a kill
    assert records.load(path) == runs
    records.append(path, runs[1])
    assert records.load(path) == [*runs, runs[1]]
    assert "Infinity" not in path.read_text()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    records.append(path, sweep(["vit"], most=1)[0])
    path.write_text(path.read_text() + '{"task": "vit"}\n')
    with pytest.raises(UserError, match=r"runs\.jsonl: line 2 is not a record; repair or delete that line"):
        records.load(path)


def test_the_hash_of_a_configuration() -> None:
    config = {"seed": 1, "optimizer.lr": 0.1, "run.root": "a", "data.root": "b"}

    def hashed(**changes: object) -> str:
        run = Run(Path(), config | {key.replace("_", ".", 1): x for key, x in changes.items()}, None, [])
        return records.config_hash(run)

    assert hashed() == hashed(seed=2, run_root="c")
    assert hashed() != hashed(optimizer_lr=0.2)


def test_the_tidy_table() -> None:
    frame = records.frame(sweep(["vit"], most=4))
    assert len(frame) == 4
    assert {"task", "lr", "seed", "config_hash", "overrides", "commit", "machine", "final"} <= set(
        frame.columns
    )
    assert "curve" not in frame.columns
