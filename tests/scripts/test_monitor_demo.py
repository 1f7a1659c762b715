"""scripts/monitor_demo.py and its models, walkthrough.py, monitor_cost.py (nothing is timed)."""

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> dict[str, Any]:
    """A script's names; its own path additions stay out of other tests."""
    before = [*sys.path]
    try:
        sys.path.append(str(ROOT / "scripts"))
        return runpy.run_path(str(ROOT / "scripts" / name))
    finally:
        sys.path[:] = before


MODELS, DEMO, WALK, COST = map(
    load, ("monitor_models.py", "monitor_demo.py", "walkthrough.py", "monitor_cost.py")
)
IGNORED = MODELS["IGNORED"]


def language_model(**options: Any) -> Any:
    torch.manual_seed(0)
    size = dict(vocab_size=17, hidden_size=16, heads=2, max_length=12)
    return MODELS["TestModelForCausalLM"](MODELS["TestModelConfig"](**size | options))


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(17, (3, length), generator=torch.Generator().manual_seed(1))


def test_sizes_of_the_sources() -> None:
    config = MODELS["TestModelConfig"]()
    model = MODELS["TestModelForCausalLM"](config)
    layer = 12 * 768**2 + (3 + 1 + 4 + 1 + 2) * 768  # four square and two fourfold matrices; biases, norms
    embeddings = (300 + 512 + 300) * 768
    assert sum(p.numel() for p in model.parameters()) == 2 * layer + embeddings + 768
    assert model.lm_head.weight is not model.model.tokens.weight
    for module in (model.model.tokens, model.model.blocks[0].up, model.lm_head):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.model.blocks[1].down.bias.any()


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model, x = language_model().eval(), tokens()
    before = model(x)
    for at in range(9):
        changed = x.clone()
        changed[:, at] = (x[:, at] + 1) % 17
        after = model(changed)
        torch.testing.assert_close(after[:, :at], before[:, :at], rtol=0, atol=1e-6)
        for later in range(at, 9):  # and every later one is changed: there is attention
            assert ((after - before)[:, later].abs().amax(1) > 1e-6).all()


def test_order_matters() -> None:
    """With the same tokens before it in another order, a position predicts something else."""
    model, x = language_model(layers=1).eval(), tokens()
    swapped = x[:, [1, 0, *range(2, 9)]]
    differs = (x[:, 0] != x[:, 1]).nonzero().flatten()
    assert len(differs)
    assert ((model(x) - model(swapped))[differs, -1].abs().amax(1) > 1e-7).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_ignored(side: str) -> None:
    model, x = language_model().eval(), tokens()
    mask = torch.ones_like(x)
    padding = slice(6, None) if side == "right" else slice(None, 3)
    mask[:, padding] = 0
    loss, logits = model(x, mask, labels=x)
    other = x.clone()
    other[:, padding] = (x[:, padding] + 5) % 17
    other_loss, other_logits = model(other, mask, labels=other)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[mask == 1], other_logits[mask == 1])
    if side == "right":  # on the left the last padding still predicts the first token
        torch.testing.assert_close(loss, other_loss)
        torch.testing.assert_close(loss, model(x[:, :6], labels=x[:, :6])[0])


def test_the_loss_is_of_the_next_token() -> None:
    model, x = language_model().eval(), tokens()
    labels = x.clone()
    labels[0, 4] = labels[2, 8] = IGNORED
    loss, logits = model(x, labels=labels)
    assert torch.equal(logits, model(x))
    terms = [
        F.cross_entropy(logits[row, at], x[row, at + 1])
        for row in range(3)
        for at in range(8)
        if labels[row, at + 1] != IGNORED
    ]
    assert len(terms) == 22
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_a_sequence_can_be_learned() -> None:
    model, x = language_model(dropout=0.0), tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = model(x, labels=x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 < math.log(17)


def test_dropout_is_in_training_only() -> None:
    model, x = language_model(dropout=0.5), tokens()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_sizes_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="hidden_size=15: must be divisible by heads=2"):
        language_model(hidden_size=15)
    with pytest.raises(ValueError, match="a sequence of 13 tokens: max_length is 12"):
        language_model()(tokens(13))


# ---- the demo


def test_batches_are_padded_text() -> None:
    text = bytes(range(97, 123)) * 40
    x, mask = DEMO["batch"](text, 50, 16, torch.Generator().manual_seed(0))
    assert x.shape == mask.shape == (50, 16)
    lengths = mask.sum(1)
    assert (int(lengths.min()), int(lengths.max())) == (8, 16)
    for row, length in zip(x, lengths, strict=True):
        assert bytes(row[:length].tolist()) in text
        assert (row[length:] == DEMO["PADDING"]).all()


