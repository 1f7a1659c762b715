"""The design of the claims lab: tasks, lengths, optimizers, experiments, and the paper's regime."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.comparison.design import CORE, Optimizer, Study, Task
from benchmarks.comparison.search import Space

# Overrides are written as Hydra repeats them in a multirun (False, no blanks): they name the run folders.

LENGTHS = (512, 2048, 8192)  # steps of the runs of every optimizer
RUNGS = (256, 512, 1024, 2048, 4096, 8192, 16384)  # of the reference: its ladder
TUNED = 2048  # where learning rate and weight decay are tuned
LONG = 8192  # where the learning rate is tuned once more; runs from half of it on take that one
WARMUP = 0.1  # share of the steps
TUNING_SEEDS = (0, 10)
SEEDS = (1, 2, 3, 4, 5)  # of the result, the same data order for every optimizer
FEWER = SEEDS[:3]  # of other state types, and of the experiments

# Adan's longest average remembers 100 steps. The paper's shortest pre-training (Transformer-XL) has 50,000.
PAPER_STEPS = 50_000


@dataclass(frozen=True)
class LabTask(Task):
    """A task of the lab, at lengths in steps.

    Attributes:
        tuned: the length at which it is tuned.
        lengths: those of its runs.
        batch: samples of a step.
        ladder: whether the reference has all RUNGS, and Adan its experiments.
        tuning_seeds: whose mean loss the search takes.
        seeds: the most seeds of a result.
        eval_every: steps between evaluations; None: one, at the end.
        seconds: of a step, roughly; of a cell that has run, its own count.
    """

    tuned: int = TUNED
    lengths: tuple[int, ...] = LENGTHS
    batch: int = 0
    ladder: bool = True
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    seeds: int = len(SEEDS)
    eval_every: int | None = None
    seconds: float = 0.03

    def words(self, steps: int) -> tuple[str, ...]:
        """Return overrides for runs of a length: the warm-up keeps its share."""
        evaluated = () if self.eval_every is None else (f"eval_every={self.eval_every}",)
        return (f"steps={steps}", f"schedule.warmup_steps={round(WARMUP * steps)}", *evaluated)


@dataclass(frozen=True)
class Experiment:
    """Variants of Adan around its best point, each with three learning rates and then more seeds.

    Attributes:
        asks: the question.
        variants: overrides by label; a label is unique in the experiment.
        lengths: of the runs.
        octaves: learning rates, relative to Adan's own at that length.
    """

    asks: str
    variants: Mapping[str, tuple[str, ...]]
    lengths: tuple[int, ...] = (TUNED,)
    octaves: tuple[int, ...] = (-1, 0, 1)
    seeds: tuple[int, ...] = FEWER
    tasks: tuple[str, ...] = ("gpt", "mae", "vit")


def _space(start: float) -> Space:
    """Return a space with one rule for all: three learning rates, then neighbours, within nine points."""
    return Space(start, (0.05, 0.5), (-2, 0, 2), budget=9)


OPTIMIZERS = {
    "adamw": Optimizer("AdamW", _space(4e-3), seeds=SEEDS),
    "adan": Optimizer("Adan", _space(1.2e-2), seeds=SEEDS),
    "adan_int8": Optimizer("Adan, int8", of="adan", overrides=("optimizer.state_dtype=int8",), seeds=FEWER),
    "adan_bf16": Optimizer(
        "Adan, bfloat16", of="adan", overrides=("optimizer.state_dtype=bfloat16",), seeds=FEWER
    ),
    "nadamw": Optimizer("NAdamW", _space(4e-3), seeds=SEEDS),
    "muon": Optimizer("Muon", _space(8e-3), overrides=("optimizer.precision=float32",), seeds=SEEDS),
    "shampoo": Optimizer("Shampoo", _space(4e-3), seeds=SEEDS),
    "lamb": Optimizer(
        "LAMB", _space(8e-3), seeds=SEEDS, without=("gpt", "mae", "vit"), why="for the batches alone"
    ),
}

TASKS = {
    "gpt": LabTask("llm/pretrain.py", "GPT-2, bytes", batch=8, seconds=0.025),
    "mae": LabTask(
        "vision/pretrain_mae.py", "MAE, Fashion-MNIST", unit="mean squared error", batch=64,
        data="fashion-mnist", seconds=0.05,
    ),
    "vit": LabTask("vision/train.py", "ViT, Fashion-MNIST", batch=64, data="fashion-mnist", seconds=0.045),
}  # fmt: skip


def _larger(name: str, factor: int, steps: int) -> LabTask:
    """Return a task in larger batches, for a second measurement of the best learning rates."""
    task = TASKS[name]
    size = task.batch * factor
    return replace(
        task, title=f"{task.title}, batch {size:,}", overrides=(f"batch_size={size}",), batch=size,
        only=CORE, tuned=steps, lengths=(steps,), ladder=False, config=name, seconds=factor * task.seconds,
    )  # fmt: skip


def _batch(size: int) -> LabTask:
    """Return a small ViT in batches of a size, all for the same number of steps."""
    spaces = {name: Space(start, (0.05,), (-2, 0, 2), budget=5) for name, start in BATCHED.items()}
    return LabTask(
        "vision/train.py", f"small ViT, batch {size:,}", config="batch", overrides=(f"batch_size={size}",),
        only=tuple(BATCHED), data="fashion-mnist", space=spaces, tuned=1000, lengths=(1000,), batch=size,
        ladder=False, tuning_seeds=TUNING_SEEDS[:1], seeds=len(FEWER), eval_every=50,
        seconds=0.005 + 1.5e-4 * size,
    )  # fmt: skip


BATCHED = {"adamw": 4e-3, "adan": 1.2e-2, "lamb": 8e-3}  # the learning rates at octave 0
LARGER = {f"{name}_{8 * TASKS[name].batch}": _larger(name, 8, 512) for name in ("gpt", "mae")}
BATCHES = {f"batch_{size}": _batch(size) for size in (32, 256, 1024, 4096)}  # the paper's are 1k to 32k
ALL_TASKS = TASKS | LARGER | BATCHES
LAB = Study("lab", ALL_TASKS, OPTIMIZERS, later=LARGER | BATCHES)


def _betas(*values: float) -> tuple[str, ...]:
    return (f"optimizer.betas={list(values)}".replace(" ", ""),)


EXPERIMENTS = {
    "betas": Experiment(
        "Does Adan's result depend little on its betas?",
        {
            "beta1 0.95": _betas(0.95, 0.92, 0.99),
            "beta1 0.99": _betas(0.99, 0.92, 0.99),
            "beta2 0.84": _betas(0.98, 0.84, 0.99),
            "beta2 0.96": _betas(0.98, 0.96, 0.99),
            "beta3 0.96": _betas(0.98, 0.92, 0.96),
            "beta3 0.999": _betas(0.98, 0.92, 0.999),
        },
    ),
    "memory": Experiment(
        f"Do Adan's averages have to keep their share of the run, (1 - beta) T as at {TUNED:,} steps?",
        {"scaled": _betas(0.92, 0.68, 0.96)},
        lengths=(512,),
    ),
    "prox": Experiment(
        "Is Adan's proximal weight decay better than AdamW's form of it (no_prox)?",
        {
            "proximal": ("optimizer.weight_decay=0.5", "optimizer.no_prox=False"),
            "as AdamW": ("optimizer.weight_decay=0.5", "optimizer.no_prox=True"),
        },
    ),
    "restart": Experiment(
        "Do restarts of the moments help?", {"every 512 steps": ("restart_every=512",)}, octaves=(0,)
    ),
}
