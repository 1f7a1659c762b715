"""The contestants of training.py: three training loops, and how they take turns."""

import contextlib
import copy
import io
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.training_cases import Batch, Work

Loop = Generator[None, Batch, None]  # asks for a batch by `batch = yield`

STEPS = {"cpu": 1, "cuda": 20}  # of a turn
WARM_UP = 2  # rounds


class Finished(Exception):
    """Raised into our loop where it asks for a batch after the last."""


class Terminal(io.StringIO):
    """What our loop draws its bar on, which it does not do where nobody looks."""

    def isatty(self) -> bool:
        """Claims to be looked at."""
        return True


class Bench:
    """A model in training, and how it is measured."""

    def __init__(self, work: Work, rounds: int) -> None:
        self.work, self.device, self.rounds = work, work.device, rounds
        self.steps = STEPS[work.device]
        self.total = (WARM_UP + rounds) * self.steps

    def model(self) -> nn.Module:
        """A model for a contestant."""
        return copy.deepcopy(self.work.model)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self.work.batches[step % len(self.work.batches)]

    def move(self, batch: Batch) -> Batch:
        """The batch on the device."""
        return send_to_device(batch, self.device, non_blocking=True)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward and loss."""
        enabled = self.work.config.amp == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if enabled else contextlib.nullcontext()

    def flops(self) -> int | None:
        """Floating-point operations of a step's forward and backward; None where they cannot be counted."""
        loss, batch = self.work.loss(), send_to_device(self.batch(0), "meta")
        try:
            with FlopCounterMode(display=False) as counter:
                loss(self.model().to("meta"), batch).backward()
        except (NotImplementedError, RuntimeError):  # what torch says to a value asked of a meta tensor
            return None
        return counter.get_total_flops()

    def turns(self, loops: dict[str, Loop], times: dict[str, list[float]]) -> Iterator[Batch]:
        """Seconds of a step in each round, into `times`.

        A contestant that is in `times` and not in `loops` is the caller: it gets its batches from this
        iterator, and the others take their turns while it waits for one.
        """
        names, order = list(times), random.Random(0)
        for loop in loops.values():
            next(loop)  # to where it asks for its first batch
        rounds = range(-WARM_UP, self.rounds)
        terminal = sys.__stderr__
        hide = terminal is None or not terminal.isatty()
        for turn in tqdm(rounds, self.work.name, file=terminal, disable=hide):
            first = (turn + WARM_UP) * self.steps
            for name in order.sample(names, len(names)):
                self.wait()
                begin = time.perf_counter()
                for step in range(first, first + self.steps):
                    if name in loops:
                        loops[name].send(self.batch(step))
                    else:
                        yield self.batch(step)
                self.wait()
                if turn >= 0:
                    times[name].append((time.perf_counter() - begin) / self.steps)

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def bare_loop(
    bench: Bench,
    model: nn.Module,
    step: Callable[[], Any],
    zero_grad: Callable[[], Any],
    losses: list[Tensor],
) -> Loop:
    """The least that training takes."""
    loss_of = bench.work.loss()
    model.train()
    while True:
        batch = bench.move((yield))
        with bench.autocast():
            loss = loss_of(model, batch)
        loss.backward()
        step()
        zero_grad()
        losses.append(loss.detach())


def timm_loop(bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[Tensor]) -> Loop:
    """One epoch by the structure of timm's train.py, without clipping, loss scaler and average.

    Source: train_one_epoch of huggingface/pytorch-image-models train.py, 1.0; its steps in its order.
    """
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter

    lr = optimizer.param_groups[0]["lr"]
    scheduler = CosineLRScheduler(optimizer, t_initial=bench.total, lr_min=lr, t_in_epochs=False)
    loss_of = bench.work.loss()
    logger = logging.Logger("train", logging.INFO)
    with contextlib.closing(logging.FileHandler(os.devnull)) as handler:
        logger.addHandler(handler)
        update_time, data_time, loss_meter = AverageMeter(), AverageMeter(), AverageMeter()
        model.train()
        optimizer.zero_grad()
        updates, asked, updated = 0, time.time(), time.time()
        while True:
            batch = bench.move((yield))
            size = batch[0].size(0)
            data_time.update(time.time() - asked)
            with bench.autocast():
                loss = loss_of(model, batch)
            loss.backward(create_graph=False)
            optimizer.step()
            loss_meter.update(loss.item(), size)
            updates += 1
            optimizer.zero_grad()
            now = time.time()
            update_time.update(now - updated)
            updated = now
            if updates % bench.steps == 0:
                rates = [group["lr"] for group in optimizer.param_groups]
                logger.info(
                    f"Train: 0 [{updates:>4d}/{bench.total}]  Loss: {loss_meter.val:#.3g} "
                    f"({loss_meter.avg:#.3g})  Time: {update_time.val:.3f}s, "
                    f"{size / update_time.val:>7.2f}/s ({update_time.avg:.3f}s)  "
                    f"LR: {sum(rates) / len(rates):.3e}  Data: {data_time.val:.3f} ({data_time.avg:.3f})"
                )
            scheduler.step_update(num_updates=updates, metric=loss_meter.avg)
            losses.append(loss.detach())
            asked = time.time()


def run_ours(
    bench: Bench, folder: Path, loops: dict[str, Loop], times: dict[str, list[float]]
) -> list[float]:
    """Train by our loop, the others taking their turns while it waits for batches; return its losses."""
    from repro.train.accelerator import build, shut_down
    from repro.train.run_folder import RunFolder
    from repro.train.trainer import Trainer

    task, config = bench.work.task, bench.work.config
    config.run.root, config.run.log_every = str(folder), bench.steps

    def plan(data: Any, config: Any) -> Callable[[int], Sequence[Sequence[int]]]:
        # the epoch's end is never reached
        return lambda epoch: [range(config.batch_size)] * (bench.total + 1)

    def batches() -> Iterator[Batch]:
        yield from bench.turns(loops, times)
        raise Finished

    accelerator, run = build(config), RunFolder(folder / "run")
    with mock.patch.object(task, "plan", plan), mock.patch.object(task, "build_model", bench.model):
        trainer = Trainer(task, config, run, accelerator)
    try:
        trainer.loader = cast(Any, batches())
        with contextlib.suppress(Finished), contextlib.redirect_stderr(Terminal()):
            trainer.run()
        return trainer.state.history["loss"][: bench.total].tolist()
    finally:
        run.close()
        shut_down(accelerator)
