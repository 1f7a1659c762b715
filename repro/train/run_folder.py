"""The folder of a run.

runs/<entry point>/<name>/
    config.yaml        the resolved configuration
    environment.json   a list with one entry per start: versions, commit, devices, threads, command
    metrics.jsonl      one JSON object per record; `epoch` is a whole number at the end of an epoch, and a
                       fraction elsewhere; records of an evaluation have its metrics. With a row of the
                       ledger, released_<key> is the value of the released log, and verdict that on the run.
                       The last record may be the evaluation of the best weights, those of `weights_of_step`,
                       on the test set. The configuration determines everything in this file, so that two runs
                       of it on one machine agree in every byte; times are in speed.jsonl.
    speed.jsonl        since the previous record: samples per second, share of time spent waiting for data,
                       10^12 operations per second, and MFU (see repro.train.throughput)
    monitor.jsonl      with run.monitor: samples of adan_optim.Monitor, including times and memory
    transfer.json      with optimizer.lr=like:NAME: what was predicted, see repro.train.like
    checkpoints/       see repro.train.checkpoint
    summary.json       written at the end; its presence marks the run as finished
    diverged.json      written instead of a summary if the loss is not finite: the `step` and a message
    wandb/, tensorboard/  of trackers; and the recipe's own files, see Task.products

Other files belong to somebody else and are kept, and so are folders without the config.yaml of a run.
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

from repro.doctor.hint import hint
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

# A continued run may also differ in this key: repro.train.saving lets it change with the number of processes.
DIVISION = "gradient_accumulation_steps"

# Removed when a run starts over, with the checkpoints; the mark of the finished run comes first.
PRODUCTS = (
    *(SUMMARY, DIVERGED, *LOGS, "monitor.jsonl", "transfer.json", ENVIRONMENT, "wandb", "tensorboard"),
)


def run_name(overrides: Sequence[str]) -> str:
    """Return a run's name from the overrides of its command line, so that a command finds its folder again.

    Overrides of FREE_KEYS and the order do not count. Characters unfit for file names are replaced, and long
    names are cut; then a hash is added to keep names unique.
    """
    counted = sorted(text for text in overrides if not is_free(text.split("=")[0].lstrip("+~")))
    full = ",".join(counted) or "default"
    name = re.sub(r"[^\w.,=+-]", "_", full)[:100]
    return name if name == full else f"{name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


class RunFolder:
    """One run's folder, held exclusively while it is open; a second run on it is refused.

    Only the `active` process of a run holds the folder and writes; the others read.
    """

    def __init__(self, path: Path, active: bool = True, overwrite: bool = False) -> None:
        """Create the folder, or open one that is empty or of a run.

        Args:
            overwrite: ignore an existing run, which `begin` then removes.

        Raises:
            UserError: another process holds the folder, or it is not of a run; it stays unchanged.
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
            # the system releases it when the process dies
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._lock.fileno()).st_nlink:  # its holder has removed it since
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
        """Raise UserError if the folder is not of a run."""
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
        """Release the folder; if no run began, restore its original state."""
        if self.active and (self.path / CONFIG).exists():
            self._lock.close()
        elif self.active:
            self._leave()

    def _leave(self) -> None:
        """Undo what the constructor did."""
        if self._added_lock:
            (self.path / ".lock").unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # not empty: the contents are not ours
                self.path.rmdir()
        self._lock.close()

    def check(self, config: dict[str, Any]) -> None:
        """Raise UserError if the folder was begun with another configuration."""
        if (self.path / CONFIG).exists() and not self.overwrite:
            _refuse_changes(self.path, read_config(self.path), config)

    def begin(self, config: dict[str, Any], products: Sequence[str] = ()) -> None:
        """Record the configuration and the environment of this start; with `overwrite`, remove an older run.

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
        """Return the summary of a finished run, or None."""
        cure = "delete it, and the same command finishes the run again"
        return None if self.overwrite else read_summary(self.path, cure)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        if self.active:
            write_atomically(self.path / SUMMARY, json.dumps(summary, indent=1) + "\n")

    def diverge(self, error: Diverged) -> None:
        """Record that the loss became non-finite, and print the likeliest cause."""
        if self.active:
            text = json.dumps({"step": error.step, "message": str(error)}, indent=1)
            write_atomically(self.path / DIVERGED, text + "\n")
            if line := hint(self.path):
                print(line)

    def log(self, record: dict[str, Any], file: str = METRICS) -> None:
        """Append a record, which must have a `step`, to a file of LOGS."""
        if self.active:
            with (self.path / file).open("a") as log:
                log.write(json.dumps(record) + "\n")

    def keep(self, file: str, content: dict[str, Any]) -> None:
        """Write a JSON file of PRODUCTS."""
        if self.active:
            write_atomically(self.path / file, json.dumps(content, indent=1) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, that of the test set, and an incomplete last line."""
        if not self.active:
            return
        for path in (self.path / name for name in LOGS):
            records = read_records(path)
            kept = [line for line, rec in records if rec["step"] <= step and "weights_of_step" not in rec]
            write_atomically(path, "".join(kept))


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a file; a kill leaves the old content or the new, never a part.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room there") from error


def refuse_foreign_page(path: Path, script: str) -> None:
    """Raise UserError if a page that a script would replace does not name the script, so is not its own."""
    if path.exists() and script not in read_text(path):
        raise UserError(f"{path}: was not made by {script}; give another --out")


def _refuse_changes(path: Path, before: dict[str, Any], new: dict[str, Any]) -> None:
    now = flatten(new)
    for key in sorted(before.keys() | now.keys()):
        if not is_free(key) and key != DIVISION and before.get(key) != now.get(key):
            raise UserError(
                f"{path} was begun with {key}={before.get(key)}, now it is {now.get(key)}; "
                "set it back, start another run with run.name=NAME, or start over with run.overwrite=true"
            )
