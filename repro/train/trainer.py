"""The training loop, the same for every task.

A run can be killed at any moment, or told to stop (repro.train.preemption). The same command continues from
the newest checkpoint and ends with the same bits, because everything that determines the result is either in
it (weights, optimizer, average, scaler, position) or a pure function of the configuration (schedule, data).

Several processes do the same as one with as many times the micro-batches: the same samples and random
numbers. Only rounding and BatchNorm differ: its statistics see the micro-batches in sequence in one process,
and are averaged over several.
"""

import math
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import adan_optim
from repro.errors import Diverged, Stopped, UserError
from repro.ledger import tracking
from repro.train import checkpoint, fsdp, like, saving
from repro.train.accelerator import (
    build,
    build_monitor,
    build_optimizer,
    keep_loss_scale,
    shut_down,
    start_trackers,
    weighed,
)
from repro.train.config import TrainConfig
from repro.train.data import TrainingSampler, make_loader
from repro.train.evaluate import Evaluator, average_statistics
from repro.train.hessian import estimate_hessian
from repro.train.preemption import Listener
from repro.train.run_folder import RunFolder
from repro.train.schedules import build_schedule
from repro.train.seeding import seed_generators
from repro.train.state import Progress, TrainState
from repro.train.summary import describe, epoch_line, summarise
from repro.train.task import Task
from repro.train.throughput import Throughput, count_flops, device_peak
from repro.train.transfer import measure


def train(task: Task, config: TrainConfig, name: str) -> dict[str, Any]:
    """Train `task` in the run folder `name`, or continue there; print and return the summary.

    Raises:
        UserError: the input cannot work; repro.train.cli shows the message.
    """
    config.check()
    accelerator = build(config)
    main = accelerator.is_main_process
    folder = RunFolder(Path(config.run.root) / task.name / name, active=main, overwrite=config.run.overwrite)
    try:
        accelerator.wait_for_everyone()  # the others read the folder only once it is locked
        folder.check(asdict(config))
        summary = folder.summary()
        if summary is None:
            trainer = Trainer(task, config, folder, accelerator)
            folder.begin(asdict(config), task.products)  # only once the configuration is known to work
            if main:
                task.begin(folder.path)
            accelerator.wait_for_everyone()  # the others look for checkpoints only now
            summary = trainer.run()
            folder.finish(summary)
        elif main:
            print(f"{folder.path} is finished; run.overwrite=true starts it over")
        if main:
            print(describe(summary))
    except Diverged as error:
        folder.diverge(error)
        raise
    finally:
        folder.close()
        shut_down(accelerator)
    if main:
        task.finish(folder.path)  # the other processes need not wait for it
    return summary


