"""`optimizer.lr=like:adamw`: a learning rate predicted from another optimizer's, by adan_optim.transfer.

    like:adamw         learning rate and weight decay of configs/optimizer/adamw.yaml
    like:adamw@1e-3    that learning rate

A pilot on the recipe's own model and data measures it (repro.train.transfer). The run takes the learning rate
and the weight decay that come out, and keeps them in its folder, so that it continues with them.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from repro.errors import UserError
from repro.ledger.rows import CONFIGS, compose_config
from repro.loading import read_json

if TYPE_CHECKING:
    from adan_optim import Transfer

FILE = "transfer.json"  # in the run folder
FORM = re.compile(r"like:(?P<name>[\w-]+)(@(?P<lr>[-+.\deE]+))?")


def asked(options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the optimizer that `optimizer.lr` names, or None if it is a number.

    Raises:
        UserError: the text has another form, or there is no such optimizer.
    """
    lr = options.get("lr")
    if not isinstance(lr, str):
        return None
    match = FORM.fullmatch(lr)
    if match is None:
        raise UserError(f"optimizer.lr={lr}: give a number, or like:adamw, or like:adamw@1e-3")
    name = match["name"]
    if not (CONFIGS / "optimizer" / f"{name}.yaml").is_file():
        raise UserError(f"optimizer.lr={lr}: there is no configs/optimizer/{name}.yaml")
    found = cast(dict[str, Any], OmegaConf.to_container(compose_config(f"optimizer/{name}").optimizer))
    keys = [key for key in ("name", "lr", "betas", "weight_decay") if key in found]
    kept: dict[str, Any] = {key: found[key] for key in keys}
    try:
        return kept | ({"lr": float(match["lr"])} if match["lr"] else {})
    except ValueError:
        raise UserError(f"optimizer.lr={lr}: {match['lr']} is not a number") from None


def settle(
    options: dict[str, Any], folder: Path | None, find: "Callable[..., Transfer]"
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the optimizer's options with numbers, and what to keep in FILE; None if they were numbers.

    Args:
        folder: of the run; what it has kept counts. None: a run that starts over.
        find: repro.train.transfer.measure, but for `like` and `to`.

    Raises:
        UserError: see `asked` and `measure`; FILE is damaged.
    """
    like = asked(options)
    if like is None:
        return options, None
    if folder is not None and (folder / FILE).exists():
        kept = read_json(folder / FILE, dict)
        if not kept.keys() >= {"lr", "weight_decay", "text"}:
            raise UserError(f"{folder / FILE}: lacks lr, weight_decay or text; delete it to measure again")
    else:
        found = find(like=like, to={key: options[key] for key in ("name", "betas") if key in options})
        numbers = {key: found.settings.options[key] for key in ("lr", "weight_decay")}
        kept = {**numbers, "text": str(found)}
    return options | {key: kept[key] for key in ("lr", "weight_decay")}, kept
