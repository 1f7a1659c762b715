"""What the comparison's records say: measures, claims, and the pages and figures made of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison_samples import ALL, SPACE, STEPS, bowl, sweep
from scipy.stats import bootstrap

from benchmarks.comparison import __main__, measures, page, times
from benchmarks.comparison import claims as judged
from benchmarks.comparison.design import BATCH_TASKS, BATCHES, TASKS
from benchmarks.comparison.figures import draw_all
from benchmarks.comparison.measures import in_times, multiplier
from benchmarks.comparison.records import Record, select
from benchmarks.comparison.search import Point
from benchmarks.comparison.todo import Job
from repro.errors import UserError
from repro.ledger.rows import ROOT
from repro.plots import QUIET

# ---- measures


def one(curve: list[tuple[int, float]]) -> Record:
    return replace(sweep(["vit"], most=1)[0], curve=tuple(curve), final=curve[-1][1])


def test_steps_to_a_loss() -> None:
    run = one([(10, 2.0), (20, 1.0), (30, 0.5)])
    assert [measures.steps_to(run, loss) for loss in (2.5, 2.0, 1.5, 1.0, 0.5, 0.4)] == [
        10,
        10,
        15,
        20,
        30,
        math.inf,
    ]
    assert measures.steps_to(one([(10, math.inf), (20, 1.0)]), 1.5) == 20


def test_speed_up() -> None:
    """On a line from 3 down to 0.9, Adan passes AdamW's 1 a twentieth before the end."""
    runs = sweep(["vit"])
    assert measures.speed_up(runs, "vit", "adamw") == pytest.approx(1)
    target = measures.target(runs, "vit")
    assert target is not None
    median = 1 - 0.1 + 0.001 * 3
    assert measures.speed_up(runs, "vit", "adan") == pytest.approx((3 - median) / (3 - target), rel=1e-6)
    worse = [replace(r, curve=((STEPS, 2.9),), final=2.9) if r.optimizer == "sgd" else r for r in runs]
    assert measures.speed_up(worse, "vit", "sgd") == 0
    assert measures.speed_up(runs, "lstm", "adan") is None


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (0.0, "1.00"),
        (0.02, "2.00"),
        (0.01, "1.41"),  # half a doubling
        (-0.01, "0.71"),
        (0.041, "> 4"),
        (-0.041, "< 0.25"),
        (math.inf, "< 0.25"),  # diverged
    ],
)
def test_step_multiplier(ahead: float, expected: str) -> None:
    """AdamW's loss falls by 0.02 with each doubling; noise is the same, so no interval remains."""

    def loss(job: Job, octave: int, seed: int) -> float:
        own = 0.0 if job.optimizer == "adamw" else abs(ahead) if math.isinf(ahead) else -ahead
        return bowl(replace(job, optimizer="adamw"), octave, seed) + own

    runs = sweep(["vit"], loss, ["adamw", "lamb"])
    found = multiplier(runs, "vit", "lamb")
    assert found is not None
    assert found.number == 3
    assert in_times(found) == expected
    assert in_times(multiplier(runs, "vit", "adamw")) == "1.00"
    without = [run for run in runs if run.variant != "4"]
    assert multiplier(without, "vit", "lamb") is None
    assert multiplier(select(runs, optimizer="adamw"), "vit", "lamb") is None


def test_the_step_multiplier_has_the_interval_of_paired_seeds() -> None:
    """Noise that AdamW's runs and the optimizer's have in common leaves no interval; other noise does."""
    noise = {1: -0.005, 2: 0.0, 3: 0.005}

    def loss(job: Job, octave: int, seed: int) -> float:
        own = noise.get(seed, 0.0) if job.optimizer == "lamb" and job.stage == "seeds" else 0.0
        return bowl(replace(job, optimizer="adamw"), octave, 0) + own

    found = multiplier(sweep(["vit"], loss, ["adamw", "lamb"]), "vit", "lamb")
    assert found is not None
    assert found.mean == pytest.approx(1)
    # of 27 samples the least and the largest, three times the same seed, are outside
    low, high = 2 ** (-0.01 / 3 / 0.02), 2 ** (0.01 / 3 / 0.02)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6)
    assert in_times(found) == "1.00 (0.89 to 1.12)"


