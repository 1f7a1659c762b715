"""The claims lab: what it runs next, its measures, verdicts and page, on records of runs that never were."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_samples import bowl
from comparison_samples import sweep as compared_runs

from benchmarks.comparison.records import Record, Stage, append, load, select
from benchmarks.comparison.search import Point, edges
from benchmarks.lab import __main__ as lab
from benchmarks.lab import budget, page, predictions
from benchmarks.lab.claims import Claim, Finding, claims
from benchmarks.lab.design import ALL_TASKS, BATCHES, LAB, LENGTHS, OPTIMIZERS, RUNGS, SEEDS, TUNED
from benchmarks.lab.measures import best_lr, change, least_multiplier, multiplier, trend
from benchmarks.lab.predictions import Prediction
from benchmarks.lab.todo import LabJob, length, octave_at, todo, tuned
from llm.config import pretrain  # noqa: F401 (it registers the schema)
from repro.ledger.rows import compose_config
from vision import config as vision_config  # noqa: F401 (it registers the schemas)

Loss = Callable[[LabJob, int, int], float]


def record(job: LabJob, octave: int, seed: int, loss: float) -> Record:
    about = {"commit": "c" * 40, "machine": "a machine", "threads": 1, "torch": "2.14.1", "time": ""}
    return Record(
        task=job.task, optimizer=job.optimizer, stage=job.stage, variant=job.variant, octave=octave,
        lr=job.lr(octave), weight_decay=job.weight_decay, seed=seed, overrides=tuple(job.words),
        config_hash="0" * 12, curve=((job.steps, loss),), final=loss, test={}, steps=job.steps, diverged=None,
        parameters=1000, state_bytes=8000, seconds=0.02 * job.steps, environment=about,
    )  # fmt: skip


def law(job: LabJob, octave: int, seed: int) -> float:
    """Return a loss that falls as a power of the steps; Adan is as good with 0.8 of them, Muon with 0.6.

    The best octave is 1, in the longest runs 0; runs of a seed are alike.
    """
    ahead = {"adan": 1.25, "adan_int8": 1.25, "adan_bf16": 1.25, "muon": 1 / 0.6}.get(job.optimizer, 1.0)
    centre = 0 if job.steps >= 4096 else 1
    worse = 0.01 * (octave - centre) ** 2 + 0.02 * (job.weight_decay != 0.05)
    return 4 * (ahead * job.steps) ** -0.1 + worse + 0.002 * seed + 0.001 * bool(job.variant)


def run_all(
    loss: Loss, tasks: Sequence[str] = ("gpt",), longest: int = RUNGS[-1], asked: bool = True
) -> list[Record]:
    records: list[Record] = []
    for cell in LAB.cells(tasks, list(OPTIMIZERS)):
        while jobs := todo(*cell, records, longest, asked):
            for job in jobs:
                records += [record(job, octave, seed, loss(job, octave, seed)) for octave, seed in job.runs()]
    return records


@pytest.fixture(scope="module")
def done() -> list[Record]:
    return run_all(law)


def test_everything_is_run_once(done: list[Record]) -> None:
    keys = [(r.optimizer, r.stage, r.variant, r.octave, r.weight_decay, r.seed, length(r)) for r in done]
    assert len(set(keys)) == len(keys)
    for name, optimizer in OPTIMIZERS.items():
        if "gpt" in optimizer.without:
            continue
        lengths = RUNGS if name == "adamw" else LENGTHS
        seen = sorted((length(r), r.seed) for r in select(done, optimizer=name, stage="seeds"))
        assert seen == [(steps, seed) for steps in lengths for seed in optimizer.seeds]
    assert {(r.seed, length(r)) for r in select(done, stage="tune")} == {(0, TUNED), (10, TUNED)}
    assert not {r.seed for r in select(done, stage="seeds")} & {0, 10}
    variants = {(r.stage, r.variant) for r in done if r.variant and not r.stage.endswith("try")}
    assert len(variants) == 6 + 1 + 2 + 1
    for stage, variant in variants - {("restart", "every 512 steps")}:
        assert len(select(done, stage=f"{stage} try", variant=variant)) == 3


def test_the_search_and_the_longest_runs(done: list[Record]) -> None:
    losses = tuned(done, "gpt", "muon")
    assert min(losses, key=losses.__getitem__) == Point(1, 0.05)
    assert not edges(LAB.space("gpt", "muon"), losses)
    assert best_lr(done, "gpt", "muon") == pytest.approx(2 * 8e-3)
    octaves = {steps: octave_at(done, "gpt", "adan_int8", steps) for steps in RUNGS}
    assert octaves == {256: 1, 512: 1, 1024: 1, 2048: 1, 4096: 0, 8192: 0, 16384: 0}
    assert {r.octave for r in select(done, optimizer="adan", stage="again")} == {-1, 0, 1, 2}


def test_a_search_waits_for_both_seeds() -> None:
    job = todo("gpt", "adan", [])[0]
    one = [record(job, job.octaves[0], 0, 1.0)]
    assert tuned(one, "gpt", "adan") == {}
    (left,) = [again for again in todo("gpt", "adan", one) if again.octaves == job.octaves]
    assert left.seeds == (10,)


def test_an_unfinished_search_has_no_best_learning_rate(done: list[Record]) -> None:
    begun = [r for r in done if not (r.optimizer == "adan" and r.stage == "tune" and r.octave == 2)]
    assert tuned(begun, "gpt", "adan")
    assert best_lr(begun, "gpt", "adan") is None
    assert predictions.searches(begun, []) == []
    assert verdicts(begun)["learning rate"] == []


def test_shorter_runs_first() -> None:
    records = run_all(law, longest=2048, asked=False)
    assert {length(r) for r in records} == {256, 512, 1024, 2048}
    assert not {r.stage for r in records} - {"tune", "seeds"}
    assert octave_at(records, "gpt", "adan", 8192) is None
    assert todo("gpt", "adan", records, 256) == []


def test_large_batches() -> None:
    records = run_all(law, ["gpt_64"])
    assert {(r.optimizer, length(r)) for r in records} == {("adamw", 512), ("adan", 512)}
    assert all("batch_size=64" in r.overrides and "+lab=gpt" in r.overrides for r in records)
    assert not {r.stage for r in records} - {"tune", "seeds"}


def test_batches_by_steps_to_a_target() -> None:
    """AdamW's loss in the smallest batch is reached in fewer steps by Adan in all, by LAMB in small ones."""

    def loss(job: LabJob, octave: int, seed: int) -> float:
        ahead = {"adamw": 1.0, "adan": 1.2, "lamb": 1.5 if job.about.batch < 1000 else 0.8}[job.optimizer]
        return 2 - 0.1 * ahead * job.about.batch**0.1 + 0.01 * octave**2

    records = run_all(loss, list(BATCHES))
    assert {(r.optimizer, length(r)) for r in records} == {(n, 1000) for n in ("adamw", "adan", "lamb")}
    assert {r.seed for r in select(records, stage="seeds")} == {1, 2, 3}
    assert {r.seed for r in select(records, stage="tune")} == {0}
    assert all("eval_every=50" in r.overrides for r in records)
    falling = [
        replace(r, curve=tuple((50 * i, 3 + (r.final - 3) * i / 20) for i in range(21))) for r in records
    ]

    def judged(records: list[Record]) -> Claim:
        return next(claim for claim in claims(records, []) if claim.name == "batches")

    found = judged(falling)
    assert found.verdict == "confirmed"
    assert found.findings[0].what == (
        "in batches of 32, 256, 1,024, 4,096: Adan 1.02, 1.03, 1.03, 1.04; LAMB 1.06, 1.07, 0.97, 0.96; "
        "LAMB's spread over Adan's: 1.10 (1.10 to 1.10)"
    )
    assert found.power(found.findings[0]) == "a spread 1.00 times as large"  # runs of a seed are alike
    begun = judged([run for run in falling if run.task != "batch_4096"])
    assert (begun.verdict, [each.verdict for each in begun.findings]) == ("open", ["yes"])
    assert judged([run for run in falling if run.optimizer != "lamb"]).findings == []
    lost = select(falling, optimizer="lamb", task="batch_4096", stage="seeds")
    failing = [replace(r, final=math.inf, curve=()) if r in lost else r for r in falling]
    assert "LAMB 1.06, 1.07, 0.97, 0.93;" in judged(failing).findings[0].what  # its whole length


