"""The configuration shared by all recipes, as dataclasses that type-check the command line."""

from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from omegaconf import OmegaConf

from repro.direction import higher_is_better
from repro.errors import UserError
from repro.ledger.rows import Row
from repro.train import like


@dataclass
class RunConfig:
    """Where a run is stored and how often it is saved. Nothing here changes its result."""

    root: str = "runs"  # folder of all runs; a run is in ROOT/RECIPE/NAME
    name: str | None = None  # default: made from the command line, so that the same command finds its folder
    overwrite: bool = False  # start over instead of continuing
    # steps between checkpoints within an epoch; there is one at the end of every epoch
    checkpoint_every: int | None = None
    keep: int = 2  # newest checkpoints to keep, in addition to the best
    log_every: int = 50  # steps between training records
    timeout: int = 1800  # seconds that a process waits for the others
    monitor: int | None = None  # steps between samples of adan_optim.Monitor, in monitor.jsonl


@dataclass
class TrackingConfig:
    """A live tracker of accelerate; `metrics.jsonl` is always written."""

    name: str | None = None  # wandb | tensorboard
    project: str = "adan"  # name of the project there
    mode: str = "online"  # wandb only: online | offline


@dataclass
class SelectConfig:
    """Which checkpoint is the best."""

    metric: str | None = None  # a key of the records; null: the recipe's own
    higher_is_better: bool | None = None  # for `metric`; only needed if its name does not tell

    def higher(self, default: str) -> bool:
        """Return whether a higher value of `metric`, or else of the recipe's `default`, is better.

        Raises:
            UserError: neither the name nor the setting tells, or they contradict each other.
        """
        metric = self.metric or default
        known = higher_is_better(metric)
        stated = self.higher_is_better if self.metric else None
        if known is None and stated is None:
            raise UserError(
                f"select.metric={metric}: its name does not tell whether higher is better; set "
                "select.higher_is_better=true or false"
            )
        if known is not None and stated not in (None, known):
            better = "higher" if known else "lower"
            raise UserError(
                f"select.higher_is_better={str(stated).lower()}: of {metric} {better} is better; "
                "set it to null"
            )
        return bool(stated if known is None else known)


@dataclass
class LossScaleConfig:
    """The loss scale for amp=fp16, of torch.amp.GradScaler, with fairseq's options."""

    initial: float = 65536.0  # its first value
    growth_interval: int = 2000  # steps without overflow after which it doubles; an overflow halves it
    threshold: float | None = None  # lower limit
    minimum: float = 0.0  # the run ends when the scale falls to this


@dataclass
class ScheduleConfig:
    """The learning rate over time; see `repro.train.schedules`."""

    name: str = "cosine"  # cosine | polynomial | constant | step
    per: str = "epoch"  # epoch | step: when the learning rate changes
    join: str = "cut"  # cosine only: cut | shift | scale, how it meets the warm-up
    warmup_epochs: float = 0.0  # in which the learning rate rises linearly to optimizer.lr
    warmup_steps: int | None = None  # instead of warmup_epochs
    warmup_lr: float = 0.0  # learning rate at step 0 of a warm-up
    min_lr: float = 0.0  # learning rate at the end
    cooldown_epochs: int = 0  # epochs at min_lr after the last of `epochs`
    power: float = 1.0  # polynomial only; 1 is linear
    milestones: list[int] = field(default_factory=list)  # step only: in epochs, or steps for a run in steps
    factor: float = 0.1  # step only: factor on the learning rate at each milestone

    def check_warmup(self, warmup: float, total: int, unit: str) -> None:
        """Raise UserError unless a warm-up leaves something to train of a run; both are in `unit`s."""
        if warmup < total or (warmup == total and (self.name, self.join) == ("cosine", "cut")):
            return
        key = "warmup_epochs" if self.warmup_steps is None else "warmup_steps"
        short = f"schedule.warmup_{unit}={total // 10 if unit == 'steps' else total / 10:g}"
        cure = short if key in short else f"schedule.{key}=0 {short}"
        raise UserError(
            f"schedule.{key}={getattr(self, key):g}: the warm-up of {warmup:g} {unit} must be shorter than "
            f"the run of {total} {unit}; set {cure}"
        )


