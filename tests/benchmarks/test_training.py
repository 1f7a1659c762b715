"""benchmarks/training.py: all contestants do the same work, and the tables say what was measured."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import training
from repro.results import as_text


@pytest.fixture
def bench() -> ModuleType:
    torch.set_num_threads(1)  # more cost more than they bring for models this small
    return training


def ready(bench: ModuleType, model: str, rounds: int, *overrides: str) -> Any:
    """A small benchmark of a model."""
    return bench.prepare(model, "cpu", True, rounds, overrides)


@pytest.mark.recipe
@pytest.mark.parametrize("model", ["test_vit", "test_resnet", "roberta", "transformer_xl", "lstm"])
def test_the_loops_do_the_same_work(bench: ModuleType, tmp_path: Path, model: str) -> None:
    """From the same weights and batches, the losses are the same at every step, and they change."""
    out = tmp_path / "new" / "training"
    assert bench.main(["--quick", "--models", model, "--rounds", "2", "--out", str(out)]) == 0
    run = json.loads(out.with_suffix(".json").read_text())["models"][model]
    assert run["loss_difference"] < 1e-5
    assert list(run["rows"]) == ["bare", "timm", "ours"]
    assert all(
        row["per_s"] == pytest.approx(2e3 * run["per_sample"] / row["ms"]) for row in run["rows"].values()
    )
    assert run["rows"]["bare"]["ratio"] == [1, 1, 1]
    assert 0 < run["optimizer"]["share"] < 1
    text = out.with_suffix(".md").read_text()
    assert f"## {model}: " in text
    assert "| ours | " in text
    assert "Losses agree to " in text


@pytest.mark.parametrize("model", ["transformer_xl", "lstm"])
def test_a_loop_that_forgets_is_noticed(bench: ModuleType, model: str) -> None:
    """The bare loop continues from the previous segment, as ours does."""
    work = ready(bench, model, 2)
    remembering, batches = work.loss, [work.batch(step) for step in range(2)]
    losses: dict[str, list[float]] = {"remembers": [], "forgets": []}
    with torch.no_grad():
        loss = remembering()
        losses["remembers"] = [float(loss(work.initial, batch)) for batch in batches]
        losses["forgets"] = [float(remembering()(work.initial, batch)) for batch in batches]
    assert losses["remembers"][0] == losses["forgets"][0]
    assert losses["remembers"][1] != losses["forgets"][1]


@pytest.mark.parametrize("fault", ["step", "batch"])
def test_a_loop_that_does_other_work_is_noticed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A second step, or other labels, in only the bare loop show in the difference."""
    loop = bench.bare_loop

    def faulty(work: Any, model: torch.nn.Module, step: Callable[[], Any], *rest: Any) -> Iterator[None]:
        inner = loop(work, model, (lambda: (step(), step())) if fault == "step" else step, *rest)
        next(inner)
        while True:
            images, labels = yield
            inner.send((images, labels.roll(1) if fault == "batch" else labels))

    monkeypatch.setattr(bench, "bare_loop", faulty)
    monkeypatch.setattr(bench, "optimizer_alone", lambda *arguments: {})
    assert bench.bench_loops(ready(bench, "test_vit", 2))["loss_difference"] > 1e-5


def test_every_batch_goes_to_every_contestant(bench: ModuleType) -> None:
    """In the same order, including the caller; the times leave out the warm-up."""
    work = ready(bench, "test_vit", 3)
    assert not torch.equal(work.batch(0)[0], work.batch(1)[0])
    seen: dict[str, list[int]] = {"a": [], "b": [], "caller": []}

    def contestant(name: str) -> Iterator[None]:
        while True:
            images, _ = yield
            seen[name].append(images.data_ptr())

    times: dict[str, list[float]] = {name: [] for name in seen}
    for images, _ in work.turns({name: contestant(name) for name in "ab"}, times):
        seen["caller"].append(images.data_ptr())
    assert seen["a"] == seen["b"] == seen["caller"]
    assert len(seen["a"]) == work.total == 5
    assert [len(values) for values in times.values()] == [3, 3, 3]


@pytest.mark.recipe
def test_optimizers(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """States and bytes are those of each optimizer; contestants for other devices are named."""
    out = tmp_path / "page"
    words = ["--quick", "--optimizers", "--models", "test_vit", "--rounds", "1", "--out", str(out)]
    assert bench.main(words) == 0
    page = out.with_suffix(".md").read_text()
    assert capsys.readouterr().out == f"{as_text(page)}\n"
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in page.splitlines()) if cells[1:]}
    assert rows["Adan fused"][-4:-2] == [" 44 ", " 16.00 "]
    assert rows["Adan fused, bf16 states"][-4:-2] == [" 28 ", " 8.00 "]
    assert rows["torch AdamW fused"][-4:-2] == [" 28 ", " 8.00 "]
    assert "Not here: Adan, official traffic (emulated)." in page
    assert all(f"* {key}: " in page for key in bench.OPTIMIZERS)


def test_flops_are_those_of_the_ledger(bench: ModuleType) -> None:
    """ViT-S: 9.198 GFLOP forward and twice that backward, without the gradient of the images."""
    work = ready(bench, "deit_small_patch16_224", 1, "batch_size=1")
    assert work.flops() == pytest.approx(3 * 9.198e9, rel=0.01)


def test_interval_of_the_median(bench: ModuleType) -> None:
    """The 14th and the 27th of 40 values (tables of the sign test); the extremes of few values."""
    values = [float(i) for i in range(1, 41)]
    assert bench.ratio(values[::-1], [1.0] * 40) == [20.5, 14, 27]
    assert bench.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == [2, 1, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnot"], "--models resnot: is none of "),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--batch", "0"], "batch_size=0: must be at least 1"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: torch finds no CUDA GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input(
    bench: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
