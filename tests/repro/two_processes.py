"""Started as two processes by test_processes.py: ROOT, then the arguments of vision/train.py for each run."""

import json
import sys

import pytest
import torch
from accelerate import Accelerator
from test_loop import StopError, stop_after
from test_preemption import signal_in
from torch import Tensor
from toy import BlocksTask, ToyTask
from toy_streams import STREAMS, StreamTask

from repro.errors import Stopped
from repro.train import trainer
from repro.train.config import RunConfig, TrainConfig
from repro.train.evaluate import average_statistics
from repro.train.state import TrainState
from vision.train import main

NAMES = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
measured = 0


def everywhere(tensor: Tensor) -> Tensor:
    """The tensors of both processes, stacked."""
    parts = [torch.empty_like(tensor) for _ in range(2)]
    torch.distributed.all_gather(parts, tensor.clone())
    return torch.stack(parts)


def checked(state: TrainState, accelerator: Accelerator) -> None:
    """Average the statistics and see that it was done: the mean, and the first process's for the average."""
    global measured
    assert state.ema is not None
    both = [dict(module.named_buffers()) for module in (state.module, state.ema.module)]
    before = [{name: everywhere(buffers[name]) for name in NAMES} for buffers in both]
    average_statistics(state, accelerator)
    after = [{name: everywhere(buffers[name]) for name in NAMES} for buffers in both]
    for name in NAMES:
        assert torch.equal(*after[0][name]), name
        torch.testing.assert_close(after[0][name][0].double(), before[0][name].double().mean(0))
        assert torch.equal(after[1][name][0], before[1][name][0]), name
        assert torch.equal(after[1][name][1], before[1][name][0]), name
    for x in before:  # or there was nothing to see
        assert not torch.equal(*x[NAMES[0]])
    measured += 1


root, runs = sys.argv[1], json.loads(sys.argv[2])
for arguments in runs:
    assert main([*arguments, f"run.root={root}"]) == 0

trainer.average_statistics = checked
config = TrainConfig(
    epochs=2, batch_size=8, ema_decay=0.9, optimizer={"name": "adan", "lr": 0.01}, run=RunConfig(root=root)
)
trainer.train(ToyTask(), config, "statistics")
assert measured == 2

trainer.average_statistics = average_statistics
config = TrainConfig(
    epochs=2,
    batch_size=STREAMS,
    optimizer={"name": "adan", "lr": 0.02},
    run=RunConfig(root=root, checkpoint_every=3),
)
trainer.train(StreamTask(), config, "carried")
with pytest.MonkeyPatch.context() as patch:
    stop_after(patch, 6)
    with pytest.raises(StopError):
        trainer.train(StreamTask(), config, "broken")
    stop_after(patch, 3)
    with pytest.raises(StopError):
        trainer.train(StreamTask(), config, "shrunk")
trainer.train(StreamTask(), config, "broken")
with pytest.MonkeyPatch.context() as patch:
    if torch.distributed.get_rank() == 1:  # alone hears of it, in the fourth step; the other, a step later
        signal_in(patch, StreamTask, "loss", 5)  # the first counts operations
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 5"):
        trainer.train(StreamTask(), config, "told")
trainer.train(StreamTask(), config, "told")

config = TrainConfig(**json.loads(sys.argv[3]), run=RunConfig(root=root, checkpoint_every=3, monitor=4))
trainer.train(BlocksTask(), config, "sharded")
assert trainer.train(BlocksTask(), config, "grown")["steps"] == 16  # begun by one process
with pytest.MonkeyPatch.context() as patch:
    stop_after(patch, 6)
    with pytest.raises(StopError):
        trainer.train(BlocksTask(), config, "shrunk")
