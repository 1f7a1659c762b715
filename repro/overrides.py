"""Overrides of mappings whose keys are the user's, such as patterns of parameter names."""

import re
from collections.abc import Sequence

_OPEN = re.compile(r"optimizer\.lr_scales[.=]")


def opened(words: Sequence[str]) -> list[str]:
    """Return the words of a command line such that Hydra takes new keys for these mappings.

    Without this, `optimizer.lr_scales={head:2}` would work only while there is no mapping yet. Keys that it
    does not name stay; `optimizer.lr_scales=null` removes all.
    """
    return [f"++{word}" if _OPEN.match(word) else word for word in words]


def as_typed(words: Sequence[str]) -> list[str]:
    """Undo `opened`."""
    return [word[2:] if word.startswith("++") and _OPEN.match(word, 2) else word for word in words]
