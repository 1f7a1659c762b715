"""Read checkpoints of Megatron-LM, in which each rank writes its own part."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from repro.errors import UserError
from repro.interop.checkpoint import Checkpoint, Weights
from repro.interop.files import read_file
from repro.interop.tensors import require_values


def read_ranks(path: Path) -> Checkpoint:
    """Read the folder of all iterations (its latest one) or of one iteration, and join the ranks.

    Raises:
        UserError: ranks are missing, do not fit each other, or cannot be read.
    """
    latest = path / "latest_checkpointed_iteration.txt"
    if latest.is_file():
        said = latest.read_text(errors="replace").strip()
        if not said.isdecimal() and said != "release":
            raise UserError(f"{latest} says {said[:40]!r}: neither the number of an iteration nor 'release'")
        path = path / ("release" if said == "release" else f"iter_{int(said):07d}")
        if not path.is_dir():
            raise UserError(f"{latest} says {said}, but there is no folder {path}")
    files = {}
    for folder in sorted(path.glob("mp_rank_*")):
        numbers = re.fullmatch(r"mp_rank_(\d+)(?:_(\d+))?", folder.name)
        file = next((f for name in RANK_FILES if (f := folder / name).is_file()), None)
        if numbers and file is None:
            raise UserError(f"{folder} has none of {', '.join(RANK_FILES)}")
        if numbers and file is not None:
            files[int(numbers[2] or 0), int(numbers[1])] = file
    if not files:
        raise UserError(f"{path} has no folder mp_rank_<number> with {' or '.join(RANK_FILES)}")
    shards = {place: read_file(file) for place, file in files.items()}
    found = next(iter(shards.values()))
    found.path = path
    found.optimizers = {
        f"{files[place].relative_to(path)}: {key}": state_dict
        for place, shard in shards.items()
        for key, state_dict in shard.optimizers.items()
    }
    if len(shards) > 1:
        found.weights = _joined({place: shard.weights for place, shard in shards.items()}, found, path)
        found.notes.append(f"joined from {len(shards)} ranks")
    return found


RANK_FILES = ("model_optim_rng.pt", "model_rng.pt")
# Tensors that are split over the ranks by output or by input; all others are equal on all ranks.
BY_OUTPUT = re.compile(
    r"(word_embeddings|query_key_value|dense_h_to_4h|output_layer)\.(weight|bias)$|lm_head\.bias$"
)
BY_INPUT = re.compile(r"(attention\.dense|dense_4h_to_h)\.weight$")


def _joined(shards: Mapping[tuple[int, int], Weights], found: Checkpoint, path: Path) -> Weights:
    """Join the weights by (stage of the pipeline, part of each tensor) to one model."""
    stages = sorted({stage for stage, _ in shards})
    parts = sorted({part for _, part in shards})
    for kind, count in (("pipeline", len(stages)), ("tensor", len(parts))):
        said = found.settings.get(f"{kind}_model_parallel_size", count)
        if said != count or len(shards) != len(stages) * len(parts):
            raise UserError(f"{path} has ranks missing: {len(shards)} are there; {kind} parallel size {said}")
    weights: Weights = {}
    layers = 0
    for stage in stages:
        first = shards[stage, parts[0]]
        highest = -1
        for shard in shards.values():
            require_values(shard, path)
        for name in first:
            rank = [shards[stage, part].get(name) for part in parts]
            if any(x is None or x.dim() != first[name].dim() for x in rank):
                raise UserError(f"{path}: ranks do not fit each other: {name} is not the same on all")
            pieces = [x for x in rank if x is not None]
            if layer := re.search(r"\blayers\.(\d+)\.", name):
                highest = max(highest, int(layer[1]))
                shifted = f"{name[: layer.start(1)]}{int(layer[1]) + layers}{name[layer.end(1) :]}"
            else:
                shifted = name
            if not shifted.startswith("word_embeddings_for_head"):  # the last stage's copy
                weights[shifted] = _join(name, pieces, float(found.settings["checkpoint_version"]))
        layers += highest + 1
    return weights


def _join(name: str, pieces: list[Tensor], version: float) -> Tensor:
    """Join the parts of a tensor, [out / ranks, ...] or [out, in / ranks]."""
    if len(pieces) == 1 or not (BY_OUTPUT.search(name) or BY_INPUT.search(name)):
        return pieces[0]
    if BY_INPUT.search(name):
        return torch.cat(pieces, dim=1)
    if "query_key_value" in name and version < 1:  # [queries; keys; values] of all heads
        thirds = [x.reshape(3, -1, *x.shape[1:]) for x in pieces]
        return torch.cat(thirds, dim=1).flatten(0, 1)
    return torch.cat(pieces)
