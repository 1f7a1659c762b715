"""The global random generators, whose states a checkpoint keeps."""

import random
from typing import Any

import numpy as np
import torch


def get_generators() -> dict[str, Any]:
    """Return the states of all global random generators of this process, in types torch.load trusts."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (timm uses it)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put all global random generators of this process into the states of `get_generators`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
