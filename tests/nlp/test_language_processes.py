"""Two processes do what one does with twice the micro-batches: steps, measures, the test, predictions.

Their micro-batches have other numbers of hidden tokens and examples, and streams that are carried on.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import glue_folders
import pytest

HERE = Path(__file__).resolve().parent
CASES = {
    "pretrain_bert": [
        "steps=9", "schedule.warmup_steps=2", "batch_size=16", "tokenizer.vocab_size=400", "data=text",
        "data.block=complete", "data.block_size=48", "model.hidden_size=32", "model.intermediate_size=64",
        "model.hidden_dropout_prob=0.1", "eval_every=3",
    ],
    "finetune_glue": [
        "task=mnli", "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
        "model.hidden_dropout_prob=0.1", "tokenizer.vocab_size=400", "data.max_length=32",
        "data.max_tokens=110", "batch_size=16", "epochs=2", "schedule.warmup_epochs=0",
    ],
    "train_transformer_xl": [
        "data=text", "steps=20", "batch_size=4", "tgt_len=8", "evaluation.batch_size=2", "model.n_layer=2",
        "model.n_head=2", "model.d_head=8", "model.d_embed=16", "model.d_model=16", "model.d_inner=32",
        "model.mem_len=8", "model.cutoffs=[]", "model.tie_projs=[false]", "model.dropout=0.1",
    ],
    "train_lstm": [
        "data=text", "tokenizer.vocab_size=50", "data.tgt_len=6", "batch_size=4", "data.eval_batch_size=2",
        "data.test_batch_size=2", "model.emsize=16", "model.nhid=16", "model.nlayers=2", "model.wdrop=0.3",
        "model.alpha=2", "model.beta=1", "schedule=constant", "epochs=2",
    ],
}  # fmt: skip


def sentences(folder: Path) -> Path:
    for split, lines in (("train", 150), ("valid", 40), ("test", 30)):
        rows = [" ".join(f"word{i * k % 37}" for k in range(1, 2 + i % 20)) for i in range(lines)]
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CASES)
def test_two_processes_are_one(recipe: str, tmp_path: Path) -> None:
    data = glue_folders.mnli(tmp_path) if recipe == "finetune_glue" else sentences(tmp_path)
    arguments = [*CASES[recipe], f"data.root={data}", "run.log_every=1", "run.name=a"]
    assert (
        importlib.import_module(f"nlp.{recipe}").main(
            [*arguments, "gradient_accumulation_steps=2", f"run.root={tmp_path}/one"]
        )
        == 0
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(HERE / "two_processes.py"), f"nlp.{recipe}", *arguments, f"run.root={tmp_path}/two"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parents[1]}/optim",
        },
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (next((tmp_path / name).glob("*/a")) for name in ("one", "two"))
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    ]
    assert len(records[0]) == len(records[1]) >= 8
    for ours, theirs in zip(*records, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    predictions = sorted(path.name for path in one.glob("predictions/*"))
    assert bool(predictions) == (recipe == "finetune_glue")
    for name in predictions:
        assert (one / "predictions" / name).read_text() == (two / "predictions" / name).read_text()