def test_the_multiplier_and_its_trend(done: list[Record]) -> None:
    for steps in LENGTHS:
        found = multiplier(done, "gpt", "muon", steps)
        assert found.mean == pytest.approx(1 / 0.6, rel=0.02)  # linear between rungs, which the law is not
        assert found.low == pytest.approx(found.high)  # runs of a seed are alike
        assert multiplier(done, "gpt", "adamw", steps).mean == pytest.approx(1)
    assert trend(done, "gpt", "muon").mean == pytest.approx(1, abs=0.02)
    assert multiplier(done, "gpt", "adan", 8192).number == 5
    assert multiplier(done, "gpt", "adan_int8", 8192).number == 3
    without = [r for r in done if not (r.optimizer == "adamw" and length(r) == 8192)]
    assert multiplier(without, "gpt", "muon", 8192) is None


def test_a_growing_multiplier() -> None:
    def growing(job: LabJob, octave: int, seed: int) -> float:
        ahead = (job.steps / 512) ** 0.25 if job.optimizer == "muon" else 1.0
        return 4 * (ahead * job.steps) ** -0.1 + 0.01 * (octave - 1) ** 2 + 0.0005 * seed * (job.steps % 7)

    found = trend(run_all(growing, asked=False), "gpt", "muon")
    assert found.mean == pytest.approx(4**0.25, rel=0.02)
    assert found.low <= found.mean <= found.high


