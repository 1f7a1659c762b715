"""The contestants of bench_training.py: three training loops, and how they take turns."""

import contextlib
import copy
import io
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

Batch = tuple[Tensor, Tensor]
Loop = Generator[None, Batch, None]  # asks for a batch by `batch = yield`

ADAN = {"name": "adan", "lr": 1e-4, "weight_decay": 0.02, "fused": True}
CLASSES = 1000
STEPS = {"cpu": 1, "cuda": 20}  # of a turn
AMP = {"cpu": "no", "cuda": "bf16"}
WARM_UP = 2  # rounds


class Finished(Exception):
    """Raised into our loop where it asks for a batch after the last."""


class Terminal(io.StringIO):
    """What our loop draws its bar on, which it does not do where nobody looks."""

    def isatty(self) -> bool:
        """Claims to be looked at."""
        return True


@dataclass
class Bench:
    """One model and how it is measured."""

    name: str
    device: str
    batch: int
    rounds: int

    def __post_init__(self) -> None:
        import timm

        torch.manual_seed(0)
        self.model = timm.create_model(self.name, num_classes=CLASSES).to(self.device)
        self.size: int = self.model.pretrained_cfg["input_size"][-1]
        self.steps = STEPS[self.device]
        self.total = (WARM_UP + self.rounds) * self.steps
        self.batches = [
            (
                torch.randint(
                    256, (self.batch, 3, self.size, self.size), dtype=torch.uint8, device=self.device
                ),
                torch.randint(CLASSES, (self.batch,), device=self.device),
            )
            for _ in range(4)
        ]

    def normalize(self, images: Tensor) -> Tensor:
        """Floats of uint8 images, with mean and standard deviation 0.5."""
        return images.to(torch.float32).div_(255).sub_(0.5).div_(0.5)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward and loss."""
        enabled = AMP[self.device] == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if enabled else contextlib.nullcontext()

    def flops(self) -> int:
        """Floating-point operations of a step's forward and backward."""
        from torch.utils.flop_counter import FlopCounterMode

        model = copy.deepcopy(self.model).to("meta")
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(self.batch, 3, self.size, self.size, device="meta")).sum().backward()
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
        for turn in tqdm(rounds, self.name, file=sys.__stderr__, disable=not sys.__stderr__.isatty()):
            first = (turn + WARM_UP) * self.steps
            for name in order.sample(names, len(names)):
                self.wait()
                begin = time.perf_counter()
                for step in range(first, first + self.steps):
                    batch = self.batches[step % len(self.batches)]
                    if name in loops:
                        loops[name].send(batch)
                    else:
                        yield batch
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
    model.train()
    while True:
        images, labels = yield
        with bench.autocast():
            loss = F.cross_entropy(model(bench.normalize(images)), labels)
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
    criterion = nn.CrossEntropyLoss().to(bench.device)
    logger = logging.Logger("train", logging.INFO)
    with contextlib.closing(logging.FileHandler(os.devnull)) as handler:
        logger.addHandler(handler)
        update_time, data_time, loss_meter = AverageMeter(), AverageMeter(), AverageMeter()
        model.train()
        optimizer.zero_grad()
        updates, asked, updated = 0, time.time(), time.time()
        while True:
            images, labels = yield
            images, labels = bench.normalize(images.to(bench.device)), labels.to(bench.device)
            data_time.update(time.time() - asked)
            with bench.autocast():
                loss = criterion(model(images), labels)
            loss.backward(create_graph=False)
            optimizer.step()
            loss_meter.update(loss.item(), images.size(0))
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
                    f"{images.size(0) / update_time.val:>7.2f}/s ({update_time.avg:.3f}s)  "
                    f"LR: {sum(rates) / len(rates):.3e}  Data: {data_time.val:.3f} ({data_time.avg:.3f})"
                )
            scheduler.step_update(num_updates=updates, metric=loss_meter.avg)
            losses.append(loss.detach())
            asked = time.time()


def run_ours(
    bench: Bench, folder: Path, loops: dict[str, Loop], times: dict[str, list[float]]
) -> list[float]:
    """Train by our loop, the others taking their turns while it waits for batches; return its losses."""
    from repro.accelerator import build, shut_down
    from repro.config import RunConfig, ScheduleConfig
    from repro.loop import Trainer
    from repro.run import RunFolder
    from vision.config import AugmentConfig, DataConfig, ModelConfig, VisionConfig
    from vision.train import Classification

    class Synthetic(Classification):
        """The recipe of vision/train.py but for where its images come from."""

        def __init__(self, config: VisionConfig) -> None:
            super().__init__(config)
            self.classes = CLASSES

        def train_data(self) -> Any:
            return range((bench.total + 1) * bench.batch)  # the epoch's end is never reached

        def valid_data(self) -> Any:
            return range(bench.batch)

        def build_model(self) -> nn.Module:
            return copy.deepcopy(bench.model)

    config = VisionConfig(
        epochs=1,
        batch_size=bench.batch,
        amp=AMP[bench.device],
        optimizer=ADAN,
        schedule=ScheduleConfig(per="step", min_lr=ADAN["lr"]),  # a cosine from lr to lr
        run=RunConfig(root=str(folder), log_every=bench.steps),
        model=ModelConfig(bench.name),
        data=DataConfig(channels=3, size=bench.size, mean=[0.5] * 3, std=[0.5] * 3),
        augment=AugmentConfig(crop="none"),
    )
    config.check()

    def batches() -> Iterator[Batch]:
        yield from bench.turns(loops, times)
        raise Finished

    accelerator, run = build(config), RunFolder(folder / "run")
    try:
        trainer = Trainer(Synthetic(config), config, run, accelerator)
        trainer.loader = batches()
        with contextlib.suppress(Finished), contextlib.redirect_stderr(Terminal()):
            trainer.run()
        return trainer.losses[: bench.total].tolist()
    finally:
        run.close()
        shut_down(accelerator)
