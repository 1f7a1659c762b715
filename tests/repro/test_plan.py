"""Memory is counted as it is used, and time is operations over the peak."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro import hardware
from repro.errors import UserError
from repro.planner import footprint, measured, plan
from repro.planner.footprint import Live, Pretence, Step
from repro.planner.plan import Job, Machine
from repro.results import as_text

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import plan as command

TINY = ["amp=no", "batch_size=4", "gradient_accumulation_steps=2", "data.sequence_length=32"]
TINY += ["tokenizer.vocab_size=512", "model.vocab_size=512"]
LLAMA_SIZES = ["hidden_size=64", "num_hidden_layers=2", "num_attention_heads=4", "num_key_value_heads=4"]
MODELS = {
    "adam_mini/gpt2_small": [*TINY, "model.n_layer=2", "model.n_embd=64", "model.n_head=4"],
    "adam_mini/llama_1b": [
        *(*TINY, "fsdp=false", "model.intermediate_size=128"),
        *(f"model.{size}" for size in LLAMA_SIZES),
    ],
    "moe/8x0.1b_10b_adan": [
        *(*TINY, "model.intermediate_size=128"),
        *(f"model.{size}" for size in LLAMA_SIZES),
    ],
    "imagenet/vit_s_150": [*TINY[:3], "data.size=160", "model.name=test_vit"],
}
GPT2, LLAMA, MOE, VIT = MODELS
CPU = Machine(None)


def job(row: str, *overrides: str, optimizer: str = "") -> Job:
    """A row with a tiny model."""
    return measured.job(row, [*MODELS[row], *overrides], optimizer)


@pytest.mark.parametrize(
    ("row", "overrides", "optimizer"),
    [
        (GPT2, [], "adamw"),
        (GPT2, ["gradient_checkpointing=true"], "adan-int8"),
        (GPT2, ["amp=bf16", "model.resid_pdrop=0.1", "clip_grad=null"], "adan-bfloat16"),
        (LLAMA, [], "adam_mini"),
        (LLAMA, ["gradient_checkpointing=true", "gradient_accumulation_steps=1"], "adan"),
        (MOE, [], "adam_mini"),
        (MOE, ["gradient_checkpointing=true"], "adamw8bit"),
        (VIT, [], "adan"),
        (VIT, ["loss=bce"], "adamw"),
    ],
)
def test_the_prediction_is_what_a_step_keeps(row: str, overrides: list[str], optimizer: str) -> None:
    task = job(row, *overrides, optimizer=optimizer)
    predicted = plan.memory(task, CPU)
    size = task.micro_batch(1)
    kept = footprint.measure(lambda: task.step(task.model(real=True), size), task.config["optimizer"]).kinds
    for kind in ("parameters", "gradients"):
        assert predicted[kind] == kept[kind] > 0
    # states are laid out with a little room on the CPU; see adan_optim.engine.layout
    assert predicted["states"] == pytest.approx(kept["states"], rel=0.01)
    assert predicted.total() == pytest.approx(kept.total(), rel=0.02)
    assert predicted["logits"] == kept["logits"]


def kinds(row: str, *overrides: str, optimizer: str = "adamw", machine: Machine = CPU) -> Counter[str]:
    return plan.memory(job(row, *overrides, optimizer=optimizer), machine)


def test_checkpointing_and_smaller_micro_batches_need_less() -> None:
    whole = kinds(GPT2)
    assert kinds(GPT2, "gradient_checkpointing=true").total() < whole.total()
    parts = kinds(GPT2, "gradient_accumulation_steps=4")
    assert parts["activations"] < whole["activations"] * 0.6
    assert parts["parameters"] == whole["parameters"]


def test_processes_share_under_fsdp_and_copy_gradients_without() -> None:
    task = job(LLAMA, "batch_size=8", "gradient_accumulation_steps=1")
    numbers = sum(p.numel() for p in task.model().parameters())
    machine = Machine("H100", 4)
    ddp = kinds(LLAMA, "batch_size=8", "gradient_accumulation_steps=1", machine=machine)
    assert ddp["buckets"] == 4 * numbers
    for amp in ("no", "bf16"):
        fsdp = kinds(
            LLAMA,
            "batch_size=8",
            "gradient_accumulation_steps=1",
            "fsdp=true",
            f"amp={amp}",
            machine=machine,
            optimizer="adan",
        )
        assert fsdp["parameters"] == pytest.approx(numbers, rel=0.01)  # 4 bytes each, a quarter of them
        assert fsdp["states"] == pytest.approx(4 * numbers, rel=0.01)
        assert 0 < fsdp["gathered"] < 5 * 4 * numbers
        assert fsdp["buckets"] == 0
    with pytest.raises(UserError, match=r"optimizer\.state_dtype=int8"):
        kinds(
            LLAMA,
            "batch_size=8",
            "gradient_accumulation_steps=1",
            "fsdp=true",
            machine=machine,
            optimizer="adan-int8",
        )


def peak(loss: Callable[[nn.Module, list[Tensor]], Tensor], gpu: bool, amp: str = "no") -> Counter[str]:
    """Of a step of a linear layer of 1,024 inputs and outputs without bias, on 1,024 samples."""

    def build() -> Step:
        return Step(nn.Linear(1024, 1024, bias=False), loss, [torch.zeros(1024, 1024)], amp=amp)

    return footprint.predict(build, {}, gpu)


def test_dropout_keeps_a_byte_on_a_gpu_and_four_on_a_cpu() -> None:
    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return nn.functional.dropout(model(batch[0]), 0.5).sum()

    mega = 1 << 20
    assert peak(loss, gpu=True)["activations"] == pytest.approx(3.25 * 4 * mega, abs=100)
    assert peak(loss, gpu=False)["activations"] >= 4 * 4 * mega


def test_autocast_of_a_gpu_computes_powers_in_float32() -> None:
    class Cubed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).pow(3).sum()

    def build() -> Step:
        return Step(
            Cubed(1024, 1024), lambda model, batch: model(batch[0]), [torch.zeros(1024, 1024)], amp="bf16"
        )

    gpu, cpu = (footprint.predict(build, {}, gpu)["activations"] for gpu in (True, False))
    assert gpu - cpu >= 2 * (1 << 20)


def test_memory_that_is_freed_does_not_count() -> None:
    live = Live()
    with live:
        for _ in range(3):
            x = torch.zeros(1000)
            y = x[10:]  # a view
            del x, y
        kept = torch.zeros(10)
    assert live.now == {"workspace": kept.nbytes}
    assert live.peak == {"workspace": 4000}


def test_a_pretence_leaves_a_cpu_alone() -> None:
    with Pretence(gpu=False):
        dropped = nn.functional.dropout(torch.ones(100), 0.5)
    assert set(dropped.tolist()) == {0.0, 2.0}


def test_speed_is_operations_over_the_peak() -> None:
    task = job(GPT2, "amp=bf16", "gradient_checkpointing=true")
    estimate = plan.speed(task, Machine("H100", 2), utilisation=0.4, price=3.0)
    sequences = 2 * 989e12 * 0.4 / (task.forward_flops * 4)
    assert estimate.per_second == pytest.approx(sequences * 32)
    assert task.samples is not None
    assert estimate.days == pytest.approx(task.samples / sequences / 86400)
    assert estimate.dollars == pytest.approx(task.samples / sequences / 3600 * 2 * 3.0)
    assert estimate.mfu == pytest.approx(0.3)
    assert plan.speed(job(GPT2), Machine("H100"), 0.4, 3.0).per_second == pytest.approx(
        67e12 * 0.4 / (task.forward_flops * 3) * 32
    )


def test_families_have_their_own_assumption() -> None:
    assert [hardware.FAMILIES[str(job(row).task.family)] for row in MODELS] == [0.35, 0.35, 0.2, 0.25]
    assert hardware.FAMILIES["other"] == hardware.UTILISATION


def run(runner: Any, *words: str) -> tuple[int, str, str]:
    status, out, err = runner(command.main)(*words)
    return status, out, err


def test_command(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = hardware.Gpu(3.2e6, 1e12, 1e11, 1e12, 1e10, 1.0)
    monkeypatch.setitem(hardware.GPUS, "H100", small)
    words = [GPT2, "--gpus", "1xH100", "--set", *MODELS[GPT2], "--mfu", "0.5", "--price", "7"]
    status, out, err = run(runner, *words)
    assert status == 0, err
    assert "it does not fit" in out
    assert "of 0 GB with gradient_accumulation_steps=4: it fits" in out
    assert "what follows is for the command with gradient_accumulation_steps=4:" in out
    assert "batch of a GPU: 4 x 1 sequences of 32 tokens, gradient_accumulation_steps=4" in out
    assert "at 50% of the peak (given" in out
    assert "$7.00 for an hour of a GPU (given)" in out


@pytest.mark.recipe
def test_what_does_not_fit_has_no_price(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hardware.GPUS, "H100", hardware.Gpu(1e5, 1e12, 1e11, 1e12, 1e10, 1.0))
    status, out, _ = run(runner, GPT2, "--gpus", "1xH100", "--set", *MODELS[GPT2])
    assert status == 0
    assert "optimizer.state_dtype=bfloat16: not yet" in out
    assert "no speed, time or cost, because nothing tried here fits: take more GPUs" in out
    assert "$" not in out
    assert "per second" not in out


def test_the_least_number_of_micro_batches_that_fits() -> None:
    needs = {1: 100, 2: 110, 4: 60, 8: 40, 16: 30, 32: 29}
    asked = []

    def need(number: int) -> float:
        asked.append(number)
        return needs[number]

    for limit, number in ((60, 4), (59, 8), (30, 16), (29, 32), (100, 1), (28, 32)):
        assert plan.least(need, list(needs), limit) == number
    assert plan.least(need, [1, 2], 5) == 1  # the memory of the second is larger
    asked.clear()
    plan.least(need, list(needs), 60)
    assert len(asked) < len(needs)


@pytest.mark.recipe
def test_remedies_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches are enough, or come with recomputation; a recipe's own name of it is used."""
    whole = plan.memory(job(GPT2), Machine("H100")).total()
    smallest = plan.memory(job(GPT2, "gradient_accumulation_steps=4"), Machine("H100")).total()
    assert smallest < whole

    def limited(memory: float, row: str) -> list[tuple[list[str], int]]:
        monkeypatch.setitem(hardware.GPUS, "H100", replace(hardware.GPUS["H100"], memory=memory))
        return plan.remedies(row, MODELS[row], Machine("H100"))

    assert limited(smallest, GPT2) == [(["gradient_accumulation_steps=4"], smallest)]
    (first, _), (second, total) = limited(smallest - 1, GPT2)
    assert first == ["gradient_accumulation_steps=4"]
    assert second[-1] == "gradient_checkpointing=true"
    assert total < smallest
    found = limited(1, VIT)  # mixes images, so two are the smallest micro-batch
    assert found[0][0] == ["model.grad_checkpointing=true"]


