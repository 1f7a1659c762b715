"""SIGKILL at random moments and amid the writing of checkpoints: the result must not change by a bit."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# everything that has state: dropout-like randomness (drop path), mixup, average, accumulation, augmentation
ARGUMENTS = [
    "optimizer=adan",
    "steps=26",  # an epoch has 22
    "schedule.per=step",
    "schedule.warmup_epochs=0",
    "ema_decay=0.9",
    "gradient_accumulation_steps=2",
    "model.kwargs.embed_dim=16",
    "model.drop_path=0.1",
    "augment.mixup=0.2",
    "run.checkpoint_every=3",
    "run.log_every=4",
]


class Server:
    """Starts the command in forked processes; see fork_server.py."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/optim"}
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env=environment,
                text=True,
            )

    def start(self, arguments: list[str]) -> int:
        """Start the command and return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> int:
        """Return the next number: a process id, or the exit status of the process."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.process.communicate()


def result(folder: Path) -> dict[str, object]:
    """Return what must not differ: the metrics, and the hashes of the last checkpoint except for times."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = json.loads((last / "manifest.json").read_text())["files"]
    del files["progress.json"]
    return {"metrics": (folder / "metrics.jsonl").read_text(), "step": last.name, "files": files}


@pytest.mark.slow
def test_killed_runs_end_bit_identical(server: Server, tmp_path: Path) -> None:
    seed = 0
    rng = random.Random(seed)
    server.start([*ARGUMENTS, "run.name=whole"])  # returns when the imports are done
    begin = time.monotonic()
    assert server.read() == 0, (tmp_path / "stderr").read_text()
    duration = time.monotonic() - begin
    whole = result(tmp_path / "runs/vision/whole")
    print(f"seed {seed}, an uninterrupted run takes {duration:.1f} s")

    kills = {"random": 0, "writing": 0}
    runs = 0
    while kills["random"] < 14 or kills["writing"] < 7 or not runs:
        folder = tmp_path / f"runs/vision/killed{runs}"
        kind = "writing" if sum(kills.values()) % 3 == 2 else "random"
        child = server.start([*ARGUMENTS, f"run.name={folder.name}"])
        if kind == "random":
            time.sleep(rng.uniform(0, duration))
        else:
            stop_amid_writing(child, folder / "checkpoints", rng.uniform(0, 0.005))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = server.read()
        if status == -signal.SIGKILL:
            torn = kind == "writing" and half_written(folder / "checkpoints")
            kills["writing" if torn else "random"] += 1
        else:
            assert status == 0, (tmp_path / "stderr").read_text()
            assert result(folder) == whole
            runs += 1
    server.start([*ARGUMENTS, f"run.name={folder.name}"])
    assert server.read() == 0
    assert result(folder) == whole
    print(f"{kills}; {runs + 1} runs finished")


def stop_amid_writing(child: int, checkpoints: Path, delay: float) -> None:
    """Freeze a process up to `delay` s after it began to write a checkpoint, while that is half-written.

    However fast it writes: where the checkpoint was complete by then, it is the next one's turn. Returns
    without that once the process has ended.
    """
    alive = Path(f"/proc/{child}").exists
    while alive() and half_written(checkpoints):  # what an earlier kill left is removed at the start
        time.sleep(0.0005)
    with contextlib.suppress(ProcessLookupError):
        while alive():
            if half_written(checkpoints):
                time.sleep(delay)
                os.kill(child, signal.SIGSTOP)
                if half_written(checkpoints):
                    return
                os.kill(child, signal.SIGCONT)
            time.sleep(0.0005)


def half_written(checkpoints: Path) -> bool:
    """Whether there is the temporary folder of a checkpoint, with a file in it."""
    try:
        return any(checkpoints.glob(".tmp-*/*"))
    except FileNotFoundError:  # it was renamed or removed meanwhile
        return False
