"""Two processes do what one does with twice the micro-batches, of other numbers of hidden tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nlp.pretrain_bert import main

HERE = Path(__file__).resolve().parent
ARGUMENTS = [
    "steps=9", "schedule.warmup_steps=2", "batch_size=16", "tokenizer.vocab_size=400", "data.block=complete",
    "data.block_size=48", "model.hidden_size=32", "model.intermediate_size=64", "data.name=text",
    "model.hidden_dropout_prob=0.1", "run.log_every=1", "measure_every=3", "run.name=a",
]  # fmt: skip


def records(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "bert/a/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path: Path) -> None:
    for split, lines in (("train", 150), ("valid", 40)):
        sentences = [" ".join(f"word{i * k % 37}" for k in range(1, 2 + i % 20)) for i in range(lines)]
        (tmp_path / f"{split}.txt").write_text("\n".join(sentences) + "\n")
    arguments = [*ARGUMENTS, f"data.root={tmp_path}"]
    assert main([*arguments, "accumulate=2", f"run.root={tmp_path}/one"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(HERE / "bert_two_processes.py"), *arguments, f"run.root={tmp_path}/two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == len(two) >= 9
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
