"""The design of the comparison: tasks, optimizers, budgets, and the paper's claims as experiments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.comparison.search import Space

# Overrides are written as Hydra repeats them in a multirun (False, no blanks): they name the run folders.

TUNING_SEED = 0
SEEDS = (1, 2, 3, 4, 5)  # of the result; none is used for tuning
FEWER = SEEDS[:3]  # for optimizers that the claims are not about
REFERENCE = "adamw"
CORE = (REFERENCE, "adan")  # run first
LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)  # lengths at which it is run, as factors of a task's


@dataclass(frozen=True)
class Length:
    """How long the runs of a task are, and the warm-up at their beginning, as its configuration says.

    Attributes:
        unit: epochs or steps, of both.
    """

    unit: str
    whole: int
    warmup: int

    def words(self, factor: float) -> tuple[str, ...]:
        """Return overrides for runs of another length, with the same share of warm-up."""
        return (
            f"{self.unit}={self.whole * factor:g}",
            f"schedule.warmup_{self.unit}={self.warmup * factor:g}",
        )


@dataclass(frozen=True)
class Task:
    """A recipe at the size given by a file of configs/comparison; the criterion is the validation loss.

    Attributes:
        length: of its runs; a task without it is only for the claims, and has no runs of other lengths.
        only: its optimizers; empty means all.
        data: the folder of the data set in ADAN_DATA, if it is not embedded.
    """

    script: str
    title: str
    length: Length | None = None
    unit: str = "nats"
    config: str = ""  # default: the task's name
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    data: str | None = None
    space: Mapping[str, Space] = field(default_factory=dict)  # replaces the optimizers' own


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of configs/optimizer, and the space in which it is tuned.

    Attributes:
        title: its name in the tables.
        space: None for a variant: it takes the best point of the optimizer `of`.
        overrides: in addition to `optimizer=`.
        seeds: of the result.
        without: tasks on which it does not work, or takes too long.
        why: the reason.
        rival: of an optimizer without a learning rate to tune, the tuned one that it should equal.
    """

    title: str
    space: Space | None = None
    of: str = ""
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = FEWER
    without: tuple[str, ...] = ()
    why: str = ""
    rival: str = ""


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: the folder in configs/ that has the tasks.
        tasks: by their names.
        optimizers: by their names.
        later: tasks whose turn comes after that of the others.
    """

    name: str
    tasks: Mapping[str, Task]
    optimizers: Mapping[str, Optimizer]
    later: Mapping[str, Task]

    def space(self, task: str, optimizer: str) -> Space:
        """Return the space in which an optimizer, or the original of a variant, is tuned."""
        name = self.optimizers[optimizer].of or optimizer
        found = self.tasks[task].space.get(name) or self.optimizers[name].space
        assert found is not None, "the original of a variant is tuned"
        return found

    def works(self, task: str, optimizer: str) -> bool:
        """Return whether an optimizer runs on a task."""
        only = self.tasks[task].only
        return (not only or optimizer in only) and task not in self.optimizers[optimizer].without

    def variants(self, task: str, optimizer: str) -> list[str]:
        """Return an optimizer and its variants."""
        found = [name for name, about in self.optimizers.items() if about.of == optimizer]
        return [optimizer, *(() if self.tasks[task].only else found)]

    def cells(self, tasks: Iterable[str], optimizers: Iterable[str]) -> list[tuple[str, str]]:
        """Return the pairs of a task and an optimizer that is tuned, AdamW and Adan first."""
        tuned = [name for name in optimizers if self.optimizers[name].space is not None]
        pairs = [(task, name) for task in tasks for name in tuned if self.works(task, name)]
        return sorted(pairs, key=lambda pair: (pair[0] in self.later, pair[1] not in CORE))


@dataclass(frozen=True)
class Experiment:
    """A claim that needs runs of its own: variants of Adan at its best point of some tasks.

    Attributes:
        claim: of the paper (arXiv 2208.06677).
        variants: overrides by label.
    """

    claim: str
    variants: Mapping[str, tuple[str, ...]]
    tasks: tuple[str, ...] = ("vit", "lstm", "gpt")
    seeds: tuple[int, ...] = SEEDS[:3]


def _full(start: float) -> Space:
    return Space(start, (0.05, 0.0, 0.5), tuple(range(-4, 5)), full=True, budget=36)


DECOUPLED = (0.05, 0.5)  # weight decays


def _short(start: float, weight_decays: tuple[float, ...] = DECOUPLED) -> Space:
    """Return the space of a shorter search, which begins where AdamW's optima are: from 2e-3 to 0.03."""
    return Space(start, weight_decays, (-2, 0, 2), budget=8)


