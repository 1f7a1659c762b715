"""SIGTERM and SIGUSR1 end a run after its step, with a checkpoint; it continues to the same bits.

Two processes of which one is told are in test_processes.py.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_loop import folder, result
from toy import ToyTask
from toy_command import main

from repro.errors import Stopped
from repro.train import checkpoint, trainer
from repro.train.config import TrainConfig
from repro.train.evaluate import Evaluator
from repro.train.preemption import Listener
from repro.train.trainer import train


def signal_in(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, count: int, number: int = signal.SIGTERM
) -> None:
    """Send this process a signal in the `count`-th call of a method, before it does anything."""
    original, calls = getattr(owner, method), 0

    def signalled(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, method, signalled)


def newest_step(path: Path) -> int:
    newest = checkpoint.newest(path / "checkpoints")
    assert newest is not None
    return int(checkpoint.read_manifest(newest)["step"])


# of 32 steps, with checkpoints every three and evaluations every eight; the signal comes in a micro-batch
@pytest.mark.parametrize(
    ("step", "number", "status"),
    [(1, signal.SIGTERM, 143), (8, signal.SIGTERM, 143), (13, signal.SIGUSR1, 138)],
)
def test_a_run_that_is_told_to_stop_finishes_its_step(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals, status: int
) -> None:
    train(ToyTask(), config, "whole")
    with monkeypatch.context() as patch:
        signal_in(patch, ToyTask, "loss", 2 * step + 1, number)  # the first counts operations
        with pytest.raises(Stopped, match=f"stopped by {number.name} after step {step}$") as stopped:
            train(ToyTask(), config, "stopped")
    assert stopped.value.status == status
    path = folder(config, "stopped")
    assert newest_step(path) == step
    assert not (path / "summary.json").exists()
    assert signal.getsignal(number) is signal.SIG_DFL
    train(ToyTask(), config, "stopped")
    assert result(path) == result(folder(config, "whole"))


@pytest.mark.parametrize(("evaluation", "step"), [(1, 8), (8, 32)])  # those of an epoch: model, average
def test_an_evaluation_is_left_and_done_again(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, evaluation: int, step: int
) -> None:
    train(ToyTask(), config, "whole")
    with monkeypatch.context() as patch:
        signal_in(patch, Evaluator, "evaluate", evaluation)
        with pytest.raises(Stopped, match=f"after step {step}"):
            train(ToyTask(), config, "stopped")
    path = folder(config, "stopped")
    assert newest_step(path) == step
    assert f'"step": {step},' not in (path / "metrics.jsonl").read_text()
    train(ToyTask(), config, "stopped")
    assert result(path) == result(folder(config, "whole"))


def test_the_closing_evaluation_can_be_stopped(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        signal_in(patch, trainer.Trainer, "_close", 1)
        with pytest.raises(Stopped, match="after step 32"):
            train(ToyTask(), config, "stopped")
    assert not (folder(config, "stopped") / "summary.json").exists()
    assert train(ToyTask(), config, "stopped")["steps"] == 32


def test_a_command_says_so_once_and_ends_its_multirun(
    runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "configs").mkdir()
    toy = "defaults: [toy_schema, _self_]\noptimizer: {name: adan, lr: 0.01}\n"
    (tmp_path / "configs/toy.yaml").write_text(toy)
    monkeypatch.setattr("repro.train.cli.CONFIGS", tmp_path / "configs")
    signal_in(monkeypatch, ToyTask, "loss", 4)
    status, _, err = runner(main)("-m", "batch_size=8", "epochs=1", "seed=1,2")
    assert status == 143
    assert err.count("stopped by SIGTERM after step 3; the same command continues") == 1
    assert [path.name for path in Path("runs/toy").iterdir()] == ["batch_size=8,epochs=1,seed=1"]
    monkeypatch.setenv("RANK", "1")
    signal_in(monkeypatch, ToyTask, "loss", 2)
    status, _, err = runner(main)("batch_size=8", "epochs=1", "seed=3")
    assert (status, "stopped" in err) == (143, False)


def test_only_the_main_thread_listens_and_only_to_what_nobody_else_does() -> None:
    def handler(*_: object) -> None: ...

    signal.signal(signal.SIGUSR1, handler)  # submitit's, for example
    try:
        with Listener(1) as listener:
            assert signal.getsignal(signal.SIGUSR1) is handler
            assert signal.getsignal(signal.SIGTERM) == listener._hear
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    found: list[Any] = []

    def elsewhere() -> None:
        with Listener(1):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_processes_that_load_data_go_on() -> None:
    with Listener(1) as listener:
        child = os.fork()
        if child == 0:
            with listener.interruptible(1):
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert listener.should_stop() == 0
