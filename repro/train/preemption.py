"""Ending a run on a stop signal without losing anything.

Before they take a machine away, schedulers and `docker stop` send SIGTERM, and some seconds later SIGKILL.
SLURM also sends SIGUSR1, where a job asks for it (--signal=USR1@120). A run then finishes its step, writes a
checkpoint, and its process ends with the status of one that the signal ended: 128 and the signal's number,
143 for SIGTERM. The same command continues it, to the same bits.

Several processes have to end after the same step, although the signal reaches them during different ones, or
only one of them. So each says after each step whether it was told, and looks a step later at what all have
said: an all-reduce of one number on the CPU, by gloo, which had that step's time. No device waits for it.
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

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):  # no error, so that what handles errors lets it pass
    """Ends a run that was told to stop; `status` is the exit status of the process."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number, self.status = number, 128 + number


class Listener:
    """Detects a stop signal sent to any process of the run, while it is entered as a context.

    A signal that others handle (as submitit does in its jobs) is left to them. Only the main thread listens.
    """

    def __init__(self, processes: int, timeout: float = 1800) -> None:
        """`timeout`: the seconds that a process waits for what the others say."""
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
        if self._processes > 1 and kind is None:  # or else others may not come, and the process ends
            if self._said is not None:
                self._said[1].wait()
            distributed.destroy_process_group(self._group)

    def should_stop(self) -> int:
        """Return the number of the signal that ends the run after this step, 0 for none.

        All processes call it after each step, and get the same answer.
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
        """Let a signal raise Stopped at once, where nothing changes what `step` steps have made.

        Not in one of several processes, for which the others would wait.
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
            return  # a forked process that loads data: it ends with this one
        self._heard = number
        if self._step is not None:
            raise Stopped(number, self._step)