FREE = Space(1.0, DECOUPLED, (-1, 0, 1), budget=6)  # the learning rate is a factor on an estimate
FLAT = ("schedule=constant",)  # after the task's warm-up, as in the schedule-free paper
OPTIMIZERS = {
    "adamw": Optimizer("AdamW", _full(2e-3), seeds=SEEDS),
    "adan": Optimizer("Adan", _full(4e-3), seeds=SEEDS),
    "adan_bf16": Optimizer(
        "Adan, bfloat16", of="adan", overrides=("optimizer.state_dtype=bfloat16",), seeds=SEEDS
    ),
    "adan_int8": Optimizer("Adan, int8", of="adan", overrides=("optimizer.state_dtype=int8",), seeds=SEEDS),
    "adam": Optimizer("Adam", Space(2e-3, (0.0, 1e-2))),
    "adam_mini": Optimizer("Adam-mini", Space(2e-3, DECOUPLED)),
    "lamb": Optimizer("LAMB", Space(2e-3, DECOUPLED)),
    "sophia": Optimizer(
        "Sophia-G",
        Space(1e-3, DECOUPLED),
        without=("mae",),
        why="its estimate of the Hessian needs classes",
    ),
    "shampoo": Optimizer("Shampoo", Space(2e-3, DECOUPLED)),
    "adafactor": Optimizer("Adafactor", Space(1e-2, DECOUPLED), overrides=("optimizer.relative_step=False",)),
    "sgd": Optimizer("SGD, momentum", Space(0.05, (5e-4, 5e-3))),
    "nadamw": Optimizer("NAdamW", _short(8e-3)),
    "lion": Optimizer("Lion", _short(8e-4, (0.5, 5.0))),
    "ademamix": Optimizer(  # warm-ups of about the length of a run, as the authors have them
        "AdEMAMix", _short(8e-3), overrides=("optimizer.alpha_warmup=200", "optimizer.beta3_warmup=200")
    ),
    "mars": Optimizer("MARS", _short(1.2e-2)),
    "muon": Optimizer("Muon", _short(8e-3), overrides=("optimizer.precision=float32",)),
    "soap": Optimizer("SOAP", _short(8e-3)),
    "schedule_free_adamw": Optimizer("Schedule-free AdamW", _short(1e-2), overrides=FLAT),
    "schedule_free_adan": Optimizer("Schedule-free Adan", _short(1e-2), overrides=FLAT),
    "prodigy": Optimizer("Prodigy", FREE, rival="adamw"),
    "prodigy_adan": Optimizer("Prodigy-Adan", FREE, rival="adan"),
}

BATCHES = (32, 256, 1024, 4096)  # images; the paper's are 1k to 32k
TASKS = {
    "vit": Task("vision/train.py", "ViT, digits", length=Length("epochs", 16, 2)),
    "resnet": Task("vision/train.py", "ResNet, digits", length=Length("epochs", 12, 2)),
    "mae": Task(
        "vision/pretrain_mae.py", "MAE, digits", unit="mean squared error", length=Length("epochs", 12, 2)
    ),
    "glue": Task("nlp/finetune_glue.py", "RoBERTa, sentences", length=Length("steps", 160, 16)),
    "lstm": Task("nlp/train_lstm.py", "LSTM, words", length=Length("steps", 200, 20)),
    "gpt": Task("llm/pretrain.py", "GPT-2, bytes", length=Length("steps", 200, 20)),
}
BATCH_TASKS = {
    f"batch_{size}": Task(
        "vision/train.py",
        f"ViT, Fashion-MNIST, batch {size:,}",
        config="batch",
        overrides=(f"batch_size={size}",),
        only=("adamw", "adan", "lamb"),
        data="fashion-mnist",
        space={
            name: Space(start, (0.05,), (-2, 0, 2), budget=6)
            for name, start in (("adamw", 2e-3), ("adan", 4e-3), ("lamb", 8e-3))
        },
    )
    for size in BATCHES
}


def _beta(index: int, values: tuple[float, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for value in values:
        betas = [0.98, 0.92, 0.99]
        betas[index] = value
        found[f"beta{index + 1} {value:g}"] = (f"optimizer.betas={betas}".replace(" ", ""),)
    return found


EXPERIMENTS = {
    "betas": Experiment(
        "Adan's result depends little on its betas.",
        _beta(0, (0.9, 0.95, 0.99)) | _beta(1, (0.84, 0.96, 0.99)) | _beta(2, (0.9, 0.96, 0.999)),
        seeds=SEEDS[:2],
    ),
    "prox": Experiment(
        "Adan's proximal weight decay is better than AdamW's form of it (no_prox).",
        {
            "proximal": ("optimizer.weight_decay=0.5", "optimizer.no_prox=False"),
            "as AdamW": ("optimizer.weight_decay=0.5", "optimizer.no_prox=True"),
        },
    ),
    "restart": Experiment(
        "Restarts of the moments help. (Most of the published runs have none.)",
        {"every 80 steps": ("restart_every=80",)},
    ),
}

COMPARISON = Study("comparison", TASKS | BATCH_TASKS, OPTIMIZERS, later=BATCH_TASKS)
