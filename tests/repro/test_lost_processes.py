"""A process that is killed or stopped ends the run that waits for it, with a line."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta

import pytest
import torch
from torch import Tensor, distributed
from torch.utils.data import get_worker_info
from toy import Points, ToyTask

from repro.explain import explain
from repro.train.config import TrainConfig
from repro.train.data import Sized
from repro.train.trainer import train


def kill_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly(Points):
    """Kills the process that loads its 40th point."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 40 and get_worker_info() is not None:
            kill_this()
        return super().__getitem__(index)


class DeadlyTask(ToyTask):
    def train_data(self) -> Sized:
        return Deadly(64, 0.1)


def test_a_killed_data_worker(config: TrainConfig) -> None:
    config.workers = 1
    with pytest.raises(RuntimeError) as caught:
        train(DeadlyTask(), config, "run")
    line = explain(caught.value)
    assert line is not None
    assert line.startswith("DataLoader worker (pid")
    assert line.endswith(", often for lack of memory: set a lower workers=N; the same command continues")
    assert "\n" not in line


def test_a_killed_process_of_a_pool() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(BrokenProcessPool) as caught:
        pool.submit(kill_this).result()
    assert "was killed, often for lack of memory" in str(explain(caught.value))


@pytest.mark.parametrize("ended", [False, True])
def test_a_process_that_the_others_wait_for(ended: bool) -> None:
    """Two ranks in one process, of which one does not come, or is gone."""
    store = distributed.HashStore()

    def join(rank: int) -> distributed.ProcessGroup:
        return distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=1))

    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(join, (0, 1)))
    if ended:
        del ranks[1]
    with pytest.raises(RuntimeError) as caught:
        ranks[0].allreduce([torch.ones(1)]).wait()
    line = explain(caught.value)
    assert line is not None
    assert line.startswith("another process of this run ended, or did not answer within run.timeout (")
    assert "\n" not in line


def test_other_errors_stay_errors_of_ours() -> None:
    assert explain(RuntimeError("the request timed out")) is None
    assert explain(ValueError("DataLoader worker (pid 3) is killed by signal: Killed.")) is None
