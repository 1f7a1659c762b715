"""Two processes do what one does with twice the micro-batches: the same steps, metrics and predictions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import glue_folders
import pytest

from nlp.finetune_glue import main

HERE = Path(__file__).resolve().parent
ARGUMENTS = [
    "task=mnli", "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
    "model.hidden_dropout_prob=0.1", "tokenizer.vocab_size=400", "data.max_length=32", "data.max_tokens=110",
    "batch_size=16", "epochs=2", "schedule.warmup_epochs=0", "run.log_every=1", "run.name=a",
]  # fmt: skip


def records(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "glue/a/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path: Path) -> None:
    """Accuracies are those of all predictions, in each part of the development set."""
    arguments = [*ARGUMENTS, f"data.root={glue_folders.mnli(tmp_path)}"]
    assert main([*arguments, "accumulate=2", f"run.root={tmp_path}/one"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(HERE / "glue_two_processes.py"), *arguments, f"run.root={tmp_path}/two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == len(two) >= 8
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    files = sorted(path.name for path in (tmp_path / "one/glue/a/predictions").iterdir())
    assert files == ["MNLI-m.tsv", "MNLI-mm.tsv", "dev_matched.tsv", "dev_mismatched.tsv"]
    for name in files:
        ours, theirs = (tmp_path / f"{run}/glue/a/predictions/{name}" for run in ("one", "two"))
        assert ours.read_text() == theirs.read_text()
