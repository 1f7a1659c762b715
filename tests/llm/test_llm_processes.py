"""Two processes that shard a model, are stopped and continued, are one with twice the micro-batches."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CODE = [
    "data.root=code", "data.valid_share=0.2", "tokenizer.vocab_size=400", "data.sequence_length=16",
    "schedule.warmup_steps=1", "eval_every=2", "eval_batches=3", "sampling.max_new_tokens=8",
]  # fmt: skip
TALK = ["data.train_rows=40", "data.valid_rows=9", "data.sequence_length=64", "schedule.warmup_epochs=0"]
LLAMA = [
    "model.hidden_size=16", "model.intermediate_size=32", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.num_key_value_heads=2",
]  # fmt: skip
CASES = {
    "gpt2": ("pretrain", [*CODE, "model.n_embd=16", "model.n_layer=2", "model.n_head=2", "optimizer=adan"]),
    "moe": (
        "pretrain",
        [*CODE, "model=moe_mini", *LLAMA, "model.num_local_experts=4", "optimizer=adam_mini"],
    ),
    "finetune": ("finetune", [*TALK, *LLAMA, "tokenizer.vocab_size=300"]),
    "reward": ("reward", [*TALK, *LLAMA, "tokenizer.vocab_size=300"]),
    "remax": ("remax", [*TALK, *LLAMA, "tokenizer.vocab_size=300", "completion_length=6"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["true", "false"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(
    case: str, sharded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("code").mkdir()
    for name in ("cmd", "code", "copy", "csv", "enum", "glob", "heapq", "queue", "sched", "shelve", "stat"):
        shutil.copy(Path(sysconfig.get_path("stdlib"), f"{name}.py"), "code")
    recipe, words = CASES[case]
    words = [*words, "batch_size=4", "run.log_every=1", "run.checkpoint_every=1", "run.name=a"]
    words += ["steps=4"] if recipe == "pretrain" else ["epochs=1", "+stop_after=4", "clip_grad=1"]
    assert (
        importlib.import_module(f"llm.{recipe}").main(
            [*words, "gradient_accumulation_steps=2", "run.root=one"]
        )
        == 0
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = str(HERE / "two_interrupted_processes.py")
    done = subprocess.run(
        [*launch, program, f"llm.{recipe}", *words, f"fsdp={sharded}", "run.root=two"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parents[1]}/optim",
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    one, two = (next(Path(root).glob("*/a")) for root in ("one", "two"))
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    )
    assert [record["step"] for record in ours] == [1, 2, 3, 4]
    for record, other in zip(ours, theirs, strict=True):
        assert record == pytest.approx(other, rel=1e-4)
    assert len(json.loads((two / "environment.json").read_text())) == 2, "two starts"
    shards = list(two.glob("checkpoints/*/*.distcp"))
    assert bool(shards) == (sharded == "true")
    assert (two / "transformers/model.safetensors").is_file()