class Trainer:
    """One run from its first or last saved step to its end."""

    def __init__(self, task: Task, config: TrainConfig, folder: RunFolder, accelerator: Accelerator) -> None:
        self.task, self.config, self.folder, self.accelerator = task, config, folder, accelerator
        self.saved = 0  # step of the last checkpoint written here
        self.device = accelerator.device
        metric = config.select.metric or task.metric
        self.metric = f"ema_{metric}" if config.ema_decay else metric
        self.sign = 1 if config.select.higher(task.metric) else -1
        set_seed(config.seed)

        train_data, valid_data, self.test_data = task.train_data(), task.valid_data(), task.test_data()
        ranks = accelerator.num_processes, accelerator.process_index
        self.micro_batch_size = config.micro_batch_size(len(train_data), task.samples, ranks[0])
        self.sampler = TrainingSampler(
            task.plan(train_data, config), config.gradient_accumulation_steps, *ranks
        )
        self.loader = make_loader(
            train_data, self.sampler, config.seed, config.workers, config.repeats, task.collate
        )
        # sharded models compute in the precision that they are sent in
        autocast = nullcontext if config.fsdp else accelerator.autocast
        self.evaluator = Evaluator(task, config, accelerator, self.micro_batch_size, autocast)
        self.valid_batches = self.evaluator.batches(valid_data)
        self.total = config.total_steps(self.sampler.steps)
        self.epochs = -(-self.total // self.sampler.steps)

        module = task.build_model()
        ema: AveragedModel | None = None
        if config.ema_decay is not None:
            average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
            ema = AveragedModel(module, self.device, multi_avg_fn=average, use_buffers=True)
        if config.fsdp:
            fsdp.shard(module, task.sharded(module), self.device, config.amp, config.compile)
        find = partial(measure, task, config, accelerator, train_data, module, steps=self.total)
        options, self.transferred = like.settle(
            config.optimizer, None if config.run.overwrite else folder.path, find
        )
        optimizer = build_optimizer(module, options)
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.lr: float = optimizer.defaults["lr"]
        self.multiplier = build_schedule(
            config.schedule, self.lr, config.epochs, self.sampler.steps, config.steps
        )
        self.model, self.optimizer = module, optimizer  # and what accelerate wraps around them
        if not config.fsdp:
            self.model, wrapped = accelerator.prepare(module, optimizer)
            if accelerator.scaler is not None:  # without, it only looks for packages, 0.2 ms a step
                self.optimizer = wrapped
        names = ("loss", "grad_norm") if config.clip_grad is not None else ("loss",)
        history = {name: torch.zeros(self.sampler.steps, device=self.device) for name in names}
        carried: list[dict[str, Tensor]] = [{} for _ in range(config.gradient_accumulation_steps)]
        self.state = TrainState(module, optimizer, ema, history, carried)

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.state.progress

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary."""
        self._resume()
        start_trackers(self.accelerator, self.config, self.folder.path)
        self.monitor = build_monitor(self.state, self.config, self.folder.path, self.accelerator)
        if self.transferred is not None:
            self.folder.keep(like.FILE, self.transferred)
            self.accelerator.print(self.transferred["text"])
        self.tracker = tracking.Tracker(self.config.row, self.progress.tracked)
        if self.tracker.untracked is not None:
            self.accelerator.print(f"not tracked: {self.tracker.untracked}")
        peak = device_peak(self.device, self.accelerator.num_processes)
        units = self.config.batch_size * self.task.per_sample
        self.speed = Throughput(self.progress, self.task.samples, units, peak)
        hide = None if self.accelerator.is_main_process else True  # None: hide it unless on a terminal
        bar = tqdm(total=self.total, initial=self.progress.step, unit="step", disable=hide)
        with Listener(self.accelerator.num_processes, self.config.run.timeout) as self.listener:
            with bar as self.bar:
                self._evaluate_again()
                if callable(to_training := getattr(self.state.optimizer, "train", None)):
                    to_training()  # the checkpoint of an evaluation has the weights that were evaluated
                while self.progress.step < self.total:
                    epoch, done = divmod(self.progress.step, self.sampler.steps)
                    self._train_epoch(epoch, done)
            with self.listener.interruptible(self.progress.step):
                closing, examples = self._close()
        return summarise(
            self.state,
            self.config,
            run=str(self.folder.path),
            model=self.task.model_name,
            epochs=self.epochs,
            metric=self.metric,
            speed=self.speed,
            tracker=self.tracker,
            monitor=self.monitor,
            test=closing,
            examples=examples,
        )

    def _evaluate_again(self) -> None:
        """Evaluate after the last step if the run was stopped during that evaluation."""
        epoch, done = divmod(self.progress.step - 1, self.sampler.steps)
        evaluated = self.progress.last["step"] if self.progress.last else 0
        if evaluated < self.progress.step and self._is_due(epoch, done + 1):
            with adan_optim.evaluating(self.state.optimizer):
                self._end_stretch(epoch, done + 1)

    def _train_epoch(self, epoch: int, done: int) -> None:
        """Train from step `done` of `epoch` to the epoch's end."""
        self.model.train()
        self.sampler.start_at(epoch, done)
        if done == 0:
            self.state.carried = [{} for _ in self.state.carried]
        parts, batches = self.config.gradient_accumulation_steps, self.speed.waiting(self.loader)
        weighted = weighed(batches, self.task.num_items, parts, self.accelerator)
        for micro, (loaded, weight) in enumerate(weighted):
            batch = self.task.move(loaded, self.device)
            if self.speed.forward_flops is None:
                flops = self.task.flops(batch)
                if flops is None:
                    flops = 0 if self.config.fsdp else count_flops(self.task, self.state.module, batch)
                self.speed.forward_flops = flops / (len(batch[0]) * self.task.per_sample)
            self._seed(micro)
            slot, losses = micro % parts, self.state.history["loss"]
            place = self.progress.step % len(losses)
            if slot == 0:
                losses[place] = 0
            self.task.state = self.state.carried[slot]
            with self.accelerator.accumulate(self.model):
                loss = weight * self.task.loss(self.model, batch)
                self.accelerator.backward(loss)
                losses[place] += loss.detach() / parts
                if self.accelerator.sync_gradients:
                    self._set_lr()
                    numbers = {"loss": losses[place]}
                    if self.config.clip_grad is not None:
                        parameters = self.state.module.parameters()
                        norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip_grad)
                        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
                        numbers["grad_norm"] = self.state.history["grad_norm"][place] = norm
                    if self.monitor is not None:
                        self.monitor.step = self.progress.step  # also if a scaler has skipped steps
                        self.monitor.record(**numbers)
                    if self.progress.step % self.config.hessian_every == 0:
                        estimate_hessian(self.task, self.state, self.accelerator, batch)
                    if (step := self.progress.step) and step % (self.config.restart_every or math.inf) == 0:
                        cast(adan_optim.Adan, self.state.optimizer).restart_opt()
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    keep_loss_scale(self.accelerator, self.config.loss_scale, self.progress.step)
            if self.accelerator.sync_gradients:
                done += 1
                self._end_step(epoch, done)
                if self.progress.step == self.total:
                    return
                if number := self.listener.should_stop():
                    if self.saved < self.progress.step:
                        self._save()
                    raise Stopped(number, self.progress.step)

    def _seed(self, micro: int) -> None:
        """Seed the generators for a micro-batch by its number among those of all processes."""
        micro_batches, ranks = self.config.gradient_accumulation_steps, self.accelerator.num_processes
        number = micro % micro_batches * ranks + self.accelerator.process_index
        seed_generators(f"batch {self.config.seed} {self.progress.step} {number}")

    def _set_lr(self) -> None:
        multiplier = self.multiplier(self.progress.step)
        for group, base in zip(self.state.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * multiplier

    def _end_step(self, epoch: int, done: int) -> None:
        """Average, log and save after optimizer step `done` of the epoch."""
        if self.state.ema is not None:
            with adan_optim.evaluating(self.state.optimizer):
                self.state.ema.update_parameters(self.state.module)
        self.progress.step += 1
        self.speed.window_steps += 1
        self.bar.update()
        if self._is_due(epoch, done):
            with adan_optim.evaluating(self.state.optimizer):
                self._end_stretch(epoch, done)
            self.model.train()
            return
        if self.progress.step % self.config.run.log_every == 0:
            metrics = self._training_metrics(min(self.config.run.log_every, self.sampler.steps))
            self.speed.tick(training=True)
            self._log({"epoch": self._epochs_at(epoch, done), **metrics})
            self._log_speed()
            shown = {"epoch": f"{epoch + 1}/{self.epochs}", "loss": f"{metrics['train_loss']:.4g}"}
            verdict = {"verdict": self.tracker.verdict} if self.tracker.verdict else {}
            self.bar.set_postfix({**shown, "lr": f"{self._lr():.3g}", **verdict})
        every = self.config.run.checkpoint_every
        if every is not None and self.progress.step % every == 0:
            self._save()

    def _is_due(self, epoch: int, done: int) -> bool:
        """Return whether to evaluate after step `done` of `epoch`."""
        config, step = self.config, self.progress.step
        if done == self.sampler.steps and config.eval_epochs is not None:
            return (epoch + 1) % config.eval_epochs == 0 or step == self.total
        return step == self.total or (config.eval_every is not None and step % config.eval_every == 0)

    def _end_stretch(self, epoch: int, done: int) -> None:
        """Evaluate, log and save, with the weights that the optimizer means for it."""
        record = {"epoch": self._epochs_at(epoch, done), **self._training_metrics(done)}
        self.speed.tick(training=True)
        average_statistics(self.state, self.accelerator)
        try:
            with self.listener.interruptible(self.progress.step):
                record |= self.evaluator.evaluate(
                    self.accelerator.unwrap_model(self.model), self.valid_batches
                )
                if self.state.ema is not None:
                    ema = self.evaluator.evaluate(self.state.ema.module, self.valid_batches)
                    record |= {f"ema_{key}": value for key, value in ema.items()}
        except Stopped:
            self._save(evaluated=True)
            raise
        if self.metric not in record:
            raise UserError(f"select.metric={self.config.select.metric}: there is {', '.join(record)}")
        self.progress.last = self._log(record, evaluated=True)
        self._log_speed()
        best = self.progress.best
        if best is None or self.sign * record[self.metric] > self.sign * best[self.metric]:
            self.progress.best = self.progress.last
        if self.accelerator.is_main_process:
            self.bar.write(epoch_line(self.progress, self.epochs, self.total, str(self.tracker)))
        self._save(evaluated=True)

    def _epochs_at(self, epoch: int, done: int) -> float:
        """Return the number of epochs after `done` steps of `epoch`, an int if whole."""
        return epoch + 1 if done == self.sampler.steps else round(epoch + done / self.sampler.steps, 6)

    @torch.no_grad()
    def _close(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the record of the best weights on the test set, if there is one, and their examples."""
        best = self.progress.best
        assert best is not None, "a run ends with an evaluation"
        self.accelerator.wait_for_everyone()  # the first process may still be writing
        path = self.folder.checkpoints / f"step-{best['step']:09d}"
        module = saving.load_best(self.state, self.config, path, self.device)
        closing = None
        if self.test_data is not None:
            found = self.evaluator.evaluate(module, self.evaluator.batches(self.test_data))
            metrics = {key.replace("valid_", "test_", 1): value for key, value in found.items()}
            last = self.progress.last or best
            closing = self._log(
                {"epoch": last["epoch"], "weights_of_step": best["step"], **metrics}, evaluated=True
            )
        module.eval()
        self.task.state = {}
        together = self.config.fsdp or self.accelerator.is_main_process  # every process has a shard
        return closing, self.task.examples(module) if together else []

    def _training_metrics(self, steps: int) -> dict[str, float]:
        """Return the metrics of the mean loss over the last `steps` steps, and the mean norm of gradients.

        Steps whose gradients overflowed (with a loss scale) do not count for the norm.
        """
        metrics = self.task.training_metrics(self._mean_loss(steps))
        if "grad_norm" in self.state.history:
            norms = self.state.recent("grad_norm", steps)
            finite = norms[norms.isfinite()]
            metrics |= {"grad_norm": float(finite.mean())} if len(finite) else {}
        if self.accelerator.scaler is not None:
            metrics["train_loss_scale"] = self.accelerator.scaler.get_scale()
        return metrics

    def _mean_loss(self, steps: int) -> float:
        """Return the mean training loss over the last `steps` steps, over all processes."""
        losses = self.state.recent("loss", steps)
        mean = float(self.accelerator.reduce(losses.mean(), "mean"))
        if not math.isfinite(mean):
            bad = int((~losses.isfinite()).int().argmax())
            step = self.progress.step - steps + bad
            lr = self.lr * self.multiplier(step)
            raise Diverged(
                f"the loss is {float(losses[bad])} at step {step} with lr={lr:.4g}: "
                "try a lower optimizer.lr, a longer schedule.warmup_epochs or clip_grad=1",
                step,
            )
        return mean

    def _lr(self) -> float:
        return self.lr * self.multiplier(self.progress.step - 1)

    def _log(self, values: dict[str, Any], evaluated: bool = False) -> dict[str, Any]:
        """Append a record, compared with the released curve, to metrics.jsonl and the trackers; return it."""
        record = {"step": self.progress.step, "lr": self._lr(), **values}
        record |= self.tracker.compare(record, evaluated)
        self.folder.log(record)
        self.accelerator.log(record, step=self.progress.step)
        return record

    def _log_speed(self) -> None:
        """Append the speed since the last record to speed.jsonl and the trackers."""
        rates = self.speed.window()
        self.folder.log({"step": self.progress.step, **rates}, "speed.jsonl")
        self.accelerator.log(rates, step=self.progress.step)

    def _save(self, evaluated: bool = False) -> None:
        """Write a checkpoint and delete those no longer needed; `evaluated`: right after an evaluation."""
        if evaluated:
            self.speed.tick()
        else:
            # raises for a loss that is not finite: such weights are not worth keeping
            self._mean_loss(self.progress.step % self.sampler.steps or self.sampler.steps)
            self.speed.tick(training=True)
        saving.save(self.state, self.config, self.accelerator, self.folder.checkpoints, self.task.model_name)
        self.saved = self.progress.step

    def _resume(self) -> None:
        """Continue from the newest good checkpoint, if there is one."""
        if self.accelerator.is_main_process:
            checkpoint.clean(self.folder.checkpoints)
        path = checkpoint.newest(self.folder.checkpoints, warn=self.accelerator.print)
        if path is not None:
            saving.load(self.state, self.config, self.accelerator, path)
            self.accelerator.print(f"continuing {self.folder.path} at step {self.progress.step}")
        self.folder.rewind(self.progress.step)