def test_intervals() -> None:
    found = measures.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.number) == (3, 5)
    assert 1.5 < found.low < 2.2
    assert 3.8 < found.high < 4.5
    assert found == measures.estimate([1.0, 2.0, 3.0, 4.0, 5.0])  # the same each time
    assert measures.estimate([2.0]).format() == "2"
    assert measures.estimate([1.0, math.inf]).mean == math.inf
    apart = measures.difference([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert -1.2 < apart.low < apart.mean < apart.high < -0.8


def test_the_range_of_learning_rates() -> None:
    losses = {Point(octave, 0.05): loss for octave, loss in ((-2, 2.0), (0, 1.0), (1, 1.1), (2, math.inf))}
    found = measures.tolerated(losses, SPACE, 0.05)
    assert found.octaves == pytest.approx(2 * 0.05 + 0.5)
    assert found.highest == pytest.approx(1e-3 * 2**0.5)
    assert not found.open_above
    assert measures.tolerated(losses, SPACE, 0.2).octaves == pytest.approx(2 * 0.2 + 1)
    assert measures.tolerated({p: x for p, x in losses.items() if p.octave < 2}, SPACE, 0.2).open_above


def test_runs_that_failed_are_counted() -> None:
    runs = sweep(["vit"], lambda job, octave, seed: math.inf if octave == 4 else 3.5 if octave == -4 else 1.0)
    assert measures.divergence(runs, "vit", "adan") == (2, 5)
    assert measures.divergence(runs, "vit", "adam") == (2, 5)
    assert measures.divergence(runs, "vit", "muon") == (0, 3)  # of a search that begins with three


# ---- claims


def verdicts(runs: list[Record]) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in judged.claims(runs)}


def test_claims_follow_the_runs() -> None:
    def loss(job: Job, octave: int, seed: int) -> float:
        value = bowl(job, octave, seed)
        if job.optimizer == "adan" and job.task in TASKS:  # with learning rates eight times as large
            value += 0.01 * ((octave - 4) ** 2 - (octave - 1) ** 2)
        value += 0.2 * (job.task == "batch_4096" and job.optimizer == "lamb")
        value += 0.04 * (job.optimizer == "prodigy_adan" and octave == 0)
        value += 0.1 * (job.variant == "as AdamW") + 0.3 * (job.variant == "beta3 0.9")
        return value - 0.1 * (job.stage == "restart")

    runs = sweep(ALL, loss)
    assert verdicts(runs) == {
        "half": "confirmed at this scale",
        "multiplier": "confirmed at this scale",
        "lr": "confirmed at this scale",
        "betas": "not confirmed at this scale",
        "batch": "confirmed at this scale",
        "prox": "confirmed at this scale",
        "restart": "confirmed at this scale",
        "prodigy": "confirmed at this scale",
        "prodigy_adan": "not confirmed at this scale",
    }
    betas = next(claim for claim in judged.claims(runs) if claim.name == "betas")
    assert "(beta3 0.9)" in betas.findings[0].what


def test_claims_that_fail_are_said_to() -> None:
    def loss(job: Job, octave: int, seed: int) -> float:
        value = bowl(job, octave, seed) + 0.5 * (job.stage == "half")
        value += 0.085 * (job.optimizer == "adan" and job.task in TASKS)  # three quarters of a doubling ahead
        value += 0.1 * (job.variant == "proximal") + 0.05 * (job.optimizer == "prodigy" and octave == 0)
        return value + 0.2 * (job.task == f"batch_{BATCHES[-1]}" and job.optimizer == "adan")

    assert verdicts(sweep(ALL, loss)) == {
        "half": "not confirmed at this scale",
        "multiplier": "not confirmed at this scale",
        "lr": "not confirmed at this scale",
        "betas": "confirmed at this scale",
        "batch": "not confirmed at this scale",
        "prox": "not confirmed at this scale",
        "restart": "open at this scale",
        "prodigy": "not confirmed at this scale",
        "prodigy_adan": "confirmed at this scale",
    }
    assert set(verdicts([]).values()) == {"not run yet"}


# ---- pages


def test_all_files_come_from_the_records_alone(tmp_path: Path) -> None:
    runs = sweep(["vit", "mae", *BATCH_TASKS])
    measured = [times.Time("vit", name, number, seconds, {}) for number in (1, 2)
                for name, seconds in (("adamw", 0.1), ("adan", 0.11 + 0.02 * number))]  # fmt: skip
    for time in measured:
        times.append(tmp_path / "times.jsonl", time)
    files = page.write(runs, times.load(tmp_path / "times.jsonl"), tmp_path)
    assert {
        "README.md",
        "tuning.md",
        "runs.csv",
        *(
            f"{name}.{suffix}"
            for name in ("headline", "curves", "learning_rates", "batches")
            for suffix in ("png", "svg")
        ),
    } == {*files}
    text = (tmp_path / "README.md").read_text()
    assert f"{len(runs):,} runs" in text
    assert "**0.903 (0.9018 to 0.9042)**" in text  # Adan's, the least
    assert "| n/a |" in text  # Sophia on MAE
    assert " (0.7" in text  # Adan's speed-up in seconds: about 1.05 / 1.4
    assert "confirmed at this scale" in text
    tuning = (tmp_path / "tuning.md").read_text()
    assert "| vit | adan | 0.008 | 0.05 |" in tuning
    assert "python vision/train.py -m +comparison=vit optimizer=adan" in tuning
    assert "search not finished" not in tuning
    again = tmp_path / "again"
    page.write(runs, times.load(tmp_path / "times.jsonl"), again)
    for name in files:
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_curves_show_the_later_losses_and_name_what_is_drawn() -> None:
    """The axis leaves out first losses of 300; SGD's stay there, so SGD is not in the legend."""

    def started_high(run: Record) -> Record:
        values = [(step, 300.0) for step, _ in run.curve[:1]]
        rest = [(step, 300.0 if run.optimizer == "sgd" else loss) for step, loss in run.curve[1:]]
        return replace(run, curve=(*values, *rest))

    runs = [started_high(run) for run in sweep(["vit"], optimizers=["adamw", "adan", "adan_int8", "sgd"])]
    figures = draw_all(runs)
    [panel], [legend] = figures["curves"].axes, figures["curves"].legends
    low, high = panel.get_ylim()
    assert 0.75 < low < 0.9
    assert 2 < high < 3
    assert [text.get_text() for text in legend.get_texts()] == ["AdamW", "Adan"]
    assert [line.get_color() for line in panel.lines].count(QUIET) == 2  # the variants


def test_titles_say_what_the_losses_say() -> None:
    def titles(ahead: float) -> dict[str, str]:
        def loss(job: Job, octave: int, seed: int) -> float:
            return bowl(job, octave, seed) + ahead * (job.optimizer == "adan")

        drawn = draw_all(sweep(["vit", "mae"], loss))
        return {name: figure.get_suptitle() for name, figure in drawn.items()}

    assert titles(0.3)["curves"] == "Adan ends lower than AdamW on 0 of 2 tasks, higher on 2"
    assert titles(-0.3)["curves"] == "Adan ends lower than AdamW on 2 of 2 tasks, higher on 0"
    assert "above AdamW" in titles(0.3)["headline"]
    assert titles(0.3)["learning_rates"] == "Adan's best learning rate is 2 times AdamW's"


def test_pages_of_a_sweep_that_only_began(tmp_path: Path) -> None:
    files = page.write(sweep(["vit"], most=5), [], tmp_path)
    assert "headline.png" not in files
    assert "5 runs" in (tmp_path / "README.md").read_text()
    assert "search not finished" in (tmp_path / "tuning.md").read_text()


@pytest.mark.parametrize("origin", ["committed", "new", "foreign"])
def test_only_its_own_page_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    committed = (ROOT / "results" / "comparison" / "README.md").read_text()
    pages = {
        "committed": committed,
        "new": page.summary(sweep(["vit"], most=5), [], {}),
        "foreign": "# Mine\n",
    }
    (tmp_path / "README.md").write_text(pages[origin])
    monkeypatch.setattr(page, "write", lambda *arguments: [])
    assert __main__.main(["--out", str(tmp_path)]) == (2 if origin == "foreign" else 0)


def test_a_damaged_time_is_named(tmp_path: Path) -> None:
    path = tmp_path / "times.jsonl"
    path.write_text(json.dumps({"task": "vit"}) + "\n")
    with pytest.raises(UserError, match=r"times\.jsonl: line 1 is not a record"):
        times.load(path)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_intervals_are_those_of_scipy(size: int) -> None:
    made = np.random.default_rng(size)
    options = dict(n_resamples=measures.RESAMPLES, method="percentile", rng=0)
    for _ in range(5):
        one, other = made.normal(size=size).tolist(), made.normal(size=size + 1).tolist()
        found, known = measures.estimate(one), bootstrap((one,), np.mean, **options).confidence_interval
        assert (found.low, found.high) == pytest.approx(known, rel=1e-12)
        known = bootstrap(
            (one, other), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis), **options
        ).confidence_interval
        found = measures.difference(one, other)
        assert (found.low, found.high) == pytest.approx(known, rel=1e-12)
