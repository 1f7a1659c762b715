"""What a row needs on some GPUs: memory, time and money, before anything is started; see docs/plan.md."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import nn

from repro.errors import UserError
from repro.hardware import FAMILIES, GPUS
from repro.ledger import recipes, rows
from repro.ledger.rows import ROOT, Recipe
from repro.planner import footprint
from repro.planner.footprint import States, Step, materialise
from repro.train.task import Task

Config = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """GPUs on which a row is to run, or the CPU of this machine."""

    gpu: str | None  # one of hardware.GPUS; None: a process on the CPU
    count: int = 1

    @classmethod
    def read(cls, text: str) -> "Machine":
        """Read 8xH100, or H100 for one.

        Raises:
            UserError: it is written otherwise, or no such GPU is known.
        """
        count, _, gpu = text.rpartition("x")
        if gpu not in GPUS or not (count or "1").isdigit() or int(count or 1) < 1:
            raise UserError(f"--gpus {text}: write it as 8xH100; known are {', '.join(GPUS)}")
        return cls(gpu, int(count or 1))

    def __str__(self) -> str:
        return f"{self.count} x {self.gpu}" if self.gpu else "CPU"


@dataclass(frozen=True)
class Job:
    """A recipe as far as it matters here.

    Attributes:
        task: without data.
        forward_flops: of a sample.
        samples: seen in training; None where that is not known.
    """

    config: Config
    task: Task
    forward_flops: float
    samples: float | None

    @property
    def unit(self) -> str:
        """What speed is counted in."""
        return self.task.samples

    @property
    def per_sample(self) -> int:
        """How many of the unit a sample is."""
        return self.task.per_sample

    @property
    def family(self) -> str:
        """The kind of model, in repro.hardware.FAMILIES."""
        return str(self.task.family)

    def model(self, real: bool = False) -> nn.Module:
        """Return the model in training mode, on the CPU or, without memory, on the meta device."""
        with torch.device("cpu" if real else "meta"):
            return self.task.build_model().train()

    def step(self, model: nn.Module, samples: int) -> Step:
        """Return a training step of the model on micro-batches of so many samples."""
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


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the peak of a step, by kind, and what is not tensors of the step itself."""

    kinds: Counter[str]
    states: States

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.kinds.values())


def job(recipe: Recipe) -> Job:
    """Return what a row computes.

    Raises:
        UserError: its recipe does not say what a plan needs.
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
    """Return the samples of a process's micro-batch.

    Raises:
        UserError: they do not come out even.
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


def memory(task: Job, machine: Machine, others: Counter[str] | None = None) -> Memory:
    """Return the bytes of a process at the peak of a step.

    Args:
        task: what is to run.
        machine: where.
        others: what `all_but_states` gives, if it is known: it is the same for every optimizer.

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
    return Memory(kinds, states)


def all_but_states(task: Job, machine: Machine) -> Counter[str]:
    """Return the bytes of a process at the peak of a step, by kind, except for the optimizer's states.

    Raises:
        UserError: the batch does not divide.
    """
    config, n = task.config, machine.count
    size = micro_batch(config, n)
    model = task.model()  # out here, as some models look at values while they are built
    sharded = bool(config.get("fsdp")) and n > 1
    share = 1 / n if sharded else 1.0
    # FSDP2 computes with parameters in bf16, and has its part of them and of their gradients in float32
    sent = torch.bfloat16 if sharded and config["amp"] == "bf16" else None
    each = share if sent is None else share * torch.float32.itemsize / sent.itemsize
    shares = {"parameters": each, "gradients": each}

    more: Counter[str] = Counter()
    if sharded:
        more["gathered"] = _gathered(model, sent)
    elif n > 1:  # DDP's buckets have a copy of all gradients
        more["buckets"] = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    if config.get("ema_decay"):
        more["average"] = sum(p.nbytes for p in model.parameters())

    def build() -> Step:
        return task.step(materialise(model, sent), size)

    kinds = footprint.predict(build, shares, machine.gpu is not None)
    kinds.update(more)
    return kinds


def _gathered(model: nn.Module, dtype: torch.dtype | None) -> int:
    """Return the bytes of what FSDP2 has unsharded in addition to a process's part.

    That is: parameters of the outermost unit and of two others, of which one is on its way; gradients of the
    outermost and of one other; and the largest of these in float32, while they are added up.
    """
    names = set(getattr(model, "_no_split_modules", None) or [])
    units = [module for module in model.modules() if type(module).__name__ in names]
    inner = {p for unit in units for p in unit.parameters()}
    outer = sum(p.numel() for p in model.parameters() if p not in inner)
    unit = max((sum(p.numel() for p in unit.parameters()) for unit in units), default=0)
    return (2 * outer + 3 * unit) * (dtype or torch.float32).itemsize + 4 * max(outer, unit)


@dataclass(frozen=True)
class Speed:
    """How long a row takes, from its operations and the share of the peak that they reach."""

    per_second: float  # tokens or images, on all GPUs
    days: float | None
    dollars: float | None
    mfu: float  # without what is computed again


def speed(task: Job, machine: Machine, utilisation: float, price: float) -> Speed:
    """Return the estimate for some GPUs.

    Args:
        task: the job; its `samples` may be None.
        machine: GPUs.
        utilisation: share of the peak.
        price: dollars for an hour of one GPU.
    """
    assert machine.gpu is not None
    gpu, config = GPUS[machine.gpu], task.config
    peak = gpu.peak_float32 if config["amp"] == "no" else gpu.peak
    again = bool(config.get("gradient_checkpointing") or config["model"].get("grad_checkpointing"))
    passes = 4 if again else 3
    rate = machine.count * peak * utilisation / (task.forward_flops * passes)
    hours = None if task.samples is None else task.samples / rate / 3600
    return Speed(
        rate * task.per_sample,
        None if hours is None else hours / 24,
        None if hours is None else hours * machine.count * price,
        utilisation * 3 / passes,
    )


def utilisation(task: Job) -> float:
    """Return the share of the peak that is assumed."""
    return FAMILIES[task.family]


def optimizer(name: str) -> Config:
    """Return the settings of an optimizer of configs/optimizer, with -bfloat16 or -int8 for its states.

    Raises:
        UserError: there is none.
    """
    base, _, kept = name.partition("-")
    path = ROOT / "configs" / "optimizer" / f"{base}.yaml"
    if not path.is_file() or kept not in ("", "float32", "bfloat16", "int8"):
        known = ", ".join(sorted(path.stem for path in path.parent.glob("[!_]*.yaml")))
        raise UserError(f"--optimizers {name}: there are {known}, with -bfloat16 or -int8 for small states")
    config = cast(Config, OmegaConf.to_container(rows.compose_config(f"optimizer/{base}").optimizer))
    return config | ({"state_dtype": kept} if kept else {})


def remedies(name: str, overrides: Sequence[str], machine: Machine) -> list[tuple[list[str], float]]:
    """Return what makes a row need less memory, one after the other, and the bytes that it then needs."""
    config = rows.load(name, overrides).config
    added: list[str] = []
    found: list[tuple[list[str], float]] = []
    steps = [*_accumulations(config, machine.count), "gradient_checkpointing=true"]
    if machine.count > 1 and not config.get("fsdp"):
        steps.append("fsdp=true")
    steps.append("optimizer.state_dtype=bfloat16")
    for change in steps:
        key = change.partition("=")[0]
        trial = [*(word for word in added if not word.startswith(key)), change]
        try:
            need = memory(job(rows.load(name, [*overrides, *trial])), machine).total
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
