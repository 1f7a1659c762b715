"""benchmarks/tracking_demo.py and tracking_study.py: what they show of a good run and of bad ones."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import tracking_demo, tracking_faults, tracking_study
from repro.ledger import verdict


def replay(demo: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert demo.main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_a_released_log_replayed_is_on_track(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = replay(tracking_demo, capsys, "imagenet/vit_s_150_i")
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 170
    assert all(line.endswith("  on track") for line in epochs)
    assert lines[-1] == "imagenet/vit_s_150_i, the run against the released curve: on track"
    assert "published 80.1 %, released log best 80.166 final 80.108, ours final 80.108" in lines[-2]


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("row", "fault", "within"),
    [
        ("imagenet/vit_s_150_i", "20 % slower", 10),
        ("imagenet/resnet101_200", "30 % slower", 11),
        ("wikitext103/adan_100k", "20 % slower", 2000),
    ],
)
def test_a_slower_run_is_flagged_within_a_few_epochs(
    released: Path,
    capsys: pytest.CaptureFixture[str],
    row: str,
    fault: str,
    within: int,
) -> None:
    lines = replay(tracking_demo, capsys, row, "--fault", fault)
    first = next(line for line in lines if "  behind in " in line)
    assert float(first.split()[1]) <= within
    assert lines[-1].endswith(": behind")


def test_a_row_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert tracking_demo.main(["imagenet/none"]) == 2
    assert capsys.readouterr().err.startswith("error: imagenet/none: no such row")


@pytest.mark.recipe
def test_the_study(
    released: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    study = tracking_study
    monkeypatch.setattr(
        tracking_study, "names", lambda: [f"imagenet/resnet101_{epochs}" for epochs in (100, 200, 300)]
    )
    monkeypatch.setattr(study, "CONSTANTS", [(0.1, 0.02, 0.015, 3), (0, 0, 0.005, 1)])
    assert study.main(["--seeds", "2", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "tracking.json").read_text())
    assert (tmp_path / "README.md").read_text() == capsys.readouterr().out
    known = {"imagenet/resnet101_100", "imagenet/resnet101_200"}
    assert known <= set(results["rows"])
    assert results["themselves"]["not on track"] == 0
    assert [row["alarms"] for row in results["siblings"]] == [0, 0]
    found = {row["fault"]: row for row in results["detection"]}
    assert found["NaN after 50 %, as diverged"]["worst delay"] < 1
    assert found["collapse after 50 %, as diverged"]["worst delay"] <= 3
    assert found["30 % slower"]["noticed, %"] == 100
    loose, tight = results["choices"]
    assert tight["reruns called behind, %"] > loose["reruns called behind, %"]
    assert (verdict.WINDOW, verdict.REACH, verdict.RECORDS) == (0.1, 0.02, 3)  # as they were


@pytest.mark.recipe
def test_every_fault_changes_the_run(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = tracking_faults
    monkeypatch.setattr(tracking_study, "names", lambda: ["mae/base"])
    (case,), _ = tracking_study.cases()
    errors = faults.rerun(case, np.random.default_rng(0), 0.01)
    for key, curve in case.curves.items():
        assert errors[key].shape == curve.errors.shape
        assert np.abs(np.log(errors[key] / curve.errors)).max() < 0.3
    for fault in faults.FAULTS:
        before = {key: values.copy() for key, values in errors.items()}
        changed = fault.disturb(case, errors)
        assert all((errors[key] == before[key]).all() for key in errors), fault.name  # others use them, too
        assert any(not np.array_equal(changed[key], errors[key]) for key in errors), fault.name
        begin = int(fault.since * case.length) - 1
        assert all((changed[key][:begin] == errors[key][:begin]).all() for key in errors if begin > 0)
