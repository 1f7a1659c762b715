"""Predict the memory, time and cost of a row on given GPUs; see docs/plan.md."""

import bisect
import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import nn

from repro.errors import UserError
from repro.hardware import GPUS
from repro.ledger import recipes, rows
from repro.ledger.rows import ROOT, Recipe
from repro.planner import footprint
from repro.planner.footprint import Step, materialise
from repro.train.config import typed
from repro.train.task import Task

Config = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """The GPUs on which a row is to run, or the CPU of this machine."""

    gpu: str | None  # one of hardware.GPUS; None: one process on the CPU
    count: int = 1

    @classmethod
    def read(cls, text: str) -> "Machine":
        """Parse 8xH100, or H100 for one.

        Raises:
            UserError: the format is another one, or the GPU is unknown.
        """
        count, _, gpu = text.rpartition("x")
        if gpu not in GPUS or not (count or "1").isdigit() or int(count or 1) < 1:
            raise UserError(f"--gpus {text}: write it as 8xH100; known are {', '.join(GPUS)}")
        return cls(gpu, int(count or 1))

    def __str__(self) -> str:
        return f"{self.count} x {self.gpu}" if self.gpu else "CPU"


@dataclass(frozen=True)
class Job:
    """The parts of a recipe that a plan needs.

    Attributes:
        task: made without data.
        forward_flops: of one sample.
        samples: seen in training; None if unknown.
    """

    config: Config
    task: Task
    forward_flops: float
    samples: float | None

    def model(self, real: bool = False) -> nn.Module:
        """Return the model in training mode, on the CPU (`real`) or, without memory, on the meta device."""
        with torch.device("cpu" if real else "meta"):
            return self.task.build_model().train()

    def micro_batch(self, processes: int) -> int:
        """Return the samples in the micro-batch of one process.

        Raises:
            UserError: the batch does not divide evenly.
        """
        return typed(self.config, self.task.schema).micro_batch(processes)

    def step(self, model: nn.Module, samples: int) -> Step:
        """Return a training step of the model on micro-batches of `samples` samples."""
        config, self.task.state = self.config, {}
        return Step(
            model,
            self.task.loss,
            self.task.synthetic_batch(samples),
            min(2, config["gradient_accumulation_steps"]),
            config["amp"],
            bool(config["clip_grad"]),
            self.task.classes,
        )


def job(recipe: Recipe) -> Job:
    """Return the job of a row.

    Raises:
        UserError: its recipe does not state what a plan needs.
    """
    config, row = recipe.config, recipe.row
    task = recipes.synthetic_task(recipe)
    if task is None or task.family is None:
        raise UserError(
            f"{row.name}: no plan is made for {row.script or 'it'}: that takes a recipe whose task states "
            "its family of models"
        )
    flops = task.flops(task.synthetic_batch(1))
    if flops is None and row.cost is not None:
        flops = row.cost.forward_flops
    if flops is None:
        raise UserError(f"{row.name}: states no row.cost.forward_flops, which its plan needs")
    return Job(config, task, flops, None if row.cost is None else row.cost.samples)


def memory(task: Job, machine: Machine, others: Counter[str] | None = None) -> Counter[str]:
    """Return the bytes of one process at the peak of a step, by kind.

    Args:
        task: the job.
        machine: where it runs.
        others: the result of `all_but_states`, if known; it is the same for every optimizer.

    Raises:
        UserError: the batch does not divide, or the optimizer cannot be built.
    """
    config, n = task.config, machine.count
    sharded = bool(config.get("fsdp")) and n > 1
    if sharded and config["optimizer"].get("state_dtype") == "int8":
        raise UserError("optimizer.state_dtype=int8: does not work with fsdp=true; bfloat16 does")
    kinds = all_but_states(task, machine) if others is None else others.copy()
    states = footprint.states(task.model(), config["optimizer"])
    kinds["states"] = states.sharded // (n if sharded else 1) + states.whole
    return kinds


def all_but_states(task: Job, machine: Machine) -> Counter[str]:
    """Return the bytes of one process at the peak of a step, by kind, without the optimizer's states.

    Raises:
        UserError: the batch does not divide.
    """
    config, n = task.config, machine.count
    size = task.micro_batch(n)
    model = task.model()  # not among fake tensors, as some models read values while they are built
    sharded = bool(config.get("fsdp")) and n > 1
    share = 1 / n if sharded else 1.0
    # FSDP2 computes with parameters in bf16, but keeps its shard of them and of their gradients in float32
    sent = torch.bfloat16 if sharded and config["amp"] == "bf16" else None
    each = share if sent is None else share * torch.float32.itemsize / sent.itemsize
    shares = {"parameters": each, "gradients": each}

    more: Counter[str] = Counter()
    if sharded:
        more["gathered"] = _gathered(model, sent)
    elif n > 1:  # DDP's buckets hold a copy of all gradients
        more["buckets"] = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    if config.get("ema_decay"):
        named = model.named_parameters()
        more["average"] = sum(p.nbytes for name, p in named if name.split(".")[0] not in task.task.beside)

    def build() -> Step:
        return task.step(materialise(model, sent), size)

    kinds = footprint.predict(build, shares, machine.gpu is not None)
    kinds.update(more)
    return kinds


