"""Read checkpoints that are one file. They are recognised by their keys, not by their names."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from repro.errors import UserError
from repro.interop import unpickle
from repro.interop.checkpoint import (
    Checkpoint,
    Weights,
    known,
    load_safetensors,
    mapping,
    named,
    settings_of,
    some,
    text,
)
from repro.interop.states import candidates
from repro.interop.tensors import detached, nbytes


def read_file(path: Path) -> Checkpoint:
    """Read a file.

    Raises:
        UserError: it cannot be read, or has neither weights nor an optimizer's state.
    """
    if path.suffix == ".safetensors":
        weights, metadata = load_safetensors(path)
        return Checkpoint(path, "safetensors file", weights, model=metadata.get("model"))
    content, foreign = unpickle.read(path)
    found = _recognised(content, path)
    if found is None:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path} has neither weights nor an optimizer's state in it, only: {keys or 'nothing'}"
        )
    found.foreign = foreign
    found.optimizers = {key: state for key, (_, state) in candidates(content)}
    return found


def _recognised(content: Any, path: Path) -> Checkpoint | None:
    if isinstance(content, unpickle.Foreign):
        return _module(content, path)
    if not isinstance(content, dict):
        return _bare({}, path) if any(candidates(content)) else None
    for matches, build in KINDS:
        if matches(content):
            return build(content, path)
    return None


def _lightning(content: dict[Any, Any], path: Path) -> Checkpoint:
    return Checkpoint(
        path,
        f"Lightning checkpoint (version {content['pytorch-lightning_version']})",
        named(content.get("state_dict")),
        position=some(content, epoch="epoch", step="global_step"),
        settings=settings_of(content.get("hyper_parameters")),
    )


def _timm(content: dict[Any, Any], path: Path) -> Checkpoint:
    weights = named(content["state_dict"])
    mae = "mask_token" in weights and "decoder_embed.weight" in weights
    return Checkpoint(
        path,
        "MAE pre-training checkpoint (timm's saver)" if mae else "timm checkpoint",
        weights,
        named(content.get("state_dict_ema")),
        position=some(content, epoch="epoch"),
        metric=some(content, metric="metric"),
        settings=settings_of(content.get("args")),
        model=text(content.get("arch")),
        notes=["epochs count from 0"],
    )


def _imagenet_example(content: dict[Any, Any], path: Path) -> Checkpoint:
    return Checkpoint(
        path,
        "checkpoint of PyTorch's ImageNet example",
        named(content["state_dict"]),
        position=some(content, epoch="epoch"),
        metric=some(content, best_acc1="best_acc1"),
        model=text(content["arch"]),
        notes=["epochs count from 1"],
    )


def _fairseq(content: dict[Any, Any], path: Path) -> Checkpoint:
    settings = settings_of(content.get("cfg")) or settings_of(content.get("args"))
    updates = content.get("optimizer_history")
    history = mapping(updates[-1]) if isinstance(updates, list) and updates else {}
    extra = mapping(content.get("extra_state"))
    epoch = mapping(extra.get("train_iterator")).get("epoch")
    metric_name = settings.get("checkpoint.best_checkpoint_metric", settings.get("best_checkpoint_metric"))
    best = {f"best {metric_name or 'loss'}": extra.get("best"), "validation loss": extra.get("val_loss")}
    found = Checkpoint(
        path,
        "fairseq checkpoint",
        named(content["model"]),
        position=known({"epoch": epoch, "step": history.get("num_updates")}),
        metric=known(best),
        settings=settings,
        model=text(settings.get("model._name", settings.get("arch"))),
    )
    flat = mapping(mapping(content.get("last_optimizer_state")).get("state"))
    if len(flat) == 1 and len(found.weights) > 1:
        found.notes.append(
            "fairseq's fp16 training keeps all parameters in one: so are the optimizer's states, and they "
            "fit an optimizer of one flat parameter only"
        )
    if not any(candidates(content)):
        found.notes.append("saved without the optimizer's state (--no-save-optimizer-state)")
    return found


def _megatron(content: dict[Any, Any], path: Path) -> Checkpoint:
    version = content.get("checkpoint_version", 0)
    if not isinstance(version, (int, float)):
        raise UserError(f"{path}: checkpoint_version={version!r:.40} is not a number")
    found = Checkpoint(
        path,
        f"Megatron-LM checkpoint (checkpoint_version {version})",
        named(content["model"]),
        position=some(content, step="iteration"),
        settings=settings_of(content.get("args")) | {"checkpoint_version": version},
    )
    copies = mapping(content.get("optimizer")).get("fp32_from_fp16_params")
    masters = [x for group in copies if isinstance(group, list) for x in group] if copies else []
    size = nbytes(x for x in masters if isinstance(x, Tensor))
    if size:
        found.notes.append(f"{size:,} bytes of fp32 copies of the parameters, not counted as states")
    if not any(candidates(content)):
        found.notes.append(
            "no optimizer's state in it: the distributed optimizer keeps its own, sharded, in other files "
            "(distrib_optim.pt, optim.pt), which cannot be converted; or it was saved with --no-save-optim"
        )
    return found


def _finetuned(content: dict[Any, Any], path: Path) -> Checkpoint:
    return Checkpoint(
        path,
        "checkpoint in the layout of MAE's, DeiT's and DETR's scripts",
        named(content["model"]),
        named(content.get("model_ema")),
        position=some(content, epoch="epoch"),
        metric=some(content, max_accuracy="max_accuracy"),
        settings=settings_of(content.get("args")),
        model=text(settings_of(content.get("args")).get("model")),
        notes=["epochs count from 0"],
    )


def _ours(content: dict[Any, Any], path: Path) -> Checkpoint:
    return Checkpoint(path, "training.pt of a run of ours (name its folder for the rest)")


def _bare(content: dict[Any, Any], path: Path) -> Checkpoint:
    weights = named(content) if all(isinstance(x, Tensor) for x in content.values()) else {}
    return Checkpoint(path, "state dict of a model" if weights else "state dict of an optimizer", weights)


def _training(content: dict[Any, Any], path: Path) -> Checkpoint:
    weights = next((w for key in WEIGHTS if (w := named(content.get(key)))), {})
    return Checkpoint(
        path,
        "training checkpoint of an unknown writer",
        weights,
        position=some(content, epoch="epoch", step="step"),
        model=text(content.get("arch")),
        settings=next((found for key in SETTINGS if (found := settings_of(content.get(key)))), {}),
    )


WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "module")
SETTINGS = ("args", "cfg", "config", "hparams", "hyper_parameters")
KINDS: tuple[tuple[Callable[[dict[Any, Any]], Any], Callable[[dict[Any, Any], Path], Checkpoint]], ...] = (
    (lambda c: "pytorch-lightning_version" in c, _lightning),
    (lambda c: named(c.get("state_dict")) and {"arch", "epoch", "version"} <= c.keys(), _timm),
    (lambda c: named(c.get("state_dict")) and {"arch", "epoch", "best_acc1"} <= c.keys(), _imagenet_example),
    (lambda c: named(c.get("model")) and {"optimizer_history", "extra_state"} & c.keys(), _fairseq),
    (
        lambda c: (
            named(c.get("model")) and ("checkpoint_version" in c or "language_model" in mapping(c["model"]))
        ),
        _megatron,
    ),
    (lambda c: named(c.get("model")) and {"epoch", "args"} <= c.keys(), _finetuned),
    (lambda c: "scaler" in c and not c.keys().isdisjoint({"rings", "losses"}), _ours),
    (lambda c: c and all(isinstance(x, Tensor) for x in c.values()), _bare),
    (lambda c: {"state", "param_groups"} <= c.keys(), _bare),
    (lambda c: any(named(c.get(key)) for key in WEIGHTS) or any(candidates(c)), _training),
)


def _module(root: unpickle.Foreign, path: Path) -> Checkpoint | None:
    """Return the checkpoint of a module that was pickled whole, as by Transformer-XL's script."""
    weights: Weights = {}
    buffers: set[str] = set()
    for name, x, parameter in _walk(root, "", ()):
        weights[name] = x
        if not parameter:
            buffers.add(name)
    if not weights:
        return None
    own = {k: v for k, v in root.state.items() if not k.startswith("_") and k != "training"}
    settings = {k: v for k, v in unpickle.plain(own).items() if isinstance(v, (bool, int, float, str))}
    kind = "Transformer-XL model" if root.name.endswith(".MemTransformerLM") else "model"
    found = Checkpoint(
        path, f"{kind}, a whole pickled module ({root.name})", weights, buffers=buffers, settings=settings
    )
    found.notes.append(
        "optimizer.pt next to it has the optimizer's state"
        if (path.parent / "optimizer.pt").is_file()
        else "no optimizer's state in it: where there is one, it is in an optimizer.pt next to it"
    )
    return found


def _walk(module: Any, prefix: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield the name of every tensor in a pickled module, the tensor, and whether it is a parameter."""
    if not isinstance(module, unpickle.Foreign) or not isinstance(module.state, dict) or id(module) in above:
        return
    for kind in ("_parameters", "_buffers"):
        for name, x in mapping(module.state.get(kind)).items():
            transient = name in (module.state.get("_non_persistent_buffers_set") or ())
            if isinstance(x, Tensor) and not (kind == "_buffers" and transient):
                yield f"{prefix}{name}", detached(x), kind == "_parameters"
    for name, child in mapping(module.state.get("_modules")).items():
        yield from _walk(child, f"{prefix}{name}.", (*above, id(module)))
