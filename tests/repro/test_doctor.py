"""The doctor on synthetic records: it names each cause, not its healthy counterpart; it refuses bad input."""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repro.doctor import curves, settings, steps
from repro.doctor.causes import CAUSES
from repro.doctor.diagnosis import describe, diagnose
from repro.doctor.hint import hint
from repro.doctor.record import Record, Series, read_record
from repro.errors import UserError

DOCTOR = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "doctor.py"))["main"]
STEPS = 200
CONFIG = {
    "seed": 0,
    "batch_size": 32,
    "clip_grad": 1.0,
    "amp": "no",
    "steps": STEPS,
    "epochs": 1,
    "optimizer.name": "adan",
    "optimizer.lr": 0.004,
    "optimizer.betas": [0.98, 0.92, 0.99],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.02,
    "optimizer.decay_bias_and_norm": False,
    "schedule.warmup_steps": 20,
}


def curve(first: float, last: float, noise: float = 0.01) -> Series:
    """A loss that falls from `first` to `last`, with noise that alternates, every five steps."""
    shares = [math.exp(-4 * step / STEPS) for step in range(5, STEPS + 1, 5)]
    return [
        (5 * i + 5, last + (first - last) * share + noise * (-1) ** (i // 2))
        for i, share in enumerate(shares)
    ]


def sample(step: int, **changes: Any) -> dict[str, Any]:
    """A sample of the monitor, of a model of a norm and two layers."""
    one = {"grad_norm": 0.3, "update_ratio": 0.005, "weight_norm": 8.0}
    return {
        "step": step,
        "grad_norm": 0.5,
        "update_ratio": 0.005,
        "exp_avg_sq.mean": 1e-6,
        "groups": {"decay": {"lr": 0.004}},
        "parameters": {name: dict(one) for name in ("norm.weight", "a.weight", "a.bias", "b.weight")},
        "memory": {"parameters": 4000},
        **changes,
    }


HEALTHY = Record(
    Path("run"),
    dict(CONFIG),
    loss=curve(2.3, 0.5),
    valid=curve(2.3, 0.6, noise=0),
    lr=[(step, 0.004) for step in range(5, STEPS + 1, 5)],
    grad_norm=[(step, 0.5) for step in range(5, STEPS + 1, 5)],
    samples=[sample(step) for step in range(1, STEPS + 1, 5)],
    epochs=1,
    parameters=1000,
    ours=True,
)


def set_to(**changes: Any) -> Record:
    """The healthy run with other settings; `optimizer__lr` is optimizer.lr."""
    return replace(HEALTHY, config=CONFIG | {key.replace("__", "."): value for key, value in changes.items()})


def monitored(record: Record = HEALTHY, **changes: Any) -> Record:
    """A run whose samples have other numbers."""
    return replace(record, samples=[one | changes for one in record.samples])


def parameters(record: Record = HEALTHY, **changes: dict[str, Any]) -> Record:
    """A run with other numbers of single parameters; `a__weight` is a.weight."""
    named = {name.replace("__", "."): numbers for name, numbers in changes.items()}
    return replace(
        record,
        samples=[
            one | {"parameters": {n: p | named.get(n, {}) for n, p in one["parameters"].items()}}
            for one in record.samples
        ],
    )


def shrinking(record: Record, last: float) -> Record:
    """A run whose norm loses weight until `last`."""
    count = len(record.samples)
    samples = [
        parameters(replace(record, samples=[one]), norm__weight={"weight_norm": 8 + (last - 8) * i / count})
        for i, one in enumerate(record.samples)
    ]
    return replace(record, samples=[each.samples[0] for each in samples])


def scale(*values: float) -> Record:
    """A run with this loss scale."""
    return replace(set_to(amp="fp16"), loss_scale=[(5 * i, value) for i, value in enumerate(values)])


DECAYED = set_to(optimizer__decay_bias_and_norm=True, optimizer__weight_decay=2.0)
STILL = {"update_ratio": 0.0}
EARLY_JUMP = replace(HEALTHY, loss=[(5, 2.3), (10, 4.0), *curve(2.3, 0.5)[2:]])
NO_WARMUP = {"schedule.warmup_steps": 0}
RISING = [(50.0, 1.0), (100.0, 0.8), (150.0, 1.2), (200.0, 2.0)]

# cause: records that have it, and records that come close
CASES: dict[str, tuple[list[Record], list[Record]]] = {
    "paper_betas": (
        [set_to(optimizer__betas=[0.02, 0.08, 0.01]), set_to(optimizer__betas=[0.1, 0.001])],
        [set_to(optimizer__betas=[0.0, 0.99]), set_to(optimizer__betas=[0.5, 0.5, 0.9])],
    ),
    "loss_scale_collapse": (
        [scale(65536, 1024, 0.25), scale(65536, 4096, 32)],
        [scale(65536, 32768, 65536), scale(128, 64, 32, 64)],
    ),
    "bf16_stall": (
        [parameters(monitored(memory={"parameters": 2000}), norm__weight=STILL, a__weight=STILL)],
        [
            parameters(norm__weight=STILL, a__weight=STILL),  # in float32
            parameters(monitored(memory={"parameters": 2000}), norm__weight=STILL | {"grad_norm": 0.0}),
        ],
    ),
    "dead_gradients": (
        [
            parameters(b__weight={"grad_norm": 0.0}),
            parameters(a__weight={"grad_norm": 0.0}, a__bias={"grad_norm": 0.0}),
        ],
        [parameters(a__bias={"grad_norm": 0.0}), parameters(b__weight={"grad_norm": None})],
    ),
    "eps_dominated": (
        [set_to(optimizer__eps=0.01), replace(set_to(optimizer__eps=0.1), samples=[])],
        [set_to(optimizer__eps=1e-5), set_to(optimizer__eps=0.01, optimizer__name="adabelief")],
    ),
    "clipping_always_on": ([set_to(clip_grad=0.01)], [set_to(clip_grad=0.25), set_to(clip_grad=None)]),
    "decay_on_norms": (
        [shrinking(DECAYED, 3.0)],
        [shrinking(DECAYED, 7.5), shrinking(set_to(optimizer__weight_decay=2.0), 3.0)],
    ),
    "betas_too_long": (
        [set_to(optimizer__betas=[0.999, 0.92, 0.99]), set_to(optimizer__betas=[0.996, 0.999])],
        [
            set_to(optimizer__betas=[0.9, 0.999]),
            set_to(optimizer__betas=[0.999, 0.999], optimizer__name="schedule_free_adamw"),
        ],
    ),
    "warmup_too_short": (
        [
            replace(EARLY_JUMP, config=CONFIG | NO_WARMUP),
            replace(
                HEALTHY, config=CONFIG | NO_WARMUP, samples=[sample(1, update_ratio=0.4), *HEALTHY.samples]
            ),
        ],
        [set_to(schedule__warmup_steps=0)],
    ),
    "lr_too_high": (
        [EARLY_JUMP, monitored(update_ratio=0.3), replace(HEALTHY, diverged=120)],
        [monitored(update_ratio=0.05)],
    ),
    "data_repeats": (
        [replace(HEALTHY, valid=RISING, epochs=30)],
        [replace(HEALTHY, valid=RISING, epochs=1), replace(HEALTHY, epochs=30)],
    ),
    "noise_bound_batch": (
        [replace(HEALTHY, loss=curve(2.3, 2.1, noise=0.2))],
        [replace(HEALTHY, loss=curve(2.3, 0.5, noise=0.07)), replace(HEALTHY, loss=curve(2.3, 2.2))],
    ),
}


def test_a_healthy_run() -> None:
    found = diagnose(HEALTHY)
    assert (found.findings, found.went_wrong) == ([], False)
    assert list(found.unjudged) == []
    assert describe(found) == "nothing found"


def test_every_cause_has_cases() -> None:
    assert set(CASES) == set(CAUSES)


@pytest.mark.parametrize(
    ("cause", "record"), [(cause, record) for cause, (sick, _) in CASES.items() for record in sick]
)
def test_a_cause_is_named(cause: str, record: Record) -> None:
    found = diagnose(record)
    assert found.likeliest is not None
    assert found.likeliest.cause == cause
    assert any(digit in found.likeliest.evidence for digit in "0123456789")  # numbers of this run
    assert found.likeliest.cure


@pytest.mark.parametrize(
    ("cause", "record"), [(cause, record) for cause, (_, well) in CASES.items() for record in well]
)
def test_its_counterpart_is_not(cause: str, record: Record) -> None:
    assert cause not in {finding.cause for finding in diagnose(record).findings}


def test_the_cure_can_be_written() -> None:
    cures = {
        "paper_betas": "optimizer.betas=[0.98,0.92,0.99]",
        "eps_dominated": "optimizer.eps=1e-06",
        "clipping_always_on": "clip_grad=1",
        "decay_on_norms": "optimizer.decay_bias_and_norm=false",
        "warmup_too_short": "schedule.warmup_epochs=0 schedule.warmup_steps=20",
        "lr_too_high": "optimizer.lr=0.0004",
        "noise_bound_batch": "batch_size=512",
    }
    for cause, cure in cures.items():
        found = CAUSES[cause](CASES[cause][0][0])
        assert found is not None
        assert found.cure == cure


def test_what_cannot_be_judged() -> None:
    bare = diagnose(Record(Path("log"), loss=curve(2.3, 0.5)))
    assert bare.findings == []
    assert set(bare.unjudged) == set(CAUSES) - {"lr_too_high", "noise_bound_batch"}
    assert "run again with run.monitor=50" in describe(bare)


def test_possible_causes_come_last() -> None:
    record = replace(set_to(optimizer__eps=3e-4), diverged=100.0)
    assert [(f.cause, f.likely) for f in diagnose(record).findings] == [
        ("lr_too_high", True),
        ("eps_dominated", False),
    ]


# ---- reading


def write_run(folder: Path, losses: list[float], diverged: int | None = None) -> Path:
    """A run folder of ours, with a record for each loss."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "steps: 200\nclip_grad: null\namp: 'no'\nschedule: {warmup_steps: 20}\n"
        "optimizer: {name: adan, lr: 0.4, betas: [0.98, 0.92, 0.99]}\n"
    )
    records = [
        {"step": 5 * i + 5, "lr": 0.4, "epoch": 0.1 * (i + 1), "train_loss": x} for i, x in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if diverged is not None:
        (folder / "diverged.json").write_text(json.dumps({"step": diverged, "message": "the loss is nan"}))
    return folder


def test_a_run_that_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", [2.3, 2.2, 9.1], diverged=17)
    (folder / "monitor.jsonl").write_text(json.dumps(sample(1, update_ratio=0.5)) + "\n")
    assert DOCTOR([str(folder)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        "likeliest cause: lr too high\n  evidence  lr=0.4: the loss is not finite at step 17"
    )
    assert "  cure      optimizer.lr=0.04\n" in out
    line = hint(folder)
    assert line is not None
    assert line.startswith("doctor     likely lr too high (lr=0.4: the loss is not finite at step 17")
    assert f"python scripts/doctor.py {folder}" in line


def test_a_run_that_went_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", [2.3, 1.2, 0.9])
    assert hint(folder) is None
    assert DOCTOR([str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing found\n\nnot judged, for want of\n")
    assert "  dead gradients: samples of the monitor: run again with run.monitor=50\n" in out


def test_a_run_that_went_wrong_for_another_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", [2.3, 2.2, 2.31])
    assert DOCTOR([str(folder)]) == 1
    assert "the run went wrong, and its records show none of the causes" in capsys.readouterr().out
    assert hint(folder) == f"{'doctor':<10} python scripts/doctor.py {folder} says more"


def test_hint_never_raises(tmp_path: Path) -> None:
    assert hint(tmp_path / "nothing") is None
    folder = write_run(tmp_path / "run", [2.3, 2.4])
    (folder / "monitor.jsonl").write_text("no JSON\n")
    assert hint(folder) is None


def test_logs_of_other_programs(tmp_path: Path) -> None:
    rows = [
        "step,train_loss,lr,grad_norm",
        *(f"{5 * i + 5},{9 if i == 20 else 2},{0.1},{1.5}" for i in range(40)),
    ]
    (tmp_path / "log.csv").write_text("\n".join([*rows, ""]))
    found = diagnose(read_record([tmp_path / "log.csv"]))
    assert [finding.cause for finding in found.findings] == ["lr_too_high"]
    assert found.findings[0].cure == "lr=0.01"


def test_a_monitor_alone_and_with_a_log(tmp_path: Path) -> None:
    dead = parameters(b__weight={"grad_norm": 0.0})
    lines = [json.dumps(one | {"loss": 2.0 - one["step"] / STEPS}) for one in dead.samples]
    monitor = tmp_path / "monitor.jsonl"
    monitor.write_text("\n".join([*lines, ""]))
    alone = diagnose(read_record([monitor]))
    assert alone.likeliest is not None
    assert alone.likeliest.cause == "dead_gradients"
    (tmp_path / "log.csv").write_text("step,train_loss\n5,2.0\n10,1.5\n")
    both = read_record([tmp_path / "log.csv", monitor])
    assert (both.loss, len(both.samples)) == ([(5, 2.0), (10, 1.5)], len(dead.samples))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such file or folder; give the folder of a run, or a log"),
        ({"config.yaml": "seed: 0\n"}, "no training loss in it yet; let it train until its first record"),
        ({"other.txt": "?"}, "a folder, and not one that holds a log"),
    ],
)
def test_bad_input(
    files: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for name, text in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert DOCTOR([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert message in error
    assert error.count("\n") == 1


def test_a_log_without_losses(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,lr\n5,0.1\n10,0.1\n")
    with pytest.raises(UserError, match="no training loss in it yet"):
        read_record([tmp_path / "log.csv"])


def test_thresholds_are_ordered() -> None:
    assert steps.EPS_WORTH_A_LOOK < steps.EPS_SHARE
    assert settings.HALF_A_RUN < settings.WHOLE_RUN < settings.LONG_SECOND
    assert 0 < curves.SHORT_WARMUP < curves.EARLY < 1
