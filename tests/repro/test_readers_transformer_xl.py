"""Transformer-XL's log.txt."""

from pathlib import Path

import pytest
from released_samples import TRANSFORMER_XL, Folder

from repro.logs import read
from repro.logs.log import LogError


def test_records(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(TRANSFORMER_XL), strict=True)
    assert log.lines == {"record": 7, "other": 20}
    train = log.of("train")
    assert train["step"].tolist() == [200, 400, 600, 800]
    assert train["epoch"].tolist() == [1, 1, 2, 2]
    assert train["batch"].tolist() == [200, 400, 100, 300]
    assert train["lr"].tolist() == [6.67e-5, 0.000133, 0.0001, 0]
    assert train["train_ppl"].tolist() == [7366.806, 942.451, 567.781, 428.925]
    assert train["ms_per_step"].iloc[0] == 742.71
    assert log.of("eval")[["step", "eval_loss", "eval_ppl"]].to_numpy().tolist() == [
        [400, 6.5, 665.142],
        [800, 6.51, 671.826],
    ]
    assert log.units["eval_loss"] == "nats"


def test_it_tested_the_best_model(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(TRANSFORMER_XL))
    assert log.series("test_ppl").to_dict() == {400: 632.702}
    without_evaluations = [line for line in TRANSFORMER_XL.splitlines(keepends=True) if "Eval" not in line]
    log = read(Folder(tmp_path).write("".join(without_evaluations)))
    assert log.series("test_ppl").to_dict() == {800: 632.702}


def test_clock(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(TRANSFORMER_XL))
    assert log.series("seconds").to_dict() == pytest.approx({400: 300.93, 800: 575.6})
    restarted = TRANSFORMER_XL.replace("Eval   1 at", "Eval   3 at").replace("Eval   2 at", "Eval   4 at")
    log = read(Folder(tmp_path).write(restarted))
    assert log.series("seconds").to_dict() == pytest.approx({400: 300.93, 800: 575.6})


def test_clock_that_is_not_known(tmp_path: Path) -> None:
    gap = TRANSFORMER_XL.replace("Eval   2 at", "Eval   3 at")
    assert read(Folder(tmp_path).write(gap)).series("seconds").to_dict() == {400: 300.93}
    lines = TRANSFORMER_XL.replace("Eval   1 at", "Eval   3 at").splitlines(keepends=True)
    assert "seconds" not in read(Folder(tmp_path).write("".join(lines[12:]))).table


def test_settings(tmp_path: Path) -> None:
    assert read(Folder(tmp_path).write(TRANSFORMER_XL)).config == {
        "data": "/data/wikitext-103/",
        "dropatt": 0.0,
        "lr": 0.001,
        "max_step": 800,
        "restart": False,
        "restart_dir": "",
        "opt_betas": [0.9, 0.9, 0.999],
        "n_all_param": 151107538,
    }


def test_second_process_in_one_file(tmp_path: Path) -> None:
    log = read(Folder(tmp_path).write(TRANSFORMER_XL + TRANSFORMER_XL.replace("0.001\n", "0.002\n")))
    assert (log.resumes, log.repeated) == (1, 7)
    assert log.config["lr"] == 0.001
    assert [oddity for oddity in log.oddities if "resumed" in oddity] == [
        f"{tmp_path}/log:29: the run was resumed here (settings again)"
    ]


def test_characters_instead_of_words(tmp_path: Path) -> None:
    line = TRANSFORMER_XL.splitlines()[12].replace("ppl  7366.806", "bpc   1.37056")
    log = read(Folder(tmp_path).write(f"{line}\n"), strict=True)
    assert log.series("train_bpc").to_dict() == {200: 1.37056}


def test_fields_may_overflow(tmp_path: Path) -> None:
    position = "| epoch 1000 step 123456789 | 1234567 batches "
    line = position + "| lr 1e-05 | ms/batch 12345.67 | loss 10.25 | ppl 28282.542\n"
    row = read(Folder(tmp_path).write(line), strict=True).table.iloc[0]
    assert (row["epoch"], row["step"], row["batch"]) == (1000, 123456789, 1234567)


@pytest.mark.parametrize(
    "line",
    [
        "| epoch   1 step      20",
        "| epoch   1 step     1000 |    200 batches | lr 6.67e-05 | ms/batch 742.71 | loss  8.90 | ppl  x",
        "| Eval   1 at step      400 | time: ",
        "| End of training",
        "Traceback (most recent call last):",
    ],
)
def test_lines_that_are_none(tmp_path: Path, line: str) -> None:
    log = read(Folder(tmp_path).write(f"{TRANSFORMER_XL}{line}\n"))
    assert log.lines == {"record": 7, "other": 20, "fault": 1}
    assert log.faults[0].startswith(f"{tmp_path}/log:28: ")


def test_test_alone(tmp_path: Path) -> None:
    with pytest.raises(
        LogError, match=r"log:1: not a record \(nothing before it says which step was tested\)"
    ):
        read(Folder(tmp_path).write("| End of training | test loss  6.45 | test ppl   632.702\n"))
