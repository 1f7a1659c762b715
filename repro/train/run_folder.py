"""The folder a run keeps everything in.

runs/<entry point>/<name>/
    config.yaml        the resolved configuration
    environment.json   a list with one entry per start: versions, commit, devices, threads, command
    metrics.jsonl      one JSON object per record; `epoch` is a whole number where an epoch ends, a fraction
                       in between; records of an evaluation have its metrics. With a row of the ledger,
                       released_<key> is what the released log has there, and verdict how the run stands.
                       The last record may have what the best weights, those of `weights_of_step`, give on a
                       set that is evaluated once.
                       Nothing but what the configuration determines is in it, so that two runs of one
                       configuration on one machine agree in every byte; times are in speed.jsonl.
    speed.jsonl        since the record before: samples a second, share of the time that was waiting for data,
                       10^12 operations a second, and their share of the device's peak (see
                       repro.train.throughput)
    monitor.jsonl      with run.monitor: samples of optim.Monitor, which have times and memory in them
    checkpoints/       see repro.train.checkpoint
    summary.json       written at the end; its presence marks the run as finished
    diverged.json      written where the loss is not finite, instead of a summary: the `step` and a message
    wandb/, tensorboard/  of trackers; and what the recipe adds, see Task.products

What else is in it belongs to somebody else, and stays; so does every folder that has no config.yaml of a run.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from repro.environment import environment
from repro.errors import Diverged, UserError
from repro.loading import read_records, read_text
from repro.publish import is_leftover, replacing
from repro.runs import (
    CONFIG,
    DIVERGED,
    ENVIRONMENT,
    LOGS,
    METRICS,
    SUMMARY,
    flatten,
    is_free,
    read_config,
    read_starts,
    read_summary,
)
from repro.train import checkpoint

# A continued run may also differ in this key, which repro.train.saving lets change with the
# number of processes.
DIVISION = "gradient_accumulation_steps"

# What a run that starts over removes, and its checkpoints; first what says that the old one is finished.
PRODUCTS = (SUMMARY, DIVERGED, *LOGS, "monitor.jsonl", ENVIRONMENT, "wandb", "tensorboard")


def run_name(overrides: Sequence[str]) -> str:
    """Derive a run's name from the command line's overrides, so that the same command finds the same folder.

    Overrides of FREE_KEYS do not count, nor does their order. Characters unfit for a file name are replaced,
    long names cut; a hash then keeps different command lines apart.
    """
    counted = sorted(text for text in overrides if not is_free(text.split("=")[0].lstrip("+~")))
    full = ",".join(counted) or "default"
    name = re.sub(r"[^\w.,=+-]", "_", full)[:100]
    return name if name == full else f"{name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


class RunFolder:
    """One run's folder, held exclusively while it is open; a second run on it is refused.

    Of several processes of one run only the `active` one holds the folder and writes; the others read.
    """

    def __init__(self, path: Path, active: bool = True, overwrite: bool = False) -> None:
        """Make the folder, or take one that is empty or a run's.

        Args:
            overwrite: take what is there for nothing; `begin` removes it.

        Raises:
            UserError: it is held by another process, or belongs to something else, and is as it was.
        """
        self.path, self.active, self.overwrite = path, active, overwrite
        self.checkpoints = path / "checkpoints"
        if not active:
            return
        lock = path / ".lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not path.is_dir()
            path.mkdir(exist_ok=True)
            self._added_lock = not lock.exists()
            self._lock = lock.open("a")
        except OSError as error:
            raise UserError(
                f"cannot create run folder {path}: {error.strerror}; set run.root=PATH"
            ) from error
        try:
            # let go by the system when the process dies
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._lock.fileno()).st_nlink:  # whoever held it has removed it since
                raise BlockingIOError
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"another process is training in {path}; set run.name=NAME for a second run"
            ) from error
        try:
            self._refuse_foreign()
        except UserError:
            self._leave()
            raise

    def _refuse_foreign(self) -> None:
        """Raise UserError if something else than a run is here."""
        another = "set run.name=NAME or run.root=PATH for another folder"
        config = self.path / CONFIG
        if config.exists():
            if "run.overwrite" not in read_config(self.path, f"repair it, or {another}"):
                raise UserError(f"{config}: is no run's; {another}")
        else:
            names = sorted(path.name for path in self.path.iterdir())
            strange = [name for name in names if name != ".lock" and not is_leftover(name, CONFIG)]
            if strange:
                raise UserError(f"{self.path} has {strange[0]} in it, and no {CONFIG} of a run; {another}")
        if os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise UserError(f"{self.checkpoints} is not a folder, nor a link to one; repair or remove it")

    def close(self) -> None:
        """Let go of the folder; where no run began, leave it as it was found."""
        if self.active and (self.path / CONFIG).exists():
            self._lock.close()
        elif self.active:
            self._leave()

    def _leave(self) -> None:
        """Undo what the constructor did."""
        if self._added_lock:
            (self.path / ".lock").unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # not empty: what is in it is not ours
                self.path.rmdir()
        self._lock.close()

    def check(self, config: dict[str, Any]) -> None:
        """Raise UserError if the folder was begun with another configuration."""
        if (self.path / CONFIG).exists() and not self.overwrite:
            _refuse_changes(self.path, read_config(self.path), config)

    def begin(self, config: dict[str, Any], products: Sequence[str] = ()) -> None:
        """Record the configuration and the environment of this start; remove an older run first, if told to.

        Args:
            products: see Task.products.
        """
        if not self.active:
            return
        for child in list(self.path.iterdir()):
            if any(is_leftover(child.name, name) for name in (CONFIG, *PRODUCTS)):
                checkpoint.remove(child)
        if self.overwrite:
            for name in (*PRODUCTS, *products):
                checkpoint.remove(self.path / name)
            checkpoint.discard(self.checkpoints)
        starts = read_starts(self.path, "repair or delete it")
        write_atomically(self.path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
        write_atomically(self.path / ENVIRONMENT, json.dumps([*starts, environment()], indent=1))

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a finished run, None for one that is not."""
        cure = "delete it, and the same command finishes the run again"
        return None if self.overwrite else read_summary(self.path, cure)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        if self.active:
            write_atomically(self.path / SUMMARY, json.dumps(summary, indent=1) + "\n")

    def diverge(self, error: Diverged) -> None:
        """Write down that the run ended because of its loss."""
        if self.active:
            text = json.dumps({"step": error.step, "message": str(error)}, indent=1)
            write_atomically(self.path / DIVERGED, text + "\n")

    def log(self, record: dict[str, Any], file: str = METRICS) -> None:
        """Append a record, which must have a `step`, to a file of LOGS."""
        if self.active:
            with (self.path / file).open("a") as log:
                log.write(json.dumps(record) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, the closing one, and a last line that a kill left incomplete."""
        if not self.active:
            return
        for path in (self.path / name for name in LOGS):
            records = read_records(path)
            kept = [line for line, rec in records if rec["step"] <= step and "weights_of_step" not in rec]
            write_atomically(path, "".join(kept))


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content such that a kill leaves the old content or the new, never a part.

    Raises:
        UserError: the disk refused.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room there") from error


def refuse_foreign_page(path: Path, script: str) -> None:
    """Raise UserError if a page that a script would replace does not name it: then somebody else wrote it."""
    if path.exists() and script not in read_text(path):
        raise UserError(f"{path}: was not made by {script}; give another --out")


def _refuse_changes(path: Path, before: dict[str, Any], new: dict[str, Any]) -> None:
    now = flatten(new)
    for key in sorted(before.keys() | now.keys()):
        if not is_free(key) and key != DIVISION and before.get(key) != now.get(key):
            raise UserError(
                f"{path} was begun with {key}={before.get(key)}, now it is {now.get(key)}; "
                "set it back, start another run with run.name=NAME, or begin afresh with run.overwrite=true"
            )
