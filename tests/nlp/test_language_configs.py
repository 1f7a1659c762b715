"""Every option of the groups model and data that is not vision's makes a configuration and a model.

Language models are in tests/llm/test_models.py.
"""

import pytest
from hydra import compose, initialize_config_dir
from language_options import CONFIGS, options, recipe
from omegaconf import OmegaConf

import nlp.config  # noqa: F401 (registers the schemas)
from repro.verify.models import build

MODELS = [name for name in options("model", language=True) if recipe("model", name) != "llm"]


@pytest.mark.parametrize("name", MODELS)
def test_model_configs(name: str) -> None:
    primary = recipe("model", name)
    assert primary is not None
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(primary, [f"model={name}", "tokenizer.vocab_size=30522"])
    OmegaConf.to_object(config).check()
    model = build(OmegaConf.to_container(config, resolve=True))
    assert model is not None
    assert sum(p.numel() for p in model.parameters()) > 30522 * 16


@pytest.mark.parametrize("primary", ["bert", "transformer_xl", "lstm"])
@pytest.mark.parametrize("name", options("data", language=True))
def test_data_configs(name: str, primary: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose(primary, [f"data={name}"]))
    config.check()
    assert config.data.name == name
