"""What a run left behind, ours or another program's, as one plain structure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.loading import Unreadable, read_json, read_records
from repro.runs import CONFIG, DIVERGED, flatten, read

MONITOR = "monitor.jsonl"
Series = list[tuple[float, float]]  # (optimizer step, or epoch if the log has no steps; finite value)

# Our names of settings, and those in the logs of other programs.
SETTINGS = {
    "optimizer.name": ("opt", "optimizer", "optim"),
    "optimizer.lr": ("lr", "learning_rate"),
    "optimizer.betas": ("opt_betas", "adan_betas", "adam_betas", "betas"),
    "optimizer.eps": ("opt_eps", "adam_eps", "adam_epsilon"),
    "optimizer.weight_decay": ("weight_decay",),
    "optimizer.decay_bias_and_norm": ("bias_decay",),
    "clip_grad": ("clip_grad", "clip_norm", "max_grad_norm", "clip"),
    "batch_size": ("batch_size", "per_device_train_batch_size", "train_batch_size"),
    "epochs": ("epochs", "num_train_epochs"),
    "steps": ("max_step", "max_steps", "train_iters", "max_update"),
    "schedule.warmup_epochs": ("warmup_epochs",),
    "schedule.warmup_steps": ("warmup_step", "warmup_steps", "warmup_updates", "lr_warmup_iters"),
}


class Unjudged(Exception):
    """A cause cannot be judged; the message says which record is missing and how to get it."""


@dataclass(frozen=True)
class Record:
    """A run's settings and curves.

    Curves are those of finite values. `config` is flat and has our names of settings.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    loss: Series = field(default_factory=list)  # of training
    valid: Series = field(default_factory=list)  # loss of validation
    lr: Series = field(default_factory=list)
    grad_norm: Series = field(default_factory=list)  # before clipping
    loss_scale: Series = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)  # of adan_optim.Monitor
    diverged: float | None = None  # step at which the loss was not finite
    epochs: float | None = None  # passes over the data, of the last record
    parameters: int | None = None  # elements
    position: str = "step"
    ours: bool = False  # a run of this project, so that a cure is an override

    @property
    def done(self) -> float:
        """The step of the last record."""
        return max((series[-1][0] for series in (self.loss, self.lr) if series), default=self.diverged or 0)

    @property
    def steps(self) -> float | None:
        """The number of optimizer steps that the run is to make; None if nothing tells."""
        if self.position != "step":
            return None
        for key in ("stop_after", "steps"):
            if isinstance(steps := self.config.get(key), int | float) and steps > 0:
                return steps
        if self.per_epoch and isinstance(epochs := self.config.get("epochs"), int | float):
            return round(self.per_epoch * (epochs + (self.config.get("schedule.cooldown_epochs") or 0)))
        return self.done or None

    @property
    def per_epoch(self) -> float | None:
        """Optimizer steps of an epoch; None if nothing tells."""
        return self.done / self.epochs if self.epochs and self.position == "step" else None

    @property
    def warmup(self) -> float | None:
        """Steps of the warm-up of the learning rate; None if nothing tells."""
        if isinstance(steps := self.config.get("schedule.warmup_steps"), int | float):
            return steps
        epochs = self.config.get("schedule.warmup_epochs")
        if epochs == 0:
            return 0
        return epochs * self.per_epoch if self.per_epoch and isinstance(epochs, int | float) else None

    @property
    def peak_lr(self) -> float | None:
        """The highest learning rate that was logged, or else the one that is set."""
        lr = self.config.get("optimizer.lr")
        return max((value for _, value in self.lr), default=lr if isinstance(lr, int | float) else None)

    @property
    def betas(self) -> list[float]:
        """The decay factors of the optimizer's averages.

        Raises:
            Unjudged: no setting tells.
        """
        betas = self.setting("optimizer.betas")
        if not isinstance(betas, list | tuple) or not all(isinstance(b, int | float) for b in betas):
            raise Unjudged("a log that states the betas")
        return [float(beta) for beta in betas]

    def setting(self, key: str) -> Any:
        """Return a setting.

        Raises:
            Unjudged: it is not known.
        """
        if self.config.get(key) is None:
            raise Unjudged(f"a log that states {key.rpartition('.')[2]}")
        return self.config[key]

    def number(self, key: str) -> float:
        """Return a setting that is a number.

        Raises:
            Unjudged: it is not known, or something else.
        """
        value = self.setting(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unjudged(f"a log that states {key.rpartition('.')[2]} as a number")
        return value

    def monitored(self) -> list[dict[str, Any]]:
        """Return the samples of the monitor.

        Raises:
            Unjudged: there is none.
        """
        if not self.samples:
            raise Unjudged("samples of the monitor: run again with run.monitor=50")
        return self.samples


def read_record(paths: list[Path]) -> Record:
    """Return what the folder of a run, a log of another program in one or more files, or a monitor left.

    A file of the monitor may be among the files.

    Raises:
        UserError: nothing can be read, or no loss is in it.
    """
    if not paths[0].exists():
        raise UserError(f"{paths[0]}: no such file or folder; give the folder of a run, or a log")
    found = _of_run(paths[0]) if (paths[0] / CONFIG).is_file() else _of_logs(paths)
    if not found.loss and found.diverged is None:
        raise UserError(f"{paths[0]}: no training loss in it yet; let it train until its first record")
    return found


def _of_run(folder: Path) -> Record:
    """Return the record of a run of ours."""
    run = read(folder)
    records = [record for record in run.records if "weights_of_step" not in record]
    diverged = None
    if run.state == "diverged":
        diverged = read_json(folder / DIVERGED, dict).get("step")
    metric = "ema_valid_loss" if run.config.get("ema_decay") else "valid_loss"
    losses = [key for key in (metric, "valid_loss", "test_loss") if any(key in r for r in records)]
    samples = [sample for _, sample in read_records(folder / MONITOR)]
    return Record(
        folder,
        run.config,
        _series(records, "train_loss"),
        _series(records, losses[0]) if losses else [],
        _series(records, "lr"),
        _series(records, "grad_norm") or _series(samples, "grad_norm"),
        _series(records, "train_loss_scale"),
        samples,
        diverged,
        records[-1].get("epoch") if records else None,
        (run.summary or {}).get("parameters"),
        ours=True,
    )


def _of_logs(paths: list[Path]) -> Record:
    """Return the record of a log of another program, and of a monitor next to it."""
    from repro.logs import read as read_log  # takes seconds

    monitors = [path for path in paths if _is_monitor(path)]
    others = [path for path in paths if path not in monitors]
    samples = [sample for path in monitors for _, sample in read_records(path)]
    if not others:
        loss, norm, scale = (_series(samples, key) for key in ("loss", "grad_norm", "loss_scale"))
        return Record(paths[0], loss=loss, grad_norm=norm, loss_scale=scale, samples=samples)
    log = read_log(others)
    position = log.position
    rows = log.table.sort_values(position, kind="stable").to_dict("records")
    losses = [row for row in rows if "train_loss" in row and row["train_loss"] == row["train_loss"]]
    bad = [row for row in rows if row.get("train_loss") in (math.inf, -math.inf)]
    epochs = [row["epoch"] for row in rows if "epoch" in row and row["epoch"] == row["epoch"]]
    return Record(
        others[0],
        _settings(log.config),
        _series(losses, "train_loss", position),
        _series(rows, "eval_loss", position),
        _series(rows, "lr", position),
        _series(rows, "grad_norm", position) or _series(samples, "grad_norm"),
        _series(rows, "loss_scale", position) or _series(samples, "loss_scale"),
        samples,
        bad[0][position] if bad else None,
        max(epochs, default=None),
        log.config.get("parameters"),
        position,
    )


def _is_monitor(path: Path) -> bool:
    """Return whether a file has the samples of adan_optim.Monitor."""
    if not path.is_file():
        return False
    try:
        return all({"groups", "memory"} <= sample.keys() for _, sample in read_records(path))
    except Unreadable:
        return False


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of another program by our names; those in groups (fairseq) count as well."""
    flat = {key.rpartition(".")[2]: value for key, value in flatten(config).items()}
    found = {}
    for ours, theirs in SETTINGS.items():
        for name in theirs:
            if (value := flat.get(name)) is not None:
                found[ours] = value[0] if ours.endswith("lr") and isinstance(value, list) else value
                break
    return found


def _series(records: Iterable[dict[str, Any]], key: str, position: str = "step") -> Series:
    """Return the finite values of a key, by position."""
    return [
        (record[position], float(record[key]))
        for record in records
        if isinstance(record.get(key), int | float) and math.isfinite(record[key])
    ]
