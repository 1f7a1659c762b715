"""Rows of the paper started for real: full configuration, 224 px, photographs; killed, continued, compared.

`pytest -s` shows the commands, what they printed and what was compared.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY

from repro.ledger import rows
from repro.ledger.rows import ROOT
from repro.train import checkpoint

# What a machine without a GPU needs: no float16, few processes, a batch that takes seconds. And what a run of
# four steps needs: in the rows' first epoch the learning rate is so small that no weight would move.
HERE = ["amp=no", "workers=2", "schedule.per=step", "run.log_every=1", "run.checkpoint_every=2"]
KILLED, LAST = 2, 4  # steps


@pytest.fixture
def photographs() -> Path:
    """Ten classes of ImageNet, in ImageNet's layout."""
    named = os.environ.get("ADAN_DATA")
    if not named:
        pytest.skip("ADAN_DATA is not set: it names a folder with imagenette-224-subset/ in it")
    path = Path(named) / "imagenette-224-subset"
    if not path.is_dir():
        pytest.skip(f"ADAN_DATA={named}: no imagenette-224-subset/ in it")
    return path


@pytest.mark.recipe
def test_a_row_with_siblings_is_tracked(command: Callable[..., tuple[int, str, str]], released: Path) -> None:
    """A run of it loads the rows that tell its tolerance, while Hydra is busy with its own configuration."""
    rows._load.cache_clear()
    small = ["model=vit_mini", "data=digits", "augment=shift", "amp=no", "batch_size=512", "workers=0"]
    short = ["epochs=1", "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0"]
    status, _, err = command("+paper=imagenet/vit_b_150", *small, *short, *TINY, "run.name=x")
    assert (status, err) == (0, "")
    assert "released_train_loss" in Path("runs/vision/x/metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes on two idle cores
@pytest.mark.parametrize(
    ("row", "batch"),
    [
        ("imagenet/resnet50_100", 8),
        ("imagenet/vit_b_150", 6),  # repeated augmentation, erasing, mixup, cutmix, drop path
    ],
)
def test_a_killed_row_goes_on_to_the_same_bits(
    row: str, batch: int, photographs: Path, tmp_path: Path
) -> None:
    words = [row, f"data.root={photographs}", f"batch_size={batch}", *HERE]
    begin_and_kill([*words, "run.name=killed"], tmp_path, KILLED)
    printed = begin_and_kill([*words, "run.name=killed"], tmp_path, LAST)
    assert f"continuing runs/vision/killed at step {KILLED}\n" in printed
    begin_and_kill([*words, "run.name=whole"], tmp_path, LAST)
    killed, whole = (result(tmp_path / "runs" / "vision" / name) for name in ("killed", "whole"))
    shutil.rmtree(tmp_path / "runs")  # gigabytes
    print(json.dumps(whole, indent=1))
    assert killed == whole
    print("killed and continued: the same")


def begin_and_kill(words: list[str], folder: Path, step: int) -> str:
    """Start a row, kill it once it has written the checkpoint of `step`, and return what it printed."""
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), *words]
    print("$ python scripts/reproduce.py", shlex.join(words))
    log = folder / f"{words[-1]}-{step}"  # its own: workers of a killed process may still write to theirs
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    try:
        name = words[-1].removeprefix("run.name=")
        path = folder / "runs" / "vision" / name / "checkpoints" / f"step-{step:09d}"
        while not path.exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        printed = log.read_text()
    finally:
        process.kill()
        status = process.wait()
    assert status == -signal.SIGKILL
    print(f"{printed.strip()}\n(SIGKILL after the checkpoint of step {step})")
    return printed


def result(folder: Path) -> dict[str, object]:
    """Return what must not differ after LAST steps: records, and the checkpoint's files except for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    files = checkpoint.read_manifest(folder / "checkpoints" / f"step-{LAST:09d}")["files"]
    del files["progress.json"]
    return {"metrics": [json.loads(line) for line in lines[:LAST]], "files": files}