def test_the_power() -> None:
    """Differences with a standard deviation of .01, on a ladder that falls by .1 when steps are doubled."""
    noise = dict(zip(SEEDS, (-0.0126, -0.0063, 0.0, 0.0063, 0.0126), strict=True))  # deviation .00998

    def loss(job: LabJob, octave: int, seed: int) -> float:
        luck = noise.get(seed, 0.0) * (job.optimizer == "adan")
        return 3 - 0.1 * math.log2(job.steps) + 0.01 * (octave - 1) ** 2 + luck

    found = least_multiplier(run_all(loss, longest=2048, asked=False), "gpt", "adan", 512)
    assert found == pytest.approx(2 ** (3.72 * 0.00996 / math.sqrt(5) / 0.1), rel=0.01)


def test_changes_are_paired() -> None:
    found = change({1: 1.1, 2: 2.2, 3: 3.3, 4: 9}, {1: 1.0, 2: 2.1, 3: 3.2})
    assert found.mean == pytest.approx(0.1 / 2.1)
    assert found.high == pytest.approx(found.low)
    assert change({1: 1.0}, {1: 1.0, 2: 1.0}) is None


def finding(verdict: str, task: str = "gpt", steps: int = 512) -> Finding:
    return Finding(task, steps, verdict, "")


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], "not run yet"),
        ([finding("yes")], "open"),  # two more tasks are to come
        ([finding("yes"), finding("yes", "mae")], "confirmed"),
        ([finding("no"), finding("no", "mae"), finding("yes", "vit")], "refuted"),
        ([finding("regime not reached"), finding("regime not reached", "vit")], "regime not reached"),
        ([finding("yes"), finding("no", "mae"), finding("open", "vit")], "open"),
        ([finding("yes"), finding("no", steps=8192), finding("no", "mae")], "refuted"),  # the longest counts
    ],
)
def test_the_verdict_is_that_of_most_tasks(findings: list[Finding], verdict: str) -> None:
    assert Claim("", "", "", "", findings).verdict == verdict


def verdicts(records: list[Record]) -> dict[str, list[str]]:
    return {claim.name: [found.verdict for found in claim.findings] for claim in claims(records, [])}


