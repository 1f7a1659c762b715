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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from repro.train.config import TrainConfig
from repro.train.task import Task

Batch = list[Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
Loop = Generator[None, Batch, None]  # asks for a batch by `batch = yield`

STEPS = {"cpu": 1, "cuda": 20}  # per turn
WARM_UP = 2  # rounds


class Finished(Exception):
    """Raised into our loop when it asks for a batch after the last."""


@dataclass
class Bench:
    """A model in training, and how it is measured.

    Attributes:
        initial: the model with the initial weights of all contestants.
        batches: as from a loader: on the CPU, and pinned if there is a GPU.
        loss: makes the loss function of a contestant.
    """

    name: str
    device: str
    rounds: int
    task: Task
    config: TrainConfig
    initial: nn.Module
    batches: list[Batch]
    loss: Callable[[], Loss]

    def __post_init__(self) -> None:
        self.steps = STEPS[self.device]
        self.total = (WARM_UP + self.rounds) * self.steps

    def model(self) -> nn.Module:
        """Return a model for a contestant."""
        return copy.deepcopy(self.initial)

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the model for a contestant's own loop, compiled if it should be."""
        return cast(nn.Module, torch.compile(model)) if self.config.compile else model

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self.batches[step % len(self.batches)]

    def move(self, batch: Batch) -> Batch:
        """Return the batch on the device."""
        return send_to_device(batch, self.device, non_blocking=True)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context with the precision of forward and loss."""
        enabled = self.config.amp == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if enabled else contextlib.nullcontext()

    def flops(self) -> int | None:
        """Return the FLOPs of a step's forward and backward; None if they cannot be counted."""
        loss, batch = self.loss(), send_to_device(self.batch(0), "meta")
        try:
            with FlopCounterMode(display=False) as counter:
                loss(self.model().to("meta"), batch).backward()
        except (NotImplementedError, RuntimeError):  # the value of a meta tensor was needed
            return None
        return counter.get_total_flops()

    def turns(self, loops: dict[str, Loop], times: dict[str, list[float]]) -> Iterator[Batch]:
        """Append the seconds of a step in each round to `times`.

        A contestant that is in `times` but not in `loops` is the caller: it gets its batches from this
        iterator, and the others take their turns while it waits for one.
        """
        names, order = list(times), random.Random(0)
        for loop in loops.values():
            next(loop)  # until it asks for its first batch
        rounds = range(-WARM_UP, self.rounds)
        for turn in tqdm(rounds, self.name, file=sys.__stderr__, disable=None):
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
        """Wait until the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def bare_loop(
    bench: Bench,
    model: nn.Module,
    step: Callable[[], Any],
    zero_grad: Callable[[], Any],
    losses: list[Tensor],
) -> Loop:
    """Train with as little code as possible."""
    loss_of = bench.loss()
    model.train()
    model = bench.compiled(model)
    while True:
        batch = bench.move((yield))
        with bench.autocast():
            loss = loss_of(model, batch)
        loss.backward()
        step()
        zero_grad()
        losses.append(loss.detach())


def timm_loop(bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[Tensor]) -> Loop:
    """Train as timm's train.py does, without clipping, loss scaler and weight average.

    Source: train_one_epoch of huggingface/pytorch-image-models train.py, 1.0; its steps in its order.
    """
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter

    lr = optimizer.param_groups[0]["lr"]
    scheduler = CosineLRScheduler(optimizer, t_initial=bench.total, lr_min=lr, t_in_epochs=False)
    loss_of = bench.loss()
    logger = logging.Logger("train", logging.INFO)
    with contextlib.closing(logging.FileHandler(os.devnull)) as handler:
        logger.addHandler(handler)
        update_time, data_time, loss_meter = AverageMeter(), AverageMeter(), AverageMeter()
        model.train()
        model = bench.compiled(model)
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
    """Train with our loop while the others take their turns; return its losses."""
    from repro.train.accelerator import build, shut_down
    from repro.train.run_folder import RunFolder
    from repro.train.trainer import Trainer

    task, config = bench.task, bench.config
    config.run.root, config.run.log_every = str(folder), bench.steps

    def plan(data: Any, config: Any) -> Callable[[int], Sequence[Sequence[int]]]:
        return lambda epoch: [range(config.batch_size)] * (bench.total + 1)  # the epoch never ends

    def batches() -> Iterator[Batch]:
        yield from bench.turns(loops, times)
        raise Finished

    accelerator, run = build(config), RunFolder(folder / "run")
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]  # our loop draws its bar on nothing else
    with mock.patch.object(task, "plan", plan), mock.patch.object(task, "build_model", bench.model):
        trainer = Trainer(task, config, run, accelerator)
    try:
        trainer.loader = cast(Any, batches())
        with contextlib.suppress(Finished), contextlib.redirect_stderr(terminal):
            trainer.run()
        return trainer.state.history["loss"][: bench.total].tolist()
    finally:
        run.close()
        shut_down(accelerator)
