"""benchmarks/tracking_study.py and tracking_faults.py: what they show of good runs and of bad ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import tracking_faults, tracking_study
from repro.ledger import verdict
from repro.ledger.rows import ROOT
from repro.results import as_text


@pytest.mark.parametrize(
    ("row", "fault", "within"),
    [
        ("imagenet/vit_s_150_i", "20 % slower", 10),
        ("imagenet/resnet101_200", "30 % slower", 11),
        ("wikitext103/adan_100k", "20 % slower", 2000),
    ],
)
def test_a_slower_run_is_flagged_within_a_few_epochs(
    released: Path, monkeypatch: pytest.MonkeyPatch, row: str, fault: str, within: int
) -> None:
    monkeypatch.setattr(tracking_study, "names", lambda: [row])
    (case,), _ = tracking_study.cases()
    as_released = {key: curve.errors for key, curve in case.curves.items()}
    assert case.alarm(as_released) is None
    (found,) = (each for each in tracking_faults.FAULTS if each.name == fault)
    alarm = case.alarm(found.disturb(case, as_released))
    assert alarm is not None
    assert alarm <= within


def test_without_released_logs_it_says_which_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path / "none"))
    shutil.copy(ROOT / "results" / "tracking" / "README.md", tmp_path)  # a page of its own, to be replaced
    assert tracking_study.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no released log is here; the first: ")


def test_the_figure_counts_what_was_noticed() -> None:
    def row(table: str, noticed: float, share: float | None) -> dict[str, Any]:
        return {"table": table, "fault": "10 % slower", "noticed, %": noticed, "median, % of the run": share}

    figure = tracking_study.delays([row("bert", 100, 3.0), row("mae", 60, 40.0), row("imagenet", 0, None)])
    assert figure.get_suptitle().replace("\n", " ") == (
        "1 of 3 faults are noticed in every run, after at most 3 % of it in the median"
    )
    assert "Never noticed: 10 % slower (imagenet)." in figure.legends[0].get_title().get_text()
    hollow = [line.get_markerfacecolor() == "none" for line in figure.axes[0].lines if len(line.get_xydata())]
    assert hollow == [False, True]


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
    assert as_text((tmp_path / "README.md").read_text()) == capsys.readouterr().out.rstrip("\n")
    assert {"delays.png", "delays.svg"} <= {path.name for path in tmp_path.iterdir()}
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
