"""Predict the memory, time and cost of a row on given GPUs; see docs/plan.md."""

from collections import Counter
from collections.abc import Sequence
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


def micro_batch(config: Config, processes: int) -> int:
    """Return the samples in the micro-batch of one process.

    Raises:
        UserError: the batch does not divide evenly.
    """
    size, accumulated = config["batch_size"], config["gradient_accumulation_steps"]
    parts = accumulated * processes
    if size % parts:
        fits = [str(n) for n in range(1, size // processes + 1) if size % (n * processes) == 0][-8:]
        cure = f"; gradient_accumulation_steps may be {', '.join(fits)}" if fits else ""
        raise UserError(
            f"batch_size={size}: must be divisible by "
            f"gradient_accumulation_steps={accumulated} times {processes} "
            f"process(es){cure}"
        )
    return int(size // parts)


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
    size = micro_batch(config, n)
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
    """Return overrides that reduce the memory of a row, step by step, each with the bytes then needed."""
    config = rows.load(name, overrides).config
    added: list[str] = []
    found: list[tuple[list[str], int]] = []
    steps = [*_accumulations(config, machine.count), "gradient_checkpointing=true"]
    if machine.count > 1 and not config.get("fsdp"):
        steps.append("fsdp=true")
    steps.append("optimizer.state_dtype=bfloat16")
    for change in steps:
        key = change.partition("=")[0]
        trial = [*(word for word in added if not word.startswith(key)), change]
        try:
            need = memory(job(rows.load(name, [*overrides, *trial])), machine).total()
        except UserError:
            continue  # a key that this recipe lacks
        if found and need >= found[-1][1]:
            continue
        added = trial
        found.append((trial, need))
        assert machine.gpu is not None
        if need <= GPUS[machine.gpu].memory:
            break
    return found


def _accumulations(config: Config, processes: int) -> list[str]:
    share = config["batch_size"] // processes
    parts = [n for n in range(config["gradient_accumulation_steps"] + 1, share + 1) if share % n == 0]
    chosen = {parts[0], parts[-1]} if parts else set()
    return [f"gradient_accumulation_steps={n}" for n in sorted(chosen)]
