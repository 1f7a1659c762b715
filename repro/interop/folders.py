"""Read checkpoints that are folders. They are recognised by their files."""

import re
from pathlib import Path

from repro.errors import UserError
from repro.interop import megatron, unpickle
from repro.interop.checkpoint import (
    Checkpoint,
    Weights,
    known,
    load_safetensors,
    mapping,
    read_json,
    settings_of,
    text,
)
from repro.interop.files import read_file
from repro.interop.states import candidates
from repro.runs import CONFIG, read_config
from repro.train import checkpoint, fsdp


def read_folder(path: Path) -> Checkpoint:
    """Read a folder.

    Raises:
        UserError: it is no checkpoint of a known kind, or cannot be read.
    """
    names = {file.name for file in path.iterdir()}
    if (path / "checkpoints").is_dir():
        return _run(path)
    if checkpoint.MANIFEST in names:
        return _step(path)
    if "latest_checkpointed_iteration.txt" in names or any(name.startswith("mp_rank_") for name in names):
        return megatron.read_ranks(path)
    if "model.pt" in names:
        found = read_file(path / "model.pt")
        found.path = path
        if "optimizer.pt" in names:
            _add_optimizer(found, path / "optimizer.pt")
            found.notes = [note for note in found.notes if "optimizer.pt" not in note]
        return found
    if names & {*HF_WEIGHTS, "trainer_state.json"}:
        return _hugging_face(path, names)
    files = sorted(name for name in names if re.search(r"\.(pt|pth|tar|bin|ckpt|safetensors)$", name))
    more = f"; name one of its files: {', '.join(files[:8])}" if files else ", nor a file of one"
    raise UserError(f"{path} is a folder, but no checkpoint of a known kind{more}")


def _run(path: Path) -> Checkpoint:
    notes: list[str] = []
    newest = checkpoint.newest(
        path / "checkpoints", lambda line: notes.append(line.removeprefix("warning: "))
    )
    if newest is None:
        raise UserError(f"{path / 'checkpoints'} has no checkpoint in it: the run did not come that far")
    found = _step(newest)
    best = checkpoint.read_manifest(newest).get("best")
    kept = f"; its best one is {best}" if best and best != newest.name else ", its best, too" if best else ""
    found.notes = [*notes, f"the run's newest checkpoint{kept}", *found.notes]
    return found


def _step(path: Path) -> Checkpoint:
    problem = checkpoint.damage(path)
    if problem is not None:
        raise UserError(f"{path} is damaged: {problem}")
    manifest = checkpoint.read_manifest(path)
    progress = read_json(path / "progress.json")
    last, best = mapping(progress.get("last")), mapping(progress.get("best"))
    run = path.parent.parent
    found = Checkpoint(
        path,
        "checkpoint of a run of ours",
        _weights(path),
        position=known({"epoch": last.get("epoch"), "step": manifest.get("step")}),
        metric={f"best {k}": v for k, v in best.items() if k not in ("step", "epoch", "lr")},
        settings=read_config(run) if (run / CONFIG).is_file() else {},
        model=text(manifest.get("model")),
    )
    if (path / checkpoint.EMA).is_file():
        found.ema = load_safetensors(path / checkpoint.EMA)[0]
    _add_optimizer(found, path / "training.pt")
    return found


def _weights(path: Path) -> Weights:
    if (path / fsdp.METADATA).is_file():
        return fsdp.read_weights(path)
    return load_safetensors(path / checkpoint.MODEL)[0]


HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def _hugging_face(path: Path, names: set[str]) -> Checkpoint:
    config = read_json(path / "config.json")
    state = read_json(path / "trainer_state.json")
    classes = config.get("architectures")
    found = Checkpoint(
        path,
        "Hugging Face Trainer checkpoint" if state else "Hugging Face model folder",
        position=known({"epoch": state.get("epoch"), "step": state.get("global_step")}),
        metric=known({"best metric": state.get("best_metric")}),
        model=text(classes[0] if isinstance(classes, list) and classes else config.get("model_type")),
        config=config,
    )
    for file in _shards(path, names):
        part = read_file(file)
        found.weights |= part.weights
        found.foreign += part.foreign
    if "training_args.bin" in names:
        content, foreign = unpickle.read(path / "training_args.bin")
        found.foreign += foreign
        found.settings = settings_of(content)
    if "optimizer.pt" in names:
        _add_optimizer(found, path / "optimizer.pt")
    elif state:
        found.notes.append("no optimizer.pt in it: saved without the optimizer's state, or sharded")
    return found


def _shards(path: Path, names: set[str]) -> list[Path]:
    kind = next((name for name in HF_WEIGHTS if name in names), None)
    if kind is None or not kind.endswith(".json"):
        return [path / kind] if kind else []
    listed = read_json(path / kind).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{path / kind} has no weight_map from tensors to files")
    files = sorted(set(listed.values()))
    for name in files:
        if Path(name).name != name or not (path / name).is_file():
            raise UserError(f"{path / kind} names {name!r}, which is not a file in its folder")
    return [path / name for name in files]


def _add_optimizer(found: Checkpoint, file: Path) -> None:
    content, foreign = unpickle.read(file)
    found.optimizers |= {f"{file.name}: {key}".rstrip(": "): s for key, (_, s) in candidates(content)}
    found.foreign = sorted({*found.foreign, *foreign})
