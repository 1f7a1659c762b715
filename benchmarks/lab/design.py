"""The design of the claims lab: tasks, lengths, optimizers, experiments, and the paper's regime."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.comparison.design import Optimizer, Task
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
        of: of a task with another batch, the one that it is a variant of.
    """

    tuned: int = TUNED
    lengths: tuple[int, ...] = LENGTHS
    batch: int = 0
    of: str = ""

    def words(self, steps: int) -> tuple[str, ...]:
        """Return overrides for runs of a length: the warm-up keeps its share; one evaluation, at the end."""
        return (f"steps={steps}", f"schedule.warmup_steps={round(WARMUP * steps)}")


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
}
CORE = ("adamw", "adan")  # run first, and in the variants with another batch

TASKS = {
    "gpt": LabTask("llm/pretrain.py", "GPT-2, bytes", batch=8),
    "mae": LabTask(
        "vision/pretrain_mae.py", "MAE, Fashion-MNIST", unit="mean squared error", batch=64,
        data="fashion-mnist",
    ),
    "vit": LabTask("vision/train.py", "ViT, Fashion-MNIST", batch=64, data="fashion-mnist"),
}  # fmt: skip


def _batch(name: str, factor: int, steps: int) -> LabTask:
    """Return a task in larger batches, for a second measurement of the best learning rates."""
    task = TASKS[name]
    size = task.batch * factor
    return replace(
        task, title=f"{task.title}, batch {size:,}", overrides=(f"batch_size={size}",), batch=size,
        only=CORE, tuned=steps, lengths=(steps,), of=name, config=name,
    )  # fmt: skip


BATCH_TASKS = {f"{name}_{8 * TASKS[name].batch}": _batch(name, 8, 512) for name in ("gpt", "mae")}
ALL_TASKS = TASKS | BATCH_TASKS


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
