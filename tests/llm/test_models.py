"""Language models: their sizes, what they compute, and configurations that cannot work."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm.models import build, count

CONFIGS = Path(__file__).parents[2] / "configs/model"
COUNTS = {
    "gpt2_125m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1.5b": 1_557_611_200,
    "gpt2_345m": 355_657_728,
    "llama_40m": 38_738_304,
    "llama_70m": 66_857_472,
    "llama_100m": 101_924_480,
    "llama_160m": 162_423_552,
    "llama_270m": 271_090_688,
    "llama_1b": 1_055_991_808,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "moe_8x0.1b": 532_557_440,
    "moe_8x0.3b": 1_953_158_144,
    "moe_8x0.6b": 4_014_388_480,
}


def named(name: str) -> dict[str, Any]:
    """Return a model of configs/model."""
    model: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_has_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        assert count(build(named(name))) == COUNTS[name]
    assert f"{COUNTS[name]:,}" in (CONFIGS / f"{name}.yaml").read_text(), "the file says so"
