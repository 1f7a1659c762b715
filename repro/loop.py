"""The training loop, the same for every task.

A run can be killed at any moment: the same command continues from the newest checkpoint and ends with the
same bits, because everything that shapes the result is either in the checkpoint (weights, optimizer, average,
scaler, position) or a pure function of the configuration (schedule, data order, all that is random).

Several processes do what one does with as many times the micro-batches: the same samples, the same random
numbers. What is left are rounding and BatchNorm, whose statistics see one micro-batch after the other in one
process and are averaged over several.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import broadcast, set_seed  # type: ignore[import-untyped]
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm  # type: ignore[import-untyped]

import optim
from repro import checkpoint, report, tracking
from repro.accelerator import build, build_optimizer, shut_down, start_trackers
from repro.config import TrainConfig
from repro.data import EvaluationSampler, TrainingSampler, make_loader
from repro.errors import UserError
from repro.generators import seed_generators
from repro.run import RunFolder
from repro.schedules import build_schedule
from repro.speed import Clock, Speedometer, count_flops, device_peak
from repro.task import Task


def train(task: Task, config: TrainConfig, name: str) -> dict[str, Any]:
    """Train `task` in the run folder `name`, or continue there, and return (and print) the summary.

    Raises:
        UserError: input that cannot work; see repro.cli for how it is shown.
    """
    config.check()
    accelerator = build(config)
    main = accelerator.is_main_process
    folder = RunFolder(Path(config.run.root) / task.name / name, active=main, overwrite=config.run.overwrite)
    try:
        accelerator.wait_for_everyone()  # the others look at the folder after it was locked and emptied
        folder.check(asdict(config))
        summary = folder.summary()
        if summary is None:
            trainer = Trainer(task, config, folder, accelerator)
            folder.begin(asdict(config))  # only now, when the configuration is known to work
            summary = trainer.run()
            folder.finish(summary)
        elif main:
            print(f"{folder.path} is finished; run.overwrite=true starts it afresh")
        if main:
            print(report.describe(summary))
        return summary
    finally:
        folder.close()
        shut_down(accelerator)


@dataclass
class Progress(Clock):
    """Where a run stands; stored in every checkpoint."""

    step: int = 0  # optimizer steps done
    last: dict[str, Any] | None = None  # the newest record of a finished epoch
    best: dict[str, Any] | None = None  # the one with the best metric
    tracked: dict[str, Any] = field(default_factory=dict)  # what the tracker remembers


class Trainer:
    """One run from its first or last saved step to its end."""

    def __init__(self, task: Task, config: TrainConfig, folder: RunFolder, accelerator: Accelerator) -> None:
        self.task, self.config, self.folder, self.accelerator = task, config, folder, accelerator
        self.progress = Progress()
        self.device = accelerator.device
        self.metric = f"ema_{task.metric}" if config.ema_decay else task.metric
        set_seed(config.seed)

        train_data, test_data = task.train_data(), task.test_data()
        self.share = self._share(len(train_data))
        ranks = accelerator.num_processes, accelerator.process_index
        self.sampler = TrainingSampler(
            len(train_data), config.batch_size, config.seed, config.accumulate, *ranks, config.repeats
        )
        self.loader = make_loader(train_data, self.sampler, config.seed, config.workers)
        test_sampler = EvaluationSampler(len(test_data), self.share, *ranks)
        self.test_loader = make_loader(test_data, test_sampler, None, config.workers)
        self.total = config.steps or self.sampler.steps * (config.epochs + config.schedule.cooldown_epochs)
        self.epochs = -(-self.total // self.sampler.steps)

        self.module = task.build_model()  # the bare model; self.model is what accelerate wraps around it
        self.ema: AveragedModel | None = None
        if config.ema_decay is not None:
            average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(self.module, self.device, multi_avg_fn=average, use_buffers=True)
        self.bare_optimizer = build_optimizer(self.module, config.optimizer)
        self.base_lrs = [group["lr"] for group in self.bare_optimizer.param_groups]
        self.lr: float = self.bare_optimizer.defaults["lr"]
        self.multiplier = build_schedule(
            config.schedule, self.lr, config.epochs, self.sampler.steps, config.steps
        )
        self.model, self.optimizer = accelerator.prepare(self.module, self.bare_optimizer)
        self.losses = torch.zeros(self.sampler.steps, device=self.device)  # of this epoch's steps

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary."""
        self._resume()
        start_trackers(self.accelerator, self.config, self.folder.path)
        self.monitor = self._monitor()
        self.tracker = tracking.Tracker(self.config.row, self.progress.tracked)
        if self.tracker.untracked is not None:
            self.accelerator.print(f"not tracked: {self.tracker.untracked}")
        peak = device_peak(self.device, self.accelerator.num_processes)
        self.speed = Speedometer(self.progress, self.task.samples, self.config.batch_size, peak)
        show = self.accelerator.is_main_process
        with tqdm(
            total=self.total, initial=self.progress.step, unit="step", disable=None if show else True
        ) as self.bar:
            while self.progress.step < self.total:
                epoch, done = divmod(self.progress.step, self.sampler.steps)
                self._train_epoch(epoch, done)
        return report.summarise(self)

    def _train_epoch(self, epoch: int, done: int) -> None:
        """Train from step `done` of `epoch` to the epoch's end."""
        self.model.train()
        self.sampler.start_at(epoch, done)
        if done == 0:
            self.losses.zero_()
        for micro, loaded in enumerate(self.speed.waiting(self.loader)):
            batch = self.task.move(loaded, self.device)
            if self.speed.forward_flops is None:
                self.speed.forward_flops = count_flops(self.task, self.module, batch) / self.share
            self._seed(micro)
            with self.accelerator.accumulate(self.model):
                loss = self.task.loss(self.model, batch)
                self.accelerator.backward(loss)
                self.losses[done] += loss.detach() / self.config.accumulate
                if self.accelerator.sync_gradients:
                    self._set_lr()
                    numbers = {"loss": self.losses[done]}
                    if self.config.clip_grad is not None:
                        parameters = self.module.parameters()
                        norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip_grad)
                        numbers["grad_norm"] = norm
                    if self.monitor is not None:
                        self.monitor.step = self.progress.step  # also where a scaler left steps out
                        self.monitor.record(**numbers)
                    if self.progress.step % self.config.hessian_every == 0:
                        self._estimate_hessian(batch)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                done += 1
                self._end_step(epoch, done)
                if self.progress.step == self.total:
                    return

    def _seed(self, micro: int) -> None:
        """Seed the generators for a micro-batch by its number among those of all processes."""
        accumulate, ranks = self.config.accumulate, self.accelerator.num_processes
        number = micro % accumulate * ranks + self.accelerator.process_index
        seed_generators(f"batch {self.config.seed} {self.progress.step} {number}")

    def _estimate_hessian(self, batch: Any) -> None:
        """Give an optimizer that wants them estimates of the Hessian's diagonal, from a micro-batch."""
        if not isinstance(self.bare_optimizer, optim.Sophia):
            return
        with self.accelerator.autocast():
            logits = self.task.logits(self.module, batch)
        params = [p for p in self.module.parameters() if p.requires_grad]
        estimates = optim.gauss_newton_bartlett(logits, params)
        self.bare_optimizer.update_hessian(
            {p: self.accelerator.reduce(x, "mean") for p, x in estimates.items()}
        )

    def _monitor(self) -> optim.Monitor | None:
        """Watch the optimizer, if the configuration says so."""
        if self.config.run.monitor is None:
            return None
        path = self.folder.path / "monitor.jsonl" if self.accelerator.is_main_process else None
        return optim.Monitor(
            self.bare_optimizer,
            self.module,
            every=self.config.run.monitor,
            path=path,
            step=self.progress.step,
            max_grad_norm=self.config.clip_grad,
        )

    def _set_lr(self) -> None:
        multiplier = self.multiplier(self.progress.step)
        for group, base in zip(self.bare_optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * multiplier

    def _end_step(self, epoch: int, done: int) -> None:
        """Average, log and save after the optimizer step that is the `done`-th of its epoch."""
        if self.ema is not None:
            self.ema.update_parameters(self.module)
        self.progress.step += 1
        self.speed.lap_steps += 1
        self.bar.update()
        every = self.config.measure_every
        due = every is not None and self.progress.step % every == 0
        if due or done == self.sampler.steps or self.progress.step == self.total:
            self._end_stretch(epoch, done)
            self.model.train()
            return
        if done % self.config.run.log_every == 0:
            loss = self._mean_loss(done - self.config.run.log_every, done)
            self.speed.tick(training=True)
            self._log({"epoch": self._epochs_at(epoch, done), "train_loss": loss})
            self._log_speed()
            shown = {"epoch": f"{epoch + 1}/{self.epochs}", "loss": f"{loss:.4g}", "lr": f"{self._lr():.3g}"}
            self.bar.set_postfix(shown | ({"verdict": self.tracker.verdict} if self.tracker.verdict else {}))
        every = self.config.run.checkpoint_every
        if every is not None and self.progress.step % every == 0:
            self._save()

    def _end_stretch(self, epoch: int, done: int) -> None:
        """Measure, log and save: at the end of an epoch or of the run, and every `measure_every` steps."""
        record = {"epoch": self._epochs_at(epoch, done), "train_loss": self._mean_loss(0, done)}
        self.speed.tick(training=True)
        self._average_statistics()
        record |= self._measure(self.accelerator.unwrap_model(self.model))
        if self.ema is not None:
            record |= {f"ema_{key}": value for key, value in self._measure(self.ema.module).items()}
        self.progress.last = self._log(record, measured=True)
        self._log_speed()
        sign = 1 if self.task.higher_is_better else -1
        best = self.progress.best
        if best is None or sign * record[self.metric] > sign * best[self.metric]:
            self.progress.best = self.progress.last
        if self.accelerator.is_main_process:
            self.bar.write(report.epoch_line(self))
        self._save(measured=True)

    def _epochs_at(self, epoch: int, done: int) -> float:
        """Return the number of epochs after `done` steps of `epoch`, an int where it is whole."""
        return epoch + 1 if done == self.sampler.steps else round(epoch + done / self.sampler.steps, 6)

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """Average BatchNorm's statistics over the processes, as timm does (--dist-bn reduce).

        The averaged model has those of the first process, so that a continued run has them, too.
        """
        if self.accelerator.num_processes == 1:
            return
        for name, buffer in self.module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(self.accelerator.reduce(buffer, "mean"))
        if self.ema is not None:
            for buffer in self.ema.module.buffers():
                buffer.copy_(broadcast(buffer))

    @torch.no_grad()
    def _measure(self, model: nn.Module) -> dict[str, float]:
        """Return the task's measures over the whole test set, each sample counted once."""
        model.eval()
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in self.test_loader:
            with self.accelerator.autocast():
                measures, size = self.task.measure(model, self.task.move(batch, self.device))
            count += size
            for key, value in measures.items():
                sums[key] = sums.get(key, 0) + value.double()
        stacked = torch.stack([*sums.values(), torch.tensor(float(count), device=self.device).double()])
        *totals, number = self.accelerator.reduce(stacked, "sum").tolist()
        return {key: total / number for key, total in zip(sums, totals, strict=True)}

    def _mean_loss(self, begin: int, end: int) -> float:
        """Return the mean training loss over steps begin..end of this epoch, over all processes."""
        mean = float(self.accelerator.reduce(self.losses[begin:end].mean(), "mean"))
        if not math.isfinite(mean):
            bad = int((~self.losses[begin:end].isfinite()).int().argmax()) + begin
            step = (self.progress.step - 1) // self.sampler.steps * self.sampler.steps + bad
            lr = self.lr * self.multiplier(step)
            raise UserError(
                f"the loss is {float(self.losses[bad])} at step {step} with lr={lr:.4g}: "
                "try a lower optimizer.lr, a longer schedule.warmup_epochs or clip_grad=1"
            )
        return mean

    def _lr(self) -> float:
        return self.lr * self.multiplier(self.progress.step - 1)

    def _log(self, values: dict[str, Any], measured: bool = False) -> dict[str, Any]:
        """Append a record, compared with the released curve, to metrics.jsonl and the trackers; return it."""
        record = {"step": self.progress.step, "lr": self._lr(), **values}
        record |= self.tracker.compare(record, measured)
        self.folder.log(record)
        self.accelerator.log(record, step=self.progress.step)
        return record

    def _log_speed(self) -> None:
        """Append the speed since the last record to speed.jsonl and the trackers."""
        rates = self.speed.lap()
        self.folder.log({"step": self.progress.step, **rates}, "speed.jsonl")
        self.accelerator.log(rates, step=self.progress.step)

    def _save(self, measured: bool = False) -> None:
        """Write a checkpoint and delete those no longer needed; `measured` if that was what came before."""
        if measured:
            self.speed.tick()
        else:
            # weights made from a loss that is not finite are not worth keeping
            self._mean_loss(0, self.progress.step % self.sampler.steps)
            self.speed.tick(training=True)
        if not self.accelerator.is_main_process:
            return

        def write(path: Path) -> None:
            about = {"model": self.task.model_name}
            save_model(self.module, str(path / checkpoint.MODEL), about)
            if self.ema is not None:
                save_model(self.ema.module, str(path / checkpoint.EMA), about)
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "processes": self.accelerator.num_processes,
                "losses": self.losses,
            }
            torch.save(state, path / "training.pt")
            (path / "progress.json").write_text(json.dumps(asdict(self.progress), indent=1))

        best = self.progress.best and f"step-{self.progress.best['step']:09d}"
        parameters = sum(p.numel() for p in self.module.parameters())
        about = {"model": self.task.model_name, "parameters": parameters, "best": best}
        checkpoint.save(self.folder.checkpoints, self.progress.step, write, about)
        checkpoint.prune(self.folder.checkpoints, self.config.run.keep, [best] if best else [])

    def _resume(self) -> None:
        """Continue from the newest good checkpoint, if there is one."""
        if self.accelerator.is_main_process:
            checkpoint.clean(self.folder.checkpoints)
        path = checkpoint.newest(self.folder.checkpoints, warn=self.accelerator.print)
        if path is not None:
            load_model(self.module, path / checkpoint.MODEL, device=str(self.device))
            state = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.losses.copy_(state["losses"])
            self.progress = Progress(**json.loads((path / "progress.json").read_text()))
            if self.ema is not None:
                load_model(self.ema.module, path / checkpoint.EMA, device=str(self.device))
                self.ema.n_averaged.fill_(self.progress.step)
            if state["processes"] != self.accelerator.num_processes:
                raise UserError(
                    f"{self.folder.path} was begun with {state['processes']} process(es), now there are "
                    f"{self.accelerator.num_processes}; start as many, or afresh with run.overwrite=true"
                )
            self.accelerator.print(f"continuing {self.folder.path} at step {self.progress.step}")
        self.folder.rewind(self.progress.step)

    def _share(self, size: int) -> int:
        """Return the micro-batch size of one process, after checking that the sizes work out."""
        config, processes = self.config, self.accelerator.num_processes
        if size < config.batch_size:
            raise UserError(
                f"batch_size={config.batch_size}: the training set has only {size} {self.task.samples}"
            )
        if config.batch_size % (config.accumulate * processes):
            raise UserError(
                f"batch_size={config.batch_size}: must be divisible by accumulate={config.accumulate} "
                f"times {processes} process(es)"
            )
        return int(config.batch_size // (config.accumulate * processes))
