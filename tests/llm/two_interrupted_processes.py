"""Started as two processes by test_llm_processes.py: a recipe's module and its arguments.

The run is stopped after its second step, and continued.
"""

import importlib
import sys
from typing import Any

import pytest

from repro.train.trainer import Trainer

main = importlib.import_module(sys.argv[1]).main


class StopError(Exception):
    """Stands in for a kill."""


def stopped(trainer: Trainer, *arguments: Any) -> None:
    original(trainer, *arguments)
    if trainer.progress.step == 2:
        raise StopError


original = Trainer._end_step
Trainer._end_step = stopped  # type: ignore[method-assign]
with pytest.raises(StopError):
    main(sys.argv[2:])
Trainer._end_step = original  # type: ignore[method-assign]
sys.exit(main(sys.argv[2:]))