def test_table_by_optimizer(runner: Any, tmp_path: Path) -> None:
    names = "adamw,adan,adam_mini,adamw8bit"
    words = [GPT2, "--gpus", "H100", "--set", *MODELS[GPT2], "--optimizers", names, "--out", str(tmp_path)]
    status, out, err = run(runner, *words)
    assert status == 0, err
    shares = [float(re.split("  +", line)[3].rstrip("%")) for line in out.splitlines() if GPT2 in line]
    assert shares[:2] == [100.0, 200.0]
    assert 50 < shares[2] < 55
    assert shares[3] < 35
    assert out.strip() in as_text((tmp_path / "memory.md").read_text())
    assert (tmp_path / "memory.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a row"),
        ([GPT2, "--gpus", "8xB300"], "--gpus 8xB300: write it as 8xH100; known are A100-40"),
        ([GPT2, "--gpus", "0xH100"], "--gpus 0xH100"),
        (
            [GPT2, "--gpus", "7xH100"],
            "steps=2 times 7 process(es); take another number of processes",
        ),
        ([GPT2, "--optimizers", "adan-int4"], "--optimizers adan-int4: there are "),
        (["lstm/lstm_1_adan"], "lstm/lstm_1_adan: no plan is made for nlp/train_lstm.py"),
    ],
)
def test_bad_input(runner: Any, words: list[str], message: str) -> None:
    status, _, err = run(runner, *words)
    assert status == 2
    assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("case", [0, 4, 6, 10])
def test_the_process_grows_as_predicted(case: int) -> None:
    predicted, found = measured.one(*measured.CASES[case])
    assert predicted.total() == pytest.approx(found.memory, rel=measured.TOLERANCE)
