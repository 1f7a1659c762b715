"""End a run on a stop signal without losing anything.

Schedulers and `docker stop` send SIGTERM, and some seconds later SIGKILL. SLURM also sends SIGUSR1 if a job
asks for it (--signal=USR1@120). The run then finishes its step, writes a checkpoint, and exits with the
status of a process ended by the signal: 128 plus its number, 143 for SIGTERM. The same command continues it,
to the same bits.

Several processes have to end after the same step, although the signal reaches them during different ones, or
only one of them. So after each step, every process starts an all-reduce of one number (on the CPU, by gloo)
and reads the result one step later. No device waits for it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType, TracebackType
from typing import cast

import torch
from torch import Tensor, distributed

from repro.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Listener:
    """Detects a stop signal sent to any process of the run, while it is entered as a context.

    A signal with another handler (submitit's, in its jobs) is left alone. Only the main thread listens.
    """

    def __init__(self, processes: int, timeout: float = 1800) -> None:
        """`timeout`: the seconds that a process waits for the others."""
        self._heard = 0  # number of the signal
        self._step: int | None = None  # within `interruptible`
        self._process = os.getpid()
        self._taken: list[signal.Signals] = []
        self._processes, self._timeout = processes, timedelta(seconds=timeout)
        self._group: distributed.ProcessGroup | None = None
        self._said: tuple[Tensor, distributed.Work] | None = None

    def __enter__(self) -> "Listener":
        if self._processes > 1:
            self._group = cast(
                distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=self._timeout)
            )
        if threading.current_thread() is threading.main_thread():
            self._taken = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
        for number in self._taken:
            signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        if self._processes > 1 and kind is None:  # after an error, others may never come
            if self._said is not None:
                self._said[1].wait()
            distributed.destroy_process_group(self._group)

    def should_stop(self) -> int:
        """Return the number of the signal that ends the run after this step, or 0.

        All processes call this after each step, and get the same answer.
        """
        if self._processes == 1:
            return self._heard
        before = self._said
        said = torch.tensor(self._heard)
        work = distributed.all_reduce(said, distributed.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._said = said, work
        if before is None:
            return 0
        before[1].wait()
        return int(before[0])

    @contextmanager
    def interruptible(self, step: int) -> Iterator[None]:
        """Let a signal raise Stopped at once in this block, which must not change the state of `step` steps.

        With several processes it is not raised here, as the others would wait for this one.
        """
        if self._processes > 1:
            yield
            return
        self._step = step
        try:
            if self._heard:
                raise Stopped(self._heard, step)
            yield
        finally:
            self._step = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data loading process, which ends with its parent
        self._heard = number
        if self._step is not None:
            raise Stopped(number, self._step)
