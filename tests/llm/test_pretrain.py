"""llm/pretrain.py end to end, on a few files of Python's own library."""

import json
import math
import re
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm import routing
from llm.models import load
from llm.pretrain import LanguageModelling, main
from llm.sequences import Batch
from repro.interop import read_weights
from repro.train.cli import CONFIGS

Run = Callable[..., tuple[int, str, str]]

FILES = ("cmd", "code", "copy", "csv", "enum", "glob", "heapq", "queue", "sched", "shelve", "stat", "this")
COMMON = [
    "data.root=code", "data.valid_share=0.2", "tokenizer.vocab_size=400", "data.sequence_length=16",
    "batch_size=4", "steps=4", "schedule.warmup_steps=1", "eval_every=2", "eval_batches=3",
    "run.log_every=1", "sampling.max_new_tokens=8",
]  # fmt: skip
GPT2 = [
    *COMMON,
    "model.n_embd=16",
    "model.n_layer=2",
    "model.n_head=2",
    "model.resid_pdrop=0.1",
    "run.name=gpt2",
]
MOE = [
    *COMMON, "model=moe_mini", "model.hidden_size=16", "model.intermediate_size=16",
    "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.num_key_value_heads=2",
    "model.num_local_experts=4", "+model.router_jitter_noise=0.01", "run.name=moe",
]  # fmt: skip


@pytest.fixture
def command(runner: Callable[..., Run]) -> Run:
    """The command, next to a folder of code."""
    Path("code").mkdir()
    for name in FILES:
        shutil.copy(Path(sysconfig.get_path("stdlib"), f"{name}.py"), "code")
    return runner(main)