# The smallest values of keys that are not null.
MINIMA = {
    0: "seed workers schedule.warmup_epochs schedule.warmup_steps schedule.cooldown_epochs "
    "schedule.warmup_lr schedule.min_lr",
    1: "epochs steps max_epochs stop_after batch_size gradient_accumulation_steps repeats eval_every "
    "eval_epochs hessian_every restart_every run.keep run.log_every run.timeout run.checkpoint_every "
    "run.monitor loss_scale.growth_interval",
}


@dataclass
class TrainConfig:
    """The settings of the training loop, which every task shares."""

    # by group of configurations: patterns of the files in configs/<group> that fit; all, if it is not here
    options: ClassVar[dict[str, tuple[str, ...]]] = {}

    seed: int = 0  # of weights, of the order of the data and of all other random numbers
    epochs: int = 10  # passes over the training data
    steps: int | None = None  # total number of optimizer steps, instead of epochs
    # with `steps`: stop after this many epochs if they come first; the schedule ignores this
    max_epochs: int | None = None
    stop_after: int | None = None  # stop after this many steps; the schedule ignores this
    eval_every: int | None = None  # steps between evaluations
    eval_epochs: int | None = 1  # also evaluate every N epochs; null: only after the last
    batch_size: int = 64  # samples per optimizer step, over all processes and micro-batches
    gradient_accumulation_steps: int = 1  # micro-batches per optimizer step
    repeats: int = 1  # copies of a sample per epoch, each augmented anew; the epoch keeps its length
    amp: str = "no"  # no | bf16 | fp16
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    # global norm to which the loop clips gradients; optimizer.max_grad_norm, within the step: set one of them
    clip_grad: float | None = None
    select: SelectConfig = field(default_factory=SelectConfig)
    hessian_every: int = 10  # steps between estimates of the Hessian, for optimizer=sophia
    restart_every: int | None = None  # steps after which optimizer=adan resets its moments to zero
    ema_decay: float | None = None  # of an average of the weights, which is evaluated too
    compile: bool = False  # the model, by torch.compile
    fsdp: bool = False  # shard parameters, gradients and states over the processes; see repro.train.fsdp
    # data loading processes per training process; 0: none, which is enough for pixels and tokens in memory
    workers: int = 0
    # its options are in docs/optim.md; lr=like:adamw takes it from AdamW's
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    row: Row | None = None  # of the ledger, from +paper=<table>/<row>

    def check(self) -> None:
        """Raise UserError for a value that cannot work; the message names it."""
        self._check_numbers()
        self._check_length()
        name = self.run.name
        if name is not None and (
            not (parts := Path(name).parts) or ".." in parts or Path(name).is_absolute()
        ):
            raise UserError(f"run.name={name}: must name a folder below run.root; set run.root=PATH, too")
        optimizer = self.optimizer.get("name")
        if self.restart_every is not None and optimizer != "adan":
            raise UserError(f"restart_every={self.restart_every}: is for optimizer=adan, not {optimizer}")
        like.asked(self.optimizer)
        one_of("amp", self.amp, ("no", "bf16", "fp16"))
        self._check_fsdp()
        one_of("schedule.name", self.schedule.name, ("cosine", "polynomial", "constant", "step"))
        self._check_milestones()
        one_of("schedule.per", self.schedule.per, ("epoch", "step"))
        one_of("schedule.join", self.schedule.join, ("cut", "shift", "scale"))
        one_of("tracking.mode", self.tracking.mode, ("online", "offline"))
        if self.tracking.name is not None:
            one_of("tracking.name", self.tracking.name, ("wandb", "tensorboard"))

    def _check_numbers(self) -> None:
        for minimum, keys in MINIMA.items():
            at_least(minimum, "", self, *keys.split())
        for key in ("initial", "threshold"):
            value = getattr(self.loss_scale, key)
            if value is not None and not value > 0:
                raise UserError(f"loss_scale.{key}={value}: must be above 0")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise UserError(f"clip_grad={self.clip_grad}: must be above 0, or null for no clipping")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay}: must lie between 0 and 1, or null for no average")

    def _check_length(self) -> None:
        if self.schedule.warmup_steps is not None and self.schedule.warmup_epochs:
            raise UserError("schedule.warmup_steps: needs schedule.warmup_epochs=0")
        if self.steps is not None and self.schedule.cooldown_epochs:
            raise UserError(f"steps={self.steps}: a run in steps has no schedule.cooldown_epochs")
        if self.steps is None and self.max_epochs is not None:
            raise UserError(f"max_epochs={self.max_epochs}: is for a run in steps; set epochs instead")
        # the other two combinations have to know the steps of an epoch, see repro.train.schedules
        if self.steps is None and self.schedule.warmup_steps is None:
            self.schedule.check_warmup(self.schedule.warmup_epochs, self.epochs, "epochs")
        elif self.steps is not None and self.schedule.warmup_steps is not None:
            self.schedule.check_warmup(self.schedule.warmup_steps, self.steps, "steps")

    def total_steps(self, per_epoch: int) -> int:
        """Return the number of optimizer steps of a run with `per_epoch` steps per epoch."""
        total = per_epoch * (self.epochs + self.schedule.cooldown_epochs)
        if self.steps is not None:
            total = min(self.steps, per_epoch * (self.max_epochs or self.steps))
        return min(total, self.stop_after or total)

    def micro_batch_size(self, size: int, samples: str, processes: int) -> int:
        """Return the micro-batch size of one process.

        Args:
            size: of the training set.
            samples: what samples are called, for the error.

        Raises:
            UserError: the batch is larger than the training set, or does not divide evenly.
        """
        if size < self.batch_size:
            raise UserError(f"batch_size={self.batch_size}: the training set has only {size} {samples}")
        return self.micro_batch(processes)

    def micro_batch(self, processes: int) -> int:
        """Return the micro-batch size of one process.

        Raises:
            UserError: the batch does not divide evenly.
        """
        size, parts = self.batch_size, self.gradient_accumulation_steps * processes
        if size % parts:
            fits = [str(n) for n in range(1, size // processes + 1) if size % (n * processes) == 0][-8:]
            several = f"gradient_accumulation_steps may be {', '.join(fits)}"
            raise UserError(
                f"batch_size={size}: must be divisible by gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} times {processes} process(es); "
                f"{several if fits else 'take another number of processes'}"
            )
        return size // parts

    def _check_fsdp(self) -> None:
        if not self.fsdp:
            return
        if self.amp == "fp16":
            raise UserError("amp=fp16: fsdp=true has no loss scale; set amp=bf16")
        if self.ema_decay is not None:
            raise UserError(f"ema_decay={self.ema_decay}: fsdp=true keeps no average; set ema_decay=null")
        if self.optimizer.get("name") == "sophia":
            raise UserError(
                "optimizer=sophia: its estimates of the Hessian need whole parameters; set fsdp=false"
            )

    def _check_milestones(self) -> None:
        schedule, milestones = self.schedule, self.schedule.milestones
        key = f"schedule.milestones={milestones}"
        if schedule.name == "step" and not milestones:
            raise UserError(f"{key}: schedule.name=step needs at least one")
        if any(milestone < 1 for milestone in milestones) or milestones != sorted(set(milestones)):
            raise UserError(f"{key}: must be at least 1 and rise")
        if not schedule.factor > 0:
            raise UserError(f"schedule.factor={schedule.factor}: must be above 0")


Schema = TypeVar("Schema")


def typed(values: dict[str, Any], schema: type[Schema]) -> Schema:
    """Return a composed configuration as an instance of `schema`.

    Raises:
        OmegaConfBaseException: a key is not in the schema, or a value has another type.
    """
    return cast(Schema, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))


def one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of `options`."""
    if value not in options:
        raise UserError(f"{key}={value}: must be one of {', '.join(options)}")


def at_least(minimum: float, prefix: str, config: object, *keys: str) -> None:
    """Raise UserError if a value of `config` is set and below `minimum`; `prefix` precedes their keys."""
    for key in keys:
        if (value := attrgetter(key)(config)) is not None and value < minimum:
            raise UserError(f"{prefix}{key}={value}: must be at least {minimum}")
