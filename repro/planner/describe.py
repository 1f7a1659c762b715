"""Show plans as text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from adan_optim import CARDS
from repro.errors import UserError
from repro.hardware import FAMILIES, GPUS, Gpu, show_time
from repro.ledger import rows
from repro.planner import footprint, plan, step
from repro.planner.plan import Job, Machine, Speed
from repro.planner.step import Setting
from repro.results import table


def describe(
    name: str, overrides: Sequence[str], machine: Machine, setting: Setting, price: float | None
) -> list[str]:
    """Return the plan of a row, as lines.

    Args:
        setting: its `mfu`, if it is None, is the assumption for the family of models; `tokens` is not used.
        price: dollars for an hour of a GPU; None: our assumption.

    Raises:
        UserError: the row has no plan, or its batch does not divide.
    """
    recipe = rows.load(name, overrides)
    task = plan.job(recipe)
    gpu = GPUS[str(machine.gpu)]
    kinds = plan.memory(task, machine)
    family = str(task.task.family)
    share = FAMILIES[family] if setting.mfu is None else setting.mfu
    dollars = gpu.dollars if price is None else price
    lines = [
        f"{name} on {machine}, amp={task.config['amp']}",
        _batch(task, machine),
        "memory of a GPU, GB: " + parts(kinds),
        f"  {_of(kinds.total(), gpu)}: {'it fits' if kinds.total() <= gpu.memory else 'it does not fit'}",
    ]
    if kinds.total() > gpu.memory:
        found = plan.remedies(name, overrides, machine)
        lines += (
            f"  {_of(total, gpu)} with {' '.join(changes)}: {'it fits' if total <= gpu.memory else 'not yet'}"
            for changes, total in found
        )
        if not found or found[-1][1] > gpu.memory:
            cure = "take more GPUs or larger ones (--gpus), or --set a smaller batch_size or model"
            return [*lines, f"no speed, time or cost, because nothing tried here fits: {cure}", ""]
        changes, _ = found[-1]
        task = plan.job(rows.load(name, [*overrides, *changes]))
        lines += [f"what follows is for the command with {' '.join(changes)}:", _batch(task, machine)]
    speed = plan.speed(task, machine, share, dollars)
    assumed = "assumed" if setting.mfu is None else "given"
    lines.append(
        f"speed: {speed.per_second:,.0f} {task.task.samples} per second, at {share:.0%} of the peak "
        f"({assumed} for the family {family!r}; MFU {speed.mfu:.0%})"
    )
    lines.append(_step(task, machine, speed, setting))
    if speed.days is not None and speed.dollars is not None:
        assumed = "assumed" if price is None else "given"
        cost = f"${speed.dollars:,.0f} at ${dollars:.2f} for an hour of a GPU ({assumed})"
        lines.append(f"time: {show_time(24 * speed.days)}; cost: {cost}")
    return [*lines, ""]


def _batch(task: Job, machine: Machine) -> str:
    """Return the line on the micro-batches."""
    size, number = task.micro_batch(machine.count), task.config["gradient_accumulation_steps"]
    return f"batch of a GPU: {number} x {size} {_samples(task)}, gradient_accumulation_steps={number}"


def _of(need: float, gpu: Gpu) -> str:
    return f"{need / 1e9:.1f} of {gpu.memory / 1e9:.0f} GB"


def _step(task: Job, machine: Machine, speed: Speed, setting: Setting) -> str:
    """Return the line on the optimizer's step."""
    gpu, config = GPUS[str(machine.gpu)], task.config
    named = config["optimizer"]["name"]
    card = CARDS.get(named)
    kept = config["optimizer"].get("state_dtype") or "float32"
    if card is not None and not step.is_estimated(card, kept):
        return f"step on a GPU: not estimated, as {card.title} makes many passes with {kept} states"
    model = task.model()
    states = footprint.states(model, config["optimizer"])
    shards = machine.count if config.get("fsdp") else 1
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad) / shards
    clipped = bool(config["optimizer"].get("max_grad_norm"))
    cost = step.cost(trained, states.sharded / shards + states.whole, named, clipped)
    bandwidth, pcie = setting.bandwidth or gpu.bandwidth, setting.pcie or gpu.pcie
    seconds = cost.seconds(bandwidth)
    training = config["batch_size"] * task.task.per_sample / speed.per_second
    share = f"{seconds / (training + seconds):.2%} of a training step"
    return (
        f"step on a GPU: {cost.moved / 1e9:.3g} GB moved, {1e3 * seconds:.3g} ms "
        f"at {bandwidth / 1e9:,.0f} GB/s, {share}; {1e3 * cost.seconds(bandwidth, pcie):.3g} ms "
        f"with offloaded states at {pcie / 1e9:g} GB/s"
    )


def parts(kinds: Counter[str]) -> str:
    """Return the bytes by kind, in GB."""
    order = sorted(kinds, key=lambda kind: (*footprint.KINDS, kind).index(kind))
    shown = {kind: f"{kinds[kind] / 1e9:.2f}" for kind in order}
    return ", ".join(f"{kind} {size}" for kind, size in shown.items() if size != "0.00")


def _samples(task: Job) -> str:
    tokens = task.task.per_sample
    return task.task.samples if tokens == 1 else f"sequences of {tokens:,} tokens"


def by_optimizer(
    names: Sequence[str], overrides: Sequence[str], optimizers: Sequence[str], machine: Machine
) -> tuple[str, list[dict[str, Any]]]:
    """Return a Markdown table of the memory of each row with each optimizer, and its numbers."""
    configs = {name: plan.optimizer(name) for name in optimizers}
    head = ["row", "optimizer", "states, GB", "share of AdamW's", "in all on a GPU, GB", "fits"]
    lines, found = [], []
    others: dict[str, Counter[str]] = {}
    pairs = [(row, name) for row in names for name in optimizers]
    for row, name in tqdm(pairs, unit="plan", leave=False, disable=None):
        task = plan.job(rows.load(row, overrides))
        if row not in others:
            others[row] = plan.all_but_states(task, machine)
        meta = task.model()
        states = footprint.states(meta, configs[name])
        yardstick = footprint.states(meta, plan.optimizer("adamw"))
        size, of = (x.sharded + x.whole for x in (states, yardstick))
        task = replace(task, config={**task.config, "optimizer": configs[name]})
        total, kinds, why = "-", None, ""
        try:
            need = plan.memory(task, machine, others[row])
        except UserError as error:
            fits = why = str(error)
        else:
            total, kinds = f"{need.total() / 1e9:.1f}", dict(need)
            fits = "yes" if need.total() <= GPUS[str(machine.gpu)].memory else "no"
        lines.append([row, name, f"{size / 1e9:.3f}", f"{size / of:.1%}", total, fits])
        found.append({"row": row, "optimizer": name, "states": states.by_name, "bytes": kinds, "why": why})
    return table(head, lines), found
