"""Evaluation settings of a checkpoint: its own, those of a ledger row, or timm's for the model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from timm.data import resolve_data_config

from repro.errors import UserError
from repro.explain import explain
from repro.interop import Checkpoint
from repro.ledger import rows
from repro.runs import CONFIG, read_tree
from repro.train.cli import CONFIGS
from vision.config import VisionConfig

DEFAULTS = ("amp=no", "batch_size=256")  # in evaluation, whatever training used


def of(path: Path, found: Checkpoint, row: str | None, overrides: Sequence[str]) -> VisionConfig:
    """Return the configuration to evaluate a checkpoint with.

    Args:
        path: as on the command line; a path in a run folder of ours takes that run's settings.
        found: the checkpoint there.
        row: name of the ledger row that overrides the checkpoint's own settings.
        overrides: key=value, which override everything else.

    Raises:
        UserError: the model is unknown, or the settings do not fit.
    """
    if row is not None:
        if rows.load(row).row.config != "vision":
            raise UserError(f"--row {row}: it is not a classifier of images")
        recipe = rows.load(row, [*DEFAULTS, *overrides])
        node: Any = {**recipe.config, "row": recipe.row}
    elif (own := _run_folder(path)) is not None:
        node = OmegaConf.create(read_tree(own))
        for override in OverridesParser.create().parse_overrides([*DEFAULTS, *overrides]):
            OmegaConf.update(node, override.key_or_group, override.value())
    else:
        node = _of_timm(path, found, overrides)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(VisionConfig), node)
        return cast(VisionConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        whose = f"{path} was trained by another recipe, or another version: " if row is None else ""
        raise UserError(f"{whose}{explain(error)}") from error


def _run_folder(path: Path) -> Path | None:
    folders = [folder for folder in (path, *path.absolute().parents[:3]) if (folder / "checkpoints").is_dir()]
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


def _of_timm(path: Path, found: Checkpoint, overrides: Sequence[str]) -> DictConfig:
    """Return the model and image preparation that a timm checkpoint states, else timm's for the model."""
    first = ["data=imagefolder", "workers=8", *DEFAULTS]
    if not any(override.startswith(("model=", "model.name=")) for override in overrides):
        if found.model is None or not timm.is_model(found.model):
            model = f", only that it is {found.model}" if found.model else ""
            cure = "add --row ROW or model.name=NAME"
            raise UserError(f"{path} does not say which model of timm it is{model}: {cure}")
        first.append(f"model.name={found.model}")
        for key, value in found.settings.items():
            if key.startswith("model_kwargs.") or (key == "gp" and value is not None):
                name = key.rpartition(".")[2]
                first.append(f"++model.kwargs.{'global_pool' if name == 'gp' else name}={json.dumps(value)}")
    config = _compose([*first, *overrides])
    if config.data.name not in ("imagefolder", "webdataset", "hfds"):
        return config
    return _compose([*first, *_images(config.model.name, found.settings), *overrides])


def _images(model: str, args: Mapping[str, Any]) -> list[str]:
    """Return the image preparation of a timm model as overrides."""
    known = timm.get_pretrained_cfg(model)
    found = resolve_data_config(dict(args), pretrained_cfg=known.to_dict() if known is not None else {})
    channels, size, _ = found["input_size"]
    keys = {key: found[key] for key in ("crop_pct", "interpolation", "mean", "std")}
    keys |= {"size": size, "channels": channels}
    return [f"data.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in keys.items()]


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("vision", list(overrides))
