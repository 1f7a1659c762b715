"""`optimizer.lr=like:adamw` in a run, and scripts/transfer.py."""

import json
from pathlib import Path

import pytest

from repro.errors import UserError
from repro.train import like
from scripts import transfer
from vision import train

SMALL = ["steps=20", "batch_size=16", "eval_epochs=null", "schedule.warmup_epochs=0", "optimizer=adan"]


def test_what_a_learning_rate_may_say() -> None:
    assert like.asked({"lr": 0.1}) is None
    assert like.asked({}) is None
    found = like.asked({"lr": "like:adamw"})
    assert found == {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.999], "weight_decay": 0.05}
    assert like.asked({"lr": "like:adamw@1e-4"}) == found | {"lr": 1e-4}
    assert like.asked({"lr": "like:lion@0.5"})["name"] == "lion"


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ("adamw", "optimizer.lr=adamw: give a number, or like:adamw, or like:adamw@1e-3"),
        ("like:adamx", "optimizer.lr=like:adamx: there is no configs/optimizer/adamx.yaml"),
        ("like:adamw@1e", "optimizer.lr=like:adamw@1e: 1e is not a number"),
    ],
)
def test_what_it_may_not_say(lr: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        like.asked({"lr": lr})
    assert str(raised.value) == message


def test_a_run_takes_what_was_predicted_and_continues_with_it(runner, killed_after) -> None:
    run = runner(train.main)
    words = [*SMALL, "optimizer.lr=like:adamw@4e-3", "run.name=x", "run.checkpoint_every=5"]
    folder = Path("runs/vision/x")
    with killed_after(10):
        status, out, _ = run(*words)
    assert status == 130
    kept = json.loads((folder / like.FILE).read_text())
    assert 4e-3 < kept["lr"] < 6 * 4e-3
    assert kept["lr"] * kept["weight_decay"] == pytest.approx(4e-3 * 0.05, rel=0.01)
    assert kept["text"] in out
    (folder / like.FILE).write_text(json.dumps(kept | {"lr": 0.005}))  # what the folder has counts
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert "continuing" in out
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {0 < record["lr"] <= 0.005 for record in records} == {True}
    status, out, _ = run(*words, "run.overwrite=true")  # measured anew
    assert json.loads((folder / like.FILE).read_text()) == kept


def test_a_damaged_file_of_the_run(tmp_path: Path) -> None:
    (tmp_path / like.FILE).write_text("{}")
    with pytest.raises(UserError, match=r"transfer.json: lacks lr, weight_decay or text; delete it"):
        like.settle({"name": "adan", "lr": "like:adamw"}, tmp_path, lambda **_: None)


def test_an_optimizer_without_a_closed_form(runner) -> None:
    status, _, err = runner(train.main)("optimizer=muon", "optimizer.lr=like:adamw", "steps=20")
    assert status == 2
    assert err.startswith(
        "error: optimizer.lr=like:adamw: to='muon': use 'adamw', 'nadamw', 'adan' or 'lion'"
    )


def test_the_command(runner) -> None:
    run = runner(transfer.main)
    words = [
        "vision/train.py",
        *SMALL,
        "--lr",
        "1e-3",
        "--pilot",
        "4",
        "--samples",
        "6",
        "--out",
        "found.json",
    ]
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    found = json.loads(Path("found.json").read_text())
    assert found["settings"]["options"]["lr"] == pytest.approx(1e-3 * found["factor"], rel=0.01)
    assert f"{found['factor']:.2f} x that of adamw" in out
    assert len(found["noise"]) > 10
    assert found["environment"]["versions"]["torch"]
    assert out.rstrip().splitlines()[-4] == "name: adan"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["vision/trian.py"],
            "vision/trian.py: there is no such script; give a recipe's, as llm/pretrain.py",
        ),
        (["vision/models.py"], "vision/models.py: is not a recipe that trains a model"),
        (["vision/train.py", "--like", "adamx"], "like:adamx: there is no configs/optimizer/adamx.yaml"),
        (["vision/train.py", *SMALL, "--like", "muon"], "like='muon': use 'adamw'"),
        (["vision/train.py", *SMALL, "--pilot", "1"], "pilot=1: give a whole number >= 2"),
        (["vision/train.py", "optimzer=adan"], "optimzer"),
    ],
)
def test_bad_input(runner, words: list[str], message: str) -> None:
    status, out, err = runner(transfer.main)(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
