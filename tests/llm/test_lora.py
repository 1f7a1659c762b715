"""Adapters: nothing else is trained, and they end up in the weights."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conversing import SMALL, configured, write_pairs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import adan_optim
from llm.finetune import Finetuning, main
from repro.errors import UserError

Run = Callable[..., tuple[int, str, str]]
LORA = [*SMALL, "lora.rank=2", "lora.alpha=4", "lora.dropout=0.1"]


@pytest.fixture
def command(runner: Callable[..., Run]) -> Run:
    """The command, next to a folder of small conversations."""
    write_pairs(24)
    return runner(main)


def weights(name: str) -> dict[str, torch.Tensor]:
    last = sorted(Path(f"runs/finetune/{name}/checkpoints").glob("step-*"))[-1]
    return load_file(last / "model.safetensors")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_adapters_alone_are_trained_and_kept(command: Run) -> None:
    assert command(*LORA, "run.keep=99")[0] == 0
    task = Finetuning(configured("finetune", *LORA))
    torch.manual_seed(task.config.seed)
    model = task.build_model()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2  # two matrices for each of seven in two layers; none for the head's
    assert all("lora_" in name for name in trained)
    optimizer = adan_optim.build_optimizer(model, task.config.optimizer)
    task.loss(model, task.collate([task.sets["train"][0]])).backward()
    optimizer.step()
    assert len(optimizer.state) == len(trained)
    first, last = (load_file(path / "model.safetensors") for path in
                   sorted(Path("runs/finetune/x/checkpoints").glob("step-*")))  # fmt: skip
    assert {name for name, x in last.items() if not torch.equal(x, first[name])} == trained
    records = [json.loads(line) for line in Path("runs/finetune/x/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["valid_loss"] < records[0]["valid_loss"]  # by 0.07 to 1.3 % with eight seeds

    # merged, or put by peft onto the weights that training began with: the same model
    merged = AutoModelForCausalLM.from_pretrained("runs/finetune/x/transformers")
    best = json.loads(Path("runs/finetune/x/summary.json").read_text())["best"]
    torch.manual_seed(task.config.seed)
    base = Finetuning(configured("finetune", *SMALL)).build_model()
    unchanged = {name.removeprefix("base_model.model.").replace(".base_layer", ""): x
                 for name, x in first.items() if "lora_" not in name}  # fmt: skip
    base.load_state_dict(unchanged)
    adapted = peft.PeftModel.from_pretrained(base, "runs/finetune/x/adapter")
    batch = task.collate(task.sets["valid"].items)
    with torch.no_grad():
        losses = [float(task.loss(each.eval(), batch)) for each in (merged, adapted)]
    assert losses == pytest.approx([best["valid_loss"]] * 2, rel=1e-4)


@pytest.mark.recipe
def test_targets_alpha_and_other_architectures(command: Run) -> None:
    chosen = Finetuning(configured("finetune", *LORA, "lora.targets=[q_proj]")).build_model()
    assert {name.split(".")[-4] for name, p in chosen.named_parameters() if p.requires_grad} == {"q_proj"}
    assert chosen.peft_config["default"].lora_alpha == 4
    rest = [word for word in LORA if not word.startswith("model.")]
    small = ["model=gpt2_mini", "model.n_embd=16", "model.n_layer=1", "model.n_head=2"]
    gpt = Finetuning(configured("finetune", *rest, *small)).build_model()
    assert sum(p.numel() for p in gpt.parameters() if p.requires_grad) == 2 * (
        16 + 48 + 16 + 16 + 2 * (16 + 64)
    )
    with pytest.raises(UserError, match=r"fsdp=true: does not support lora\.rank"):
        configured("finetune", *LORA, "fsdp=true").check()


class Killed(BaseException):
    """Nothing is saved after it."""


@pytest.mark.recipe
def test_a_stopped_run_ends_bit_identical(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout of adapters, their states and the order of examples are as if it had not."""
    arguments = [*LORA, "gradient_accumulation_steps=2", "run.checkpoint_every=1", "epochs=1"]
    assert command(*arguments, "run.name=whole")[0] == 0
    loss, calls = Finetuning.loss, 0

    def failing(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # in the second step
            raise Killed
        return loss(*args)

    monkeypatch.setattr(Finetuning, "loss", failing)
    with contextlib.suppress(Killed):
        command(*arguments)
    status, out, _ = command(*arguments)
    assert status == 0
    assert "continuing" in out
    metrics = [Path(f"runs/finetune/{name}/metrics.jsonl").read_text() for name in ("x", "whole")]
    assert metrics[0] == metrics[1]
    ours, theirs = weights("x"), weights("whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
