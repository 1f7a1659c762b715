"""What a row needs on some GPUs: memory, time and money, before anything is started; see docs/plan.md."""

import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from repro.errors import UserError
from repro.hardware import FAMILIES, GPUS
from repro.ledger import rows
from repro.ledger.rows import ROOT, Recipe
from repro.planner import footprint
from repro.planner.footprint import States, Step, materialise
from repro.verify import models

Config = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """GPUs on which a row is to run, or the CPU of this machine."""

    gpu: str | None  # one of cost.GPUS; None: a process on the CPU
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
        build: makes the model, on the meta device or for real, and a loss and a micro-batch for it.
        unit: what speed is counted in, and how many of them a sample is.
        forward_flops: of a sample.
    """

    config: Config
    build: Callable[[int, bool], Step]
    family: str
    unit: str
    per_sample: int
    forward_flops: float
    samples: float | None


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
        UserError: it is none of the recipes whose steps are known here.
    """
    config, row = recipe.config, recipe.row
    samples = None if row.cost is None else row.cost.samples
    if row.config == "llm":
        return _language(config, samples)
    if row.script == "vision/train.py" and row.cost is not None:
        return _vision(config, samples, row.cost.forward_flops)
    raise UserError(f"{row.name}: plans are made for rows of llm/pretrain.py and vision/train.py")


def _language(config: Config, samples: float | None) -> Job:
    llm: Any = importlib.import_module("llm.models")
    pretrain: Any = importlib.import_module("llm.pretrain")
    # what the recipe needs of its data is the number of tokens alone, and the rows have that
    words, length = config["tokenizer"].get("vocab_size"), config["data"]["sequence_length"]
    model = {**config["model"], "checkpoint": None}
    settings = llm.settings(model, words)
    task = object.__new__(pretrain.LanguageModelling)
    task.settings, task.experts = settings, llm.is_mixture(settings)

    def build(micro_batch: int, real: bool) -> Step:
        with torch.device("cpu" if real else "meta"):
            made = llm.build(model, words, config["gradient_checkpointing"])
        ids = torch.randint(settings.vocab_size, (micro_batch, length + 1))
        return _step(config, made, task.loss, [ids], settings.vocab_size, real)

    family = "mixture of experts" if task.experts else "language model"
    return Job(config, build, family, "tokens", length, llm.flops(settings, length, length), samples)


def _vision(config: Config, samples: float | None, forward_flops: float) -> Job:
    def build(micro_batch: int, real: bool) -> Step:
        model = models.build(config)
        assert model is not None
        if real:
            model = model.to_empty(device="cpu")
        images = torch.zeros(micro_batch, config["data"]["channels"], *[config["data"]["size"]] * 2)
        labels = torch.full((micro_batch, models.IMAGENET_CLASSES), 1 / models.IMAGENET_CLASSES)

        def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        return _step(config, model, loss, [images, labels], models.IMAGENET_CLASSES, real)

    return Job(config, build, "other", "images", 1, forward_flops, samples)


def _step(config: Config, model: nn.Module, loss: Any, batch: list[Tensor], classes: int, real: bool) -> Step:
    model.train()
    return Step(
        model, loss, batch, min(2, config["accumulate"]), config["amp"], bool(config["clip_grad"]), classes
    )


def micro_batch(config: Config, processes: int) -> int:
    """Return the samples of a process's micro-batch.

    Raises:
        UserError: they do not come out even.
    """
    size, parts = config["batch_size"], config["accumulate"] * processes
    if size % parts:
        fits = [str(n) for n in range(1, size // processes + 1) if size % (n * processes) == 0][-8:]
        cure = f"; accumulate may be {', '.join(fits)}" if fits else ""
        raise UserError(
            f"batch_size={size}: must be divisible by accumulate={config['accumulate']} times {processes} "
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
    states = footprint.states(task.build(1, False).model, config["optimizer"])
    kinds["states"] = states.sharded // (n if sharded else 1) + states.whole
    return Memory(kinds, states)


def all_but_states(task: Job, machine: Machine) -> Counter[str]:
    """Return the bytes of a process at the peak of a step, by kind, but for the optimizer's states.

    Raises:
        UserError: the batch does not divide.
    """
    config, n = task.config, machine.count
    size = micro_batch(config, n)
    meta = task.build(1, False).model
    sharded = bool(config.get("fsdp")) and n > 1
    share = 1 / n if sharded else 1.0
    # FSDP2 computes with parameters in bf16, and has its part of them and of their gradients in float32
    sent = torch.bfloat16 if sharded and config["amp"] == "bf16" else None
    each = share if sent is None else share * torch.float32.itemsize / sent.itemsize
    shares = {"parameters": each, "gradients": each}

    def build() -> Step:
        step = task.build(size, False)
        return replace(step, model=materialise(step.model, sent))

    kinds = footprint.predict(build, shares, machine.gpu is not None)
    if sharded:
        kinds["gathered"] += _gathered(meta, sent)
    elif n > 1:  # DDP's buckets have a copy of all gradients
        kinds["buckets"] += sum(p.nbytes for p in meta.parameters() if p.requires_grad)
    if config.get("ema_decay"):
        kinds["average"] += sum(p.nbytes for p in meta.parameters())
    return kinds


def _gathered(model: nn.Module, dtype: torch.dtype | None) -> int:
    """Return the bytes of what FSDP2 has unsharded beside a process's part.

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
        task: of which not all say how long they take.
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
        known = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml")))
        raise UserError(f"--optimizers {name}: there are {known}, with -bfloat16 or -int8 for small states")
    config: Config = yaml.safe_load(path.read_text())
    return config | ({"state_dtype": kept} if kept else {})


def remedies(name: str, overrides: list[str], machine: Machine) -> list[tuple[list[str], float]]:
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
    parts = [n for n in range(config["accumulate"] + 1, share + 1) if share % n == 0]
    chosen = {parts[0], parts[-1]} if parts else set()
    return [f"accumulate={n}" for n in sorted(chosen)]
