"""The sweep of the comparison on the real recipe, in miniature, and what it says when it cannot run."""

import importlib
import json
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from threading import Barrier
from typing import NoReturn

import pytest
from comparison_samples import bowl
from comparison_samples import record as made
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks import sweep
from benchmarks.comparison import __main__, times
from benchmarks.comparison.design import COMPARISON, EXPERIMENTS, LADDER, OPTIMIZERS, TASKS
from benchmarks.comparison.records import Record, Stage, append, load
from benchmarks.comparison.todo import Job, todo
from benchmarks.lab.todo import todo as lab_todo
from repro.errors import UserError
from repro.interop import read_weights
from repro.ledger import runs
from repro.ledger.rows import ROOT
from repro.train.cli import CONFIGS

Run = Callable[..., tuple[int, str, str]]
SMALL = ("epochs=2", "schedule.warmup_epochs=0", "model.kwargs.embed_dim=16", "model.kwargs.depth=1")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the task vit take one second."""
    task = replace(TASKS["vit"], overrides=SMALL)
    monkeypatch.setitem(COMPARISON.tasks, "vit", task)


@pytest.mark.recipe
@pytest.mark.usefixtures("small")
def test_a_job_becomes_records_and_weights(runner: Callable[..., Run]) -> None:
    """Two seeds of Adan, one of them kept; SGD with a learning rate that is far too large."""
    run = runner(__main__.main)
    options = Namespace(runs=Path("swept"), data=None, launcher=[], threads=1)
    found = sweep.run(Job("vit", "adan", "seeds", 0.05, (0,), (1, 2)), options)
    assert [(r.seed, r.lr, r.stage, r.diverged) for r in found] == [
        (1, 4e-3, "seeds", None),
        (2, 4e-3, "seeds", None),
    ]
    assert found[0].config_hash == found[1].config_hash
    assert found[0].final != found[1].final
    assert found[0].steps == found[0].curve[-1][0] == 2 * (1078 // 64)
    assert found[0].final == found[0].curve[-1][1]
    assert found[0].test.keys() == {"test_loss", "test_accuracy", "test_top5"}
    assert found[0].state_bytes >= 16 * found[0].parameters
    (lost,) = sweep.run(Job("vit", "sgd", "tune", 0.0, (100,), (0,)), options)
    assert lost.diverged is not None
    assert lost.final == float("inf")
    (kept,) = {path.parent.parent for path in Path("swept").rglob("step-*")}
    assert json.loads((kept / "summary.json").read_text())["seed"] == 1

    for record in [*found, replace(found[0], stage="tune", seed=0)]:
        append(Path("runs.jsonl"), record)
    words = ["--records", "runs.jsonl", "--out", "out"]
    status, out, _ = run(*words, "--weights", "swept")
    assert (status, "vit-adan" in out) == (0, True)
    folder = Path("out/winners/vit-adan")
    tensors, _ = read_weights(folder)
    assert sum(x.numel() for x in tensors.values()) >= found[0].parameters
    assert json.loads((folder / "summary.json").read_text())["seed"] == 1
    assert runs.of_rows([folder]) == []  # no row of the ledger, but readable
    status, out, _ = run(*words, "--again", "vit", "adan")
    assert (status, "agrees" in out) == (0, True)
    Path("runs.jsonl").write_text("")
    for record in (*(replace(r, final=9 + r.seed) for r in found), replace(found[0], stage="tune", seed=0)):
        append(Path("runs.jsonl"), record)
    status, out, _ = run(*words, "--again", "vit", "adan")
    assert (status, "DIFFERS" in out) == (1, True)


def test_a_run_that_fails_otherwise_is_not_taken_for_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMPARISON.tasks, "vit", replace(TASKS["vit"], overrides=(*SMALL, "batch_size=5000")))
    with pytest.raises(UserError, match=r"seed=0: the run did not begin"):
        sweep.run(
            Job("vit", "adan", "tune", 0.05, (0,), (0,)),
            Namespace(runs=tmp_path, data=None, launcher=[], threads=1),
        )
    assert "batch_size=5000" in capsys.readouterr().err


def test_the_jobs_of_a_cell_run_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is run does not depend on how many run at a time; a cell that fails does not stop the others."""
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))
    found: dict[int, set[str]] = {}
    for jobs in (1, 2):
        together = Barrier(jobs, timeout=60)

        def run(job: Job, options: Namespace, together: Barrier = together) -> list[Record]:
            if job.optimizer == "muon":
                raise UserError("too strong")
            if job.stage == Stage.TUNE:  # two seeds of each point
                together.wait()
            return [made(job, octave, seed, bowl(job, octave, seed)) for octave, seed in job.runs()]

        monkeypatch.setattr(sweep, "run_logged", run)
        options = Namespace(jobs=jobs, out=tmp_path / f"{jobs}.jsonl")
        next_jobs = partial(lab_todo, longest=2048)
        assert sweep.sweep([("gpt", "muon"), ("gpt", "adan")], next_jobs, options) == 2
        out, err = capsys.readouterr()
        assert "error: gpt muon: too strong\n" in err
        found[jobs] = set(options.out.read_text().splitlines())
        assert f"{len(found[jobs])} runs in " in out
        assert next_jobs("gpt", "adan", load(options.out)) == []
    assert found[1] == found[2]