def _gathered(model: nn.Module, dtype: torch.dtype | None) -> int:
    """Return the bytes that FSDP2 holds unsharded, in addition to the shard of a process.

    These are the parameters of the outermost unit and of two others (one is being prefetched), the gradients
    of the outermost and of one other, and the largest of these gradients in float32 for the reduction.
    """
    names = set(getattr(model, "_no_split_modules", None) or [])
    units = [module for module in model.modules() if type(module).__name__ in names]
    inner = {p for unit in units for p in unit.parameters()}
    outer = sum(p.numel() for p in model.parameters() if p not in inner)
    unit = max((sum(p.numel() for p in unit.parameters()) for unit in units), default=0)
    return (2 * outer + 3 * unit) * (dtype or torch.float32).itemsize + 4 * max(outer, unit)


@dataclass(frozen=True)
class Speed:
    """The estimated speed, time and cost of a row."""

    per_second: float  # tokens or images, on all GPUs
    mfu: float  # recomputed activations do not count
    days: float | None = None  # None: the number of samples is unknown
    dollars: float | None = None


def speed(task: Job, machine: Machine, utilisation: float, price: float) -> Speed:
    """Estimate the speed from the number of operations and the share of the peak.

    Args:
        task: the job.
        machine: the GPUs.
        utilisation: the share of their peak that training reaches.
        price: dollars for an hour of one GPU.
    """
    assert machine.gpu is not None
    gpu, config = GPUS[machine.gpu], task.config
    peak = gpu.peak_float32 if config["amp"] == "no" else gpu.peak
    again = bool(config.get("gradient_checkpointing") or config.get("model", {}).get("grad_checkpointing"))
    passes = task.task.passes + again
    rate = machine.count * peak * utilisation / (task.forward_flops * passes)
    estimate = Speed(rate * task.task.per_sample, utilisation * task.task.passes / passes)
    if task.samples is None:
        return estimate
    hours = task.samples / rate / 3600
    return replace(estimate, days=hours / 24, dollars=hours * machine.count * price)


def optimizer(name: str) -> Config:
    """Return the settings of an optimizer in configs/optimizer; -bfloat16 or -int8 sets its state_dtype.

    Raises:
        UserError: there is no such optimizer.
    """
    base, _, kept = name.partition("-")
    path = ROOT / "configs" / "optimizer" / f"{base}.yaml"
    if not path.is_file() or kept not in ("", "float32", "bfloat16", "int8"):
        known = ", ".join(sorted(path.stem for path in path.parent.glob("[!_]*.yaml")))
        raise UserError(f"--optimizers {name}: there are {known}, with -bfloat16 or -int8 for small states")
    config = cast(Config, OmegaConf.to_container(rows.compose_config(f"optimizer/{base}").optimizer))
    return config | ({"state_dtype": kept} if kept else {})


def remedies(name: str, overrides: Sequence[str], machine: Machine) -> list[tuple[list[str], int]]:
    """Return overrides that reduce the memory of a row that does not fit, each with the bytes then needed.

    More micro-batches come first, as they cost next to nothing; then, with them, what costs time or digits.
    The number of micro-batches is the least that fits. The last overrides fit, if any do.
    """
    assert machine.gpu is not None
    limit = GPUS[machine.gpu].memory
    before = job(rows.load(name, overrides))
    config, own = before.config, before.config["gradient_accumulation_steps"]
    numbers = [own, *_more_micro_batches(before, machine.count)]
    in_model = "grad_checkpointing" in config["model"]  # the vision recipes'
    switches = ["model.grad_checkpointing=true" if in_model else "gradient_checkpointing=true"]
    switches += ["fsdp=true"] if machine.count > 1 else []
    switches += ["optimizer.state_dtype=bfloat16"]

    @functools.cache
    def need(changes: tuple[str, ...], number: int) -> float:
        words = [*overrides, *changes, f"gradient_accumulation_steps={number}"]
        try:
            return memory(job(rows.load(name, words)), machine).total()
        except UserError:
            return math.inf  # a key that this recipe lacks, or values that exclude each other

    kept: tuple[str, ...] = ()
    lowest = math.inf
    found: list[tuple[list[str], int]] = []
    for added in [(), *((switch,) for switch in switches)]:
        trial = (*kept, *added)
        number = least(functools.partial(need, trial), numbers, limit)
        total = need(trial, number)
        if total >= lowest:
            continue
        kept, lowest = trial, total
        parts = [f"gradient_accumulation_steps={number}"] if number != own else []
        if changes := [*parts, *trial]:
            found.append((changes, int(total)))
        if total <= limit:
            break
    return found


def _more_micro_batches(task: Job, processes: int) -> Iterator[int]:
    """Yield the larger numbers of micro-batches into which the batch can be divided, in order."""
    own, share = task.config["gradient_accumulation_steps"], task.config["batch_size"] // processes
    for number in (number for number in range(own + 1, share + 1) if share % number == 0):
        config = {**task.config, "gradient_accumulation_steps": number}
        with contextlib.suppress(UserError):  # the recipe demands an even micro-batch, say
            replace(task, config=config).micro_batch(processes)
            yield number


def least(need: Callable[[int], float], numbers: Sequence[int], limit: float) -> int:
    """Return the least number of micro-batches that fits the limit, or else the one that needs least.

    Args:
        need: bytes by the number. The second and later ones need less and less; the first may need less than
            the second, if it is 1, because gradients and activations are then not in memory together.
        numbers: to choose from, rising.
        limit: bytes.
    """
    first, *more = numbers
    if need(first) <= limit or not more:
        return first
    if need(more[-1]) <= limit:
        return more[bisect.bisect_left(more, True, key=lambda number: need(number) <= limit)]
    return min(first, more[-1], key=need)