@pytest.mark.recipe
def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--steps", "9", "--every", "4", "--batch", "2", "--length", "24", "--hidden", "64"]
    for optimizer in ("adamw", "torch.optim.SGD"):  # the second begins afresh in the same folder
        assert DEMO["main"]([*arguments, "--optimizer", optimizer, "--out", str(tmp_path)]) == 0
        report = capsys.readouterr().out
        assert report.startswith("9 steps of ")
        assert "; 3 samples, one in 4" in report
        assert "clipped: " in report
        samples = [json.loads(line) for line in (tmp_path / "monitor.jsonl").read_text().splitlines()]
        assert [sample["step"] for sample in samples] == [1, 4, 8]
        assert samples[0]["loss"] == pytest.approx(math.log(300), rel=0.05)
        assert "model.blocks.1.qkv.weight" in samples[0]["parameters"]
        assert (tmp_path / "monitor.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps 0: too small"),
        (["--every", "0"], "every=0: give a whole number >= 1"),
        (["--hidden", "100"], "--hidden 100: give a multiple of 64"),
        (["--optimizer", "adamm"], "unknown optimizer 'adamm'"),
        (["--max-grad-norm", "0"], "max_grad_norm=0.0: give a number above 0"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert DEMO["main"]([*arguments, "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


# ---- the walk-through


def adam(square: float, decay: float) -> list[tuple[float, float]]:
    """AdamW by its definition, in Python floats."""
    x, m, v = 3.0, 0.0, 0.0
    seen = []
    for t in range(1, 102):
        seen.append((x, x**4 + 3 * x**3 + 2 + square * x**2))
        g = 4 * x**3 + 9 * x**2 + 2 * square * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= 0.1 * decay * x + 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return seen


@pytest.mark.parametrize(("title", "square", "decay"), [("Adam", 0.0, 0.0), ("AdamW", 0.5, 0.1)])
def test_the_walk_through(title: str, square: float, decay: float) -> None:
    ours = WALK["run"](*WALK["RUNS"][title])
    assert len(ours) == 101
    for found, expected in zip(ours, adam(square, decay), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_numbers_that_the_sources_printed() -> None:
    """Their epoch k is printed after step k + 1."""
    adam, adamw = (WALK["run"](*WALK["RUNS"][title]) for title in ("Adam", "AdamW"))
    printed = {1: (2.9000, 145.90), 11: (1.9553, 39.04), 51: (0.4251, 2.26), 91: (0.2627, 2.06)}
    for step, (x, value) in printed.items():
        assert (round(adam[step][0], 4), round(adam[step][1], 2)) == (x, value)
    assert (round(adamw[1][0], 4), round(adamw[1][1], 2)) == (2.87, 144.88)
    assert (round(adamw[91][0], 4), round(adamw[91][1], 2)) == (0.0730, 2.00)


def test_what_the_docs_say_of_the_walk_through() -> None:
    def end(name: str, **options: Any) -> float:
        return WALK["run"](name, options, 0.0)[-1][0]

    assert end("adamw", weight_decay=0.0) > 0 > -1 > end("adamw", weight_decay=0.0, betas=(0.98, 0.999))
    assert end("adan", betas=(0.9, 0.92, 0.99)) > 0 > -1 > end("adan")
    f = lambda x: x**4 + 3 * x**3 + 2  # noqa: E731
    assert (round(f(-2.25), 3), round(f(2.7272), 2), round(f(-1.891), 2)) == (-6.543, 118.17, -5.5)


# ---- the benchmark


@pytest.mark.recipe
def test_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def tiny(name: str, num_classes: int, **options: Any) -> torch.nn.Module:
        assert (name, options) == ("vit_small_patch16_224", {"img_size": 4})
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, num_classes))

    monkeypatch.setattr(timm, "create_model", tiny)
    run = COST["measure"]("vit_small_patch16_224", "cpu", 2, 4, 3)
    assert (run["every"], run["tensors"], run["parameters"]) == (50, 2, 49_000)
    assert run["hooks"]["plain"] == 0 < run["hooks"]["between"] < run["hooks"]["sampled"]
    seconds = run["seconds"]
    expected = (49 * seconds["between"] + seconds["sampled"]) / (50 * seconds["plain"]) - 1
    assert run["cost"] == pytest.approx(expected)
    text = COST["markdown"]({"machine": COST["machine"]("cpu", ["cost", "--batch", "2"]), "run": run})
    assert "`python cost --batch 2`" in text
    assert "\n| sampled | " in text
    assert "Cost of sampling every 50 steps: " in text


def test_bad_input_of_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert COST["main"](["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "error: --rounds 0: must be at least 1\n"