def test_a_process_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "run_logged", killed)
    options = Namespace(jobs=2, out=tmp_path / "runs.jsonl", runs=tmp_path)
    with pytest.raises(UserError, match=r"vit adan: a process was killed.*fewer --jobs"):
        sweep.sweep([("vit", "adan")], todo, options)


def killed(job: Job, options: Namespace) -> NoReturn:
    """In a process of its own, end as the kernel does it to those that take too much memory."""
    assert parent_process() is not None
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.recipe
@pytest.mark.usefixtures("small")
def test_times_of_steps(runner: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SHORT", ("stop_after=6", "run.log_every=2", *sweep.SHORT[2:]))
    run = runner(sweep.main)
    words = ["--times", "1", "--tasks", "vit", "--optimizers", "adamw", "adan", "--out", "out/runs.jsonl"]
    assert run(*words)[0] == 0
    measured = times.load(Path("out/times.jsonl"))
    assert [(time.optimizer, time.round) for time in measured] == [("adamw", 1), ("adan", 1)]
    assert all(1e-6 < time.seconds < 1 for time in measured)
    assert measured[0].environment["threads"] == 1
    assert "0 new" in run(*words)[1]


def test_what_is_next(runner: Callable[..., Run]) -> None:
    run = runner(sweep.main)
    status, out, _ = run("--list", "--tasks", "vit", "mae", "--out", "none.jsonl")
    assert status == 0
    assert "vit        adan          0 runs; next: tune, tune, tune" in out
    assert "mae        sophia" not in out


def test_errors_are_one_line(runner: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAN_DATA", raising=False)
    run = runner(sweep.main)
    status, _, err = run("--tasks", "batch_32")
    assert (status, err) == (
        2,
        "error: batch_32: set --data or ADAN_DATA to the folder with fashion-mnist/\n",
    )
    status, _, err = run("--jobs", "0")
    assert (status, err) == (2, "error: --jobs 0: must be at least 1\n")
    run = runner(__main__.main)
    status, _, err = run("--records", "none.jsonl")
    assert (status, err) == (2, "error: none.jsonl: no runs; make some with `python benchmarks/sweep.py`\n")


def test_overrides_are_written_as_hydra_repeats_them() -> None:
    variants = [words for about in EXPERIMENTS.values() for words in about.variants.values()]
    for words in [*variants, *(task.overrides for task in COMPARISON.tasks.values()),
                  *(task.length.words(factor) for task in TASKS.values() if task.length for factor in LADDER),
                  *(optimizer.overrides for optimizer in OPTIMIZERS.values())]:  # fmt: skip
        parsed = OverridesParser.create().parse_overrides(list(words))
        assert [f"{override.key_or_group}={override.get_value_element_as_str()}" for override in parsed] == [
            *words
        ]


@pytest.mark.parametrize("name", [*TASKS, "batch_32"])
def test_every_task_is_a_configuration(name: str) -> None:
    """With all overrides of the comparison, and at the ends of the ladder."""
    task = COMPARISON.tasks[name]
    primary = {
        "vision/pretrain_mae.py": "pretrain_mae",
        "vision/train.py": "vision",
        "llm/pretrain.py": "llm",
    }
    config = primary.get(task.script, Path(task.script).stem.split("_")[-1])
    importlib.import_module(task.script.removesuffix(".py").replace("/", "."))  # registers its schema
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        compose(config, Job(name, "adafactor", "tune", 0.0, (0,), (0,)).words)
        whole = compose(config, Job(name, "adan", "tune", 0.0, (0,), (0,)).words)
        for factor in (LADDER[0], LADDER[-1]) if task.length else ():
            more = task.length.words(factor)
            other = compose(config, Job(name, "adan", "ladder", 0.0, (0,), (0,), more=more).words)
            assert (other.steps or other.epochs) == factor * (whole.steps or whole.epochs)
            assert (other.schedule.warmup_steps or other.schedule.warmup_epochs) == factor * (
                whole.schedule.warmup_steps or whole.schedule.warmup_epochs
            )
        for experiment in EXPERIMENTS.values():
            if name in experiment.tasks:
                more = next(iter(experiment.variants.values()))
                compose(config, Job(name, "adan_int8", "x", 0.0, (0,), (0,), more=more).words)


def test_the_committed_records_can_be_read() -> None:
    """And have nothing that is useless elsewhere."""
    for record in load(sweep.RECORDS):
        assert record.task in COMPARISON.tasks
        assert record.environment["commit"]
        assert not record.environment["commit"].endswith("dirty")
    assert str(sweep.RECORDS.relative_to(ROOT)) == "results/comparison/runs.jsonl"
