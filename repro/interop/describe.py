"""Describe a checkpoint as text."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from adan_optim.interop.sources import SOURCES, recognise
from repro.interop import states
from repro.interop.checkpoint import Checkpoint, named
from repro.interop.export import architecture
from repro.interop.states import MALFORMED
from repro.interop.tensors import identity, nbytes, number, oddities
from repro.runs import flatten

# Settings that are shown first, by the last part of their names.
FIRST = (
    "arch", "model", "_name", "name", "task", "dataset", "data", "data_path", "opt", "optimizer", "optim",
    "lr", "blr", "max_lr", "learning_rate", "betas", "opt_betas", "adan_betas", "adam_betas", "eps",
    "weight_decay", "wd", "max_grad_norm", "no_prox", "clip", "clip_grad", "clip_norm", "sched", "scheduler",
    "lr_scheduler", "lr_scheduler_type", "lr_decay_style", "min_lr", "warmup_epochs", "warmup_updates",
    "warmup_step", "warmup_steps", "lr_warmup_iters", "epochs", "num_train_epochs", "max_update", "max_step",
    "max_steps", "train_iters", "batch_size", "global_batch_size", "micro_batch_size",
    "per_device_train_batch_size", "accum_iter", "update_freq", "gradient_accumulation_steps", "layer_decay",
    "drop_path", "smoothing", "mixup", "cutmix", "mask_ratio", "norm_pix_loss", "num_layers", "hidden_size",
    "num_attention_heads", "seq_length", "max_position_embeddings", "n_layer", "n_head", "d_model", "tgt_len",
    "mem_len", "amp", "fp16", "bf16", "seed",
)  # fmt: skip
SHOWN_NAMES = 6


def describe(found: Checkpoint, everything: bool = False) -> list[str]:
    """Return the contents of a checkpoint as lines; with `everything`, all settings and groups."""
    lines = [f"{found.path}: {found.title}"]

    def add(label: str, *texts: str) -> None:
        lines.extend(f"{label if i == 0 else '':<11} {text}" for i, text in enumerate(texts))

    parameters = found.parameters()
    count = sum(x.numel() for x in parameters.values())
    if found.weights:
        known = architecture(found)
        first = ", ".join(list(found.weights)[:3])
        shown = str(known) if known else f"no architecture that is known here, with tensors {first}, ..."
        add("model", f"{found.model}: {shown}" if found.model else shown)
        buffers = [x for name, x in found.weights.items() if name in found.buffers]
        extra = f"; {len(buffers)} buffers, {_bytes(buffers)}" if buffers else ""
        add("parameters", f"{count:,} in {len(parameters)} tensors, {_bytes(parameters.values())}{extra}")
        shared = len(found.weights) - len(buffers) - len(parameters)
        if shared:
            add("", f"{shared} more names share these tensors")
    if found.ema:
        add("average", f"averaged weights, {len(found.ema)} tensors, {_bytes(found.ema.values())}")
    for place, state_dict in found.optimizers.items():
        add("optimizer", *_optimizer(place, state_dict, count, everything))
    if not found.optimizers:
        add("optimizer", "no state in it")
    for label, facts in (("position", found.position), ("metric", found.metric)):
        if facts:
            add(label, ", ".join(f"{name} {_value(value)}" for name, value in facts.items()))
    settings = found.settings | {f"config.{k}": v for k, v in flatten(found.config).items()}
    if settings:
        add("settings", *_settings(settings, everything))
    if found.foreign:
        names = found.foreign if everything else found.foreign[:SHOWN_NAMES]
        more = f" and {len(found.foreign) - len(names)} more" if len(names) < len(found.foreign) else ""
        add("not loaded", f"foreign classes and functions, kept as plain data: {', '.join(names)}{more}")
    kept = [named(state_dict["state"]) for state_dict in found.optimizers.values()]
    odd = [line for tensors in (found.weights, found.ema, *kept) for line in oddities(tensors)]
    add("note", *found.notes, *odd)
    return lines


def _optimizer(place: str, state_dict: dict[str, Any], count: int, everything: bool) -> list[str]:
    try:
        source = recognise(state_dict)
        title = f"{SOURCES[source].title} ({source})"
    except (ValueError, *MALFORMED) as error:
        title = f"not recognised: {error}"
    size, elements = states.size(state_dict), states.elements(state_dict)
    per = f"; {size / elements:.4g} bytes per parameter" if elements else ""
    if count and elements and elements != count:
        per += f" of {elements:,} that have a state"
    lines = [f"at {place}: {title}" if place else title, states.summary(state_dict) + per]
    groups = [
        f"group {number}: {len(group['params'])} parameters, "
        + ", ".join(f"{name}={_value(value)}" for name, value in group.items() if name not in LISTS)
        for number, group in enumerate(state_dict["param_groups"])
    ]
    shown = groups if everything else groups[:SHOWN_NAMES]
    more = (
        [f"and {len(groups) - len(shown)} groups more: --all shows them"] if len(shown) < len(groups) else []
    )
    return lines + shown + more


LISTS = ("params", "param_names")


def _settings(settings: Mapping[str, Any], everything: bool) -> list[str]:
    """Return the settings in FIRST on a few lines; with `everything`, all by name."""
    if everything:
        return [f"{name} = {_value(settings[name])}" for name in sorted(settings)]
    rank = {name: i for i, name in enumerate(FIRST)}
    named = [n for n in settings if n.rpartition(".")[2] in rank and settings[n] not in (None, "")]
    named.sort(key=lambda name: rank[name.rpartition(".")[2]])
    lines, line = [], ""
    for text in [f"{name}={_value(settings[name])}" for name in named]:
        if line and len(line) + len(text) > 95:
            lines.append(f"{line},")
            line = ""
        line += f", {text}" if line else text
    more = len(settings) - len(named)
    tail = f"{more} more: --all shows them" if more else ""
    return [*lines, *filter(None, (line, tail))]


def _bytes(tensors: Iterable[Tensor]) -> str:
    """Return the size and dtypes of tensors; one under several names counts once."""
    once = list({identity(x) if x.numel() else id(x): x for x in tensors}.values())
    types = Counter(str(x.dtype).removeprefix("torch.") for x in once)
    shown = next(iter(types)) if len(types) == 1 else ", ".join(f"{t} in {n}" for t, n in types.most_common())
    return f"{nbytes(once):,} bytes of {shown or 'nothing'}"


def _value(value: Any) -> str:
    """Return a value as a text that fits on a line."""
    if isinstance(value, Tensor):
        value = number(value)
        return value if isinstance(value, str) else f"{value:.10g}"
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