def task_of(*words: str) -> LanguageModelling:
    """The task of a command line."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("llm", list(words)))
    return LanguageModelling(config)


def records(name: str) -> list[dict[str, Any]]:
    lines = Path(f"runs/llm/{name}/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_and_what_it_leaves(command: Run) -> None:
    status, out, err = command(*GPT2, "gradient_checkpointing=true", "optimizer=sophia")
    assert status == 0, err
    run, last = Path("runs/llm/gpt2"), records("gpt2")[-1]
    assert last["valid_perplexity"] == pytest.approx(math.exp(last["valid_loss"]))
    assert last["grad_norm"] > 0
    best = min(record["valid_loss"] for record in records("gpt2") if "valid_loss" in record)

    tokenizer = AutoTokenizer.from_pretrained(run / "transformers")
    text = Path("code/heapq.py").read_text()
    task = task_of(*GPT2)
    assert tokenizer(text)["input_ids"] == task.tokenizer.encode([text])[0]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(run / "transformers")
    assert model.config.eos_token_id == tokenizer.eos_token_id == task.tokenizer.eos
    valid = task.valid_data()
    ids = torch.stack([valid[index] for index in range(len(valid))])
    assert len(ids) == 12, "eval_batches times batch_size"
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    assert best == pytest.approx(float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())), rel=1e-5)

    counts = np.bincount(task.text.split("valid").ids).astype(float)
    shares = counts[counts > 0] / counts.sum()
    nats = float(-(shares * np.log(shares)).sum())
    assert f"tokens have {nats:.3g} nats by their frequency alone" in out
    first = tokenizer.decode(task.text.split("valid").ids[:17].tolist()).splitlines()
    examples = json.loads((run / "summary.json").read_text())["examples"]
    assert any(line.startswith(first[0]) for line in examples), "a prompt from the text"
    assert sum("|" in line for line in examples) >= 3


@pytest.mark.recipe
def test_a_mixture_of_experts(command: Run) -> None:
    assert command(*MOE)[0] == 0
    last, task = records("moe")[-1], task_of(*MOE)
    assert 0 < last["valid_router_entropy"] <= math.log(4)
    assert 0 <= last["valid_expert_share_min"] <= 0.25 <= last["valid_expert_share_max"] <= 0.5
    assert "train_perplexity" not in last, "the training loss is not the cross entropy alone"
    model = load("runs/llm/moe")
    valid = task.valid_data()
    ids = torch.stack([valid[index] for index in range(len(valid))])
    with torch.no_grad():
        output = model(ids[:, :-1], output_router_logits=True)
        whole = task.loss(model, Batch(ids))
    words = F.cross_entropy(output.logits.flatten(0, 1), ids[:, 1:].flatten())
    assert last["valid_loss"] == pytest.approx(float(words), rel=1e-5)
    balance = routing.balance(output.router_logits, 2)
    assert last["valid_balance_loss"] == pytest.approx(float(balance), rel=1e-5)
    z = routing.z_loss(output.router_logits)
    assert last["valid_z_loss"] == pytest.approx(float(z), rel=1e-5)
    torch.testing.assert_close(whole, words + 0.01 * balance + 1e-3 * z)


@pytest.mark.recipe
def test_an_interrupted_mixture_goes_on_to_the_same_bits(
    command: Run, killed_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    words = [
        *MOE,
        "run.checkpoint_every=1",
        "amp=bf16",
        "gradient_checkpointing=true",
        "gradient_accumulation_steps=2",
    ]
    assert command(*words, "run.name=whole")[0] == 0
    with killed_after(3):
        assert command(*words, "run.name=parts")[0] == 130
    status, out, _ = command(*words, "run.name=parts")
    assert status == 0
    assert "continuing runs/llm/parts at step 3" in out
    assert records("whole") == records("parts")
    ours, theirs = (read_weights(Path(f"runs/llm/{name}"))[0] for name in ("whole", "parts"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


@pytest.mark.recipe
def test_a_run_starts_from_a_checkpoint(command: Run) -> None:
    assert command(*GPT2)[0] == 0
    shutil.rmtree("runs/llm/gpt2/transformers")  # as of a run that has not finished: its best weights
    task = task_of(*GPT2, "+model.checkpoint=runs/llm/gpt2")
    weights, ours = read_weights(Path("runs/llm/gpt2"))[0], task.build_model().state_dict()
    assert all(torch.equal(weights[name], ours[name]) for name in weights)
    assert torch.equal(load("runs/llm/gpt2").state_dict()["lm_head.weight"], ours["lm_head.weight"])
    assert command(*GPT2, "+model.checkpoint=runs/llm/gpt2", "run.name=more")[0] == 0
    assert records("more")[0]["train_loss"] < records("gpt2")[0]["train_loss"]


@pytest.mark.recipe
def test_the_first_tokens_alone(command: Run) -> None:
    task = task_of(*GPT2, "data.tokens=320")
    assert len(task.train_data()) == 20
    assert len(task_of(*GPT2).train_data()) > 20
    few, many = (task.flops(Batch(torch.zeros(shape))) for shape in ((4, 17), (2, 33)))
    assert few == many - 2 * 64 * 2 * 2 * 16 * 16
    assert len(task_of(*GPT2, "eval_batches=null").valid_data()) > 12


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.sequence_length=300", "data.sequence_length=300: the model has positions for 256 tokens"),
        ("data.sequence_length=0", "data.sequence_length=0: must be at least 1"),
        ("data.tokens=3", "data.tokens=3: must be at least data.sequence_length=16"),
        ("data.tokens=99999999", "data.tokens=99999999: the train text has"),
        ("eval_batches=0", "eval_batches=0: must be at least 1"),
        ("sampling.temperature=-1", "sampling.temperature=-1.0: must be at least 0"),
        ("sampling.top_p=0", "sampling.top_p=0.0: must lie in (0, 1]"),
        ("sampling.samples=0", "sampling.samples=0: must be at least 1"),
        ("+model.n_layers=3", "model.n_layers: gpt2 has no such key; did you mean n_layer?"),
        ("model.vocab_size=30", "model.vocab_size=30: the tokenizer has"),
        ("+model.checkpoint=no/such/folder", "no/such/folder: no such folder"),
        ("model=gpt3", "model=gpt3: no such option"),
    ],
)
def test_input_that_cannot_work(command: Run, argument: str, message: str) -> None:
    status, _, err = command(*GPT2, argument)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not re.search("Traceback", err)