def test_verdicts_on_half_the_steps() -> None:
    """No in short runs, but the trend reaches 2 later; no for good without a trend; yes where it is 2."""

    def with_ahead(ahead: Callable[[int], float]) -> list[Record]:
        def loss(job: LabJob, octave: int, seed: int) -> float:
            factor = ahead(job.steps) if job.optimizer.startswith("adan") else 1.0
            return 4 * (factor * job.steps) ** -0.1 + 0.01 * (octave - 1) ** 2 + 0.002 * seed

        return run_all(loss, asked=False)

    def found(records: list[Record]) -> list[str]:
        return verdicts(records)["half the steps"]

    assert found(with_ahead(lambda steps: 1.25)) == ["no", "no", "no"]
    assert found(with_ahead(lambda steps: (steps / 512) ** 0.2)) == ["regime not reached"] * 3
    ahead = with_ahead(lambda steps: 2.3)
    assert found(ahead)[:2] == ["yes", "yes"]  # no rung is beyond twice the longest runs
    shorter = [run for run in ahead if run.optimizer != "adamw" or length(run) <= TUNED]
    assert found(shorter) == ["yes", "open"]  # at 2,048 steps it is beyond AdamW's longest runs, not twice
    assert trend(shorter, "gpt", "adan") is None


def test_no_verdict_on_a_single_seed(done: list[Record]) -> None:
    """A sweep in progress has cells with one, which has no interval."""
    first = [run for run in done if (run.optimizer, run.stage) != ("adan", Stage.SEEDS) or run.seed == 1]
    found = verdicts(first)
    assert {name for name in found if found[name]} == {"learning rate", "proximal decay"}  # need no such cell


def test_verdicts_on_the_experiments(done: list[Record]) -> None:
    """A variant costs .001 of about 1.9: not 2 %, but it is above 0 in every seed."""
    found = verdicts(done)
    assert found["betas"] == ["yes"]
    assert found["memory"] == found["restart"] == ["no"]
    assert found["proximal decay"] == ["open"]
    assert found["learning rate"] == ["no"]
    assert found["states in int8"] == found["states in bfloat16"] == ["yes"] * 3

    def hurt(job: LabJob, octave: int, seed: int) -> float:
        return law(job, octave, seed) + 0.2 * (job.variant in ("beta1 0.99", "as AdamW"))

    found = verdicts(run_all(hurt))
    assert found["betas"] == ["regime not reached"]  # 2,048 steps are 20 memories
    assert found["proximal decay"] == ["yes"]


PREDICTION = Prediction("gpt", 400, 8e-3, 2.0, 0.5, 1.8, 0.03, {"commit": "c"})


def test_the_page(done: list[Record], tmp_path: Path) -> None:
    guesses = [PREDICTION, replace(PREDICTION, pilot=100, factor=1.5)]
    names = page.write(done, [], guesses, tmp_path)
    assert {*names} == {path.name for path in tmp_path.iterdir()}
    assert {"multiplier.png", "multiplier.svg", "ladder.png", "ladder.svg"} < {*names}
    text = (tmp_path / "README.md").read_text()
    for claim in claims(done, guesses):
        assert f"**{claim.name}: {claim.verdict}.**" in text
    assert "| GPT-2, bytes | Muon | 1.6" in text
    # predicted 2.00, tuned 3: the loss at 1.6e-2 lies between those of the octaves 0 and 1
    assert "| GPT-2, bytes | 2,048 | 2.00 | 3.00 | 1.80 | +0.3% |" in text
    assert "within 2% of the best one on 1 of 1 tasks, and lower than at 5 times AdamW's on 1." in text
    assert "| 1.50; 1.80 at s = 0.5 | 2.00; 1.80 at s = 0.5 |  |" in text


def test_a_page_of_little(tmp_path: Path) -> None:
    names = page.write([record(todo("gpt", "adan", [])[0], 0, 0, 1.0)], [], [], tmp_path)
    assert names == ["README.md", "runs.csv"]
    assert "Not run yet." in (tmp_path / "README.md").read_text()


def test_the_budget(done: list[Record]) -> None:
    everything = budget.missing([], ["gpt"], list(OPTIMIZERS), RUNGS[-1], True)
    assert [each.optimizer for each in everything][:2] == ["adamw", "adan"]
    half = [r for r in done if not r.stage.startswith("seeds")]
    left = budget.missing(half, ["gpt"], list(OPTIMIZERS), RUNGS[-1], True)
    assert [each.runs for each in left if each.optimizer == "muon"] == [15]
    (muon,) = [each for each in left if each.optimizer == "muon"]
    assert muon.seconds == pytest.approx(0.02 * 5 * sum(LENGTHS))
    text = budget.describe(done, left, 2)
    assert f"{sum(each.runs for each in left)} runs" in text
    assert "with --jobs 2" in text
    assert "GPT-2, bytes, 8,192 steps: 1.00" in text
    nothing = budget.missing(done, ["gpt"], list(OPTIMIZERS), RUNGS[-1], True)
    assert budget.describe([], nothing, 1).startswith("0 runs, 0 s of one core, if")


CONFIGS = {"vision/train.py": "vision", "vision/pretrain_mae.py": "pretrain_mae", "llm/pretrain.py": "llm"}


PAIRS = [("gpt", name) for name in OPTIMIZERS] + [(task, "adan") for task in ALL_TASKS if task != "gpt"]


@pytest.mark.parametrize(("task", "optimizer"), PAIRS)
def test_every_job_is_a_configuration(task: str, optimizer: str) -> None:
    """The words compose, with the steps, the warm-up and the batch that the design says."""
    about, job = ALL_TASKS[task], LabJob(task, optimizer, "seeds", 0.05, (0,), (1,), steps=512)
    config = compose_config(CONFIGS[about.script], job.words)
    assert (config.steps, config.schedule.warmup_steps, config.batch_size) == (512, 51, about.batch)
    assert config.optimizer.weight_decay == 0.05


def test_predictions_are_for_tuned_tasks(done: list[Record], tmp_path: Path) -> None:
    compared = compared_runs(["vit"], bowl, ["adamw", "adan"])
    ours, theirs = predictions.searches(done, compared)
    assert (ours.name, ours.job.octaves, ours.job.weight_decay, ours.steps) == ("gpt", (1,), 0.05, TUNED)
    assert (theirs.name, theirs.steps) == ("comparison/vit", 100)
    assert (ours.ratio, theirs.ratio) == (pytest.approx(3), pytest.approx(2))
    pairs = predictions.missing([ours, theirs], [])
    assert [(search.name, pilot) for search, pilot in pairs] == [
        ("gpt", 100), ("gpt", 400), ("gpt", 1000), ("comparison/vit", 100), ("comparison/vit", 400)
    ]  # fmt: skip
    assert {search.name for search, _ in predictions.missing([ours, theirs], [PREDICTION])} == {theirs.name}
    predictions.append(tmp_path / "p.jsonl", PREDICTION)
    assert predictions.load(tmp_path / "p.jsonl") == [PREDICTION]
    assert predictions.predicted([PREDICTION], "gpt") == PREDICTION
    assert predictions.predicted([PREDICTION], "gpt", 100) is None
    assert ours.change(3.0) == pytest.approx(0)
    assert ours.change(3.0 / 2**0.5) == pytest.approx(ours.change(1.5) / 2)
    assert ours.change(100.0) is None


def test_the_command(runner, tmp_path: Path) -> None:
    run = runner(lab.main)
    path = tmp_path / "runs.jsonl"
    status, _, err = run("--records", str(path), "--out", str(tmp_path / "out"))
    assert (status, err) == (2, f"error: {path}: no runs; make some with --run\n")
    status, out, err = run("--records", str(path), "--plan", "--tasks", "gpt", "--ladder", "--upto", "2048")
    assert (status, err) == (0, "")
    assert " min of one core" in out
    append(path, record(todo("gpt", "adan", [])[0], 0, 0, 1.0))
    status, out, err = run("--records", str(path), "--out", str(tmp_path / "out"))
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'out'}: README.md, runs.csv\n"
    status, _, err = run("--records", str(path), "--again", "gpt", "adamx")
    assert (status, err.startswith("error: --again gpt adamx: tasks are gpt, mae")) == (2, True)
    status, _, err = run("--records", str(path), "--again", "gpt", "adan")
    assert (status, err) == (2, f"error: --again gpt adan: has no result in {path}\n")
    assert len(load(path)) == 1


def test_data_is_asked_for_first(runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAN_DATA", raising=False)
    status, _, err = runner(lab.main)("--run", "--tasks", "mae", "--records", str(tmp_path / "r.jsonl"))
    assert (status, err) == (
        2,
        "error: MAE, Fashion-MNIST: set --data or ADAN_DATA to the folder with fashion-mnist/\n",
    )
